"""Both clients against servers on real sockets: one set of claims for the two drivers."""

from __future__ import annotations

import asyncio
import os
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
    Conflict,
    InvalidArgument,
    KvError,
    NotANumber,
    OutcomeUnknown,
    OutOfRange,
    Unavailable,
)
from kvstore.client.plan import _Execution
from tests.support.fake_cluster import Answer, Drop, FakeCluster, Seen, problem


class Blocking:
    """Runs the asyncio client call by call, so that one test text serves both."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: AsyncClient) -> None:
        self._loop, self.client = loop, client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return lambda *args, **keywords: self._loop.run_until_complete(method(*args, **keywords))

    def scan(self, **keywords: Any) -> list[Any]:
        async def collect() -> list[Any]:
            return [item async for item in self.client.scan(**keywords)]

        return self._loop.run_until_complete(collect())

    def in_batch(self, fill: Callable[[Any], Any], **keywords: Any) -> Any:
        async def run() -> Any:
            async with self.client.batch(**keywords) as batch:
                filled = fill(batch)
            return filled

        return self._loop.run_until_complete(run())


class Plain:
    def __init__(self, client: Client) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def in_batch(self, fill: Callable[[Any], Any], **keywords: Any) -> Any:
        with self.client.batch(**keywords) as batch:
            filled = fill(batch)
        return filled


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster(3) as made:
        yield made


@pytest.fixture(params=["blocking", "asyncio"])
def kv(request: pytest.FixtureRequest, cluster: FakeCluster) -> Iterator[Any]:
    if request.param == "blocking":
        with Client(*cluster.endpoints, timeout=5.0) as client:
            yield Plain(client)
    else:
        loop = asyncio.new_event_loop()
        client = AsyncClient(*cluster.endpoints, timeout=5.0)
        yield Blocking(loop, client)
        loop.run_until_complete(client.close())
        loop.close()


def test_values_come_back_as_they_were_written(kv: Any) -> None:
    for key, value in [("text", "grüße"), (b"\xff\x00/", b"\x00\xff"), ("empty", b""), ("a b?c#d%", "x")]:
        assert kv.put(key, value).created
        item = kv.get(key)
        assert item.value == (value.encode() if isinstance(value, str) else value)
        assert (item.version, item.create_revision) == (1, item.revision)


def test_an_absent_key_reads_as_none_and_deletes_as_zero(kv: Any) -> None:
    assert kv.get("nope") is None
    assert kv.delete("nope").deleted == 0


def test_a_condition_that_fails_raises_with_the_present_revision(kv: Any) -> None:
    written = kv.put("k", "1")
    assert kv.put("k", "2", if_revision=written.revision).version == 2
    with pytest.raises(Conflict) as caught:
        kv.put("k", "3", if_revision=written.revision)
    assert caught.value.fields["current_revision"] == written.revision + 1
    with pytest.raises(Conflict):
        kv.put("k", "3", if_absent=True)
    assert kv.get("k").value == b"2"


def test_media_types_and_previous_values_come_back(kv: Any) -> None:
    kv.put("k", "{}", content_type="application/json")
    assert kv.get("k").content_type == "application/json"
    assert kv.put("k", "2", prev=True).prev.value == b"{}"
    assert kv.delete("k", prev=True).prev.text == "2"


def test_counters_count_and_refuse(kv: Any) -> None:
    assert kv.incr("n").value == 1
    assert kv.incr("n", 41).value == 42
    with pytest.raises(OutOfRange):
        kv.incr("n", 1, max=42)
    kv.put("text", "x")
    with pytest.raises(NotANumber):
        kv.incr("text")


def test_scans_page_through_all_keys_in_order(kv: Any, cluster: FakeCluster) -> None:
    for number in range(1203):
        cluster.keys[b"p/%04d" % number] = _stored(number)
    cluster.keys[b"q"] = _stored(0)
    found = [item.key for item in kv.scan(prefix="p/")]
    assert found == sorted(key for key in cluster.keys if key.startswith(b"p/"))
    assert [item.key for item in kv.scan(prefix="p/", reverse=True, limit=2)] == [b"p/1202", b"p/1201"]
    assert [item.value for item in kv.scan(start="p/0001", end="p/0003", keys_only=True)] == [b"", b""]
    assert kv.count(prefix="p/") == 1203
    assert kv.delete_range("p/") == 1203
    assert kv.count() == 1


def _stored(number: int) -> Any:
    from tests.support.fake_cluster import Stored

    return Stored(str(number).encode(), number + 1, 1, 1)


def test_a_batch_goes_to_the_leaders_and_answers_each_operation(kv: Any, cluster: FakeCluster) -> None:
    kv.put("there", "1")
    pending = kv.in_batch(
        lambda batch: (
            [batch.put(f"k{number}", str(number)) for number in range(40)]
            + [batch.get("there"), batch.get("nope"), batch.delete("there"), batch.incr("n", 3)]
        )
    )
    assert all(each.result().created for each in pending[:40])
    item, absent, gone, counted = (each.result() for each in pending[40:])
    assert (item.value, absent, gone.deleted, counted.value) == (b"1", None, 1, 3)
    assert {seen.node for seen in cluster.requests("POST", "/v1/batch")} == {"n1", "n2", "n3"}


def test_a_failed_operation_of_a_batch_is_raised_and_takes_nothing_with_it(kv: Any) -> None:
    kv.put("k", "1")
    kept: list[Any] = []

    def fill(batch: Any) -> None:
        kept.extend([batch.put("k", "2", if_absent=True), batch.put("other", "1")])

    with pytest.raises(Conflict):
        kv.in_batch(fill)
    assert isinstance(kept[0].error, Conflict)
    assert kept[1].result().created


def test_an_unchecked_batch_leaves_errors_to_the_results(kv: Any) -> None:
    kv.put("k", "1")
    pending = kv.in_batch(lambda batch: batch.put("k", "2", if_absent=True), check=False)
    with pytest.raises(Conflict):
        pending.result()


def test_a_batch_whose_block_fails_is_not_sent(kv: Any, cluster: FakeCluster) -> None:
    def fill(batch: Any) -> None:
        batch.put("k", "1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kv.in_batch(fill)
    assert b"k" not in cluster.keys


def test_requests_go_straight_to_the_leader(kv: Any, cluster: FakeCluster) -> None:
    for shard in range(4):
        key = cluster.key_of_shard(shard)
        kv.put(key, "1")
        kv.get(key)
        assert {seen.node for seen in cluster.seen[-2:]} == {cluster.leaders[shard]}
    assert len(cluster.requests(path="/v1/routes")) == 1


def test_a_new_leader_is_found_by_one_wrong_route(kv: Any, cluster: FakeCluster) -> None:
    key = cluster.key_of_shard(0)
    kv.put(key, "1")
    cluster.leaders[0] = "n3"
    kv.put(key, "2")
    kv.put(key, "3")
    assert [seen.node for seen in cluster.requests("PUT")] == ["n1", "n1", "n3", "n3"]


def test_calls_go_on_when_the_leader_is_gone(kv: Any, cluster: FakeCluster) -> None:
    key = cluster.key_of_shard(0)
    kv.put(key, "1")
    cluster.server("n1").stop()
    cluster.leaders[0] = "n2"
    begun = time.monotonic()
    kv.put(key, "2")
    assert kv.get(key).value == b"2"
    assert time.monotonic() - begun < 4.0


def test_pitfall_23_a_write_whose_answer_is_lost_is_applied_once(kv: Any, cluster: FakeCluster) -> None:
    """Answers are dropped at random; counters must still be exact (etcd #14890, Jepsen jetcd)."""
    count = iter(range(1000))

    def drop_some(seen: Seen) -> Answer | None:
        if seen.method == "POST" and next(count) % 3 != 2:
            raise Drop
        return None

    cluster.after = drop_some
    for expected in range(1, 11):
        result = kv.incr("n", timeout=10.0)
        assert result.value == expected
    assert len(cluster.requests("POST")) >= 20


def test_pitfall_23_guard_taken_away_without_identity_writes_are_doubled(
    kv: Any, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _Execution.request

    def anonymous(self: Any, is_direct: bool, attempt_s: float) -> Any:
        request = original(self, is_direct, attempt_s)
        headers = {name: value for name, value in request.headers.items() if name != "KV-Session"}
        return request._replace(headers=headers)

    monkeypatch.setattr(_Execution, "request", anonymous)
    drops = iter([True, False])

    def drop_first(seen: Seen) -> Answer | None:
        if seen.method == "POST" and next(drops):
            raise Drop
        return None

    cluster.after = drop_first
    assert kv.incr("n").value == 2, "one call, counted twice"


def test_batches_whose_answers_are_lost_are_applied_once(kv: Any, cluster: FakeCluster) -> None:
    count = iter(range(1000))

    def drop_some(seen: Seen) -> Answer | None:
        if "batch" in seen.target and next(count) % 2 == 0:
            raise Drop
        return None

    cluster.after = drop_some
    for expected in range(1, 4):
        pending = kv.in_batch(lambda batch: [batch.incr(f"n{number}") for number in range(8)], timeout=10.0)
        assert {each.result().value for each in pending} == {expected}


def test_a_write_that_is_never_answered_ends_unknown_within_its_deadline(
    kv: Any, cluster: FakeCluster
) -> None:
    def drop(seen: Seen) -> Answer | None:
        if seen.method == "PUT":
            raise Drop
        return None

    cluster.after = drop
    begun = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        kv.put("k", "1", timeout=0.5)
    assert time.monotonic() - begun < 4.0
    assert cluster.keys[b"k"].value == b"1"


def test_a_node_that_hangs_costs_an_attempt(kv: Any, cluster: FakeCluster) -> None:
    release = threading.Event()

    def hang(seen: Seen) -> Answer | None:
        if seen.node == "n1" and seen.method == "GET" and "/kv/" in seen.target:
            release.wait(5.0)
            raise Drop
        return None

    cluster.before = hang
    begun = time.monotonic()
    assert kv.get(cluster.key_of_shard(0)) is None
    release.set()
    assert 0.9 < time.monotonic() - begun < 4.5


def test_no_leader_is_waited_out(kv: Any, cluster: FakeCluster) -> None:
    answers = iter([problem(503, "no-leader", headers={"Retry-After": "1"})] * 3)
    cluster.before = lambda seen: next(answers, None) if seen.method == "PUT" else None
    begun = time.monotonic()
    assert kv.put("k", "1").created
    assert time.monotonic() - begun < 2.9


def test_nobody_there_names_every_endpoint(kv: Any, cluster: FakeCluster) -> None:
    for server in cluster.servers:
        server.stop()
    with pytest.raises(Unavailable) as caught:
        kv.get("k", timeout=0.3)
    assert set(dict(caught.value.fields["tried"])) == set(cluster.endpoints)
    assert "refused" in str(caught.value)
    assert caught.value.retryable


def test_documents_of_the_cluster_can_be_fetched(kv: Any) -> None:
    assert kv.fetch("GET", "/v1/cluster")["name"] == "fake"
    assert kv.explain("k")["shard"] in range(4)
    assert kv.fetch("POST", "/v1/shards/1/transfer", {"to": "n3"})["to"] == "n3"


def test_wrong_arguments_are_refused_before_anything_is_sent(kv: Any, cluster: FakeCluster) -> None:
    for wrong in (
        lambda: kv.put("", "1"),
        lambda: kv.get("k", consistency="eventual"),
        lambda: list(kv.scan(prefix="a", start="b")),
    ):
        with pytest.raises(InvalidArgument):
            wrong()
    assert not cluster.seen


def test_errors_carry_the_request_id(kv: Any, cluster: FakeCluster) -> None:
    kv.put("k", "1")
    with pytest.raises(KvError) as caught:
        kv.put("k", "1", if_absent=True)
    assert caught.value.request_id == "r-1"


# What only one of them has to do.


def test_threads_share_one_client(cluster: FakeCluster) -> None:
    with Client(*cluster.endpoints) as client:

        def count() -> None:
            for _ in range(25):
                client.incr("n")

        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.get("n").value == b"200"  # type: ignore[union-attr]
    writes = cluster.requests("POST", "/v1/kv/n") + cluster.requests("POST", "/v1/batch")
    identities = {(seen.headers["kv-session"], seen.headers["kv-sequence"]) for seen in writes}
    assert len(identities) == len(writes)


def test_a_forked_child_takes_a_session_of_its_own(cluster: FakeCluster) -> None:
    with Client(*cluster.endpoints) as client:
        client.put("a", "1")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                client.put("b", "1")
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        client.put("c", "1")
    sessions = [seen.headers["kv-session"] for seen in cluster.requests("PUT")]
    assert sessions[0] == sessions[2]
    assert sessions[1] != sessions[0]


def test_an_idle_connection_that_the_server_closed_is_not_an_error(cluster: FakeCluster) -> None:
    with Client(cluster.endpoints[0], direct=False) as client:
        client.put("a", "1")
        for connection in cluster.servers[0].connections:
            connection.shutdown(2)
        assert client.put("a", "2").version == 2
        assert len(cluster.requests("PUT")) == 2


async def test_a_cancelled_call_drops_its_connection(cluster: FakeCluster) -> None:
    """A connection with an answer on its way must never serve another caller (redis-py #2665)."""
    release, arrived = threading.Event(), threading.Event()

    def hold(seen: Seen) -> Answer | None:
        if seen.target == "/v1/kv/slow":
            arrived.set()
            release.wait(5.0)
        return None

    cluster.before = hold
    async with AsyncClient(cluster.endpoints[0], direct=False) as client:
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(client.get("slow"))
            while not arrived.is_set():
                await asyncio.sleep(0.005)
            slow.cancel()
        release.set()
        await client.put("fast", "value")
        assert (await client.get("fast")).value == b"value"  # type: ignore[union-attr]


async def test_concurrent_calls_of_one_client_have_identities_of_their_own(cluster: FakeCluster) -> None:
    async with AsyncClient(*cluster.endpoints) as client, asyncio.TaskGroup() as tasks:
        for _ in range(50):
            tasks.create_task(client.incr("n"))
    assert cluster.keys[b"n"].value == b"50"


async def test_a_closed_client_refuses(cluster: FakeCluster) -> None:
    client = AsyncClient(*cluster.endpoints)
    await client.put("k", "1")
    await client.close()
    with pytest.raises(Unavailable, match="closed"):
        await client.get("k")
    blocking = Client(*cluster.endpoints)
    blocking.put("k", "1")
    blocking.close()
    with pytest.raises(Unavailable, match="closed"):
        blocking.get("k")


def test_the_blocking_client_loads_neither_aiohttp_nor_asyncio() -> None:
    code = (
        "import sys; import kvstore.client as c; c.Client('127.0.0.1:1');"
        "print([m for m in ('aiohttp', 'asyncio', 'msgpack', 'msgspec') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
