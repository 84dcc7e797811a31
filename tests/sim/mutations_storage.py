"""Bugs in the log, tablets, snapshots, sessions and in what is applied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from kvstore.errors import DiskFull
from kvstore.node.keeper import Keeper
from kvstore.node.log_writer import LogWriter
from kvstore.node.replica import Replica
from kvstore.node.router import Router
from kvstore.node.snapshot_sender import SnapshotSender
from kvstore.node.tablets import Tablets
from kvstore.raft import follower, output
from kvstore.raft.core import Core
from kvstore.raft.log import RaftLog
from kvstore.store import apply, keys
from kvstore.store.memory import MemoryEngine
from kvstore.store.results import CommandResult
from kvstore.store.sessions import Session, Sessions
from kvstore.wal import Wal, recovery
from tests.sim.plant import planted

# --- 1: applied index and data


def _lacks_last_write(method: str) -> Iterator[None]:
    """What a method saves of a tablet has its last applied index, but not the data that came with it."""
    write, save = MemoryEngine.write, getattr(MemoryEngine, method)
    before: dict[int, dict[bytes, bytes | None]] = {}

    def remember(self: MemoryEngine, writes: Any) -> None:
        before[id(self)] = {key: self._pairs.get(key) for key in writes if not key.startswith(keys.META)}
        write(self, writes)

    def save_older(self: MemoryEngine, directory: str) -> None:
        now = {key: self._pairs.get(key) for key in before.get(id(self), {})}
        write(self, before.get(id(self), {}))
        save(self, directory)
        write(self, now)

    with patch.object(MemoryEngine, "write", remember), patch.object(MemoryEngine, method, save_older):
        yield


@planted(1, "a flush writes the applied index and lacks the last write's data")
def applied_index_ahead_of_data() -> Iterator[None]:
    yield from _lacks_last_write("_save")


# --- 12 to 15, 37: log and tablets


@planted(12, "damage in the middle of the log is cut off like a torn tail")
def damage_taken_for_torn_tail() -> Iterator[None]:
    with (
        patch.object(recovery, "_is_begun", lambda content, offset, nonce: False),
        patch.object(recovery, "_later", lambda content, offset, nonce, above: None),
    ):
        yield


@planted(12, "a restart forgets the last batch although it was synced")
def last_entry_lost_at_restart() -> Iterator[None]:
    opened = Tablets.open

    def shorten(self: Tablets, key: Any, replica: Any, *more: Any) -> Any:
        if replica.entries:
            replica.entries.pop()
        return opened(self, key, replica, *more)

    with patch.object(Tablets, "open", shorten):
        yield


@planted(13, "a batch that found no space counts as written")
def full_disk_ignored() -> Iterator[None]:
    append = Wal.append

    def ignore(self: Wal, records: Any) -> None:
        try:
            append(self, records)
        except DiskFull:
            return

    with patch.object(Wal, "append", ignore):
        yield


@planted(14, "the log gives up what is applied, though the tablet has not flushed it")
def log_reclaimed_before_flush() -> Iterator[None]:
    def applied(self: Keeper, replica: Replica) -> None:
        replica.machine.durable_applied = replica.machine.applied
        replica.core.compact(replica.machine.applied)

    with patch.object(Keeper, "cut", applied):
        yield


@planted(15, "a late snapshot is installed over a log that is further")
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


@planted(15, "a follower keeps conflicting entries behind what a leader sends")
def conflict_kept() -> Iterator[None]:
    merge = follower._merge

    def keep(core: Core, entries: Any) -> None:
        here = core.log.term_at(entries[0].index) if entries else None
        if here is None:
            merge(core, entries)

    with patch.object(follower, "_merge", keep):
        yield


@planted(15, "a late append cuts off matching entries behind it")
def late_append_truncates() -> Iterator[None]:
    merge = follower._merge

    def cut(core: Core, entries: Any) -> None:
        merge(core, entries)
        last = entries[-1].index if entries else core.last_index
        if core.commit <= last < core.last_index:
            core.log.truncate(last)

    with patch.object(follower, "_merge", cut):
        yield


@planted(15, "any log is good enough for a vote")
def vote_for_shorter_log() -> Iterator[None]:
    with patch.object(RaftLog, "is_up_to_date", lambda self, last_index, last_term: True):
        yield


@planted(17, "a snapshot names an index whose data it lacks")
def snapshot_lacks_last_write() -> Iterator[None]:
    yield from _lacks_last_write("checkpoint")


@planted(18, "a snapshot that nobody fetches any more holds the log for ever")
def pins_never_end() -> Iterator[None]:
    with patch.object(SnapshotSender, "_sweep", lambda self: None):
        yield


@planted(1, "what others have committed is applied before the own log holds it")
def applies_unsynced() -> Iterator[None]:
    with patch.object(output, "_committed_upto", lambda core: core.commit):
        yield


# --- 23: retries


@planted(23, "a repeated request is executed again")
def sessions_ignored() -> Iterator[None]:
    def run(self: Sessions, draft: Any, command: list[Any]) -> CommandResult:
        return CommandResult(False, apply.apply_ops(draft, command[1:]))

    with patch.object(Sessions, "run", run):
        yield


@planted(23, "a restart loses what sessions have answered")
def sessions_lost_at_restart() -> Iterator[None]:
    def nothing(self: Sessions, session_id: bytes) -> dict[int, tuple[int, int]]:
        return {}

    with patch.object(Sessions, "_load_kept", nothing):
        yield


@planted(23, "a snapshot does not hold the sessions")
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


@planted(23, "a node sends a write without identity again when no answer comes")
def unidentified_write_repeated() -> Iterator[None]:
    sweep = Router._sweep_forwards

    def again(self: Router, now: float) -> None:
        for forward in self._forwards.values():
            forward.call.identified = True
        sweep(self, now)

    with patch.object(Router, "_sweep_forwards", again):
        yield


@planted(23, "a forwarded write that the network repeats is executed twice")
def repeated_forward_executed() -> Iterator[None]:
    with patch.object(Router, "_is_first", lambda self, node, number: True):
        yield


@planted(23, "a caller gets the answer of whatever entry came to stand at its index")
def answer_of_another_entry() -> Iterator[None]:
    answer = Replica._answer_writers

    def mixed(self: Replica, entries: Any, results: Any) -> None:
        for entry, found in zip(entries, results, strict=True):
            if entry.index in self.in_flight and found:
                _term, calls = self.in_flight[entry.index]
                self.in_flight[entry.index] = (entry.term, calls[: len(found)])
                del found[len(calls) :]
        answer(self, entries, results)

    with patch.object(Replica, "_answer_writers", mixed):
        yield


# --- 25: determinism


@planted(25, "a replica's own clock flows into the state")
def own_clock_in_state() -> Iterator[None]:
    execute = apply.apply_ops

    def stamped(draft: Any, ops: Any) -> Any:
        directory = draft.engine.directory.encode()
        for op in ops:
            if op[0] == 1 and len(op[2]) > 3 and directory[-1:] in b"01":
                op[2] = op[2] + directory[-1:]
        return execute(draft, ops)

    with (
        patch("kvstore.store.machine.apply_ops", stamped),
        patch("kvstore.store.sessions.apply_ops", stamped),
    ):
        yield


@planted(25, "what is removed depends on when this replica flushed")
def freed_by_local_flush() -> Iterator[None]:
    settle, flush = Sessions._settle, MemoryEngine.flush
    flushed: set[int] = set()

    def noted(self: MemoryEngine) -> None:
        flush(self)
        flushed.add(id(self))

    def by_flush(
        self: Sessions, draft: Any, session_id: bytes, session: Session, acked_below: int, sequence: int
    ) -> None:
        if id(self._engine) in flushed:
            flushed.discard(id(self._engine))
            acked_below = sequence + 1
        settle(self, draft, session_id, session, acked_below, sequence)

    with patch.object(Sessions, "_settle", by_flush), patch.object(MemoryEngine, "flush", noted):
        yield


@planted(37, "the promises of a batch leave when the batch is handed to the disk")
def promises_at_submit() -> Iterator[None]:
    submit = LogWriter._submit

    def early(self: LogWriter, records: Any, promises: Any, callbacks: Any, **more: Any) -> None:
        for replica, _number, messages in promises:
            self._on_synced.__self__._post_raft(replica, messages)  # type: ignore[attr-defined]
        submit(self, records, promises, callbacks, **more)

    with patch.object(LogWriter, "_submit", early):
        yield
