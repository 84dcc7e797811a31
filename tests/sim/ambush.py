"""Faults that wait for their moment: a trap is set for a message of a kind and springs when one leaves.

Chance alone seldom hits the instant between a vote and its first use, or between the two halves of a change
of members. What then happens is drawn like everything else, so no trap knows what it might find.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from kvstore.node.replica import Replica
from kvstore.raft.messages import (
    CONFIGURATION,
    EMPTY,
    NORMAL,
    AppendReply,
    AppendRequest,
    Heartbeat,
    Message,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvstore.store import txn_commands
from kvstore.types import NodeId, ShardId, node_of

if TYPE_CHECKING:
    from tests.sim.cluster import Process
    from tests.sim.faults import Faults

PATIENCE_S = 4.0
UNANSWERED = "unanswered"
"""A blow of its own: the answer to this very message is lost, and what follows it for a moment."""
UNANSWERED_S = (0.2, 1.0)


def _carries(kind: int) -> Callable[[Message], bool]:
    return lambda message: (
        isinstance(message, AppendRequest) and any(entry.kind == kind for entry in message.entries)
    )


MOMENTS: dict[str, Callable[[Message], bool]] = {
    "someone campaigns": lambda message: isinstance(message, VoteRequest),
    "a vote is asked for": lambda message: isinstance(message, VoteRequest) and not message.is_pre_vote,
    "a vote is given": lambda message: (
        isinstance(message, VoteReply) and message.is_granted and not message.is_pre_vote
    ),
    "a term begins": _carries(EMPTY),
    "writes are sent": _carries(NORMAL),
    "members change": _carries(CONFIGURATION),
    "writes are acknowledged": lambda message: isinstance(message, AppendReply) and not message.is_rejected,
    "logs do not match": lambda message: isinstance(message, AppendReply) and message.is_rejected,
    "leadership is handed over": lambda message: isinstance(message, TimeoutNow),
    "a snapshot is offered": lambda message: isinstance(message, SnapshotOffer),
    "a round is opened": lambda message: isinstance(message, Heartbeat) and message.round > 0,
}
TXN_MOMENTS: dict[str, int] = {
    "a prepare is sent": txn_commands.PREPARE,
    "a decision is sent": txn_commands.DECIDE,
    "a vote is asked for again": txn_commands.ASK,
}
"""Ops of transactions over several shards, on their way from a coordinator."""
_command = msgspec.msgpack.Decoder(list[Any]).decode


class Trap(NamedTuple):
    moment: str
    shard: ShardId | None
    """None: any."""
    until: float
    blows: list[tuple[str, str]]
    """What happens, and to whom: the source or target of the message, or a third node."""
    delay_s: float


class Ambush:
    """At most one trap is set at a time."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.trap: Trap | None = None

    def watch(self, process: Process) -> None:
        """Look at what leaves a process life."""
        host, router = process.node.host, process.node.router
        post, write = host._post_raft, router.write

        def watched(replica: Replica, messages: tuple[Message, ...], **more: Any) -> None:
            post(replica, messages, **more)
            if self.trap is not None:
                for message in messages:
                    self._look(replica.shard, message)

        def written(shard: ShardId, command: bytes, *more: Any) -> Any:
            if self.trap is not None and self.trap.moment in TXN_MOMENTS:
                self._look_at_command(process.name, shard, command)
            return write(shard, command, *more)

        host._post_raft = watched  # type: ignore[method-assign]
        router.write = written  # type: ignore[method-assign]

    def set(self, shard: ShardId | None, moment: str | None = None, unanswered_share: float = 0.1) -> None:
        faults, dice = self.faults, self.faults.dice
        moment = moment or dice.choice((*MOMENTS, *TXN_MOMENTS))
        if dice.random() < unanswered_share:
            blows = [(UNANSWERED, "target")]
        else:
            victims = ("source", "source", "target", "target", "third")
            blows = [
                (dice.choice(tuple(faults.blows)), dice.choice(victims))
                for _ in range(dice.choice((1, 2, 2, 3)))
            ]
        delay_s = dice.choice((0.0001, 0.0001, 0.001, 0.004, 0.03, 0.3))
        self.trap = Trap(moment, shard, faults.world.now + PATIENCE_S, blows, delay_s)

    def _trap_for(self, shard: ShardId) -> Trap | None:
        trap, faults = self.trap, self.faults
        if trap is None or (trap.shard is not None and shard != trap.shard):
            return None
        if faults.is_healing or faults.world.now > trap.until:
            self.trap = None
        return self.trap

    def _look(self, shard: ShardId, message: Message) -> None:
        trap = self._trap_for(shard)
        is_like = None if trap is None else MOMENTS.get(trap.moment)
        if trap is not None and is_like is not None and is_like(message):
            self._go_off(trap, shard, node_of(message.source), node_of(message.target))

    def _look_at_command(self, coordinator: NodeId, shard: ShardId, command: bytes) -> None:
        trap = self._trap_for(shard)
        code = None if trap is None else TXN_MOMENTS.get(trap.moment)
        leader = self.faults.cluster.leader_of(shard)
        if trap is None or code is None or leader is None or leader.name == coordinator:
            return
        if _command(command)[1][0] == code:
            self._go_off(trap, shard, coordinator, leader.name)

    def _go_off(self, trap: Trap, shard: ShardId, source: NodeId, target: NodeId) -> None:
        self.trap = None
        self.faults.world.after(trap.delay_s, self._spring, trap, shard, source, target)

    def _spring(self, trap: Trap, shard: ShardId, source: NodeId, target: NodeId) -> None:
        faults = self.faults
        if faults.is_healing:
            return
        others = [name for name in faults.cluster.config.node_ids() if name not in (source, target)]
        whom = {"source": source, "target": target, "third": faults.dice.choice(others)}
        faults.world.note(f"trap: {trap.moment}, {trap.blows} from {source} to {target}")
        faults.cluster.states[f"trap: {trap.moment}"] += 1
        faults.hurry(shard)
        for blow, who in trap.blows:
            faults.count(f"step: {blow}")
            if blow == UNANSWERED:
                faults.cut({(target, source)}, faults.dice.uniform(*UNANSWERED_S))
            else:
                faults.blows[blow](whom[who])
