"""Planted bugs: what the simulator must find, or it would not find the real ones either.

Each mutation takes one guard away or gets one step wrong, by patching a function of the shipped code for
as long as a `with` lasts. `pitfall` is the number of the entry of the list of pitfalls that it falls into.

Not planted, because the feature does not exist yet: 3 and 4 (leases of keys), 24 (watch). Not planted,
because it costs availability and not safety, which schedules of their own prove: 18, 21 (pre-vote), 22.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from msgspec.structs import replace

from kvstore.errors import DiskFull
from kvstore.node.host import Host
from kvstore.node.keeper import Keeper
from kvstore.node.log_writer import LogWriter
from kvstore.node.replica import Replica
from kvstore.node.router import Router
from kvstore.node.tablets import Tablets
from kvstore.raft import candidate, follower, leader, output, quorum, replication
from kvstore.raft.core import Core
from kvstore.raft.log import RaftLog
from kvstore.raft.messages import HardState
from kvstore.raft.rounds import confirm_rounds
from kvstore.store import keys, mvcc
from kvstore.store.machine import Machine
from kvstore.store.memory import MemoryEngine
from kvstore.store.results import CommandResult
from kvstore.store.sessions import Session, Sessions
from kvstore.types import LogIndex
from kvstore.wal import HardStateRecord, Wal, recovery
from kvstore.wal.segment import Segment


class Mutation(NamedTuple):
    name: str
    pitfall: int
    claim: str
    plant: Callable[[], Any]
    """Makes the context manager in which the bug is there."""


MUTATIONS: dict[str, Mutation] = {}


def _planted(pitfall: int, claim: str) -> Callable[[Callable[[], Iterator[None]]], None]:
    def register(plant: Callable[[], Iterator[None]]) -> None:
        name = plant.__name__
        MUTATIONS[name] = Mutation(name, pitfall, claim, contextmanager(plant))

    return register


# --- 1: applied index and data


@_planted(1, "a flush writes the applied index and lacks the last write's data")
def applied_index_ahead_of_data() -> Iterator[None]:
    write, save = MemoryEngine.write, MemoryEngine._save
    before: dict[int, dict[bytes, bytes | None]] = {}

    def remember(self: MemoryEngine, writes: Any) -> None:
        before[id(self)] = {key: self._pairs.get(key) for key in writes if not key.startswith(keys.META)}
        write(self, writes)

    def save_older(self: MemoryEngine, directory: str) -> None:
        now = {key: self._pairs.get(key) for key in before.get(id(self), {})}
        write(self, before.get(id(self), {}))
        save(self, directory)
        write(self, now)

    with patch.object(MemoryEngine, "write", remember), patch.object(MemoryEngine, "_save", save_older):
        yield


# --- 2, 16: which configuration is in force


@_planted(2, "a restart takes the members from the record of creation, not from the tablet")
def configuration_of_creation_after_restart() -> Iterator[None]:
    check = Tablets._check_or_bootstrap

    def forget(machine: Machine, replica: Any) -> None:
        check(machine, replica)
        if replica.created.configuration.voters:
            machine.configuration = replica.created.configuration

    with patch.object(Tablets, "_check_or_bootstrap", staticmethod(forget)):
        yield


@_planted(16, "an installed snapshot does not bring its configuration")
def snapshot_without_configuration() -> Iterator[None]:
    def installed(self: Core, meta: Any) -> None:
        if meta.index > self.applied_index:
            self.applied_index = meta.index

    with patch.object(Core, "_installed", installed):
        yield


# --- 5, 6: reads


@_planted(5, "a leader serves reads before it has committed in its term")
def read_before_first_commit() -> Iterator[None]:
    flush = replication.flush

    def early(core: Core) -> None:
        start, core.term_start = core.term_start, LogIndex(0)
        flush(core)
        core.term_start = start

    with patch.object(replication, "flush", early):
        yield


@_planted(6, "a leader serves reads without asking a quorum whether it still leads")
def read_without_quorum() -> Iterator[None]:
    flush = replication.flush

    def alone(core: Core) -> None:
        flush(core)
        if core.reads:
            core.reads_ready.extend(core.reads.confirm(core.round))

    with patch.object(replication, "flush", alone):
        yield


@_planted(6, "a follower serves a read before it has applied the confirmed index")
def read_below_confirmed_index() -> Iterator[None]:
    answer = Replica.answer_indexed_reads

    def at_once(self: Replica) -> None:
        self.reads_indexed = [(LogIndex(0), calls) for _index, calls in self.reads_indexed]
        answer(self)

    with patch.object(Replica, "answer_indexed_reads", at_once):
        yield


@_planted(6, "a lease lasts as long as the leader believes to lead")
def lease_never_ends() -> Iterator[None]:
    def holds(self: Host, replica: Replica) -> bool:
        return replica.led_term is not None and replica.lease_until > 0

    with patch.object(Host, "holds_lease", holds):
        yield


@_planted(6, "a lease counts from when the answers arrive, not from when the round was sent")
def lease_from_receipt() -> Iterator[None]:
    extend = Host._extend_lease

    def late(self: Host, replica: Replica) -> None:
        for number in replica.round_sent_at:
            replica.round_sent_at[number] = self.runtime.now()
        extend(self, replica)

    with patch.object(Host, "_extend_lease", late):
        yield


@_planted(6, "a lease goes on after the leadership was given away")
def lease_kept_after_transfer() -> Iterator[None]:
    send = leader._send_timeout_now

    def keep(core: Core, target: Any) -> None:
        send(core, target)
        core.lease_forbidden = False

    with patch.object(leader, "_send_timeout_now", keep):
        yield


@_planted(6, "a lease read does not wait until everything committed is applied")
def lease_read_before_apply() -> Iterator[None]:
    def serve(self: Router, replica: Replica, call: Any) -> bool:
        if not self._host.holds_lease(replica):
            return False
        replica.serve(call)
        return True

    with patch.object(Router, "_serve_lease", serve):
        yield


@_planted(6, "the answer to a node's heartbeat confirms the reads of each of its shards")
def beat_confirms_reads() -> Iterator[None]:
    hear = Core.hear_follower

    def confirm(self: Core, replica: Any) -> None:
        hear(self, replica)
        peer = self.progress.get(replica)
        if peer is not None:
            peer.round = self.round
            confirm_rounds(self)

    with patch.object(Core, "hear_follower", confirm):
        yield


@_planted(6, "voters do not keep the promise that a lease rests on")
def votes_while_leader_is_heard() -> Iterator[None]:
    with patch.object(candidate, "_is_bound", lambda core, message: False):
        yield


@_planted(6, "a restarted voter may vote at once, though it may have supported a lease")
def votes_right_after_restart() -> Iterator[None]:
    start = Core._start_clocks

    def unbound(self: Core) -> None:
        start(self)
        self.ticks = self.settings.election_ticks_min
        self.promise_left = 0

    with patch.object(Core, "_start_clocks", unbound):
        yield


# --- 7 to 11: what is durable when


@_planted(7, "a leader counts its own entries before they are synced")
def leader_counts_unsynced() -> Iterator[None]:
    flush = replication.flush

    def count(core: Core) -> None:
        flush(core)
        if core.own_progress.match < core.last_index:
            core.own_progress.match = core.last_index
            leader.advance_commit(core)

    with patch.object(replication, "flush", count):
        yield


@_planted(8, "entries of older terms commit by counting")
def commits_older_terms() -> Iterator[None]:
    def advance(core: Core) -> None:
        index = quorum.agreed([peer.match for peer in core.voter_progress])
        if core.outgoing_progress:
            index = min(index, quorum.agreed([peer.match for peer in core.outgoing_progress]))
        if index > core.commit:
            for entry in core.log.between(core.commit, index):
                core.uncommitted_bytes -= len(entry.payload)
            core.commit_to(LogIndex(index))
            core.settled_round = core.round
            core.flush_wanted = True

    with patch.object(leader, "advance_commit", advance):
        yield


@_planted(9, "a vote is answered before it is synced")
def vote_before_sync() -> Iterator[None]:
    answer = candidate._answer

    def at_once(core: Core, message: Any, *, is_granted: bool) -> None:
        answer(core, message, is_granted=is_granted)
        core.messages_now.append(core.messages_after_sync.pop())

    with patch.object(candidate, "_answer", at_once):
        yield


@_planted(9, "a candidate counts its own vote before it is synced")
def own_vote_before_sync() -> Iterator[None]:
    become, ask = Core.become_candidate, candidate._ask

    def count(self: Core) -> None:
        become(self)
        self.votes[self.me] = True

    def at_once(core: Core, term: Any, *, is_pre_vote: bool, is_transfer: bool) -> None:
        ask(core, term, is_pre_vote=is_pre_vote, is_transfer=is_transfer)
        core.messages_now += core.messages_after_sync
        core.messages_after_sync.clear()

    with patch.object(Core, "become_candidate", count), patch.object(candidate, "_ask", at_once):
        yield


@_planted(9, "the vote is never written")
def vote_not_written() -> Iterator[None]:
    records = Host._records

    def forget(replica: Replica, ready: Any) -> list[Any]:
        return [
            HardStateRecord(each.shard, each.incarnation, each.term, None, each.commit)
            if isinstance(each, HardStateRecord)
            else each
            for each in records(replica, ready)
        ]

    with patch.object(Host, "_records", staticmethod(forget)):
        yield


@_planted(9, "term and vote are forgotten by a restart")
def hard_state_lost() -> Iterator[None]:
    restore = Core._restore

    def forget(self: Core, restored: Any) -> None:
        forgotten = HardState(commit=restored.hard_state.commit)
        restore(self, replace(restored, hard_state=forgotten))

    with patch.object(Core, "_restore", forget):
        yield


@_planted(10, "a follower acknowledges before its sync")
def acknowledges_before_sync() -> Iterator[None]:
    persist = Host._persist

    def promise(self: Host, replica: Replica, ready: Any) -> None:
        self._post_raft(replica, ready.messages_after_sync)
        persist(self, replica, replace(ready, messages_after_sync=()))

    with patch.object(Host, "_persist", promise):
        yield


@_planted(11, "a sync that fails is taken for done")
def failed_sync_ignored() -> Iterator[None]:
    append = Segment.append

    def ignore(self: Segment, content: bytes) -> None:
        offset = self.offset
        try:
            append(self, content)
        except OSError:
            self.offset = offset + len(content)

    with patch.object(Segment, "append", ignore):
        yield


# --- 12 to 15, 37: log and tablets


@_planted(12, "damage in the middle of the log is cut off like a torn tail")
def damage_taken_for_torn_tail() -> Iterator[None]:
    with (
        patch.object(recovery, "_is_begun", lambda content, offset, nonce: False),
        patch.object(recovery, "_later", lambda content, offset, nonce, above: None),
    ):
        yield


@_planted(12, "a restart forgets the last batch although it was synced")
def last_entry_lost_at_restart() -> Iterator[None]:
    opened = Tablets.open

    def shorten(self: Tablets, key: Any, replica: Any, *more: Any) -> Any:
        if replica.entries:
            replica.entries.pop()
        return opened(self, key, replica, *more)

    with patch.object(Tablets, "open", shorten):
        yield


@_planted(13, "a batch that found no space counts as written")
def full_disk_ignored() -> Iterator[None]:
    append = Wal.append

    def ignore(self: Wal, records: Any) -> None:
        try:
            append(self, records)
        except DiskFull:
            return

    with patch.object(Wal, "append", ignore):
        yield


@_planted(14, "the log gives up what is applied, though the tablet has not flushed it")
def log_reclaimed_before_flush() -> Iterator[None]:
    def applied(self: Keeper, replica: Replica) -> None:
        replica.machine.durable_applied = replica.machine.applied
        replica.core.compact(replica.machine.applied)

    with patch.object(Keeper, "cut", applied):
        yield


@_planted(15, "a late snapshot is installed over a log that is further")
def snapshot_over_newer_log() -> Iterator[None]:
    install = follower.install

    def blindly(core: Core, meta: Any) -> bool:
        if core.is_leader or meta.index > core.commit:
            return install(core, meta)
        core.offered = None
        core.log.reset(meta.index, meta.term, meta.index)
        core.commit = core.emitted = core.applied_index = meta.index
        core.pending_install = meta
        follower.acknowledge_to_leader(core, meta.index)
        return True

    with patch.object(follower, "install", blindly):
        yield


@_planted(15, "a follower keeps conflicting entries behind what a leader sends")
def conflict_kept() -> Iterator[None]:
    merge = follower._merge

    def keep(core: Core, entries: Any) -> None:
        here = core.log.term_at(entries[0].index) if entries else None
        if here is None:
            merge(core, entries)

    with patch.object(follower, "_merge", keep):
        yield


@_planted(15, "a late append cuts off matching entries behind it")
def late_append_truncates() -> Iterator[None]:
    merge = follower._merge

    def cut(core: Core, entries: Any) -> None:
        merge(core, entries)
        last = entries[-1].index if entries else core.last_index
        if core.commit <= last < core.last_index:
            core.log.truncate(last)

    with patch.object(follower, "_merge", cut):
        yield


@_planted(15, "any log is good enough for a vote")
def vote_for_shorter_log() -> Iterator[None]:
    with patch.object(RaftLog, "is_up_to_date", lambda self, last_index, last_term: True):
        yield


@_planted(1, "what others have committed is applied before the own log holds it")
def applies_unsynced() -> Iterator[None]:
    with patch.object(output, "_committed_upto", lambda core: core.commit):
        yield


# --- 19, 20: members


@_planted(19, "in a joint configuration only the new half is asked")
def joint_quorum_of_new_half() -> Iterator[None]:
    rebuild, outcome = leader.rebuild_progress, quorum.vote_outcome

    def one_half(core: Core) -> None:
        rebuild(core)
        core.outgoing_progress = ()

    def new_half(configuration: Any, votes: Any) -> quorum.Outcome:
        return outcome(type(configuration)(voters=configuration.voters), votes)

    with (
        patch.object(leader, "rebuild_progress", one_half),
        patch.object(quorum, "vote_outcome", new_half),
    ):
        yield


@_planted(20, "a quarantined replica is hosted all the same")
def quarantine_ignored() -> Iterator[None]:
    from kvstore.node.node import Node

    host = Node._host_replicas

    def trust(self: Node) -> None:
        for replica in self.recovered.replicas.values():
            replica.quarantined = None
        host(self)

    with patch.object(Node, "_host_replicas", trust):
        yield


# --- 23: retries


@_planted(23, "a repeated request is executed again")
def sessions_ignored() -> Iterator[None]:
    def run(self: Sessions, draft: Any, command: list[Any]) -> CommandResult:
        return CommandResult(False, mvcc.apply_ops(draft, command[1:]))

    with patch.object(Sessions, "run", run):
        yield


@_planted(23, "a restart loses what sessions have answered")
def sessions_lost_at_restart() -> Iterator[None]:
    def nothing(self: Sessions, session_id: bytes) -> dict[int, tuple[int, int]]:
        return {}

    with patch.object(Sessions, "_load_kept", nothing):
        yield


@_planted(23, "a snapshot does not hold the sessions")
def sessions_not_in_snapshot() -> Iterator[None]:
    def bare(self: MemoryEngine, directory: str) -> None:
        other = MemoryEngine(self.engines, self._files, directory)
        other.write(
            {
                key: value
                for key, value in self._pairs.items()
                if key[:1] not in (keys.SESSION, keys.RESULT, keys.EXPIRY)
            }
        )
        other.flush()

    with patch.object(MemoryEngine, "checkpoint", bare):
        yield


@_planted(23, "a node sends a write without identity again when no answer comes")
def unidentified_write_repeated() -> Iterator[None]:
    sweep = Router._sweep_forwards

    def again(self: Router, now: float) -> None:
        for forward in self._forwards.values():
            forward.call.identified = True
        sweep(self, now)

    with patch.object(Router, "_sweep_forwards", again):
        yield


@_planted(23, "a forwarded write that the network repeats is executed twice")
def repeated_forward_executed() -> Iterator[None]:
    with patch.object(Router, "_is_first", lambda self, node, number: True):
        yield


@_planted(23, "a caller gets the answer of whatever entry came to stand at its index")
def answer_of_another_entry() -> Iterator[None]:
    answer = Replica._answer_writers

    def mixed(self: Replica, entries: Any, results: Any) -> None:
        for entry, found in zip(entries, results, strict=True):
            if entry.index in self.in_flight and found:
                _term, calls = self.in_flight[entry.index]
                self.in_flight[entry.index] = (entry.term, calls[: len(found)])
                del found[len(calls) :]
        answer(self, entries, results)

    with (
        patch.object(Replica, "_answer_writers", mixed),
        patch.object(Replica, "_drop_in_flight_above", lambda self, index: None),
    ):
        yield


# --- 25: determinism


@_planted(25, "a replica's own clock flows into the state")
def own_clock_in_state() -> Iterator[None]:
    apply = mvcc.apply_ops

    def stamped(draft: Any, ops: Any) -> Any:
        directory = draft.engine.directory.encode()
        for op in ops:
            if op[0] == 1 and len(op[2]) > 3 and directory[-1:] in b"01":
                op[2] = op[2] + directory[-1:]
        return apply(draft, ops)

    from kvstore.store import machine

    with patch.object(mvcc, "apply_ops", stamped), patch.object(machine.mvcc, "apply_ops", stamped):
        yield


@_planted(25, "what is removed depends on when this replica flushed")
def expiry_by_local_flush() -> Iterator[None]:
    settle = Sessions._settle

    def by_flush(
        self: Sessions, draft: Any, session_id: bytes, session: Session, acked_below: int, sequence: int
    ) -> None:
        if len(getattr(self._engine, "_pairs", ())) % 7 == 0 and MemoryEngine.byte_count(draft.engine) % 2:
            acked_below = sequence
        settle(self, draft, session_id, session, acked_below, sequence)

    flush = MemoryEngine.flush

    def counted(self: MemoryEngine) -> None:
        flush(self)
        self._bytes += 1

    with patch.object(Sessions, "_settle", by_flush), patch.object(MemoryEngine, "flush", counted):
        yield


@_planted(37, "the promises of a batch leave when the batch is handed to the disk")
def promises_at_submit() -> Iterator[None]:
    submit = LogWriter._submit

    def early(self: LogWriter, records: Any, promises: Any, callbacks: Any, **more: Any) -> None:
        for replica, _number, messages in promises:
            self._on_synced.__self__._post_raft(replica, messages)  # type: ignore[attr-defined]
        submit(self, records, promises, callbacks, **more)

    with patch.object(LogWriter, "_submit", early):
        yield
