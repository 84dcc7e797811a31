"""Every error of the system, drawn as a tree. Each leaf has a stable `code` and an HTTP status.

    KvError
    ├── NotApplied              the request did not happen
    │   ├── InvalidArgument     400 invalid-argument      the caller's mistake, named in `detail`
    │   │   ├── ConfirmRequired 400 confirm-required
    │   │   └── RevisionInFuture 400 revision-in-future
    │   ├── Unauthenticated     401 unauthenticated
    │   ├── Denied              403 denied
    │   ├── KeyNotFound         404 key-not-found
    │   ├── NotFound            404 not-found             no such route, node, shard
    │   ├── LeaseNotFound       404 lease-not-found
    │   ├── LockLost            404 lock-lost             no such claim: released, or its time ran out
    │   ├── MethodNotAllowed    405 method-not-allowed
    │   ├── RequestTimeout      408 request-timeout       the caller was too slow to send
    │   ├── TxnConflict         409 conflict              retryable: a transaction holds the key
    │   ├── Locked              409 locked
    │   ├── NotANumber          409 not-a-number
    │   ├── OutOfRange          409 out-of-range
    │   ├── Compacted           410 compacted
    │   ├── Conflict            412 precondition-failed   `current_revision`
    │   ├── TooLarge            413 too-large             names the limit and the size
    │   ├── UnsupportedMedia    415 unsupported-media-type
    │   ├── WrongRoute          421 wrong-route
    │   ├── IdempotencyMismatch 422 idempotency-mismatch
    │   ├── Overloaded          429 overloaded            retryable, `retry_after`
    │   ├── HeadersTooLarge     431 headers-too-large
    │   ├── Unsupported         501 unsupported           known to the contract, not in this version
    │   ├── Unavailable         503 unavailable
    │   │   ├── NoLeader        503 no-leader             retryable, `retry_after`
    │   │   └── NotReady        503 not-ready
    │   ├── ReadTimeout         504 timeout               a read passed its deadline
    │   └── DiskFull            507 disk-full
    ├── OutcomeUnknown          504 outcome-unknown       a write that may have happened
    └── Fatal                   stop the node: never an HTTP reply

A write that ends in any `NotApplied` surely did not happen; one that ends in `OutcomeUnknown` may have.
"""

from typing import Any, ClassVar


class KvError(Exception):
    """Base of all errors. `fields` are the facts of the case and travel in the problem document."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str = "", **fields: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.fields: dict[str, Any] = fields
        self.request_id: str | None = None


class NotApplied(KvError):
    """The request did not happen."""


class InvalidArgument(NotApplied):
    code, http_status, title = "invalid-argument", 400, "Invalid argument"


class ConfirmRequired(InvalidArgument):
    code, title = "confirm-required", "Confirmation required"


class RevisionInFuture(InvalidArgument):
    code, title = "revision-in-future", "Revision is in the future"


class Unauthenticated(NotApplied):
    code, http_status, title = "unauthenticated", 401, "Unauthenticated"


class Denied(NotApplied):
    code, http_status, title = "denied", 403, "Denied"


class NotFound(NotApplied):
    code, http_status, title = "not-found", 404, "Not found"


class KeyNotFound(NotFound):
    code, title = "key-not-found", "Key not found"


class LeaseNotFound(NotFound):
    code, title = "lease-not-found", "Lease not found"


class LockLost(NotFound):
    """A lock, a place in its queue or an office is not held (any more)."""

    code, title = "lock-lost", "Lock is not held"


class MethodNotAllowed(NotApplied):
    code, http_status, title = "method-not-allowed", 405, "Method not allowed"


class RequestTimeout(NotApplied):
    code, http_status, title = "request-timeout", 408, "Request was sent too slowly"


class TxnConflict(NotApplied):
    code, http_status, title, retryable = "conflict", 409, "A transaction holds the key", True


class Locked(NotApplied):
    code, http_status, title = "locked", 409, "Lock is held"


class NotANumber(NotApplied):
    code, http_status, title = "not-a-number", 409, "Value is not a number"


class OutOfRange(NotApplied):
    code, http_status, title = "out-of-range", 409, "Result is out of range"


class Compacted(NotApplied):
    code, http_status, title = "compacted", 410, "History is compacted"


class Conflict(NotApplied):
    """A precondition on the key's revision failed. Field `current_revision` (0: absent)."""

    code, http_status, title = "precondition-failed", 412, "Precondition failed"


class TooLarge(NotApplied):
    code, http_status, title = "too-large", 413, "Too large"


class UnsupportedMedia(NotApplied):
    code, http_status, title = "unsupported-media-type", 415, "Unsupported media type"


class WrongRoute(NotApplied):
    code, http_status, title, retryable = "wrong-route", 421, "Wrong route", True


class IdempotencyMismatch(NotApplied):
    code, http_status, title = "idempotency-mismatch", 422, "Same identity, other request"


class Overloaded(NotApplied):
    code, http_status, title, retryable = "overloaded", 429, "Overloaded", True


class HeadersTooLarge(NotApplied):
    code, http_status, title = "headers-too-large", 431, "Headers too large"


class Unsupported(NotApplied):
    code, http_status, title = "unsupported", 501, "Not supported by this version"


class Unavailable(NotApplied):
    code, http_status, title, retryable = "unavailable", 503, "Unavailable", True


class NoLeader(Unavailable):
    code, title = "no-leader", "Shard has no leader"


class NotReady(Unavailable):
    code, title = "not-ready", "Node is not ready"


class ReadTimeout(NotApplied):
    code, http_status, title, retryable = "timeout", 504, "Read passed its deadline", True


class DiskFull(NotApplied):
    code, http_status, title = "disk-full", 507, "Disk is full"


class OutcomeUnknown(KvError):
    """The write may have happened: retry only with the same identity, or read back."""

    code, http_status, title = "outcome-unknown", 504, "Outcome unknown"


class Fatal(Exception):
    """This node must stop: going on could lose or fake data. The message is for the operator."""


class WalPoisoned(Fatal):
    """A write or sync of the log failed. What the disk holds is unknown until a restart reads it."""


class DiskFailed(Fatal):
    """A write, a sync or a lack of means kept a tablet from being opened or flushed. Says nothing of damage:
    a restart may find everything whole."""


class Corrupt(Fatal):
    """Bytes on disk are damaged where a torn write cannot explain it."""


def _leaves(base: type[KvError]) -> dict[str, type[KvError]]:
    found = {base.code: base} if "code" in base.__dict__ else {}
    for child in base.__subclasses__():
        found |= _leaves(child)
    return found


BY_CODE: dict[str, type[KvError]] = _leaves(KvError)
"""Error class of each wire code, for clients and for peers."""
