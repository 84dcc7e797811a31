"""Without a quorum nothing is served that could be wrong, and nobody waits longer than asked."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from chaos.exchange import Connection, Reply
from tests.support.local_cluster import LocalCluster, served_cluster

STALE = "/v1/kv/a?consistency=stale"
DEADLINE_S = 1.5
GRACE_S = 3.0
"""A busy machine's. Well below the deadline of who names none."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with served_cluster(tmp_path_factory.mktemp("cluster"), shards=1) as served:
        yield served


@pytest.fixture
async def alone(cluster: LocalCluster) -> AsyncIterator[tuple[LocalCluster, str]]:
    """A cluster of one shard whose leader has just lost both followers; the leader has served before."""
    cluster.wait_until_served(60)
    leader = cluster.leader_of(0)
    assert leader is not None
    async with asyncio.timeout(30):
        while (await ask(cluster, leader, "PUT", "/v1/kv/a", b"before"))[0].status not in (200, 201):
            await asyncio.sleep(0.05)
        while "kv-staleness" not in (await ask(cluster, leader, "GET", STALE))[0].headers:
            await asyncio.sleep(0.05)
    for name in cluster.names:
        if name != leader:
            cluster.pause(name)
    yield cluster, leader
    for name in cluster.names:
        cluster.resume(name)


async def ask(
    cluster: LocalCluster, name: str, method: str, target: str, body: bytes = b""
) -> tuple[Reply, float]:
    connection = Connection(cluster.client[name])
    begun = time.monotonic()
    try:
        headers = {"KV-Timeout": f"{int(DEADLINE_S * 1000)}ms"}
        reply = await connection.request(method, target, headers, body, DEADLINE_S + 10)
    finally:
        connection.close()
    return reply, time.monotonic() - begun


async def test_reads_fail_within_their_deadline(alone: tuple[LocalCluster, str]) -> None:
    cluster, leader = alone
    for _ in range(2):
        reply, seconds = await ask(cluster, leader, "GET", "/v1/kv/a")
        assert reply.status in (503, 504)
        assert json.loads(reply.body)["code"] in ("timeout", "no-leader", "unavailable")
        assert json.loads(reply.body)["retryable"] is True
        assert seconds < DEADLINE_S + GRACE_S


async def test_writes_end_as_unknown_or_refused_within_their_deadline(
    alone: tuple[LocalCluster, str],
) -> None:
    cluster, leader = alone
    for number in range(2):
        reply, seconds = await ask(cluster, leader, "PUT", f"/v1/kv/w{number}", b"x")
        assert (reply.status, json.loads(reply.body)["code"]) in (
            (504, "outcome-unknown"),
            (503, "no-leader"),
            (503, "unavailable"),
        )
        assert seconds < DEADLINE_S + GRACE_S


async def test_stale_reads_are_served_and_tell_their_age(alone: tuple[LocalCluster, str]) -> None:
    cluster, leader = alone
    reply, _ = await ask(cluster, leader, "GET", STALE)
    assert (reply.status, reply.body) == (200, b"before")
    assert float(reply.headers["kv-staleness"]) >= 0.0


async def test_everything_is_served_again_once_the_quorum_is_back(alone: tuple[LocalCluster, str]) -> None:
    cluster, leader = alone
    await ask(cluster, leader, "PUT", "/v1/kv/late", b"x")
    for name in cluster.names:
        if name != leader:
            cluster.resume(name)
    cluster.wait_until_served(60)
    reply, _ = await ask(cluster, leader, "PUT", "/v1/kv/again", b"y")
    assert reply.status in (200, 201)
