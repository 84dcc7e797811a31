"""What an op answers. A result is a msgpack-able list `[code, ...]`, the same on every replica.

| code | result |
|---|---|
| OK put | `[0, revision, version, created, prev item or None]` |
| OK delete | `[0, revision, deleted (0 or 1), prev item or None]` |
| OK incr | `[0, revision, value]` |
| OK delete_range | `[0, revision, deleted, more]`; `more`: its `limit` left keys in the range |
| OK limits | `[0, revision]` |
| PRECONDITION_FAILED | `[1, current revision, 0: absent]` |
| NOT_A_NUMBER | `[2]` |
| OUT_OF_RANGE | `[3, current value]` |
| SESSION_UNKNOWN | `[4]` the outcome of an earlier try is no longer known |
| IDENTITY_MISMATCH | `[5]` same identity, other body |
| SESSION_CAP | `[6]` no room for a new session |
| OK lock ops | `[0, holds, fence of the holder, ms left of the entry]`, see `lock_queue` |
| LOCK_LOST | `[9]` this claim on a lock has no entry (any more) |
| REFUSED | `[10, floor]` came too late, or is dated too far ahead: build it anew, not-after above the floor |
| QUEUE_FULL | `[20, entries]` the lock's queue takes no more |

An item is `[value, revision, create_revision, version, content_type, lease, deadline_ms]`. `prev` is asked
for with the option `prev`. In a replayed answer the value inside `prev` is None when it was too large
to keep. When an op changes nothing its revision is the shard's present one.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kvstore.errors import (
    Conflict,
    IdempotencyMismatch,
    KvError,
    LockLost,
    NotANumber,
    OutcomeUnknown,
    OutOfRange,
    Overloaded,
)

OK: Final = 0
PRECONDITION_FAILED: Final = 1
NOT_A_NUMBER: Final = 2
OUT_OF_RANGE: Final = 3
SESSION_UNKNOWN: Final = 4
IDENTITY_MISMATCH: Final = 5
SESSION_CAP: Final = 6
LOCK_LOST: Final = 9
REFUSED: Final = 10
QUEUE_FULL: Final = 20

Result = list[Any]
Item = list[Any]


class CommandResult(msgspec.Struct, frozen=True, array_like=True):
    """Results of one command's ops, in their order."""

    replayed: bool
    """Every op had been carried out by an earlier try; nothing was executed now."""
    results: list[Result]


def error_of(result: Result) -> KvError | None:
    """The error a caller sees for a result that is not OK, else None."""
    match result[0]:
        case 0:
            return None
        case 1:
            return Conflict(f"the key's revision is {result[1]}", current_revision=result[1])
        case 2:
            return NotANumber("the value is not a decimal integer")
        case 3:
            return OutOfRange("the sum leaves its bounds or 64 bits", value=result[1])
        case 4:
            return OutcomeUnknown("the record of this session and sequence is gone", reason="session-unknown")
        case 5:
            return IdempotencyMismatch("this identity was used with another request")
        case 6:
            return Overloaded("no room for a new session on this shard", retry_after=1)
        case 9:
            return LockLost("nobody holds or waits by this token: it was given back, or its time ran out")
        case 20:
            return Overloaded(f"the queue has {result[1]} entries and takes no more", retry_after=1)
        case code:
            raise AssertionError(f"result code {code} has no meaning")
