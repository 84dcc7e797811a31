"""Many independent operations in one request per shard.

The caller's operations keep their order per key: those of one key go to one shard in the order they were
written. Each operation has its own result; one that fails takes nothing else with it. A batch that is
repeated carries the same identity, so that what was applied is answered, not applied again; what one
attempt settled stays settled while the rest is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kvstore.client import codec, op, operations
from kvstore.client.codec import Garbled
from kvstore.client.exchange import Reply
from kvstore.client.op import Operation
from kvstore.client.plan import Call, Kind, is_session_unknown
from kvstore.client.results import DeleteResult, IncrResult, Item, Pending, PutResult
from kvstore.client.routes import Routes
from kvstore.errors import KvError, OutcomeUnknown

T = TypeVar("T")

BATCH_OPS_MAX = 1000
"""Operations in one request; larger batches are sent in pieces."""
BATCH_BYTES_MAX = 512 * 1024
"""Keys and values in one request, unless one operation alone is larger."""


Told = Callable[[int, Any], None]
"""Is told what an operation, by its number, has come to, as soon as that is known; maybe more than once."""


class Batch:
    """Collects operations. Made by `client.batch()`; sent when its block ends without an exception."""

    def __init__(self) -> None:
        self.operations: list[Operation[Any]] = []

    def __len__(self) -> int:
        return len(self.operations)

    def put(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        ttl: float | None = None,
        lease: str | None = None,
        if_revision: int | None = None,
        if_absent: bool = False,
        prev: bool = False,
        content_type: str | None = None,
    ) -> Pending[PutResult]:
        return self.add(
            op.put(
                key,
                value,
                ttl=ttl,
                lease=lease,
                if_revision=if_revision,
                if_absent=if_absent,
                prev=prev,
                content_type=content_type,
            )
        )

    def get(self, key: str | bytes, *, revision: int | None = None) -> Pending[Item | None]:
        return self.add(op.get(key, revision=revision))

    def delete(
        self, key: str | bytes, *, if_revision: int | None = None, prev: bool = False
    ) -> Pending[DeleteResult]:
        return self.add(op.delete(key, if_revision=if_revision, prev=prev))

    def incr(
        self, key: str | bytes, by: int = 1, *, min: int | None = None, max: int | None = None
    ) -> Pending[IncrResult]:
        return self.add(op.incr(key, by, min=min, max=max))

    def add(self, operation: Operation[T]) -> Pending[T]:
        """Add an operation made by `kvstore.client.op`."""
        self.operations.append(operation)
        return operation.pending

    def settle(self) -> None:
        """After sending: raise the gravest error among the operations, `OutcomeUnknown` first."""
        errors = [each.pending.error for each in self.operations]
        failed = [error for error in errors if error is not None]
        if not failed:
            return
        worst = next((error for error in failed if isinstance(error, OutcomeUnknown)), failed[0])
        worst.fields["failed_count"] = len(failed)
        raise worst


class Part:
    """The operations of a batch that travel in one request."""

    def __init__(
        self, members: Sequence[Operation[Any]], *, is_routed: bool, told: Told | None = None
    ) -> None:
        self.members = members
        self._is_routed = is_routed
        self._told = told

    def call(self) -> Call[list[Any]]:
        """Return the request; its result has, for each operation, a result or a KvError."""
        body = codec.pack({"ops": [member.fields for member in self.members]})
        return Call(
            Kind.WRITE if any(member.is_write for member in self.members) else Kind.READ,
            "POST",
            "/v1/batch",
            self._decode,
            body=body,
            headers=(("Content-Type", codec.MSGPACK), operations.ACCEPT_MSGPACK),
            key=self.members[0].key if self._is_routed else None,
            parts=_Parts(self.members, self._told),
        )

    def deliver(self, outcomes: list[Any]) -> None:
        for member, outcome in zip(self.members, outcomes, strict=True):
            if isinstance(outcome, KvError):
                member.pending.fail(outcome)
            else:
                member.pending.resolve(outcome)

    def fail(self, error: KvError) -> None:
        for member in self.members:
            member.pending.fail(error)

    def _decode(self, reply: Reply) -> list[Any]:
        results = codec.document(reply).get("results")
        if not isinstance(results, list) or len(results) != len(self.members):
            raise Garbled(f"expected {len(self.members)} results")
        outcomes = [member.outcome(fields) for member, fields in zip(self.members, results, strict=True)]
        for outcome in outcomes:
            if isinstance(outcome, KvError):
                outcome.request_id = reply.headers.get("kv-request-id")
        return outcomes


class _Parts:
    """Which operations of one request are settled over its attempts (plan.Parts)."""

    def __init__(self, members: Sequence[Operation[Any]], told: Told | None) -> None:
        self._members = members
        self._told = told

    def merge(self, earlier: list[Any] | None, later: list[Any]) -> list[Any]:
        merged = later if earlier is None else self._merged(earlier, later)
        if self._told is not None:
            for number, outcome in enumerate(merged):
                if not _is_open(outcome):
                    self._told(number, outcome)
        return merged

    def _merged(self, earlier: list[Any], later: list[Any]) -> list[Any]:
        open_keys: set[bytes] = set()
        merged = []
        for member, old, new in zip(self._members, earlier, later, strict=True):
            if _is_open(old):
                open_keys.add(member.key)
            # A read that follows an open write of its key has not seen that write yet.
            is_settled = not _is_open(old) and (member.is_write or member.key not in open_keys)
            merged.append(old if is_settled else new)
        return merged

    def unsettled(self, result: list[Any]) -> KvError | None:
        open_errors = [outcome for outcome in result if _is_open(outcome)]
        unknown = (error for error in open_errors if isinstance(error, OutcomeUnknown))
        return next(unknown, open_errors[0] if open_errors else None)

    def is_refused(self, result: list[Any]) -> bool:
        writes = [outcome for member, outcome in zip(self._members, result, strict=True) if member.is_write]
        return bool(writes) and all(is_session_unknown(outcome) for outcome in writes)

    def abandon(self, result: list[Any], *, is_unknown: bool) -> list[Any]:
        return [
            OutcomeUnknown(f"the write may have happened; last answer: {outcome}")
            if is_unknown and member.is_write and _is_open(outcome)
            else outcome
            for member, outcome in zip(self._members, result, strict=True)
        ]


def _is_open(outcome: Any) -> bool:
    """Another attempt may settle it."""
    return isinstance(outcome, OutcomeUnknown) or (isinstance(outcome, KvError) and outcome.retryable)


def divide(members: Sequence[Operation[Any]], routes: Routes) -> list[list[Part]]:
    """Group operations by shard, as far as routes are known, and cut groups to the request limits.

    The lists may be sent side by side; the parts of one list must be sent in order.
    """
    groups: dict[int | None, list[Operation[Any]]] = {}
    for member in members:
        groups.setdefault(routes.shard_of(member.key), []).append(member)
    return [
        [Part(piece, is_routed=shard is not None) for piece in _pieces(group)]
        for shard, group in groups.items()
    ]


def _pieces(group: Sequence[Operation[Any]]) -> list[list[Operation[Any]]]:
    pieces: list[list[Operation[Any]]] = [[]]
    bytes_count = 0
    for member in group:
        is_full = len(pieces[-1]) >= BATCH_OPS_MAX or bytes_count + member.bytes_count > BATCH_BYTES_MAX
        if is_full and pieces[-1]:
            pieces.append([])
            bytes_count = 0
        pieces[-1].append(member)
        bytes_count += member.bytes_count
    return pieces
