"""Confirmation rounds: how a leader learns that it still led at some moment (thesis 6.4).

Every message of a leader carries the number of the newest round, every answer repeats it. An answer to
round r proves that its sender followed this (shard, term) after r was opened, so a quorum of answers to r
confirms every read that came before r, and dates the leader's lease at the moment r was opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.raft import quorum

if TYPE_CHECKING:
    from kvstore.raft.core import Core


def open_round(core: Core) -> None:
    core.round += 1
    core.own_progress.round = core.round
    if len(core.voter_progress) == 1:
        confirm_rounds(core)


def beat(core: Core) -> None:
    """Open a new round and have every peer hear of it in the next Ready."""
    core.heartbeat_elapsed = 0
    core.is_beat_due = True
    core.flush_wanted = True
    open_round(core)


def confirm_rounds(core: Core) -> None:
    """Find the highest round that a quorum has answered, and release the reads that waited for it."""
    reached = quorum.agreed([peer.round for peer in core.voter_progress])
    if core.outgoing_progress:
        reached = min(reached, quorum.agreed([peer.round for peer in core.outgoing_progress]))
    core.confirmed_round = reached
    if core.reads:
        core.reads_ready.extend(core.reads.confirm(reached))
