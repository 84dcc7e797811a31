"""The log on a disk that fails, lies about a sync, or fills up."""

from __future__ import annotations

import errno
from random import Random

import pytest

from kvstore.errors import Corrupt, DiskFull, WalPoisoned
from kvstore.wal import Record, Recovered, Wal
from tests.support.sim_files import Crashed, SimFiles
from tests.support.wal_model import IDENTITY, SMALL, Model, created, entries, hard_state, installed, key

LOG = "/data/wal"


def _open(disk: SimFiles) -> tuple[Wal, Recovered]:
    return Wal.open(disk, LOG, SMALL, IDENTITY)


def _started(disk: SimFiles) -> tuple[Wal, Model]:
    wal, recovered = _open(disk)
    assert recovered.is_new
    model = Model()
    first: list[Record] = [created(0), created(1), hard_state(0, 1), entries(0, 1), entries(1, 1)]
    wal.append(first)
    model.apply(first)
    return wal, model


@pytest.mark.parametrize("step", ["write", "datasync"])
def test_pitfall_11_nothing_is_acknowledged_after_a_failed_write_or_sync(step: str) -> None:
    disk = SimFiles()
    wal, model = _started(disk)
    disk.fail(step, errno.EIO)
    with pytest.raises(WalPoisoned):
        wal.append([entries(0, 2)])
    for _ in range(3):
        with pytest.raises(WalPoisoned, match="no more writes"):
            wal.append([entries(0, 2)])
    with pytest.raises(WalPoisoned):
        wal.reclaim({key(0): entries(0, 2).entries[0].index})
    disk.crash(Random(1))
    unknown = model.copy()
    unknown.apply([entries(0, 2)])
    recovered = _open(disk)[1]
    assert None in (model.difference(recovered), unknown.difference(recovered))


@pytest.mark.parametrize("step", ["create", "rename", "sync_dir"])
def test_failure_while_a_segment_is_made_poisons_too(step: str) -> None:
    disk = SimFiles()
    wal, model = _started(disk)
    disk.fail(step, errno.EIO)

    def fill() -> None:
        for index in range(2, 20):
            records: list[Record] = [entries(0, index, payload=bytes(500))]
            wal.append(records)
            model.apply(records)

    with pytest.raises(WalPoisoned):
        fill()
    with pytest.raises(WalPoisoned):
        wal.append([entries(1, 2)])
    disk.crash(Random(2))
    assert model.difference(_open(disk)[1]) is None


def test_batch_whose_sync_failed_is_durable_once_a_restart_has_found_it() -> None:
    """After the failed sync the kernel holds the pages for clean: a restart reads them, the disk does not
    have them. What the restart finds it must write again before it counts on it."""
    disk = SimFiles()
    wal, model = _started(disk)
    disk.fail("datasync", errno.EIO)
    with pytest.raises(WalPoisoned):
        wal.append([entries(0, 2)])
    disk.kill()
    _, found = _open(disk)
    assert len(found.replicas[key(0)].entries) == 2
    disk.crash(Random(0))
    _, again = _open(disk)
    assert len(again.replicas[key(0)].entries) == 2
    model.apply([entries(0, 2)])
    assert model.difference(again) is None


def test_batch_that_a_killed_process_left_unsynced_is_durable_once_found() -> None:
    disk = SimFiles()
    wal, model = _started(disk)

    def die(step: str, _path: str) -> None:
        if step == "datasync":
            raise Crashed

    disk.on_step = die
    with pytest.raises(Crashed):
        wal.append([entries(1, 2)])
    disk.kill()
    assert len(_open(disk)[1].replicas[key(1)].entries) == 2
    for seed in range(5):
        disk.crash(Random(seed))
        model_after = model.copy()
        model_after.apply([entries(1, 2)])
        assert model_after.difference(_open(disk)[1]) is None


def _fill_disk(wal: Wal, model: Model) -> int:
    for index in range(2, 100):
        records: list[Record] = [entries(0, index, payload=bytes(400))]
        try:
            wal.append(records)
        except DiskFull:
            return index
        model.apply(records)
    raise AssertionError("the disk never filled up")


def test_pitfall_13_full_disk_refuses_batches_and_loses_nothing() -> None:
    disk = SimFiles(capacity_bytes=6 * 4096)
    wal, model = _started(disk)
    index = _fill_disk(wal, model)
    for _ in range(3):
        with pytest.raises(DiskFull):
            wal.append([entries(0, index, payload=bytes(400))])
    restarted = disk.copy()
    restarted.crash(Random(0))
    assert model.difference(_open(restarted)[1]) is None
    disk.capacity_bytes = None
    more: list[Record] = [entries(0, index, payload=bytes(400))]
    wal.append(more)
    model.apply(more)
    disk.crash(Random(0))
    assert model.difference(_open(disk)[1]) is None


def test_full_disk_can_be_reclaimed_out_of_the_reserve() -> None:
    disk = SimFiles(capacity_bytes=6 * 4096)
    wal, model = _started(disk)
    index = _fill_disk(wal, model)
    assert wal.has_reserve
    before = wal.segment_count
    needed = {key(0): entries(0, index - 1).entries[0].index, key(1): entries(1, 1).entries[0].index}
    model.need(needed)
    wal.reclaim(needed)
    assert wal.segment_count < before
    assert wal.has_reserve, "a segment that went became the new reserve"
    more: list[Record] = [entries(0, index, payload=bytes(400)), entries(1, 2)]
    wal.append(more)
    model.apply(more)
    disk.crash(Random(3))
    assert model.difference(_open(disk)[1]) is None


def test_full_disk_does_not_keep_a_damaged_log_from_being_opened_and_quarantined() -> None:
    disk = SimFiles(capacity_bytes=6 * 4096)
    wal, model = _started(disk)
    _fill_disk(wal, model)
    wal.close()
    path = f"{LOG}/wal-0000000000000001.log"
    disk.flip(path, 512 + 40)
    _, recovered = _open(disk)
    assert recovered.replicas[key(1)].quarantined is not None
    assert recovered.damage


def test_header_that_finds_no_space_is_taken_back() -> None:
    """On a file system that copies on write, reserved space may turn out not to be there."""
    disk = SimFiles()
    wal, model = _started(disk)
    disk.fail("write", errno.ENOSPC, path_part="wal-0000000000000002.log.new")

    def fill() -> None:
        for index in range(2, 20):
            records: list[Record] = [entries(0, index, payload=bytes(500))]
            wal.append(records)
            model.apply(records)

    with pytest.raises(DiskFull):
        fill()
    last = model.replicas[key(0)].last
    more: list[Record] = [entries(0, last + 1, payload=bytes(500))]
    wal.append(more)
    model.apply(more)
    disk.crash(Random(0))
    assert model.difference(_open(disk)[1]) is None


def test_log_of_another_node_or_cluster_is_refused_and_named() -> None:
    disk = SimFiles()
    _started(disk)
    before = disk.read(f"{LOG}/wal-0000000000000001.log")
    with pytest.raises(Corrupt, match=r"belongs to 'cluster/n1', not to 'cluster/n2'"):
        Wal.open(disk, LOG, SMALL, b"cluster/n2")
    assert disk.read(f"{LOG}/wal-0000000000000001.log") == before


def _crash_copies(disk: SimFiles, wal: Wal, records: list[Record]) -> list[SimFiles]:
    """What the disk may be after a power cut at each step of an append."""
    copies: list[SimFiles] = []

    def look(_step: str, _path: str) -> None:
        for seed in range(8):
            copies.append(disk.copy())
            copies[-1].crash(Random(seed))

    disk.on_step = look
    wal.append(records)
    disk.on_step = None
    copies.append(disk.copy())
    copies[-1].crash(Random(0))
    return copies


def test_pitfall_36_a_crash_around_a_snapshot_install_leaves_the_old_tablet_and_log_or_the_new() -> None:
    disk = SimFiles()
    wal, model = _started(disk)
    long = bytes(600)
    wal.append([entries(0, 2, 3, payload=long)])
    before, after = set(), set()
    install: list[Record] = [installed(0, 100, 4, "0-1-new"), hard_state(0, 4), entries(0, 101, payload=long)]
    for copy in _crash_copies(disk, wal, install):
        replica = _open(copy)[1].replicas[key(0)]
        assert replica.quarantined is None
        indexes = tuple(each.index for each in replica.entries)
        if replica.installed is None:
            before.add((indexes, replica.hard_state.term))
        else:
            after.add((indexes, replica.hard_state.term, replica.installed.directory))
    assert before == {((1, 2, 3, 4), 1)}
    assert after == {((101,), 4, "0-1-new")}


def test_pitfall_36_the_record_that_names_the_tablet_outlives_its_segment() -> None:
    disk = SimFiles()
    wal, _ = _started(disk)
    wal.append([installed(0, 100, 4, "0-1-new")])
    for index in range(101, 160):
        wal.append([entries(0, index, payload=bytes(400))])
        wal.reclaim({key(0): entries(0, index).entries[0].index})
    assert wal.oldest_segment > 5
    disk.crash(Random(0))
    replica = _open(disk)[1].replicas[key(0)]
    assert replica.installed is not None
    assert (replica.installed.directory, replica.installed.meta.index) == ("0-1-new", 100)
    assert replica.entries[-1].index == 159


@pytest.mark.parametrize("seed", range(4))
def test_pitfall_27_relocated_entries_fill_a_range_and_never_truncate(seed: int) -> None:
    disk = SimFiles(seed)
    wal, _ = _started(disk)
    for index in range(2, 9):
        wal.append([entries(0, index)])
    for index in range(2, 12):
        wal.append([entries(1, index, payload=bytes(600))])
    for index in range(9, 21):
        wal.append([entries(0, index, term=2)])
    needed = {key(0): entries(0, 5).entries[0].index, key(1): entries(1, 12).entries[0].index}
    found = set()

    def look(_step: str, _path: str) -> None:
        copy = disk.copy()
        copy.crash(Random(disk.step_count + seed))
        replica = _open(copy)[1].replicas[key(0)]
        assert replica.quarantined is None
        found.add((tuple(each.index for each in replica.entries)[-16:], replica.entries[-1].term))

    disk.on_step = look
    wal.reclaim(needed)
    look("", "")
    assert wal.oldest_segment > 1
    assert found == {(tuple(range(5, 21)), 2)}
