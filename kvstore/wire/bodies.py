"""Bodies of requests with a container: batches and counters, in JSON and in MessagePack.

JSON and MessagePack differ in how they carry bytes, so each operation has two shapes: in JSON a key or
value is text, or base64 under `key_b64`/`value_b64`; in MessagePack it is text or bytes under its own
name, and base64 is understood too (msgspec has no type for "text or bytes": these fields are `Any` and
`bytes_of` checks them). Decoding validates types and unknown fields and names the path.
"""

from __future__ import annotations

import binascii
from typing import Any

import msgspec

from kvstore.errors import InvalidArgument, UnsupportedMedia
from kvstore.wire.api import INT64_MAX, INT64_MIN, HeaderLookup, text_or_base64

_MSGPACK_TYPES = frozenset({"application/msgpack", "application/x-msgpack", "application/vnd.msgpack"})
_JSON_TYPES = frozenset({"application/json", "application/x-www-form-urlencoded", "text/plain"})
"""curl -d sends its bodies as a form; refusing that would only teach people to add a header."""


class JsonPut(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="put", gc=False):
    key: str | None = None
    key_b64: bytes | None = None
    value: str | None = None
    value_b64: bytes | None = None
    if_revision: int | None = None
    if_absent: bool = False
    prev: bool = False
    content_type: str | None = None
    ttl: str | int | float | None = None
    lease: str | None = None


class JsonGet(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="get", gc=False):
    key: str | None = None
    key_b64: bytes | None = None
    revision: int | None = None


class JsonDelete(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="delete", gc=False):
    key: str | None = None
    key_b64: bytes | None = None
    if_revision: int | None = None
    prev: bool = False


class JsonIncr(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="incr", gc=False):
    key: str | None = None
    key_b64: bytes | None = None
    by: int = 1
    min: int | None = None
    max: int | None = None


class PackedPut(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="put", gc=False):
    key: Any = None
    value: Any = None
    key_b64: Any = None
    value_b64: Any = None
    if_revision: int | None = None
    if_absent: bool = False
    prev: bool = False
    content_type: str | None = None
    ttl: str | int | float | None = None
    lease: str | None = None


class PackedGet(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="get", gc=False):
    key: Any = None
    key_b64: Any = None
    revision: int | None = None


class PackedDelete(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="delete", gc=False):
    key: Any = None
    key_b64: Any = None
    if_revision: int | None = None
    prev: bool = False


class PackedIncr(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="incr", gc=False):
    key: Any = None
    key_b64: Any = None
    by: int = 1
    min: int | None = None
    max: int | None = None


class JsonPlainPut(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="put", gc=False):
    """What most puts of a batch are."""

    key: str
    value: str


class PackedPlainPut(msgspec.Struct, forbid_unknown_fields=True, tag_field="op", tag="put", gc=False):
    key: Any
    value: Any


JsonOp = JsonPut | JsonGet | JsonDelete | JsonIncr
PackedOp = PackedPut | PackedGet | PackedDelete | PackedIncr
BatchOp = JsonOp | PackedOp

PUTS = (JsonPut, PackedPut)
GETS = (JsonGet, PackedGet)
DELETES = (JsonDelete, PackedDelete)


class JsonBatch(msgspec.Struct, forbid_unknown_fields=True):
    ops: list[JsonOp]
    shards: list[int] | None = None
    """Where the session's results are acknowledged; only without operations."""


class PackedBatch(msgspec.Struct, forbid_unknown_fields=True):
    ops: list[PackedOp]
    shards: list[int] | None = None


class JsonPlainBatch(msgspec.Struct, forbid_unknown_fields=True):
    ops: list[JsonPlainPut]


class PackedPlainBatch(msgspec.Struct, forbid_unknown_fields=True):
    ops: list[PackedPlainPut]


class IncrBody(msgspec.Struct, forbid_unknown_fields=True):
    """`by` is added; the result must stay within [`min`, `max`] where those are given."""

    by: int = 1
    min: int | None = None
    max: int | None = None


class TransferBody(msgspec.Struct, forbid_unknown_fields=True):
    to: str


class ClaimBody(msgspec.Struct, forbid_unknown_fields=True):
    """Of a lock or an election. `value` is text, in MessagePack also bytes."""

    ttl: str | int | float | None = None
    wait: str | int | float | None = None
    value: Any = None
    value_b64: Any = None


class GrantBody(msgspec.Struct, forbid_unknown_fields=True):
    """Of a lease."""

    ttl: str | int | float | None = None
    id: str | None = None


class KeepaliveBody(msgspec.Struct, forbid_unknown_fields=True):
    leases: list[str]


class RebuildBody(msgspec.Struct, forbid_unknown_fields=True):
    node: str


_json_batch = msgspec.json.Decoder(JsonBatch)
_packed_batch = msgspec.msgpack.Decoder(PackedBatch)
_json_plain_batch = msgspec.json.Decoder(JsonPlainBatch)
_packed_plain_batch = msgspec.msgpack.Decoder(PackedPlainBatch)
_json_incr = msgspec.json.Decoder(IncrBody)
_packed_incr = msgspec.msgpack.Decoder(IncrBody)
_json_transfer = msgspec.json.Decoder(TransferBody)
_packed_transfer = msgspec.msgpack.Decoder(TransferBody)
_json_grant = msgspec.json.Decoder(GrantBody)
_packed_grant = msgspec.msgpack.Decoder(GrantBody)
_json_keepalive = msgspec.json.Decoder(KeepaliveBody)
_packed_keepalive = msgspec.msgpack.Decoder(KeepaliveBody)
_json_claim = msgspec.json.Decoder(ClaimBody)
_packed_claim = msgspec.msgpack.Decoder(ClaimBody)
_json_rebuild = msgspec.json.Decoder(RebuildBody)
_packed_rebuild = msgspec.msgpack.Decoder(RebuildBody)


def is_msgpack(headers: HeaderLookup) -> bool:
    """Whether the body is MessagePack, else JSON. Raises `UnsupportedMedia` for any other type."""
    value = headers.get("Content-Type")
    if value is None:
        return False
    media = value.partition(";")[0].strip().lower()
    if media in _MSGPACK_TYPES:
        return True
    if media in _JSON_TYPES or media.endswith("+json"):
        return False
    raise UnsupportedMedia(f"the body must be application/json or application/msgpack, not {media[:80]!r}")


def decoded(decoder: Any, body: bytes, expected: str) -> Any:
    if not body:
        raise InvalidArgument(f"the body is empty; expected {expected}")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"the body is not {expected}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise InvalidArgument(f"the body cannot be decoded: {error}") from None
    except RecursionError:
        raise InvalidArgument("the body is nested too deeply") from None


def batch_body(headers: HeaderLookup, body: bytes) -> tuple[list[BatchOp], list[int] | None]:
    """The operations, or, where there are none, the shards that are told what is acknowledged."""
    expected = 'an object with a list "ops"'
    decoder: Any = _packed_batch if is_msgpack(headers) else _json_batch
    batch: JsonBatch | PackedBatch = decoded(decoder, body, expected)
    ops: list[BatchOp] = [*batch.ops]
    if ops and batch.shards is not None:
        raise InvalidArgument("$.shards is for a batch without operations")
    return ops, batch.shards


def plain_puts(headers: HeaderLookup, body: bytes) -> list[JsonPlainPut] | list[PackedPlainPut] | None:
    """The operations of a batch of nothing but puts without options, whose keys and values are still to be
    checked; None if it is anything else or nothing that can be understood."""
    decoder: Any = _packed_plain_batch if is_msgpack(headers) else _json_plain_batch
    try:
        puts: list[JsonPlainPut] | list[PackedPlainPut] = decoder.decode(body).ops
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):
        return None
    return puts or None


def incr_body(headers: HeaderLookup, body: bytes) -> IncrBody:
    """An empty body means: by one, without bounds."""
    if not body:
        return IncrBody()
    decoder: Any = _packed_incr if is_msgpack(headers) else _json_incr
    parsed: IncrBody = decoded(decoder, body, 'an object with "by", "min", "max"')
    check_incr(parsed.by, parsed.min, parsed.max, "$")
    return parsed


def transfer_body(headers: HeaderLookup, body: bytes) -> TransferBody:
    decoder: Any = _packed_transfer if is_msgpack(headers) else _json_transfer
    parsed: TransferBody = decoded(decoder, body, 'an object with "to", the node that shall lead')
    return parsed


def claim_body(headers: HeaderLookup, body: bytes) -> ClaimBody:
    decoder: Any = _packed_claim if is_msgpack(headers) else _json_claim
    parsed: ClaimBody = decoded(decoder, body, 'an object with "ttl", and possibly "wait" and "value"')
    return parsed


def grant_body(headers: HeaderLookup, body: bytes) -> GrantBody:
    decoder: Any = _packed_grant if is_msgpack(headers) else _json_grant
    parsed: GrantBody = decoded(decoder, body, 'an object with "ttl", and possibly "id"')
    return parsed


def keepalive_body(headers: HeaderLookup, body: bytes) -> KeepaliveBody:
    decoder: Any = _packed_keepalive if is_msgpack(headers) else _json_keepalive
    parsed: KeepaliveBody = decoded(decoder, body, 'an object with "leases", a list of ids')
    return parsed


def rebuild_body(headers: HeaderLookup, body: bytes) -> RebuildBody:
    decoder: Any = _packed_rebuild if is_msgpack(headers) else _json_rebuild
    parsed: RebuildBody = decoded(decoder, body, 'an object with "node", whose replica is lost')
    return parsed


def check_incr(by: int, low: int | None, high: int | None, where: str) -> None:
    for name, number in (("by", by), ("min", low), ("max", high)):
        if number is not None and not INT64_MIN <= number <= INT64_MAX:
            raise InvalidArgument(f"{where}.{name} must be a 64-bit integer")
    if low is not None and high is not None and low > high:
        raise InvalidArgument(f"{where}.min is above {where}.max")


def check_revision(revision: int, where: str) -> int:
    if 0 <= revision <= INT64_MAX:
        return revision
    raise InvalidArgument(f"{where} must be an integer from 0 to {INT64_MAX}")


def bytes_of(plain: Any, encoded: Any, name: str, where: str) -> bytes:
    """The bytes given as `name` or as `name_b64`, of which there must be exactly one."""
    if encoded is None:
        if type(plain) is bytes:
            return plain
        if type(plain) is str:
            return _utf8(plain, f"{where}.{name}")
        if plain is None:
            raise InvalidArgument(f"{where} needs {name!r} or '{name}_b64'")
        raise InvalidArgument(f"Expected text or bytes - at `{where}.{name}`")
    if plain is not None:
        raise InvalidArgument(f"{where} gives both {name!r} and '{name}_b64'; expected one of them")
    if type(encoded) is bytes:
        return encoded
    if type(encoded) is str:
        return _base64(encoded, f"{where}.{name}_b64")
    raise InvalidArgument(f"Expected base64 - at `{where}.{name}_b64`")


def _utf8(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{where} holds half of a surrogate pair; send bytes as base64") from None


def _base64(text: str, where: str) -> bytes:
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        raise InvalidArgument(f"{where} is not base64") from None


def named_bytes(name: str, value: bytes, into: dict[str, Any]) -> None:
    """Put bytes into a JSON object: as text where they are UTF-8, else as base64 under `name_b64`."""
    try:
        into[name] = value.decode()
    except UnicodeDecodeError:
        into[name + "_b64"] = text_or_base64(value)
