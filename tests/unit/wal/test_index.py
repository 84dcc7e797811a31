"""The index knows what is alive and where; it refuses what a log can't take."""

import pytest

from kvstore.types import LogIndex
from kvstore.wal.index import PIECE_BYTES, Index, Place, ReplicaIndex
from kvstore.wal.record import (
    ClockRecord,
    HardStateRecord,
    Inventory,
    Quarantined,
    Record,
    Relocated,
    ShardCreated,
    ShardDestroyed,
    SnapshotInstalled,
    Truncate,
)
from tests.support.wal_model import created, entries, hard_state, installed, key


class _Noted(Index):
    """An index that is told of batches of one record each, 512 bytes long."""

    def __init__(self) -> None:
        super().__init__()
        self.segment = 1
        self.sequence = 0

    def write(self, *records: Record) -> None:
        for record, number in zip(records, self.number_records(records), strict=True):
            self.sequence += 1
            offset = self.sequence * 512
            self.note(record, number, 100, Place(self.segment, offset, offset + 512, self.sequence))


def _started() -> tuple[_Noted, ReplicaIndex]:
    index = _Noted()
    index.write(created(1))
    return index, index.replicas[key(1)]


def _ranges(replica: ReplicaIndex) -> list[tuple[int, int, int]]:
    return [(piece.segment, piece.first, piece.last) for piece in replica.pieces]


def test_entries_close_by_make_one_piece_and_a_new_segment_a_new_one() -> None:
    index, replica = _started()
    index.write(entries(1, 1, 3), entries(1, 4), entries(1, 5))
    index.segment = 2
    index.write(entries(1, 6))
    assert _ranges(replica) == [(1, 1, 5), (2, 6, 6)]
    assert replica.pieces[0].entry_bytes == 300
    assert (replica.pieces[0].offset, replica.pieces[0].end) == (1024, 2560)


def test_piece_ends_before_it_is_long_to_read() -> None:
    index, replica = _started()
    index.write(*(entries(1, each) for each in range(1, 2 * PIECE_BYTES // 512 + 1)))
    assert len(replica.pieces) == 2
    assert all(piece.end - piece.offset <= PIECE_BYTES for piece in replica.pieces)


def test_truncation_shortens_and_what_follows_is_a_piece_of_its_own() -> None:
    index, replica = _started()
    index.write(entries(1, 1, 5), Truncate(*key(1), LogIndex(3)), entries(1, 4, term=2))
    assert _ranges(replica) == [(1, 1, 3), (1, 4, 4)]
    assert replica.last == 4
    index.write(Truncate(*key(1), LogIndex(9)))
    assert replica.last == 4, "nothing is above 9"


def test_installed_snapshot_empties_the_log_and_its_copy_does_not() -> None:
    index, replica = _started()
    index.write(entries(1, 1, 5), installed(1, 50, 2))
    assert (replica.first, replica.last, replica.pieces) == (51, 50, [])
    index.write(entries(1, 51, 2))
    record = replica.newest[SnapshotInstalled].record
    assert isinstance(record, SnapshotInstalled)
    index.write(SnapshotInstalled(*key(1), record.directory, record.meta, origin=3))
    assert (replica.first, replica.last) == (51, 52)
    assert _ranges(replica) == [(1, 51, 52)]


def test_relocated_entries_replace_the_pieces_they_copy_and_split_what_they_only_touch() -> None:
    index, replica = _started()
    index.write(entries(1, 1, 9))
    index.segment = 2
    index.write(entries(1, 10, 2))
    index.write(Relocated(*key(1), 2, entries(1, 4, 3).entries))
    assert sorted(_ranges(replica)) == [(1, 1, 3), (1, 7, 9), (2, 4, 6), (2, 10, 11)]
    assert replica.last == 11
    index.write(entries(1, 12))
    assert replica.last == 12
    assert (2, 12, 12) in _ranges(replica), "a copy is not continued"


def test_entries_that_are_not_needed_are_forgotten_but_never_more_than_there_are() -> None:
    index, replica = _started()
    index.write(entries(1, 1, 5))
    index.drop_below({key(1): LogIndex(3), key(7): LogIndex(9)})
    assert (replica.first, _ranges(replica)) == (3, [(1, 1, 5)])
    index.drop_below({key(1): LogIndex(2)})
    assert replica.first == 3
    index.drop_below({key(1): LogIndex(100)})
    assert (replica.first, replica.pieces) == (6, [])
    assert replica.live_pieces(1) == []


def test_newest_lasting_records_are_kept_with_their_place() -> None:
    index, replica = _started()
    index.write(hard_state(1, 1), hard_state(1, 2), Quarantined(*key(1), "rot"))
    index.segment = 2
    index.write(hard_state(1, 3))
    hard = replica.newest[HardStateRecord]
    assert (hard.record, hard.segment, hard.sequence) == (hard_state(1, 3), 2, 5)
    assert replica.newest[Quarantined].segment == 1
    assert replica.newest[ShardCreated].record == created(1)


def test_destroyed_replica_keeps_nothing_but_the_mark() -> None:
    index, replica = _started()
    index.write(entries(1, 1, 5), hard_state(1, 1), ShardDestroyed(*key(1)))
    assert replica.is_destroyed
    assert replica.pieces == []
    assert list(replica.newest) == [ShardDestroyed]


def test_clocks_never_go_back() -> None:
    index, _ = _started()
    shard = key(1)[0]
    index.write(ClockRecord(((shard, 50),)), ClockRecord(((shard, 40),)))
    assert index.clocks == {shard: 50}


def test_inventory_lists_every_replica_in_order() -> None:
    index = _Noted()
    index.write(created(2), created(1), entries(1, 1, 4), ShardDestroyed(*key(2)))
    index.drop_below({key(1): LogIndex(2)})
    inventory = index.inventory(5)
    assert inventory.oldest_segment == 5
    listed = [
        (line.shard, line.number, line.first, line.last, line.is_destroyed) for line in inventory.replicas
    ]
    assert listed == [(1, 2, 2, 4, False), (2, 2, 1, 0, True)]


def test_records_are_numbered_per_replica_and_on_within_a_batch() -> None:
    index, _ = _started()
    batch: list[Record] = [entries(1, 1), ClockRecord(()), created(2), hard_state(1, 1), hard_state(2, 1)]
    assert index.number_records(batch) == [2, 0, 1, 3, 2]
    assert index.number_records([Inventory(1, False, ())]) == [0]


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ([entries(1, 7)], "entries start at 7, the log ends at 5"),
        ([entries(1, 5)], "entries start at 5, the log ends at 5"),
        ([Truncate(*key(1), LogIndex(3)), entries(1, 6)], "entries start at 6, the log ends at 3"),
        ([installed(1, 50, 1), entries(1, 6)], "entries start at 6, the log ends at 50"),
        ([entries(9, 1)], "begins with Entries"),
        ([hard_state(9, 1)], "begins with HardStateRecord"),
    ],
)
def test_record_that_its_log_can_not_take_is_refused_before_it_is_written(
    records: list[Record], complaint: str
) -> None:
    index, _ = _started()
    index.write(entries(1, 1, 5))
    with pytest.raises(AssertionError, match=complaint):
        index.number_records(records)


def test_entries_with_a_hole_are_refused() -> None:
    index, _ = _started()
    holed = type(entries(1, 1))(*key(1), (*entries(1, 1).entries, *entries(1, 3).entries))
    with pytest.raises(AssertionError, match="successive"):
        index.number_records([holed])


def test_incarnations_of_a_shard_only_grow() -> None:
    index, _ = _started()
    index.write(created(1, 3))
    with pytest.raises(AssertionError, match="begins with ShardCreated"):
        index.number_records([created(1, 2)])
    assert index.is_superseded(key(1))
    assert not index.is_superseded(key(1, 3))


def test_nothing_follows_a_destruction_but_copies_of_it() -> None:
    index, _ = _started()
    index.write(ShardDestroyed(*key(1)))
    with pytest.raises(AssertionError, match="destroyed"):
        index.number_records([entries(1, 1)])
    assert index.number_records([ShardDestroyed(*key(1))]) == [3]


def test_replica_that_should_be_here_and_is_not_may_be_quarantined() -> None:
    index, _ = _started()
    assert index.number_records([Quarantined(*key(4), "the log has no trace of it")]) == [1]
