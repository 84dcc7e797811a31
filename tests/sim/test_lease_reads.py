"""Lease reads against what other replicas have already shown."""

from __future__ import annotations

import msgspec
import pytest

from kvstore.node.requests import Response
from kvstore.types import NodeId, ShardId
from tests.sim.cluster import SimCluster
from tests.sim.world import World

SHARD = ShardId(0)


@pytest.fixture
def cluster() -> SimCluster:
    cluster = SimCluster(World(2), shards=1)
    cluster.start_all()
    assert cluster.world.run_while(lambda: not cluster.has_all_leaders(), 20.0)
    cluster.world.run_until(cluster.world.now + 2.0)
    return cluster


def ask(
    cluster: SimCluster, node: NodeId, method: str, target: str, body: bytes = b""
) -> list[Response | None]:
    answers: list[Response | None] = []
    cluster.request(node, method, target, {}, body, answers.append)
    return answers


def wait(cluster: SimCluster, answers: list[Response | None], limit_s: float = 4.0) -> Response:
    assert cluster.world.run_while(lambda: not answers, limit_s), "no answer"
    response = answers[0]
    assert response is not None
    return response


def test_lease_read_never_shows_less_than_a_follower_has_shown(cluster: SimCluster) -> None:
    """Found by simulation: the followers commit what the leader's slow disk has not synced, and the leader
    may not apply it yet. A read there must not answer from its older state while it holds the lease."""
    leader = cluster.leader_of(SHARD)
    assert leader is not None
    follower = next(name for name in cluster.processes if name != leader.name)
    wait(cluster, ask(cluster, leader.name, "PUT", "/v1/kv/a", b"old"))
    # A confirmed round gives the lease.
    wait(cluster, ask(cluster, leader.name, "GET", "/v1/kv/a"))
    cluster.machines[leader.name].disk.hung_until = cluster.world.now + 0.4

    ask(cluster, leader.name, "PUT", "/v1/kv/a", b"new")
    seen = b"old"
    while seen == b"old":
        seen = wait(cluster, ask(cluster, follower, "GET", "/v1/kv/a")).body
    replica = leader.node.host.replicas[SHARD]
    assert replica.machine.applied < replica.core.commit, "the leader lags behind its own commit"
    assert leader.node.host.holds_lease(replica)

    answer = wait(cluster, ask(cluster, leader.name, "GET", "/v1/kv/a?consistency=lease"))
    assert (answer.status, answer.body) == (200, b"new")


def test_lease_read_is_answered_without_a_round(cluster: SimCluster) -> None:
    leader = cluster.leader_of(SHARD)
    assert leader is not None
    created = wait(cluster, ask(cluster, leader.name, "PUT", "/v1/kv/a", b"1"))
    assert msgspec.json.decode(created.body)["created"] is True
    wait(cluster, ask(cluster, leader.name, "GET", "/v1/kv/a"))
    # The slower follower's answers are still on their way.
    cluster.world.run_until(cluster.world.now + 0.02)
    sent = cluster.network.counts["sent"]
    answers = ask(cluster, leader.name, "GET", "/v1/kv/a?consistency=lease")
    cluster.world.run_until(cluster.world.now + 0.0001)
    assert answers, "answered at once"
    assert cluster.network.counts["sent"] == sent
