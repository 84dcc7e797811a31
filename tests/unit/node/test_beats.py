"""Heartbeats of a node for all the quiet shards it leads."""

from __future__ import annotations

from typing import Any

from kvstore.store import commands
from kvstore.types import ReplicaId, ShardId, Term
from kvstore.wire.peer import Beat, BeatReply
from tests.support.host_group import N1, N2, N3, SHARD, HostGroup, result_of, value_of

QUIET_S = 1.0


def _quiet(shards: int = 1) -> HostGroup:
    group = HostGroup(shards=shards)
    group.lead(N1, *range(shards))
    group.run(QUIET_S)
    assert all(group[N1].replica(shard).core.quiet for shard in range(shards))
    return group


def _beats_of_n1(group: HostGroup, seconds: float = 1.0) -> list[Any]:
    seen = group.watch(Beat, source=N1)
    group.run(seconds)
    return list(seen)


def test_all_quiet_shards_share_one_beat_and_send_nothing_else() -> None:
    group = _quiet(shards=8)
    sent = group.network.counts["sent"]
    beats = _beats_of_n1(group)
    # To two peers every 100 ms; all three nodes do, and each frame brings a reply along.
    assert 18 <= len(beats) <= 22
    assert group.network.counts["sent"] - sent <= 3 * 22
    acked_at = group[N1].host.beats.acked_at
    assert all(group[N1].now - acked_at[peer] < 0.25 for peer in (N2, N3))


def test_the_set_travels_only_until_it_is_confirmed() -> None:
    group = _quiet(shards=2)
    beats = _beats_of_n1(group)
    assert all(beat.led is None for beat in beats)
    group.write(N1, commands.put(b"a", b"1")).wait()
    changed = [beat for beat in _beats_of_n1(group) if beat.led is not None]
    assert changed, "a shard that woke is no longer named"
    assert {len(beat.led) for beat in changed} <= {0, 1, 2}
    versions = [beat.version for beat in changed]
    assert max(versions) > max(beat.version for beat in beats)


def test_followers_do_not_campaign_while_they_are_named() -> None:
    group = _quiet()
    term = group[N1].replica().core.term
    group.run(10.0)
    assert {group[name].replica().core.term for name in group.nodes} == {term}
    assert all(group[name].replica().core.leader == "n1/1" for name in group.nodes)


def test_a_shard_that_is_not_named_elects_although_the_node_goes_on() -> None:
    group = _quiet(shards=2)
    group[N1].host.replicas.pop(SHARD)
    group.run(5.0)
    leaders = [name for name in (N2, N3) if group[name].replica(0).led_term is not None]
    assert len(leaders) == 1
    assert group[N1].replica(1).led_term is not None


def test_only_quiet_shards_are_named() -> None:
    group = _quiet()
    group.part(N3)
    group.write(N1, commands.put(b"a", b"1")).wait()
    group.run(0.5)
    assert not group[N1].replica().core.quiet, "n3 has not everything"
    assert all(not beat.led for beat in _beats_of_n1(group) if beat.led is not None)


def test_a_follower_that_disagrees_wakes_the_shard() -> None:
    group = _quiet()
    core = group[N1].replica().core
    beats = group[N1].host.beats
    beats.on_reply(N2, BeatReply(beats._sent[N2].version, 1, (SHARD,), False))
    assert not core.quiet
    group.run(QUIET_S)
    assert core.quiet


def test_a_receiver_without_the_set_asks_for_it() -> None:
    group = _quiet()
    replies = group.watch(BeatReply)
    group.deliver(N1, N2, Beat(99, 1, None, ()))
    group.run(0.01)
    assert [reply for reply in replies if reply.version == 99] == [BeatReply(99, 1, (), True)]


def test_a_peer_that_was_forgotten_hears_the_whole_set_again() -> None:
    group = _quiet()
    group[N1].host.beats.forget(N2)
    told = [beat.led for beat in _beats_of_n1(group, 0.15) if beat.led]
    assert told == [((SHARD, ReplicaId("n1/1"), group[N1].replica().core.term),)]


def test_pitfall_30_a_reply_counts_for_the_quorum_but_confirms_no_round() -> None:
    group = _quiet()
    core = group[N1].replica().core
    confirmed = core.confirmed_round
    group.run(5.0)
    assert group[N1].replica().led_term is not None, "the quorum is there"
    assert core.confirmed_round == confirmed
    assert not group[N1].host.holds_lease(group[N1].replica())


def test_replies_for_an_older_set_or_term_credit_nobody() -> None:
    group = _quiet()
    beats, core = group[N1].host.beats, group[N1].replica().core
    group.part(N1)
    group.run(0.1)
    for progress in core.peers:
        progress.is_active = False
    version = beats._sent[N2].version
    beats.on_reply(N2, BeatReply(version - 1, 1, (), False))
    assert not any(progress.is_active for progress in core.peers)
    beats.on_reply(N2, BeatReply(version, 1, (), False))
    assert [progress.is_active for progress in core.peers] == [True, False]


def test_disagreement_about_another_term_is_no_reason_to_wake() -> None:
    group = _quiet()
    beats = group[N1].host.beats
    sent = beats._sent[N2]
    beats._sent[N2] = sent._replace(led=((SHARD, ReplicaId("n1/1"), Term(7)),))
    beats.on_reply(N2, BeatReply(sent.version, 1, (SHARD,), False))
    assert group[N1].replica().core.quiet


def test_a_beat_dates_stale_reads_only_once_all_that_is_committed_is_applied() -> None:
    group = _quiet()
    replica = group[N2].replica()
    led = ((SHARD, ReplicaId("n1/1"), replica.core.term),)
    replica.heard_at = -1.0
    applied = replica.machine._meta
    replica.machine._meta = applied._replace(applied=applied.applied - 1)
    group.deliver(N1, N2, Beat(50, 1, led, ()))
    assert replica.heard_at == -1.0
    replica.machine._meta = applied
    group.deliver(N1, N2, Beat(50, 2, None, ()))
    assert replica.heard_at == group[N2].now


def test_a_named_shard_that_is_not_here_is_disagreed_with() -> None:
    group = _quiet()
    replies = group.watch(BeatReply)
    group.deliver(N1, N2, Beat(50, 7, ((ShardId(9), ReplicaId("n1/1"), Term(1)),), ()))
    group.run(0.01)
    assert BeatReply(50, 7, (ShardId(9),), False) in replies


def test_a_quiet_shard_serves_at_once_when_asked() -> None:
    group = _quiet()
    assert result_of(group.write(N3, commands.put(b"a", b"1")).wait())[0] == 0
    assert value_of(group.read(N2, b"a").wait()) == b"1"
