"""Segments go when nobody needs them; what little is needed moves on first."""

from __future__ import annotations

from random import Random

import pytest

from kvstore.types import LogIndex
from kvstore.wal import (
    ClockRecord,
    Entries,
    Key,
    Quarantined,
    Record,
    ShardDestroyed,
    Truncate,
    Wal,
    WalSettings,
    reclaim,
)
from tests.support.sim_files import SimFiles
from tests.support.wal_model import IDENTITY, SMALL, Model, created, entries, hard_state, key

LOG = "/data/wal"


class _Log:
    def __init__(self, settings: WalSettings = SMALL) -> None:
        self.disk, self.model, self.settings = SimFiles(), Model(), settings
        self.wal, _ = Wal.open(self.disk, LOG, settings, IDENTITY)

    def append(self, *records: Record) -> None:
        self.wal.append(records)
        self.model.apply(list(records))

    def fill(self, shard: int, count: int, payload_bytes: int = 400) -> None:
        """Entries that only take up room."""
        for _ in range(count):
            last = self.model.replicas[key(shard)].last
            self.append(entries(shard, last + 1, payload=bytes(payload_bytes)))

    def reclaim(self, *idle: int, **needed: int) -> bool:
        """`s1=5`: shard 1 needs its entries from 5 on. `idle`: shards that will not need less."""
        wanted: dict[Key, LogIndex] = {key(int(name[1:])): LogIndex(index) for name, index in needed.items()}
        self.model.need(wanted)
        return self.wal.reclaim(wanted, {key(shard) for shard in idle})

    def last(self, shard: int) -> int:
        return self.model.replicas[key(shard)].last

    def check(self) -> None:
        disk = self.disk.copy()
        disk.crash(Random(0))
        _, recovered = Wal.open(disk, LOG, self.settings, IDENTITY)
        assert self.model.difference(recovered) is None


def test_segments_that_nobody_needs_go_and_their_space_is_used_again() -> None:
    log = _Log()
    log.append(created(1))
    log.fill(1, 30)
    assert log.wal.segment_count > 3
    log.reclaim(s1=log.last(1))
    assert log.wal.segment_count <= 2
    names = log.disk.list(LOG)
    assert sum(name.startswith("spare-") for name in names) == 1
    assert "reserve.log" in names
    created_steps: list[str] = []
    log.disk.on_step = lambda step, _path: created_steps.append(step)
    log.fill(1, 7)
    assert "create" not in created_steps, "the spare became the next segment"
    log.disk.on_step = None
    log.check()


def test_stragglers_entries_move_on_and_its_segment_goes() -> None:
    log = _Log()
    log.append(created(1), created(2), hard_state(2, 3), entries(2, 1, 4))
    log.fill(1, 20)
    log.reclaim(s1=log.last(1) + 1, s2=3)
    assert log.wal.segment_count <= 2
    assert log.wal.holders == ()
    log.check()
    log.append(entries(2, 5))
    log.fill(1, 20)
    log.reclaim(s1=log.last(1), s2=4)
    log.check()


def test_segment_with_much_that_is_needed_stays_and_its_holders_are_named() -> None:
    log = _Log()
    log.append(created(1), created(2))
    log.fill(2, 4)
    log.fill(1, 12)
    count = log.wal.segment_count
    log.reclaim(s1=log.last(1), s2=1)
    assert log.wal.segment_count == count
    assert log.wal.holders == (key(2),)
    log.reclaim(s1=log.last(1) + 1, s2=log.last(2) + 1)
    assert log.wal.segment_count < count
    assert log.wal.holders == ()
    log.check()


def test_replica_that_is_not_named_keeps_all_its_entries() -> None:
    log = _Log()
    log.append(created(1), created(2), entries(2, 1))
    log.fill(1, 20)
    log.reclaim(s1=log.last(1))
    log.check()
    assert log.model.replicas[key(2)].needed == 1


def test_quarantined_replica_keeps_its_entries_and_does_not_pin_the_log() -> None:
    log = _Log()
    log.append(created(1), created(2))
    log.fill(2, 4)
    log.append(Quarantined(*key(2), "rot"))
    for _ in range(3):
        log.fill(1, 12)
        log.reclaim(s1=log.last(1))
        log.check()
    assert log.wal.oldest_segment > 4


def test_an_idle_replica_keeps_what_it_needs_and_does_not_pin_the_log() -> None:
    log = _Log()
    log.append(created(1), created(2))
    log.fill(2, 8)
    most = 0
    for _ in range(20):
        log.fill(1, 12)
        log.reclaim(2, s1=log.last(1), s2=5)
        log.check()
        most = max(most, log.wal.segment_count)
    assert most <= 4
    assert log.model.replicas[key(2)].last == 8
    log.fill(1, 12)
    log.reclaim(s1=log.last(1), s2=5)
    pinned = log.wal.segment_count
    log.fill(1, 60)
    log.reclaim(s1=log.last(1), s2=5)
    assert log.wal.segment_count > pinned + 6, "without being called idle it pins the log"


def test_a_call_that_stops_for_what_it_may_read_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reclaim, "READ_BYTES_MAX", 1)
    log = _Log()
    log.append(created(1), created(2))
    log.fill(2, 8)
    log.fill(1, 12)
    calls = 0
    while log.reclaim(2, s1=log.last(1), s2=1):
        calls += 1
        assert calls < 50
    assert calls > 1
    assert log.wal.segment_count <= 4
    log.check()


def test_lasting_records_and_clocks_outlive_their_segments() -> None:
    log = _Log()
    log.append(created(1), created(2), hard_state(2, 7, "n2/1", 5), ClockRecord(((key(2)[0], 900),)))
    log.append(created(3), ShardDestroyed(*key(3)))
    for _ in range(4):
        log.fill(1, 20)
        log.reclaim(s1=log.last(1))
        log.check()
    assert log.wal.oldest_segment > 8


def test_pitfall_14_mark_of_a_destroyed_replica_goes_only_when_a_later_incarnation_proves_it() -> None:
    log = _Log()
    log.append(created(1), created(2), entries(2, 1, 3), ShardDestroyed(*key(2)))

    def mark() -> bool:
        _, recovered = Wal.open(log.disk.copy(), LOG, SMALL, IDENTITY)
        log.check()
        return key(2) in recovered.replicas

    for _ in range(3):
        log.fill(1, 20)
        log.reclaim(s1=log.last(1))
        assert mark()
    log.append(created(2, 2))
    for _ in range(2):
        log.fill(1, 20)
        log.reclaim(s1=log.last(1))
    assert not mark()


def test_one_call_reads_a_bounded_amount_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = WalSettings(segment_bytes=64 << 10, reserve_bytes=4096, zero_ahead_bytes=0)
    log = _Log(settings)
    log.append(*(created(shard) for shard in range(10)))
    for shard in range(1, 10):
        log.append(entries(shard, 1))
    log.fill(0, 200)
    monkeypatch.setattr(reclaim, "READ_BYTES_MAX", 1024)
    counts = []
    for _ in range(20):
        log.reclaim(s0=log.last(0))
        counts.append(log.wal.oldest_segment)
        log.check()
    assert counts[0] == 1
    assert counts[-1] > 1


def test_entries_written_several_times_within_one_piece_are_copied_in_their_last_form() -> None:
    log = _Log()
    log.append(created(1), created(2))
    log.append(
        entries(2, 1, 4, term=1),
        Truncate(*key(2), LogIndex(2)),
        entries(2, 3, 2, term=2),
        Truncate(*key(2), LogIndex(3)),
        entries(2, 4, 1, term=3),
    )
    log.fill(1, 20)
    log.reclaim(s1=log.last(1), s2=2)
    assert log.wal.oldest_segment > 1
    log.check()


def test_copies_can_be_copied_again_and_again() -> None:
    log = _Log()
    log.append(created(1), created(2), entries(2, 1, 3), hard_state(2, 1))
    for _ in range(6):
        log.fill(1, 14)
        log.reclaim(s1=log.last(1), s2=2)
        log.check()
    assert log.wal.oldest_segment > 8
    log.append(Entries(*key(2), entries(2, 4).entries))
    log.check()
