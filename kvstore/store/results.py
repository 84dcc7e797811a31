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
| LEASE_NOT_FOUND | `[8]` there is no such lease (any more) |
| REFUSED | `[10]`, of a lock `[10, floor]`: too late or too far ahead: build it anew. Not kept by sessions |
| QUEUE_FULL | `[20, entries]` the lock's queue takes no more |
| LOCKED | `[7]` a transaction holds a key of the command: nothing of it happened, and no session keeps this |
| TXN_FAILED | `[11, index in the branch, the op's result, succeeded]` nothing of the transaction happened |
| READS_TOO_LARGE | `[12, bytes allowed]` of an op in a transaction: it reads more than one answer holds |
| OK txn | `[0, revision, [result of each op of the branch, ...], succeeded]` |
| OK get, in a transaction only | `[0, item or None]` |
| OK prepare, decide, ask | `[0, state, what it says]`, see `transactions` |

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
    LeaseNotFound,
    LockLost,
    NotANumber,
    OutcomeUnknown,
    OutOfRange,
    Overloaded,
    TooLarge,
    TxnConflict,
)

OK: Final = 0
PRECONDITION_FAILED: Final = 1
NOT_A_NUMBER: Final = 2
OUT_OF_RANGE: Final = 3
SESSION_UNKNOWN: Final = 4
IDENTITY_MISMATCH: Final = 5
SESSION_CAP: Final = 6
LOCKED: Final = 7
LEASE_NOT_FOUND: Final = 8
LOCK_LOST: Final = 9
REFUSED: Final = 10
TXN_FAILED: Final = 11
READS_TOO_LARGE: Final = 12
QUEUE_FULL: Final = 20

Result = list[Any]
Item = list[Any]


class CommandResult(msgspec.Struct, frozen=True, array_like=True):
    """Results of one command's ops, in their order."""

    replayed: bool
    """Every op had been carried out by an earlier try; nothing was executed now."""
    results: list[Result]


def is_of_txn(result: Result) -> bool:
    """Whether a transaction answered this, if it was carried out."""
    return result[0] != OK or (len(result) == 4 and isinstance(result[2], list))


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
        case 7:
            return TxnConflict("a transaction holds a key of this request")
        case 8:
            return LeaseNotFound("there is no such lease; it may have expired")
        case 9:
            return LockLost("nobody holds or waits by this token: it was given back, or its time ran out")
        case 11:
            fault = error_of(result[2])
            assert fault is not None, "a transaction failed for no reason"
            fault.fields |= {"op": result[1], "succeeded": result[3]}
            return fault
        case 12:
            limit = {"limit": "txn_read_bytes_max", "max": result[1]}
            return TooLarge(f"the reads of one shard have more than {result[1]} bytes", **limit)
        case 20:
            return Overloaded(f"the queue has {result[1]} entries and takes no more", retry_after=1)
        case code:
            raise AssertionError(f"result code {code} has no meaning")
