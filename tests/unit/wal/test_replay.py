"""What records mean in the order they are read, also in orders that only damage or copying can make."""

from __future__ import annotations

import pytest

from kvstore.types import LogIndex
from kvstore.wal import batch
from kvstore.wal.batch import parse, payloads
from kvstore.wal.index import Place
from kvstore.wal.record import (
    ClockRecord,
    Inventory,
    InventoryLine,
    Record,
    Relocated,
    ShardDestroyed,
    SnapshotInstalled,
    Truncate,
    encode,
    entry_count,
)
from kvstore.wal.replay import RecoveredReplica, Replay
from tests.support.wal_model import created, entries, hard_state, installed, key


class _Log:
    """Feeds batches of (number, record) to a replay."""

    def __init__(self) -> None:
        self.replay = Replay()
        self.sequence = 0

    def add(self, *numbered: tuple[int, Record], rotten: int | None = None) -> None:
        self.sequence += 1
        coded = [encode(record) for _, record in numbered]
        rows = [batch.row(each, number) for each, (number, _) in zip(coded, numbered, strict=True)]
        content, _ = batch.encode(1, self.sequence, 0, rows, [each[5] for each in coded])
        found = parse(content, 0, 1)
        assert found is not None
        bodies = payloads(content, found)
        if rotten is not None:
            bodies[rotten] = None
        place = Place(1, self.sequence * 512, self.sequence * 512 + len(content), self.sequence)
        self.replay.replay(found, bodies, place)

    def shard(self, shard: int) -> RecoveredReplica:
        return self.replay.finish().replicas[key(shard)]


def _inventory(*lines: tuple[int, int, int, int], oldest: int = 1, has_lost_track: bool = False) -> Inventory:
    made = (
        InventoryLine(*key(shard), number, LogIndex(first), LogIndex(last), False)
        for shard, number, first, last in lines
    )
    return Inventory(oldest, has_lost_track, tuple(made))


def _indexes(replica: RecoveredReplica) -> list[tuple[int, int]]:
    return [(each.index, each.term) for each in replica.entries]


def _relocated(first: int, count: int, term: int = 1, origin: int = 0) -> Relocated:
    return Relocated(*key(1), origin, entries(1, first, count, term).entries)


def test_pitfall_27_copies_behind_newer_entries_fill_the_range_below_them() -> None:
    log = _Log()
    log.add((0, _inventory((1, 10, 5, 8))), (11, entries(1, 9, 12)))
    log.add((12, created(1)), (13, _relocated(5, 4)))
    replica = log.shard(1)
    assert replica.quarantined is None
    assert [index for index, _ in _indexes(replica)] == list(range(5, 21))


def test_copy_of_what_is_still_there_changes_nothing() -> None:
    log = _Log()
    log.add((1, created(1)), (2, entries(1, 1, 5)))
    log.add((3, _relocated(2, 3, origin=1)))
    log.add((4, entries(1, 6)))
    assert [index for index, _ in _indexes(log.shard(1))] == [1, 2, 3, 4, 5, 6]
    assert log.shard(1).quarantined is None


def test_copy_is_void_where_a_truncation_came_after_what_it_copies() -> None:
    log = _Log()
    log.add((1, created(1)))
    log.add((2, entries(1, 1, 8)))
    log.add((3, Truncate(*key(1), LogIndex(6))), (4, entries(1, 7, 1, term=2)))
    log.add((5, _relocated(5, 4, term=1, origin=2)))
    replica = log.shard(1)
    assert replica.quarantined is None
    assert _indexes(replica)[4:] == [(5, 1), (6, 1), (7, 2)]


def test_copy_is_void_where_a_snapshot_was_installed_after_what_it_copies() -> None:
    log = _Log()
    log.add((1, created(1)))
    log.add((2, entries(1, 1, 8)))
    log.add((3, installed(1, 100, 5)))
    log.add((4, _relocated(5, 4, origin=2)), (5, entries(1, 101, term=5)))
    assert _indexes(log.shard(1)) == [(101, 5)]


def test_truncation_after_a_copy_shortens_it_too() -> None:
    log = _Log()
    log.add((0, _inventory((1, 10, 5, 8))), (11, created(1)))
    log.add((12, _relocated(5, 4, origin=1)))
    log.add((13, Truncate(*key(1), LogIndex(6))), (14, entries(1, 7, 2, term=2)))
    assert _indexes(log.shard(1)) == [(5, 1), (6, 1), (7, 2), (8, 2)]


def test_copy_that_contradicts_what_is_there_is_damage() -> None:
    log = _Log()
    log.add((1, created(1)), (2, entries(1, 1, 3)))
    log.add((3, _relocated(2, 1, term=9, origin=1)))
    assert "has a copy of term 9" in (log.shard(1).quarantined or "")


def test_copy_of_an_installed_snapshot_names_the_tablet_and_leaves_the_log_alone() -> None:
    log = _Log()
    record = installed(1, 4, 1, "1-1-b")
    log.add((0, _inventory((1, 3, 5, 6))), (4, _relocated(5, 2)), (5, created(1)))
    log.add((6, SnapshotInstalled(*key(1), record.directory, record.meta, origin=1)), (7, entries(1, 7)))
    replica = log.shard(1)
    assert replica.installed is not None
    assert replica.installed.directory == "1-1-b"
    assert [index for index, _ in _indexes(replica)] == [5, 6, 7]
    assert replica.quarantined is None


def test_entries_that_are_needed_and_nowhere_to_be_found_are_missed() -> None:
    log = _Log()
    log.add((0, _inventory((1, 10, 5, 8))), (11, entries(1, 9, 2)), (12, created(1)))
    assert "entries from 5 on are missing" in (log.shard(1).quarantined or "")


def test_entries_that_are_not_needed_are_not_given_back() -> None:
    log = _Log()
    log.add((1, created(1)), (2, entries(1, 1, 8)))
    log.add((0, _inventory((1, 2, 6, 8))))
    log.add((3, entries(1, 9)))
    assert [index for index, _ in _indexes(log.shard(1))] == [6, 7, 8, 9]


def test_gap_in_a_replicas_numbers_hurts_it_and_no_other() -> None:
    log = _Log()
    log.add((1, created(1)), (1, created(2)), (2, entries(1, 1)), (2, entries(2, 1)))
    log.add((4, entries(1, 2)), (3, entries(2, 2)))
    assert "records 3 to 3 are missing" in (log.shard(1).quarantined or "")
    assert _indexes(log.shard(1)) == [(1, 1)]
    assert log.shard(2).quarantined is None


def test_entries_that_do_not_follow_hurt_even_if_their_number_does() -> None:
    log = _Log()
    log.add((1, created(1)), (2, entries(1, 1)))
    log.add((3, entries(1, 5)))
    assert "entries from 5 on follow index 1" in (log.shard(1).quarantined or "")


def test_damage_clears_whoever_goes_on_without_a_gap() -> None:
    log = _Log()
    log.add((1, created(1)), (1, created(2)), (1, created(3)))
    log.replay.damaged("a batch is gone")
    log.add((2, entries(1, 1)))
    log.add((3, entries(2, 2)))
    assert log.shard(1).quarantined is None
    assert log.shard(2).quarantined == "a batch is gone"
    assert log.shard(3).quarantined == "a batch is gone"
    assert log.replay.finish().has_lost_track


def test_inventory_after_damage_clears_the_quiet_and_convicts_the_rest() -> None:
    log = _Log()
    log.add((1, created(1)), (1, created(2)))
    log.replay.damaged("a batch is gone")
    log.add((0, _inventory((1, 1, 1, 0), (2, 2, 1, 1), (3, 1, 1, 0))))
    assert log.shard(1).quarantined is None
    assert log.shard(2).quarantined == "a batch is gone"
    assert log.shard(3).quarantined == "every record of it is lost"
    assert not log.replay.finish().has_lost_track


def test_rotten_row_hurts_the_replica_it_names_and_the_rest_of_the_batch_counts() -> None:
    log = _Log()
    log.add((1, created(1)), (1, created(2)))
    log.add((2, entries(1, 1)), (2, entries(2, 1)), rotten=0)
    log.add((3, entries(1, 2)), (3, entries(2, 2)))
    assert "entries record of shard 1 is damaged" in (log.shard(1).quarantined or "")
    assert _indexes(log.shard(2)) == [(1, 1), (2, 1)]


def test_rotten_clocks_hurt_nobody_and_a_rotten_first_inventory_everybody() -> None:
    log = _Log()
    log.add((1, created(1)), (0, ClockRecord(((key(1)[0], 4),))), rotten=1)
    assert log.shard(1).quarantined is None
    assert "clock record is damaged" in log.replay.damage[0]
    other = _Log()
    other.add((0, _inventory((1, 5, 1, 0))), (6, created(1)), rotten=0)
    assert other.shard(1).quarantined is not None


def test_replica_that_an_inventory_does_not_know_was_destroyed_and_that_record_is_lost() -> None:
    log = _Log()
    log.add((1, created(1)), (1, created(2)), (2, ShardDestroyed(*key(2))))
    log.add((0, _inventory()))
    assert log.shard(1).quarantined is not None
    assert log.shard(2).destroyed


def test_newest_hard_state_wins_and_clocks_are_the_highest() -> None:
    log = _Log()
    log.add((1, created(1)), (2, hard_state(1, 3)), (0, ClockRecord(((key(1)[0], 9),))))
    log.add((3, hard_state(1, 4, None)), (0, ClockRecord(((key(1)[0], 5),))))
    assert (log.shard(1).hard_state.term, log.shard(1).hard_state.vote) == (4, None)
    assert log.replay.finish().clocks == {1: 9}


def test_lost_track_is_taken_over_from_the_inventory() -> None:
    log = _Log()
    log.add((0, _inventory(has_lost_track=True)))
    assert log.replay.finish().has_lost_track


def test_missing_oldest_segment_makes_everybody_suspect() -> None:
    log = _Log()
    log.add((0, _inventory((1, 1, 1, 0), oldest=3)), (2, created(1)))
    log.replay.check_oldest([3, 4])
    assert log.shard(1).quarantined is None
    log.replay.check_oldest([4])
    assert "segments 3 to 3 are missing" in (log.shard(1).quarantined or "")


def test_entries_below_the_floor_are_checked_but_not_kept() -> None:
    log = _Log()
    log.replay = Replay({key(1): LogIndex(6)})
    log.add((1, created(1)), (2, entries(1, 1, 3)))
    log.add((3, entries(1, 4)), (4, entries(1, 5, 3)), (5, entries(1, 8)))
    log.add((0, _inventory((1, 5, 6, 8))))
    assert [index for index, _ in _indexes(log.shard(1))] == [6, 7, 8]
    assert log.shard(1).quarantined is None
    assert log.replay.index.replicas[key(1)].pieces[0].first == 5
    log.add((6, entries(1, 11)))
    assert "entries from 11 on follow index 8" in (log.shard(1).quarantined or "")


@pytest.mark.parametrize("count", [1, 15, 16, 300, 70_000])
def test_entries_are_counted_without_being_decoded(count: int) -> None:
    assert entry_count(encode(entries(1, 1, count, payload=b""))[5]) == count
