import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import Corrupt
from kvstore.raft.log import ENTRY_OVERHEAD_BYTES, Flight, RaftLog
from kvstore.raft.messages import CONFIGURATION, NORMAL, Configuration, Entry, SnapshotMeta
from kvstore.raft.restored import NO_SNAPSHOT
from kvstore.types import LogIndex, Term


def entries(*terms: int, first: int = 1, payload: bytes = b"x", kind: int = NORMAL) -> list[Entry]:
    return [
        Entry(LogIndex(index), Term(term), kind, payload) for index, term in enumerate(terms, start=first)
    ]


def log_of(*terms: int, applied: int = 0) -> RaftLog:
    return RaftLog.restore(NO_SNAPSHOT, entries(*terms), LogIndex(applied))


def cut(index: int, term: int) -> SnapshotMeta:
    return SnapshotMeta(LogIndex(index), Term(term), Configuration())


def take(log: RaftLog, number: int) -> tuple[Entry, ...]:
    taken = log.take()
    log.flights.append(Flight(number, log.last_index, Term(1), None, LogIndex(0), None, 0))
    return taken


# --- restoring


def test_restored_log_counts_as_synced() -> None:
    log = log_of(1, 1, 2)
    assert (log.base_index, log.last_index, log.last_term, log.synced, log.taken) == (0, 3, 2, 3, 3)
    assert log.take() == ()


def test_log_after_a_snapshot_knows_the_term_of_the_cut() -> None:
    log = RaftLog.restore(cut(5, 2), entries(2, 3, first=6), LogIndex(5))
    assert [log.term_at(index) for index in (4, 5, 6, 7, 8)] == [None, 2, 2, 3, None]


def test_log_that_ends_before_the_snapshot_is_forgotten() -> None:
    log = RaftLog.restore(cut(9, 3), entries(1, 1), LogIndex(9))
    assert (log.base_index, log.base_term, log.last_index) == (9, 3, 9)


def test_entries_below_the_snapshot_are_kept_for_lagging_peers() -> None:
    log = RaftLog.restore(cut(3, 2), entries(1, 1, 2, 2), LogIndex(3))
    assert (log.base_index, log.last_index) == (0, 4)


def test_first_entry_becomes_the_cut_when_the_term_before_it_is_unknown() -> None:
    log = RaftLog.restore(cut(6, 2), entries(1, 2, 2, 3, first=4), LogIndex(6))
    assert (log.base_index, log.base_term, log.last_index) == (4, 1, 7)


@pytest.mark.parametrize(
    ("snapshot", "stored", "applied"),
    [
        pytest.param(NO_SNAPSHOT, [*entries(1), *entries(1, first=3)], 0, id="gap"),
        pytest.param(NO_SNAPSHOT, entries(2, 1), 0, id="terms fall"),
        pytest.param(NO_SNAPSHOT, entries(1, 1), 3, id="applied beyond the end"),
        pytest.param(cut(2, 2), entries(1, 1, 2), 2, id="snapshot contradicted"),
        pytest.param(cut(5, 1), entries(1, first=7), 5, id="entries missing after the snapshot"),
        pytest.param(cut(5, 3), entries(2, first=6), 5, id="older term after the snapshot"),
        pytest.param(cut(5, 1), [], 4, id="machine older than the snapshot"),
    ],
)
def test_restoring_refuses_what_contradicts_itself(
    snapshot: SnapshotMeta, stored: list[Entry], applied: int
) -> None:
    with pytest.raises(Corrupt):
        RaftLog.restore(snapshot, stored, LogIndex(applied))


# --- durability


def test_entries_are_handed_out_once() -> None:
    log = log_of()
    log.append(entries(1, 1))
    assert take(log, 1) == tuple(entries(1, 1))
    log.append(entries(1, first=3))
    assert take(log, 2) == tuple(entries(1, first=3))
    assert log.synced == 0


def test_completion_covers_all_earlier_writes() -> None:
    log = log_of()
    log.append(entries(1, 1))
    take(log, 1)
    log.append(entries(1, first=3))
    take(log, 2)
    assert [flight.number for flight in log.landed(2)] == [1, 2]
    assert log.synced == 3


def test_completion_of_overwritten_entries_counts_for_nothing() -> None:
    log = log_of(1)
    log.append(entries(1, 1, first=2))
    take(log, 1)
    log.truncate(LogIndex(1))
    log.append(entries(2, first=2))
    take(log, 2)
    log.landed(1)
    assert log.synced == 1
    log.landed(2)
    assert log.synced == 2


def test_completion_counts_for_nothing_even_if_an_equal_entry_came_back() -> None:
    # The disk will in between be without it, until the third write lands.
    log = log_of(1)
    log.append(entries(1, first=2))
    take(log, 1)
    log.truncate(LogIndex(1))
    log.append(entries(2, first=2))
    take(log, 2)
    log.truncate(LogIndex(1))
    log.append(entries(1, first=2))
    take(log, 3)
    log.landed(2)
    assert log.synced == 1
    log.landed(3)
    assert log.synced == 2


def test_truncation_is_written_only_if_something_was_handed_out() -> None:
    log = log_of(1)
    log.append(entries(1, 1, first=2))
    log.truncate(LogIndex(1))
    assert log.pending_truncate is None
    log.append(entries(2, 2, first=2))
    take(log, 1)
    log.truncate(LogIndex(2))
    log.append(entries(3, first=3))
    log.truncate(LogIndex(1))
    assert log.pending_truncate == 1


def test_reset_leaves_only_what_is_committed_acknowledged() -> None:
    log = log_of(1, 1)
    log.append(entries(1, 1, first=3))
    take(log, 1)
    log.reset(LogIndex(9), Term(2), commit=LogIndex(1))
    assert (log.base_index, log.last_index, log.last_term, log.synced) == (9, 9, 2, 1)
    log.landed(1)
    assert log.synced == 1


# --- reading


def test_read_returns_at_least_one_entry_and_stops_before_the_limit() -> None:
    log = log_of(1, 1, 1)
    one = 1 + ENTRY_OVERHEAD_BYTES
    assert log.read(0, 3, 1) == (tuple(entries(1)), one)
    assert log.read(0, 3, 2 * one) == (tuple(entries(1, 1)), 2 * one)
    assert log.read(2, 3, 1) == (tuple(entries(1, first=3)), one)
    assert log.read(0, 3, 1 << 20) == (tuple(entries(1, 1, 1)), 3 * one)


def test_read_below_the_cut_is_our_own_mistake() -> None:
    log = log_of(1, 1, 1, applied=3)
    log.compact(LogIndex(2))
    with pytest.raises(AssertionError, match="cut off"):
        log.read(0, 3, 100)


@given(st.lists(st.integers(1, 5), max_size=12).map(sorted), st.integers(0, 14), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_term_skip_finds_the_last_entry_of_at_most_that_term(terms: list[int], index: int, term: int) -> None:
    log = log_of(*terms)
    expected = max(
        ((at, t) for at, t in enumerate(terms, start=1) if at <= index and t <= term), default=(0, 0)
    )
    assert log.last_at_or_below_term(index, Term(term)) == expected


def test_longer_log_of_an_older_term_is_not_up_to_date() -> None:
    log = log_of(1, 2)
    assert not log.is_up_to_date(LogIndex(9), Term(1))
    assert not log.is_up_to_date(LogIndex(1), Term(2))
    assert log.is_up_to_date(LogIndex(2), Term(2))
    assert log.is_up_to_date(LogIndex(1), Term(3))


# --- cutting


def test_compaction_keeps_the_term_at_the_cut() -> None:
    log = log_of(1, 1, 2, 3, applied=4)
    log.compact(LogIndex(3))
    assert (log.base_index, log.base_term) == (3, 2)
    assert log.between(3, 4) == tuple(entries(3, first=4))
    log.compact(LogIndex(2))
    assert log.base_index == 3


def test_bytes_held_follow_every_change() -> None:
    log = log_of(1, 1, 1, applied=3)
    one = 1 + ENTRY_OVERHEAD_BYTES
    log.append(entries(1, first=4, payload=b"four"))
    assert log.bytes_held == 3 * one + 4 + ENTRY_OVERHEAD_BYTES
    log.truncate(LogIndex(3))
    log.compact(LogIndex(1))
    assert log.bytes_held == 2 * one
    assert log.cut_to_keep(2 * one) == 1
    assert log.cut_to_keep(2 * one - 1) == 2
    assert log.cut_to_keep(0) == 3
    log.reset(LogIndex(9), Term(1), LogIndex(3))
    assert log.bytes_held == 0


def test_unapplied_changes_of_members_are_known() -> None:
    log = log_of(1)
    log.append(entries(1, first=2, kind=CONFIGURATION))
    log.append(entries(1, first=3))
    log.append(entries(1, first=4, kind=CONFIGURATION))
    assert list(log.unapplied_configurations) == [2, 4]
    log.truncate(LogIndex(3))
    assert list(log.unapplied_configurations) == [2]
    stored = entries(1, 1, kind=CONFIGURATION)
    assert list(RaftLog.restore(NO_SNAPSHOT, stored, LogIndex(1)).unapplied_configurations) == [2]


def test_gap_and_falling_term_are_our_own_mistakes() -> None:
    log = log_of(1, 2)
    with pytest.raises(AssertionError, match="gap"):
        log.append(entries(2, first=4))
    with pytest.raises(AssertionError, match="term falls"):
        log.append(entries(1, first=3))
