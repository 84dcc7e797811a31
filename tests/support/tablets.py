"""Drives `Machine` by hand: entries with running indexes in, results out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from kvstore.files import OsFiles
from kvstore.raft.messages import CONFIGURATION, EMPTY, NORMAL, Configuration, Entry
from kvstore.store import CommandResult, Engines, Machine, MemoryEngines, RocksEngines, StoreLimits, commands
from kvstore.store.commands import Identity, Op
from kvstore.types import LogIndex, ReplicaId, Term

KIB = 1 << 10
VOTERS = Configuration(voters=(ReplicaId("n1/1"), ReplicaId("n2/1"), ReplicaId("n3/1")))


def make_engines(kind: str) -> Engines:
    if kind == "memory":
        return MemoryEngines(OsFiles())
    return RocksEngines(OsFiles(), block_cache_bytes=256 * KIB, write_buffer_bytes=1 << 20)


class Tablet:
    """One replica's machine and the log it was fed with."""

    def __init__(self, engines: Engines, directory: str, limits: StoreLimits | None = None) -> None:
        self.engines = engines
        self.directory = directory
        self.clock_ms = 1_000
        self.term = 1
        self.log: list[Entry] = []
        self.machine = Machine(engines.open(directory))
        if self.machine.is_empty:
            self.machine.bootstrap(VOTERS)
        self.index = int(self.machine.applied)
        if limits is not None:
            self.run(commands.set_limits(limits))

    def entry(self, packed: Iterable[bytes]) -> Entry:
        return self._append(NORMAL, commands.payload(self.clock_ms, list(packed)))

    def empty_entry(self) -> Entry:
        return self._append(EMPTY, b"")

    def configuration_entry(self, configuration: Configuration) -> Entry:
        return self._append(CONFIGURATION, msgspec.msgpack.encode(configuration))

    def _append(self, kind: int, payload: bytes) -> Entry:
        self.index += 1
        entry = Entry(LogIndex(self.index), Term(self.term), kind, payload)
        self.log.append(entry)
        return entry

    def apply(self, *packed: bytes) -> list[CommandResult]:
        """One entry with these commands."""
        return self.machine.apply([self.entry(packed)])[0]

    def run(self, *ops: Op) -> list[Any]:
        """One unidentified command of these ops in an entry of its own; its results."""
        return self.apply(commands.encode(None, ops))[0].results

    def run_as(self, identity: Identity, *ops: Op) -> CommandResult:
        return self.apply(commands.encode(identity, ops))[0]

    def put(self, key: bytes, value: bytes, **options: Any) -> list[Any]:
        result: list[Any] = self.run(commands.put(key, value, **options))[0]
        return result

    def get(self, key: bytes, revision: int | None = None) -> Any:
        return self.machine.query(["get", key, revision])

    def value(self, key: bytes, revision: int | None = None) -> bytes | None:
        item = self.get(key, revision)
        return None if item is None else item[0]

    def scan(self, start: bytes = b"", end: bytes | None = None, **options: Any) -> list[Any]:
        answer: list[Any] = self.machine.query(["scan", start, end, options])
        return answer

    def reopen(self) -> None:
        """As after a clean stop."""
        self.machine.flush()()
        self.crash()

    def crash(self) -> None:
        """Lose what was not flushed."""
        self.machine.close()
        self.machine = Machine(self.engines.open(self.directory))
        if self.machine.is_empty:
            self.machine.bootstrap(VOTERS)
        self.index = int(self.machine.applied)
        del self.log[self.index :]

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Every record of the tablet."""
        return list(self.machine._engine.scan(b"", b"\xff"))


MakeTablet = Callable[..., Tablet]
