"""Ops of leases and their checks: a part of `commands`, which says what an entry may hold.

| op | shape |
|---|---|
| GRANT | `[7, id, ttl_ms]` |
| RENEW | `[8, [id, ...]]` |
| REVOKE | `[9, id, generation]`; generation 0: the caller found no such lease |
| ATTACH | `[10, id, generation, shard]`, at home: keys of the grant may lie on that shard |
| ENDED | `[11, [[id, generation, kind], ...], limit]`, at a key's shard: delete at most so many keys |
| SHARD_DONE | `[12, [[generation, shard], ...]]`, at home: that shard has no keys of the grant any more |

What they do is in `leases` and `lease_ends`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

GRANT: Final = 7
RENEW: Final = 8
REVOKE: Final = 9
ATTACH: Final = 10
ENDED: Final = 11
SHARD_DONE: Final = 12

SHRINKING: Final = frozenset((RENEW, REVOKE, ENDED, SHARD_DONE))
"""A nearly full disk must not end leases that are kept alive."""

ID_BYTES_MAX: Final = 128
SHARD_MAX: Final = (1 << 32) - 1
_NUMBER_MAX: Final = (1 << 63) - 1

pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder().decode


def grant(lease_id: bytes, ttl_ms: int) -> list[Any]:
    return [GRANT, lease_id, ttl_ms]


def renew(lease_ids: list[bytes]) -> list[Any]:
    return [RENEW, lease_ids]


def revoke(lease_id: bytes, generation: int) -> list[Any]:
    return [REVOKE, lease_id, generation]


def attach(lease_id: bytes, generation: int, shard: int) -> list[Any]:
    return [ATTACH, lease_id, generation, shard]


def ended(grants: list[list[Any]], limit: int) -> list[Any]:
    """`grants` are `[id, generation, kind]`."""
    return [ENDED, grants, limit]


def shard_done(done: list[list[int]]) -> list[Any]:
    """`done` are `[generation, shard]`."""
    return [SHARD_DONE, done]


def _is_id(candidate: Any) -> bool:
    return isinstance(candidate, bytes) and 0 < len(candidate) <= ID_BYTES_MAX


def _is_number(candidate: Any, low: int = 0, high: int = _NUMBER_MAX) -> bool:
    return type(candidate) is int and low <= candidate <= high


def _grant_fault(op: list[Any]) -> str | None:
    if len(op) != 3 or not _is_id(op[1]) or not _is_number(op[2], 1):
        return "expected [7, id, ttl_ms]"
    return None


def _renew_fault(op: list[Any]) -> str | None:
    if len(op) != 2 or not isinstance(op[1], list) or not all(map(_is_id, op[1])):
        return "expected [8, [id, ...]]"
    return None


def _revoke_fault(op: list[Any]) -> str | None:
    if len(op) != 3 or not _is_id(op[1]) or not _is_number(op[2]):
        return "expected [9, id, generation]"
    return None


def _attach_fault(op: list[Any]) -> str | None:
    if len(op) != 4 or not _is_id(op[1]) or not _is_number(op[2], 1) or not _is_number(op[3], 0, SHARD_MAX):
        return "expected [10, id, generation, shard]"
    return None


def _is_ended(candidate: Any) -> bool:
    return (
        isinstance(candidate, list)
        and len(candidate) == 3
        and _is_id(candidate[0])
        and _is_number(candidate[1], 1)
        and _is_number(candidate[2], 1, 2)
    )


def _ended_fault(op: list[Any]) -> str | None:
    if len(op) != 3 or not isinstance(op[1], list) or not all(map(_is_ended, op[1])):
        return "expected [11, [[id, generation, kind], ...], limit]"
    return None if _is_number(op[2], 1) else "the limit is 1 or more"


def _is_done(candidate: Any) -> bool:
    return (
        isinstance(candidate, list)
        and len(candidate) == 2
        and _is_number(candidate[0], 1)
        and _is_number(candidate[1], 0, SHARD_MAX)
    )


def _shard_done_fault(op: list[Any]) -> str | None:
    if len(op) != 2 or not isinstance(op[1], list) or not all(map(_is_done, op[1])):
        return "expected [12, [[generation, shard], ...]]"
    return None


CHECKS: Final = {
    GRANT: _grant_fault,
    RENEW: _renew_fault,
    REVOKE: _revoke_fault,
    ATTACH: _attach_fault,
    ENDED: _ended_fault,
    SHARD_DONE: _shard_done_fault,
}
