"""What a NORMAL log entry may say, and how it is packed.

An entry's payload is one msgpack array `[clock_ms, command, command, ...]`; a command is
`[identity | None, op, op, ...]`; an op is `[code, ...]`. A command is packed once, on the node that took
the request, and travels from there to every tablet as the same bytes: the leader only concatenates.

| op | shape |
|---|---|
| PUT | `[1, key, value]` or `[1, key, value, options]` |
| DELETE | `[2, key]` or `[2, key, options]` |
| INCR | `[3, key, by, min or None, max or None]` |
| DELETE_RANGE | `[4, start, end or None]` or `[4, start, end or None, options]` |
| LIMITS | `[5, [numbers of StoreLimits]]` |
| EXPIRE | `[6, term, limit]`, see `expiry` |
| 7 to 12 | see `lease_commands` |
| 16 to 20 | see `txn_commands` |
| 24 to 26 | see `lock_commands` |

Options are a map of short names: `content_type: str`, `if_revision: int` (0: must be absent),
`if_absent: True`, `if_present: True`, `prev: True` (give back what was replaced), `ttl_ms: int` (the key
expires so long after the entry's shard clock), `lease: bytes` (its id; if the lease lives on another shard
also `lease_generation: int`, 0 for none, and the not-after `lease_until_ms: int`, see `leases`); a range
delete knows `limit: int` (most keys to delete, in key order).

Codes and shapes are disk and wire format: they only grow. Apply trusts what is in an entry, so whoever
takes bytes from outside must pass them through `check` first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from kvstore.errors import InvalidArgument
from kvstore.store import lease_commands, lock_commands, txn_commands
from kvstore.store.limits import StoreLimits

PUT: Final = 1
DELETE: Final = 2
INCR: Final = 3
DELETE_RANGE: Final = 4
LIMITS: Final = 5
EXPIRE: Final = 6

_SHRINKING: Final = lease_commands.SHRINKING | {
    DELETE,
    DELETE_RANGE,
    EXPIRE,
    txn_commands.DECIDE,
    txn_commands.ASK,
    txn_commands.FINISH,
    lock_commands.LEAVE,
    lock_commands.RENEW,
}
"""What a nearly full disk still takes. What is locked must be let go, or it can never be deleted."""

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
SESSION_BYTES_MAX: Final = 80
PRINCIPAL_BYTES_MAX: Final = 64

Op = list[Any]
Options = Mapping[str, Any]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Makes retries of a command exact. An op is known by (session, sequence, index in the request)."""

    session: bytes
    sequence: int
    first_index: int = 0
    """Index, among the request's ops for this shard, of the command's first op."""
    acked_below: int = 0
    """The client has the answers of all sequences below: their results may go."""
    since_ms: int | None = None
    """Shard clock the client knew when it first tried. Past half a result's lifetime from it, a missing
    result no longer proves that the write did not happen."""
    body_hash: bytes | None = None
    principal: bytes = b""
    """Whose share of the session space this takes: the principal's name, else its address."""


def put(
    key: bytes,
    value: bytes,
    *,
    content_type: str | None = None,
    if_revision: int | None = None,
    if_absent: bool = False,
    if_present: bool = False,
    prev: bool = False,
    ttl_ms: int | None = None,
    lease: bytes | None = None,
) -> Op:
    options: dict[str, Any] = {}
    if content_type is not None:
        options["content_type"] = content_type
    if ttl_ms is not None:
        options["ttl_ms"] = ttl_ms
    if lease is not None:
        options["lease"] = lease
    _add_conditions(options, if_revision, if_present=if_present, prev=prev)
    if if_absent:
        options["if_absent"] = True
    return [PUT, key, value, options] if options else [PUT, key, value]


def delete(key: bytes, *, if_revision: int | None = None, if_present: bool = False, prev: bool = False) -> Op:
    options: dict[str, Any] = {}
    _add_conditions(options, if_revision, if_present=if_present, prev=prev)
    return [DELETE, key, options] if options else [DELETE, key]


def _add_conditions(
    options: dict[str, Any], if_revision: int | None, *, if_present: bool, prev: bool
) -> None:
    if if_revision is not None:
        options["if_revision"] = if_revision
    if if_present:
        options["if_present"] = True
    if prev:
        options["prev"] = True


def incr(key: bytes, by: int = 1, min_value: int | None = None, max_value: int | None = None) -> Op:
    return [INCR, key, by, min_value, max_value]


def delete_range(start: bytes, end: bytes | None, *, limit: int | None = None) -> Op:
    """Delete keys in [start, end); `end` None: to the last key."""
    return [DELETE_RANGE, start, end, {"limit": limit}] if limit is not None else [DELETE_RANGE, start, end]


def set_limits(limits: StoreLimits) -> Op:
    return [LIMITS, list(msgspec.structs.astuple(limits))]


def expire(term: int, limit: int) -> Op:
    """Carry out at most `limit` deadlines that have come. Void in an entry of another term."""
    return [EXPIRE, term, limit]


def encode(identity: Identity | Sequence[Any] | None, ops: Iterable[Op]) -> bytes:
    """Pack one command. `ops` may be empty when an identity only acknowledges."""
    return _encode([identity, *ops])


def decode(command: bytes) -> tuple[Identity | None, list[Op]]:
    parts = _decode(command)
    return (None if parts[0] is None else Identity(*parts[0])), parts[1:]


def grows(command: bytes) -> bool:
    """Whether carrying out the command may need space that a nearly full disk must keep for deletes."""
    _identity, ops = decode(command)
    return any(op[0] not in _SHRINKING for op in ops)


def payload(clock_ms: int, commands: Sequence[bytes]) -> bytes:
    """Payload of a NORMAL entry: the commands' bytes behind the shard clock, nothing packed again."""
    count = len(commands) + 1
    if count < 16:
        head = bytes((0x90 | count,))
    elif count < 1 << 16:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        head = b"\xdd" + count.to_bytes(4, "big")
    return b"".join((head, _encode(clock_ms), *commands))


def clock_of(packed: bytes) -> int:
    """The shard clock that the payload of a NORMAL entry carries."""
    clock_ms: int = _decode(packed)[0]
    return clock_ms


def check(command: bytes) -> None:
    """Refuse a command that `Machine.apply` could not carry out.

    Raises: InvalidArgument, with the first fault in `detail`.
    """
    try:
        parts = _decode(command)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"command is not msgpack: {error}") from None
    if not isinstance(parts, list) or not parts:
        raise InvalidArgument("command is not a list with an identity")
    if parts[0] is not None:
        _check_identity(parts[0])
    elif len(parts) == 1:
        raise InvalidArgument("command has neither identity nor ops")
    for op in parts[1:]:
        if not isinstance(op, list) or not op or op[0] not in _CHECKS:
            raise InvalidArgument("unknown op")
        fault = _CHECKS[op[0]](op)
        if fault:
            raise InvalidArgument(f"op {op[0]}: {fault}")


def _check_identity(parts: Any) -> None:
    try:
        identity = msgspec.convert(parts, Identity)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"identity: {error}") from None
    if not 0 < len(identity.session) <= SESSION_BYTES_MAX:
        raise InvalidArgument(f"identity: session has 1 to {SESSION_BYTES_MAX} bytes")
    if len(identity.principal) > PRINCIPAL_BYTES_MAX:
        raise InvalidArgument(f"identity: principal has at most {PRINCIPAL_BYTES_MAX} bytes")
    for number in (identity.sequence, identity.first_index, identity.acked_below):
        if not 0 <= number <= INT64_MAX:
            raise InvalidArgument("identity: numbers are 0 to 2^63-1")
    if identity.since_ms is not None and not 0 <= identity.since_ms <= INT64_MAX:
        raise InvalidArgument("identity: since is 0 to 2^63-1")


def _is_key(candidate: Any) -> bool:
    return isinstance(candidate, bytes) and len(candidate) > 0


def _is_int64(candidate: Any) -> bool:
    return type(candidate) is int and INT64_MIN <= candidate <= INT64_MAX


_OPTION_KINDS: Final[dict[str, type]] = {
    "content_type": str,
    "if_revision": int,
    "if_absent": bool,
    "if_present": bool,
    "prev": bool,
    "limit": int,
    "ttl_ms": int,
    "lease": bytes,
    "lease_generation": int,
    "lease_until_ms": int,
}


def _options_fault(options: Any, known: tuple[str, ...]) -> str | None:
    if options is None:
        return None
    if not isinstance(options, dict):
        return "options are a map"
    for name, value in options.items():
        if name not in known:
            return f"unknown option {name!r}"
        if type(value) is not _OPTION_KINDS[name]:
            return f"option {name} has the wrong type"
        if type(value) is int and not 0 <= value <= INT64_MAX:
            return f"option {name} is out of range"
    if len(options.get("content_type", "")) > 1024:
        return "content_type has at most 1024 characters"
    return None


_PUT_OPTIONS: Final = (
    "content_type",
    "if_revision",
    "if_absent",
    "if_present",
    "prev",
    "ttl_ms",
    "lease",
    "lease_generation",
    "lease_until_ms",
)


def _put_fault(op: Op) -> str | None:
    if len(op) not in (3, 4) or not _is_key(op[1]) or not isinstance(op[2], bytes):
        return "expected [1, key, value, options]"
    return _options_fault(op[3], _PUT_OPTIONS) or _lease_fault(op[3]) if len(op) == 4 else None


def _lease_fault(options: Any) -> str | None:
    if not options:
        return None
    if "lease" not in options:
        is_odd = "lease_generation" in options or "lease_until_ms" in options
        return "what is said about a lease needs its id" if is_odd else None
    if not 0 < len(options["lease"]) <= lease_commands.ID_BYTES_MAX:
        return f"a lease's id has 1 to {lease_commands.ID_BYTES_MAX} bytes"
    if options.get("lease_generation") and "lease_until_ms" not in options:
        return "a lease of another shard needs a not-after"
    return None


def _delete_fault(op: Op) -> str | None:
    if len(op) not in (2, 3) or not _is_key(op[1]):
        return "expected [2, key, options]"
    return _options_fault(op[2], ("if_revision", "if_present", "prev")) if len(op) == 3 else None


def _incr_fault(op: Op) -> str | None:
    if len(op) != 5 or not _is_key(op[1]):
        return "expected [3, key, by, min, max]"
    if not _is_int64(op[2]) or any(bound is not None and not _is_int64(bound) for bound in op[3:]):
        return "by, min and max are 64-bit integers"
    return None


def _delete_range_fault(op: Op) -> str | None:
    if (
        len(op) not in (3, 4)
        or not isinstance(op[1], bytes)
        or not (op[2] is None or isinstance(op[2], bytes))
    ):
        return "expected [4, start, end, options]"
    return _options_fault(op[3], ("limit",)) if len(op) == 4 else None


def _limits_fault(op: Op) -> str | None:
    if len(op) != 2:
        return "expected [5, limits]"
    try:
        msgspec.convert(op[1], StoreLimits)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _expire_fault(op: Op) -> str | None:
    if len(op) != 3 or not all(type(number) is int and 0 < number <= INT64_MAX for number in op[1:]):
        return "expected [6, term, limit]"
    return None


_CHECKS: Final = {
    PUT: _put_fault,
    DELETE: _delete_fault,
    INCR: _incr_fault,
    DELETE_RANGE: _delete_range_fault,
    LIMITS: _limits_fault,
    EXPIRE: _expire_fault,
    **lease_commands.CHECKS,
    **lock_commands.CHECKS,
    **txn_commands.checks({PUT: _put_fault, DELETE: _delete_fault, INCR: _incr_fault}, _check_identity),
}
