"""Single calls that are made at the same time, of both clients, on real sockets and of groups alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvstore.client import AsyncClient, Client, Conflict, InvalidArgument, KvError, op, operations
from kvstore.client.coalesce import Group, Member, request_of
from tests.support.client_script import Script, known_core
from tests.support.fake_cluster import Answer, FakeCluster, Seen, problem


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster(3) as made:
        yield made


Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]


def together(kind: str, cluster: FakeCluster, calls: Calls, timeout: float = 10.0) -> list[Any]:
    """Outcomes of calls by method, arguments and options, made at the same moment by one client that has
    fetched its routes."""
    if kind == "blocking":
        with (
            Client(*cluster.endpoints, timeout=timeout) as client,
            ThreadPoolExecutor(len(calls)) as threads,
        ):
            client.get("routes")
            made = [threads.submit(getattr(client, name), *args, **more) for name, args, more in calls]
            return [each.exception() or each.result() for each in made]

    async def run() -> list[Any]:
        async with AsyncClient(*cluster.endpoints, timeout=timeout) as client:
            await client.get("routes")
            made = (getattr(client, name)(*args, **more) for name, args, more in calls)
            return await asyncio.gather(*made, return_exceptions=True)

    return asyncio.run(run())


def hold_first(cluster: FakeCluster, method: str, seconds: float = 0.2) -> None:
    """The first request to a key takes its time, so that others gather behind it."""
    first = threading.Event()

    def before(seen: Seen) -> Answer | None:
        if seen.method == method and seen.target.startswith("/v1/kv/one") and not first.is_set():
            first.set()
            time.sleep(seconds)
        return None

    cluster.before = before


BOTH = pytest.mark.parametrize("kind", ["blocking", "asyncio"])


@BOTH
def test_calls_to_one_shard_share_requests_and_have_their_own_results(
    kind: str, cluster: FakeCluster
) -> None:
    hold_first(cluster, "POST")
    outcomes = together(kind, cluster, [("incr", ("one",), {})] * 40)
    assert sorted(result.value for result in outcomes) == list(range(1, 41))
    sent = cluster.requests("POST", "/v1/kv/one") + cluster.requests("POST", "/v1/batch")
    assert len(sent) < 15, "one by one would be 40"


@BOTH
def test_error_of_one_call_is_not_that_of_others(kind: str, cluster: FakeCluster) -> None:
    hold_first(cluster, "PUT")
    calls: Calls = [("put", ("one", "v"), {})] * 4
    calls += [("put", ("one", "v"), {"if_revision": 999}), ("put", ("one", "v"), {})]
    outcomes = together(kind, cluster, calls)
    assert [isinstance(outcome, Conflict) for outcome in outcomes] == [False] * 4 + [True, False]
    assert outcomes[4].fields["current_revision"] > 0


@BOTH
def test_calls_do_not_wait_for_a_slow_answer(kind: str, cluster: FakeCluster) -> None:
    hold_first(cluster, "GET", 1.5)
    done_at: list[float] = []
    begun = time.monotonic()

    def after(seen: Seen) -> Answer | None:
        if seen.target == "/v1/batch":
            done_at.append(time.monotonic() - begun)
        return None

    cluster.after = after
    together(kind, cluster, [("get", ("one",), {})] * 10)
    assert done_at
    assert done_at[0] < 1.0


@BOTH
def test_request_that_is_refused_as_a_whole_is_taken_apart(kind: str, cluster: FakeCluster) -> None:
    hold_first(cluster, "PUT")
    held = cluster.before
    assert held is not None

    def before(seen: Seen) -> Answer | None:
        is_batch = seen.target == "/v1/batch" and b"one" in seen.body
        return problem(400, "invalid-argument") if is_batch else held(seen)

    cluster.before = before
    outcomes = together(kind, cluster, [("put", ("one", str(number)), {}) for number in range(6)])
    assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(cluster.requests("PUT", "/v1/kv/one")) == 6


@BOTH
def test_calls_whose_request_fails_all_fail_with_errors_of_their_own(kind: str, cluster: FakeCluster) -> None:
    def before(seen: Seen) -> Answer | None:
        return problem(503, "no-leader") if "/v1/routes" not in seen.target and "one" in str(seen) else None

    cluster.before = before
    outcomes = together(kind, cluster, [("get", ("one",), {})] * 6, timeout=0.5)
    assert all(isinstance(outcome, KvError) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == 6


@BOTH
def test_calls_to_different_shards_do_not_wait_for_each_other(kind: str, cluster: FakeCluster) -> None:
    keys = [cluster.key_of_shard(shard) for shard in range(4)]
    together(kind, cluster, [("put", (key, "v"), {}) for key in keys])
    assert len(cluster.requests("PUT")) == 4
    assert cluster.requests("POST", "/v1/batch") == [] or len(cluster.requests("POST", "/v1/batch")) == 1


async def test_cancelled_call_takes_none_with_it(cluster: FakeCluster) -> None:
    hold_first(cluster, "POST")
    async with AsyncClient(*cluster.endpoints, timeout=10.0) as client:
        await client.get("routes")
        tasks = [asyncio.create_task(client.incr("one")) for _ in range(6)]
        await asyncio.sleep(0.005)
        tasks[0].cancel()
        tasks[3].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) == 2
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 4


async def test_program_of_a_call_or_two_sends_each_alone(cluster: FakeCluster) -> None:
    hold_first(cluster, "PUT")
    async with AsyncClient(*cluster.endpoints, timeout=10.0, direct=False) as client:
        await asyncio.gather(*(client.put("one", "v") for _ in range(5)))
    assert len(cluster.requests("PUT", "/v1/kv/one")) == 5


# A group by itself.


def members(count: int) -> tuple[list[Member], list[Any]]:
    outcomes: list[Any] = [None] * count

    def member(number: int) -> Member:
        def settle(outcome: Any) -> None:
            outcomes[number] = outcome

        key = f"{{a}}{number}"
        return Member(operations.put(key, "v"), op.put(key, "v"), settle, lambda: False)

    return [member(number) for number in range(count)], outcomes


def test_who_is_settled_is_told_while_the_rest_is_tried_again() -> None:
    group, outcomes = members(2)
    script = Script(known_core(), request_of(group))
    script.reply(200, results({"status": 201, "revision": 5, "version": 1, "created": True}, refusal(429)))
    assert outcomes[0].revision == 5
    assert outcomes[1] is None
    script.wake()
    again = {"status": 201, "revision": 5, "version": 1, "created": True}
    script.reply(200, results(again, {"status": 200, "revision": 6, "version": 2, "created": False}))
    assert script.is_over
    assert outcomes[1].revision == 6


def test_error_of_an_operation_has_the_id_of_its_request() -> None:
    group, outcomes = members(2)
    script = Script(known_core(), request_of(group))
    content = results(refusal(412, "precondition-failed"), refusal(400, "invalid-argument"))
    script.reply(200, content, **{"kv-request-id": "r-7"})
    assert [type(outcome) for outcome in outcomes] == [Conflict, InvalidArgument]
    assert [outcome.request_id for outcome in outcomes] == ["r-7", "r-7"]


def results(*each: dict[str, Any]) -> dict[str, Any]:
    return {"results": list(each)}


def refusal(status: int, code: str = "overloaded") -> dict[str, Any]:
    return {"status": status, "code": code, "detail": code}


def test_group_is_full_of_many_calls_or_of_large_ones() -> None:
    group = Group(0.0)
    for member in members(128)[0]:
        assert not group.is_full
        group.add(member)
    assert group.is_full
    large = Group(0.0)
    value = b"x" * (600 << 10)
    large.add(Member(operations.put("k", value), op.put("k", value), lambda _: None, lambda: False))
    assert large.is_full
