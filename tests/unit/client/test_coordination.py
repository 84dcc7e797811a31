"""Leases, locks, elections, transactions and watches of both clients, on real sockets."""

# ruff: noqa: PT012 - what the end of a block raises is what many of these are about.

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from kvstore.client import (
    AsyncClient,
    Client,
    Conflict,
    Delete,
    Expire,
    KvError,
    LeaseNotFound,
    Locked,
    LockLost,
    Progress,
    Put,
    ReadTimeout,
    Resynced,
    Unavailable,
    op,
    when,
)
from tests.support.fake_cluster import Answer, Drop, FakeCluster, Seen, problem


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster(3) as made:
        yield made


@pytest.fixture
def kv(cluster: FakeCluster) -> Iterator[Client]:
    with Client(*cluster.endpoints, timeout=10.0) as client:
        yield client


def cut_off(cluster: FakeCluster) -> None:
    """From now on no renewal arrives."""

    def refuse(seen: Seen) -> Answer | None:
        if "keepalive" in seen.target:
            raise Drop
        return None

    cluster.before = refuse


# Watches.


async def test_a_watch_tells_every_change_over_cut_streams(cluster: FakeCluster) -> None:
    cluster.coordination.cut = lambda line: line % 5 == 4
    async with (
        AsyncClient(*cluster.endpoints, timeout=10.0) as kv,
        kv.watch(prefix="w/", timeout=10.0) as watch,
    ):
        for number in range(20):
            await kv.put(f"w/{number}", str(number))
            await kv.put("other", "x")
        seen = [await anext(watch) for _ in range(20)]
        assert [change.key for change in seen if isinstance(change, Put)] == [
            f"w/{number}".encode() for number in range(20)
        ]
        assert watch.pos == seen[-1].pos
        assert await watch.next(timeout=0.05) is None


def test_a_blocking_watch_tells_every_change_over_cut_streams(kv: Client, cluster: FakeCluster) -> None:
    cluster.coordination.cut = lambda line: line % 5 == 4
    with kv.watch(prefix="w/", timeout=10.0) as watch:
        for number in range(20):
            kv.put(f"w/{number}", str(number))
            kv.put("other", "x")
        seen = [next(watch) for _ in range(20)]
        assert [change.key for change in seen if isinstance(change, Put)] == [
            f"w/{number}".encode() for number in range(20)
        ]
        assert watch.pos == seen[-1].pos
        begun = time.monotonic()
        assert watch.next(timeout=0.05) is None
        assert time.monotonic() - begun < 3.0


async def test_a_wait_that_was_cancelled_loses_nothing(cluster: FakeCluster) -> None:
    async with AsyncClient(*cluster.endpoints) as kv, kv.watch(key="k") as watch:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watch)
        await kv.put("k", "1")
        change = await anext(watch)
        assert isinstance(change, Put)
        assert change.text == "1"


def test_a_list_and_a_watch_from_its_position_miss_nothing(kv: Client) -> None:
    kv.put("cfg/a", "1")
    scan = kv.scan(prefix="cfg/")
    assert [item.key for item in scan] == [b"cfg/a"]
    kv.put("cfg/b", "2")
    kv.delete("cfg/a")
    with kv.watch(prefix="cfg/", from_=scan.pos, prev=True, timeout=10.0) as watch:
        first, second = next(watch), next(watch)
    assert isinstance(first, Put)
    assert (first.key, first.prev) == (b"cfg/b", None)
    assert isinstance(second, Delete)
    assert second.prev is not None
    assert second.prev.value == b"1"


def test_a_watch_resyncs_where_history_is_gone(kv: Client, cluster: FakeCluster) -> None:
    kv.put("cfg/a", "1")
    with kv.watch(prefix="cfg/", snapshot=True, timeout=10.0) as watch:
        first = next(watch)
        assert isinstance(first, Resynced)
        assert [item.value for item in first.items] == [b"1"]
        old = watch.pos
    kv.put("cfg/a", "2")
    cluster.coordination.compacted_below = len(cluster.coordination.log)
    with kv.watch(prefix="cfg/", from_=old, timeout=10.0) as watch:
        again = next(watch)
        assert isinstance(again, Resynced)
        assert [item.value for item in again.items] == [b"2"]
        kv.put("cfg/b", "3")
        assert isinstance(next(watch), Put)


def test_a_watch_ends_when_another_thread_closes_it(kv: Client) -> None:
    with kv.watch(prefix="") as watch:
        threading.Timer(0.1, watch.close).start()
        assert list(watch) == []


def test_a_watch_ends_when_its_client_is_closed(kv: Client) -> None:
    watch = kv.watch(prefix="")
    watch.begin()
    threading.Timer(0.1, kv.close).start()
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        next(watch)
    assert time.monotonic() - begun < 10.0


async def test_a_watch_that_is_left_closes_its_connection(cluster: FakeCluster) -> None:
    async with AsyncClient(*cluster.endpoints) as kv:
        await kv.put("a", "1")
        watch = kv.watch(prefix="", snapshot=True)
        async for _ in watch:
            break
        await watch.begin()
        watch.close()
        assert [change async for change in watch] == []
    with pytest.raises(Unavailable):
        await kv.watch(prefix="").begin()


def test_a_watch_can_show_that_it_lives(kv: Client, cluster: FakeCluster) -> None:
    cluster.coordination.progress_s = 0.05
    with kv.watch(prefix="quiet/", progress=True, timeout=10.0) as watch:
        assert isinstance(next(watch), Progress)
        assert isinstance(next(watch), Progress)


def test_a_watch_of_nobody_fails_in_time() -> None:
    with Client("127.0.0.1:1", timeout=0.3) as kv, pytest.raises(Unavailable):
        next(kv.watch(prefix=""))


def test_keys_expire_where_a_watch_sees_it(kv: Client) -> None:
    with kv.watch(key="t", timeout=10.0) as watch:
        kv.put("t", "1", ttl=0.2)
        put, expire = next(watch), next(watch)
    assert isinstance(put, Put)
    assert isinstance(expire, Expire)
    assert kv.get("t") is None


def test_a_long_poll_ends_with_the_next_change(kv: Client) -> None:
    with pytest.raises(ReadTimeout):
        kv.wait_for("k", wait=0.05)
    threading.Timer(0.1, lambda: kv.put("k", "1")).start()
    item = kv.wait_for("k", wait=5.0)
    assert item is not None
    threading.Timer(0.1, lambda: kv.delete("k")).start()
    assert kv.wait_for("k", revision=item.revision, wait=5.0) is None


# Leases.


def test_keys_live_as_long_as_the_block_of_their_lease(kv: Client) -> None:
    with kv.grant(1.5) as lease:
        kv.put("worker", "here", lease=lease.id)
        time.sleep(1.8)
        item = kv.get("worker")
        assert item is not None
        assert item.lease == lease.id
        assert lease.remaining > 0
        assert kv.lease_info(lease.id).keys == (b"worker",)
        assert [each.id for each in kv.leases()] == [lease.id]
    assert kv.get("worker") is None
    assert kv.revoke(lease.id) is False
    with pytest.raises(LeaseNotFound):
        kv.put("worker", "gone", lease=lease.id)


async def test_a_lease_that_is_lost_is_noticed(cluster: FakeCluster) -> None:
    async with AsyncClient(*cluster.endpoints, timeout=10.0) as kv:
        lease = await kv.grant(1.0)
        with pytest.raises(LeaseNotFound):
            async with lease:
                await kv.revoke(lease.id)
                async with asyncio.timeout(20.0):
                    await lease.lost.wait()
        with pytest.raises(LeaseNotFound):
            await lease.keep_alive()


def test_a_lease_can_be_kept_by_hand(kv: Client) -> None:
    lease = kv.grant(5.0, "mine")
    assert lease.id == "mine"
    assert 4.5 < lease.keep_alive() <= 5.0
    assert lease.revoke()
    assert lease.remaining == 0.0


# Locks and elections.


async def test_a_lock_is_held_by_one_at_a_time_in_the_order_of_coming(cluster: FakeCluster) -> None:
    fences: list[int] = []
    async with AsyncClient(*cluster.endpoints, timeout=10.0) as kv:
        inside = 0

        async def work() -> None:
            nonlocal inside
            async with kv.lock("jobs", ttl=5) as held:
                inside += 1
                assert inside == 1
                assert held.is_held
                await asyncio.sleep(0.01)
                fences.append(held.fence)
                inside -= 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(work())
    assert fences == sorted(set(fences))
    assert len(fences) == 5


def test_a_lock_that_is_held_elsewhere_is_not_taken(kv: Client) -> None:
    with kv.lock("jobs", ttl=5), pytest.raises(Locked), kv.lock("jobs", wait=0):
        pytest.fail("two hold one lock")
    with kv.lock("jobs", wait=0) as held:
        held.check()
    assert kv.get("_locks/jobs") is None


def test_a_lock_is_renewed_while_its_block_runs(kv: Client, cluster: FakeCluster) -> None:
    with kv.lock("jobs", ttl=1.5) as held:
        time.sleep(1.8)
        assert held.is_held
        assert not held.lost.is_set()
    assert len(cluster.requests("PUT", "/v1/locks/")) >= 2


def test_a_lock_whose_renewals_fail_is_lost_before_others_get_it(kv: Client, cluster: FakeCluster) -> None:
    with pytest.raises(LockLost), kv.lock("jobs", ttl=0.5) as held:
        cut_off(cluster)
        assert held.lost.wait(20.0)
        assert not held.is_held
        with pytest.raises(LockLost):
            held.check()


async def cancel_at(moment: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    await moment.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_lock_call_that_is_cancelled_gives_back_what_it_was_granted(cluster: FakeCluster) -> None:
    granted = asyncio.Event()
    loop = asyncio.get_running_loop()
    answers = []

    def hold_back(seen: Seen) -> Answer | None:
        if seen.method == "POST" and seen.target == "/v1/locks/jobs" and not answers:
            answers.append(seen)
            loop.call_soon_threadsafe(granted.set)
            time.sleep(0.3)
        return None

    cluster.after = hold_back
    async with AsyncClient(*cluster.endpoints, timeout=10.0) as kv:

        async def work() -> None:
            async with kv.lock("jobs", ttl=60):
                pytest.fail("it was cancelled")

        await cancel_at(granted, work())
        async with kv.lock("jobs", ttl=5, wait=5) as held:
            assert held.is_held, "long before the TTL of the first has passed"


async def test_a_block_that_is_cancelled_while_it_gives_back_gives_back_all_the_same(
    cluster: FakeCluster,
) -> None:
    leaving = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold_back(seen: Seen) -> Answer | None:
        if seen.method == "DELETE":
            loop.call_soon_threadsafe(leaving.set)
            time.sleep(0.2)
        return None

    cluster.before = hold_back
    async with AsyncClient(*cluster.endpoints, timeout=10.0) as kv:

        async def work() -> None:
            async with kv.lock("jobs", ttl=60):
                pass

        await cancel_at(leaving, work())
        async with kv.lock("jobs", ttl=5, wait=5) as held:
            assert held.is_held


def test_a_lock_whose_first_renewal_fails_is_given_back(kv: Client, cluster: FakeCluster) -> None:
    first = threading.Event()

    def hold_back(seen: Seen) -> Answer | None:
        if seen.method == "POST" and not first.is_set():
            first.set()
            time.sleep(1.1)  # longer than a sixth of the TTL: from when it holds must be asked
            cut_off(cluster)
        return None

    cluster.after = hold_back
    with pytest.raises(KvError), kv.lock("jobs", ttl=6, wait=3, timeout=0.6):
        pytest.fail("nobody knows whether it is held")
    cluster.before = cluster.after = None
    begun = time.monotonic()
    with kv.lock("jobs", ttl=60, wait=10, timeout=10):
        assert time.monotonic() - begun < 2.5, "before the TTL has passed"


async def test_a_lost_lock_does_not_hide_the_blocks_own_error(cluster: FakeCluster) -> None:
    async with AsyncClient(*cluster.endpoints, timeout=10.0) as kv:
        with pytest.raises(ZeroDivisionError):
            async with kv.lock("jobs", ttl=0.2) as held:
                cut_off(cluster)
                async with asyncio.timeout(20.0):
                    await held.lost.wait()
                raise ZeroDivisionError


async def test_a_blocked_loop_cannot_hide_that_the_lock_is_lost(cluster: FakeCluster) -> None:
    async with AsyncClient(*cluster.endpoints, timeout=10.0) as kv:
        with pytest.raises(LockLost):
            async with kv.lock("jobs", ttl=0.2) as held:
                time.sleep(0.3)  # noqa: ASYNC251 - this is the point
                assert not held.is_held, "by the clock, before the task that renews has run"


async def test_one_leads_and_all_can_see_who(cluster: FakeCluster) -> None:
    async with AsyncClient(*cluster.endpoints, timeout=10.0) as kv, kv.observe("svc", timeout=10.0) as seen:
        assert await anext(seen) is None
        async with kv.elect("svc", "me", ttl=5) as office:
            leader = await kv.leader("svc")
            assert leader is not None
            assert (leader.text, leader.fence) == ("me", office.fence)
            assert await anext(seen) == leader
        assert await anext(seen) is None
        assert await kv.leader("svc") is None


def test_a_candidate_follows_when_the_leader_goes(kv: Client) -> None:
    order: list[str] = []

    def stand(name: str) -> None:
        with kv.elect("svc", name, ttl=5):
            order.append(name)
            time.sleep(0.05)

    with kv.elect("svc", "first", ttl=5):
        thread = threading.Thread(target=stand, args=("second",))
        thread.start()
        time.sleep(0.1)
        assert order == []
    thread.join(20.0)
    assert order == ["second"]


# Transactions.


def test_a_commit_takes_one_branch(kv: Client) -> None:
    done = kv.commit([when("a").absent()], then=[op.put("a", "1")], otherwise=[op.get("a")])
    assert done.succeeded
    done = kv.commit([when("a").absent()], then=[op.put("a", "2")], otherwise=[op.get("a")])
    assert not done.succeeded
    assert done.results[0].value == b"1"


async def test_transactions_that_meet_are_run_again_until_all_are_in(cluster: FakeCluster) -> None:
    async with AsyncClient(*cluster.endpoints, timeout=20.0) as kv:

        async def add(t: object) -> int:
            item = await t.get("n")  # type: ignore[attr-defined]
            value = 1 + (0 if item is None else int(item.value))
            t.put("n", str(value))  # type: ignore[attr-defined]
            return value

        async with asyncio.TaskGroup() as tasks:
            runs = [tasks.create_task(kv.transact(add)) for _ in range(8)]
        assert sorted(run.result() for run in runs) == list(range(1, 9))


def test_a_transaction_that_was_overtaken_writes_nothing(kv: Client) -> None:
    kv.put("a", "1")
    with pytest.raises(Conflict), kv.txn() as t:
        assert t.get("a").value == b"1"  # type: ignore[union-attr]
        kv.put("a", "2")
        t.put("b", "3")
    assert kv.get("b") is None


def test_a_transaction_whose_block_fails_writes_nothing(kv: Client, cluster: FakeCluster) -> None:
    with pytest.raises(ZeroDivisionError), kv.txn() as t:
        t.put("a", "1")
        raise ZeroDivisionError
    assert not cluster.requests(path="/v1/txn")


def test_a_run_that_never_succeeds_ends_at_its_deadline(kv: Client) -> None:
    def overtaken(t: object) -> None:
        t.get("a")  # type: ignore[attr-defined]
        kv.incr("a")
        t.put("a", "0")  # type: ignore[attr-defined]

    begun = time.monotonic()
    with pytest.raises(Conflict) as caught:
        kv.transact(overtaken, timeout=2.0)
    assert time.monotonic() - begun < 5.0
    assert caught.value.fields["run_count"] > 1


def test_several_keys_are_read_at_one_moment(kv: Client) -> None:
    kv.put("a", "1")
    found = kv.get_all("a", "b")
    assert found[0] is not None
    assert (found[0].value, found[1]) == (b"1", None)
    with kv.txn() as t:
        assert [item and item.value for item in t.get_all("a", "b")] == [b"1", None]
        t.put("b", "2")
        assert t.get("b").value == b"2"  # type: ignore[union-attr]
    assert t.committed is not None
    assert kv.get("b").value == b"2"  # type: ignore[union-attr]


def test_a_refused_renewal_is_not_taken_for_a_loss(kv: Client, cluster: FakeCluster) -> None:
    refusals = iter([problem(503, "no-leader")] * 2)
    cluster.before = lambda seen: next(refusals, None) if "keepalive" in seen.target else None
    with kv.lock("jobs", ttl=1.5) as held:
        time.sleep(1.8)
        assert held.is_held
