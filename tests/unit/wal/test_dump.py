"""The dump shows what is there, marks what is damaged, and touches nothing."""

from typing import Any

from kvstore.types import LogIndex
from kvstore.wal import ClockRecord, Quarantined, ShardDestroyed, Truncate, Wal
from kvstore.wal.dump import dump
from tests.support.sim_files import SimFiles
from tests.support.wal_model import IDENTITY, SMALL, created, entries, hard_state, installed, key

LOG = "/data/wal"
PATH = f"{LOG}/wal-0000000000000001.log"


def _disk() -> SimFiles:
    disk = SimFiles()
    wal, _ = Wal.open(disk, LOG, SMALL, IDENTITY)
    wal.append([created(1), created(2), hard_state(1, 3, "n2/1", 4)])
    wal.append([entries(1, 1, 3, payload=b"needle"), ClockRecord(((key(1)[0], 5),))])
    wal.append([Truncate(*key(1), LogIndex(2)), Quarantined(*key(2), "rot"), installed(1, 9, 2, "1-b")])
    wal.append([ShardDestroyed(*key(2))])
    wal.close()
    return disk


def _rows(disk: SimFiles, what: str) -> list[dict[str, Any]]:
    return [row for row in dump(LOG, disk) if row["is"] == what]


def test_every_segment_batch_and_record_is_shown_in_order() -> None:
    disk = _disk()
    (segment,) = _rows(disk, "segment")
    assert segment["identity"] == "cluster/n1"
    assert segment["state"] == "ok"
    assert [row["sequence"] for row in _rows(disk, "batch")] == [1, 2, 3, 4]
    assert {row["state"] for row in _rows(disk, "batch")} == {"ok"}
    records = _rows(disk, "record")
    assert [row["type"] for row in records] == [
        "inventory",
        "shard-created",
        "shard-created",
        "hard-state",
        "entries",
        "clock",
        "truncate",
        "quarantined",
        "snapshot-installed",
        "shard-destroyed",
    ]
    shown = {row["type"]: row for row in records}
    assert (shown["entries"]["first"], shown["entries"]["last"], shown["entries"]["shard"]) == (1, 3, 1)
    assert (shown["hard-state"]["term"], shown["hard-state"]["vote"]) == (3, "n2/1")
    assert (shown["snapshot-installed"]["index"], shown["snapshot-installed"]["directory"]) == (9, "1-b")
    assert shown["truncate"]["index"] == 2
    assert shown["quarantined"]["reason"] == "rot"
    assert shown["clock"]["clocks"] == 1


def test_damaged_payload_is_marked_and_named() -> None:
    disk = _disk()
    disk.flip(PATH, disk.read(PATH).index(b"needle"))
    (damaged,) = [row for row in _rows(disk, "record") if row["state"] != "ok"]
    assert (damaged["type"], damaged["shard"], damaged["state"]) == ("entries", 1, "checksum is wrong")
    assert [row["state"] for row in _rows(disk, "batch")] == ["ok", "damaged", "ok", "ok"]


def test_damaged_table_hides_its_batch_and_the_gap_is_shown() -> None:
    disk = _disk()
    offset = _rows(disk, "batch")[1]["offset"]
    disk.flip(PATH, offset + 50)
    assert [row["sequence"] for row in _rows(disk, "batch")] == [1, 3, 4]
    (gap,) = _rows(disk, "damage")
    assert gap["offset"] == offset
    assert "batches 2 to 2" in gap["state"]


def test_torn_last_batch_is_called_torn() -> None:
    disk = SimFiles()
    wal, _ = Wal.open(disk, LOG, SMALL, IDENTITY)
    wal.append([created(1), entries(1, 1, payload=b"needle")])
    disk.flip(PATH, disk.read(PATH).index(b"needle"))
    assert [row["state"] for row in _rows(disk, "batch")] == ["torn"]


def test_unreadable_and_shortened_segments_are_shown_too() -> None:
    disk = _disk()
    disk.cut(PATH, 3000)
    assert _rows(disk, "segment")[0]["state"] == "1096 bytes are gone"
    disk.cut(PATH, 100)
    (segment,) = list(dump(LOG, disk))
    assert segment["state"] == "unreadable"


def test_damaged_header_does_not_hide_the_batches() -> None:
    disk = _disk()
    disk.flip(PATH, 9)
    assert _rows(disk, "segment")[0]["state"] == "header damaged"
    assert len(_rows(disk, "batch")) == 4


def test_dump_changes_nothing() -> None:
    disk = _disk()
    before, steps = disk.read(PATH), []
    disk.on_step = lambda step, _path: steps.append(step)
    list(dump(LOG, disk))
    assert set(steps) == {"read"}
    assert disk.read(PATH) == before
