"""Housekeeping: when tablets are flushed, how far logs are cut, what a full or dead disk does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvstore.errors import DiskFull, Fatal
from kvstore.node.keeper import Keeper, KeeperSettings
from kvstore.node.replica import Replica
from kvstore.store import commands
from kvstore.types import Incarnation, LogIndex, ShardId
from tests.support.host_group import N1, SHARD, HostedNode, HostGroup

FIRST = Incarnation(1)


class Kept:
    """One node with a keeper that nobody has started yet."""

    def __init__(self, shards: int = 1, **settings: Any) -> None:
        self.group = HostGroup(nodes=1, shards=shards)
        self.node: HostedNode = self.group.lead(N1, *range(shards))
        self.node.files.mkdirs("/data")
        self.read_only: list[bool] = []
        self.keeper = Keeper(
            self.node.host,
            self.node.log,
            self.node.files,
            "/data",
            KeeperSettings(**settings),
            self.read_only.append,
        )

    @property
    def replica(self) -> Replica:
        return self.node.replica()

    def fill(self, count: int, value_bytes: int = 1000, shard: int = 0) -> None:
        for number in range(count):
            op = commands.put(b"k%d" % number, bytes(value_bytes))
            self.group.write(N1, op, shard=shard).wait()

    def flush(self, replica: Replica | None = None) -> None:
        self.keeper.flush(replica or self.replica)
        self.group.run(0.1)


def failing_flush(replica: Replica, error: BaseException) -> None:
    def flush() -> Callable[[], LogIndex]:
        def work() -> LogIndex:
            raise error

        return work

    replica.machine.flush = flush  # type: ignore[method-assign]


class TestFlushing:
    def test_a_flush_makes_durable_what_was_applied_when_it_began(self) -> None:
        kept = Kept()
        kept.fill(3)
        applied = kept.replica.machine.applied
        kept.keeper.flush(kept.replica)
        assert kept.replica.is_flushing
        assert kept.replica.machine.durable_applied < applied
        kept.group.run(0.1)
        assert kept.replica.machine.durable_applied == applied
        assert (kept.replica.is_flushing, kept.replica.unflushed_bytes) == (False, 0)

    def test_one_flush_at_a_time(self) -> None:
        kept = Kept()
        kept.fill(1)
        disk = kept.node.disk
        disk.hung_lane, disk.hung_until = "store", kept.group.world.now + 1.0
        kept.keeper.flush(kept.replica)
        kept.fill(1)
        unflushed = kept.replica.unflushed_bytes
        assert unflushed
        kept.keeper.flush(kept.replica)
        assert kept.replica.unflushed_bytes == unflushed

    def test_a_round_flushes_what_has_grown_by_its_share_of_the_bound(self) -> None:
        kept = Kept(shards=2, unflushed_bytes_max=8_000)
        kept.fill(6, shard=0)
        kept.fill(2, shard=1)
        kept.keeper.start()
        kept.group.run(1.5)
        assert kept.node.replica(0).unflushed_bytes == 0
        assert kept.node.replica(1).unflushed_bytes > 2_000

    def test_a_round_flushes_what_has_waited_long(self) -> None:
        kept = Kept(flush_after_s=5.0)
        kept.fill(1)
        kept.flush()
        kept.fill(1)
        kept.keeper.start()
        kept.group.run(4.0)
        assert kept.replica.unflushed_bytes
        kept.group.run(2.0)
        assert not kept.replica.unflushed_bytes

    def test_a_long_log_makes_all_replicas_flush(self) -> None:
        kept = Kept(segments_max=3)
        kept.fill(1)
        kept.node.log.segment_count = 4
        kept.keeper.start()
        kept.group.run(1.2)
        assert not kept.replica.unflushed_bytes

    def test_nothing_to_flush_costs_no_flush(self) -> None:
        kept = Kept(flush_after_s=0.1)
        kept.fill(1)
        kept.flush()
        failing_flush(kept.replica, Fatal("must not be asked"))
        kept.keeper.start()
        kept.group.run(3.0)
        assert not kept.node.fatal

    def test_pitfall_13_a_full_disk_is_tried_again_and_no_reason_to_stop(self) -> None:
        kept = Kept()
        kept.fill(2)
        unflushed = kept.replica.unflushed_bytes
        failing_flush(kept.replica, DiskFull("no space"))
        kept.flush()
        assert kept.replica.unflushed_bytes == unflushed
        assert not kept.replica.is_flushing
        assert not kept.node.fatal
        del kept.replica.machine.flush
        kept.flush()
        assert kept.replica.machine.durable_applied == kept.replica.machine.applied

    def test_any_other_failure_ends_the_node(self) -> None:
        kept = Kept()
        failing_flush(kept.replica, Fatal("dead disk"))
        kept.flush()
        assert [str(error) for error in kept.node.fatal] == ["dead disk"]

    def test_a_stopped_node_is_left_alone(self) -> None:
        kept = Kept(unflushed_bytes_max=1)
        kept.fill(1)
        kept.keeper.start()
        kept.node.host.stop()
        kept.group.run(3.0)
        assert kept.replica.unflushed_bytes
        assert kept.read_only == []


class TestCutting:
    def test_the_log_is_never_cut_above_what_a_flush_has_made_durable(self) -> None:
        kept = Kept(memory_log_bytes_max=0)
        kept.fill(5)
        kept.keeper.cut(kept.replica)
        assert kept.replica.core.first_index == 1
        kept.flush()
        durable = kept.replica.machine.durable_applied
        kept.fill(5)
        kept.keeper.cut(kept.replica)
        assert kept.replica.core.first_index == durable + 1

    def test_what_slow_peers_may_need_is_kept_within_the_budget(self) -> None:
        kept = Kept(memory_log_bytes_max=4_000)
        kept.fill(10)
        kept.flush()
        core = kept.replica.core
        held = core.log.bytes_held
        assert 2_500 < held <= 4_000
        assert core.first_index > 1

    def test_the_budget_is_shared_by_all_replicas(self) -> None:
        kept = Kept(shards=4, memory_log_bytes_max=16_000)
        kept.fill(10)
        kept.flush()
        assert kept.replica.core.log.bytes_held <= 4_000

    def test_pitfall_18_a_snapshot_under_way_pins_what_follows_it(self) -> None:
        kept = Kept(memory_log_bytes_max=0)
        kept.keeper.pins = lambda: {SHARD: LogIndex(3)}
        kept.fill(10)
        kept.flush()
        assert kept.replica.core.first_index == 4
        kept.keeper.pins = dict
        kept.keeper.cut(kept.replica)
        assert kept.replica.core.first_index > 10

    def test_a_machine_that_was_replaced_meanwhile_cuts_nothing(self) -> None:
        kept = Kept(memory_log_bytes_max=0)
        kept.fill(5)
        kept.keeper.flush(kept.replica)
        old = kept.replica.machine
        kept.replica.machine = type(old)(old._engine)
        kept.group.run(0.1)
        assert old.durable_applied > 0
        assert kept.replica.core.first_index == 1


class TestReclaiming:
    def test_the_log_is_told_what_each_replica_still_needs(self) -> None:
        kept = Kept(shards=2, memory_log_bytes_max=0)
        kept.fill(5)
        kept.flush()
        kept.fill(2)
        kept.keeper.reclaim()
        kept.group.run(0.1)
        [needed] = kept.node.log.reclaimed
        assert needed == {
            (SHARD, FIRST): kept.replica.machine.durable_applied + 1,
            (ShardId(1), FIRST): 1,
        }

    def test_a_halted_replica_is_not_named_and_so_keeps_all_it_has(self) -> None:
        kept = Kept(shards=2)
        kept.node.host.halt(kept.replica, "damaged")
        kept.keeper.reclaim()
        kept.group.run(0.1)
        assert [set(needed) for needed in kept.node.log.reclaimed] == [{(ShardId(1), FIRST)}]

    def test_a_halted_replica_needs_what_no_flush_covers_and_is_not_waited_for(self) -> None:
        kept = Kept(shards=2)
        kept.fill(3)
        kept.flush()
        kept.fill(2)
        halted = kept.replica
        kept.node.host.halt(halted, "damaged")
        kept.keeper.halted = lambda: [halted]
        kept.keeper.reclaim()
        kept.group.run(0.1)
        [needed] = kept.node.log.reclaimed
        assert needed == {
            (SHARD, FIRST): halted.machine.durable_applied + 1,
            (ShardId(1), FIRST): 1,
        }
        assert needed[SHARD, FIRST] == halted.machine.applied - 1
        assert kept.node.log.idle == {(SHARD, FIRST)}

    def test_a_long_log_is_cut_without_a_pause(self) -> None:
        kept = Kept(segments_max=3)
        kept.node.log.more_to_reclaim = 4
        kept.node.log.segment_count = 4
        kept.keeper.reclaim()
        kept.group.run(0.1)
        assert len(kept.node.log.reclaimed) == 5
        kept.node.log.more_to_reclaim = 4
        kept.node.log.segment_count = 3
        kept.keeper.reclaim()
        kept.group.run(0.1)
        assert len(kept.node.log.reclaimed) == 6

    def test_one_at_a_time_and_in_the_order_of_the_log(self) -> None:
        kept = Kept()
        kept.keeper.reclaim()
        kept.keeper.reclaim()
        kept.group.run(0.1)
        kept.keeper.reclaim()
        kept.group.run(0.1)
        assert len(kept.node.log.reclaimed) == 2

    def test_a_single_segment_is_not_worth_it(self) -> None:
        kept = Kept()
        kept.keeper.start()
        kept.group.run(2.5)
        assert kept.node.log.reclaimed == []
        kept.node.log.segment_count = 2
        kept.group.run(1.0)
        assert kept.node.log.reclaimed

    def test_at_rest_nobody_looks_again_until_something_is_flushed_or_a_segment_begins(self) -> None:
        kept = Kept(flush_after_s=1.5, memory_log_bytes_max=0)
        kept.node.log.segment_count = 2
        kept.keeper.start()
        kept.group.run(3.5)
        assert len(kept.node.log.reclaimed) == 1
        kept.fill(3)
        kept.group.run(4.0)
        assert len(kept.node.log.reclaimed) == 2
        kept.node.log.segment_count = 3
        kept.group.run(4.0)
        assert len(kept.node.log.reclaimed) == 3

    def test_what_a_full_disk_left_undone_is_tried_again(self) -> None:
        kept = Kept()
        kept.node.log.segment_count = 2
        kept.node.log.failure = DiskFull("full")
        kept.keeper.start()
        kept.group.run(2.5)
        assert kept.node.log.reclaimed

    @pytest.mark.parametrize(("error", "is_fatal"), [(DiskFull("full"), False), (Fatal("dead"), True)])
    def test_only_a_full_disk_is_forgiven(self, error: BaseException, is_fatal: bool) -> None:
        kept = Kept()
        kept.node.log.failure = error
        kept.keeper.reclaim()
        kept.group.run(0.1)
        assert bool(kept.node.fatal) is is_fatal
        kept.keeper.reclaim()
        kept.group.run(0.1)
        assert len(kept.node.log.reclaimed) == 1


class TestWatching:
    def test_pitfall_13_writes_that_grow_stop_before_the_disk_is_full_and_go_on_after(self) -> None:
        kept = Kept(free_bytes_min=1000)
        kept.node.files.capacity_bytes = 10_000
        kept.keeper.start()
        kept.group.run(1.5)
        assert kept.keeper.free_bytes == 10_000
        kept.node.files.capacity_bytes = 999
        kept.group.run(1.0)
        kept.node.files.capacity_bytes = None
        kept.group.run(1.0)
        assert kept.read_only == [False, True, False]

    def test_a_disk_that_cannot_be_asked_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = Kept()

        def fail(path: str) -> int:
            raise OSError("gone")

        monkeypatch.setattr(kept.node.files, "free_bytes", fail)
        kept.keeper.start()
        kept.group.run(2.5)
        assert kept.read_only == []
        assert not kept.node.fatal

    def test_a_slow_answer_is_waited_for(self) -> None:
        kept = Kept()
        kept.node.disk.hung_until = kept.group.world.now + 5.0
        kept.keeper.start()
        kept.group.run(4.0)
        assert kept.read_only == []
        kept.group.run(2.0)
        assert len(kept.read_only) <= 2
