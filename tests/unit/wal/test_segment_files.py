"""Making, retiring and reserving files survives being cut short."""

import errno

import pytest

from kvstore.errors import DiskFull
from kvstore.wal.segment import RESERVE_NAME, name_of, parse_header, spare_name_of
from kvstore.wal.segment_files import SegmentFiles, WalSettings
from tests.support.sim_files import SimFiles
from tests.support.wal_model import IDENTITY

LOG = "/d"
SETTINGS = WalSettings(segment_bytes=8192, reserve_bytes=4096)


def _files(disk: SimFiles) -> SegmentFiles:
    disk.mkdirs(LOG)
    return SegmentFiles(disk, LOG, SETTINGS, IDENTITY)


def test_new_segment_has_its_header_synced_before_it_has_its_name() -> None:
    disk = SimFiles()
    segments = _files(disk)
    steps: list[tuple[str, str]] = []
    disk.on_step = lambda step, path: steps.append((step, path.rpartition("/")[2]))
    segment = segments.make(1, 77, 1000, is_own=False)
    new = name_of(1) + ".new"
    assert steps == [
        ("create", new),
        ("write", new),
        ("datasync", new),
        ("rename", name_of(1)),
        ("sync_dir", "d"),
    ]
    header = parse_header(disk.read(f"{LOG}/{name_of(1)}"), 1)
    assert header == segment.header
    assert (header.number, header.first_sequence, header.capacity, header.identity) == (1, 77, 8192, IDENTITY)


def test_every_segment_has_a_nonce_of_its_own() -> None:
    segments = _files(SimFiles())
    assert len({segments.make(number, 1, 0, is_own=False).header.nonce for number in range(1, 9)}) == 8


def test_retired_segments_become_reserve_then_spare_then_nothing() -> None:
    disk = SimFiles()
    segments = _files(disk)
    for number in range(1, 5):
        segments.make(number, number, 0, is_own=False)
    segments.retire()
    assert segments.has_reserve
    segments.retire()
    segments.retire()
    assert disk.list(LOG) == [RESERVE_NAME, spare_name_of(2), name_of(4)]
    assert segments.segments == [(4, 8192)]


def test_spare_is_used_before_new_space_is_asked_for_unless_too_small() -> None:
    disk = SimFiles()
    segments = _files(disk)
    segments.fill_reserve()
    segments.make(1, 1, 0, is_own=False)
    segments.make(2, 2, 0, is_own=False)
    segments.retire()
    large = segments.make(3, 3, 10_000, is_own=False)
    assert large.header.capacity == 10_000
    assert not large.header.is_written_before
    again = segments.make(4, 4, 0, is_own=False)
    assert again.header.is_written_before
    assert disk.list(LOG) == [RESERVE_NAME, name_of(2), name_of(3), name_of(4)]


def test_reserve_serves_the_log_itself_and_nobody_else() -> None:
    disk = SimFiles()
    segments = _files(disk)
    segments.fill_reserve()
    disk.capacity_bytes = 4096
    with pytest.raises(DiskFull):
        segments.make(1, 1, 0, is_own=False)
    assert disk.list(LOG) == [RESERVE_NAME]
    with pytest.raises(DiskFull):
        segments.make(1, 1, 5000, is_own=True)
    segment = segments.make(1, 1, 4096, is_own=True)
    assert segment.header.capacity == 4096
    assert not segments.has_reserve
    segments.fill_reserve()
    assert not segments.has_reserve, "there is no space, and that is no error"
    disk.capacity_bytes = None
    segments.fill_reserve()
    assert segments.has_reserve


def test_disk_that_fails_is_not_taken_for_a_full_one() -> None:
    disk = SimFiles()
    segments = _files(disk)
    for step in ("create", "write", "datasync"):
        disk.fail(step, errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            segments.make(1, 1, 0, is_own=True)
        for name in disk.list(LOG):
            disk.remove(f"{LOG}/{name}")
    disk.fail("create", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        segments.fill_reserve()


def test_leftovers_of_a_crash_are_removed_and_names_made_durable() -> None:
    disk = SimFiles()
    disk.mkdirs(LOG)
    for name in (name_of(3) + ".new", "reserve.log.new", spare_name_of(1), spare_name_of(2)):
        disk.create(f"{LOG}/{name}", 8192)
    for number in (1, 2, 3):
        disk.create(f"{LOG}/{name_of(number)}", 8192)
    segments = _files(disk)
    steps: list[str] = []
    disk.on_step = lambda step, _path: steps.append(step)
    segments.adopt([1, 2, 3], oldest=3)
    assert segments.segments == [(3, 8192)]
    assert disk.list(LOG) == [RESERVE_NAME, spare_name_of(1), name_of(3)]
    assert "sync_dir" in steps
