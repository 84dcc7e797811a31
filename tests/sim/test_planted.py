"""Bugs that are planted are found: a few here, all of them among the long tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sim.mutations import MUTATIONS
from tests.sim.planted import hunt

SOON = (
    "acknowledges_before_sync",
    "applied_index_ahead_of_data",
    "own_clock_in_state",
    "sessions_ignored",
    "sessions_lost_at_restart",
)
"""Found within the first few seeds, short ones; docs/testing.md has all."""
SHORT_S = 8.0
SEEDS = range(1, 201)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(100):
        yield


@pytest.mark.parametrize("name", SOON)
def test_planted_bug_is_found_soon(name: str) -> None:
    found = hunt(MUTATIONS[name], range(1, 9), fault_s=SHORT_S)
    assert found.seed is not None


def test_every_pitfall_has_a_planted_bug() -> None:
    planted = {mutation.pitfall for mutation in MUTATIONS.values()}
    assert set(range(1, 26)) <= planted


@pytest.mark.sim_long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MUTATIONS)
def test_planted_bug_is_found_within_200_seeds(name: str) -> None:
    assert hunt(MUTATIONS[name], SEEDS).seed is not None


@pytest.mark.sim_long
@pytest.mark.timeout(7200)
def test_half_of_the_planted_bugs_show_without_invariants() -> None:
    """Seed by seed, until half have shown: some never do from outside."""
    hidden = dict(MUTATIONS)
    for seed in SEEDS:
        for name, mutation in list(hidden.items()):
            if hunt(mutation, [seed], check_invariants=False).seed is not None:
                del hidden[name]
        if 2 * len(hidden) <= len(MUTATIONS):
            return
    pytest.fail(f"hidden from outside: {', '.join(hidden)}")
