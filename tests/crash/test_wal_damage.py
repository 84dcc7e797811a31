"""Rot, lost bytes and lost files: what is hurt is named, what is not hurt is complete, nothing is silent."""

from __future__ import annotations

import errno
from random import Random

import pytest

from kvstore.wal import ClockRecord, Entries, Record, Recovered, ShardDestroyed, Wal, WalSettings
from kvstore.wal.batch import parse
from kvstore.wal.recovery import recover
from kvstore.wal.segment import HEADER_BYTES, number_of, parse_header
from tests.support.sim_files import SimFiles
from tests.support.wal_model import IDENTITY, SMALL, Chance, Model, created, entries, hard_state, key

LOG = "/data/wal"


class _Log:
    """A closed log of several shards and segments, and its model before and after the last batch."""

    def __init__(self, batches: list[list[Record]], settings: WalSettings = SMALL) -> None:
        self.disk = SimFiles()
        self.settings = settings
        self.model, self.model_before_last = Model(), Model()
        wal, _ = Wal.open(self.disk, LOG, settings, IDENTITY)
        for batch in batches:
            wal.append(batch)
            self.model_before_last = self.model.copy()
            self.model.apply(batch)
        wal.close()
        self.paths = [f"{LOG}/{name}" for name in self.disk.list(LOG) if number_of(name) is not None]
        self.places = {path: _batches(self.disk.read(path)) for path in self.paths}

    def recover(self) -> Recovered:
        return recover(self.disk, LOG, IDENTITY)[0]

    def reopen(self) -> tuple[Wal, Recovered]:
        return Wal.open(self.disk, LOG, self.settings, IDENTITY)

    def is_in_last_batch(self, path: str, offset: int) -> bool:
        start, end = self.places[self.paths[-1]][-1]
        return path == self.paths[-1] and start <= offset < end


def _batches(content: bytes) -> list[tuple[int, int]]:
    header = parse_header(content, 0) or parse_header(content, 1)
    assert header is not None
    found, offset = [], HEADER_BYTES
    while (batch := parse(content, offset, header.nonce)) is not None:
        found.append((batch.offset, batch.end))
        offset = batch.end
    return found


def _three_shards() -> list[list[Record]]:
    return [
        [created(0), created(1), created(2), hard_state(0, 1), hard_state(1, 1), hard_state(2, 1)],
        [entries(0, 1, 2, payload=b"zero" * 30), entries(1, 1, payload=b"one" * 20)],
        [entries(2, 1), hard_state(2, 2)],
        [entries(0, 3), entries(2, 2, 3)],
        [ClockRecord(((key(0)[0], 5),)), entries(1, 2, payload=b"long" * 100)],
        [entries(0, 4, payload=b"long" * 40), hard_state(1, 3, None, 2)],
        [entries(1, 3, term=3), entries(2, 5)],
        [entries(2, 6), entries(0, 5)],
        [entries(0, 6, 2, payload=b"last" * 60), entries(1, 4, term=3)],
    ]


def _check_not_silent(log: _Log, recovered: Recovered, where: object, is_last_batch: bool) -> None:
    difference = log.model.difference(recovered, except_quarantined=True)
    if difference is not None and is_last_batch:
        difference = log.model_before_last.difference(recovered, except_quarantined=True)
    assert difference is None, where
    for each, replica in recovered.replicas.items():
        known = log.model.replicas.get(each)
        assert replica.quarantined is None or recovered.damage or (known and known.quarantined), where


def test_pitfall_12_any_flipped_byte_is_harmless_or_reported_or_in_the_last_batch() -> None:
    log = _Log(_three_shards())
    assert len(log.paths) == 2
    quarantined = 0
    for path in log.paths:
        for offset in range(log.disk.byte_count(path)):
            log.disk.flip(path, offset)
            recovered = log.recover()
            _check_not_silent(log, recovered, (path, offset), log.is_in_last_batch(path, offset))
            quarantined += any(each.quarantined for each in recovered.replicas.values())
            log.disk.flip(path, offset)
    assert quarantined > 1000
    assert log.model.difference(log.recover()) is None


def test_truncation_at_any_offset_is_harmless_or_reported() -> None:
    log = _Log(_three_shards())
    for path in log.paths:
        whole = log.disk.byte_count(path)
        for count in range(whole):
            disk = log.disk.copy()
            disk.cut(path, count)
            recovered, *_ = recover(disk, LOG, IDENTITY)
            assert recovered.damage or path != log.paths[-1], (path, count)
            _check_not_silent(log, recovered, (path, count), is_last_batch=False)


@pytest.mark.parametrize("seed", range(8))
def test_random_rot_in_a_random_log_is_never_silent(seed: int) -> None:
    dice = Random(seed)
    chance, batches, model = Chance(dice), [], Model()
    for _ in range(25):
        batches.append(chance.batch(model))
        model.apply(batches[-1])
    log = _Log(batches)
    for _ in range(150):
        path = dice.choice(log.paths)
        offset = dice.randrange(log.disk.byte_count(path))
        count = dice.choice((1, 1, 64, 512, 2000))
        disk = log.disk.copy()
        for each in range(offset, min(offset + count, disk.byte_count(path))):
            disk.flip(path, each, 1 << dice.randrange(8))
        recovered, *_ = recover(disk, LOG, IDENTITY)
        is_last = any(log.is_in_last_batch(path, each) for each in range(offset, offset + count))
        if is_last and offset < log.places[path][-1][0]:
            continue  # A stretch of batches that ends with the last: like a tear, no log can tell.
        _check_not_silent(log, recovered, (path, offset, count), is_last)


def test_damage_in_a_payload_hurts_only_the_replica_it_belongs_to() -> None:
    log = _Log(_three_shards())
    path = log.paths[0]
    offset = log.disk.read(path).index(b"zerozero")
    log.disk.flip(path, offset)
    recovered = log.recover()
    assert [each for each, replica in recovered.replicas.items() if replica.quarantined] == [key(0)]
    assert "shard 0" in (recovered.replicas[key(0)].quarantined or "")
    assert recovered.replicas[key(0)].entries == []


def test_damage_in_a_table_hurts_only_replicas_that_the_record_numbers_do_not_clear() -> None:
    log = _Log(_three_shards())
    start, _ = log.places[log.paths[0]][2]
    log.disk.flip(log.paths[0], start + 40)
    recovered = log.recover()
    assert [each for each, replica in recovered.replicas.items() if replica.quarantined] == [key(2)]
    assert recovered.replicas[key(2)].entries == []
    assert not recovered.has_lost_track


def test_damage_that_nothing_later_explains_hurts_every_replica() -> None:
    batches = _three_shards()[:3] + [[entries(0, 3)]]
    log = _Log(batches)
    start, _ = log.places[log.paths[0]][2]
    log.disk.flip(log.paths[0], start + 40)
    recovered = log.recover()
    quarantined = [each for each, replica in recovered.replicas.items() if replica.quarantined]
    assert quarantined == [key(1), key(2)], "shard 0 goes on without a gap"
    assert recovered.has_lost_track, "the batch may have held the creation of a replica"


def test_quarantine_by_damage_is_on_disk_when_the_log_is_open() -> None:
    log = _Log(_three_shards())
    offset = log.disk.read(log.paths[0]).index(b"zerozero")
    log.disk.flip(log.paths[0], offset)
    wal, first = log.reopen()
    wal.append([entries(1, 5, term=3)])
    log.disk.crash(Random(0))
    log.disk.flip(log.paths[0], offset)
    _, second = log.reopen()
    reason = first.replicas[key(0)].quarantined
    assert reason is not None
    assert second.replicas[key(0)].quarantined == reason, "quarantine outlives a repaired disk"
    assert second.replicas[key(1)].entries[-1].index == 5


def test_a_log_that_has_lost_track_says_so_for_ever() -> None:
    batches = _three_shards()[:3] + [[entries(0, 3)]]
    log = _Log(batches)
    start, _ = log.places[log.paths[0]][2]
    log.disk.flip(log.paths[0], start + 40)
    wal, _ = log.reopen()
    wal.append([created(7), entries(7, 1)])
    wal.close()
    _, again = log.reopen()
    assert again.has_lost_track
    assert again.replicas[key(7)].quarantined is None


def test_missing_segment_hurts_whoever_had_records_in_it() -> None:
    batches: list[list[Record]] = [[created(0), created(1)]]
    batches += [[entries(0, index, payload=bytes(1000))] for index in range(1, 10)]
    log = _Log([*batches, [entries(1, 1)]])
    assert len(log.paths) >= 4
    log.disk.remove(log.paths[1])
    recovered = log.recover()
    assert recovered.replicas[key(0)].quarantined is not None
    assert recovered.replicas[key(1)].quarantined is None
    assert any("missing" in each for each in recovered.damage)


def test_missing_oldest_segment_is_noticed() -> None:
    log = _Log(_three_shards())
    log.disk.remove(log.paths[0])
    recovered = log.recover()
    assert all(replica.quarantined for replica in recovered.replicas.values())
    assert any("missing" in each for each in recovered.damage)


def test_damaged_header_hurts_nobody_and_the_log_goes_on_in_a_new_segment() -> None:
    log = _Log(_three_shards())
    for path in log.paths:
        log.disk.flip(path, 20)
    wal, recovered = log.reopen()
    assert log.model.difference(recovered) is None
    assert len(recovered.damage) == len(log.paths)
    more: list[Record] = [entries(0, 8)]
    wal.append(more)
    log.model.apply(more)
    assert log.model.difference(log.reopen()[1]) is None


def test_unreadable_last_segment_quarantines_and_later_batches_are_told_from_lost_ones() -> None:
    log = _Log(_three_shards())
    for offset in (20, HEADER_BYTES + 3):
        log.disk.flip(log.paths[-1], offset)
    wal, recovered = log.reopen()
    assert all(replica.quarantined for replica in recovered.replicas.values())
    wal.append([created(9), entries(9, 1)])
    wal.close()
    _, again = log.reopen()
    assert again.replicas[key(9)].quarantined is None
    assert again.replicas[key(9)].entries == list(entries(9, 1).entries)
    assert again.replicas[key(0)].quarantined is not None


def test_sector_that_the_disk_refuses_to_read_counts_as_damage() -> None:
    log = _Log(_three_shards())
    log.disk.fail("read", errno.EIO, path_part=log.paths[0])
    recovered = log.recover()
    assert log.model.difference(recovered) is None, "the second, piecewise attempt read everything"


def test_pitfall_41_any_torn_last_batch_is_cut_and_every_shard_comes_back() -> None:
    """The batch is four sectors long: every proper subset of them may be what reached the disk."""
    tail: list[Record] = [entries(0, 6, payload=b"a" * 768), entries(1, 4, term=3, payload=b"t" * 700)]
    log = _Log(_three_shards()[:-1], WalSettings(segment_bytes=16384, zero_ahead_bytes=0))
    wal, _ = log.reopen()
    whole = log.disk.copy()
    wal.append(tail)
    torn_content = log.disk.read(log.paths[-1])
    start, end = _batches(torn_content)[-1]
    sectors = range(start, end, 512)
    assert len(sectors) == 4
    for subset in range(2 ** len(sectors) - 1):
        disk = whole.copy()
        disk.kill()
        file = disk.open(log.paths[-1])
        for position, offset in enumerate(sectors):
            if subset >> position & 1:
                file.write_at(offset, torn_content[offset : offset + 512])
        wal, recovered = Wal.open(disk, LOG, log.settings, IDENTITY)
        assert log.model.difference(recovered) is None, subset
        assert recovered.damage == [], subset
        wal.append(tail)
        after = log.model.copy()
        after.apply(tail)
        assert after.difference(Wal.open(disk, LOG, log.settings, IDENTITY)[1]) is None, subset


def test_reclaim_copies_healthy_entries_from_a_segment_with_damage_that_hurt_others() -> None:
    batches: list[list[Record]] = [
        [created(0), created(1)],
        [entries(1, 1, payload=b"healthy")],
        [entries(0, 1, payload=b"rotten" * 20)],
        [entries(1, 2, payload=b"healthy")],
        *([entries(0, index, payload=bytes(700))] for index in range(2, 8)),
    ]
    log = _Log(batches)
    log.disk.flip(log.paths[0], log.disk.read(log.paths[0]).index(b"rottenrotten"))
    wal, recovered = log.reopen()
    assert recovered.replicas[key(0)].quarantined is not None
    wal.reclaim({})
    assert wal.oldest_segment > 1
    wal.close()
    _, again = log.reopen()
    assert [each.index for each in again.replicas[key(1)].entries] == [1, 2]
    assert again.replicas[key(1)].quarantined is None
    assert again.replicas[key(0)].quarantined is not None


def test_destroyed_replica_is_not_brought_back_by_damage_after_its_end() -> None:
    batches = [*_three_shards(), [ShardDestroyed(*key(1))], [entries(0, 8)], [entries(0, 9)]]
    log = _Log(batches)
    path = log.paths[-1]
    start, _ = log.places[path][-2]
    log.disk.flip(path, start + 40)
    recovered = log.recover()
    assert recovered.replicas[key(1)].destroyed
    assert recovered.replicas[key(1)].quarantined is None


def test_log_whose_entries_rotted_while_open_refuses_to_relocate_them() -> None:
    from kvstore.errors import Corrupt

    log = _Log([[created(0)], [entries(0, 1, payload=b"precious")]])
    wal, _ = log.reopen()
    wal.append([created(1)])
    for index in range(1, 8):
        wal.append([Entries(*key(1), entries(1, index, payload=bytes(700)).entries)])
    log.disk.flip(log.paths[0], log.disk.read(log.paths[0]).index(b"precious"))
    with pytest.raises(Corrupt, match="shard 0"):
        wal.reclaim({key(1): entries(1, 8).entries[0].index})
    assert wal.oldest_segment == 1, "the only copy stays where it is"


def test_batch_that_another_one_took_the_place_of_is_noticed() -> None:
    """A disk that lost a write, or put it elsewhere, hands back a batch that is whole and wrong."""
    one = _Log([[created(0), created(1)], [entries(0, 1, payload=b"one")], [entries(1, 1)]])
    two = _Log([[created(0), created(1)], [entries(0, 1, payload=b"two")], [entries(1, 1)]])
    start, end = one.places[one.paths[0]][1]
    content = one.disk.read(one.paths[0])[start:end]
    assert len(content) == 512
    for offset in range(512):
        mask = content[offset] ^ two.disk.read(two.paths[0])[start + offset]
        if mask:
            two.disk.flip(two.paths[0], start + offset, mask)
    recovered = two.recover()
    assert any("does not follow the batch before it" in each for each in recovered.damage)
    assert recovered.replicas[key(0)].quarantined is not None
    assert recovered.replicas[key(1)].quarantined is None
