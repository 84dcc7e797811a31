"""The judge of watches: it finds what is lost, repeated, reordered or different."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.history import Operation
from chaos.streams import GAP, check_watches

PUT_1 = ["put", "k", "a", 5, 1, 5]
PUT_2 = ["put", "k", "b", 7, 2, 5]
PUT_3 = ["put", "k", "c", 8, 3, 5]
GONE = ["delete", "k", None, 9, None, None]
ANEW = ["put", "k", "d", 12, 1, 12]
WHOLE = [PUT_1, PUT_2, PUT_3, GONE, ANEW]


def stream(
    events: list[Any], process: int = 1, held: dict[str, int] | None = None, begun: float | None = 0.5
) -> Operation:
    argument = {"from": None} if held is None else {"from": None, "is_final": True}
    result = {"events": events, "begun": begun} | ({} if held is None else {"held": held})
    return Operation(process, "watch", "k", argument, 0.0, 9.0, "ok", result)


def put(revision: int, invoked: float = 1.0) -> Operation:
    return Operation(2, "put", "k", {"value": "x"}, invoked, invoked + 0.1, "ok", {"revision": revision})


def test_a_whole_history_in_pieces_is_right() -> None:
    history = [stream(WHOLE[:2]), put(7), put(12), stream(WHOLE[2:], held={"k": 12}, begun=None)]
    assert check_watches(history) == []


@pytest.mark.parametrize(
    "events",
    [
        [PUT_1, PUT_3],
        [PUT_1, PUT_1],
        [PUT_2, PUT_1],
        [PUT_1, PUT_2, PUT_3, ANEW],
        [GONE, GONE],
        [PUT_3, GONE, ["put", "k", "e", 13, 2, 12]],
        [PUT_1, ["put", "k", "b", 7, 2, 6]],
    ],
)
def test_what_is_missing_repeated_or_out_of_order_is_found(events: list[Any]) -> None:
    assert check_watches([stream(events)])


def test_what_was_acknowledged_and_never_told_is_found() -> None:
    history = [stream(WHOLE, held={"k": 12}), put(20)]
    [fault] = check_watches(history)
    assert "revision 20 was never told" in fault
    assert check_watches([stream(WHOLE, held={"k": 12}), put(3, invoked=0.1)]) == [], "before it began"
    assert check_watches([stream(WHOLE), put(20)]) == [], "it was never read to the end"


def test_an_end_that_differs_from_what_is_held_is_found() -> None:
    assert check_watches([stream(WHOLE, held={"k": 13})])
    assert check_watches([stream(WHOLE[:3], held={})])
    assert check_watches([stream(WHOLE[:4], held={})]) == []


def test_watchers_that_were_told_different_things_are_found() -> None:
    other = ["put", "k", "z", 7, 2, 5]
    assert check_watches([stream([PUT_1, PUT_2]), stream([PUT_1, other], process=3)])


def test_a_gap_that_was_told_excuses_what_is_missing() -> None:
    assert check_watches([stream([PUT_1, [GAP], ANEW], held={"k": 12}), put(7)]) == []
