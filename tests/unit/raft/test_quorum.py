from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.raft.messages import Configuration
from kvstore.raft.quorum import (
    UNBOUNDED,
    Outcome,
    agreed,
    has_quorum,
    joint_agreed,
    majority,
    vote_outcome,
)
from tests.support.raft_group import rid


def joint(voters: list[int], outgoing: list[int]) -> Configuration:
    return Configuration(voters=tuple(map(rid, voters)), outgoing=tuple(map(rid, outgoing)))


@pytest.mark.parametrize(("count", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_majority_is_more_than_half(count: int, needed: int) -> None:
    assert majority(count) == needed


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9))
@settings(max_examples=150, deadline=None)
def test_agreed_is_the_highest_number_that_a_majority_has_reached(values: list[int]) -> None:
    expected = max(
        number for number in range(21) if sum(value >= number for value in values) >= majority(len(values))
    )
    assert agreed(values) == expected


def test_agreed_of_three_is_the_median_in_every_order() -> None:
    for values in product(range(4), repeat=3):
        assert agreed(values) == sorted(values)[1]


def test_half_without_voters_holds_nothing_back() -> None:
    assert agreed([]) == UNBOUNDED
    assert joint_agreed(joint([1, 2, 3], []), {rid(1): 5, rid(2): 7}) == 5


def test_joint_configuration_agrees_on_the_lower_half() -> None:
    reached = {rid(1): 9, rid(2): 9, rid(3): 9, rid(4): 2, rid(5): 3}
    assert joint_agreed(joint([1, 2, 3], [3, 4, 5]), reached) == 3


def test_voter_that_was_never_heard_counts_as_zero() -> None:
    assert joint_agreed(joint([1, 2, 3], []), {rid(1): 9}) == 0


def _brute_outcome(voters: list[int], votes: dict[int, bool]) -> Outcome:
    """Won in every completion of the missing votes, lost in every one, or pending."""
    missing = [voter for voter in voters if voter not in votes]
    results = set()
    for completion in product([True, False], repeat=len(missing)):
        full = votes | dict(zip(missing, completion, strict=True))
        results.add(sum(full[voter] for voter in voters) >= majority(len(voters)))
    if not voters or results == {True}:
        return Outcome.WON
    return Outcome.LOST if results == {False} else Outcome.PENDING


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(1, 6), max_size=5, unique=True),
    st.dictionaries(st.integers(1, 7), st.booleans()),
)
@settings(max_examples=150, deadline=None)
def test_vote_is_decided_when_no_missing_vote_can_change_it(
    voters: list[int], outgoing: list[int], votes: dict[int, bool]
) -> None:
    halves = {_brute_outcome(voters, votes), _brute_outcome(outgoing, votes)}
    expected = (
        Outcome.LOST
        if Outcome.LOST in halves
        else Outcome.PENDING
        if Outcome.PENDING in halves
        else Outcome.WON
    )
    by_id = {rid(number): vote for number, vote in votes.items()}
    assert vote_outcome(joint(voters, outgoing), by_id) is expected


def test_votes_of_strangers_do_not_count() -> None:
    votes = {rid(1): True, rid(8): True, rid(9): True}
    assert vote_outcome(joint([1, 2, 3], []), votes) is Outcome.PENDING


def test_quorum_needs_a_majority_of_each_half() -> None:
    configuration = joint([1, 2, 3], [3, 4, 5])
    assert has_quorum(configuration, [rid(1), rid(3), rid(4)])
    assert not has_quorum(configuration, [rid(1), rid(2), rid(4)])
    assert not has_quorum(configuration, [rid(4), rid(5)])
