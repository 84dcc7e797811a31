"""Tablets on RocksDB in a real directory, everything else of the disk simulated.

RocksDB does its own I/O, so its tablets cannot live in `SimFiles`. `SplitFiles` sends paths below the
tablets and snapshots of a node to the file system, all others to the simulated disk.

A crash: RocksDB's own log is off, so that what was not flushed lives in the memory of the process only.
`close` would flush it. So the tablet's directory is copied as it is while the database is still open, the
database is closed, and the copy takes the directory's place: what the next life opens is what the dead
one had flushed. A flush syncs its files before it returns, hence a power loss leaves the same. What a thread
was caught at either happens whole or not at all (`SimFiles.step` decides), which is what RocksDB promises
of a flush.

Not simulated here: rot, full disks, torn writes and lost unsynced writes of the tablets themselves.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import Any

from kvstore.files import File, Lock, OsFiles, join
from kvstore.store.rocks import RocksEngine, RocksEngines
from tests.support.sim_files import SimFiles

REAL = ("/data/tablets", "/data/snapshots")


class SplitFiles(SimFiles):
    """`SimFiles`, but for what lies below `REAL`, which lies below `root` instead."""

    def __init__(self, seed: int, root: str) -> None:
        super().__init__(seed)
        self._os = OsFiles()
        self._root = root
        for each in REAL:
            os.makedirs(self.real(each), exist_ok=True)

    @staticmethod
    def is_real(path: str) -> bool:
        return path.startswith(REAL)

    def real(self, path: str) -> str:
        return self._root + path

    def create(self, path: str, allocate_bytes: int = 0) -> File:
        if self.is_real(path):
            return self._os.create(self.real(path), allocate_bytes)
        return super().create(path, allocate_bytes)

    def open(self, path: str) -> File:
        return self._os.open(self.real(path)) if self.is_real(path) else super().open(path)

    def read(self, path: str) -> bytes:
        return self._os.read(self.real(path)) if self.is_real(path) else super().read(path)

    def write_atomic(self, path: str, content: bytes) -> None:
        if self.is_real(path):
            self._os.write_atomic(self.real(path), content)
        else:
            super().write_atomic(path, content)

    def rename(self, old: str, new: str) -> None:
        if self.is_real(old):
            self._os.rename(self.real(old), self.real(new))
        else:
            super().rename(old, new)

    def sync_dir(self, path: str) -> None:
        if not self.is_real(path):
            super().sync_dir(path)

    def remove(self, path: str) -> None:
        if self.is_real(path):
            self._os.remove(self.real(path))
        else:
            super().remove(path)

    def remove_tree(self, path: str) -> None:
        if self.is_real(path):
            self.step("remove", path)
            self._os.remove_tree(self.real(path))
        else:
            super().remove_tree(path)

    def list(self, path: str) -> list[str]:
        return self._os.list(self.real(path)) if self.is_real(path) else super().list(path)

    def exists(self, path: str) -> bool:
        return self._os.exists(self.real(path)) if self.is_real(path) else super().exists(path)

    def byte_count(self, path: str) -> int:
        return self._os.byte_count(self.real(path)) if self.is_real(path) else super().byte_count(path)

    def mkdirs(self, path: str) -> None:
        if self.is_real(path):
            self._os.mkdirs(self.real(path))
        else:
            super().mkdirs(path)

    def lock(self, path: str) -> Lock:
        assert not self.is_real(path), "nothing locks a tablet by `Files`"
        return super().lock(path)


class SimRocksEngine(RocksEngine):
    """Tells its maker what is open; every blocking step may be one at which the process dies."""

    engines: SimRocksEngines

    def flush(self) -> None:
        self.engines.files.step("write", self.directory)
        super().flush()

    def checkpoint(self, directory: str) -> None:
        self.engines.files.step("write", directory)
        super().checkpoint(self.engines.files.real(directory))

    def close(self) -> None:
        self.engines.opened.pop(id(self), None)
        super().close()


class SimRocksEngines(RocksEngines):
    """Opens tablets by the paths the node knows them by."""

    def __init__(self, files: SplitFiles) -> None:
        super().__init__(OsFiles(), block_cache_bytes=4 << 20, write_buffer_bytes=16 << 20)
        self.files = files
        self.opened: dict[int, SimRocksEngine] = {}

    def open(self, directory: str) -> SimRocksEngine:
        real = self.files.real(directory)
        os.makedirs(real, exist_ok=True)
        engine = SimRocksEngine(self, real, self._options())
        self.opened[id(engine)] = engine
        return engine

    def read(self, directory: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return super().read(self.files.real(directory), keys)

    def destroy(self, directory: str) -> None:
        super().destroy(self.files.real(directory))

    def crash(self) -> None:
        """The process is dead: what was only in memory is gone."""
        for engine in list(self.opened.values()):
            directory = engine.directory
            if not os.path.isdir(directory):
                engine.close()
                continue
            copy = directory + "-crashed"
            copy_still(directory, copy)
            engine.close()
            shutil.rmtree(directory)
            os.rename(copy, directory)
        assert not self.opened, "a tablet outlived its process"


def copy_still(directory: str, copy: str) -> None:
    """Copy the files of an open database at one moment: again, if one of them changed meanwhile."""
    while True:
        before = _stand(directory)
        shutil.rmtree(copy, ignore_errors=True)
        os.mkdir(copy)
        try:
            for name, _size in before:
                if name != "LOCK":
                    shutil.copyfile(join(directory, name), join(copy, name))
        except FileNotFoundError:
            continue
        if _stand(directory) == before:
            return


def _stand(directory: str) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for name in sorted(os.listdir(directory)):
        path = join(directory, name)
        if os.path.isfile(path):
            found.append((name, os.path.getsize(path)))
    return found


def put_on_rocksdb(machine: Any, seed: int, root: str) -> None:
    """Let the tablets of one simulated machine live below the real directory `root`."""
    files = SplitFiles(seed, root)
    machine.files = files
    lives: list[SimRocksEngines] = []

    def engines() -> SimRocksEngines:
        lives.append(SimRocksEngines(files))
        return lives[-1]

    def crash() -> None:
        while lives:
            lives.pop().crash()

    machine.engines = engines
    machine.on_death = crash
