"""Ops of transactions (`transactions`): how they are packed and checked.

| op | shape |
|---|---|
| TXN | `[16, compares, then ops, else ops]` |
| PREPARE | `[17, txid, not after, participants, compares, then ops, else ops, whose or None, waits]` |
| DECIDE | `[18, txid, commit, branch]` |
| ASK | `[19, txid, not after, force]` |
| FINISH | `[20, [txid, ...]]` |

A compare is `[key, field, operator, operand]`: fields 0 revision, 1 version, 2 create revision, 3 value,
4 lease; operators 0 =, 1 !=, 2 <, 3 <=, 4 >, 5 >=. A branch holds PUT, DELETE and INCR as they are, without
conditions of their own, and GET `[0, key]`; it writes no key twice. Participants are
`[[shard, not after in its clock], ...]`. `whose` is `[session, sequence, acked below, since, body hash,
principal]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

TXN: Final = 16
PREPARE: Final = 17
DECIDE: Final = 18
ASK: Final = 19
FINISH: Final = 20

GET: Final = 0
"""A read; only inside a transaction."""

REVISION: Final = 0
VERSION: Final = 1
CREATE_REVISION: Final = 2
VALUE: Final = 3
LEASE: Final = 4
FIELDS: Final = {
    "revision": REVISION,
    "version": VERSION,
    "create_revision": CREATE_REVISION,
    "value": VALUE,
    "lease": LEASE,
}
OPERATORS: Final = {"eq": 0, "ne": 1, "lt": 2, "le": 3, "gt": 4, "ge": 5}

TXID_BYTES_MAX: Final = 64
AHEAD_MS_MAX: Final = 60_000
"""How far ahead of the shard clock a not-after may lie: as long as that a refusal must be remembered."""

_INT64_MAX: Final = (1 << 63) - 1
_CONDITIONS: Final = ("if_revision", "if_absent", "if_present")

Op = list[Any]
Compare = Sequence[Any]
Parts = tuple[Sequence[Compare], Sequence[Op], Sequence[Op]]
"""Compares, then-ops and else-ops of one shard."""


def txn(parts: Parts) -> Op:
    return [TXN, *parts]


def prepare(
    txid: bytes,
    not_after_ms: int,
    participants: Sequence[Sequence[int]],
    parts: Parts,
    whose: Sequence[Any] | None = None,
    *,
    waits: bool = False,
) -> Op:
    """Lock one shard's part of a transaction and vote. `participants` names all shards, this one too.
    `waits`: where another transaction holds a key, answer LOCKED and leave no trace, instead of a no."""
    return [PREPARE, txid, not_after_ms, participants, *parts, whose, waits]


def decide(txid: bytes, *, commit: bool, branch: bool = False) -> Op:
    """Carry out, or drop, what was prepared. `branch`: whether the compares of all shards held."""
    return [DECIDE, txid, commit, branch]


def ask(txid: bytes, not_after_ms: int, *, force: bool) -> Op:
    """What became of the transaction in this shard; with `force`, where it is unknown it is refused for
    good."""
    return [ASK, txid, not_after_ms, force]


def finish(txids: Sequence[bytes]) -> Op:
    """All participants of these committed transactions have carried them out."""
    return [FINISH, txids]


Fault = Callable[[Op], "str | None"]


def checks(op_faults: dict[int, Fault], check_identity: Callable[[list[Any]], None]) -> dict[int, Fault]:
    """What is wrong with each op of this module, or None. `op_faults` does it for the ops of a branch;
    `check_identity` raises."""

    def branch_fault(ops: Any) -> str | None:
        if not isinstance(ops, list):
            return "a branch is a list of ops"
        written = set()
        for op in ops:
            if not isinstance(op, list) or not op or (op[0] != GET and op[0] not in op_faults):
                return "a branch holds gets, puts, deletes and incrs"
            fault = _get_fault(op) if op[0] == GET else op_faults[op[0]](op)
            if fault is not None:
                return fault
            if op[0] == GET:
                continue
            if isinstance(op[-1], dict) and any(name in op[-1] for name in _CONDITIONS):
                return "ops of a branch have no conditions"
            if op[1] in written:
                return "a branch writes a key twice"
            written.add(op[1])
        return None

    def parts_fault(compares: Any, then: Any, otherwise: Any) -> str | None:
        if not isinstance(compares, list):
            return "compares are a list"
        faults = (_compare_fault(compare) for compare in compares)
        return next(filter(None, faults), None) or branch_fault(then) or branch_fault(otherwise)

    def txn_fault(op: Op) -> str | None:
        return parts_fault(*op[1:]) if len(op) == 4 else "expected [16, compares, then, else]"

    def prepare_fault(op: Op) -> str | None:
        if len(op) != 9 or not _is_txid(op[1]) or not _is_number(op[2]) or type(op[8]) is not bool:
            return "expected [17, txid, not after, participants, compares, then, else, whose, waits]"
        if not isinstance(op[3], list) or not all(map(_is_participant, op[3])):
            return "participants are [shard, not after]"
        if op[7] is not None:
            if not isinstance(op[7], list) or len(op[7]) != 6:
                return "whose is [session, sequence, acked below, since, body hash, principal]"
            check_identity([*op[7][:2], 0, *op[7][2:]])
        return parts_fault(*op[4:7])

    return {
        TXN: txn_fault,
        PREPARE: prepare_fault,
        DECIDE: _decide_fault,
        ASK: _ask_fault,
        FINISH: _finish_fault,
    }


def _is_number(candidate: Any) -> bool:
    return type(candidate) is int and 0 <= candidate <= _INT64_MAX


def _is_txid(candidate: Any) -> bool:
    return isinstance(candidate, bytes) and 0 < len(candidate) <= TXID_BYTES_MAX


def _is_participant(candidate: Any) -> bool:
    return isinstance(candidate, list) and len(candidate) == 2 and all(map(_is_number, candidate))


def _get_fault(op: Op) -> str | None:
    return None if len(op) == 2 and isinstance(op[1], bytes) and op[1] else "expected [0, key]"


def _compare_fault(compare: Any) -> str | None:
    if not isinstance(compare, list) or len(compare) != 4:
        return "a compare is [key, field, operator, operand]"
    key, field, operator, operand = compare
    if not isinstance(key, bytes) or not key:
        return "a compare names a key"
    if field not in FIELDS.values() or operator not in OPERATORS.values():
        return "a compare has an unknown field or operator"
    if field == LEASE:
        fits = operand is None or isinstance(operand, bytes)
    else:
        fits = isinstance(operand, bytes) if field == VALUE else _is_number(operand)
    return None if fits else "a compare's operand has the wrong type"


def _decide_fault(op: Op) -> str | None:
    if len(op) != 4 or not _is_txid(op[1]) or type(op[2]) is not bool or type(op[3]) is not bool:
        return "expected [18, txid, commit, branch]"
    return None


def _ask_fault(op: Op) -> str | None:
    if len(op) != 4 or not _is_txid(op[1]) or not _is_number(op[2]) or type(op[3]) is not bool:
        return "expected [19, txid, not after, force]"
    return None


def _finish_fault(op: Op) -> str | None:
    if len(op) != 2 or not isinstance(op[1], list) or not all(map(_is_txid, op[1])):
        return "expected [20, [txid, ...]]"
    return None
