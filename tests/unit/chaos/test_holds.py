"""The checker of locks: it finds what is wrong, and nothing in what is right."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.history import Operation
from chaos.holds import check_locks


def op(
    kind: str, invoked: float, returned: float, argument: Any, result: Any, outcome: str = "ok"
) -> Operation:
    return Operation(0, kind, "a", argument, invoked, returned, outcome, result)  # type: ignore[arg-type]


def acquire(invoked: float, returned: float, fence: int, ttl_s: float = 10.0) -> Operation:
    return op("acquire", invoked, returned, {"ttl_s": ttl_s}, {"token": f"t{fence}", "fence": fence})


def keep(invoked: float, returned: float, fence: int, *, is_held: bool = True) -> Operation:
    return op("keepalive", invoked, returned, {"token": f"t{fence}"}, {"is_held": is_held})


def release(invoked: float, returned: float, fence: int, *, is_released: bool = True) -> Operation:
    return op("release", invoked, returned, {"token": f"t{fence}"}, {"is_released": is_released})


def look(invoked: float, returned: float, fence: int) -> Operation:
    return op("holder", invoked, returned, None, {"fence": fence} if fence else None)


def final(outcome: str) -> Operation:
    return op("acquire", 90.0, 91.0, {"ttl_s": 3.0, "is_final": True}, None, outcome)


RIGHT = {
    "one after the other": [acquire(0, 1, 5), release(2, 3, 5), acquire(1, 2.5, 9)],
    "taken when it had run out": [acquire(0, 1, 5), acquire(2, 9.8, 9)],
    "kept, then lost late": [
        acquire(0, 1, 5),
        keep(8, 9, 5),
        keep(18, 19, 5, is_held=False),
        acquire(18, 19, 9),
    ],
    "lost in between, told late": [acquire(0, 1, 5), keep(9, 12, 5, is_held=False)],
    "seen": [acquire(0, 1, 5), look(2, 3, 5), release(4, 5, 5), look(4.5, 6, 5), look(7, 8, 0)],
    "released twice": [acquire(0, 1, 5), release(2, 3, 5), release(4, 5, 5, is_released=False)],
    "had in the end": [acquire(0, 1, 5), final("ok")],
}

WRONG = {
    "two with one fence": (
        [acquire(0, 1, 5), op("acquire", 20, 21, {"ttl_s": 1.0}, {"token": "x", "fence": 5})],
        "two",
    ),
    "granted while another holds": ([acquire(0, 1, 5), acquire(2, 3, 9)], "lasts until"),
    "granted while it was kept": ([acquire(0, 1, 5), keep(8, 9, 5), acquire(2, 12, 9)], "lasts until"),
    "a fence that shrinks": ([acquire(0, 1, 9, 1.0), acquire(20, 21, 5)], "after fence 9"),
    "lost early": ([acquire(0, 1, 5), keep(2, 3, 5, is_held=False)], "was lost"),
    "not there to release": ([acquire(0, 1, 5), release(2, 3, 5, is_released=False)], "was lost"),
    "kept after another got it": (
        [acquire(0, 1, 5, 2.0), acquire(4, 5, 9), keep(6, 7, 5)],
        "renewed after",
    ),
    "not seen": ([acquire(0, 1, 5), look(2, 3, 0)], "was seen"),
    "another seen": ([acquire(0, 1, 5), look(2, 3, 4)], "was seen"),
    "never had again": ([acquire(0, 1, 5), final("conflict")], "can not be had"),
    "a token from nowhere": ([release(2, 3, 5)], "nowhere"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_not_complained_of(name: str) -> None:
    assert check_locks(RIGHT[name]) == []


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str) -> None:
    history, words = WRONG[name]
    faults = check_locks(history)
    assert faults
    assert words in " ".join(faults)


def test_locks_are_judged_each_for_itself() -> None:
    other = acquire(2, 3, 4)
    other.key = "b"
    assert check_locks([acquire(0, 1, 5), other]) == []
