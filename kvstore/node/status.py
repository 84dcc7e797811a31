"""What nodes tell each other about their shards, for people and tools: never used to decide anything."""

from __future__ import annotations

from collections.abc import Callable

from kvstore.node.flow import Promise
from kvstore.node.host import Host
from kvstore.node.replica import Replica
from kvstore.node.runtime import Lane, Timer, Transport
from kvstore.types import NodeId
from kvstore.wire.peer import LedShard, StatusReply, StatusRequest

ASK_S = 0.5
"""How long a slow peer may delay the answer; then it is given without that peer's part."""


def led_shard(replica: Replica) -> LedShard:
    core = replica.core
    return LedShard(
        replica.shard,
        core.term,
        replica.me,
        core.configuration.voters,
        core.configuration.learners,
        tuple((peer, progress.match) for peer, progress in core.progress.items()),
        replica.machine.applied,
        replica.machine.key_count,
    )


class Status:
    """Answers for this node and asks the others."""

    def __init__(self, host: Host, transport: Transport, is_hosting: Callable[[], bool]) -> None:
        self._host = host
        self._is_hosting = is_hosting
        self._transport = transport
        self._asked: dict[int, Callable[[NodeId, StatusReply], None]] = {}
        self._next_id = 0
        host.on_message[StatusRequest] = self._on_request
        host.on_message[StatusReply] = self._on_reply

    def mine(self, number: int = 0) -> StatusReply:
        led = [led_shard(each) for each in self._host.replicas.values() if each.led_term is not None]
        hosted = tuple((shard, each.me) for shard, each in self._host.replicas.items())
        return StatusReply(
            number,
            tuple(led),
            tuple(self._host.damaged_replicas.items()),
            hosted if self._is_hosting() else None,
        )

    def ask_all(self) -> Promise[dict[NodeId, StatusReply]]:
        """The answers of all nodes that can be reached, this one's included."""
        promise: Promise[dict[NodeId, StatusReply]] = Promise()
        self._next_id += 1
        number = self._next_id
        answers = {self._host.me: self.mine()}
        wanted = {node for node in self._host.peers if self._transport.is_connected(node)}

        def finish() -> None:
            if self._asked.pop(number, None) is not None:
                promise.resolve(answers)

        timer: Timer = self._host.runtime.call_later(ASK_S, finish)

        def arrived(node: NodeId, reply: StatusReply) -> None:
            answers[node] = reply
            wanted.discard(node)
            if not wanted:
                timer.cancel()
                finish()

        self._asked[number] = arrived
        for node in sorted(wanted):
            self._host.post(node, Lane.CONTROL, StatusRequest(number))
        if not wanted:
            timer.cancel()
            finish()
        return promise

    def _on_request(self, node: NodeId, request: StatusRequest) -> None:
        self._host.post(node, Lane.CONTROL, self.mine(request.id))

    def _on_reply(self, node: NodeId, reply: StatusReply) -> None:
        arrived = self._asked.get(reply.id)
        if arrived is not None:
            arrived(node, reply)
