"""Operations as values, for batches and transactions.

await kv.commit([when("stock").value.ne("0")], then=[op.incr("stock", -1), op.put("order/7", "ann")])
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from kvstore.client import codec, operations
from kvstore.client.codec import Garbled
from kvstore.client.results import DeleteResult, IncrResult, Item, Pending, PutResult

T = TypeVar("T")

_OP_OVERHEAD_BYTES = 32


class Operation(Generic[T]):
    """One operation: its encoded form, and where its result goes."""

    __slots__ = ("bytes_count", "fields", "key", "name", "pending")

    def __init__(self, name: str, key: str | bytes, fields: dict[str, Any]) -> None:
        self.name = name
        self.key = codec.key_bytes(key)
        self.fields = {"op": name, "key": self.key} | fields
        self.bytes_count = len(self.key) + len(fields.get("value", b"")) + _OP_OVERHEAD_BYTES
        self.pending: Pending[Any] = Pending()

    @property
    def is_write(self) -> bool:
        return self.name != "get"

    def outcome(self, fields: Any) -> Any:
        """Decode one result of an answer: what the operation returns, or its KvError. Raises Garbled."""
        if not isinstance(fields, dict):
            raise Garbled("a result that is not an object")
        status = codec.integer(fields, "status")
        if self.name == "get" and status == 404:
            return None
        if status >= 400:
            return codec.from_fields(fields, status, is_write=self.is_write)
        match self.name:
            case "put":
                return operations.put_result(fields, self.key)
            case "get":
                return codec.item(fields, self.key)
            case "delete":
                return operations.delete_result(fields, self.key)
            case _:
                return operations.incr_result(fields)


def put(
    key: str | bytes,
    value: str | bytes,
    *,
    ttl: float | None = None,
    lease: str | None = None,
    if_revision: int | None = None,
    if_absent: bool = False,
    prev: bool = False,
    content_type: str | None = None,
) -> Operation[PutResult]:
    fields: dict[str, Any] = {"value": codec.value_bytes(value)}
    if ttl is not None:
        fields["ttl"] = codec.milliseconds(ttl)
    if lease is not None:
        fields["lease"] = lease
    if if_revision is not None:
        fields["if_revision"] = if_revision
    if if_absent:
        fields["if_absent"] = True
    if prev:
        fields["prev"] = True
    if content_type is not None:
        fields["content_type"] = content_type
    return Operation("put", key, fields)


def get(key: str | bytes, *, revision: int | None = None) -> Operation[Item | None]:
    return Operation("get", key, {} if revision is None else {"revision": revision})


def delete(
    key: str | bytes, *, if_revision: int | None = None, prev: bool = False
) -> Operation[DeleteResult]:
    fields: dict[str, Any] = {} if if_revision is None else {"if_revision": if_revision}
    if prev:
        fields["prev"] = True
    return Operation("delete", key, fields)


def incr(
    key: str | bytes, by: int = 1, *, min: int | None = None, max: int | None = None
) -> Operation[IncrResult]:
    fields: dict[str, Any] = {"by": by}
    if min is not None:
        fields["min"] = min
    if max is not None:
        fields["max"] = max
    return Operation("incr", key, fields)
