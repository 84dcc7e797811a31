"""Real processes on disks that lose power, fail, stall and fill up. Needs root, loop devices and strace."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from chaos.disks import LoopDisk, can_mount
from chaos.exchange import Connection, Lost, NotSent
from chaos.injection import Injection, can_inject
from chaos.targets import TargetError, plant
from tests.support.busy_cluster import busy
from tests.support.local_cluster import LocalCluster, served_cluster

DISK_BYTES = 600 << 20
SMALL_BYTES = 400 << 20
LEFT_BYTES = 24 << 20
NOTICED = "is quarantined: log ends at"

needs_disks = pytest.mark.skipif(can_mount() is not None, reason=can_mount() or "")
needs_strace = pytest.mark.skipif(can_inject() is not None, reason=can_inject() or "")


class Disks:
    """A disk for each node of a cluster."""

    def __init__(self, place: Path, size_bytes: int = DISK_BYTES, **options: Any) -> None:
        self.cluster = LocalCluster(place / "cluster", **options)
        self.of = {name: LoopDisk(place / "disks" / name, size_bytes) for name in self.cluster.names}
        for name, disk in self.of.items():
            self.cluster.data[name] = disk.path / "data"

    def sync(self) -> None:
        """Make everything up to now durable, whatever the nodes do."""
        for disk in self.of.values():
            disk.sync()

    def cut_power_of_all(self) -> None:
        """All disks lose power at one moment, then the processes end, then power is back."""
        for disk in self.of.values():
            disk.cut_power()
        for name in self.cluster.running():
            self.cluster.kill(name)
        for disk in self.of.values():
            disk.restore_power()

    def close(self) -> None:
        self.cluster.close()
        for disk in self.of.values():
            disk.close()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    made = Disks(tmp_path, shards=4)
    try:
        yield made
    finally:
        made.close()


async def lose_power(disks: Disks, cuts: int) -> list[str]:
    """Cut the power of all nodes under load, `cuts` times. Gives the contradictions of the history."""
    cluster = disks.cluster
    cluster.start()
    await asyncio.to_thread(cluster.wait_until_served, 60)
    async with busy(cluster, clients=16) as load:
        for _ in range(cuts):
            await load.acknowledge(1_000)
            await asyncio.to_thread(disks.cut_power_of_all)
            cluster.start()
            await asyncio.to_thread(cluster.wait_until_served, 60)
        await load.acknowledge(200)
    return load.contradictions()


@needs_disks
async def test_acknowledged_writes_survive_a_power_cut_of_all_nodes(disks: Disks) -> None:
    assert await lose_power(disks, cuts=2) == []


@needs_disks
async def test_a_store_that_forgets_to_sync_is_caught_by_the_power_cut(disks: Disks) -> None:
    cluster = disks.cluster
    plant(cluster, "syncs-do-nothing")
    cluster.start()
    await asyncio.to_thread(cluster.wait_until_served, 60)
    disks.sync()
    is_noticed = False
    try:
        async with busy(cluster, clients=16) as load:
            await load.acknowledge(1_000)
            await asyncio.to_thread(disks.cut_power_of_all)
            cluster.environment.clear()
            cluster.start()
            await asyncio.to_thread(served_unless_noticed, cluster)
            await load.acknowledge(200)
    except* TargetError as errors:
        is_noticed = all(NOTICED in str(error) for error in errors.exceptions)
    assert is_noticed or load.contradictions(), "writes that were never synced survived: no bite"


def served_unless_noticed(cluster: LocalCluster) -> None:
    """Tablets may have been flushed by themselves: then the nodes see what their logs lack, and say so."""
    for _ in range(60):
        if any(NOTICED in cluster.log(name) for name in cluster.names):
            raise TargetError(NOTICED)
        with suppress(TargetError):
            cluster.wait_until_served(1.0)
            return
    raise TargetError("neither served nor noticed")


@needs_disks
@pytest.mark.chaos
@pytest.mark.timeout(1800)
async def test_twenty_power_cuts_of_all_nodes(disks: Disks) -> None:
    assert await lose_power(disks, cuts=20) == []


@needs_strace
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
async def test_a_node_whose_disk_fails_stops_and_says_why_and_the_cluster_goes_on(
    tmp_path: Path, call: str
) -> None:
    with served_cluster(tmp_path, shards=4) as cluster:
        victim = cluster.names[0]
        async with busy(cluster, clients=8) as load:
            await load.acknowledge(300)
            with Injection(cluster.pid(victim), call, "error=EIO", tmp_path / "strace") as injection:
                code = await asyncio.to_thread(cluster.wait_for_exit, victim, 30)
            assert injection.bites > 0
            assert code not in (0, None)
            assert _says_why(cluster.log(victim))
            await load.acknowledge(300)
            cluster.start(victim)
            await asyncio.to_thread(cluster.wait_until_served, 60)
            await load.acknowledge(300)
        assert load.contradictions() == []


def _says_why(log: str) -> bool:
    last = "\n".join(log.splitlines()[-30:])
    return "Input/output error" in last or "EIO" in last


@needs_disks
async def test_a_full_disk_refuses_writes_with_507_loses_nothing_and_works_again(tmp_path: Path) -> None:
    disks = Disks(tmp_path, SMALL_BYTES, shards=2, settings={"storage": {"wal_segment_bytes": 8 << 20}})
    cluster = disks.cluster
    try:
        cluster.start()
        await asyncio.to_thread(cluster.wait_until_served, 60)
        fillers = {name: fill(disk.path, LEFT_BYTES) for name, disk in disks.of.items()}
        accepted = await write_until_refused(cluster)
        assert cluster.running() == cluster.names, "a full disk must not end a node"
        assert await status_of(cluster, "GET", next(iter(accepted))) == 200
        for filler in fillers.values():
            filler.unlink()
        async with asyncio.timeout(30):
            while await status_of(cluster, "PUT", "after", b"x") not in (200, 201):
                await asyncio.sleep(0.1)
        for name in cluster.names:
            cluster.restart(name)
        await asyncio.to_thread(cluster.wait_until_served, 60)
        lost = [key for key in accepted if await status_of(cluster, "GET", key) != 200]
        assert lost == []
    finally:
        disks.close()


def fill(directory: Path, left_bytes: int) -> Path:
    """Take all space of a file system but `left_bytes`."""
    filler = directory / "filler"
    state = os.statvfs(directory)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_frsize - left_bytes))
    return filler


async def write_until_refused(cluster: LocalCluster) -> list[str]:
    """Put large values until one is refused for lack of space. Gives the keys that were accepted."""
    accepted: list[str] = []
    for number in range(2_000):
        status = await status_of(cluster, "PUT", f"large-{number}", bytes(64 << 10))
        if status == 507:
            return accepted
        assert status in (200, 201, 503, 504), status
        if status in (200, 201):
            accepted.append(f"large-{number}")
    raise AssertionError("the disk never filled up")


async def status_of(cluster: LocalCluster, method: str, key: str, body: bytes = b"") -> int:
    """Ask any node; 0 where none answers."""
    for name in cluster.running():
        connection = Connection(cluster.client[name])
        try:
            return (await connection.request(method, f"/v1/kv/{key}", {}, body, 10)).status
        except (NotSent, Lost):
            continue
        finally:
            connection.close()
    return 0
