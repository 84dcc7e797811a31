"""Transactions: compares on keys, and what is done if they all hold, or else; as one step over all shards.

`commit` says it all at once. `Draft` is the optimistic form: it remembers what was read at which revision
and keeps the writes to itself, until one commit compares the former and does the latter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvstore.client import codec, op, operations
from kvstore.client.codec import Garbled
from kvstore.client.exchange import Reply
from kvstore.client.op import Operation
from kvstore.client.plan import Call, Kind
from kvstore.client.results import Item
from kvstore.errors import Conflict, InvalidArgument, KvError

RERUN_S_MIN = 0.01
RERUN_S_MAX = 0.5


class Compare(NamedTuple):
    """A claim about one key, made by `when`."""

    key: bytes
    subject: str
    relation: str
    operand: int | bytes | str

    def fields(self) -> dict[str, Any]:
        return {"key": self.key, self.subject: {self.relation: self.operand}}


class _Number:
    def __init__(self, key: bytes, subject: str) -> None:
        self._key, self._subject = key, subject

    def eq(self, number: int) -> Compare:
        return Compare(self._key, self._subject, "eq", number)

    def ne(self, number: int) -> Compare:
        return Compare(self._key, self._subject, "ne", number)

    def lt(self, number: int) -> Compare:
        return Compare(self._key, self._subject, "lt", number)

    def le(self, number: int) -> Compare:
        return Compare(self._key, self._subject, "le", number)

    def gt(self, number: int) -> Compare:
        return Compare(self._key, self._subject, "gt", number)

    def ge(self, number: int) -> Compare:
        return Compare(self._key, self._subject, "ge", number)


class _Value:
    def __init__(self, key: bytes) -> None:
        self._key = key

    def eq(self, value: str | bytes) -> Compare:
        return Compare(self._key, "value", "eq", codec.value_bytes(value))

    def ne(self, value: str | bytes) -> Compare:
        return Compare(self._key, "value", "ne", codec.value_bytes(value))

    def lt(self, value: str | bytes) -> Compare:
        return Compare(self._key, "value", "lt", codec.value_bytes(value))

    def le(self, value: str | bytes) -> Compare:
        return Compare(self._key, "value", "le", codec.value_bytes(value))

    def gt(self, value: str | bytes) -> Compare:
        return Compare(self._key, "value", "gt", codec.value_bytes(value))

    def ge(self, value: str | bytes) -> Compare:
        return Compare(self._key, "value", "ge", codec.value_bytes(value))


class When:
    """What can be compared: `when("a").revision.eq(7)`, `.version`, `.create_revision`, `.value`. An absent
    key has revision and version 0; its value differs from every value (`ne`), and compares with none."""

    def __init__(self, key: str | bytes) -> None:
        self._key = codec.key_bytes(key)
        self.value = _Value(self._key)
        self.revision = _Number(self._key, "revision")
        self.create_revision = _Number(self._key, "create_revision")
        self.version = _Number(self._key, "version")

    def absent(self) -> Compare:
        return self.revision.eq(0)

    def exists(self) -> Compare:
        return self.revision.gt(0)


def when(key: str | bytes) -> When:
    """Begin a compare for `commit`."""
    return When(key)


@dataclass(frozen=True, slots=True)
class Committed:
    """What became of a transaction."""

    succeeded: bool
    """All compares held, and `then` was done; False: `otherwise` was done."""
    results: tuple[Any, ...]
    """One for each operation of that list: PutResult, Item or None, DeleteResult, IncrResult."""
    revisions: dict[int, int]
    """New revision of each shard that took part."""
    replayed: bool = False


def commit(
    compares: Sequence[Compare], then: Sequence[Operation[Any]], otherwise: Sequence[Operation[Any]]
) -> Call[Committed]:
    if not compares and not then:
        raise InvalidArgument("a transaction needs a compare or an operation")
    named: list[Compare | Operation[Any]] = [*compares, *then, *otherwise]
    keys = tuple(dict.fromkeys(each.key for each in named))
    body = {
        "if": [compare.fields() for compare in compares],
        "then": [operation.fields for operation in then],
        "else": [operation.fields for operation in otherwise],
    }
    return Call(
        Kind.WRITE if any(each.is_write for each in (*then, *otherwise)) else Kind.READ,
        "POST",
        "/v1/txn",
        lambda reply: _committed(reply, then, otherwise),
        body=codec.pack(body),
        headers=(("Content-Type", codec.MSGPACK), operations.ACCEPT_MSGPACK),
        key=keys[0],
        other_keys=keys[1:],
    )


def _committed(
    reply: Reply, then: Sequence[Operation[Any]], otherwise: Sequence[Operation[Any]]
) -> Committed:
    fields = codec.document(reply)
    succeeded, results = fields.get("succeeded"), fields.get("results")
    done = then if succeeded else otherwise
    if not isinstance(succeeded, bool) or not isinstance(results, list) or len(results) != len(done):
        raise Garbled(f"expected succeeded and {len(done)} results")
    outcomes = tuple(each.outcome(found) for each, found in zip(done, results, strict=True))
    failed = next((outcome for outcome in outcomes if isinstance(outcome, KvError)), None)
    if failed is not None:
        raise failed
    replayed = reply.headers.get("idempotency-replayed") == "true"
    return Committed(succeeded, outcomes, _revisions(fields, reply), replayed)


def _revisions(fields: dict[str, Any], reply: Reply) -> dict[int, int]:
    """The answer of one shard has `revision`, that of several `revisions`."""
    found = fields.get("revisions")
    try:
        if isinstance(found, dict):
            return {int(shard): int(revision) for shard, revision in found.items()}
        shard = reply.headers.get("kv-shard", "")
        if isinstance(fields.get("revision"), int) and shard.isascii() and shard.isdigit():
            return {int(shard): fields["revision"]}
    except (TypeError, ValueError) as error:
        raise Garbled(f"revisions: {error}") from error
    return {}


def read_all(keys: Sequence[bytes]) -> Call[list[Item | None]]:
    """Read several keys at one moment."""
    call = commit([], [op.get(key) for key in keys], [])
    return Call(
        Kind.READ,
        call.method,
        call.target,
        lambda reply: list(call.decode(reply).results),
        body=call.body,
        headers=call.headers,
        key=call.key,
        other_keys=call.other_keys,
    )


class Draft:
    """A transaction in the making: what it has read, and what it is going to write."""

    def __init__(self) -> None:
        self._reads: dict[bytes, Item | None] = {}
        self._writes: dict[bytes, Operation[Any]] = {}
        self.committed: Committed | None = None
        """What came of it; None before its end, and where there was nothing to commit."""

    def put(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        ttl: float | None = None,
        content_type: str | None = None,
    ) -> None:
        """Write the key when the transaction commits."""
        self._write(op.put(key, value, ttl=ttl, content_type=content_type))

    def delete(self, key: str | bytes) -> None:
        """Delete the key when the transaction commits."""
        self._write(op.delete(key))

    def _write(self, operation: Operation[Any]) -> None:
        self._writes[operation.key] = operation

    def _known(self, key: bytes) -> tuple[Item | None] | None:
        """What the transaction has written or read already, or None. What is not written yet has revision
        and version 0."""
        written = self._writes.get(key)
        if written is not None:
            if written.name == "delete":
                return (None,)
            return (Item(key, written.fields["value"], 0, 0, 0),)
        return (self._reads[key],) if key in self._reads else None

    def _unknown(self, keys: Sequence[str | bytes]) -> list[bytes]:
        encoded = dict.fromkeys(codec.key_bytes(key) for key in keys)
        return [key for key in encoded if self._known(key) is None]

    def _remember(self, key: bytes, item: Item | None) -> None:
        self._reads[key] = item

    def _call(self) -> Call[Committed] | None:
        """The commit; None if there is nothing that could be wrong or done."""
        compares = [
            when(key).revision.eq(0 if item is None else item.revision) for key, item in self._reads.items()
        ]
        if not self._writes and len(compares) <= 1:
            return None
        return commit(compares, list(self._writes.values()), [])

    def _settle(self, committed: Committed) -> None:
        self.committed = committed
        if not committed.succeeded:
            raise Conflict("what the transaction has read has changed meanwhile")


def rerun_s(run_count: int, dice: float) -> float:
    """Pause before a transaction is run again: full jitter, under a bound that doubles."""
    return dice * min(RERUN_S_MAX, RERUN_S_MIN * (1 << min(run_count, 10)))
