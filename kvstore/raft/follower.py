"""What a replica does with the messages of a leader.

Every answer is a promise about the disk, so it leaves only after the sync (`Core.send_after_sync`).
Terms were compared in `Core.step`: a message that arrives here is of this replica's term.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvstore.errors import Corrupt
from kvstore.raft import candidate
from kvstore.raft.messages import (
    AppendReply,
    AppendRequest,
    Entry,
    Heartbeat,
    HeartbeatReply,
    Message,
    SnapshotMeta,
    SnapshotOffer,
    TimeoutNow,
)
from kvstore.raft.role import Role
from kvstore.types import LogIndex, ReplicaId, Term

if TYPE_CHECKING:
    from kvstore.raft.core import Core


def note_leader(core: Core, source: ReplicaId) -> None:
    """A leader of this term spoke: follow it, and grant nobody a vote for an election timeout."""
    if core.leader != source or core.role is not Role.FOLLOWER:
        if core.role is Role.LEADER or core.leader not in (None, source):
            raise Corrupt(f"two leaders in term {core.term}: {core.leader} and {source}")
        core.become_follower(core.term, source)
        return
    core.elapsed = 0
    core.promise_left = core.settings.election_ticks_min


def hear_leader(core: Core, source: ReplicaId, term: Term) -> bool:
    """Take the word of a node for all shards it leads; see `Core.hear_leader`."""
    if term != core.term or source != core.leader or core.role is not Role.FOLLOWER:
        return False
    core.elapsed = 0
    core.promise_left = core.settings.election_ticks_min
    return core.commit == core.log.last_index


def answer_older_leader(core: Core, message: Message) -> None:
    """Show a leader that was replaced the newer term; without it, it could never reach this replica again."""
    if isinstance(message, AppendRequest | Heartbeat | SnapshotOffer):
        core.send_after_sync(HeartbeatReply(source=core.me, target=message.source, term=core.term, round=0))


def on_append(core: Core, message: AppendRequest) -> None:
    note_leader(core, message.source)
    log = core.log
    prev_index = message.prev_index
    entries = message.entries
    if entries and not (
        entries[0].index == prev_index + 1 and entries[-1].index == prev_index + len(entries)
    ):
        return  # not what any core sends
    if prev_index == log.last_index and message.prev_term == log.last_term:
        if entries:
            log.append(entries)
            core.trace_append(entries)
    elif prev_index <= core.commit and log.term_at(prev_index) not in (message.prev_term, None):
        raise Corrupt(f"leader {message.source} contradicts the committed entry {prev_index}")
    elif prev_index < core.commit:
        # What is committed here is the same there, so that the logs match at least up to it.
        _merge(core, entries[core.commit - prev_index :])
    elif log.matches(prev_index, message.prev_term):
        _merge(core, entries)
    else:
        _reject(core, message)
        return
    match = LogIndex(prev_index + len(entries))
    if match < core.commit:
        match = core.commit
    commit = message.commit if message.commit < match else match
    if commit > core.commit:
        core.commit_to(commit)
    _reply(core, message, match)


def _merge(core: Core, entries: tuple[Entry, ...]) -> None:
    """Add what is new. Entries that are already here stay: the message may be an old one (Raft 5.3)."""
    log = core.log
    for position, entry in enumerate(entries):
        term_here = log.term_at(entry.index)
        if term_here == entry.term:
            continue
        if term_here is not None:
            assert entry.index > core.commit, f"{entry.index} is committed"
            log.truncate(LogIndex(entry.index - 1))
        added = entries[position:]
        log.append(added)
        core.trace_append(added)
        return


def _reply(core: Core, message: AppendRequest, match: LogIndex) -> None:
    core.send_after_sync(
        AppendReply(
            source=core.me,
            target=message.source,
            term=core.term,
            index=match,
            is_rejected=False,
            hint_index=LogIndex(0),
            hint_term=Term(0),
            round=message.round,
        )
    )


def _reject(core: Core, message: AppendRequest) -> None:
    """Say where the logs may part, stepping over all entries of terms that the leader cannot have there."""
    hint_index, hint_term = core.log.last_at_or_below_term(message.prev_index, message.prev_term)
    core.send_after_sync(
        AppendReply(
            source=core.me,
            target=message.source,
            term=core.term,
            index=message.prev_index,
            is_rejected=True,
            hint_index=hint_index,
            hint_term=hint_term,
            round=message.round,
        )
    )


def on_heartbeat(core: Core, message: Heartbeat) -> None:
    note_leader(core, message.source)
    commit = message.commit
    if commit > core.commit:
        if commit > core.log.last_index:
            raise Corrupt(f"acknowledged up to {commit} at least, but the log ends at {core.log.last_index}")
        core.commit_to(commit)
    if message.round:
        core.send_after_sync(
            HeartbeatReply(source=core.me, target=message.source, term=core.term, round=message.round)
        )


def on_snapshot_offer(core: Core, message: SnapshotOffer) -> None:
    """Ask the host to fetch the snapshot (`Core.offered`), unless it would bring nothing."""
    note_leader(core, message.source)
    meta = message.snapshot
    if meta.index > core.commit and core.log.matches(meta.index, meta.term):
        core.commit_to(meta.index)
    if meta.index <= core.commit:
        core.offered = None
        acknowledge_to_leader(core, core.commit)
    else:
        core.offered = message


def install(core: Core, meta: SnapshotMeta) -> bool:
    """Start the log after a snapshot, as one step; see `Core.install`."""
    if core.is_leader or meta.index <= core.commit:
        return False
    core.offered = None
    if core.log.matches(meta.index, meta.term):
        # Everything up to there is here: it only was not known to be committed (pitfall 15).
        core.commit_to(meta.index)
        acknowledge_to_leader(core, meta.index)
        return False
    if meta.term > core.term:
        core.become_follower(meta.term, None)  # made after its sender had moved on
    elif core.role is not Role.FOLLOWER:
        core.become_follower(core.term, None)
    core.log.reset(meta.index, meta.term, core.commit)
    core.commit = core.emitted = meta.index
    core.pending_install = meta
    if core.observe is not None:
        core.trace("install_snapshot", snapshot=meta)
    acknowledge_to_leader(core, meta.index)
    return True


def acknowledge_to_leader(core: Core, index: LogIndex) -> None:
    """Tell the leader, unasked, that the log here matches up to `index`."""
    if core.leader is None or core.leader == core.me:
        return
    core.send_after_sync(
        AppendReply(
            source=core.me,
            target=core.leader,
            term=core.term,
            index=index,
            is_rejected=False,
            hint_index=LogIndex(0),
            hint_term=Term(0),
            round=0,
        )
    )


def on_timeout_now(core: Core, message: TimeoutNow) -> None:
    """The leader hands over: campaign at once, without a pre-vote, which its living voters would refuse."""
    if not core.is_fresh and not core.is_leader:
        # What forbids it often is only that a committed change is not applied yet, say the leader's removal.
        core.asked_to_lead_tick = core.ticks
        candidate.campaign_as_asked(core)


HANDLERS: dict[type, Callable[[Any, Any], None]] = {
    AppendRequest: on_append,
    Heartbeat: on_heartbeat,
    SnapshotOffer: on_snapshot_offer,
    TimeoutNow: on_timeout_now,
}
