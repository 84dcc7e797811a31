"""Majority arithmetic, in single and joint configurations (thesis 4.3).

A joint configuration decides by a majority of each half. The outgoing half of a configuration that is
not joint is empty: it holds nothing back and objects to nobody.

The general functions take mappings and are what tests compare with. The leader's hot path uses
`agreed`, which avoids sorting for the group sizes that occur.
"""

from collections.abc import Collection, Mapping, Sequence
from enum import Enum

from kvstore.raft.messages import Configuration
from kvstore.types import ReplicaId

UNBOUNDED = 1 << 63
"""What an empty half agrees on: more than any index or round."""


class Outcome(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(count: int) -> int:
    """Return the smallest number of `count` voters that meets every other majority."""
    return count // 2 + 1


def agreed(values: Sequence[int]) -> int:
    """Return the highest number that a majority of the voters has reached, one value per voter."""
    count = len(values)
    if count == 3:
        first, second, third = values
        if first > second:
            first, second = second, first
        return second if second <= third else (first if first > third else third)
    if count == 2:
        return values[0] if values[0] < values[1] else values[1]
    if count == 1:
        return values[0]
    if count == 0:
        return UNBOUNDED
    return sorted(values)[(count - 1) // 2]


def joint_agreed(configuration: Configuration, reached: Mapping[ReplicaId, int]) -> int:
    """Return the highest number that both halves have reached. A voter that is not in `reached` is at 0."""
    return min(
        agreed([reached.get(voter, 0) for voter in configuration.voters]),
        agreed([reached.get(voter, 0) for voter in configuration.outgoing]),
    )


def _half_outcome(voters: Collection[ReplicaId], votes: Mapping[ReplicaId, bool]) -> Outcome:
    if not voters:
        return Outcome.WON
    granted = refused = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is True:
            granted += 1
        elif vote is False:
            refused += 1
    needed = majority(len(voters))
    if granted >= needed:
        return Outcome.WON
    return Outcome.LOST if len(voters) - refused < needed else Outcome.PENDING


def vote_outcome(configuration: Configuration, votes: Mapping[ReplicaId, bool]) -> Outcome:
    """Judge an election by the votes seen so far; those of non-voters do not count."""
    halves = (
        _half_outcome(configuration.voters, votes),
        _half_outcome(configuration.outgoing, votes),
    )
    if Outcome.LOST in halves:
        return Outcome.LOST
    return Outcome.PENDING if Outcome.PENDING in halves else Outcome.WON


def has_quorum(configuration: Configuration, present: Collection[ReplicaId]) -> bool:
    """Tell whether those present are a majority of each half."""
    return vote_outcome(configuration, dict.fromkeys(present, True)) is Outcome.WON
