import pytest

from kvstore.raft.reads import WaitingReads
from kvstore.types import LogIndex


def test_later_round_confirms_earlier_reads() -> None:
    reads = WaitingReads()
    reads.parked += [1, 2]
    reads.issue(3, LogIndex(10))
    reads.parked.append(3)
    reads.issue(4, LogIndex(11))
    reads.parked.append(4)
    assert reads.confirm(2) == []
    assert reads.confirm(4) == [(1, 10), (2, 10), (3, 11)]
    assert reads.parked == [4]
    assert reads


def test_round_confirms_no_later_read() -> None:
    reads = WaitingReads()
    reads.parked.append(1)
    reads.issue(1, LogIndex(5))
    reads.parked.append(2)
    reads.issue(2, LogIndex(6))
    assert reads.confirm(1) == [(1, 5)]
    assert reads.confirm(1) == []


def test_lost_leadership_returns_every_waiting_read_once() -> None:
    reads = WaitingReads()
    reads.parked += [1, 2]
    reads.issue(1, LogIndex(5))
    reads.parked.append(3)
    assert sorted(reads.lose()) == [1, 2, 3]
    assert reads.lose() == []
    assert not reads


def test_rounds_must_grow() -> None:
    reads = WaitingReads()
    reads.issue(2, LogIndex(1))
    with pytest.raises(AssertionError):
        reads.issue(2, LogIndex(1))
