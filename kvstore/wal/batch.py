"""The unit of validity: one batch is one write and one sync, and counts as a whole or not at all.

    head:    magic, nonce of the segment, checksum, checksum of the batch before, counts, sequence
    table:   one row per record, see `record.ROW`
    payload: the records' payloads, in the order of their rows, each with its checksum in its row
    padding: zeros to the next multiple of 512, so that a torn sector belongs to one batch only

The head's checksum covers head and table, and the table holds the checksums of the payloads. So damage in a
payload leaves the table readable, which names the replica that is hurt; and a batch that names the
checksum of the one before it proves what that one was. Because a batch is written only after the one
before it was synced, any batch found later in the log proves that this one was once whole on disk: that is
the sync mark which tells rot from a torn write (pitfall 12).
"""

import struct
from collections.abc import Iterator

import msgspec
from google_crc32c import extend as _extend
from google_crc32c import value as crc32c

from kvstore.wal.record import ROW, Coded, Record, decode

SECTOR_BYTES = 512
MAGIC = b"KVbt"

_START = struct.Struct("<4sQ")
_CHECKSUM = struct.Struct("<I")
_REST = struct.Struct("<IIIQ")
"""Checksum of the batch before, record count, payload bytes in all, sequence."""
_HEAD = struct.Struct("<4sQIIIIQ")
"""All three."""
_CHECKSUM_AT = _START.size
_REST_AT = _CHECKSUM_AT + _CHECKSUM.size
_TABLE_AT = _REST_AT + _REST.size
_PADDING = bytes(SECTOR_BYTES)
_unpack = ROW.unpack_from

Row = tuple[int, int, int, int, int, int, int, int]


class Batch(msgspec.Struct, frozen=True, gc=False):
    """A batch whose head and table are whole; its payloads may not be."""

    offset: int
    end: int
    """Where the next batch starts: a multiple of the sector."""
    sequence: int
    checksum: int
    previous_checksum: int
    rows: tuple[Row, ...]
    payload_at: int


def row(coded: Coded, number: int) -> bytes:
    kind, shard, incarnation, term, index, payload = coded
    return ROW.pack(kind, shard, incarnation, len(payload), number, term, index, crc32c(payload))


def byte_count(rows: int, payload_bytes: int) -> int:
    """How much room a batch takes in the file."""
    exact = _TABLE_AT + rows * ROW.size + payload_bytes
    return exact + -exact % SECTOR_BYTES


def encode(
    nonce: int, sequence: int, previous_checksum: int, rows: list[bytes], payloads: list[bytes]
) -> tuple[bytes, int]:
    """The bytes to write and the batch's checksum."""
    payload_bytes = sum(map(len, payloads))
    start = _START.pack(MAGIC, nonce)
    covered = _REST.pack(previous_checksum, len(rows), payload_bytes, sequence) + b"".join(rows)
    checksum = _extend(crc32c(start), covered)
    exact = _TABLE_AT + len(rows) * ROW.size + payload_bytes
    padding = _PADDING[: -exact % SECTOR_BYTES]
    return b"".join((start, _CHECKSUM.pack(checksum), covered, *payloads, padding)), checksum


def parse(content: bytes, offset: int, nonce: int | None) -> Batch | None:
    """The batch at `offset`, None if there is none of this segment or its head or table is damaged.
    Without a nonce the batch's own is believed."""
    table_at = offset + _TABLE_AT
    if table_at > len(content):
        return None
    head = _HEAD.unpack_from(content, offset)
    magic, found_nonce, checksum, previous_checksum, count, payload_bytes, sequence = head
    if magic != MAGIC or (nonce is not None and found_nonce != nonce):
        return None
    payload_at = table_at + count * ROW.size
    exact_end = payload_at + payload_bytes
    if exact_end > len(content):
        return None
    covered = content[offset + _REST_AT : payload_at]
    if _extend(crc32c(content[offset : offset + _CHECKSUM_AT]), covered) != checksum:
        return None
    rows = (_unpack(content, table_at),) if count == 1 else tuple(ROW.iter_unpack(covered[_REST.size :]))
    end = exact_end + -exact_end % SECTOR_BYTES
    return Batch(offset, end, sequence, checksum, previous_checksum, rows, payload_at)


def starts(content: bytes, offset: int, nonce: int) -> Iterator[int]:
    """Where batches of this segment were begun, at or after `offset`. Nobody who has a say in payloads knows
    the nonce, so each is the work of the log, be it whole or not."""
    needle = _START.pack(MAGIC, nonce)
    while (offset := content.find(needle, offset)) >= 0:
        if offset % SECTOR_BYTES == 0:
            yield offset
        offset += 1


def find(content: bytes, offset: int, nonce: int) -> Batch | None:
    """The first batch at or after `offset` that can be read, whatever lies between."""
    for start in starts(content, offset, nonce):
        if (batch := parse(content, start, nonce)) is not None:
            return batch
    return None


def payloads(content: bytes, batch: Batch) -> list[bytes | None]:
    """One per row, None where the checksum is wrong."""
    found: list[bytes | None] = []
    at = batch.payload_at
    for row in batch.rows:
        end = at + row[3]
        payload = content[at:end]
        found.append(payload if crc32c(payload) == row[7] else None)
        at = end
    return found


def record_of(row: Row, payload: bytes) -> Record:
    kind, shard, incarnation, _, _, term, index, _ = row
    return decode(kind, shard, incarnation, term, index, payload)


def nonce_of(content: bytes, offset: int) -> int:
    return int(_START.unpack_from(content, offset)[1])
