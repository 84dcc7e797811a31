"""What kvctl's exit codes mean. Scripts depend on them: they only grow."""

from kvstore.errors import (
    Conflict,
    Denied,
    InvalidArgument,
    KeyNotFound,
    KvError,
    LeaseNotFound,
    Locked,
    OutcomeUnknown,
    Overloaded,
    ReadTimeout,
    TxnConflict,
    Unauthenticated,
    Unavailable,
)

OK = 0
FAILURE = 1
USAGE = 2
NOT_FOUND = 3
"""No such key or lease; nobody is elected."""
PRECONDITION_FAILED = 4
"""Or a lock that was not taken."""
DENIED = 5
UNAVAILABLE = 6
"""Nobody answered in time, or the outcome of a write is unknown."""
CHECK_FAILED = 7
INTERRUPTED = 130

_BY_CLASS: tuple[tuple[tuple[type[KvError], ...], int], ...] = (
    ((KeyNotFound, LeaseNotFound), NOT_FOUND),
    ((Conflict, Locked), PRECONDITION_FAILED),
    ((Denied, Unauthenticated), DENIED),
    ((Unavailable, OutcomeUnknown, ReadTimeout, Overloaded, TxnConflict), UNAVAILABLE),
    ((InvalidArgument,), USAGE),
)


def of_error(error: KvError) -> int:
    return next((code for classes, code in _BY_CLASS if isinstance(error, classes)), FAILURE)
