"""The last request of a client."""

from __future__ import annotations

import json

import pytest

from kvstore.client import AsyncClient, Client, operations
from kvstore.client.exchange import Event, Failure, Fault, Send
from kvstore.client.farewell import FAREWELL_S, farewell
from kvstore.client.plan import Core
from kvstore.errors import Conflict
from tests.support.client_script import ENDPOINTS, Script, known_core
from tests.support.fake_cluster import Answer, FakeCluster, Seen

WRITTEN = {"revision": 7, "version": 1, "created": True}


def written(core: Core, shard: int = 2) -> None:
    script = Script(core, operations.put("key", b"v"))
    script.reply(200, WRITTEN, kv_shard=str(shard), kv_clock="5")


def told(core: Core) -> Send | None:
    """The request of the farewell; its answer is lost."""
    plan = farewell(core)
    try:
        effect = next(plan)
    except StopIteration:
        return None
    assert isinstance(effect, Send)
    with pytest.raises(StopIteration):
        plan.send(Event(1.0, 0.5, failure=Failure(Fault.LOST, "gone")))
    return effect


def test_it_names_what_is_acknowledged_and_where_to_the_node_that_answered_last() -> None:
    core = known_core()
    for shard in (2, 0, 2):
        written(core, shard)
    sent = told(core)
    assert sent is not None
    assert (sent.address, sent.timeout_s) == (ENDPOINTS[0], FAREWELL_S)
    assert (sent.request.method, sent.request.target) == ("POST", "/v1/batch")
    assert json.loads(sent.request.body) == {"ops": [], "shards": [0, 2]}
    wanted = {"KV-Session": "session0", "KV-Sequence": "4", "KV-Acked-Below": "4"}
    assert wanted.items() <= sent.request.headers.items()


def test_an_open_write_is_not_acknowledged() -> None:
    core = known_core()
    written(core)
    still_open = Script(core, operations.put("other", b"v"))
    sent = told(core)
    assert not still_open.is_over
    assert sent is not None
    assert (sent.request.headers["KV-Sequence"], sent.request.headers["KV-Acked-Below"]) == ("3", "2")


def test_whoever_wrote_nothing_says_nothing() -> None:
    core = known_core()
    assert told(core) is None
    script = Script(core, operations.get("key"))
    script.problem(404, "key-not-found", headers={"kv_shard": "1", "kv_clock": "5"})
    assert told(core) is None


def test_a_write_that_no_shard_answered_leaves_nothing_to_say() -> None:
    core = known_core()
    script = Script(core, operations.put("key", b"v"), 1.0)
    script.problem(503, "no-leader", headers={"kv_shard": "1", "kv_clock": "5"})
    assert told(core) is None


def test_a_refusal_is_a_result_that_is_kept_too() -> None:
    core = known_core()
    script = Script(core, operations.put("key", b"v", if_absent=True))
    with pytest.raises(Conflict):
        script.problem(412, "precondition-failed", headers={"kv_shard": "1", "kv_clock": "5"})
    assert told(core) is not None


def test_it_is_said_once() -> None:
    core = known_core()
    written(core)
    assert told(core) is not None
    assert told(core) is None


# On sockets.


def acknowledged(cluster: FakeCluster) -> list[Seen]:
    return [seen for seen in cluster.requests("POST", "/v1/batch") if b"shards" in seen.body]


def test_closing_a_client_acknowledges_its_last_writes() -> None:
    with FakeCluster(2) as cluster:
        with Client(*cluster.endpoints) as kv:
            for number in range(10):
                kv.put(f"key{number}", b"v")
            assert not acknowledged(cluster)
        kv.close()
        [seen] = acknowledged(cluster)
        assert len(json.loads(seen.body)["shards"]) > 1
        assert seen.headers["kv-acked-below"] == "11"
        with Client(*cluster.endpoints) as kv:
            kv.get("key0")
        assert len(acknowledged(cluster)) == 1


async def test_closing_an_async_client_acknowledges_its_last_writes() -> None:
    with FakeCluster(2) as cluster:
        async with AsyncClient(*cluster.endpoints) as kv:
            await kv.put("key", b"v")
        await kv.close()
        assert len(acknowledged(cluster)) == 1


def test_a_farewell_that_is_refused_or_lost_is_no_error() -> None:
    for answer in (Answer(500, {}), None):
        with FakeCluster(1) as cluster, Client(*cluster.endpoints) as kv:
            kv.put("key", b"v")
            if answer is not None:
                cluster.before = lambda seen, answer=answer: answer
            else:
                cluster.servers[0].stop()


def test_a_reply_without_a_shard_is_not_remembered() -> None:
    core = known_core()
    script = Script(core, operations.delete_range("a"))
    script.reply(200, {"deleted": 3})
    assert told(core) is None
