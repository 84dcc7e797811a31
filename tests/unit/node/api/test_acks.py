"""Acknowledging without writing: what a client sends before it goes."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.errors import NoLeader
from kvstore.store import keys
from tests.support.api_node import ApiNode, Reply

SESSION = "0f" * 16


@pytest.fixture
def node() -> ApiNode:
    return ApiNode()


def put(node: ApiNode, key: str, sequence: int) -> int:
    reply = node.put(key, kv_session=SESSION, kv_sequence=str(sequence))
    assert reply.status == 201
    return int(reply.headers["KV-Shard"])


def acknowledge(node: ApiNode, shards: Any, sequence: int = 9, **more: str) -> Reply:
    headers = {"kv_session": SESSION, "kv_sequence": str(sequence), "kv_acked_below": str(sequence)} | more
    return node.ask_json("POST", "/v1/batch", {"ops": [], "shards": shards}, **headers)


def kept(node: ApiNode) -> int:
    """Results that all shards keep."""
    found = 0
    for machine in node.router.machines.values():
        found += len(list(machine._engine.scan(keys.RESULT, keys.SESSION)))
    return found


def test_the_results_go_and_the_session_stays(node: ApiNode) -> None:
    shards = {put(node, f"key{number}", number) for number in range(8)}
    assert kept(node) == 8
    reply = acknowledge(node, sorted(shards))
    assert (reply.status, reply.content) == (200, {"results": []})
    assert kept(node) == 0
    late = node.put("key0", "again", kv_session=SESSION, kv_sequence="0", kv_since="1000")
    assert node.problem(late, 504, "outcome-unknown")["reason"] == "session-unknown"
    assert node.value("key0") == b"v", "a late copy of an acknowledged write finds the floor"


def test_only_the_shards_that_are_named_are_told(node: ApiNode) -> None:
    first = put(node, "key0", 1)
    others = [put(node, f"key{number}", number + 1) for number in range(1, 20)]
    acknowledge(node, [first, first], 99)
    assert kept(node) == sum(shard != first for shard in others)


def test_what_is_not_acknowledged_stays(node: ApiNode) -> None:
    shard = put(node, "key0", 5)
    acknowledge(node, [shard], 5)
    assert kept(node) == 1


def test_a_session_that_a_shard_does_not_know_is_not_made(node: ApiNode) -> None:
    assert acknowledge(node, list(range(4))).status == 200
    assert all(
        not list(m._engine.scan(keys.SESSION, keys.SESSION_END)) for m in node.router.machines.values()
    )


def test_it_is_answered_before_it_is_done_and_whether_it_is_done(node: ApiNode) -> None:
    node.router.held = []
    assert acknowledge(node, [0, 1]).status == 200
    node.router.fail = dict.fromkeys(node.router.shards(), NoLeader("none", retry_after=1))
    for go in node.router.held:
        go()


@pytest.mark.parametrize("headers", [{}, {"idempotency_key": '"k"'}])
def test_without_a_session_there_is_nothing_to_acknowledge(node: ApiNode, headers: dict[str, str]) -> None:
    reply = node.ask_json("POST", "/v1/batch", {"ops": [], "shards": [0]}, **headers)
    assert "KV-Session" in node.problem(reply, 400, "invalid-argument")["detail"]


@pytest.mark.parametrize("shards", [[4], [-1], ["0"], 0, [0.5], [1 << 70]])
def test_shards_that_are_none_are_refused(node: ApiNode, shards: Any) -> None:
    assert "$.shards" in node.problem(acknowledge(node, shards), 400, "invalid-argument")["detail"]
    assert not node.router.calls


def test_shards_beside_operations_are_refused(node: ApiNode) -> None:
    for op in ({"op": "put", "key": "a", "value": "1"}, {"op": "get", "key": "a"}):
        body = {"ops": [op], "shards": [0]}
        reply = node.ask_json("POST", "/v1/batch", body, kv_session=SESSION, kv_sequence="1")
        assert "$.shards" in node.problem(reply, 400, "invalid-argument")["detail"]
    assert not node.router.calls
