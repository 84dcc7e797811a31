"""Forgets old versions, a little with each entry.

A replaced version lives in the change record of the entry that replaced it, so forgetting is removing the
oldest change records, with the few marks and large versions that each one names. Nothing is searched for.
What is removed, and when, follows from the entry, the limits and the records in the tablet: all replicas
forget the same at the same index.

A change record goes when the state it left behind has been replaced for longer than `history_ms`, or lies
more than `history_revisions` back. `compacted` is then the first revision of the oldest record kept:
reads at it and above see everything, and the change log is complete from it on, deletions included. The
newest record is never removed, so there is always something to read at.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from kvstore.store import keys, records
from kvstore.store.draft import Draft
from kvstore.store.records import ChangeHead, Logged

CHANGES_PER_ENTRY: Final = 64
"""Changes forgotten per entry, besides twice as many as it made: enough to catch up under any load."""
_RECORDS_AHEAD: Final = 32
_RECORDS_KEPT: Final = 1024
"""How many records are remembered as they are written, so that they need not be read again: with 100
changes each, all that a shard keeps by default."""


class _Record(NamedTuple):
    key: bytes
    first_revision: int
    head: ChangeHead


class Compaction:
    def __init__(self) -> None:
        self._oldest: deque[_Record] = deque()
        """The oldest records, without a gap."""

    def reset(self) -> None:
        """Forget what is at hand."""
        self._oldest.clear()

    def step(self, draft: Draft, logged: Logged | None) -> None:
        """Forget what the limits no longer keep. `logged` is what the entry at hand has written to the
        change log."""
        budget = CHANGES_PER_ENTRY
        if logged is not None:
            key, first_revision, clock_ms, last_revision, count, others = logged
            budget += 2 * count
            known = self._oldest
            # Only if all records up to this one are at hand.
            if known and known[-1].head.last_revision + 1 == first_revision and len(known) < _RECORDS_KEPT:
                known.append(_Record(key, first_revision, ChangeHead(clock_ms, last_revision, count, others)))
        while budget > 0:
            if len(self._oldest) < 2 and not self._read_ahead(draft):
                return
            oldest, following = self._oldest[0], self._oldest[1]
            is_far_back = following.first_revision + draft.limits.history_revisions <= draft.revision
            is_long_ago = following.head.clock_ms + draft.limits.history_ms < draft.clock_ms
            if not (is_far_back or is_long_ago):
                return
            for other in oldest.head.others:
                draft.writes[other] = None
            draft.writes[oldest.key] = None
            draft.compacted = following.first_revision
            budget -= oldest.head.change_count
            self._oldest.popleft()

    def _read_ahead(self, draft: Draft) -> bool:
        """Have the two oldest records at hand; False if there are not two."""
        start = keys.CHANGE
        if self._oldest:
            last = self._oldest[-1]
            if last.head.last_revision == draft.revision:
                return False
            start = last.key + b"\x00"
        for key, record in draft.scan(start, keys.CHANGE_END):
            first_revision = int.from_bytes(key[1:], "big")
            self._oldest.append(_Record(key, first_revision, records.unpack_change_head(record)))
            if len(self._oldest) >= _RECORDS_AHEAD:
                break
        return len(self._oldest) >= 2
