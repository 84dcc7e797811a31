"""Slices of the change log: complete, in order, whole revisions, with the values of their time."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.store import StoreLimits, commands
from tests.support.tablets import MakeTablet, Tablet, make_engines


@pytest.fixture
def tablet(make_tablet: MakeTablet) -> Tablet:
    return make_tablet()


def slices(tablet: Tablet, revision: int = 1, **options: Any) -> list[list[Any]]:
    found = []
    while revision <= tablet.machine.revision:
        events, revision = tablet.machine.query(["changes", revision, options])
        found.append(events)
    return found


def told(events: list[Any]) -> list[tuple[int, int, bytes, bytes | None]]:
    return [(event[0], event[1], event[2], event[3] and event[3][0]) for event in events]


def test_a_version_replaced_in_the_same_slice_is_given_as_it_was(tablet: Tablet) -> None:
    for number in range(5):
        tablet.put(b"a", b"%d" % number)
    tablet.run(commands.delete(b"a"))
    [events] = slices(tablet)
    assert told(events) == [(number + 1, 0, b"a", b"%d" % number) for number in range(5)] + [
        (6, 1, b"a", None)
    ]


def test_large_values_come_from_where_they_lie(tablet: Tablet) -> None:
    values = [bytes([number]) * 3000 for number in range(3)]
    for value in values:
        tablet.put(b"a", value)
    events = [event for part in slices(tablet, limit=1, prev=True) for event in part]
    assert [event[3][0] for event in events] == values
    assert [event[4] and event[4][0] for event in events] == [None, *values[:2]]


def test_prev_is_given_only_when_asked_for(tablet: Tablet) -> None:
    tablet.put(b"a", b"1")
    tablet.run(commands.delete(b"a"))
    assert [event[4] for event in slices(tablet)[0]] == [None, None]
    assert [event[4] and event[4][0] for event in slices(tablet, prev=True)[0]] == [None, b"1"]


def test_only_wanted_keys_are_given_and_the_slice_goes_on_behind_all(tablet: Tablet) -> None:
    for key in (b"a", b"b/1", b"c", b"b/2", b"a"):
        tablet.put(key, b"")
    [events] = slices(tablet, keys=[b"a"])
    assert [event[0] for event in events] == [1, 5]
    [events] = slices(tablet, keys=[b"c"], prefixes=[b"b/"])
    assert [event[2] for event in events] == [b"b/1", b"c", b"b/2"]
    assert slices(tablet, keys=[b"none"]) == [[]]


def test_a_slice_ends_behind_its_bytes_but_holds_a_whole_revision(tablet: Tablet) -> None:
    for number in range(4):
        tablet.put(b"k%d" % number, b"x" * 1000)
    tablet.run(commands.delete_range(b"", None))
    parts = slices(tablet, bytes=1500, prev=True)
    assert [[event[0] for event in part] for part in parts] == [[1, 2], [3, 4], [5, 5, 5, 5]]


def test_changes_of_one_revision_know_their_place(tablet: Tablet) -> None:
    tablet.put(b"a", b"")
    tablet.put(b"b", b"")
    tablet.put(b"c", b"")
    tablet.run(commands.delete_range(b"", None))
    [events] = slices(tablet)
    assert [event[5:] for event in events] == [[0, 0]] * 3 + [[0, 2], [1, 1], [2, 0]]
    [events] = slices(tablet, keys=[b"b"])
    assert [event[5:] for event in events] == [[0, 0], [1, 1]], "as if nothing were left out"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 32), limit=st.integers(1, 7), size=st.integers(1, 4000))
def test_any_slicing_gives_the_history_that_reads_at_each_revision_show(
    seed: int, limit: int, size: int
) -> None:
    dice = Random(seed)
    tablet = Tablet(make_engines("memory"), "t", StoreLimits())
    keys = [b"a", b"b", b"c"]
    for _ in range(40):
        key = dice.choice(keys)
        draw = dice.random()
        if draw < 0.7:
            tablet.put(key, dice.randbytes(dice.choice((1, 30, 1500))))
        elif draw < 0.9:
            tablet.run(commands.delete(key))
        else:
            tablet.run(commands.delete_range(b"a", dice.choice((b"c", None))))
    events = [event for part in slices(tablet, limit=limit, bytes=size, prev=True) for event in part]
    revisions = [event[0] for event in events]
    assert revisions == sorted(revisions)
    assert sorted(set(revisions)) == list(range(1, tablet.machine.revision + 1))
    for revision, kind, key, item, prev, _before, _after in events:
        assert (item and item[0]) == tablet.value(key, revision)
        assert (kind == 0) == (item is not None)
        assert (prev and prev[0]) == (tablet.value(key, revision - 1) if revision > 1 else None)
