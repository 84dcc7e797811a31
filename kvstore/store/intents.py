"""What transactions hold in a tablet: their records, and the locks on keys until they are decided.

| record | content |
|---|---|
| `p` txid | what became of the transaction here: `Prepared`, `Committed` or `Refused` |
| `f` txid | ids of committed transactions, the first in the key too, that all participants have carried out |

The locks are those that the prepared ones name.

A transaction holds the keys that it compares or reads together with others, and those that it writes alone.
Whatever else would touch a held key applies as LOCKED, or waits: `meets` finds it out before a command
does anything.

The objects here only mirror the records, so that a tablet without transactions pays one look at an empty
dict for each command. They are built from the tablet and built anew when a draft fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sized
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from kvstore.store import commands, keys, lock_commands, txn_commands
from kvstore.store.engine import Engine
from kvstore.store.results import LOCKED, CommandResult

if TYPE_CHECKING:
    from kvstore.store.draft import Draft


class Prepared(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Voted yes and holds its keys until the decision."""

    not_after_ms: int
    since_ms: int
    """Shard clock of the vote."""
    participants: list[list[int]]
    """`[shard, not-after in its clock]` of all shards, this one included."""
    then: list[Any]
    otherwise: list[Any]
    vote: list[Any]
    """`[compares hold, fault of then, fault of otherwise]`, a fault being `[index, result]` or None."""
    shared: list[bytes]
    exclusive: list[bytes]
    whose: list[Any] | None


class Committed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Carried out here. Kept at least until all participants have done so."""

    not_after_ms: int
    since_ms: int
    """Shard clock of the decision."""
    participants: list[list[int]]
    result: list[Any]


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A no. It outlives the not-after, past which a prepare is refused anyway."""

    until_ms: int


Record = Prepared | Committed | Refused

KEPT_BYTES_MAX: Final = 4096
"""Open records up to this size stay in memory too."""

decode_record = msgspec.msgpack.Decoder(Record).decode
_encode = msgspec.msgpack.Encoder().encode
_decode_group = msgspec.msgpack.Decoder(list[bytes]).decode


class Lock(NamedTuple):
    is_exclusive: bool
    holders: tuple[bytes, ...]


class Pending(NamedTuple):
    """A transaction that somebody must still bring to its end."""

    since_ms: int
    """Shard clock of the vote, or of the decision."""
    participants: list[list[int]]
    vote: list[Any] | None
    """None: it is committed."""
    branch: bool
    """Of a committed one."""

    @property
    def is_committed(self) -> bool:
        return self.vote is None


class Intents:
    """Mirror of one tablet's locks and open transactions; also how a draft changes them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.releases = 0
        """Grows whenever locks go: who waits for one looks again."""
        self.met = 0
        """Grows with every command that applies as LOCKED."""
        self.reset()

    def reset(self) -> None:
        """Take everything from the tablet."""
        self.releases += 1
        self.locks: dict[bytes, Lock] = {}
        self.exclusive_count = 0
        self.prepared_count = 0
        self.pending: dict[bytes, Pending] = {}
        self._identities: dict[tuple[bytes, int], bytes] = {}
        """Prepared transactions by session and sequence."""
        self._known: dict[bytes, Record | None] = {}
        """Every transaction that has a record; the record itself, if somebody will soon ask for it."""
        for key, packed in self._engine.scan(keys.TXN, keys.TXN_END):
            txid, record = key[1:], decode_record(packed)
            self._mirror(txid, record, len(packed))
            if isinstance(record, Prepared):
                self._lock(txid, record)
        for _, packed in self._engine.scan(keys.FINISHED, keys.FINISHED_END):
            self._settle(_decode_group(packed))

    # ---- records ---------------------------------------------------------------------------------

    def record(self, draft: Draft, txid: bytes) -> Record | None:
        record = self._known.get(txid)
        if record is None and txid in self._known:
            packed = draft.get(keys.TXN + txid)
            assert packed is not None, "a mirrored transaction has no record"
            record = decode_record(packed)
        return record

    def write(self, draft: Draft, txid: bytes, record: Record | None) -> None:
        packed = draft.writes[keys.TXN + txid] = None if record is None else _encode(record)
        self._mirror(txid, record, 0 if packed is None else len(packed))

    def _mirror(self, txid: bytes, record: Record | None, byte_count: int) -> None:
        old = self.pending.pop(txid, None)
        self.prepared_count -= old is not None and not old.is_committed
        if record is None:
            self._known.pop(txid, None)
            return
        self._known[txid] = None
        if isinstance(record, Prepared):
            self.prepared_count += 1
            self.pending[txid] = Pending(record.since_ms, record.participants, record.vote, False)
            if record.whose is not None:
                self._identities[record.whose[0], record.whose[1]] = txid
        elif isinstance(record, Committed):
            self.pending[txid] = Pending(record.since_ms, record.participants, None, record.result[3])
        else:
            return
        if byte_count <= KEPT_BYTES_MAX:
            self._known[txid] = record

    def finish(self, draft: Draft, txids: list[bytes]) -> None:
        """All participants have carried them out: nobody must bring them to an end any more."""
        draft.writes[keys.FINISHED + txids[0]] = _encode(txids)
        self._settle(txids)

    def _settle(self, txids: list[bytes]) -> None:
        for txid in txids:
            del self.pending[txid]
            self._known[txid] = None

    def forget_group(self, draft: Draft, first: bytes) -> None:
        """Remove what is left of a group that `finish` was told of."""
        packed = draft.get(keys.FINISHED + first)
        assert packed is not None, "a group of transactions has no record"
        draft.writes[keys.FINISHED + first] = None
        for txid in _decode_group(packed):
            self.write(draft, txid, None)

    def is_committed(self, txid: bytes) -> bool:
        """Carried out here, and maybe not yet everywhere."""
        pending = self.pending.get(txid)
        return pending is not None and pending.is_committed

    def is_under_way(self, whose: list[Any]) -> bool:
        """Whether the same request is prepared already, under any id."""
        return (whose[0], whose[1]) in self._identities

    # ---- locks -----------------------------------------------------------------------------------

    def hold(self, draft: Draft, txid: bytes, record: Prepared) -> None:
        """Lock a transaction's keys; nobody may stand in the way."""
        self._lock(txid, record)
        self.write(draft, txid, record)

    def _lock(self, txid: bytes, record: Prepared) -> None:
        for key in record.shared:
            lock = self.locks.get(key)
            holders = (txid,) if lock is None else (*lock.holders, txid)
            self._set(key, Lock(False, holders))
        for key in record.exclusive:
            self._set(key, Lock(True, (txid,)))

    def let_go(self, txid: bytes, record: Prepared) -> None:
        """Unlock its keys. The caller writes what becomes of it."""
        for key in (*record.shared, *record.exclusive):
            lock = self.locks[key]
            left = tuple(holder for holder in lock.holders if holder != txid)
            self._set(key, Lock(lock.is_exclusive, left))
        if record.whose is not None:
            self._identities.pop((record.whose[0], record.whose[1]), None)
        self.releases += 1

    def _set(self, key: bytes, lock: Lock) -> None:
        old = self.locks.pop(key, None)
        self.exclusive_count += lock.is_exclusive and bool(lock.holders)
        self.exclusive_count -= old is not None and old.is_exclusive
        if lock.holders:
            self.locks[key] = lock

    def is_blocked(self, shared: Iterable[bytes], exclusive: Iterable[bytes]) -> bool:
        """Whether somebody holds one of these keys in a way that forbids to hold it like this."""
        locks = self.locks
        if any(key in locks for key in exclusive):
            return True
        return bool(self.exclusive_count) and any(key in locks and locks[key].is_exclusive for key in shared)

    def _is_range_held(self, start: bytes, end: bytes | None) -> bool:
        return any(start <= key and (end is None or key < end) for key in self.locks)

    def meets(self, draft: Draft | None, ops: Iterable[commands.Op]) -> bool:
        """Whether one of the ops would touch a held key. Without a draft, as far as can be told from the
        ops alone."""
        for op in ops:
            touches = TOUCHES.get(op[0])
            if touches is not None and touches(self, draft, op):
                return True
        return False

    def locked(self, ops: Sized) -> CommandResult:
        """The answer to a command that meets a held key: nothing of it happened."""
        self.met += 1
        return CommandResult(False, [[LOCKED]] * len(ops))

    # ---- reads -----------------------------------------------------------------------------------

    def writers_met(self, query: Collection[Any]) -> frozenset[bytes]:
        """Transactions whose decision a read of the newest state has to wait for."""
        if not self.exclusive_count:
            return frozenset()
        name, *arguments = query
        if name == "wait":
            return self._writers_of((arguments[0],))
        if name == "get":
            if len(arguments) > 1 and arguments[1] is not None:
                return frozenset()
            return self._writers_of((arguments[0],))
        if name == "gets":
            return self._writers_of(arguments[0])
        if name in ("scan", "count"):
            start, end, options = arguments
            if options.get("revision") is not None:
                return frozenset()
            return self._writers_of(
                [key for key in self.locks if start <= key and (end is None or key < end)]
            )
        return frozenset()

    def oldest_s(self, clock_ms: int) -> float:
        """Age in seconds of the oldest transaction that is prepared and not decided, 0 if there is none."""
        since = [each.since_ms for each in self.pending.values() if not each.is_committed]
        return max(0, clock_ms - min(since)) / 1000 if since else 0.0

    def is_prepared(self, txid: bytes) -> bool:
        pending = self.pending.get(txid)
        return pending is not None and not pending.is_committed

    def _writers_of(self, wanted: Iterable[bytes]) -> frozenset[bytes]:
        held = (self.locks.get(key) for key in wanted)
        return frozenset(lock.holders[0] for lock in held if lock is not None and lock.is_exclusive)


def keys_of(ops: Iterable[commands.Op]) -> tuple[set[bytes], set[bytes]]:
    """Keys that a command would hold together with others, and alone, as far as its ops name them."""
    shared: set[bytes] = set()
    exclusive: set[bytes] = set()
    for op in ops:
        parts = _PARTS.get(op[0])
        if parts is not None:
            read, written = lock_sets(*op[parts])
            shared.update(read)
            exclusive.update(written)
        elif op[0] in _KEYED:
            exclusive.add(op[1])
    return shared, exclusive


def lock_sets(compares: list[Any], then: list[Any], otherwise: list[Any]) -> tuple[list[bytes], list[bytes]]:
    """Keys that a transaction must hold together with others, and alone; both sorted."""
    read = {compare[0] for compare in compares}
    written: set[bytes] = set()
    for op in (*then, *otherwise):
        (read if op[0] == txn_commands.GET else written).add(op[1])
    return sorted(read - written), sorted(written)


_PARTS: Final = {txn_commands.TXN: slice(1, 4), txn_commands.PREPARE: slice(4, 7)}
"""Where an op has its compares and branches."""
_KEYED: Final = frozenset((commands.PUT, commands.DELETE, commands.INCR))

Touches = Callable[[Intents, "Draft | None", commands.Op], bool]


def _key_is_held(intents: Intents, _draft: Draft | None, op: commands.Op) -> bool:
    return op[1] in intents.locks


def _range_is_held(intents: Intents, _draft: Draft | None, op: commands.Op) -> bool:
    return intents._is_range_held(op[1], op[2])


def _parts_are_held(intents: Intents, _draft: Draft | None, op: commands.Op) -> bool:
    return intents.is_blocked(*lock_sets(*op[1:4]))


def _prepare_is_held(intents: Intents, draft: Draft | None, op: commands.Op) -> bool:
    """For its leader, who keeps one that waits. When it is applied it finds out by itself."""
    return draft is None and intents.is_blocked(*lock_sets(*op[4:7]))


TOUCHES: Final[dict[int, Touches]] = {
    commands.PUT: _key_is_held,
    commands.DELETE: _key_is_held,
    commands.INCR: _key_is_held,
    commands.DELETE_RANGE: _range_is_held,
    txn_commands.TXN: _parts_are_held,
    txn_commands.PREPARE: _prepare_is_held,
    lock_commands.ENTER: _key_is_held,
    lock_commands.LEAVE: _key_is_held,
}
"""Whether an op touches a held key. Every op that writes keys must be in here; who must look into the tablet
to know them needs the draft. A decision is not: it lets its keys go first."""
