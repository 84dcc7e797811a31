"""Every op and what carries it out: the table that a new kind of op joins."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from kvstore.errors import Fatal
from kvstore.store import (
    commands,
    expiry,
    lease_commands,
    lease_ends,
    leases,
    lock_queue,
    mvcc,
    transactions,
)
from kvstore.store.draft import Draft
from kvstore.store.results import Result

APPLY: Final[dict[int, Callable[[Draft, commands.Op], Result]]] = {
    **mvcc.APPLY,
    **leases.APPLY,
    lease_commands.ENDED: lease_ends.apply_ended,
    **lock_queue.APPLY,
    **transactions.APPLY,
    commands.EXPIRE: expiry.apply_expire,
}


NOWHERE: Final[deque[Result]] = deque(maxlen=0)
"""For results that nobody asks for."""


def apply_ops(draft: Draft, ops: list[commands.Op]) -> list[Result]:
    results: list[Result] = []
    run_ops(draft, ops, results)
    return results


def run_ops(draft: Draft, ops: list[commands.Op], results: list[Result] | deque[Result]) -> None:
    position = 0
    while position < len(ops):
        op = ops[position]
        if op[0] == commands.PUT and len(op) == 3:
            position = mvcc.apply_plain_puts(draft, ops, position, results)
            continue
        apply = APPLY.get(op[0])
        if apply is None:
            raise Fatal(f"entry holds op {op[0]}, which this program does not know")
        results.append(apply(draft, op))
        position += 1
