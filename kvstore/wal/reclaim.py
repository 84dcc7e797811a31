"""Which segments may go, and what must be written again before they do.

The oldest segment goes when nothing in it is needed. What little is (a straggler's last entries, the
newest hard state of a quiet replica) is copied to the end of the log first; the copy is synced, then the
segment goes, and the inventory in the same batch as the copy says which segments are garbage
(pitfall 14). A segment with much that is needed stays, and `Wal.holders` names whose host should flush.
"""

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from kvstore.errors import Corrupt
from kvstore.files import Files
from kvstore.raft.messages import Entry
from kvstore.wal.batch import find, nonce_of, payloads, record_of
from kvstore.wal.index import Index, Newest, Piece
from kvstore.wal.record import (
    ClockRecord,
    Entries,
    Key,
    Quarantined,
    Record,
    Relocated,
    SnapshotInstalled,
)

LIVE_SHARE: Final = 16
"""A segment is copied from if at most one part in so many of it is alive: more would be mere churn."""

READ_BYTES_MAX: Final = 4 << 20
"""What one call reads at most, so that an append behind it waits some 20 ms; the next call goes on."""


def holders(index: Index, segment: int) -> tuple[Key, ...]:
    """Replicas that still need entries of the segment."""
    return tuple(key for key, replica in index.replicas.items() if replica.live_pieces(segment))


def is_worth_copying(index: Index, segment: int, capacity: int, idle: Collection[Key] = ()) -> bool:
    """Whether the segment holds little that is needed. What quarantined and `idle` replicas hold does not
    count: they will never flush, and must not keep the log of the others from being cut."""
    live_bytes = 0
    for key, replica in index.replicas.items():
        if Quarantined not in replica.newest and key not in idle:
            live_bytes += sum([piece.entry_bytes for piece in replica.live_pieces(segment)])
    return live_bytes <= capacity // LIVE_SHARE


def lasting_records(index: Index, segment: int) -> list[Record]:
    """Copies of the newest lasting records of this segment, and of all clocks. Forgets replicas that need
    no mark any more."""
    records: list[Record] = []
    if index.clocks:
        records.append(ClockRecord(tuple(sorted(index.clocks.items()))))
    for key, replica in list(index.replicas.items()):
        mine = [newest for newest in replica.newest.values() if newest.segment == segment]
        if mine and replica.is_destroyed and index.is_superseded(key):
            del index.replicas[key]
            continue
        records.extend(map(_copy, mine))
    return records


def _copy(newest: Newest) -> Record:
    if isinstance(newest.record, SnapshotInstalled):
        return msgspec.structs.replace(newest.record, origin=newest.sequence)
    return newest.record


def live_entries(
    files: Files, path: str, index: Index, segment: int, budget_bytes: int
) -> tuple[list[Record], int, bool]:
    """Copies of the entries of this segment that are needed, how much of `budget_bytes` is left, and
    whether these are all.

    Raises: Corrupt, if what was once synced reads wrong now.
    """
    copies: list[Record] = []
    for key, replica in sorted(index.replicas.items()):
        for piece in replica.live_pieces(segment):
            if budget_bytes <= 0:
                return copies, budget_bytes, False
            budget_bytes -= piece.end - piece.offset
            entries = read_piece(files, path, piece, key, max(piece.first, replica.first))
            copies.append(Relocated(*key, piece.sequence, tuple(entries)))
    return copies, budget_bytes, True


def read_piece(files: Files, path: str, piece: Piece, key: Key, first: int) -> Sequence[Entry]:
    """Entries first..piece.last of the replica, from the segment at `path`.

    Raises: Corrupt, if they are not there any more.
    """
    file = files.open(path)
    try:
        content = file.read_at(piece.offset, piece.end - piece.offset)
    finally:
        file.close()
    return _entries_of(content, piece, key, first)


def _entries_of(content: bytes, piece: Piece, key: Key, first: int) -> Sequence[Entry]:
    """Where the piece holds several entries of one index, the last counts. Damage that hurt others, and
    was judged by recovery, is passed over."""
    found: dict[int, Entry] = {}
    nonce = nonce_of(content, 0)
    batch = find(content, 0, nonce)
    while batch is not None:
        for row, payload in zip(batch.rows, payloads(content, batch), strict=True):
            if row[1:3] == key and payload is not None:
                record = record_of(row, payload)
                if isinstance(record, (Entries, Relocated)):
                    found.update((entry.index, entry) for entry in record.entries)
        batch = find(content, batch.end, nonce)
    wanted = range(first, piece.last + 1)
    if any(index not in found for index in wanted):
        where = f"segment {piece.segment} at {piece.offset}"
        raise Corrupt(f"{where}: entries {first} to {piece.last} of shard {key[0]} can't be read any more")
    return [found[index] for index in wanted]
