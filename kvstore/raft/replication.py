"""What a leader sends to its followers, built once per Ready.

Building late is what makes batches: everything proposed since the last Ready leaves as one AppendRequest
per peer, and all reads that arrived share one confirmation round. A message that goes out anyway carries
the commit index and the round; only if none goes out are they sent alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.raft.messages import AppendRequest, Heartbeat, SnapshotMeta, SnapshotOffer
from kvstore.raft.progress import Progress, ProgressState
from kvstore.raft.rounds import confirm_rounds, open_round
from kvstore.types import LogIndex, ReplicaId

if TYPE_CHECKING:
    from kvstore.raft.core import Core

SNAPSHOT_PATIENCE_FACTOR = 10
"""A peer that is silent for this many longest election timeouts no longer holds its snapshot."""


def flush(core: Core) -> None:
    """Put into `messages_now` what each peer should get."""
    core.flush_wanted = False
    asks_round = core.is_beat_due
    core.is_beat_due = False
    commit = core.commit
    if core.reads.parked and commit >= core.term_start:
        if not asks_round:
            open_round(core)
            asks_round = True
        core.reads.issue(core.round, commit)
        if len(core.voter_progress) == 1:
            confirm_rounds(core)
    for peer in core.peers:
        if peer.state is not ProgressState.SNAPSHOT and _replicate(core, peer):
            continue
        if asks_round:
            _send_heartbeat(core, peer, core.round)
        elif peer.commit_sent < commit <= peer.match:
            _send_heartbeat(core, peer, 0)


def _send_heartbeat(core: Core, peer: Progress, round_number: int) -> None:
    # What the peer has not acknowledged it may not have, so it must not take it for committed.
    is_behind = core.commit > peer.match
    commit = peer.match if is_behind else core.commit
    if commit > peer.commit_sent:
        peer.commit_sent = commit
    core.send_now(
        Heartbeat(
            source=core.me,
            target=peer.replica,
            term=core.term,
            commit=commit,
            round=round_number,
            is_behind=is_behind,
        )
    )


def _replicate(core: Core, peer: Progress) -> bool:
    """Send the entries the peer lacks, as far as its state and window allow. True: something went out."""
    log = core.log
    settings = core.settings
    is_probing = peer.state is ProgressState.PROBE
    if is_probing and peer.is_probe_sent:
        return False
    has_sent = False
    while True:
        prev_index = peer.next - 1
        upto = log.last_index
        if not is_probing and (
            len(peer.inflight) >= settings.inflight_messages_max
            or peer.inflight_bytes >= settings.inflight_bytes_max
        ):
            upto = LogIndex(prev_index)
        if prev_index >= upto and not is_probing and not peer.is_poked:
            return has_sent
        prev_term = log.term_at(prev_index)
        if prev_term is None:
            want_snapshot(core, peer)
            return has_sent
        if prev_index < upto:
            entries, bytes_count = log.read(prev_index, upto, settings.append_bytes_max)
        else:
            entries, bytes_count = (), 0
        core.send_now(
            AppendRequest(
                source=core.me,
                target=peer.replica,
                term=core.term,
                prev_index=LogIndex(prev_index),
                prev_term=prev_term,
                commit=core.commit,
                round=core.round,
                entries=entries,
            )
        )
        has_sent = True
        peer.is_poked = False
        last_sent = prev_index + len(entries)
        known = core.commit if core.commit < last_sent else last_sent
        if known > peer.commit_sent:
            peer.commit_sent = known
        if is_probing:
            peer.is_probe_sent = True
            return True
        if entries:
            peer.sent(last_sent, bytes_count)


# --- snapshots


def want_snapshot(core: Core, peer: Progress) -> None:
    """Ask the host for a snapshot, unless nobody is there to take it."""
    if peer.is_active:
        peer.become_snapshot()
        core.snapshots_wanted.append(peer.replica)
    elif peer.state is not ProgressState.PROBE:
        peer.become_probe(peer.match + 1)


def offer_snapshot(core: Core, target: ReplicaId, meta: SnapshotMeta) -> None:
    peer = core.progress.get(target)
    if peer is None or peer.state is not ProgressState.SNAPSHOT:
        return
    if meta.index < core.log.base_index:
        # The log was cut above it meanwhile: installing it would not reach the log again.
        core.snapshots_wanted.append(target)
        return
    core.quiet = False
    peer.snapshot = meta
    _send_offer(core, peer, meta)


def _send_offer(core: Core, peer: Progress, meta: SnapshotMeta) -> None:
    peer.offer_ticks = 0
    core.send_now(
        SnapshotOffer(source=core.me, target=peer.replica, term=core.term, commit=core.commit, snapshot=meta)
    )


def watch_snapshots(core: Core, ticks_passed: int) -> None:
    """Repeat offers and requests that led to nothing; give up on peers that are silent for long."""
    for peer in core.peers:
        peer.silent_ticks += ticks_passed
        if peer.state is not ProgressState.SNAPSHOT:
            continue
        if peer.silent_ticks > SNAPSHOT_PATIENCE_FACTOR * core.settings.election_ticks_max:
            peer.become_probe(core.log.base_index + 1)
            continue
        peer.offer_ticks += ticks_passed
        if peer.offer_ticks < core.settings.election_ticks_min:
            continue
        if peer.snapshot is not None:
            _send_offer(core, peer, peer.snapshot)
        else:
            peer.offer_ticks = 0
            core.snapshots_wanted.append(peer.replica)
