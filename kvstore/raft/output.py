"""What a core has to say: builds the `Ready` that its host must carry out.

Here the durability order takes shape: what must be written, what may leave before that, and how far the
log may be applied. Every Ready with writes leaves a `Flight` behind, which tells what is durable once
the host reports its sync.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.raft import replication
from kvstore.raft.log import Flight
from kvstore.raft.messages import Entry, HardState, Message, Ready
from kvstore.types import LogIndex

if TYPE_CHECKING:
    from kvstore.raft.core import Core


def has_ready(core: Core) -> bool:
    log = core.log
    if log.unapplied_configurations and (_has_unwritten_change(core) or core.emitted < _committed_upto(core)):
        return True
    return bool(
        core.flush_wanted
        or log.last_index != log.taken
        or (core.emitted < core.commit and core.emitted < log.synced and not log.unapplied_configurations)
        or core.messages_now
        or core.messages_after_sync
        or core.reads_ready
        or core.reads_lost
        or core.snapshots_wanted
        or core.pending_install
        or core.term != core.written.term
        or core.vote != core.written.vote
        or log.pending_truncate is not None
    )


def take_ready(core: Core) -> Ready:
    """Return everything the host must now do; see `Ready` for the order it must keep."""
    if core.flush_wanted:
        replication.flush(core)
    log = core.log
    core.number += 1
    entries = log.take()
    truncate_after, log.pending_truncate = log.pending_truncate, None
    installed, core.pending_install = core.pending_install, None
    has_log_writes = bool(entries) or truncate_after is not None or installed is not None
    hard_state = _hard_state_to_write(core, has_log_writes)
    if has_log_writes or hard_state is not None:
        log.flights.append(
            Flight(
                core.number,
                log.last_index,
                core.term,
                core.vote,
                core.written.commit,
                installed,
                core.ticks,
            )
        )
    messages_now: tuple[Message, ...] = ()
    messages_after_sync: tuple[Message, ...] = ()
    if core.messages_now:
        messages_now, core.messages_now = tuple(core.messages_now), []
    if core.messages_after_sync:
        messages_after_sync, core.messages_after_sync = tuple(core.messages_after_sync), []
    ready = Ready(
        core.number,
        hard_state,
        installed,
        truncate_after,
        entries,
        messages_now,
        messages_after_sync,
        _take_committed(core),
        tuple(core.reads_ready),
        tuple(core.reads_lost),
        tuple(core.snapshots_wanted),
    )
    if core.reads_ready or core.reads_lost or core.snapshots_wanted:
        core.reads_ready, core.reads_lost, core.snapshots_wanted = [], [], []
    return ready


def _hard_state_to_write(core: Core, has_log_writes: bool) -> HardState | None:
    """Term and vote must be written when they change; the commit index goes along with other writes."""
    written = core.written
    is_same = core.term == written.term and core.vote == written.vote
    if is_same and (not has_log_writes or core.commit == written.commit) and not _has_unwritten_change(core):
        return None
    core.written = HardState(core.term, core.vote, core.commit)
    return core.written


def _has_unwritten_change(core: Core) -> bool:
    changes = core.log.unapplied_configurations
    return bool(changes) and any(core.written.commit < index <= core.commit for index in changes)


def _committed_upto(core: Core) -> LogIndex:
    """Last index that may be given to apply.

    No replica applies what is not on its own disk (pitfall 37), nor a change of members whose
    commitment is not: the configuration in force must not fall back with a restart, when those who
    could tell may be destroyed already.
    """
    upto = core.commit if core.commit < core.log.synced else core.log.synced
    for index in core.log.unapplied_configurations:
        if core.durable_commit < index <= upto:
            return LogIndex(index - 1)
    return upto


def _take_committed(core: Core) -> tuple[Entry, ...]:
    upto = _committed_upto(core)
    if upto <= core.emitted:
        return ()
    committed, _ = core.log.read(core.emitted, upto, core.settings.committed_bytes_max)
    core.emitted = committed[-1].index
    return committed
