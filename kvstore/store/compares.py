"""Compares of transactions. An absent key has revision, create revision and version 0 and no lease.

An absent key has no value: nothing is equal to it, below it or above it, and every value differs from it.
(etcd calls even `!=` false there, because its protocol cannot tell "absent" from "empty"; ours can.)
Values and leases are compared as bytes; a key without a lease has a lease of None, which only `=` and `!=`
tell apart.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, Final

from kvstore.store import records, txn_commands
from kvstore.store.draft import Draft

_OPERATORS: Final[tuple[Callable[[Any, Any], bool], ...]] = (
    operator.eq,
    operator.ne,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
)
_EQUAL: Final = txn_commands.OPERATORS["eq"]
_DIFFERENT: Final = txn_commands.OPERATORS["ne"]
_ABSENT: Final = [None, 0, 0, 0, None, None, None]
_PLACES: Final = {
    txn_commands.VALUE: 0,
    txn_commands.REVISION: 1,
    txn_commands.CREATE_REVISION: 2,
    txn_commands.VERSION: 3,
    txn_commands.LEASE: 5,
}
"""Where an item has the field."""


def hold(draft: Draft, compares: Iterable[txn_commands.Compare]) -> bool:
    """Whether all compares hold in the draft's state."""
    return all(_holds(draft, *compare) for compare in compares)


def _holds(draft: Draft, key: bytes, field: int, comparison: int, operand: Any) -> bool:
    head = draft.head(b"h" + key)
    item = _ABSENT if head is None else records.item(head)
    found = item[_PLACES[field]]
    if comparison not in (_EQUAL, _DIFFERENT) and (found is None or operand is None):
        return False
    return _OPERATORS[comparison](found, operand)
