"""One replica on this node: a Raft core, a store machine, and the callers that wait for them.

The host drives it and owns all I/O. A replica turns waiting commands into entries, remembers which
caller waits for which entry, applies what is committed, and answers. It never looks at a clock itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvstore.errors import (
    Corrupt,
    DiskFull,
    KvError,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
)
from kvstore.node.calls import Answer, Call, ReadAnswer, Stage, live
from kvstore.node.held import HeldCalls
from kvstore.node.parked import ParkedReads
from kvstore.raft import Core, NotLeader, ProposalDropped, Role
from kvstore.raft.messages import NORMAL, Entry, Ready, SnapshotMeta
from kvstore.store import commands
from kvstore.store.machine import Machine
from kvstore.store.results import LOCKED, CommandResult
from kvstore.types import Incarnation, LogIndex, ReplicaId, ShardId, Term

LAG_ENTRIES_MAX = 64
LAG_BYTES_MAX = 8 << 10
"""Of an entry: larger ones save little when they are applied together."""

FOLLOWED_PACE = 940
"""Milliseconds of a shard's clock to a second of a follower: two crystals, each off by 3 % at most, differ by
less. A clock that ran ahead of the leader's would end things early once this replica leads."""

Reroute = Callable[[Call], None]
"""Hands a call that was surely not proposed back to the router."""


class ReplicaLimits(NamedTuple):
    """Bounds of one replica's queues and slices."""

    queue_ops_max: int = 10_000
    queue_bytes_max: int = 32 << 20
    entry_commands_max: int = 1000
    entry_bytes_max: int = 128 << 10
    apply_bytes_max: int = 128 << 10
    """Committed payload applied in one go before other shards and the network get their turn. Everything
    that one apply makes should fit into the processor's second cache: with 1 MiB a put costs 15 % more."""


class Replica:
    """State of one (shard, node, incarnation). All methods are synchronous and run on the node's loop."""

    def __init__(
        self,
        shard: ShardId,
        me: ReplicaId,
        incarnation: Incarnation,
        core: Core,
        machine: Machine,
        directory: str,
        limits: ReplicaLimits,
        reroute: Reroute,
    ) -> None:
        self.shard = shard
        self.me = me
        self.incarnation = incarnation
        self.core = core
        self.machine = machine
        self.directory = directory
        self.limits = limits
        self.reroute = reroute

        self.queue: deque[Call] = deque()
        self.queue_bytes = 0
        self.in_flight: dict[LogIndex, tuple[Term, list[Call]]] = {}
        """Callers of entries proposed here, by index: the entry that gets applied there may be another's."""
        self.committed: deque[Entry] = deque()
        self.committed_until = machine.applied
        self.committed_at = -1.0
        """When a commit last came that nobody waited for."""

        self.reads_new: list[Call] = []
        self.reads_confirming: dict[int, list[Call]] = {}
        """By context of `Core.read` (here as leader) or id of the index request (to the leader)."""
        self.reads_indexed: list[tuple[LogIndex, list[Call]]] = []
        self.parked = ParkedReads()
        """Waiting reads that were confirmed and found nothing new yet."""
        self.held = HeldCalls()
        """Calls that wait for transactions to be decided."""
        self.barriers: dict[int, Callable[[LogIndex | None], None]] = {}
        """Contexts of `Core.read` made for other nodes' index requests."""
        self.next_context = 1

        self.damage: str | None = None
        """Set when a read met a damaged block: the host takes the replica out of service."""
        self.unsynced_readies = 0
        """Readies in the log thread's hands: promises wait behind them."""
        self.is_dirty = False
        self.is_flushing = False
        self.flushed_at = 0.0
        self.unflushed_bytes = 0
        self.led_term: Term | None = None
        """The term this replica is known to lead, None as follower; the host watches it change."""
        self._make_clock()
        self._make_hearing()
        self.round_sent_at: dict[int, float] = {}
        """When the rounds of this term left that no quorum has answered yet."""
        self.round_dated = 0
        """The newest round of this term that was entered there."""
        self.lease_until = 0.0

    @property
    def is_leader(self) -> bool:
        return self.core.role is Role.LEADER

    @property
    def has_work(self) -> bool:
        """Whether a pass has something to do here, whatever the core has."""
        return bool(self.queue or self.reads_new or self.reads_indexed or self.committed)

    @property
    def has_applied_all(self) -> bool:
        """Leader: whatever anybody may have been shown is applied here. A commit can come from followers
        alone, and they may have answered reads with what this replica has not applied yet."""
        return self.core.has_committed_in_term and self.machine.applied >= self.core.commit

    def _make_hearing(self) -> None:
        self.heard_at = -1.0
        """When a leader's word last covered everything applied here; bounds a stale read's age."""
        self._told_commit = LogIndex(0)
        self._told_at = -1.0
        """A leader's last word that is not covered yet: `heard_at`, once that commit is applied."""

    def hear(self, commit: LogIndex, now: float) -> None:
        """A leader's word that nothing above `commit` was committed when it was sent."""
        if commit <= self.machine.applied:
            self.heard_at = now
        else:
            self._told_commit, self._told_at = commit, now

    # ---- the shard clock -------------------------------------------------------------------------

    def _make_clock(self) -> None:
        self.clock_base_ms = 0.0
        self.clock_base_at = 0.0
        """The shard clock as last logged or heard, and when: it runs on from there (`clocks`)."""
        self.clock_term = Term(0)
        """The term of the leader whose clock it is."""
        self.stamped_term = Term(0)
        """Of the newest entry applied here that carries a clock."""

    def start_clock(self, now: float) -> None:
        self.clock_base_ms, self.clock_base_at = self.machine.clock_ms, now
        self.clock_term = self.stamped_term = self.core.log.last_term

    def restore_clock(self, clock_ms: int, now: float) -> None:
        """An earlier life of this node has logged that the clock is at least this."""
        if clock_ms > self.stamp_ms(now):
            self.clock_base_ms, self.clock_base_at = clock_ms, now

    def hear_clock(self, clock_ms: int, term: Term, now: float) -> None:
        """What the leader of `term` has told. It counts also where it is lower: crystals differ."""
        if self.led_term is None and term >= max(self.clock_term, self.core.term):
            self._set_clock(max(clock_ms, self.machine.clock_ms), term, now)

    def _set_clock(self, clock_ms: int, term: Term, now: float) -> None:
        self.clock_base_ms, self.clock_base_at, self.clock_term = clock_ms, now, term
        self.core.clock_ms, self.core.clock_term = clock_ms, term

    def run_clock(self, now: float) -> None:
        """Take what entries and votes have told, and let votes tell what is known here. A leader goes by
        its own clock from the moment it leads: what it hears then must not move what it has set."""
        core, machine = self.core, self.machine
        if self.led_term is None or self.clock_term != self.led_term:
            if (core.clock_term, core.clock_ms) > (self.clock_term, self.stamp_ms(now)):
                self._set_clock(core.clock_ms, core.clock_term, now)
            if self.stamped_term > self.clock_term:
                self._set_clock(machine.clock_ms, self.stamped_term, now)
        if self.led_term is not None and self.clock_term != self.led_term:
            for entry in core.log.between(machine.applied, core.last_index):
                if entry.kind == NORMAL and self.clock_term < entry.term < self.led_term:
                    self._set_clock(commands.clock_of(entry.payload), entry.term, now)
            self._rest_clock(now)
            self.clock_term = self.led_term
        self._rest_clock(now)
        core.clock_ms, core.clock_term = self.stamp_ms(now), self.clock_term

    def _rest_clock(self, now: float) -> None:
        """Run on from here: what has passed is counted at the pace of the role it passed in."""
        self.clock_base_ms, self.clock_base_at = max(self._clock(now), self.machine.clock_ms), now

    def _clock(self, now: float) -> float:
        pace = 1000 if self.clock_term == self.led_term else FOLLOWED_PACE
        return self.clock_base_ms + (now - self.clock_base_at) * pace

    def stamp_ms(self, now: float) -> int:
        """The shard clock: what is known of it, and what has passed since. The leader's stamps entries;
        another's is never ahead of it."""
        return int(self._clock(now))

    @property
    def known_clock_ms(self) -> int:
        """The shard clock as of the last tick or the last entry applied."""
        return max(self.machine.clock_ms, self.core.clock_ms)

    # ---- writes ---------------------------------------------------------------------------------

    def enqueue(self, call: Call) -> None:
        """Take a write while leading; answers `Overloaded` at once when the queue is full."""
        if not self.held.must_stand_back(call):
            self._queue(call)

    def _queue(self, call: Call) -> None:
        limits = self.limits
        size = len(call.payload)
        if len(self.queue) >= limits.queue_ops_max or self.queue_bytes + size > limits.queue_bytes_max:
            call.fail(Overloaded(f"shard {self.shard} has {len(self.queue)} writes waiting", retry_after=1))
            return
        self.queue.append(call)
        self.queue_bytes += size

    def propose_queue(self, now: float) -> None:
        """Turn everything that waits into as few entries as the caps allow."""
        if not self.queue:
            return
        clock_ms = self.stamp_ms(now)
        while self.queue:
            calls = self._next_batch()
            try:
                term, index = self.core.propose(
                    (commands.payload(clock_ms, [call.payload for call in calls]),)
                )
            except ProposalDropped as dropped:
                for call in calls:
                    call.fail(Overloaded(str(dropped), retry_after=1))
            except NotLeader:
                # Leadership is being handed over: they wait for the outcome, here or at the next leader.
                self._put_back(calls)
                return
            else:
                self._forget_in_flight(index)
                self.in_flight[index] = (term, calls)

    def _forget_in_flight(self, index: LogIndex) -> None:
        """This leader reuses the index of an entry that its log has lost since."""
        _term, calls = self.in_flight.pop(index, (0, []))
        for call in calls:
            if not call.identified:
                call.fail(OutcomeUnknown("another entry took this one's place here; it may live elsewhere"))

    def _put_back(self, calls: list[Call]) -> None:
        for call in reversed(calls):
            call.stage = Stage.WAITING
            self.queue.appendleft(call)
            self.queue_bytes += len(call.payload)

    def _next_batch(self) -> list[Call]:
        limits, queue = self.limits, self.queue
        batch = [queue.popleft()]
        size = len(batch[0].payload)
        while queue and len(batch) < limits.entry_commands_max:
            size += len(queue[0].payload)
            if size > limits.entry_bytes_max:
                break
            batch.append(queue.popleft())
        for call in batch:
            self.queue_bytes -= len(call.payload)
            call.stage = Stage.PROPOSED
        return batch

    # ---- what the core made ready ----------------------------------------------------------------

    def take_committed(self, ready: Ready) -> None:
        if ready.committed:
            self.committed.extend(ready.committed)
            self.committed_until = ready.committed[-1].index
        for context, index in ready.reads:
            barrier = self.barriers.pop(context, None)
            if barrier is not None:
                barrier(index)
            calls = self.reads_confirming.pop(context, None)
            if calls:
                self.reads_indexed.append((index, calls))
        for context in ready.reads_lost:
            barrier = self.barriers.pop(context, None)
            if barrier is not None:
                barrier(None)
            for call in self.reads_confirming.pop(context, ()):
                self.reroute(call)

    def _send_elsewhere(self, calls: list[Call]) -> None:
        """Ask whoever leads now to do what was proposed here. Only an identity makes that safe: the entry
        may still commit, even after this log has lost it (Raft 5.4.2, figure 8). Others go on waiting; a
        forwarded call is repeated by the node it came from."""
        for call in calls:
            if call.identified and not call.is_forwarded and call.done is not None:
                call.is_doubtful = True
                self.reroute(call)

    def lost_leadership(self) -> None:
        """Send everything not yet proposed to whoever leads now, and what is identified once more."""
        queue, self.queue, self.queue_bytes = self.queue, deque(), 0
        reads, self.reads_new = self.reads_new, []
        # What waits here would from now on wait for what others tell this replica.
        for call in (*queue, *reads, *self.parked.take_all(), *self.held.take_writes()):
            self.reroute(call)
        for _term, calls in list(self.in_flight.values()):
            self._send_elsewhere(calls)

    # ---- applying --------------------------------------------------------------------------------

    @property
    def may_lag(self) -> bool:
        """Whether nobody waits for what is committed here, and it is little: a follower's."""
        return bool(
            self.led_term is None
            and 0 < len(self.committed) <= LAG_ENTRIES_MAX
            and len(self.committed[-1].payload) <= LAG_BYTES_MAX
            and not self.in_flight
            and not self.reads_indexed
            and not self.parked
            and not self.held
            and not self.core.log.unapplied_configurations
        )

    def apply_slice(self) -> bool:
        """Apply the next committed entries and answer their callers. True: more is waiting."""
        if not self.committed:
            return False
        entries: list[Entry] = []
        size = 0
        while self.committed and size < self.limits.apply_bytes_max:
            entry = self.committed.popleft()
            size += len(entry.payload)
            entries.append(entry)
        self.machine.keeps_written = bool(self.parked)
        try:
            results = self.machine.apply(entries, is_asked=bool(self.in_flight))
        except DiskFull:
            # Nothing is in: the same entries are applied again once there is space.
            self.committed.extendleft(reversed(entries))
            raise
        for entry in reversed(entries):
            if entry.kind == NORMAL:
                self.stamped_term = entry.term
                break
        self.unflushed_bytes += size
        self.core.applied(entries[-1].index)
        if self._told_commit <= entries[-1].index:
            self.heard_at = max(self.heard_at, self._told_at)
        self.core.clock_ms = max(self.core.clock_ms, self.machine.clock_ms)
        if self.in_flight:
            self._answer_writers(entries, results)
        if self.machine.written:
            for call in self.parked.written(self.machine.written):
                self.serve(call)
        if self.held.is_due(self.machine.intents):
            self.wake_held()
        return bool(self.committed)

    def _answer_writers(self, entries: list[Entry], results: list[list[CommandResult]]) -> None:
        clock_ms, shard, met = self.machine.clock_ms, self.shard, self.machine.intents.met
        has_locked, self.held.met_seen = met != self.held.met_seen, met
        for entry, entry_results in zip(entries, results, strict=True):
            waiting = self.in_flight.pop(entry.index, None)
            if waiting is None:
                continue
            term, calls = waiting
            if term != entry.term or entry.kind != NORMAL:
                for call in calls:
                    call.fail(Unavailable("another leader's entry replaced the write; nothing was applied"))
                continue
            for call, result in zip(calls, entry_results, strict=True):
                if has_locked and result.results and result.results[0][0] == LOCKED:
                    self._hold_write(call)
                else:
                    call.finish(Answer(shard, result, clock_ms))

    def _hold_write(self, call: Call) -> None:
        """Nothing of the command has happened: it may be proposed again, here or elsewhere."""
        call.stage = Stage.WAITING
        if self.led_term is None:
            self.reroute(call)
        else:
            self.held.hold_write(call)

    def wake_held(self) -> None:
        """Let those go on that no transaction holds up any more."""
        writes, reads = self.held.take_free(self.machine.intents)
        for call in writes:
            self.held.has_freed = True
            self._queue(call)
        for call in reads:
            self._answer_read(call, None)

    # ---- reads -----------------------------------------------------------------------------------

    def answer_indexed_reads(self) -> None:
        """Serve reads whose confirmed index is applied here."""
        applied = self.machine.applied
        waiting = []
        for index, calls in self.reads_indexed:
            if index <= applied:
                for call in calls:
                    self.serve(call)
            else:
                waiting.append((index, calls))
        self.reads_indexed = waiting

    def serve(self, call: Call, staleness_s: float | None = None) -> None:
        """Run a query on what is applied now, or once the transactions are decided that are about to change
        what it reads. A stale read shows what was before."""
        if call.done is None:
            return
        intents = self.machine.intents
        if intents.exclusive_count and call.consistency not in (None, "stale"):
            writers = intents.writers_met(call.payload)
            if writers:
                self.held.hold_read(call, writers)
                return
        self._answer_read(call, staleness_s)

    def _answer_read(self, call: Call, staleness_s: float | None) -> None:
        if call.done is None:
            return
        machine = self.machine
        try:
            value = machine.query(call.payload)
        except KvError as error:
            call.fail(error)
        except Corrupt as error:
            # This copy is damaged, the others are not: the caller may ask again.
            call.fail(Unavailable(f"a damaged block on {self.me}: ask again", retry_after=1))
            self.damage = str(error)
        else:
            if call.wait_until is not None and self.parked.park(call, value):
                return
            call.finish(ReadAnswer(self.shard, value, self.known_clock_ms, staleness_s))

    def confirm_reads(self) -> None:
        """Leader: one confirmation round for all reads that wait, and one at a time."""
        if self.reads_new and not self.reads_confirming:
            context = self.take_context()
            self.reads_confirming[context], self.reads_new = self.reads_new, []
            self.core.read(context)

    def barrier(self, done: Callable[[LogIndex | None], None]) -> None:
        """Leader: a confirmed index for another node's reads; None when leadership is lost."""
        context = self.take_context()
        self.barriers[context] = done
        self.core.read(context)

    def take_context(self) -> int:
        context = self.next_context
        self.next_context += 1
        return context

    # ---- housekeeping ----------------------------------------------------------------------------

    def expire_calls(self, now: float) -> None:
        """Answer every caller whose deadline has passed; runs each tick, over live callers only."""
        if self.queue:
            kept = live(list(self.queue), now)
            if len(kept) != len(self.queue):
                self.queue = deque(kept)
                self.queue_bytes = sum(len(call.payload) for call in kept)
        for _term, calls in self.in_flight.values():
            for call in calls:
                # The entry stays: its place in the list pairs it with its result.
                if call.done is not None and call.deadline <= now:
                    call.expire()
        if self.reads_new:
            self.reads_new = live(self.reads_new, now)
        for context in list(self.reads_confirming):
            self.reads_confirming[context] = live(self.reads_confirming[context], now)
        if self.reads_indexed:
            kept_reads = [(index, live(calls, now)) for index, calls in self.reads_indexed]
            self.reads_indexed = [(index, calls) for index, calls in kept_reads if calls]
        for call in self.parked.over(now):
            call.wait_until = None
            self.serve(call)
        if self.held:
            self.held.expire(now)
            self.wake_held()

    def waiting_calls(self) -> Iterator[Call]:
        yield from self.queue
        for _term, calls in self.in_flight.values():
            yield from calls
        yield from self.reads_new
        for calls in self.reads_confirming.values():
            yield from calls
        for _index, calls in self.reads_indexed:
            yield from calls
        yield from self.parked
        yield from self.held

    def replace_machine(self, machine: Machine, directory: str, meta: SnapshotMeta) -> tuple[Machine, str]:
        """Swap in an installed snapshot; returns the old machine and directory for disposal."""
        old = self.machine, self.directory
        self.machine, self.directory = machine, directory
        self.stamped_term = max(self.stamped_term, meta.term)
        self.committed.clear()
        self.committed_until = meta.index
        for index in [index for index in self.in_flight if index <= meta.index]:
            _term, calls = self.in_flight.pop(index)
            self._send_elsewhere(calls)
            for call in calls:
                if not call.identified:
                    call.fail(OutcomeUnknown("a snapshot replaced the log that held this write"))
        for call in (*self.parked.take_all(), *self.held.take_reads()):
            self.serve(call)
        return old
