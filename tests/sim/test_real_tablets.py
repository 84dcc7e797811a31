"""Tablets on RocksDB in the simulator lose at a crash what RocksDB would lose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.__main__ import run_seed
from tests.sim.real_tablets import SimRocksEngines, SplitFiles


def test_crash_takes_what_was_not_flushed(tmp_path: Path) -> None:
    files = SplitFiles(1, str(tmp_path))
    engines = SimRocksEngines(files)
    tablet = engines.open("/data/tablets/0-1-aa")
    tablet.write({b"flushed": b"1"})
    tablet.flush()
    tablet.write({b"in memory only": b"2"})
    engines.crash()
    after = SimRocksEngines(files).open("/data/tablets/0-1-aa")
    assert after.get_many([b"flushed", b"in memory only"]) == [b"1", None]
    after.close()


def test_paths_of_tablets_are_real_and_all_others_are_not(tmp_path: Path) -> None:
    files = SplitFiles(1, str(tmp_path))
    files.mkdirs("/data/wal")
    for directory in ("/data/wal", "/data/tablets"):
        files.create(f"{directory}/file").close()
        assert files.list(directory) == ["file"]
    assert [each.name for each in (tmp_path / "data").rglob("file")] == ["file"]


@pytest.mark.sim_long
@pytest.mark.parametrize("seed", range(1, 101))
def test_seed_passes_on_rocksdb(seed: int) -> None:
    assert run_seed(seed, on_rocksdb=True).failures == []
