"""Appending, reopening and counting, on a healthy disk."""

from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import WalPoisoned
from kvstore.files import OsFiles
from kvstore.raft.messages import HardState
from kvstore.types import LogIndex, ReplicaId, Term
from kvstore.wal import ClockRecord, Quarantined, Record, ShardDestroyed, Truncate, Wal, WalSettings
from kvstore.wal.dump import dump
from tests.support.sim_files import Crashed, SimFiles
from tests.support.wal_model import (
    IDENTITY,
    SMALL,
    Chance,
    Model,
    created,
    entries,
    hard_state,
    installed,
    key,
)

LOG = "/data/wal"


def _open(disk: SimFiles) -> Wal:
    return Wal.open(disk, LOG, SMALL, IDENTITY)[0]


def test_new_log_says_that_it_is_new_and_an_empty_old_one_does_not() -> None:
    disk = SimFiles()
    wal, first = Wal.open(disk, LOG, SMALL, IDENTITY)
    assert first.is_new
    assert first.replicas == {}
    wal.close()
    _, second = Wal.open(disk, LOG, SMALL, IDENTITY)
    assert not second.is_new
    assert second.damage == []


def test_what_was_appended_is_recovered() -> None:
    disk = SimFiles()
    wal = _open(disk)
    wal.append([created(1), created(2)])
    wal.append([entries(1, 1, 3), hard_state(1, 4, "n3/1", 2), entries(2, 1)])
    wal.append([Truncate(*key(1), LogIndex(1)), entries(1, 2, term=4), ClockRecord(((key(1)[0], 77),))])
    wal.append([installed(2, 40, 3, "2-1-b"), entries(2, 41, term=3)])
    wal.append([Quarantined(*key(2), "it is rotten")])
    wal.close()
    _, recovered = Wal.open(disk, LOG, SMALL, IDENTITY)
    one, two = recovered.replicas[key(1)], recovered.replicas[key(2)]
    assert [(each.index, each.term) for each in one.entries] == [(1, 1), (2, 4)]
    assert one.hard_state == HardState(Term(4), ReplicaId("n3/1"), LogIndex(2))
    assert one.created == created(1)
    assert [(each.index, each.term) for each in two.entries] == [(41, 3)]
    assert two.installed == installed(2, 40, 3, "2-1-b")
    assert two.quarantined == "it is rotten"
    assert recovered.clocks == {1: 77}
    assert (recovered.torn_bytes, recovered.damage, recovered.has_lost_track) == (0, [], False)


def test_one_append_is_one_write_and_one_sync() -> None:
    disk = SimFiles()
    wal = _open(disk)
    wal.append([created(shard) for shard in range(4)])
    steps: list[str] = []
    disk.on_step = lambda step, _path: steps.append(step)
    wal.append([entries(shard, 1) for shard in range(4)])
    assert steps == ["write", "datasync"]
    count, written = wal.sync_count, wal.bytes_written
    wal.append([entries(0, 2)])
    assert wal.sync_count == count + 1
    assert wal.bytes_written == written + 512


def test_nothing_to_append_is_nothing_written() -> None:
    disk = SimFiles()
    wal = _open(disk)
    before = disk.step_count
    wal.append([])
    assert disk.step_count == before


def test_batch_larger_than_a_segment_gets_one_of_its_own_length() -> None:
    disk = SimFiles()
    wal = _open(disk)
    wal.append([created(1)])
    large: list[Record] = [entries(1, 1, 3, payload=bytes(5000))]
    wal.append(large)
    wal.append([entries(1, 4)])
    wal.close()
    _, recovered = Wal.open(disk, LOG, SMALL, IDENTITY)
    assert [len(each.payload) for each in recovered.replicas[key(1)].entries] == [5000, 5000, 5000, 1]


def test_every_segment_begins_with_an_inventory_also_when_a_crash_left_it_empty() -> None:
    disk = SimFiles()
    _open(disk).append([created(1)])

    def die_after_rename(step: str, _path: str) -> None:
        if step == "sync_dir":
            raise Crashed

    index = 1
    for _ in range(3):
        disk.kill()
        wal = _open(disk)
        disk.on_step = die_after_rename
        with contextlib.suppress(Crashed):
            while True:
                wal.append([entries(1, index, payload=bytes(300))])
                index += 1
    disk.kill()
    _open(disk).append([entries(1, index)])
    rows = list(dump(LOG, disk))
    for position, row in enumerate(rows):
        if row["is"] == "segment" and position + 1 < len(rows):
            assert rows[position + 2]["type"] == "inventory"


def test_closed_log_takes_nothing() -> None:
    wal = _open(SimFiles())
    wal.close()
    wal.close()
    with pytest.raises(WalPoisoned, match="closed"):
        wal.append([created(1)])


def test_destroyed_replica_is_reported_as_such() -> None:
    disk = SimFiles()
    wal = _open(disk)
    wal.append([created(1), entries(1, 1, 3), ShardDestroyed(*key(1))])
    wal.append([created(1, 2)])
    _, recovered = Wal.open(disk, LOG, SMALL, IDENTITY)
    assert recovered.replicas[key(1)].destroyed
    assert recovered.replicas[key(1)].entries == []
    assert not recovered.replicas[key(1, 2)].destroyed


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_sequence_of_batches_reclaims_and_restarts_gives_back_what_the_model_says(dice: Random) -> None:
    disk, model, chance = SimFiles(), Model(), Chance(dice)
    wal = _open(disk)
    for _ in range(30):
        match dice.randrange(6):
            case 0:
                needed = chance.needed(model)
                model.need(needed)
                wal.reclaim(needed)
            case 1:
                wal.close()
                wal, recovered = Wal.open(disk, LOG, SMALL, IDENTITY)
                assert model.difference(recovered) is None
            case _:
                records = chance.batch(model)
                model.apply(records)
                wal.append(records)
    assert model.difference(Wal.open(disk, LOG, SMALL, IDENTITY)[1]) is None


def test_the_log_works_on_a_real_disk(tmp_path: Path) -> None:
    directory = str(tmp_path / "wal")
    settings = WalSettings(segment_bytes=1 << 16, reserve_bytes=1 << 16, zero_ahead_bytes=1 << 14)
    wal, recovered = Wal.open(OsFiles(), directory, settings, IDENTITY)
    assert recovered.is_new
    wal.append([created(1)])
    for index in range(1, 200):
        wal.append([entries(1, index, payload=bytes(1000))])
        if index % 50 == 0:
            wal.reclaim({key(1): LogIndex(index - 5)})
    assert wal.oldest_segment > 1
    assert sum(path.stat().st_size for path in (tmp_path / "wal").iterdir()) <= 6 * 65536
    wal.close()
    _, again = Wal.open(OsFiles(), directory, settings, IDENTITY)
    assert again.replicas[key(1)].entries[-1].index == 199
    assert len(again.replicas[key(1)].entries) >= 54
    assert again.damage == []
