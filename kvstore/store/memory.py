"""Engine in a sorted dict, for simulation, tests and throw-away clusters.

All of the tablet is one file, `tablet`, rewritten by each flush, so that a crash loses exactly what was
not flushed: the same promise that RocksDB gives with its log off.

File: 8 bytes magic and format, CRC32C of the rest (big-endian), then a msgpack array
`[key, value, key, value, ...]` in key order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import google_crc32c
import msgspec
from sortedcontainers import SortedDict

from kvstore.errors import Corrupt, DiskFull, Fatal
from kvstore.files import Files, is_full, join, read_atomic

MAGIC = b"KVTABLE1"
FILE = "tablet"


class MemoryEngine:
    def __init__(self, engines: MemoryEngines, files: Files, directory: str) -> None:
        self.engines = engines
        self.directory = directory
        self._files = files
        self._pairs: SortedDict[bytes, bytes] = SortedDict(load(files, directory))
        self._bytes = sum(len(key) + len(value) for key, value in self._pairs.items())
        # Held while `_pairs` changes or is copied: flush and checkpoint may run in another thread.
        self._changing = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._pairs.get(key)
        return value

    def get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        return [self._pairs.get(key) for key in keys]

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        if start >= end:
            return
        pairs = self._pairs
        for key in pairs.irange(start, end, inclusive=(True, False), reverse=reverse):
            yield key, pairs[key]

    def write(self, writes: Mapping[bytes, bytes | None]) -> None:
        pairs = self._pairs
        grown = 0
        with self._changing:
            for key, value in writes.items():
                old = pairs.get(key)
                if value is not None:
                    pairs[key] = value
                    grown += len(value) - len(old) if old is not None else len(key) + len(value)
                elif old is not None:
                    del pairs[key]
                    grown -= len(key) + len(old)
        self._bytes += grown

    def flush(self) -> None:
        self._save(self.directory)

    def checkpoint(self, directory: str) -> None:
        self._save(directory)

    def _save(self, directory: str) -> None:
        with self._changing:
            pairs = list(self._pairs.items())
        body = msgspec.msgpack.encode(list(chain.from_iterable(pairs)))
        try:
            self._files.mkdirs(directory)
            self._files.write_atomic(
                join(directory, FILE), MAGIC + google_crc32c.value(body).to_bytes(4, "big") + body
            )
        except OSError as error:
            if is_full(error):
                raise DiskFull(f"no space for tablet {directory}") from error
            raise Fatal(f"cannot write tablet {directory}: {error}") from error

    def byte_count(self) -> int:
        return self._bytes

    def close(self) -> None:
        self._pairs = SortedDict()


def load(files: Files, directory: str) -> dict[bytes, bytes]:
    """Pairs of the tablet in `directory`, none if there is no file.

    Raises: Corrupt.
    """
    path = join(directory, FILE)
    if not files.exists(path):
        return {}
    content = read_atomic(files, path)
    head = len(MAGIC) + 4
    body = content[head:]
    if content[: len(MAGIC)] != MAGIC or int.from_bytes(content[len(MAGIC) : head], "big") != (
        google_crc32c.value(body)
    ):
        raise Corrupt(f"{path} is damaged or of another format")
    flat = msgspec.msgpack.decode(body, type=list[bytes])
    return dict(zip(flat[::2], flat[1::2], strict=True))


class MemoryEngines:
    def __init__(self, files: Files) -> None:
        self._files = files

    def open(self, directory: str) -> MemoryEngine:
        return MemoryEngine(self, self._files, directory)

    def read(self, directory: str, keys: Sequence[bytes]) -> list[bytes | None]:
        pairs = load(self._files, directory)
        return [pairs.get(key) for key in keys]

    def destroy(self, directory: str) -> None:
        self._files.remove_tree(directory)
