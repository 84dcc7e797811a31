"""What of the log is alive, and in which segment it lies.

One `ReplicaIndex` per replica: the number of its last record, the range of its entries, where they lie
in pieces of at most `PIECE_BYTES` of log, and its newest record of each lasting type. `Index.note` is
called with each record once it is synced, and by recovery with each record it reads, so that both end in
the same state.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import msgspec

from kvstore.types import LogIndex, ShardId
from kvstore.wal.record import (
    ClockRecord,
    Entries,
    HardStateRecord,
    Inventory,
    InventoryLine,
    Key,
    Quarantined,
    Record,
    Relocated,
    ReplicaRecord,
    ShardCreated,
    ShardDestroyed,
    SnapshotInstalled,
    Truncate,
)

PIECE_BYTES: Final = 256 * 1024
"""To relocate an entry, the piece that holds it is read."""

Lasting = HardStateRecord | SnapshotInstalled | ShardCreated | ShardDestroyed | Quarantined


class Place(msgspec.Struct, frozen=True, gc=False):
    """The batch that holds a record."""

    segment: int
    offset: int
    end: int
    sequence: int


@dataclass(slots=True)
class Piece:
    """Entries first..last lie in batches within offset..end of the segment; the newest there counts."""

    first: int
    last: int
    segment: int
    offset: int
    end: int
    sequence: int
    """Of the first of these batches."""
    entry_bytes: int
    """About what these entries take when they are written again."""
    is_closed: bool = False
    """Later entries are no continuation of these."""


class Newest(NamedTuple):
    record: Lasting
    segment: int
    sequence: int


@dataclass(slots=True)
class ReplicaIndex:
    number: int = 0
    first: int = 1
    last: int = 0
    pieces: list[Piece] = field(default_factory=list)
    newest: dict[type[Lasting], Newest] = field(default_factory=dict)
    is_destroyed: bool = False

    def live_pieces(self, segment: int) -> list[Piece]:
        return [piece for piece in self.pieces if piece.segment == segment and piece.last >= self.first]

    def add(self, first: int, last: int, entry_bytes: int, place: Place) -> None:
        """Entries follow the last one."""
        self.last = last
        tail = self.pieces[-1] if self.pieces else None
        if (
            tail is not None
            and tail.last + 1 == first
            and place.end - tail.offset <= PIECE_BYTES
            and tail.segment == place.segment
            and not tail.is_closed
        ):
            tail.last, tail.end = last, place.end
            tail.entry_bytes += entry_bytes
        else:
            self.pieces.append(_piece(first, last, place, entry_bytes))

    def fill(self, first: int, last: int, entry_bytes: int, place: Place) -> None:
        """These entries now lie at `place`, and nowhere else."""
        kept: list[Piece] = []
        for piece in self.pieces:
            if piece.last < first or piece.first > last:
                kept.append(piece)
                continue
            if piece.first < first:
                kept.append(_part(piece, piece.first, first - 1))
            if piece.last > last:
                kept.append(_part(piece, last + 1, piece.last))
        relocated = _piece(first, last, place, entry_bytes)
        relocated.is_closed = True
        kept.append(relocated)
        self.pieces = kept

    def truncate(self, index: int) -> None:
        self.last = min(self.last, index)
        self.pieces = [piece for piece in self.pieces if piece.first <= index]
        for piece in self.pieces:
            if piece.last >= index:
                piece.last, piece.is_closed = index, True

    def reset(self, index: int) -> None:
        """The log is empty and starts after `index`."""
        self.pieces.clear()
        self.first, self.last = index + 1, index

    def drop_below(self, index: int) -> None:
        self.first = max(self.first, min(index, self.last + 1))
        if self.pieces and any(piece.last < self.first for piece in self.pieces):
            self.pieces = [piece for piece in self.pieces if piece.last >= self.first]


def _piece(first: int, last: int, place: Place, entry_bytes: int) -> Piece:
    return Piece(first, last, place.segment, place.offset, place.end, place.sequence, entry_bytes)


def _part(piece: Piece, first: int, last: int) -> Piece:
    return replace(piece, first=first, last=last, is_closed=True)


class Index:
    def __init__(self) -> None:
        self.replicas: dict[Key, ReplicaIndex] = {}
        self.clocks: dict[ShardId, int] = {}
        self.has_lost_track = False

    def replica(self, key: Key) -> ReplicaIndex:
        found = self.replicas.get(key)
        if found is None:
            found = self.replicas[key] = ReplicaIndex()
        return found

    def note(self, record: Record, number: int, payload_bytes: int, place: Place) -> None:
        if isinstance(record, ClockRecord):
            for shard, clock in record.clocks:
                self.clocks[shard] = max(clock, self.clocks.get(shard, 0))
        elif not isinstance(record, Inventory):
            replica = self.replica((record.shard, record.incarnation))
            replica.number = number
            _note(replica, record, payload_bytes, place)

    def inventory(self, oldest_segment: int) -> Inventory:
        lines = (
            InventoryLine(*key, each.number, LogIndex(each.first), LogIndex(each.last), each.is_destroyed)
            for key, each in sorted(self.replicas.items())
        )
        return Inventory(oldest_segment, self.has_lost_track, tuple(lines))

    def drop_below(self, needed: Mapping[Key, LogIndex]) -> None:
        for key, index in needed.items():
            replica = self.replicas.get(key)
            if replica is not None:
                replica.drop_below(index)

    def is_superseded(self, key: Key) -> bool:
        """A later incarnation of the shard exists, which alone proves that this one is gone."""
        return any(shard == key[0] and incarnation > key[1] for shard, incarnation in self.replicas)

    def number_records(self, records: Iterable[Record]) -> list[int]:
        """The number of each record, were they written now as one batch.

        A record that its replica's log can't take is a mistake of the caller and fails an assertion:
        a gap or an overlap written to disk would be found only at the next start.
        """
        staged: dict[Key, tuple[int, int]] = {}
        numbers: list[int] = []
        for record in records:
            if isinstance(record, (ClockRecord, Inventory)):
                numbers.append(0)
                continue
            key = (record.shard, record.incarnation)
            state = staged.get(key)
            if state is None:
                replica = self.replicas.get(key)
                is_alive = replica is None or not replica.is_destroyed
                assert is_alive or isinstance(record, ShardDestroyed), f"{key} is destroyed"
                state = (0, 0) if replica is None else (replica.number, replica.last)
            number, last = state
            assert number > 0 or self._may_begin(record, key), f"{key} begins with {type(record).__name__}"
            staged[key] = (number + 1, _last_after(record, last))
            numbers.append(number + 1)
        return numbers

    def _may_begin(self, record: Record, key: Key) -> bool:
        """A replica begins with its creation, or with a mark that it should be here but is not."""
        return isinstance(record, (ShardCreated, Quarantined)) and not self.is_superseded(key)


def _last_after(record: ReplicaRecord, last: int) -> int:
    if isinstance(record, Entries):
        entries = record.entries
        assert entries[0].index == last + 1, f"entries start at {entries[0].index}, the log ends at {last}"
        assert entries[-1].index == last + len(entries), "entries have no successive indexes"
        return entries[-1].index
    if isinstance(record, Truncate):
        return min(record.index, last)
    if isinstance(record, SnapshotInstalled) and not record.origin:
        return record.meta.index
    return last


def _note(replica: ReplicaIndex, record: ReplicaRecord, payload_bytes: int, place: Place) -> None:
    match record:
        case Entries(_, _, entries):
            replica.add(entries[0].index, entries[-1].index, payload_bytes, place)
        case Relocated(_, _, _, entries):
            replica.fill(entries[0].index, entries[-1].index, payload_bytes, place)
        case Truncate(_, _, index):
            replica.truncate(index)
        case ShardDestroyed():
            replica.is_destroyed = True
            replica.newest = {ShardDestroyed: Newest(record, place.segment, place.sequence)}
            replica.reset(replica.last)
        case SnapshotInstalled(_, _, _, meta, origin):
            replica.newest[SnapshotInstalled] = Newest(record, place.segment, place.sequence)
            if not origin:
                replica.reset(meta.index)
        case HardStateRecord() | ShardCreated() | Quarantined():
            replica.newest[type(record)] = Newest(record, place.segment, place.sequence)
