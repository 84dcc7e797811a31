"""The bytes of the log, fixed for ever: header, batch, and a record of every type.

A line that changes here means that a node could no longer read the log it wrote before an upgrade. With
KV_REWRITE_GOLDEN=1 the file is written anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.raft.messages import Configuration, Entry, SnapshotMeta
from kvstore.types import Incarnation, LogIndex, ReplicaId, ShardId, Term
from kvstore.wal import (
    ClockRecord,
    Entries,
    HardStateRecord,
    Quarantined,
    Record,
    ShardCreated,
    ShardDestroyed,
    SnapshotInstalled,
    Truncate,
    Wal,
    WalSettings,
    batch,
)
from kvstore.wal.record import Inventory, InventoryLine, Relocated, decode, encode
from kvstore.wal.segment import Header, encode_header, parse_header
from tests.support.sim_files import SimFiles

GOLDEN = Path(__file__).with_name("wal_bytes.txt")

SHARD, INCARNATION = ShardId(3), Incarnation(2)
N1, N2 = ReplicaId("n1/2"), ReplicaId("n2/1")
CONFIGURATION = Configuration((N1, N2), (N2,), (ReplicaId("n3/1"),), ())
ENTRIES = (
    Entry(LogIndex(300), Term(5), 0, b"payload"),
    Entry(LogIndex(301), Term(5), 1, b""),
    Entry(LogIndex(302), Term(6), 2, bytes(300)),
)
RECORDS: list[Record] = [
    Entries(SHARD, INCARNATION, ENTRIES),
    HardStateRecord(SHARD, INCARNATION, Term(7), N2, LogIndex(301)),
    Truncate(SHARD, INCARNATION, LogIndex(299)),
    SnapshotInstalled(
        SHARD, INCARNATION, "3-2-ab", SnapshotMeta(LogIndex(900), Term(7), CONFIGURATION), origin=12
    ),
    ShardCreated(SHARD, INCARNATION, "3-2", CONFIGURATION),
    ShardDestroyed(SHARD, INCARNATION),
    Quarantined(SHARD, INCARNATION, "rot at 512"),
    Relocated(SHARD, INCARNATION, 77, ENTRIES),
    ClockRecord(((ShardId(0), 5), (ShardId(0xFFFF), 1 << 40))),
    Inventory(4, True, (InventoryLine(SHARD, INCARNATION, 9, LogIndex(300), LogIndex(302), False),)),
]
HEADER = Header(12, 0x0123456789ABCDEF, 4567, 64 << 20, b"cluster-id", True)


def _line(record: Record) -> str:
    kind, shard, incarnation, term, index, payload = encode(record)
    return f"{kind},{shard},{incarnation},{term},{index},{payload.hex()}"


def _batch() -> bytes:
    coded = [encode(record) for record in RECORDS[:2]]
    rows = [batch.row(each, 41 + number) for number, each in enumerate(coded)]
    content, _ = batch.encode(HEADER.nonce, 4567, 0xDEADBEEF, rows, [each[5] for each in coded])
    return content


def current() -> dict[str, str]:
    lines = {type(record).__name__: _line(record) for record in RECORDS}
    return lines | {"header": encode_header(HEADER).hex(), "batch": _batch().hex()}


def golden() -> dict[str, str]:
    return dict(line.split() for line in GOLDEN.read_text().splitlines())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_is_written_as_the_golden_bytes_and_read_from_them(record: Record) -> None:
    name = type(record).__name__
    assert golden()[name] == current()[name]
    *numbers, payload = golden()[name].split(",")
    kind, shard, incarnation, term, index = map(int, numbers)
    assert decode(kind, shard, incarnation, term, index, bytes.fromhex(payload)) == record


def test_a_segment_header_is_written_as_the_golden_bytes_and_read_from_them() -> None:
    assert golden()["header"] == current()["header"]
    assert parse_header(bytes.fromhex(golden()["header"]), HEADER.number) == HEADER


def test_a_batch_is_written_as_the_golden_bytes_and_read_from_them() -> None:
    assert golden()["batch"] == current()["batch"]
    content = bytes.fromhex(golden()["batch"])
    found = batch.parse(content, 0, HEADER.nonce)
    assert found is not None
    assert (found.sequence, found.previous_checksum, found.end) == (4567, 0xDEADBEEF, len(content))
    bodies = batch.payloads(content, found)
    read = [
        batch.record_of(row, body) for row, body in zip(found.rows, bodies, strict=True) if body is not None
    ]
    assert read == RECORDS[:2]
    assert [row[4] for row in found.rows] == [41, 42]


def test_a_log_of_golden_bytes_is_recovered() -> None:
    """A segment put together from the golden header and batches, as an older version left it."""
    disk = SimFiles()
    disk.mkdirs("/wal")
    capacity = 4096
    header = Header(1, HEADER.nonce, 1, capacity, b"cluster-id", False)
    created = ShardCreated(SHARD, INCARNATION, "3-2", CONFIGURATION)
    first = Entries(SHARD, INCARNATION, (Entry(LogIndex(1), Term(1), 0, b"payload"),))
    coded = [encode(Inventory(1, False, ())), encode(created), encode(first)]
    rows = [batch.row(each, number) for number, each in enumerate(coded)]
    content, _ = batch.encode(HEADER.nonce, 1, 0, rows, [each[5] for each in coded])
    file = disk.create("/wal/wal-0000000000000001.log", capacity)
    file.write_at(0, encode_header(header) + content)
    _, recovered = Wal.open(disk, "/wal", WalSettings(segment_bytes=capacity), b"cluster-id")
    assert recovered.replicas[SHARD, INCARNATION].entries == list(first.entries)
    assert recovered.replicas[SHARD, INCARNATION].created == created
    assert recovered.damage == []


def test_no_golden_line_was_dropped() -> None:
    assert set(golden()) == set(current())
