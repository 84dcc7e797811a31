"""Transactions on one tablet, by hand."""

from typing import Any

from kvstore.store import commands, txn_commands
from kvstore.store.results import OK
from kvstore.store.txn_commands import FIELDS, OPERATORS
from tests.support.tablets import Tablet

EXCHANGE = ([], [commands.put(b"a", b"new"), [0, b"b"]], [])


def compare(key: bytes, field: str, operator: str, operand: Any) -> list[Any]:
    return [key, FIELDS[field], OPERATORS[operator], operand]


def txn(tablet: Tablet, compares: Any, then: Any, otherwise: Any = ()) -> list[Any]:
    op = txn_commands.txn((list(compares), list(then), list(otherwise)))
    commands.check(commands.encode(None, [op]))
    result: list[Any] = tablet.run(op)[0]
    return result


def prepare(
    tablet: Tablet,
    txid: bytes,
    parts: Any,
    *,
    not_after_ms: int | None = None,
    whose: list[Any] | None = None,
    waits: bool = False,
) -> list[Any]:
    limit = tablet.clock_ms + 1_000 if not_after_ms is None else not_after_ms
    op = txn_commands.prepare(txid, limit, [[0, limit], [1, 9]], parts, whose, waits=waits)
    commands.check(commands.encode(None, [op]))
    result: list[Any] = tablet.run(op)[0]
    return result


def decide(tablet: Tablet, txid: bytes, *, commit: bool = True, branch: bool = True) -> list[Any]:
    result: list[Any] = tablet.run(txn_commands.decide(txid, commit=commit, branch=branch))[0]
    return result


def ask(tablet: Tablet, txid: bytes, not_after_ms: int, *, force: bool = False) -> list[Any]:
    result: list[Any] = tablet.run(txn_commands.ask(txid, not_after_ms, force=force))[0]
    return result


def expire(tablet: Tablet) -> None:
    assert tablet.run(commands.expire(tablet.term, 1000))[0][0] == OK
