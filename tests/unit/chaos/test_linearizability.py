"""The checker accepts what some order explains, and nothing else."""

import copy
import time
from typing import Any

import pytest

from chaos.history import Operation
from chaos.linearizability import check
from tests.unit.chaos.brute_force import is_linearizable, random_history
from tests.unit.chaos.busy_store import busy_history


def put(
    value: str, begun: float, ended: float | None, revision: int | None = None, key: str = "k", **more: Any
) -> Operation:
    told = None if ended is None else ({} if revision is None else {"revision": revision})
    return Operation(
        0, "put", key, {"value": value, **more}, begun, ended, "unknown" if ended is None else "ok", told
    )


def get(
    value: str | None, begun: float, ended: float, revision: int | None = None, key: str = "k"
) -> Operation:
    item = None if value is None else {"value": value} | ({} if revision is None else {"revision": revision})
    return Operation(1, "get", key, None, begun, ended, "ok", item)


def cas(
    expected: str | None, value: str, begun: float, ended: float | None, took: bool = True, key: str = "k"
) -> Operation:
    outcome = "unknown" if ended is None else "ok" if took else "conflict"
    return Operation(2, "cas", key, {"expected": expected, "value": value}, begun, ended, outcome, {})  # type: ignore[arg-type]


def incr(value: int | None, begun: float, ended: float | None, by: int = 1) -> Operation:
    outcome = "unknown" if ended is None else "ok"
    return Operation(3, "incr", "k", {"by": by}, begun, ended, outcome, {"value": value})  # type: ignore[arg-type]


def txn(
    reads: dict[str, str | None], writes: dict[str, str], begun: float, ended: float, succeeded: bool = True
) -> Operation:
    argument = {
        "if": [],
        "then": [
            *({"kind": "get", "key": key, "argument": None} for key in reads),
            *({"kind": "put", "key": key, "argument": {"value": value}} for key, value in writes.items()),
        ],
        "else": [],
    }
    seen = [None if value is None else {"value": value} for value in reads.values()]
    result = {"succeeded": succeeded, "results": [*seen, *({} for _ in writes)]}
    return Operation(4, "txn", "", argument, begun, ended, "ok", result)


def delete(deleted: int, begun: float, ended: float | None, revision: int | None = None) -> Operation:
    result = {"deleted": deleted} | ({"revision": revision} if revision else {})
    return Operation(5, "delete", "k", None, begun, ended, "unknown" if ended is None else "ok", result)


GOOD: dict[str, list[Operation]] = {
    "a read after a write": [put("a", 0, 1), get("a", 2, 3)],
    "a read beside a write sees it": [put("a", 0, 5), get("a", 1, 2)],
    "a read beside a write does not see it": [put("a", 0, 5), get(None, 1, 2)],
    "two writes beside each other in the order that the reads tell": [
        put("a", 0, 9),
        put("b", 0, 9),
        get("b", 1, 2),
        get("a", 3, 4),
    ],
    "an unknown write that shows late": [put("a", 0, None), get(None, 1, 2), get("a", 90, 91)],
    "an unknown write that never shows": [put("a", 0, None), get(None, 1, 2), get(None, 90, 91)],
    "an unknown write between two known ones": [
        put("u", 0, None),
        put("a", 1, 2),
        get("u", 3, 4),
        put("b", 5, 6),
        get("b", 7, 8),
    ],
    "two unknown writes of the same value show twice": [
        put("u", 0, None),
        put("u", 0, None),
        get("u", 1, 2),
        put("a", 3, 4),
        get("u", 5, 6),
    ],
    "a failed compare-and-set that saw another value": [put("a", 0, 1), cas("b", "c", 2, 3, took=False)],
    "an unknown compare-and-set whose turn comes later": [
        cas("a", "b", 0, None),
        put("a", 1, 2),
        get("b", 3, 4),
    ],
    "a chain of unknown compare-and-sets": [
        put("a", 0, 1),
        cas("b", "c", 2, None),
        cas("a", "b", 2, None),
        get("c", 3, 4),
    ],
    "an unknown delete explains the absence": [put("a", 0, 1), delete(1, 2, None), get(None, 3, 4)],
    "increments beside each other": [incr(2, 0, 9), incr(1, 0, 9), get("2", 10, 11)],
    "an unknown increment that took effect": [incr(1, 0, 1), incr(None, 2, None), incr(3, 3, 4)],
    "the revision of an unknown write is told by its reader": [
        put("a", 0, 1, 3),
        put("u", 2, None),
        get("u", 3, 4, 7),
        get("u", 5, 6, 7),
        put("b", 7, 8, 8),
    ],
    "transactions one after the other": [
        txn({"a": None}, {"b": "1"}, 0, 1),
        txn({"b": "1"}, {"a": "1"}, 2, 3),
    ],
    "a snapshot beside a transfer": [
        txn({}, {"a": "5", "b": "5"}, 0, 1),
        txn({"a": "5", "b": "5"}, {"a": "4", "b": "6"}, 2, 9),
        txn({"a": "4", "b": "6"}, {}, 3, 4),
    ],
}

BAD: dict[str, list[Operation]] = {
    "a lost write": [put("a", 0, 1), get(None, 2, 3)],
    "a value from nowhere": [put("a", 0, 1), get("z", 2, 3)],
    "a stale read between two writes": [
        put("a", 0, 1), put("b", 2, 3), get("a", 4, 5), put("c", 6, 7), get("c", 8, 9)
    ],
    "reads that go back": [put("a", 0, 1), put("b", 2, 9), get("b", 3, 4), get("a", 5, 6)],
    "two readers who disagree about the order of two writes": [
        put("a", 0, 9), put("b", 0, 9), get("a", 10, 11), get("b", 12, 13), get("a", 14, 15)
    ],
    "an unknown write that surfaces twice": [
        put("u", 0, None), get("u", 1, 2), put("a", 3, 4), get("u", 5, 6)
    ],
    "an unknown write that surfaces before it was asked": [get("u", 0, 1), put("u", 2, None)],
    "a lost compare-and-set": [
        put("a", 0, 1), cas("a", "b", 2, 3), cas("a", "c", 4, 5), get("c", 6, 7)
    ],
    "two compare-and-sets that both won": [
        put("a", 0, 1), cas("a", "b", 2, 9), cas("a", "c", 2, 9)
    ],
    "a failed compare-and-set that should have won": [put("a", 0, 1), cas("a", "c", 2, 3, took=False)],
    "a refused write that shows": [
        Operation(0, "put", "k", {"value": "a"}, 0, 1, "refused"), get("a", 2, 3)
    ],
    "an increment applied twice": [incr(1, 0, 1), incr(3, 2, 3)],
    "an increment that was lost": [incr(1, 0, 1), incr(1, 2, 3)],
    "an unknown increment counted twice": [incr(1, 0, 1), incr(None, 2, None), incr(4, 3, 4)],
    "a deleted value that comes back": [put("a", 0, 1), delete(1, 2, 3), get("a", 4, 5)],
    "a delete that found nothing after a write": [put("a", 0, 1), delete(0, 2, 3)],
    "a revision that goes back": [put("a", 0, 1, 5), put("b", 2, 3, 4)],
    "one revision with two values": [put("a", 0, 9, 5), get("b", 1, 2, 5)],
    "a read older than what another client had seen": [
        put("a", 0, 1, 5), put("b", 2, 20, 6), get("b", 3, 4, 6), get("a", 5, 6, 5)
    ],
    "write skew": [
        txn({}, {"a": "0", "b": "0"}, 0, 1),
        txn({"a": "0", "b": "0"}, {"a": "1"}, 2, 9), txn({"a": "0", "b": "0"}, {"b": "1"}, 2, 9),
    ],
    "a fractured read": [
        txn({}, {"a": "0", "b": "0"}, 0, 1), txn({}, {"a": "1", "b": "1"}, 2, 9),
        txn({"a": "1", "b": "0"}, {}, 3, 4),
    ],
    "a long fork": [
        txn({}, {"a": "1"}, 0, 9), txn({}, {"b": "1"}, 0, 9),
        txn({"a": "1", "b": None}, {}, 1, 8), txn({"a": None, "b": "1"}, {}, 1, 8),
    ],
    "half a transaction of unknown outcome": [
        txn({}, {"a": "0", "b": "0"}, 0, 1),
        Operation(
            6, "txn", "", {"then": [
                {"kind": "put", "key": "a", "argument": {"value": "1"}},
                {"kind": "put", "key": "b", "argument": {"value": "1"}},
            ]}, 2, None,
        ),
        txn({"a": "1", "b": "0"}, {}, 3, 4),
    ],
    "a scan that mixes two moments": [
        put("1", 0, 1, key="a"), put("1", 2, 3, key="b"),
        Operation(7, "scan", "", {"keys": ["a", "b"]}, 4, 5, "ok", {"items": {"b": {"value": "1"}}}),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_checker_accepts(name: str) -> None:
    assert check(GOOD[name]).valid is True


@pytest.mark.parametrize("name", BAD)
def test_checker_rejects(name: str) -> None:
    assert check(BAD[name]).valid is False


def test_checker_names_the_answer_that_cannot_be_placed() -> None:
    history = BAD["a stale read between two writes"]
    (violation,) = check(history).violations
    assert violation.operation is history[2]
    assert violation.keys == ("k",)


def test_keys_are_checked_apart_unless_an_operation_joins_them() -> None:
    apart = [put("1", 0, 1, key=key) for key in "abc"]
    assert check(apart).partitions == 3
    assert check([*apart, txn({"a": "1", "b": "1"}, {}, 2, 3)]).partitions == 2


def test_a_search_beyond_its_budget_is_undecided_and_never_good() -> None:
    writes = [put(str(number), 0, 9) for number in range(12)]
    verdict = check([*writes, get("nothing", 1, 8)], expansions_max=1_000)
    assert verdict.valid is None
    assert verdict.undecided == [("k",)]


def test_checker_agrees_with_brute_force_on_ten_thousand_small_histories() -> None:
    good = 0
    for seed in range(10_000):
        history = random_history(seed, length=4 + seed % 3)
        expected = is_linearizable(history)
        assert check(copy.deepcopy(history)).valid is expected, f"seed {seed}: {history}"
        good += expected
    assert 2_000 < good < 9_000, "both verdicts must occur often"


def test_thousands_of_unknown_outcomes_on_one_key_are_decided() -> None:
    history = busy_history(operations=6_000, keys=1, clients=20, unknown=0.35, seed=7)
    assert sum(operation.outcome == "unknown" for operation in history) > 1_900
    assert check(history).valid is True


@pytest.mark.parametrize("seed", range(5))
def test_one_falsified_answer_among_thousands_is_found(seed: int) -> None:
    history = busy_history(operations=3_000, keys=5, clients=20, unknown=0.02, seed=seed)
    assert check(history).valid is True
    reads = [item for item in history if item.kind == "get" and item.outcome == "ok" and item.result]
    spoiled = reads[len(reads) // 2]
    older = next(item for item in reads if item.key == spoiled.key)
    spoiled.result = older.result
    assert check(history).valid is False


@pytest.mark.slow
def test_a_hundred_thousand_operations_of_fifty_clients_take_less_than_thirty_seconds() -> None:
    history = busy_history(operations=100_000, keys=100, clients=50, unknown=0.02, seed=1)
    begun = time.monotonic()
    assert check(history).valid is True
    assert time.monotonic() - begun < 30
