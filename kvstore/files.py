"""Every byte this project writes to a disk by itself goes through `Files`.

It exists so that a test or the simulator can be the disk: lose what was not synced, tear a write into
sectors, fail, fill up, rot (`tests/support/sim_files.py`). RocksDB does its own I/O and is treated as
something that the log can rebuild. All calls block; the loop must not make them on a hot path.

Durability, as POSIX gives it and no more: content is safe after `File.datasync`, a name (created,
renamed or removed) after `sync_dir` of its directory. Failures are the operating system's `OSError`;
a full disk is `errno` ENOSPC or EDQUOT, see `is_full`.
"""

import errno
import fcntl
import os
import shutil
import sys
from typing import Protocol

TEMPORARY = ".tmp"
"""Suffix of a file that `write_atomic` has not finished; a crash may leave one, nobody reads it."""


class Locked(OSError):
    """Another process holds the lock."""


class File(Protocol):
    """An open file. Writes name their offset, so that there is no position to get wrong."""

    def write_at(self, offset: int, content: bytes) -> None:
        """Write all of `content` or raise; what a failed write left behind is unknown."""
        ...

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes, fewer only at the end of the file."""
        ...

    def datasync(self) -> None:
        """Return once everything written so far, and the length, survives a power cut.
        After a failure nothing about unsynced writes is known, and a retry proves nothing."""
        ...

    def close(self) -> None: ...


class Lock(Protocol):
    def release(self) -> None: ...


class Files(Protocol):
    def create(self, path: str, allocate_bytes: int = 0) -> File:
        """Make a new file of `allocate_bytes` zeros whose space is reserved, content synced; the name is
        not, see `sync_dir`. Raises FileExistsError; on any other failure no file is left."""
        ...

    def open(self, path: str) -> File:
        """Open an existing file for reading and writing."""
        ...

    def read(self, path: str) -> bytes:
        """The whole content. Never changes anything, works on a read-only file."""
        ...

    def write_atomic(self, path: str, content: bytes) -> None:
        """Replace the file's content in one step that is durable on return: a crash leaves the old
        content or the new."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Within one directory; replaces `new`. Not durable before `sync_dir`."""
        ...

    def sync_dir(self, path: str) -> None: ...

    def remove(self, path: str) -> None: ...

    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it; absent is fine."""
        ...

    def list(self, path: str) -> list[str]:
        """Names in the directory, sorted."""
        ...

    def exists(self, path: str) -> bool: ...

    def byte_count(self, path: str) -> int: ...

    def mkdirs(self, path: str) -> None:
        """Make the directory and its missing parents, durably; present is fine."""
        ...

    def free_bytes(self, path: str) -> int:
        """Space that this process may still use on the disk that holds `path`."""
        ...

    def lock(self, path: str) -> Lock:
        """Hold `path` (made if absent) until released or the process ends. Raises Locked."""
        ...

    def entropy(self, count: int) -> bytes:
        """Unpredictable bytes, seeded in a simulation."""
        ...


def is_full(error: OSError) -> bool:
    """Whether the disk or the quota had no space left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def read_atomic(files: Files, path: str) -> bytes:
    """What `write_atomic` wrote, durable on return: who was killed right behind its rename has left that to
    the page cache, and what is built on it now must not outlive it."""
    files.sync_dir(parent(path))
    return files.read(path)


def parent(path: str) -> str:
    return os.path.dirname(path) or "."


def join(directory: str, *names: str) -> str:
    return os.path.join(directory, *names)


class OsFile:
    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write_at(self, offset: int, content: bytes) -> None:
        written = os.pwrite(self._descriptor, content, offset)
        while written < len(content):
            count = os.pwrite(self._descriptor, memoryview(content)[written:], offset + written)
            if count == 0:
                raise OSError(errno.EIO, "write made no progress")
            written += count

    def read_at(self, offset: int, count: int) -> bytes:
        parts = []
        while count > 0:
            part = os.pread(self._descriptor, count, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            count -= len(part)
        return b"".join(parts)

    def datasync(self) -> None:
        _datasync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class OsLock:
    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class OsFiles:
    """The real disk."""

    def create(self, path: str, allocate_bytes: int = 0) -> File:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            if allocate_bytes:
                _allocate(descriptor, allocate_bytes)
            os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            os.unlink(path)
            raise
        return OsFile(descriptor)

    def open(self, path: str) -> File:
        return OsFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def write_atomic(self, path: str, content: bytes) -> None:
        temporary = path + TEMPORARY
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        file = OsFile(os.open(temporary, flags, 0o640))
        try:
            file.write_at(0, content)
            file.datasync()
        finally:
            file.close()
        os.replace(temporary, path)
        self.sync_dir(parent(path))

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def sync_dir(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def remove_tree(self, path: str) -> None:
        if os.path.isdir(path):
            shutil.rmtree(path)

    def list(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def byte_count(self, path: str) -> int:
        return os.stat(path).st_size

    def mkdirs(self, path: str) -> None:
        missing: list[str] = []
        directory = path
        while not os.path.isdir(directory):
            missing.append(directory)
            directory = parent(directory)
        for directory in reversed(missing):
            os.makedirs(directory, mode=0o750, exist_ok=True)
            self.sync_dir(parent(directory))

    def free_bytes(self, path: str) -> int:
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize

    def lock(self, path: str) -> Lock:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise Locked(error.errno, "held by another process", path) from None
            raise
        return OsLock(descriptor)

    def entropy(self, count: int) -> bytes:
        return os.urandom(count)


def _allocate(descriptor: int, count: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, count)
        return
    zeros = bytes(1 << 20)
    for offset in range(0, count, len(zeros)):
        os.pwrite(descriptor, zeros[: count - offset], offset)


def _datasync(descriptor: int) -> None:
    if sys.platform == "darwin":
        # fsync on macOS stops at the drive's volatile cache.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)
