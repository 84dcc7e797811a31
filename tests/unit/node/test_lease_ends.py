"""Home's leader tells the shards of an ended lease, until all have acknowledged."""

from __future__ import annotations

from typing import Any

from kvstore.node.flow import spawn
from kvstore.node.leases import Leases
from kvstore.store import commands, lease_commands
from tests.support.host_group import N1, N2, HostedNode, HostGroup

L = b"lease"
SHARDS = 4


def _led() -> HostGroup:
    group = HostGroup(shards=SHARDS)
    group.lead(N1, *range(SHARDS))
    group.lead(N2, 2, 3)
    return group


def _home(group: HostGroup) -> int:
    return Leases(group[N1].router, group[N1].runtime).home_of(L)


def _grant(group: HostGroup, ttl_ms: int) -> int:
    answer = group.write(N1, lease_commands.grant(L, ttl_ms), shard=_home(group)).wait()
    return int(answer.result.results[0][1])


def _put(group: HostGroup, shard: int, key: bytes) -> None:
    node = group[N1]
    tie = spawn(Leases(node.router, node.runtime).tie(L, node.router.shards()[shard], node.now + 5.0))
    group.run_until(lambda: tie.is_done)
    answer = group.write(N1, [commands.PUT, key, b"v", dict(tie.result())], shard=shard).wait()
    assert answer.result.results[0][0] == 0, answer


def _count(group: HostGroup) -> int:
    return sum(_leader(group, shard).replica(shard).machine.key_count for shard in range(SHARDS))


def _leader(group: HostGroup, shard: int) -> HostedNode:
    leader = group.leader(shard)
    assert leader is not None
    return leader


def _is_told(group: HostGroup) -> bool:
    return not _leader(group, _home(group)).replica(_home(group)).machine.has_lease_ends


def _records(group: HostGroup, shard: int) -> set[Any]:
    engine = _leader(group, shard).replica(shard).machine._engine
    found = {key[:2] for key, _ in engine.scan(b"k", b"o")}
    return {kind for kind in found if kind[:1] != b"m" and kind != b"l\x02"}


def test_an_expired_lease_takes_its_keys_on_every_shard() -> None:
    group = _led()
    _grant(group, 3_000)
    for shard in range(SHARDS):
        _put(group, shard, b"a%d" % shard)
    group.run(2.5)
    assert _count(group) == SHARDS
    group.run_until(lambda: _count(group) == 0, 2.0)
    group.run_until(lambda: _is_told(group), 2.0)
    group.run(610.0)
    assert all(not _records(group, shard) for shard in range(SHARDS)), "nothing is left, marks included"


def test_a_revoke_that_nobody_follows_up_is_finished_by_the_leader() -> None:
    group = _led()
    generation = _grant(group, 60_000)
    for shard in range(SHARDS):
        _put(group, shard, b"a%d" % shard)
    group.write(N1, lease_commands.revoke(L, generation), shard=_home(group)).wait()
    group.run_until(lambda: _count(group) == 0 and _is_told(group), 3.0)


def test_a_new_leader_of_home_goes_on_and_a_lost_shard_holds_up_only_itself() -> None:
    group = HostGroup(nodes=4, shards=SHARDS)
    home = 0
    lease = next(b"l%d" % n for n in range(99) if group[N1].router.shard_of(b"_leases/l%d" % n) == home)
    group.lead(N1, *range(SHARDS))
    group.lead(N2, 3)
    generation = group.write(N1, lease_commands.grant(lease, 60_000)).wait().result.results[0][1]
    for shard in (1, 2, 3):
        group.write(N1, lease_commands.attach(lease, generation, shard)).wait()
        options = {
            "lease": lease,
            "lease_generation": generation,
            "lease_until_ms": group[N1].router.clock_of(group[N1].router.shards()[shard]) or 0,
        }
        options["lease_until_ms"] += 10_000
        group.write(N1, [commands.PUT, b"k", b"v", options], shard=shard).wait()
    group.network.cut |= {(N2, other) for other in group.nodes if other != N2}
    group.write(N1, lease_commands.revoke(lease, generation)).wait()
    group.run_until(lambda: _count_on(group[N1], 1) == 0 and _count_on(group[N1], 2) == 0, 5.0)
    assert group[N1].replica(home).machine.has_lease_ends
    group[N1].stop()
    group.network.cut.clear()
    group.run_until(lambda: group.leader(home) is not None and group.leader(3) is not None, 10.0)
    group.run_until(lambda: _count_on(_leader(group, 3), 3) == 0, 10.0)
    group.run_until(lambda: not _leader(group, home).replica(home).machine.has_lease_ends, 10.0)


def _count_on(node: HostedNode, shard: int) -> int:
    return node.replica(shard).machine.key_count


def test_very_many_keys_go_in_slices() -> None:
    group = _led()
    generation = _grant(group, 60_000)
    shard = (_home(group) + 1) % SHARDS
    _put(group, shard, b"first")
    node = group[N1]
    until_ms = (node.router.clock_of(node.router.shards()[shard]) or 0) + 10_000
    options = {"lease": L, "lease_generation": generation, "lease_until_ms": until_ms}
    command = commands.encode(None, [[commands.PUT, b"k%d" % n, b"v", options] for n in range(3_000)])
    done: list[Any] = []
    node.router.write_then(
        node.router.shards()[shard], command, False, node.now + 5, lambda answer, error: done.append(answer)
    )
    group.run_until(lambda: bool(done))
    group.write(N1, lease_commands.revoke(L, generation), shard=_home(group)).wait()
    seen = []
    while not _is_told(group):
        before = _count(group)
        group.run(0.05)
        seen.append(before - _count(group))
        assert len(seen) < 200
    assert _count(group) == 0
    assert max(seen) <= 1_000, "no giant entries"
