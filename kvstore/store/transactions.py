"""What the ops of transactions do to a tablet.

Over keys of one shard a transaction is one op, TXN. Over several it is one PREPARE per shard, which locks
the shard's keys and votes, and then one DECIDE per shard. What a shard answers about a transaction is
`[OK, state, ...]`:

| state | answer | meaning |
|---|---|---|
| UNKNOWN | `[0, 0]` | nothing was heard of it here |
| YES | `[0, 1, vote]` | prepared: it waits for the decision, with its keys held |
| COMMITTED | `[0, 2, result]` | carried out; the result is that of TXN |
| NO | `[0, 3]` | it never will be carried out here |
| EARLIER | `[0, 4, result]` | no, for an earlier try of the same request was carried out |
| UNDER_WAY | `[0, 5]` | no, for an earlier try of the same request is prepared |

A vote is `[compares hold, fault of then, fault of else]`. The transaction is decided as soon as every shard
has voted yes, by the votes alone (`outcome_of`), so that whoever has seen them all decides the same. One no
decides it too. What makes a no final is the log of its shard: a prepare past its not-after is refused, and
until then the no is remembered (pitfall 33). So a transaction's id must never be used with two not-afters:
a request that is tried again is a transaction of its own, and finds what became of earlier ones by its
session.

Nothing here waits. A prepare that meets a lock votes no, or, if it says so, applies as LOCKED without a
trace, to be proposed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from kvstore.store import commands, compares, deadlines, leases, mvcc, records, txn_commands
from kvstore.store.draft import Draft
from kvstore.store.intents import Committed, Prepared, Record, Refused, lock_sets
from kvstore.store.results import OK, READS_TOO_LARGE, REFUSED, TXN_FAILED, Result

UNKNOWN: Final = 0
YES: Final = 1
COMMITTED: Final = 2
NO: Final = 3
EARLIER: Final = 4
UNDER_WAY: Final = 5

READ_BYTES_MAX: Final = 4 << 20
"""Of the values that one branch reads in one shard."""
RESULT_BYTES_MAX: Final = 1 << 20
"""A decided transaction's result above this is kept without the values that it read."""
FINISHED_KEPT_MS: Final = 10_000
"""A finished transaction's result is kept so long for those who missed the answer; a session keeps it for
its own lifetime."""
MARK_GRID_MS: Final = 5_000
"""Records go at multiples of this, many with one entry."""
GROUP_MAX: Final = 100
"""Records that go with one deadline."""
PREPARED_MAX: Final = 4096
"""Prepared transactions of one shard; more vote no."""


class Outcome(NamedTuple):
    """What the votes of all shards amount to."""

    commits: bool
    branch: bool
    fault: tuple[int, list[Any]] | None
    """Which vote (by position) has the fault that stops it, and the fault."""


def outcome_of(votes: Sequence[list[Any]]) -> Outcome:
    """The decision, given a yes of every shard."""
    branch = all(vote[0] for vote in votes)
    for position, vote in enumerate(votes):
        fault = vote[1] if branch else vote[2]
        if fault is not None:
            return Outcome(False, branch, (position, fault))
    return Outcome(True, branch, None)


# ---- one shard ------------------------------------------------------------------------------------


def _apply_txn(draft: Draft, op: commands.Op) -> Result:
    _, conditions, then, otherwise = op
    branch = compares.hold(draft, conditions)
    ops = then if branch else otherwise
    fault = _fault_of(draft, ops)
    if fault is not None:
        return [REFUSED] if _is_late(fault) else [TXN_FAILED, *fault, branch]
    return _carry_out(draft, ops, branch)


def _fault_of(draft: Draft, ops: Iterable[commands.Op]) -> list[Any] | None:
    """`[index, result]` of an op that cannot be carried out, so that nothing of its branch may be."""
    read_bytes = 0
    for index, op in enumerate(ops):
        if op[0] == txn_commands.GET:
            read_bytes += len(draft.head(b"h" + op[1]) or b"")
            if read_bytes > READ_BYTES_MAX:
                return [index, [READS_TOO_LARGE, READ_BYTES_MAX]]
        elif op[0] == commands.INCR:
            # Its key is written nowhere else in the branch: the state at hand is the one it will meet.
            refusal = mvcc.incr_refusal(draft, op)
            if refusal is not None:
                return [index, refusal]
        elif _names_lease(op):
            refusal = leases.refusal_of(draft, op[3])
            if refusal is not None:
                return [index, refusal]
    return None


def _names_lease(op: commands.Op) -> bool:
    return op[0] == commands.PUT and len(op) > 3 and bool(op[3]) and "lease" in op[3]


def _is_late(fault: list[Any] | None) -> bool:
    """A put's tie to its lease must be built anew, and with it the transaction."""
    return fault is not None and fault[1][0] == REFUSED


def _carry_out(draft: Draft, ops: Iterable[commands.Op], branch: bool) -> Result:
    """All changes of the branch, at one revision."""
    results: list[Result] = []
    draft.share_revision(True)
    for op in ops:
        if op[0] == txn_commands.GET:
            head = draft.head(b"h" + op[1])
            results.append([OK, None if head is None else records.item(head)])
        else:
            results.append(mvcc.APPLY[op[0]](draft, op))
    draft.share_revision(False)
    assert all(result[0] == OK for result in results), "an op of a transaction failed behind its check"
    return [OK, draft.revision, results, branch]


# ---- several shards -------------------------------------------------------------------------------


def _state(record: Record | None) -> Result:
    match record:
        case None:
            return [OK, UNKNOWN]
        case Prepared():
            return [OK, YES, record.vote]
        case Committed():
            return [OK, COMMITTED, record.result]
        case Refused():
            return [OK, NO]


def _apply_prepare(draft: Draft, op: commands.Op) -> Result:
    _, txid, not_after_ms, participants, conditions, then, otherwise, whose, waits = op
    intents = draft.intents
    known = intents.record(draft, txid)
    if known is not None:
        return _state(known)
    if draft.clock_ms > not_after_ms:
        return [REFUSED]
    if not_after_ms > draft.clock_ms + txn_commands.AHEAD_MS_MAX:
        _refuse(draft, txid, not_after_ms)
        return [REFUSED]
    if whose is not None:
        earlier = draft.sessions.result_of(draft, whose)
        if earlier is not None:
            # Final as well: no copy of this op may find another answer.
            _refuse(draft, txid, not_after_ms)
            if earlier[0] != OK:
                return earlier
            return [OK, EARLIER, earlier]
        if intents.is_under_way(whose):
            _refuse(draft, txid, not_after_ms)
            return [OK, UNDER_WAY]
    shared, exclusive = lock_sets(conditions, then, otherwise)
    if intents.is_blocked(shared, exclusive) or intents.prepared_count >= PREPARED_MAX:
        if waits:
            return intents.locked([op]).results[0]
        _refuse(draft, txid, not_after_ms)
        return [OK, NO]
    faults = [_fault_of(draft, then), _fault_of(draft, otherwise)]
    if any(map(_is_late, faults)):
        _refuse(draft, txid, not_after_ms)
        return [REFUSED]
    vote = [compares.hold(draft, conditions), *faults]
    # A branch with a fault is never carried out.
    then, otherwise = (
        branch if fault is not None else _with_leases_reserved(draft, branch)
        for branch, fault in zip((then, otherwise), faults, strict=True)
    )
    intents.hold(
        draft,
        txid,
        Prepared(not_after_ms, draft.clock_ms, participants, then, otherwise, vote, shared, exclusive, whose),
    )
    return [OK, YES, vote]


def _with_leases_reserved(draft: Draft, ops: list[commands.Op]) -> list[commands.Op]:
    return [[*op[:3], leases.reserve(draft, op[1], op[3])] if _names_lease(op) else op for op in ops]


def _let_leases_go(draft: Draft, record: Prepared) -> None:
    for op in (*record.then, *record.otherwise):
        if op[0] == commands.PUT and len(op) > 3 and op[3] and leases.TIED in op[3]:
            leases.let_go(draft, op[1], op[3][leases.TIED])


def _refuse(draft: Draft, txid: bytes, not_after_ms: int) -> None:
    """Make a no final. Past the not-after it needs no record."""
    if draft.clock_ms > not_after_ms:
        draft.intents.write(draft, txid, None)
        return
    until_ms = _on_grid(not_after_ms + 1)
    draft.intents.write(draft, txid, Refused(until_ms))
    deadlines.set_deadline(draft, until_ms, deadlines.TXN_MARK, txid)


def _on_grid(until_ms: int) -> int:
    return -(-until_ms // MARK_GRID_MS) * MARK_GRID_MS


def _apply_decide(draft: Draft, op: commands.Op) -> Result:
    _, txid, commits, branch = op
    record = draft.intents.record(draft, txid)
    if not isinstance(record, Prepared):
        return _state(record)
    if commits and record.vote[1 if branch else 2] is not None:
        # No votes amount to this decision.
        return _state(record)
    draft.intents.let_go(txid, record)
    _let_leases_go(draft, record)
    if not commits:
        _refuse(draft, txid, record.not_after_ms)
        return [OK, NO]
    result = _carry_out(draft, record.then if branch else record.otherwise, branch)
    if record.whose is not None:
        draft.sessions.keep_decided(draft, record.whose, result)
    kept = Committed(record.not_after_ms, draft.clock_ms, record.participants, _bounded(result))
    draft.intents.write(draft, txid, kept)
    return [OK, COMMITTED, result]


def _bounded(result: Result) -> Result:
    byte_count = sum(len(item[0] or b"") for each in result[2] if isinstance(item := each[-1], list) and item)
    return result if byte_count <= RESULT_BYTES_MAX else records.without_values(result)


def _apply_ask(draft: Draft, op: commands.Op) -> Result:
    _, txid, not_after_ms, force = op
    record = draft.intents.record(draft, txid)
    if record is None:
        if draft.clock_ms > not_after_ms:
            return [OK, NO]
        if force:
            _refuse(draft, txid, not_after_ms)
            return [OK, NO]
    return _state(record)


def _apply_finish(draft: Draft, op: commands.Op) -> Result:
    over = [txid for txid in dict.fromkeys(op[1]) if draft.intents.is_committed(txid)]
    for first in range(0, len(over), GROUP_MAX):
        _finish(draft, over[first : first + GROUP_MAX])
    return [OK, draft.revision]


def _finish(draft: Draft, txids: list[bytes]) -> None:
    until_ms = draft.clock_ms + FINISHED_KEPT_MS
    for txid in txids:
        record = draft.intents.record(draft, txid)
        assert isinstance(record, Committed), "a committed transaction has no such record"
        until_ms = max(until_ms, record.not_after_ms + 1)
    draft.intents.finish(draft, txids)
    deadlines.set_deadline(draft, _on_grid(until_ms), deadlines.TXN_GROUP, txids[0])


def expire_mark(draft: Draft, due_ms: int, txid: bytes) -> bool:
    """A no past its not-after: nobody asks for it any more."""
    deadlines.remove_deadline(draft, due_ms, deadlines.TXN_MARK, txid)
    if isinstance(draft.intents.record(draft, txid), Refused):
        draft.intents.write(draft, txid, None)
    return True


def expire_group(draft: Draft, due_ms: int, first: bytes) -> bool:
    """What every participant knows, past all not-afters: nobody asks for it any more."""
    deadlines.remove_deadline(draft, due_ms, deadlines.TXN_GROUP, first)
    draft.intents.forget_group(draft, first)
    return True


APPLY: Final[dict[int, Callable[[Draft, commands.Op], Result]]] = {
    txn_commands.TXN: _apply_txn,
    txn_commands.PREPARE: _apply_prepare,
    txn_commands.DECIDE: _apply_decide,
    txn_commands.ASK: _apply_ask,
    txn_commands.FINISH: _apply_finish,
}
