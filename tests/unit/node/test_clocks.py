"""Shard clocks on a node: run on by followers, told in beats, logged, and never ahead."""

from __future__ import annotations

from kvstore.node.clocks import HEARD_FOR_S, LOG_EVERY_S, TELL_ALL_EVERY
from kvstore.node.replica import FOLLOWED_PACE
from kvstore.raft.messages import VoteReply
from kvstore.store import commands
from kvstore.types import ShardId, Term
from kvstore.wal import ClockRecord
from kvstore.wire.peer import Beat, RaftMessages
from tests.support.host_group import N1, N2, N3, SHARD, HostedNode, HostGroup


def _clock(node: HostedNode, shard: int = 0) -> int:
    return node.replica(shard).stamp_ms(node.now)


def _with_a_deadline() -> HostGroup:
    group = HostGroup()
    group.lead(N1)
    group.write(N1, commands.put(b"a", b"1", ttl_ms=3_600_000)).wait()
    return group


def _logged(node: HostedNode) -> list[ClockRecord]:
    return [record for batch in node.log.batches for record in batch if isinstance(record, ClockRecord)]


def test_all_replicas_run_one_clock_within_what_a_message_takes() -> None:
    group = _with_a_deadline()
    for _ in range(5):
        group.run(7.0)
        clocks = [_clock(group[name]) for name in (N1, N2, N3)]
        assert max(clocks) == clocks[0], "no follower is ahead of the leader"
        assert clocks[0] - min(clocks) < 20


def test_a_follower_that_knows_nothing_hears_the_clock_in_the_next_beat() -> None:
    group = _with_a_deadline()
    group.run(100.0)
    follower = group[N2].replica()
    follower.clock_base_ms, follower.core.clock_ms = 0, 0
    group.run(0.25)
    assert 0 <= _clock(group[N1]) - _clock(group[N2]) < 20


def test_clocks_without_a_deadline_are_told_now_and_then() -> None:
    group = HostGroup(shards=2)
    group.lead(N1, 0, 1)
    group.write(N1, commands.put(b"a", b"1", ttl_ms=3_600_000), shard=1).wait()
    beats = group.watch(Beat, source=N1)
    group.run(0.1 * TELL_ALL_EVERY * 3)
    told = [dict(beat.clocks) for beat in beats]
    assert all(ShardId(1) in clocks for clocks in told)
    assert len([clocks for clocks in told if SHARD in clocks]) == 2 * 3


def test_the_word_of_a_leader_before_counts_no_more() -> None:
    group = _with_a_deadline()
    group.lead(N3)
    group.run(10.0)
    replica, before = group[N2].replica(), _clock(group[N2])
    for clock_ms in (before - 5_000, before + 5_000):
        replica.hear_clock(clock_ms, Term(replica.core.term - 1), group[N2].now)
        assert _clock(group[N2]) == before


def test_the_newest_leader_s_word_counts_also_where_it_is_lower() -> None:
    group = _with_a_deadline()
    group.run(10.0)
    replica, before = group[N2].replica(), _clock(group[N2])
    replica.hear_clock(before - 300, replica.core.term, group[N2].now)
    replica.run_clock(group[N2].now)
    assert _clock(group[N2]) == before - 300


def test_a_follower_that_hears_nothing_falls_behind_rather_than_ahead() -> None:
    group = _with_a_deadline()
    group.run(1.0)
    group.part(N2)
    group.run(10.0)
    behind_ms = _clock(group[N1]) - _clock(group[N2])
    assert 0 < behind_ms - 10 * (1000 - FOLLOWED_PACE) < 30


def test_a_new_leader_goes_on_from_where_it_was_as_a_follower() -> None:
    group = _with_a_deadline()
    group.run(1.0)
    group.part(N2)
    group.run(10.0)
    replica, now = group[N2].replica(), group[N2].now
    before = replica.stamp_ms(now)
    replica.led_term = Term(replica.core.term + 1)
    replica.run_clock(now)
    assert before - 1 <= replica.stamp_ms(now) <= before
    assert replica.stamp_ms(now + 10.0) - replica.stamp_ms(now) == 10_000
    replica.led_term = None
    assert replica.stamp_ms(now + 10.0) - replica.stamp_ms(now) == 10 * FOLLOWED_PACE


def test_no_word_puts_a_clock_below_what_is_applied() -> None:
    group = _with_a_deadline()
    group.run(2.0)
    group.write(N1, commands.put(b"b", b"1")).wait()
    group.run(0.5)
    replica = group[N2].replica()
    replica.hear_clock(0, replica.core.term, group[N2].now)
    assert _clock(group[N2]) == replica.machine.clock_ms > 0


def test_a_leader_goes_by_its_own_clock_whatever_it_hears() -> None:
    group = _with_a_deadline()
    replica, before = group[N1].replica(), _clock(group[N1])
    replica.hear_clock(before + 5_000, Term(replica.core.term + 1), group[N1].now)
    vote = VoteReply(
        source=group[N2].replica().me,
        target=replica.me,
        term=replica.core.term,
        is_granted=True,
        is_pre_vote=False,
        clock_ms=before + 5_000,
        clock_term=replica.core.term,
    )
    group.deliver(N2, N1, RaftMessages(SHARD, (vote,)))
    replica.run_clock(group[N1].now)
    assert _clock(group[N1]) == before


def test_votes_tell_the_clock_as_it_is_and_not_as_it_was_applied() -> None:
    group = _with_a_deadline()
    group.run(600.0)
    true_ms = _clock(group[N1])
    group.lead(N2)
    passed_ms = int((group[N2].now - group[N1].now) * 1000) + 1000
    assert true_ms <= _clock(group[N2]) <= true_ms + passed_ms


def test_one_record_for_all_clocks_with_deadlines_is_logged_by_every_node() -> None:
    group = HostGroup(shards=4)
    group.lead(N1, 0, 1, 2, 3)
    for shard in (0, 2):
        group.write(N1, commands.put(b"a", b"1", ttl_ms=3_600_000), shard=shard).wait()
    group.run(3 * LOG_EVERY_S)
    for node in group.nodes.values():
        records = _logged(node)
        assert 2 <= len(records) <= 3
        assert [shard for shard, _ in records[-1].clocks] == [0, 2]
        assert 0 <= _clock(group[N1], 2) - records[-1].clocks[1][1] <= 1000 * LOG_EVERY_S + 50


def test_without_deadlines_nothing_is_logged() -> None:
    group = HostGroup()
    group.lead(N1)
    group.write(N1, commands.put(b"a", b"1")).wait()
    batches = len(group[N1].log.batches)
    group.run(5 * LOG_EVERY_S)
    assert len(group[N1].log.batches) <= batches + 1
    assert not _logged(group[N1])


def test_what_was_logged_is_where_the_next_life_goes_on() -> None:
    group = _with_a_deadline()
    node = group[N2]
    node.host.clocks.restore({SHARD: 5_000_000, ShardId(9): 7})
    assert 5_000_000 <= _clock(node) <= 5_000_010


def test_clock_of_is_the_leader_s_or_what_was_heard_lately() -> None:
    group = HostGroup(nodes=4, homes=3)
    group.lead(N1)
    group.run(5.0)
    outside = group.nodes[max(group.nodes)]
    assert outside.router.clock_of(SHARD) is None
    group.write(outside.name, commands.put(b"a", b"1")).wait()
    for node in (group[N1], group[N2], outside):
        known = node.router.clock_of(SHARD)
        assert known is not None
        assert 0 <= _clock(group[N1]) - known < 30
    group.run(HEARD_FOR_S + 1)
    assert outside.router.clock_of(SHARD) is None, "too long ago to build on"
    assert group[N2].router.clock_of(SHARD) is not None, "the leader goes on telling"
