"""History against a model: every revision that is kept reads as it was, and nothing below."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from _pytest.outcomes import Failed
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import Compacted, Corrupt, RevisionInFuture
from kvstore.store import StoreLimits, commands, queries
from kvstore.store.compaction import Compaction
from kvstore.store.draft import Draft
from tests.support.tablets import MakeTablet, Tablet, make_engines

KEYS = [b"a", b"a\x00", b"b", b"bb", b"c"]
Change = tuple[int, int, bytes, bytes | None]


class Model:
    """All states and all changes that ever were."""

    def __init__(self) -> None:
        self.states: list[dict[bytes, bytes]] = [{}]
        self.changes: list[Change] = []

    def follow(self, tablet: Tablet, state: dict[bytes, bytes], kind: int) -> None:
        """The tablet was changed to `state`, by one revision or none."""
        before = self.states[-1]
        revision = len(self.states)
        if tablet.machine.revision < revision:
            assert state == before
            return
        self.states.append(state)
        gone = [(revision, kind, key, None) for key in sorted(before) if key not in state]
        put = [(revision, 0, key, state[key]) for key in state if state[key] != before.get(key)]
        self.changes += gone + put


def step(tablet: Tablet, model: Model, dice: Random, number: int) -> None:
    state = dict(model.states[-1])
    draw, key = dice.random(), dice.choice(KEYS)
    tablet.clock_ms += dice.choice((0, 1, 50))
    if draw < 0.6:
        value = b"%d." % number + bytes(dice.choice((0, 10, 2000)))
        tablet.put(key, value)
        state[key] = value
        model.follow(tablet, state, 0)
    elif draw < 0.85:
        tablet.run(commands.delete(key))
        state.pop(key, None)
        model.follow(tablet, state, 1)
    else:
        end = dice.choice((b"b", b"bb", None))
        tablet.run(commands.delete_range(b"a", end))
        state = {key: value for key, value in state.items() if end is not None and key >= end}
        model.follow(tablet, state, 1)


def compare(tablet: Tablet, model: Model) -> None:
    machine = tablet.machine
    compacted, newest = machine.compacted, machine.revision
    assert newest == len(model.states) - 1
    for revision in range(compacted, newest + 1):
        found = tablet.scan(revision=revision)[0]
        assert {item[0]: item[1] for item in found} == model.states[revision]
        for key in KEYS:
            assert tablet.value(key, revision) == model.states[revision].get(key)
    events: list[Any] = []
    at = compacted
    while at <= newest:
        found, at = machine.query(["changes", at, {"limit": 3}])
        events += found
    told = [(event[0], event[1], event[2], event[3] and event[3][0]) for event in events]
    assert told == [change for change in model.changes if change[0] >= compacted]
    if compacted:
        for query in (["get", b"a", compacted - 1], ["changes", compacted - 1, {}]):
            with pytest.raises(Compacted) as caught:
                machine.query(query)
            assert caught.value.fields["compacted"] == compacted
    with pytest.raises(RevisionInFuture):
        machine.query(["get", b"a", newest + 1])


@pytest.mark.parametrize("kind", ["memory", "rocks"])
def test_pitfall_24_what_is_kept_is_whole_and_what_is_not_is_refused(
    make_tablet: MakeTablet, kind: str
) -> None:
    for seed in range(4):
        dice = Random(seed)
        limits = StoreLimits(
            history_revisions=dice.choice((0, 3, 10, 1000)), history_ms=dice.choice((100, 1_000_000))
        )
        tablet, model = make_tablet(kind, limits), Model()
        for number in range(60):
            step(tablet, model, dice, number)
            if number % 6 == 0:
                compare(tablet, model)
            if dice.random() < 0.05:
                tablet.reopen()
        compare(tablet, model)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_watcher_that_reads_now_and_then_misses_nothing_or_is_told(seed: int) -> None:
    """As a watch does: from where it stood, until it is told that this is gone."""
    dice = Random(seed)
    tablet = Tablet(make_engines("memory"), "t", StoreLimits(history_revisions=dice.choice((2, 8, 30))))
    model, at = Model(), 1
    seen: list[Change] = []
    gaps: list[tuple[int, int]] = []
    for number in range(80):
        step(tablet, model, dice, number)
        if dice.random() < 0.15:
            try:
                events, at = tablet.machine.query(["changes", at, {}])
            except Compacted as gone:
                gaps.append((at, gone.fields["compacted"]))
                at = gone.fields["compacted"]
                continue
            seen += [(event[0], event[1], event[2], event[3] and event[3][0]) for event in events]
    wanted = [
        change
        for change in model.changes
        if change[0] < at and not any(start <= change[0] < end for start, end in gaps)
    ]
    assert seen == wanted


def _refuse_nothing(patch: pytest.MonkeyPatch) -> None:
    """Reads below the compaction point answer with what is left."""
    patch.setattr(
        queries, "_readable", lambda meta, revision: meta.revision if revision is None else revision
    )


def _say_too_little_is_gone(patch: pytest.MonkeyPatch) -> None:
    """The compaction point is that of the record that was removed, not of the oldest one kept."""
    compact = Compaction.step

    def step(compaction: Compaction, draft: Draft, changed: int) -> None:
        before = draft.compacted
        compact(compaction, draft, changed)
        if draft.compacted > before:
            draft.compacted -= 1

    patch.setattr(Compaction, "step", step)


@pytest.mark.parametrize("remove", [_refuse_nothing, _say_too_little_is_gone])
def test_pitfall_24_is_caught_without_its_guard(
    make_tablet: MakeTablet, monkeypatch: pytest.MonkeyPatch, remove: Callable[[pytest.MonkeyPatch], None]
) -> None:
    remove(monkeypatch)
    with pytest.raises((AssertionError, Failed, Compacted, Corrupt)):
        test_pitfall_24_what_is_kept_is_whole_and_what_is_not_is_refused(make_tablet, "memory")
