"""`OsFiles` on a real disk and `SimFiles` in memory keep the same promises, and what may break, breaks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from kvstore.files import Files, Locked, OsFiles, is_full, join, parent
from tests.support.sim_files import Crashed, SimFiles


@pytest.fixture(params=["os", "sim"])
def files(request: pytest.FixtureRequest) -> Files:
    return OsFiles() if request.param == "os" else SimFiles()


@pytest.fixture
def directory(files: Files, tmp_path: Path) -> str:
    path = str(tmp_path / "data")
    files.mkdirs(path)
    return path


def test_created_file_is_zeros_of_the_length_asked_for(files: Files, directory: str) -> None:
    path = join(directory, "a")
    file = files.create(path, 5000)
    assert file.read_at(0, 6000) == bytes(5000)
    assert files.byte_count(path) == 5000
    file.close()


def test_creating_a_file_that_exists_is_refused(files: Files, directory: str) -> None:
    files.create(join(directory, "a")).close()
    with pytest.raises(FileExistsError):
        files.create(join(directory, "a"))


def test_writes_go_where_their_offset_says(files: Files, directory: str) -> None:
    path = join(directory, "a")
    file = files.create(path)
    file.write_at(3, b"def")
    file.write_at(0, b"abc")
    file.write_at(8, b"i")
    file.datasync()
    file.close()
    assert files.read(path) == b"abcdef\0\0i"
    again = files.open(path)
    assert again.read_at(4, 3) == b"ef\0"
    assert again.read_at(7, 100) == b"\0i"
    assert again.read_at(50, 1) == b""
    again.close()


def test_atomic_write_replaces_the_whole_content_and_leaves_nothing_else(
    files: Files, directory: str
) -> None:
    path = join(directory, "identity")
    files.write_atomic(path, b"a long first content")
    files.write_atomic(path, b"second")
    assert files.read(path) == b"second"
    assert files.list(directory) == ["identity"]


def test_atomic_write_gets_over_a_temporary_file_that_a_crash_left(files: Files, directory: str) -> None:
    files.create(join(directory, "identity.tmp"), 100).close()
    files.write_atomic(join(directory, "identity"), b"new")
    assert files.read(join(directory, "identity")) == b"new"


def test_rename_replaces_and_remove_removes(files: Files, directory: str) -> None:
    files.write_atomic(join(directory, "a"), b"a")
    files.write_atomic(join(directory, "b"), b"b")
    files.rename(join(directory, "a"), join(directory, "b"))
    files.sync_dir(directory)
    assert files.list(directory) == ["b"]
    assert files.read(join(directory, "b")) == b"a"
    files.remove(join(directory, "b"))
    assert files.list(directory) == []
    assert not files.exists(join(directory, "b"))


def test_trees_are_made_listed_in_order_and_removed_whole(files: Files, directory: str) -> None:
    tablet = join(directory, "tablets", "1-1", "part")
    files.mkdirs(tablet)
    files.mkdirs(tablet)
    files.write_atomic(join(tablet, "z"), b"z")
    files.write_atomic(join(tablet, "a"), b"a")
    assert files.list(tablet) == ["a", "z"]
    assert files.list(directory) == ["tablets"]
    files.remove_tree(join(directory, "tablets"))
    files.remove_tree(join(directory, "tablets"))
    assert files.list(directory) == []


def test_what_is_not_there_is_not_found(files: Files, directory: str) -> None:
    missing = join(directory, "missing")
    assert not files.exists(missing)
    for call in (files.open, files.read, files.remove, files.byte_count, files.list, files.sync_dir):
        with pytest.raises(FileNotFoundError):
            call(missing)


def test_lock_is_held_by_one_until_released(files: Files, directory: str) -> None:
    lock = files.lock(join(directory, "lock"))
    with pytest.raises(Locked):
        files.lock(join(directory, "lock"))
    lock.release()
    files.lock(join(directory, "lock")).release()


def test_entropy_has_the_length_asked_for_and_differs(files: Files) -> None:
    assert len({files.entropy(16) for _ in range(10)}) == 10
    assert all(len(files.entropy(count)) == count for count in (0, 1, 8))


def test_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    code = f"""
import os
from kvstore.files import OsFiles
OsFiles().lock({path!r})
print("held", flush=True)
input()
os._exit(9)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=os.getcwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(Locked):
        OsFiles().lock(path)
    process.communicate(b"\n")
    OsFiles().lock(path).release()


def test_file_that_finds_no_space_is_not_left_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "big")
    with pytest.raises(OSError, match=r"too large|[Nn]o space"):
        OsFiles().create(path, 1 << 60)
    assert not os.path.exists(path)


def test_free_bytes_are_positive_and_parents_are_named() -> None:
    assert OsFiles().free_bytes(".") > 0
    assert (parent("/a/b"), parent("b")) == ("/a", ".")


def test_only_full_disk_and_quota_count_as_full() -> None:
    assert is_full(OSError(errno.ENOSPC, ""))
    assert is_full(OSError(errno.EDQUOT, ""))
    assert not is_full(OSError(errno.EIO, ""))


class TestSimulatedPowerCut:
    def test_synced_content_and_names_survive(self) -> None:
        disk = _disk()
        disk.write_atomic("/d/a", b"kept")
        for seed in range(20):
            disk.crash(Random(seed))
            assert disk.read("/d/a") == b"kept"

    def test_unsynced_sectors_survive_in_any_subset(self) -> None:
        seen = set()
        for seed in range(200):
            disk = _disk()
            file = disk.create("/d/a", 1536)
            disk.sync_dir("/d")
            file.write_at(0, b"x" * 1536)
            disk.crash(Random(seed))
            content = disk.read("/d/a")
            seen.add(tuple(content[offset : offset + 1] for offset in (0, 512, 1024)))
        assert len(seen) == 8

    def test_unsynced_name_may_be_lost_or_kept(self) -> None:
        seen = set()
        for seed in range(20):
            disk = _disk()
            disk.create("/d/a", 10)
            disk.crash(Random(seed))
            seen.add(disk.exists("/d/a"))
        assert seen == {True, False}

    def test_rename_without_sync_leaves_old_or_new_never_both(self) -> None:
        seen = set()
        for seed in range(20):
            disk = _disk()
            disk.write_atomic("/d/a", b"a")
            disk.rename("/d/a", "/d/b")
            disk.crash(Random(seed))
            seen.add(tuple(disk.list("/d")))
        assert seen == {("a",), ("b",)}

    def test_atomic_write_leaves_old_or_new_at_any_step(self) -> None:
        disk = _disk()
        disk.write_atomic("/d/a", b"old")
        seen = set()

        def look(_step: str, _path: str) -> None:
            for seed in range(4):
                copy = disk.copy()
                copy.crash(Random(seed))
                seen.add(copy.read("/d/a"))

        disk.on_step = look
        disk.write_atomic("/d/a", b"new")
        assert seen == {b"old", b"new"}
        disk.crash(Random(0))
        assert disk.read("/d/a") == b"new"

    def test_killed_process_leaves_its_writes_in_the_page_cache(self) -> None:
        disk = _disk()
        file = disk.create("/d/a", 4)
        file.write_at(0, b"abcd")
        disk.kill()
        assert disk.read("/d/a") == b"abcd"
        with pytest.raises(AssertionError, match="process that is gone"):
            file.write_at(0, b"x")

    def test_failed_sync_loses_the_writes_though_they_can_still_be_read(self) -> None:
        disk = _disk()
        file = disk.create("/d/a", 4)
        disk.sync_dir("/d")
        file.write_at(0, b"abcd")
        disk.fail("datasync")
        with pytest.raises(OSError, match="Input/output"):
            file.datasync()
        file.datasync()
        assert disk.read("/d/a") == b"abcd"
        disk.crash(Random(0))
        assert disk.read("/d/a") == bytes(4)

    def test_step_hook_can_end_the_process_between_any_two_changes(self) -> None:
        disk = _disk()

        def die(step: str, _path: str) -> None:
            if step == "rename":
                raise Crashed

        disk.on_step = die
        with pytest.raises(Crashed):
            disk.write_atomic("/d/a", b"new")
        disk.kill()
        assert disk.list("/d") == ["a.tmp"]

    def test_space_is_bounded(self) -> None:
        disk = SimFiles(capacity_bytes=1000)
        disk.mkdirs("/d")
        file = disk.create("/d/a", 600)
        with pytest.raises(OSError, match="no space"):
            disk.create("/d/b", 600)
        with pytest.raises(OSError, match="no space"):
            file.write_at(600, bytes(600))
        file.write_at(0, bytes(600))
        disk.remove("/d/a")
        disk.create("/d/b", 600)


def _disk() -> SimFiles:
    disk = SimFiles()
    disk.mkdirs("/d")
    return disk
