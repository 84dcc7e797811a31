"""When a leader looks for what is due: at once, paced, one at a time, and only a leader."""

from __future__ import annotations

import pytest

from kvstore.node.expiry import Expiry, ExpirySettings
from kvstore.store import commands, deadlines, expiry
from kvstore.types import LogIndex, ShardId
from kvstore.wire.peer import ForwardWrite
from tests.support.host_group import N1, N2, N3, HostedNode, HostGroup, value_of


def _led(shards: int = 1) -> HostGroup:
    group = HostGroup(shards=shards)
    group.lead(N1, *range(shards))
    return group


def _fill(group: HostGroup, count: int, ttl_ms: int, shard: int = 0) -> None:
    for number in range(count):
        group.write(N1, commands.put(b"k%d" % number, b"1", ttl_ms=ttl_ms), shard=shard).wait()


def _count(node: HostedNode, shard: int = 0) -> int:
    return node.replica(shard).machine.key_count


def test_a_key_goes_within_a_few_ticks_on_all_replicas_and_wakes_a_quiet_shard() -> None:
    group = _led()
    _fill(group, 1, 5_000)
    group.run(4.9)
    assert group[N1].replica().core.quiet
    assert value_of(group.read(N2, b"k0").wait()) == b"1"
    group.run(0.5)
    assert [_count(node) for node in group.nodes.values()] == [0, 0, 0]


def test_nothing_is_proposed_while_nothing_is_due() -> None:
    group = _led()
    _fill(group, 3, 60_000)
    applied = group[N1].replica().machine.applied
    group.run(50.0)
    assert group[N1].replica().machine.applied == applied


def test_no_look_again_when_everything_left_is_due_later() -> None:
    group = _led()
    _fill(group, 2, 1_000)
    group.write(N1, commands.put(b"later", b"1", ttl_ms=60_000)).wait()
    group.run(2.0)
    applied = group[N1].replica().machine.applied
    group.run(20.0)
    assert (_count(group[N1]), group[N1].replica().machine.applied) == (1, applied)


def test_one_look_at_a_time_and_a_budget_for_all_shards() -> None:
    group = _led(shards=4)
    node = group[N1]
    node.expiry = Expiry(node.host, ExpirySettings(shard_min=2, node_base=4))
    for shard in range(4):
        _fill(group, 8, 500, shard)
    group.run_until(lambda: any(_count(node, shard) < 8 for shard in range(4)))
    seen = []
    for _ in range(30):
        before = sum(_count(node, shard) for shard in range(4))
        group.run(0.05)
        seen.append(before - sum(_count(node, shard) for shard in range(4)))
    assert max(seen) <= 2 * 4, "two ticks may fall into one slice"
    assert [_count(node, shard) for shard in range(4)] == [0, 0, 0, 0], "each shard has its turn"


def test_what_is_late_goes_faster_so_that_no_writer_outruns_it() -> None:
    group = _led()
    node = group[N1]
    node.expiry = Expiry(node.host, ExpirySettings(shard_min=1, node_base=2, late_s=1.0, node_max=30))
    command = commands.encode(None, [commands.put(b"k%d" % n, b"1", ttl_ms=500) for n in range(300)])
    done: list[object] = []
    node.router.write_then(
        ShardId(0), command, False, node.now + 5, lambda answer, error: done.append(answer)
    )
    group.run_until(lambda: bool(done) and _count(node) < 300)
    rates = []
    while _count(node):
        before = _count(node)
        group.run(0.5)
        rates.append(before - _count(node))
    assert rates[0] <= 40
    assert rates[2] > 1.5 * rates[0]
    assert len(rates) < 9


def test_a_leader_that_lags_behind_its_commits_waits() -> None:
    group = _led()
    _fill(group, 1, 1_000)
    replica = group[N1].replica()
    commit, replica.core.commit = replica.core.commit, LogIndex(replica.core.commit + 1)
    group.run(2.0)
    assert _count(group[N1]) == 1
    replica.core.commit = commit
    group.run(0.3)
    assert _count(group[N1]) == 0


def test_what_transactions_hold_is_not_asked_for_in_a_busy_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(expiry._HANDLERS, deadlines.KEY, lambda draft, due_ms, key: False)
    group = _led()
    _fill(group, 3, 1_000)
    group.run(1.0)
    applied = group[N1].replica().machine.applied
    group.run(10.0)
    assert 5 <= group[N1].replica().machine.applied - applied <= 14
    monkeypatch.undo()
    group.run(2.0)
    assert _count(group[N1]) == 0


def test_pitfall_03_an_expire_never_travels_to_another_node() -> None:
    group = _led()
    _fill(group, 1, 1_000)
    forwarded = group.watch(ForwardWrite)
    group.part(N1)
    # It proposes, and nobody hears; then it loses its leadership with the command in its hands.
    group.run(1.5)
    group.run_until(lambda: group[N1].replica().led_term is None)
    group.network.cut.clear()
    group.run(5.0)
    assert not forwarded
    assert _count(group[N3]) == 0, "whoever leads now does it by itself"


def test_a_halted_shard_does_not_stop_the_others() -> None:
    group = _led(shards=2)
    for shard in (0, 1):
        _fill(group, 1, 1_000, shard)
    group[N1].host.replicas.pop(ShardId(0))
    group.run(1.5)
    assert _count(group[N1], 1) == 0
