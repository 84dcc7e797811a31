"""Watches, locks, leases and transactions of the clients against real nodes that are killed and frozen."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.client import (
    AsyncClient,
    Client,
    Compacted,
    Expire,
    KvError,
    LeaseNotFound,
    LockLost,
    OutcomeUnknown,
    Put,
    Resynced,
    Unavailable,
    op,
    when,
)
from kvstore.client.aio_txn import Transaction
from tests.support.local_cluster import LocalCluster, served_cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with served_cluster(tmp_path_factory.mktemp("cluster")) as served:
        yield served


@pytest.fixture(autouse=True)
def _whole(cluster: LocalCluster) -> Iterator[None]:
    yield
    for name in cluster.names:
        if not cluster.is_running(name):
            cluster.start(name)
        if cluster.is_paused(name):
            cluster.resume(name)
    cluster.wait_until_served(60)


def client(cluster: LocalCluster, timeout: float = 20.0) -> AsyncClient:
    return AsyncClient(*cluster.client.values(), timeout=timeout)


def blocking(cluster: LocalCluster, timeout: float = 20.0) -> Client:
    return Client(*cluster.client.values(), timeout=timeout)


class Writer:
    """Writes numbers to eight keys, over and over, until it is stopped."""

    def __init__(self, kv: AsyncClient, prefix: str) -> None:
        self._kv, self._prefix = kv, prefix
        self._stop = asyncio.Event()
        self.acknowledged: dict[bytes, list[int]] = {}
        self.maybe: set[tuple[bytes, int]] = set()

    async def run(self) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            key = f"{self._prefix}{number % 8}"
            try:
                await self._kv.put(key, str(number))
                self.acknowledged.setdefault(key.encode(), []).append(number)
            except OutcomeUnknown:
                self.maybe.add((key.encode(), number))
            await asyncio.sleep(0.002)

    def stop(self) -> None:
        self._stop.set()

    def judge(self, seen: list[Put]) -> None:
        """Every acknowledged write was seen, once, in the order of its key; nothing else but maybes."""
        for key, numbers in self.acknowledged.items():
            found = [int(change.value) for change in seen if change.key == key]
            assert found == sorted(set(found)), f"{key!r}: repeated or out of order"
            assert set(numbers) <= set(found), f"{key!r}: lost {set(numbers) - set(found)}"
            assert {number for number in found if (key, number) not in self.maybe} == set(numbers)
        revisions: dict[bytes, int] = {}
        for change in seen:
            assert change.revision > revisions.get(change.key, 0)
            revisions[change.key] = change.revision


def node_of(cluster: LocalCluster, watch: Any) -> str:
    """The node to which a watch of the asyncio client is connected."""
    address = watch._stream._response.url.authority
    return next(name for name, found in cluster.client.items() if found == address)


async def test_a_watch_loses_and_repeats_nothing_while_its_nodes_are_killed(cluster: LocalCluster) -> None:
    await _watch_through(cluster, [cluster.kill, cluster.kill])


@pytest.mark.slow
async def test_a_watch_loses_and_repeats_nothing_while_its_nodes_are_frozen(cluster: LocalCluster) -> None:
    await _watch_through(cluster, [cluster.pause, cluster.kill, cluster.pause])


async def _watch_through(cluster: LocalCluster, faults: list[Callable[[str], None]]) -> None:
    async with client(cluster) as kv, client(cluster) as watcher:
        writer, seen = Writer(kv, "kill/"), list[Put]()
        async with watcher.watch(prefix="kill/") as watch, asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(writer.run())
            for fault in faults:
                await _collect(watch, seen, 150)
                victim = node_of(cluster, watch)
                fault(victim)
                await _collect(watch, seen, 150, limit_s=60.0)
                if fault == cluster.pause:
                    cluster.resume(victim)
                else:
                    cluster.start(victim)
                await asyncio.to_thread(cluster.wait_until_served, 60)
            writer.stop()
            await writing
            last = await kv.put("kill/last", "0")
            while seen[-1].key != b"kill/last":
                await _collect(watch, seen, 1)
        assert seen[-1].revision == last.revision
        # The last key of another shard may come before the rest of this one.
        async with watcher.watch(prefix="kill/", from_=watch.pos, timeout=1.0) as rest:
            seen += [change async for change in rest if isinstance(change, Put)]
        writer.judge([change for change in seen if change.key != b"kill/last"])


async def _collect(watch: Any, seen: list[Put], count: int, limit_s: float = 30.0) -> None:
    async with asyncio.timeout(limit_s):
        for _ in range(count):
            change = await anext(watch)
            assert isinstance(change, Put)
            seen.append(change)


def test_a_blocking_watch_goes_on_where_another_has_stopped(cluster: LocalCluster) -> None:
    with blocking(cluster) as kv:
        with kv.watch(prefix="halves/", timeout=20.0) as watch:
            for number in range(10):
                kv.put(f"halves/{number}", str(number))
            first = [next(watch) for _ in range(5)]
            pos = watch.pos
        with kv.watch(prefix="halves/", from_=pos, timeout=20.0) as watch:
            second = [next(watch) for _ in range(5)]
        keys = sorted(change.key for change in first + second if isinstance(change, Put))
    assert keys == [f"halves/{number}".encode() for number in range(10)]


async def test_list_then_watch_sees_each_change_once(cluster: LocalCluster) -> None:
    """Pitfall 46: an event between the list and the watch."""
    async with client(cluster) as kv:
        for number in range(20):
            await kv.put(f"list/{number:02}", "before")
        scan = kv.scan(prefix="list/", limit=100)
        listed = [item.key async for item in scan]
        await kv.put("list/05", "between")
        await kv.delete("list/06")
        async with kv.watch(prefix="list/", from_=scan.pos, prev=True, timeout=5.0) as watch:
            await kv.put("list/07", "after")
            changes = {change.key: change for change in [await anext(watch) for _ in range(3)]}  # type: ignore[union-attr]
    assert len(listed) == 20
    assert sorted(changes) == [b"list/05", b"list/06", b"list/07"]
    assert changes[b"list/05"].prev.value == b"before"  # type: ignore[union-attr]


async def test_a_snapshot_and_what_follows_make_a_mirror(cluster: LocalCluster) -> None:
    async with client(cluster) as kv:
        await kv.put("mirror/a", "1")
        mirror: dict[bytes, bytes] = {}
        async with kv.watch(prefix="mirror/", snapshot=True, timeout=5.0) as watch:
            await kv.put("mirror/b", "2", ttl=0.5)
            await kv.delete("mirror/a")
            async for change in watch:
                match change:
                    case Resynced(items):
                        mirror = {item.key: item.value for item in items}
                    case Put(key, value):
                        mirror[key] = value
                    case Expire(key):
                        assert mirror.pop(key) == b"2"
                        break
                    case _:
                        mirror.pop(change.key, None)  # type: ignore[union-attr]
        assert mirror == {}
        assert await kv.count(prefix="mirror/") == 0


HOLDER = """
import sys, time
from kvstore.client import Client, LockLost
with Client(*sys.argv[1].split(","), timeout=10.0) as kv:
    try:
        with kv.lock("frozen", ttl=2.0) as held:
            print("held", held.fence, flush=True)
            held.lost.wait(60)
            print("lost", held.is_held, flush=True)
    except LockLost:
        print("told", flush=True)
"""


def test_a_holder_that_is_frozen_longer_than_its_ttl_learns_that_it_lost_the_lock(
    cluster: LocalCluster,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, ",".join(cluster.client.values())],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    try:
        assert process.stdout is not None
        word, fence = process.stdout.readline().split()
        assert word == "held"
        time.sleep(3.0)  # longer than the TTL: it is renewed
        assert process.poll() is None
        process.send_signal(signal.SIGSTOP)
        with blocking(cluster) as kv, kv.lock("frozen", ttl=5.0, wait=30.0) as held:
            assert held.fence > int(fence)
            process.send_signal(signal.SIGCONT)
            begun = time.monotonic()
            assert process.stdout.readline() == "lost False\n"
            assert time.monotonic() - begun < 5.0
            assert process.stdout.readline() == "told\n"
            assert held.is_held, "the late one's release must not touch the new holder's lock"
    finally:
        process.kill()
        process.wait()


async def test_locks_pass_from_hand_to_hand_while_a_node_is_killed(cluster: LocalCluster) -> None:
    fences: list[int] = []
    inside = 0

    async def work(kv: AsyncClient) -> None:
        nonlocal inside
        for _ in range(4):
            async with kv.lock("busy", ttl=10.0, wait=60.0) as held:
                inside += 1
                assert inside == 1
                await asyncio.sleep(0.02)
                held.check()
                inside -= 1
                fences.append(held.fence)

    async with client(cluster) as kv, asyncio.TaskGroup() as tasks:
        workers = [tasks.create_task(work(kv)) for _ in range(5)]
        await asyncio.sleep(0.3)
        cluster.kill(cluster.leader_of_key("_locks/busy") or cluster.names[0])
        await asyncio.gather(*workers)
    assert len(fences) == 20
    assert fences == sorted(set(fences)), "fences grow"


async def test_a_leader_is_followed_by_the_next_candidate(cluster: LocalCluster) -> None:
    async with client(cluster) as kv, kv.observe("office", timeout=30.0) as seen:
        assert await anext(seen) is None
        async with kv.elect("office", "first", ttl=5.0) as first:
            waiting = asyncio.get_running_loop().create_task(_lead(kv))
            leader = await anext(seen)
            assert leader is not None
            assert (leader.text, leader.fence) == ("first", first.fence)
        leader = await anext(seen)
        while leader is None or leader.text != "second":
            leader = await anext(seen)
        assert leader.fence > first.fence
        assert await waiting == leader.fence


async def _lead(kv: AsyncClient) -> int:
    async with kv.elect("office", "second", ttl=5.0) as office:
        await asyncio.sleep(0.2)
        return office.fence


async def test_a_lease_keeps_its_keys_alive_and_takes_them_along(cluster: LocalCluster) -> None:
    async with client(cluster) as kv:
        async with await kv.grant(8.0) as lease:
            for number in range(8):
                await kv.put(f"tied/{number}", "x", lease=lease.id)
            cluster.kill(cluster.names[1])
            await asyncio.sleep(9.0)  # longer than the TTL
            assert not lease.lost.is_set()
            assert await kv.count(prefix="tied/") == 8
            assert len((await kv.lease_info(lease.id)).keys) == 8
        async with asyncio.timeout(20.0):
            while await kv.count(prefix="tied/"):
                await asyncio.sleep(0.05)
        with pytest.raises(LeaseNotFound):
            await kv.put("tied/late", "x", lease=lease.id)
        # One that nobody renews takes its keys along when its time is over, and not before.
        lease = await kv.grant(1.5)
        await kv.put("tied/alone", "x", lease=lease.id)
        begun = time.monotonic()
        async with asyncio.timeout(30.0):
            while await kv.get("tied/alone") is not None:
                await asyncio.sleep(0.02)
        assert time.monotonic() - begun >= 1.4


async def test_a_counter_in_transactions_of_sixteen_tasks_is_exact(cluster: LocalCluster) -> None:
    async with client(cluster, 60.0) as kv:

        async def add(t: Transaction) -> None:
            item = await t.get("exact")
            t.put("exact", str(1 + (0 if item is None else int(item.value))))

        async def work() -> None:
            for _ in range(5):
                await kv.transact(add)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(16):
                tasks.create_task(work())
        item = await kv.get("exact")
        assert item is not None
        assert item.value == b"80"


def test_money_moves_over_shards_and_none_is_made_while_a_node_is_killed(cluster: LocalCluster) -> None:
    accounts = [f"account/{number}" for number in range(6)]
    with blocking(cluster, 30.0) as kv:
        kv.commit([], [op.put(account, "100") for account in accounts])

        def move(number: int) -> None:
            def body(t: Any) -> None:
                source, target = accounts[number % 6], accounts[(number * 5 + 1) % 6]
                if source == target:
                    return
                first, second = t.get_all(source, target)
                t.put(source, str(int(first.value) - 7))
                t.put(target, str(int(second.value) + 7))

            kv.transact(body, timeout=60.0)

        failures: list[BaseException] = []

        def work(offset: int) -> None:
            try:
                for number in range(10):
                    move(offset + number)
            except OutcomeUnknown:
                pass
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number * 10,)) for number in range(4)]
        for thread in threads:
            thread.start()
        cluster.kill(cluster.names[2])
        for _ in range(10):
            assert sum(int(item.value) for item in kv.get_all(*accounts) if item is not None) == 600
        for thread in threads:
            thread.join(90)
        assert failures == []
        assert sum(int(item.value) for item in kv.get_all(*accounts) if item is not None) == 600


async def test_compares_see_what_is_there(cluster: LocalCluster) -> None:
    async with client(cluster) as kv:
        written = await kv.put("cmp/a", "m")
        holds = {
            "absent": when("cmp/none").absent(),
            "exists": when("cmp/a").exists(),
            "revision": when("cmp/a").revision.eq(written.revision),
            "version": when("cmp/a").version.le(1),
            "value": when("cmp/a").value.gt("l"),
            "ne": when("cmp/a").value.ne("x"),
            "create": when("cmp/a").create_revision.ge(written.revision),
        }
        for name, compare in holds.items():
            done = await kv.commit([compare], then=[op.get("cmp/a")])
            assert done.succeeded, name
        fails = [when("cmp/a").absent(), when("cmp/none").value.eq(""), when("cmp/a").value.lt("a")]
        for compare in fails:
            done = await kv.commit([compare], then=[op.put("cmp/a", "z")], otherwise=[op.get("cmp/a")])
            assert not done.succeeded
            assert done.results[0].value == b"m"


async def test_without_a_quorum_claims_are_lost_in_time(cluster: LocalCluster) -> None:
    async with client(cluster, 3.0) as kv:
        begun = time.monotonic()
        error: KvError | None = None
        try:
            async with kv.lock("minority", ttl=3.0) as held:
                for name in cluster.names[1:]:
                    cluster.pause(name)
                async with asyncio.timeout(20.0):
                    await held.lost.wait()
                assert time.monotonic() - begun < 10.0
        except LockLost as lost:
            error = lost
        assert error is not None
        with pytest.raises((Unavailable, OutcomeUnknown, KvError)):
            await kv.grant(3.0)


def test_kvctl_locks_watches_and_elects(cluster: LocalCluster, tmp_path: Path) -> None:
    endpoints = ",".join(cluster.client.values())

    def kvctl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "kvstore.cli", *arguments],
            capture_output=True,
            cwd=ROOT,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "KVCTL_ENDPOINTS": endpoints},
        )

    done = kvctl("lock", "cli", "--", "sh", "-c", "echo $KVCTL_FENCE")
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > 0
    with blocking(cluster) as kv, kv.lock("cli", ttl=10.0):
        assert kvctl("lock", "cli", "--wait", "300ms", "--", "true").returncode == 4
    assert kvctl("put", "cli/a", "1", "--ttl", "30s").returncode == 0
    seen = kvctl("watch", "--prefix", "cli/", "--snapshot", "-n", "1", "-o", "jsonl")
    assert json.loads(seen.stdout.splitlines()[1])["key"] == "cli/a"
    assert kvctl("txn", "--if", "cli/a.value == 1", "--then", "put cli/b 2").returncode == 0
    assert kvctl("txn", "--if", "cli/b absent", "--then", "put cli/b 3").returncode == 4
    led = kvctl("elect", "cli", "me", "--", "sh", "-c", f"echo leading > {tmp_path / 'led'}")
    assert led.returncode == 0, led.stderr.decode()
    assert (tmp_path / "led").exists()
    lease = kvctl("lease", "grant", "30s").stdout.decode().strip()
    assert kvctl("put", "cli/c", "x", "--lease", lease).returncode == 0
    assert json.loads(kvctl("lease", "get", lease, "-o", "json").stdout)["keys"] == [{"key": "cli/c"}]
    assert kvctl("lease", "revoke", lease).returncode == 0
    assert kvctl("lease", "revoke", lease).returncode == 3


def test_a_watch_that_comes_back_after_its_history_is_gone_is_told_all_that_is_there(tmp_path: Path) -> None:
    history = {"history": {"revisions": 50, "minutes": 0}}
    with served_cluster(tmp_path, shards=1, settings=history) as small, blocking(small) as kv:
        with kv.watch(prefix="gone/", timeout=20.0) as watch:
            kv.put("gone/early", "x")
            next(watch)
            pos = watch.pos
        kv.delete("gone/early")
        deadline = time.monotonic() + 60.0
        while True:
            with kv.batch() as batch:
                for number in range(300):
                    batch.put(f"gone/{number % 3}", str(number))
            with kv.watch(prefix="gone/", from_=pos, timeout=20.0) as watch:
                first = next(watch)
                if isinstance(first, Resynced):
                    assert sorted(item.key for item in first.items) == [b"gone/0", b"gone/1", b"gone/2"]
                    kv.put("gone/late", "y")
                    assert isinstance(late := next(watch), Put)
                    assert late.key == b"gone/late"
                    break
            assert time.monotonic() < deadline, "history never went"
        with pytest.raises(Compacted), kv.watch(prefix="gone/", from_=pos, resync=False) as watch:
            next(watch)
