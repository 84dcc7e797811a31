"""Ops of the lock queue (`lock_queue`): enter, leave, renew.

| op | shape |
|---|---|
| ENTER | `[24, name, claim, attempt, ttl_ms, wait_ms, not_after_ms, value]` |
| LEAVE | `[25, name, claim, attempt, not_after_ms or None, keeps_grant]` |
| RENEW | `[26, name, claim]` |

`name` is the key that shows the holder, `_locks/NAME` or `_elections/NAME`. `claim` is chosen by the node
that takes the request and is the same for all repetitions of that request; it is also the token by which
its holder renews and releases. An *attempt* is one arrival of the request at one node; `attempt` is a
random number. All three ops may be applied any number of times, late or out of order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

ENTER: Final = 24
LEAVE: Final = 25
RENEW: Final = 26

CLAIM_BYTES_MIN: Final = 16
CLAIM_BYTES_MAX: Final = 64
VALUE_BYTES_MAX: Final = 4096
TTL_MS_MIN: Final = 1_000
TTL_MS_MAX: Final = 86_400_000
WAIT_MS_MAX: Final = 590_000
"""With the 5 s that a request has beyond its wait still below the longest deadline of a request."""

_INT64_MAX: Final = (1 << 63) - 1

Op = list[Any]


def enter(
    name: bytes,
    claim: bytes,
    attempt: int,
    *,
    ttl_ms: int,
    wait_ms: int,
    not_after_ms: int,
    value: bytes = b"",
) -> Op:
    """Take the name, or a place in its queue if `wait_ms` is not 0. Refused when the shard clock has
    passed `not_after_ms`."""
    return [ENTER, name, claim, attempt, ttl_ms, wait_ms, not_after_ms, value]


def give_up(name: bytes, claim: bytes, attempt: int, *, not_after_ms: int, keeps_grant: bool) -> Op:
    """Withdraw an attempt, and the entry if no other attempt has joined it; unless it holds the name by now
    and that is to be kept."""
    return [LEAVE, name, claim, attempt, not_after_ms, keeps_grant]


def release(name: bytes, claim: bytes) -> Op:
    """Give the name back, by whoever knows the claim."""
    return [LEAVE, name, claim, 0, None, False]


def renew(name: bytes, claim: bytes) -> Op:
    return [RENEW, name, claim]


def _is_count(candidate: Any, low: int, high: int) -> bool:
    return type(candidate) is int and low <= candidate <= high


def _subject_fault(op: Op, length: int) -> str | None:
    if len(op) != length or not isinstance(op[1], bytes) or not 0 < len(op[1]) < 1 << 16:
        return f"expected {length} fields with a name"
    if not isinstance(op[2], bytes) or not CLAIM_BYTES_MIN <= len(op[2]) <= CLAIM_BYTES_MAX:
        return f"a claim has {CLAIM_BYTES_MIN} to {CLAIM_BYTES_MAX} bytes"
    return None


def _enter_fault(op: Op) -> str | None:
    fault = _subject_fault(op, 8)
    if fault:
        return fault
    if not _is_count(op[3], 0, _INT64_MAX) or not _is_count(op[6], 0, _INT64_MAX):
        return "attempt and not-after are 0 to 2^63-1"
    if not _is_count(op[4], TTL_MS_MIN, TTL_MS_MAX) or not _is_count(op[5], 0, WAIT_MS_MAX):
        return "ttl or wait is out of range"
    if not isinstance(op[7], bytes) or len(op[7]) > VALUE_BYTES_MAX:
        return f"the value has at most {VALUE_BYTES_MAX} bytes"
    return None


def _leave_fault(op: Op) -> str | None:
    fault = _subject_fault(op, 6)
    if fault:
        return fault
    if not _is_count(op[3], 0, _INT64_MAX) or not (op[4] is None or _is_count(op[4], 0, _INT64_MAX)):
        return "attempt and not-after are 0 to 2^63-1"
    return None if type(op[5]) is bool else "keeps_grant is a flag"


def _renew_fault(op: Op) -> str | None:
    return _subject_fault(op, 3)


CHECKS: Final[dict[int, Callable[[Op], str | None]]] = {
    ENTER: _enter_fault,
    LEAVE: _leave_fault,
    RENEW: _renew_fault,
}
