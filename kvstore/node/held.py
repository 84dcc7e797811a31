"""Calls of one replica that a transaction holds up, outside the log, until it is decided.

A write that applied as LOCKED left nothing behind; it waits here, at the leader, and is proposed again when
locks went. A read that met keys about to be written waits for the transactions that it met, not for later
ones: those were not decided when the read was asked, so it may come before them, and no stream of
transactions keeps it waiting for ever. At their deadline both end in `conflict`, which is no result: trying
again is always right (pitfall 35).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kvstore.errors import Overloaded, TxnConflict
from kvstore.node.calls import Call, Stage
from kvstore.store import commands
from kvstore.store.intents import Intents

CALLS_MAX: Final = 4096
BYTES_MAX: Final = 16 << 20
"""Of one replica; more are answered `overloaded`."""
EARLY_S: Final = 0.1
"""A forwarded call gives up so long before its deadline, so that its answer still gets there in time."""


class _HeldRead(NamedTuple):
    call: Call
    writers: frozenset[bytes]


class HeldCalls:
    def __init__(self) -> None:
        self._writes: list[tuple[Call, list[commands.Op]]] = []
        self._reads: list[_HeldRead] = []
        self._byte_count = 0
        self._releases_seen = -1
        self.met_seen = 0
        """What the machine has counted of commands that applied as LOCKED, when it was last looked at."""
        self.has_freed = False
        """Writes went from here into the queue: somebody must propose them."""

    def __len__(self) -> int:
        return len(self._writes) + len(self._reads)

    def __iter__(self) -> Iterator[Call]:
        yield from (call for call, _ in self._writes)
        yield from (held.call for held in self._reads)

    def hold_write(self, call: Call) -> None:
        """Keep a write that has applied as LOCKED."""
        call.stage = Stage.WAITING
        if call.done is not None and self._has_room(call, len(call.payload)):
            self._byte_count += len(call.payload)
            self._writes.append((call, commands.decode(call.payload)[1]))

    def hold_read(self, call: Call, writers: frozenset[bytes]) -> None:
        if self._has_room(call, 0):
            self._reads.append(_HeldRead(call, writers))

    def _has_room(self, call: Call, size: int) -> bool:
        if len(self) < CALLS_MAX and self._byte_count + size <= BYTES_MAX:
            return True
        call.fail(Overloaded(f"{len(self)} requests wait for transactions on this shard", retry_after=1))
        return False

    def is_due(self, intents: Intents) -> bool:
        """Whether locks went since the last look."""
        return bool(self._writes or self._reads) and intents.releases != self._releases_seen

    def take_free(self, intents: Intents) -> tuple[list[Call], list[Call]]:
        """Writes and reads that nothing known holds up any more."""
        self._releases_seen = intents.releases
        writes = [call for call, ops in self._writes if not intents.meets(None, ops)]
        if writes:
            self._keep_writes(lambda call, ops: intents.meets(None, ops))
        reads = [held.call for held in self._reads if not any(map(intents.is_prepared, held.writers))]
        if reads:
            self._reads = [held for held in self._reads if any(map(intents.is_prepared, held.writers))]
        return writes, reads

    def take_writes(self) -> list[Call]:
        """All of them: another replica leads."""
        calls = [call for call, _ in self._writes]
        self._writes, self._byte_count = [], 0
        return calls

    def take_reads(self) -> list[Call]:
        calls = [held.call for held in self._reads]
        self._reads = []
        return calls

    def expire(self, now: float) -> None:
        """Answer who waits no longer, and forget who was answered."""
        for call in self:
            if call.done is not None and now >= call.deadline - (EARLY_S if call.is_forwarded else 0.0):
                call.fail(TxnConflict("a transaction held a key of this request until its deadline"))
        self._reads = [held for held in self._reads if held.call.done is not None]
        self._keep_writes(lambda call, ops: call.done is not None)

    def _keep_writes(self, keeps: Callable[[Call, list[commands.Op]], bool]) -> None:
        self._writes = [(call, ops) for call, ops in self._writes if keeps(call, ops)]
        self._byte_count = sum(len(call.payload) for call, _ in self._writes)
