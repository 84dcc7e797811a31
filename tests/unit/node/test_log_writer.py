"""Group commit: what becomes one batch, who hears of it, and what a failing disk does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from kvstore.errors import DiskFull, WalPoisoned
from kvstore.node.log_writer import DISK_FULL_RETRY_S, INLINE_BYTES_MAX, LogWriter, Promise
from kvstore.raft.messages import NORMAL, Entry
from kvstore.types import Incarnation, LogIndex, ReplicaId, ShardId, Term
from kvstore.wal import Entries, HardStateRecord, Record
from tests.support.fake_runtime import FakeRuntime


class Disk:
    """Writes take as long as the clock is told to move meanwhile."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.batches: list[list[Record]] = []
        self.failures: list[BaseException] = []
        self.seconds = 0.0
        self._runtime = runtime

    def append(self, records: Sequence[Record]) -> None:
        self._runtime.time += self.seconds
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append(list(records))


class Desk:
    """A writer with its disk and everything it says."""

    def __init__(self, inline_sync_s: float = 0.0) -> None:
        self.runtime = FakeRuntime()
        self.disk = Disk(self.runtime)
        self.synced: list[list[int]] = []
        self.fatal: list[BaseException] = []
        self.writer = LogWriter(
            self.runtime,
            self.disk,
            lambda promises: self.synced.append([promise.number for promise in promises]),
            self.fatal.append,
            inline_sync_s,
        )

    def add(self, number: int, *records: Record) -> None:
        replica: Any = None
        self.writer.add(records or (state(number),), Promise(replica, number, ()))


def state(term: int) -> HardStateRecord:
    return HardStateRecord(ShardId(0), Incarnation(1), Term(term), ReplicaId("n1/1"), LogIndex(0))


def entries(payload_bytes: int) -> Entries:
    entry = Entry(LogIndex(1), Term(1), NORMAL, bytes(payload_bytes))
    return Entries(ShardId(0), Incarnation(1), (entry,))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_everything_added_before_a_flush_is_one_batch(desk: Desk) -> None:
    desk.add(1)
    desk.add(2)
    desk.writer.flush()
    desk.runtime.run()
    assert desk.disk.batches == [[state(1), state(2)]]
    assert desk.synced == [[1, 2]]
    assert desk.writer.batches == 1


def test_nothing_is_said_before_the_sync(desk: Desk) -> None:
    desk.add(1)
    desk.writer.flush()
    assert desk.writer.is_busy
    assert desk.synced == []


def test_what_arrives_while_a_batch_is_on_its_way_forms_the_next_one(desk: Desk) -> None:
    desk.add(1)
    desk.writer.flush()
    desk.add(2)
    desk.writer.flush()
    desk.add(3)
    desk.writer.flush()
    desk.runtime.run()
    assert desk.synced == [[1]]
    assert desk.writer.is_pending
    desk.writer.flush()
    desk.runtime.run()
    assert desk.synced == [[1], [2, 3]]
    assert not desk.writer.is_pending


def test_a_flush_of_nothing_costs_nothing(desk: Desk) -> None:
    desk.writer.flush()
    assert not desk.writer.is_busy
    assert desk.runtime.pending_count == 0


def test_a_promise_without_records_still_waits_its_turn(desk: Desk) -> None:
    desk.add(1)
    desk.writer.flush()
    desk.writer.add((), Promise(None, 2, ()))  # type: ignore[arg-type]
    desk.runtime.run()
    desk.writer.flush()
    desk.runtime.run()
    assert desk.synced == [[1], [2]]


def test_callbacks_come_once_all_that_was_added_before_is_durable(desk: Desk) -> None:
    told: list[int] = []
    desk.add(1)
    desk.writer.then(lambda: told.append(len(desk.disk.batches)))
    assert told == []
    desk.writer.flush()
    desk.runtime.run()
    assert told == [1]


def test_a_full_disk_holds_the_batch_and_all_behind_it_in_order(desk: Desk) -> None:
    desk.disk.failures = [DiskFull(), DiskFull()]
    desk.add(1)
    desk.writer.flush()
    desk.runtime.run(DISK_FULL_RETRY_S / 2)
    desk.add(2)
    desk.writer.flush()
    assert desk.writer.is_disk_full
    assert desk.synced == []
    desk.runtime.run(2 * DISK_FULL_RETRY_S)
    assert not desk.writer.is_disk_full
    desk.writer.flush()
    desk.runtime.run()
    assert desk.synced == [[1], [2]]
    assert desk.fatal == []


@pytest.mark.parametrize("inline_sync_s", [0.0, 1.0], ids=["thread", "loop"])
def test_pitfall_11_after_a_failed_write_nothing_is_written_or_said_any_more(inline_sync_s: float) -> None:
    desk = Desk(inline_sync_s)
    told: list[bool] = []
    failure = WalPoisoned("sync failed")
    desk.disk.failures = [failure]
    desk.add(1)
    desk.writer.then(lambda: told.append(True))
    desk.writer.flush()
    desk.runtime.run()
    desk.add(2)
    desk.writer.flush()
    desk.runtime.run(60.0)
    assert desk.fatal == [failure]
    assert desk.writer.is_dead
    assert (desk.synced, desk.disk.batches, told) == ([], [], [])


def test_the_age_of_the_oldest_unsynced_batch_is_known(desk: Desk) -> None:
    assert desk.writer.busy_s(desk.runtime.now()) == 0.0
    desk.add(1)
    desk.writer.flush()
    assert desk.writer.busy_s(desk.runtime.now() + 3.0) == 3.0
    desk.runtime.run()
    assert desk.writer.busy_s(desk.runtime.now() + 3.0) == 0.0


class TestOnTheLoop:
    def test_a_small_batch_is_synced_before_flush_returns_while_the_disk_is_fast(self) -> None:
        desk = Desk(inline_sync_s=0.001)
        desk.add(1)
        desk.writer.flush()
        assert desk.synced == [[1]]

    def test_a_large_batch_goes_to_the_thread(self) -> None:
        desk = Desk(inline_sync_s=0.001)
        desk.add(1, entries(INLINE_BYTES_MAX + 1))
        desk.writer.flush()
        assert desk.synced == []
        desk.runtime.run()
        assert desk.synced == [[1]]

    def test_a_disk_that_turned_slow_is_left_to_the_thread_until_it_is_fast_again(self) -> None:
        desk = Desk(inline_sync_s=0.001)
        desk.disk.seconds = 0.1
        desk.add(1)
        desk.writer.flush()
        assert desk.synced == [[1]], "the first one blocks the loop, then it is known"
        desk.add(2)
        desk.writer.flush()
        assert desk.synced == [[1]]
        desk.runtime.run(1.0)
        assert desk.synced == [[1], [2]]
        desk.disk.seconds = 0.0
        for number in range(3, 60):
            desk.add(number)
            desk.writer.flush()
            desk.runtime.run()
        assert not desk.writer.is_busy
        assert desk.writer.prefers_loop

    def test_it_never_overtakes_other_work_on_the_log(self) -> None:
        desk = Desk(inline_sync_s=0.001)
        order: list[str] = []
        desk.writer.run(lambda: order.append("reclaim"), lambda result, error: order.append("told"))
        desk.add(1)
        desk.writer.flush()
        assert desk.synced == [], "the log belongs to one thread at a time"
        desk.runtime.run()
        assert order == ["reclaim", "told"]
        assert desk.synced == [[1]]
        assert desk.writer.prefers_loop
