"""The memory engine's file: what a crash, rot or a full disk does to it."""

import errno
from random import Random

import pytest

from kvstore.errors import Corrupt, DiskFull, Fatal
from kvstore.store import MemoryEngines
from kvstore.store.memory import FILE
from tests.support.sim_files import SimFiles


def test_a_crash_loses_exactly_what_was_not_flushed() -> None:
    for seed in range(20):
        files = SimFiles(seed)
        engine = MemoryEngines(files).open("tablets/t")
        engine.write({b"a": b"1", b"b": b"1"})
        engine.flush()
        engine.write({b"a": b"2", b"b": b"2"})
        files.crash(Random(seed))
        again = MemoryEngines(files).open("tablets/t")
        assert list(again.scan(b"", b"\xff")) == [(b"a", b"1"), (b"b", b"1")]


def test_a_checkpoint_survives_a_power_cut() -> None:
    files = SimFiles(1)
    engine = MemoryEngines(files).open("t")
    engine.write({b"a": b"1"})
    engine.checkpoint("copies/c")
    files.crash(Random(1))
    assert MemoryEngines(files).read("copies/c", [b"a"]) == [b"1"]


def test_what_is_opened_is_on_disk_whoever_wrote_it() -> None:
    """The log is cut by what an opened tablet holds; who wrote that may have been killed before its sync."""
    for seed in range(20):
        files = SimFiles(seed)
        engine = MemoryEngines(files).open("tablets/t")
        engine.write({b"a": b"1"})
        files.fail("sync_dir", path_part="tablets/t")
        with pytest.raises(Fatal):
            engine.flush()
        files.kill()
        opened = list(MemoryEngines(files).open("tablets/t").scan(b"", b"\xff"))
        files.crash(Random(seed))
        assert list(MemoryEngines(files).open("tablets/t").scan(b"", b"\xff")) == opened == [(b"a", b"1")]


def test_a_tablet_that_was_never_flushed_is_empty_after_a_crash() -> None:
    files = SimFiles(1)
    MemoryEngines(files).open("t").write({b"a": b"1"})
    files.crash(Random(1))
    assert MemoryEngines(files).open("t").get(b"a") is None


def test_every_flipped_byte_is_noticed() -> None:
    files = SimFiles()
    engine = MemoryEngines(files).open("t")
    engine.write({b"a": b"1", b"bcd": b"234"})
    engine.flush()
    for offset in range(files.byte_count(f"t/{FILE}")):
        files.flip(f"t/{FILE}", offset)
        with pytest.raises(Corrupt):
            MemoryEngines(files).open("t")
        files.flip(f"t/{FILE}", offset)
    assert MemoryEngines(files).open("t").get(b"a") == b"1"


def test_a_full_disk_says_so_and_keeps_the_old_file() -> None:
    files = SimFiles()
    engine = MemoryEngines(files).open("t")
    engine.write({b"a": b"1"})
    engine.flush()
    engine.write({b"a": b"2"})
    for step in ("create", "write"):
        files.fail(step, errno.ENOSPC)
        with pytest.raises(DiskFull):
            engine.flush()
        files.heal()
        assert MemoryEngines(files).open("t").get(b"a") == b"1"
    engine.flush()
    assert MemoryEngines(files).open("t").get(b"a") == b"2"


def test_any_other_failure_is_fatal() -> None:
    files = SimFiles()
    engine = MemoryEngines(files).open("t")
    files.fail("datasync", errno.EIO)
    with pytest.raises(Fatal):
        engine.flush()


def test_byte_count_follows_puts_and_removals() -> None:
    engine = MemoryEngines(SimFiles()).open("t")
    engine.write({b"a": b"123", b"b": b"1"})
    engine.write({b"a": b"1", b"b": None, b"c": None})
    assert engine.byte_count() == 2
