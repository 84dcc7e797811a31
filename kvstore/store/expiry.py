"""Carries out deadlines that have come, a paced few with each EXPIRE op of the leader.

An EXPIRE op names the term of the leader that proposed it and is void in an entry of any other (pitfall 3).
What is due is judged here, by the entry's clock and the tablet alone, so that nothing dies by a leader's
own opinion: what was renewed in the meantime has another deadline.

Each kind of deadline has a handler `(draft, due_ms, subject) -> bool`. It must remove the deadline or
set a later one; False: its subject cannot go now (a transaction holds it), the deadline stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvstore.store import (
    commands,
    deadlines,
    keys,
    lease_ends,
    leases,
    lock_queue,
    mvcc,
    transactions,
)
from kvstore.store.draft import Draft
from kvstore.store.records import CHANGE_EXPIRE
from kvstore.store.results import OK, Result

EXPIRED_MAX: Final = 1000
"""Most deadlines of one EXPIRE op, whatever it asks for."""

Handler = Callable[[Draft, int, bytes], bool]


def apply_expire(draft: Draft, op: commands.Op) -> Result:
    """`[EXPIRE, term, limit]` -> `[OK, revision, carried out, more]`."""
    if op[1] != draft.term:
        return [OK, draft.revision, 0, False]
    limit = min(op[2], EXPIRED_MAX)
    due: list[bytes] = []
    following: int | None = None
    # From the bound on: what was carried out lies before it, and the engine steps over each that is gone.
    for record_key, _ in draft.scan(draft.deadlines.start, keys.DEADLINE_END):
        due_ms = deadlines.parts(record_key)[0]
        if due_ms > draft.clock_ms or len(due) == limit:
            following = due_ms
            break
        due.append(record_key)
    # Before the handlers, which may set deadlines of their own.
    draft.deadlines.looked(following)
    done = 0
    for record_key in due:
        due_ms, kind, subject = deadlines.parts(record_key)
        if _HANDLERS[kind](draft, due_ms, subject):
            done += 1
        else:
            draft.deadlines.note(due_ms)
    return [OK, draft.revision, done, following is not None and following <= draft.clock_ms]


def _expire_key(draft: Draft, due_ms: int, key: bytes) -> bool:
    if key in draft.intents.locks:
        return False
    mvcc.remove(draft, key, CHANGE_EXPIRE)
    return True


_HANDLERS: Final[dict[int, Handler]] = {
    deadlines.KEY: _expire_key,
    deadlines.LEASE: leases.expire,
    deadlines.LEASE_MARK: lease_ends.expire_mark,
    deadlines.LOCK_ENTRY: lock_queue.expire_entry,
    deadlines.LOCK_MARK: lock_queue.expire_mark,
    deadlines.TXN_MARK: transactions.expire_mark,
    deadlines.TXN_GROUP: transactions.expire_group,
}
