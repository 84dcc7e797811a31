"""Nodes are killed and frozen under load: nothing acknowledged is lost, nothing happens twice, and writes are
accepted again soon. A few cycles run by default; the marker `chaos` runs the numbers that are promised."""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.busy_cluster import BusyCluster, busy
from tests.support.local_cluster import LocalCluster, served_cluster

ACKNOWLEDGED_PER_CYCLE = 1_000
RECOVERY_S = 2.0
RESTART_ALL_S = 4.0

Cycle = Callable[[BusyCluster], Awaitable[float]]


async def kill_the_leader(load: BusyCluster) -> float:
    """Gives the seconds from the kill until its shard accepts a write again."""
    node, shard = await load.leader_of_busy_shard()
    load.cluster.kill(node)
    seconds = await load.seconds_until_written(shard)
    load.cluster.start(node)
    await asyncio.to_thread(load.cluster.wait_until_served, 90)
    return seconds


async def kill_everything(load: BusyCluster) -> float:
    """Gives the seconds from the last start until every shard is served."""
    for name in load.cluster.names:
        load.cluster.kill(name)
    load.cluster.start()
    return await asyncio.to_thread(load.cluster.wait_until_served, 90)


async def freeze_the_leader(load: BusyCluster) -> float:
    """Freezes it past several election timeouts, so that it wakes up believing that it leads."""
    node, shard = await load.leader_of_busy_shard()
    load.cluster.pause(node)
    seconds = await load.seconds_until_written(shard)
    await asyncio.sleep(2.0)
    load.cluster.resume(node)
    await asyncio.to_thread(load.cluster.wait_until_served, 90)
    return seconds


async def survive(cluster: LocalCluster, cycle: Cycle, cycles: int) -> list[float]:
    """Repeat a fault under the load of 32 clients, judge the history. Gives what the cycles measured."""
    measured = []
    async with busy(cluster) as load:
        for _ in range(cycles):
            await load.acknowledge(ACKNOWLEDGED_PER_CYCLE)
            measured.append(await cycle(load))
        await load.acknowledge(ACKNOWLEDGED_PER_CYCLE)
    assert load.contradictions() == []
    assert load.unknown_share < 0.001, f"{load.unknown_share:.3%} of the writes ended as outcome-unknown"
    print(f"{cycles} cycles, {load.acknowledged} acknowledged writes, seconds: {sorted(measured)}")
    return measured


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with served_cluster(tmp_path) as served:
        yield served


async def test_writes_survive_kills_of_the_leader(cluster: LocalCluster) -> None:
    await survive(cluster, kill_the_leader, cycles=2)


async def test_writes_survive_the_kill_of_all_nodes_at_once(cluster: LocalCluster) -> None:
    await survive(cluster, kill_everything, cycles=1)


async def test_writes_and_reads_survive_a_frozen_leader(cluster: LocalCluster) -> None:
    await survive(cluster, freeze_the_leader, cycles=1)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_fifty_kills_of_the_leader_of_a_busy_shard(cluster: LocalCluster) -> None:
    recoveries = await survive(cluster, kill_the_leader, cycles=50)
    assert statistics.median(recoveries) <= RECOVERY_S


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_twenty_kills_of_all_nodes_at_once(cluster: LocalCluster) -> None:
    restarts = await survive(cluster, kill_everything, cycles=20)
    assert statistics.median(restarts) <= RESTART_ALL_S


@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_twenty_frozen_leaders(cluster: LocalCluster) -> None:
    await survive(cluster, freeze_the_leader, cycles=20)
