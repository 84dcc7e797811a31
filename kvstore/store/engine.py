"""The ordered key-value engine under one tablet, and the seam between RocksDB and memory.

An engine keeps bytes under bytes in key order, and knows nothing of what they mean. It promises little:

- `write` is atomic: after a crash all of a write is there or nothing of it, and if one is there, so
  are all earlier ones. It is *not* durable; the Raft log is what brings back what a crash took.
- `flush` makes everything written before the call durable. Only below what a flush covered may the Raft
  log be cut.
- `flush` and `checkpoint` block and may run in a thread beside reads and writes. All else belongs to
  one thread.

An engine reports failure as `DiskFull` (nothing of the write is in, the same call may be repeated) or as
`Fatal`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol


class Engine(Protocol):
    directory: str

    @property
    def engines(self) -> Engines:
        """What opened it, and can read its checkpoints."""
        ...

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """Values in the order of `keys`; cheaper than as many `get`."""
        ...

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < end in key order, descending if `reverse`. The iterator must not be
        used after the next `write`."""
        ...

    def write(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Apply all of it as one step; None removes a key, absent or not."""
        ...

    def flush(self) -> None: ...

    def checkpoint(self, directory: str) -> None:
        """Make `directory` (absent, its parent present) a durable copy of a state between two writes that
        is no older than the call."""
        ...

    def byte_count(self) -> int:
        """About how many bytes the tablet takes on disk and in write buffers."""
        ...

    def close(self) -> None:
        """Release files and locks. What was not flushed may be lost."""
        ...


class Engines(Protocol):
    """Opens tablets of one kind that share memory budgets."""

    def open(self, directory: str) -> Engine:
        """Open a tablet, made empty if `directory` is absent or empty."""
        ...

    def read(self, directory: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Look keys up in a tablet that nobody has open, without changing it."""
        ...

    def destroy(self, directory: str) -> None:
        """Remove a closed tablet. Absent is fine."""
        ...
