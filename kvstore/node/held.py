"""Calls of one replica that a transaction holds up, outside the log, until it is decided.

A write that applied as LOCKED left nothing behind; it waits here, at the leader, and is proposed again when
locks went, in the order of arrival. Its keys are *claimed* meanwhile: a prepare that came later and wants
them is turned away, or the first would wait for ever where transactions follow each other closely.

A read that met keys about to be written waits for the transactions that it met, not for later ones: those
were not decided when the read was asked, so it may come before them. At their deadline both end in
`conflict`, which is no result: trying again is always right (pitfall 35).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from kvstore.errors import Overloaded, TxnConflict
from kvstore.node.calls import Call, Stage
from kvstore.store import commands, txn_commands
from kvstore.store.intents import Intents, keys_of

CALLS_MAX: Final = 4096
BYTES_MAX: Final = 16 << 20
"""Of one replica; more are answered `overloaded`."""
EARLY_S: Final = 0.1
"""A forwarded call gives up so long before its deadline, so that its answer still gets there in time."""


class _HeldWrite(NamedTuple):
    call: Call
    ops: list[commands.Op]
    shared: set[bytes]
    exclusive: set[bytes]


class _Claims:
    """Keys that calls wait for."""

    def __init__(self) -> None:
        self._shared: set[bytes] = set()
        self._exclusive: set[bytes] = set()

    def add(self, held: _HeldWrite) -> None:
        self._shared |= held.shared
        self._exclusive |= held.exclusive

    def forbid(self, shared: set[bytes], exclusive: set[bytes]) -> bool:
        """Whether to hold these keys would make somebody wait longer who came first."""
        if not self._exclusive.isdisjoint(shared) or not self._exclusive.isdisjoint(exclusive):
            return True
        return not self._shared.isdisjoint(exclusive)


class _HeldRead(NamedTuple):
    call: Call
    writers: frozenset[bytes]


class HeldCalls:
    def __init__(self) -> None:
        self._writes: list[_HeldWrite] = []
        self._reads: list[_HeldRead] = []
        self._claims = _Claims()
        """Of all held writes."""
        self._byte_count = 0
        self._releases_seen = -1
        self.met_seen = 0
        """What the machine has counted of commands that applied as LOCKED, when it was last looked at."""
        self.has_freed = False
        """Writes went from here into the queue: somebody must propose them."""

    def __len__(self) -> int:
        return len(self._writes) + len(self._reads)

    def __iter__(self) -> Iterator[Call]:
        yield from (held.call for held in self._writes)
        yield from (held.call for held in self._reads)

    def hold_write(self, call: Call) -> None:
        """Keep a write that has applied as LOCKED."""
        call.stage = Stage.WAITING
        if call.done is not None and self._has_room(call, len(call.payload)):
            self._byte_count += len(call.payload)
            ops = commands.decode(call.payload)[1]
            held = _HeldWrite(call, ops, *keys_of(ops))
            self._writes.append(held)
            self._claims.add(held)

    def hold_read(self, call: Call, writers: frozenset[bytes]) -> None:
        if self._has_room(call, 0):
            self._reads.append(_HeldRead(call, writers))

    def _has_room(self, call: Call, size: int) -> bool:
        if len(self) < CALLS_MAX and self._byte_count + size <= BYTES_MAX:
            return True
        call.fail(Overloaded(f"{len(self)} requests wait for transactions on this shard", retry_after=1))
        return False

    def must_stand_back(self, call: Call) -> bool:
        """Whether `call` is a prepare that wants keys for which others wait. If so it was answered, or
        queued behind them if it may wait."""
        if not self._writes:
            return False
        ops = commands.decode(call.payload)[1]
        if not ops or ops[0][0] != txn_commands.PREPARE:
            return False
        if not self._claims.forbid(*keys_of(ops)):
            return False
        if ops[0][8]:
            self.hold_write(call)
        else:
            call.fail(TxnConflict("others wait for a key of this transaction"))
        return True

    def is_due(self, intents: Intents) -> bool:
        """Whether locks went since the last look."""
        return bool(self._writes or self._reads) and intents.releases != self._releases_seen

    def take_free(self, intents: Intents) -> tuple[list[Call], list[Call]]:
        """Writes and reads that nothing known holds up any more."""
        self._releases_seen = intents.releases
        writes, kept, claims = [], [], _Claims()
        for held in self._writes:
            if intents.meets(None, held.ops) or claims.forbid(held.shared, held.exclusive):
                kept.append(held)
            else:
                writes.append(held.call)
            claims.add(held)
        self._keep_writes(kept)
        reads = [held.call for held in self._reads if not any(map(intents.is_prepared, held.writers))]
        if reads:
            self._reads = [held for held in self._reads if any(map(intents.is_prepared, held.writers))]
        return writes, reads

    def take_writes(self) -> list[Call]:
        """All of them: another replica leads."""
        calls = [held.call for held in self._writes]
        self._keep_writes([])
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
        self._keep_writes([held for held in self._writes if held.call.done is not None])

    def _keep_writes(self, kept: list[_HeldWrite]) -> None:
        if len(kept) == len(self._writes):
            return
        self._writes = kept
        self._claims = _Claims()
        for held in kept:
            self._claims.add(held)
        self._byte_count = sum(len(held.call.payload) for held in kept)
