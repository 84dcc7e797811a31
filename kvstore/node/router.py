"""Brings every operation to a replica that may answer it.

Writes go to the shard's leader, over the peer link if that is another node (hop limit 1). Linearizable
reads are served by any replica once the leader has named a confirmed index (ReadIndex); a node without
a replica of the shard forwards them. A call whose shard has no leader waits here until one is known or
its deadline passes. Only what surely was not proposed, or carries an identity, is ever sent twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgpack
import msgspec

from kvstore.errors import BY_CODE, DiskFull, KvError, OutcomeUnknown, Overloaded, Unavailable, WrongRoute
from kvstore.node.calls import Answer, Call, Done, ReadAnswer, Stage
from kvstore.node.flow import Promise
from kvstore.node.host import Host
from kvstore.node.replica import Replica
from kvstore.node.runtime import Lane, Transport
from kvstore.placement import ShardMap
from kvstore.store import commands
from kvstore.store.results import CommandResult
from kvstore.store.waits import WAITS
from kvstore.types import LogIndex, NodeId, ShardId, node_of
from kvstore.wire import peer

REMEMBERED_FORWARDS = 8192
"""Forwarded writes whose ids are kept, so that a repeated frame is not a second write."""

WAIT_SLICE_S = 5.0
"""A waiting read waits at most so long at another node before it is sent there again."""
WAIT_SLACK_S = 1.0

DOUBT_S = 1.0
"""Silence after which a node is no longer taken for the leader that it was heard to be."""

INDEX_RETRY_S = 0.25
"""An index request unanswered for this long is asked again: reads repeat safely."""

decode_result = msgspec.msgpack.Decoder(tuple[CommandResult, int]).decode
encode_result = msgspec.msgpack.Encoder().encode


class Forward(NamedTuple):
    call: Call
    node: NodeId
    due: float
    """No answer by then means that it will not come."""
    doubt_at: float
    """No answer by then: others had better be asked who leads."""


class IndexAsk(NamedTuple):
    replica: Replica
    context: int
    node: NodeId
    asked_at: float


class Router:
    """See the module."""

    def __init__(
        self, host: Host, transport: Transport, shard_map: ShardMap, waits_max: int = 10_000
    ) -> None:
        self._host = host
        self._transport = transport
        self._now = host.runtime.now
        self.shard_map = shard_map
        self.shard_of: Callable[[bytes], ShardId] = shard_map.shard_of
        self.homes: Mapping[ShardId, Sequence[NodeId]] = {}
        """The nodes of each shard, for shards without a replica here."""
        self._hints: dict[ShardId, NodeId] = {}
        self._parked: dict[ShardId, list[Call]] = {}
        self._forwards: dict[int, Forward] = {}
        self._index_asks: dict[int, IndexAsk] = {}
        self._seen: OrderedDict[tuple[NodeId, int], None] = OrderedDict()
        """In the order of arrival. The first key of a plain dict is slow to find where many were deleted."""
        self._waits: dict[Call, None] = {}
        """Waiting reads that came in here, from callers and other nodes."""
        self.waits_max = waits_max
        self._next_id = host.runtime.dice.getrandbits(48)
        self.is_read_only = False
        """The disk is nearly full: writes that grow are refused here."""
        host.on_message[peer.ForwardWrite] = self._on_forward_write
        host.on_message[peer.ForwardRead] = self._on_forward_read
        host.on_message[peer.ForwardWait] = self._on_forward_wait
        host.on_message[peer.ForwardReply] = self._on_forward_reply
        host.on_message[peer.IndexRequest] = self._on_index_request
        host.on_message[peer.IndexReply] = self._on_index_reply

    # ---- the API's side --------------------------------------------------------------------------

    def shards(self) -> Sequence[ShardId]:
        """Data shards in token order."""
        return self.shard_map.shards

    def write_then(
        self, shard: ShardId, command: bytes, identified: bool, deadline: float, done: Done
    ) -> None:
        """Commit a command; `done(Answer, None)` or `done(None, KvError)`, exactly once."""
        self.dispatch(Call(shard, command, deadline, done, identified=identified))

    def read_then(
        self,
        shard: ShardId,
        query: Sequence[object],
        consistency: str,
        deadline: float,
        done: Done,
        max_staleness_s: float | None = None,
    ) -> None:
        """Run a query at `consistency` (linearizable, lease, stale); `done(ReadAnswer, None)` or an error."""
        call = Call(shard, query, deadline, done, consistency=consistency)
        if consistency == "stale" and self._serve_stale(call, max_staleness_s):
            return
        self.dispatch(call)

    def write(self, shard: ShardId, command: bytes, identified: bool, deadline: float) -> Promise[Answer]:
        promise: Promise[Answer] = Promise()
        self.write_then(shard, command, identified, deadline, _settle(promise))
        return promise

    def read(
        self,
        shard: ShardId,
        query: Sequence[object],
        consistency: str,
        deadline: float,
        max_staleness_s: float | None = None,
    ) -> Promise[ReadAnswer]:
        promise: Promise[ReadAnswer] = Promise()
        self.read_then(shard, query, consistency, deadline, _settle(promise), max_staleness_s)
        return promise

    def wait_then(
        self, shard: ShardId, query: Sequence[object], wait_until: float, deadline: float, done: Done
    ) -> Call | None:
        """A linearizable read that is answered as soon as its answer is what the query waits for
        (`store.waits`), else at `wait_until` with what is there then. `cancel` takes the call back; None: too
        many wait already, which was answered at once."""
        return self._wait(shard, query, wait_until, deadline, done, is_forwarded=False)

    def _wait(
        self,
        shard: ShardId,
        query: Sequence[object],
        wait_until: float,
        deadline: float,
        done: Done,
        *,
        is_forwarded: bool,
    ) -> Call | None:
        # Feeds are few, at most one for each shard and node, and many depend on each.
        if len(self._waits) >= self.waits_max and query[0] != "changes":
            detail = f"{len(self._waits)} reads wait on this node already"
            done(None, Overloaded(detail, limit="waiting_reads_max", retry_after=1))
            return None

        def answered(answer: object, error: BaseException | None) -> None:
            self._waits.pop(call, None)
            done(answer, error)

        call = Call(
            shard,
            query,
            deadline,
            answered,
            consistency="linearizable",
            is_forwarded=is_forwarded,
            wait_until=wait_until,
        )
        self._waits[call] = None
        self.dispatch(call)
        return call

    def wait(
        self, shard: ShardId, query: Sequence[object], wait_until: float, deadline: float
    ) -> Promise[ReadAnswer]:
        promise: Promise[ReadAnswer] = Promise()
        self.wait_then(shard, query, wait_until, deadline, _settle(promise))
        return promise

    def cancel(self, call: Call) -> None:
        """Nobody waits for this read any more."""
        call.done = None
        self._waits.pop(call, None)
        replica = self._host.replicas.get(call.shard)
        if replica is not None:
            replica.parked.drop(call)

    @property
    def wait_count(self) -> int:
        return len(self._waits)

    def end_waits(self) -> None:
        """This node stops: whoever waits must ask another."""
        self.waits_max = 0
        for call in list(self._waits):
            call.fail(Unavailable("this node stops: ask another", retry_after=0))

    def local(self, shard: ShardId) -> Replica | None:
        """The replica on this node, if its state is worth a read: who is still being copied to has none."""
        replica = self._host.replicas.get(shard)
        return replica if replica is not None and replica.core.is_voter else None

    def leader_node(self, shard: ShardId) -> NodeId | None:
        """The node that leads the shard as far as this one knows."""
        replica = self._host.replicas.get(shard)
        if replica is not None:
            return None if replica.core.leader is None else node_of(replica.core.leader)
        return self._hints.get(shard)

    def clock_of(self, shard: ShardId) -> int | None:
        """The shard's clock (ms) as far as this node can tell, for building deadlines in it."""
        return self._host.clocks.of(shard)

    def set_read_only(self, is_read_only: bool) -> None:
        self.is_read_only = is_read_only

    # ---- choosing where --------------------------------------------------------------------------

    def dispatch(self, call: Call) -> None:
        """Send a call wherever it can make progress now."""
        replica = self._host.replicas.get(call.shard)
        if replica is not None and replica.led_term is not None:
            self._at_leader(replica, call)
        elif call.is_forwarded:
            call.fail(WrongRoute("this node does not lead the shard", leader=self.leader_node(call.shard)))
        elif not call.is_write and replica is not None and replica.core.is_voter:
            replica.reads_new.append(call)
            self._ask_index(replica)
        else:
            self._forward(call)

    def _at_leader(self, replica: Replica, call: Call) -> None:
        if call.is_write:
            if self.is_read_only and commands.grows(call.payload):
                call.fail(DiskFull("this node's disk is nearly full: only deletes are accepted"))
                return
            replica.enqueue(call)
        elif call.consistency == "lease" and self._serve_lease(replica, call):
            return
        else:
            replica.reads_new.append(call)
        self._host.mark_dirty(replica)

    def _serve_lease(self, replica: Replica, call: Call) -> bool:
        """Read under the leader lease; checked again after the read, for the process may have slept."""
        host = self._host
        if not replica.has_applied_all or not host.holds_lease(replica):
            return False
        if replica.machine.intents.writers_met(call.payload):
            return False
        done, call.done = call.done, None
        assert done is not None, "a lease read that was answered already"
        outcome: list[tuple[ReadAnswer | None, BaseException | None]] = []
        probe = Call(
            call.shard, call.payload, call.deadline, lambda answer, error: outcome.append((answer, error))
        )
        replica.serve(probe)
        if not host.holds_lease(replica):
            call.done = done
            return False
        done(*outcome[0])
        return True

    def _serve_stale(self, call: Call, max_staleness_s: float | None) -> bool:
        replica = self.local(call.shard)
        if replica is None:
            return False
        if replica.has_applied_all and self._host.holds_lease(replica):
            age = 0.0
        elif replica.heard_at < 0:
            return False
        else:
            age = self._now() - replica.heard_at
        if max_staleness_s is not None and age > max_staleness_s:
            return False
        replica.serve(call, staleness_s=age)
        return True

    def _forward(self, call: Call) -> None:
        node = self.leader_node(call.shard)
        if call.shard not in self._host.replicas and (node is None or not self._transport.is_connected(node)):
            # What was heard of a leader is as old as the link to it.
            node = self._any_home(call.shard)
        if node is None or node == self._host.me or not self._transport.is_connected(node):
            self._parked.setdefault(call.shard, []).append(call)
            return
        number = self._take_id()
        timeout_ms = max(1, int((call.deadline - self._now()) * 1000))
        due, doubt_at = call.deadline, self._now() + DOUBT_S
        message: peer.PeerMessage
        if call.wait_until is not None:
            # A forward that got lost is noticed by the end of its slice.
            wait_s = min(call.wait_until - self._now(), WAIT_SLICE_S)
            wait_ms = max(0, int(wait_s * 1000))
            due = doubt_at = min(due, self._now() + wait_s + WAIT_SLACK_S)
            query = msgpack.packb(call.payload)
            message = peer.ForwardWait(number, call.shard, query, wait_ms, timeout_ms)
        elif call.is_write:
            call.stage = Stage.PROPOSED
            message = peer.ForwardWrite(number, call.shard, call.payload, call.identified, timeout_ms)
        else:
            query = msgpack.packb(call.payload)
            message = peer.ForwardRead(number, call.shard, query, call.consistency or "", timeout_ms)
        self._forwards[number] = Forward(call, node, due, doubt_at)
        self._host.post(node, Lane.APPEND, message)

    def _any_home(self, shard: ShardId) -> NodeId | None:
        connected = [node for node in self.homes.get(shard, ()) if self._transport.is_connected(node)]
        return self._host.runtime.dice.choice(connected) if connected else None

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # ---- reads at a follower ---------------------------------------------------------------------

    def _ask_index(self, replica: Replica) -> None:
        """Ask the leader for a confirmed index, once for all reads that wait here."""
        if not replica.reads_new or replica.reads_confirming:
            return
        leader = replica.core.leader
        if leader is None or not self._transport.is_connected(node_of(leader)):
            return
        context = replica.take_context()
        replica.reads_confirming[context], replica.reads_new = replica.reads_new, []
        number, node = self._take_id(), node_of(leader)
        self._index_asks[number] = IndexAsk(replica, context, node, self._now())
        self._host.post(node, Lane.CONTROL, peer.IndexRequest(number, replica.shard))

    def _on_index_request(self, node: NodeId, request: peer.IndexRequest) -> None:
        replica = self._host.replicas.get(request.shard)

        def reply(index: LogIndex | None) -> None:
            error = None if index is not None else WrongRoute.code
            self._host.post(node, Lane.CONTROL, peer.IndexReply(request.id, index or LogIndex(0), error))
            self._host.tell_commits()

        if replica is None or replica.led_term is None:
            reply(None)
        else:
            replica.barrier(reply)
            self._host.mark_dirty(replica)

    def _on_index_reply(self, node: NodeId, reply: peer.IndexReply) -> None:
        ask = self._index_asks.pop(reply.id, None)
        if ask is None:
            return
        replica = ask.replica
        calls = replica.reads_confirming.pop(ask.context, [])
        if reply.error is None:
            replica.reads_indexed.append((reply.index, calls))
            self._host.mark_dirty(replica)
            self._ask_index(replica)
        else:
            # Whoever it was no longer leads: the next sweep asks whoever does.
            replica.reads_new = calls + replica.reads_new

    # ---- forwarded operations --------------------------------------------------------------------

    def _on_forward_write(self, node: NodeId, message: peer.ForwardWrite) -> None:
        # Also where repeating is harmless: "not applied", said of one copy, must hold for the other.
        if not self._is_first(node, message.id):
            return
        deadline = self._now() + message.timeout_ms / 1000
        done = self._replier(node, message.id, lambda answer: (answer.result, answer.clock_ms))
        self.dispatch(
            Call(
                message.shard,
                message.command,
                deadline,
                done,
                identified=message.identified,
                is_forwarded=True,
            )
        )

    def _is_first(self, node: NodeId, number: int) -> bool:
        if (node, number) in self._seen:
            return False
        self._seen[node, number] = None
        if len(self._seen) > REMEMBERED_FORWARDS:
            self._seen.popitem(last=False)
        return True

    def _on_forward_read(self, node: NodeId, message: peer.ForwardRead) -> None:
        deadline = self._now() + message.timeout_ms / 1000
        done = self._replier(node, message.id, _read_content)
        query = msgpack.unpackb(message.query)
        call = Call(message.shard, query, deadline, done, consistency=message.consistency, is_forwarded=True)
        if message.consistency == "stale" and self._serve_stale(call, None):
            return
        self.dispatch(call)

    def _on_forward_wait(self, node: NodeId, message: peer.ForwardWait) -> None:
        now = self._now()
        done = self._replier(node, message.id, _read_content)
        query = msgpack.unpackb(message.query)
        wait_until, deadline = now + message.wait_ms / 1000, now + message.timeout_ms / 1000
        self._wait(message.shard, query, wait_until, deadline, done, is_forwarded=True)

    def _replier(self, node: NodeId, number: int, pack: Callable[..., object]) -> Done:
        def done(answer: object, error: BaseException | None) -> None:
            if error is None:
                reply = peer.ForwardReply(number, None, {}, encode_result(pack(answer)))
            elif isinstance(error, KvError):
                fields = {"detail": error.detail, **error.fields}
                reply = peer.ForwardReply(number, error.code, fields, b"")
            else:
                raise error
            self._host.post(node, Lane.APPEND, reply)

        return done

    def _on_forward_reply(self, node: NodeId, reply: peer.ForwardReply) -> None:
        forward = self._forwards.pop(reply.id, None)
        if forward is None:
            return
        call = forward.call
        if reply.error is None:
            if call.consistency != "stale":
                self._learn_leader(call.shard, forward.node)
            self._take_answer(call, reply.payload)
        elif reply.error == WrongRoute.code:
            call.stage = Stage.WAITING
            self._learn_leader(call.shard, reply.fields.get("leader"))
            self._parked.setdefault(call.shard, []).append(call)
        else:
            fields = dict(reply.fields)
            detail = str(fields.pop("detail", ""))
            call.fail(BY_CODE.get(reply.error, OutcomeUnknown)(detail, **fields))

    def _take_answer(self, call: Call, payload: bytes) -> None:
        """What another node has answered to a forwarded operation."""
        if call.is_write:
            result, clock_ms = decode_result(payload)
            self._host.clocks.hear(call.shard, clock_ms)
            call.finish(Answer(call.shard, result, clock_ms))
            return
        value, clock_ms, staleness_s = msgpack.unpackb(payload, strict_map_key=False)
        self._host.clocks.hear(call.shard, clock_ms)
        if call.wait_until is not None and self._now() < call.wait_until - WAIT_SLACK_S:
            query = list(call.payload)
            if call.done is not None and not WAITS[query[0]].is_met(query, value):
                self.dispatch(call)
                return
        call.finish(ReadAnswer(call.shard, value, clock_ms, staleness_s))

    def _learn_leader(self, shard: ShardId, leader: object) -> None:
        if isinstance(leader, str):
            self._hints[shard] = NodeId(leader)
        else:
            self._hints.pop(shard, None)

    # ---- sweeping --------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Each tick: expire what is late, and move on what can move again."""
        now = self._now()
        parked, self._parked = self._parked, {}
        for calls in parked.values():
            for call in calls:
                self._expire_or(call, now, self.dispatch)
        self._sweep_forwards(now)
        self._sweep_index_asks(now)
        for replica in self._host.replicas.values():
            if replica.reads_new and replica.led_term is None:
                self._ask_index(replica)

    @staticmethod
    def _expire_or(call: Call, now: float, otherwise: Callable[[Call], None]) -> None:
        if call.deadline <= now:
            call.expire()
        elif call.done is not None:
            otherwise(call)

    def _sweep_forwards(self, now: float) -> None:
        for number, (call, node, due, doubt_at) in list(self._forwards.items()):
            if doubt_at <= now and self._hints.get(call.shard) == node:
                # It may have stopped without anybody's link going down.
                del self._hints[call.shard]
            if call.deadline <= now or call.done is None:
                del self._forwards[number]
                call.expire()
            elif (due <= now or self._is_lost(call, node)) and (call.identified or not call.is_write):
                del self._forwards[number]
                call.is_doubtful = call.is_doubtful or call.is_write
                self.dispatch(call)

    def _is_lost(self, call: Call, node: NodeId) -> bool:
        """The answer will hardly come: the link is down, or somebody else leads now."""
        if not self._transport.is_connected(node):
            return True
        leader = self.leader_node(call.shard)
        return leader is not None and leader != node

    def _sweep_index_asks(self, now: float) -> None:
        for number, ask in list(self._index_asks.items()):
            replica = ask.replica
            leader = replica.core.leader
            is_stuck = now - ask.asked_at > INDEX_RETRY_S or leader is None or node_of(leader) != ask.node
            if is_stuck or replica.led_term is not None:
                del self._index_asks[number]
                for call in replica.reads_confirming.pop(ask.context, []):
                    self._expire_or(call, now, self.dispatch)

    def wake(self, shard: ShardId) -> None:
        """A leader became known: whatever waits for it may go."""
        for call in self._parked.pop(shard, []):
            self._expire_or(call, self._now(), self.dispatch)


def _read_content(answer: ReadAnswer) -> object:
    return answer.value, answer.clock_ms, answer.staleness_s


def _settle(promise: Promise) -> Done:  # type: ignore[type-arg]
    def done(answer: object, error: BaseException | None) -> None:
        if error is None:
            promise.resolve(answer)
        else:
            promise.fail(error)

    return done
