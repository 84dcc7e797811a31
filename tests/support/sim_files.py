"""A disk in memory that does what real disks may do: `Files` for tests and the simulator.

Only what was synced is safe. `crash` cuts the power: of each file's unsynced writes a dice-chosen subset
of sectors survives, of each directory's unsynced changes a prefix. `kill` ends the process only: all that
was written stays in the page cache and can still be lost to a later `crash`. Failures are injected with
`fail`, a limit on space with `capacity_bytes`, rot with `flip`, a short file with `cut`; `on_step` is
called before every change and may raise to die right there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from random import Random

from kvstore.files import TEMPORARY, File, Lock, Locked, join, parent

SECTOR_BYTES = 512


class Crashed(BaseException):
    """The process is gone. No code under test may catch it."""


class _Inode:
    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        self.unsynced: list[tuple[int, bytes]] = []

    def write(self, offset: int, content: bytes) -> None:
        _put(self.content, offset, content)
        self.unsynced.append((offset, content))

    def sync(self) -> None:
        if len(self.durable) < len(self.content):
            self.durable.extend(bytes(len(self.content) - len(self.durable)))
        for offset, content in self.unsynced:
            self.durable[offset : offset + len(content)] = content
        self.unsynced.clear()

    def lose_unsynced(self) -> None:
        """A failed sync: the kernel holds the pages for clean, though the disk never got them."""
        self.unsynced.clear()

    def cut_power(self, dice: Random) -> None:
        chance = dice.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        for offset, content in self.unsynced:
            for start, end in _sectors(offset, len(content)):
                if dice.random() < chance:
                    _put(self.durable, start, content[start - offset : end - offset])
        self.unsynced.clear()
        self.content = bytearray(self.durable)


def _put(target: bytearray, offset: int, content: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(content)] = content


def _sectors(offset: int, count: int) -> list[tuple[int, int]]:
    bounds = [offset]
    while bounds[-1] < offset + count:
        bounds.append(min(offset + count, bounds[-1] - bounds[-1] % SECTOR_BYTES + SECTOR_BYTES))
    return list(zip(bounds, bounds[1:], strict=False))


class _Directory:
    """Names as the process sees them, as the disk has them, and the changes between the two."""

    def __init__(self) -> None:
        self.names: dict[str, _Inode] = {}
        self.durable: dict[str, _Inode] = {}
        self.unsynced: list[list[tuple[str, _Inode | None]]] = []

    def change(self, *changes: tuple[str, _Inode | None]) -> None:
        self.unsynced.append(list(changes))
        _apply(self.names, list(changes))

    def sync(self) -> None:
        for changes in self.unsynced:
            _apply(self.durable, changes)
        self.unsynced.clear()

    def cut_power(self, dice: Random) -> None:
        for changes in self.unsynced[: dice.randint(0, len(self.unsynced))]:
            _apply(self.durable, changes)
        self.unsynced.clear()
        self.names = dict(self.durable)


def _apply(names: dict[str, _Inode], changes: list[tuple[str, _Inode | None]]) -> None:
    for name, inode in changes:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


class _Failure:
    def __init__(self, step: str, error: int, after: int, path_part: str) -> None:
        self.step, self.error, self.after, self.path_part = step, error, after, path_part


class SimFile:
    def __init__(self, files: SimFiles, path: str, inode: _Inode) -> None:
        self._files, self._path, self._inode = files, path, inode
        self._life = files.life

    def write_at(self, offset: int, content: bytes) -> None:
        self._check()
        grows = max(0, offset + len(content) - len(self._inode.content))
        if grows > self._files.free_bytes(self._path):
            raise OSError(errno.ENOSPC, "no space left on device", self._path)
        try:
            self._files.step("write", self._path)
        except BaseException:
            # A write that fails, or that a crash cuts short, may have done a part of its work.
            self._inode.write(offset, bytes(content[: len(content) // 2]))
            raise
        self._inode.write(offset, bytes(content))

    def read_at(self, offset: int, count: int) -> bytes:
        self._check()
        return bytes(self._inode.content[offset : offset + count])

    def datasync(self) -> None:
        self._check()
        try:
            self._files.step("datasync", self._path)
        except OSError:
            self._inode.lose_unsynced()
            raise
        self._inode.sync()
        self._files.on_datasync(self._path)

    def close(self) -> None:
        pass

    def _check(self) -> None:
        assert self._life == self._files.life, "a file of a process that is gone"


class _SimLock:
    def __init__(self, files: SimFiles, path: str) -> None:
        self._files, self._path, self._life = files, path, files.life

    def release(self) -> None:
        if self._life == self._files.life:
            self._files.locked.discard(self._path)


class SimFiles:
    def __init__(self, seed: int = 0, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.on_step: Callable[[str, str], None] | None = None
        self.on_datasync: Callable[[str], None] = lambda path: None
        """Told after each completed sync of a file: it may take its time."""
        self.step_count = 0
        self.life = 0
        self.locked: set[str] = set()
        self._directories: dict[str, _Directory] = {}
        self._failures: list[_Failure] = []
        self._entropy = Random(seed)

    # What a test does to the disk.

    def crash(self, dice: Random) -> None:
        """Cut the power. Open files are dead, unsynced work survives by chance."""
        self.kill()
        for path in sorted(self._directories):
            self._directories[path].cut_power(dice)
        for path in sorted(self._directories):
            for name in sorted(self._directories[path].names):
                self._directories[path].names[name].cut_power(dice)

    def kill(self) -> None:
        """End the process; the page cache keeps what was written."""
        self.life += 1
        self.locked.clear()
        self.on_step = None

    def fail(self, step: str, error: int = errno.EIO, *, after: int = 0, path_part: str = "") -> None:
        """Let one coming step fail: `write`, `datasync`, `create`, `rename`, `sync_dir`, `remove`, `read`."""
        self._failures.append(_Failure(step, error, after, path_part))

    def heal(self) -> None:
        """Forget failures that have not come yet."""
        self._failures.clear()

    def flip(self, path: str, offset: int, mask: int = 0xFF) -> None:
        inode = self._inode(path)
        inode.sync()
        inode.content[offset] ^= mask
        inode.durable[offset] ^= mask

    def cut(self, path: str, count: int) -> None:
        inode = self._inode(path)
        inode.sync()
        del inode.content[count:]
        del inode.durable[count:]

    def copy(self) -> SimFiles:
        """An independent disk with the same synced and unsynced state."""
        other = SimFiles(capacity_bytes=self.capacity_bytes)
        other._entropy.setstate(self._entropy.getstate())
        twins: dict[int, _Inode] = {}

        def twin(inode: _Inode) -> _Inode:
            if id(inode) not in twins:
                made = twins[id(inode)] = _Inode()
                made.content, made.durable = bytearray(inode.content), bytearray(inode.durable)
                made.unsynced = list(inode.unsynced)
            return twins[id(inode)]

        for path, directory in self._directories.items():
            made = other._directories[path] = _Directory()
            made.names = {name: twin(inode) for name, inode in directory.names.items()}
            made.durable = {name: twin(inode) for name, inode in directory.durable.items()}
            made.unsynced = [
                [(name, None if inode is None else twin(inode)) for name, inode in changes]
                for changes in directory.unsynced
            ]
        return other

    def step(self, step: str, path: str) -> None:
        self.step_count += 1
        if self.on_step is not None:
            self.on_step(step, path)
        for failure in self._failures:
            if failure.step == step and failure.path_part in path:
                if failure.after > 0:
                    failure.after -= 1
                    continue
                self._failures.remove(failure)
                raise OSError(failure.error, os.strerror(failure.error), path)

    # `Files`.

    def create(self, path: str, allocate_bytes: int = 0) -> File:
        directory, name = self._directory(path), os.path.basename(path)
        if name in directory.names:
            raise FileExistsError(errno.EEXIST, "file exists", path)
        self.step("create", path)
        if allocate_bytes > self.free_bytes(path):
            raise OSError(errno.ENOSPC, "no space left on device", path)
        inode = _Inode()
        inode.content.extend(bytes(allocate_bytes))
        inode.durable.extend(bytes(allocate_bytes))
        directory.change((name, inode))
        return SimFile(self, path, inode)

    def open(self, path: str) -> File:
        return SimFile(self, path, self._inode(path))

    def read(self, path: str) -> bytes:
        inode = self._inode(path)
        self.step("read", path)
        return bytes(inode.content)

    def write_atomic(self, path: str, content: bytes) -> None:
        temporary = path + TEMPORARY
        directory, name = self._directory(temporary), os.path.basename(temporary)
        if name in directory.names:
            directory.change((name, None))
        file = self.create(temporary)
        file.write_at(0, content)
        file.datasync()
        self.rename(temporary, path)
        self.sync_dir(parent(path))

    def rename(self, old: str, new: str) -> None:
        assert parent(old) == parent(new), "rename stays within one directory"
        inode = self._inode(old)
        self.step("rename", new)
        self._directory(old).change((os.path.basename(old), None), (os.path.basename(new), inode))

    def sync_dir(self, path: str) -> None:
        directory = self._directories.get(path)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        self.step("sync_dir", path)
        directory.sync()

    def remove(self, path: str) -> None:
        self._inode(path)
        self.step("remove", path)
        self._directory(path).change((os.path.basename(path), None))

    def remove_tree(self, path: str) -> None:
        for each in sorted(self._directories, reverse=True):
            if each == path or each.startswith(path + "/"):
                for name in list(self._directories[each].names):
                    self.remove(join(each, name))
                self._directories[each].sync()
                del self._directories[each]

    def list(self, path: str) -> list[str]:
        if path not in self._directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        below = {
            each[len(path) + 1 :].split("/")[0] for each in self._directories if each.startswith(path + "/")
        }
        return sorted({*self._directories[path].names, *below})

    def exists(self, path: str) -> bool:
        if path in self._directories:
            return True
        directory = self._directories.get(parent(path))
        return directory is not None and os.path.basename(path) in directory.names

    def byte_count(self, path: str) -> int:
        return len(self._inode(path).content)

    def mkdirs(self, path: str) -> None:
        while path not in self._directories:
            self._directories[path] = _Directory()
            if parent(path) in (path, "."):
                break
            path = parent(path)

    def free_bytes(self, path: str) -> int:
        if self.capacity_bytes is None:
            return 1 << 50
        used = sum(
            len(inode.content)
            for directory in self._directories.values()
            for inode in directory.names.values()
        )
        return max(0, self.capacity_bytes - used)

    def lock(self, path: str) -> Lock:
        if path in self.locked:
            raise Locked(errno.EAGAIN, "held by another process", path)
        if not self.exists(path):
            self.create(path)
        self.locked.add(path)
        return _SimLock(self, path)

    def entropy(self, count: int) -> bytes:
        return self._entropy.randbytes(count)

    def _directory(self, path: str) -> _Directory:
        directory = self._directories.get(parent(path))
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, "no such directory", parent(path))
        return directory

    def _inode(self, path: str) -> _Inode:
        inode = self._directory(path).names.get(os.path.basename(path))
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return inode
