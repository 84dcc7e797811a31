"""The bank's judge: what it lets pass, and each kind of wrong answer that it must see."""

from typing import Any

import pytest

from chaos.history import Operation
from chaos.ledger import check_bank, doubts_of_bank

A, B, R = "a", "b", "receipt-1"


def opened(balance: int = 10) -> Operation:
    accounts = {A: balance, B: balance}
    items = {key: [balance, 1] for key in accounts}
    return Operation(0, "open", "", {"accounts": accounts}, 0.0, 0.1, "ok", {"items": items})


def transfer(
    at: float, items: dict[str, Any] | None, amount: int = 1, leaders: tuple[str, str] = ("n1", "n2")
) -> Operation:
    argument = {"deltas": {A: -amount, B: amount}, "receipt": R, "leaders": list(leaders)}
    if items is None:
        return Operation(1, "transfer", "", argument, at, None, "unknown")
    return Operation(1, "transfer", "", argument, at, at + 0.1, "ok", {"items": items})


def snapshot(at: float, a: list[int], b: list[int]) -> Operation:
    return Operation(2, "snapshot", "", {"accounts": [A, B]}, at, at + 0.1, "ok", {"items": {A: a, B: b}})


def receipt(at: float, count: int) -> Operation:
    items = {R: [count, 9]} if count else {}
    return Operation(0, "receipt", R, None, at, at + 0.1, "ok", {"items": items})


GOOD = [
    opened(),
    snapshot(0.5, [10, 1], [10, 1]),
    transfer(1.0, {A: [9, 2], B: [11, 2], R: [1, 1]}),
    transfer(2.0, None),
    snapshot(3.0, [9, 2], [11, 2]),
    transfer(4.0, {A: [7, 4], B: [13, 4], R: [3, 3]}),
    snapshot(5.0, [7, 4], [13, 4]),
    receipt(6.0, 3),
]


def test_history_that_can_be_explained_passes() -> None:
    assert check_bank(GOOD) == []
    assert check_bank([]) == []


@pytest.mark.parametrize(
    ("wrong", "sign"),
    [
        (snapshot(5.5, [7, 4], [14, 4]), "sums differ from 20"),
        (snapshot(5.5, [9, 2], [11, 2]), "had been answered before"),
        (snapshot(5.5, [8, 4], [12, 4]), "is 7 and 8"),
        (transfer(5.5, {A: [6, 4], B: [14, 5], R: [3, 4]}), "two transfers changed a"),
        (transfer(5.5, {A: [6, 5], B: [14, 5], R: [5, 4]}), "receipt-1 counts 5"),
        (transfer(5.5, {A: [6, 5], B: [14, 5], R: [2, 4]}), "receipt-1 counts 2"),
        (receipt(6.5, 1), "receipt-1 counts 1"),
        (receipt(6.5, 0), "receipt-1 counts 0"),
    ],
)
def test_wrong_answer_is_seen(wrong: Operation, sign: str) -> None:
    history = sorted([*GOOD, wrong], key=lambda operation: operation.invoked)
    assert any(sign in fault for fault in check_bank(history)), check_bank(history)


def test_snapshots_that_each_lack_what_the_other_shows_are_seen() -> None:
    at_once = [
        Operation(
            2, "snapshot", "", {"accounts": [A, B]}, 1.0, 9.0, "ok", {"items": {A: [9, 2], B: [11, 1]}}
        ),
        Operation(
            3, "snapshot", "", {"accounts": [A, B]}, 1.0, 9.0, "ok", {"items": {A: [10, 1], B: [10, 2]}}
        ),
    ]
    assert any("each lack what the other shows" in fault for fault in check_bank([opened(), *at_once]))


def test_half_a_transfer_in_a_snapshot_is_seen() -> None:
    moved = Operation(
        1,
        "transfer",
        "",
        {"deltas": {A: 0, B: 0}, "receipt": R, "leaders": ["n1", "n2"]},
        1.0,
        9.0,
        "ok",
        {"items": {A: [10, 2], B: [10, 2], R: [1, 1]}},
    )
    half = Operation(
        2, "snapshot", "", {"accounts": [A, B]}, 1.0, 9.0, "ok", {"items": {A: [10, 2], B: [10, 1]}}
    )
    assert any("a part of what client 1 moved" in fault for fault in check_bank([opened(), moved, half]))


def test_bank_that_stays_on_one_node_shows_too_little() -> None:
    idle = [
        transfer(1.0 + n, {A: [9, 2 + n], B: [11, 2 + n], R: [n + 1, n + 1]}, 1, ("n1", "n1"))
        for n in range(2)
    ]
    assert check_bank([opened(), *idle]) == []
    assert any("only 0 of 2 transfers spanned" in doubt for doubt in doubts_of_bank([opened(), *idle]))


@pytest.mark.parametrize(("looks", "fault_count"), [([2, 0], 0), ([0, 1], 1), ([], 0)])
def test_transaction_that_is_left_prepared_is_seen(looks: list[int], fault_count: int) -> None:
    rest = [
        Operation(0, "rest", "", None, 7.0 + number, 7.1 + number, "ok", {"intents": count})
        for number, count in enumerate(looks)
    ]
    assert len(check_bank([*GOOD, *rest])) == fault_count
