"""A batch of plain puts goes a shorter way; nobody may be able to tell."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.config import Limits
from kvstore.errors import NoLeader
from kvstore.node.api import batch as general
from kvstore.node.api.puts import plain_ops
from kvstore.store import StoreLimits
from kvstore.store.commands import PUT
from kvstore.types import NodeId
from tests.support.api_node import ApiNode, Reply

LIMITS = Limits(key_bytes_max=9, value_bytes_max=4, batch_ops_max=12)


def put(key: Any, value: Any = "v", **more: Any) -> dict[str, Any]:
    return {"op": "put", "key": key, "value": value, **more}


def ask(node: ApiNode, ops: Any, *, is_packed: bool, **headers: str) -> Reply:
    return (node.ask_msgpack if is_packed else node.ask_json)("POST", "/v1/batch", {"ops": ops}, **headers)


def told(reply: Reply) -> tuple[int, dict[str, str], Any]:
    return reply.status, dict(reply.headers), reply.content


KEYS = st.sampled_from(["a", "b", "{t}c", "{t}d", "", "é", "_x", "_locks/x", "much too long"])
VALUES = st.sampled_from(["", "1", "ü", "12345"])
IDENTITIES: list[dict[str, str]] = [
    {},
    {"kv_session": "s", "kv_sequence": "1"},
    {"kv_session": "s", "kv_sequence": "2", "kv_acked_below": "2"},
    {"idempotency_key": '"k"'},
    {"kv_session": "s"},
    {"kv_epoch": "1"},
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.builds(put, KEYS, VALUES), max_size=6), st.booleans(), st.sampled_from(IDENTITIES)
        ),
        max_size=4,
    ),
    st.sampled_from([1, 4]),
    st.sampled_from([None, 0]),
)
def test_the_short_way_answers_as_the_general_one(
    batches: list[tuple[list[dict[str, Any]], bool, dict[str, str]]], shards: int, failing: int | None
) -> None:
    short, long = ApiNode(shards, limits=LIMITS), ApiNode(shards, limits=LIMITS)
    for node in (short, long):
        if failing is not None:
            node.router.fail[node.router.shards()[failing]] = NoLeader("none", retry_after=1)
        node.view.leaders[node.router.shards()[-1]] = NodeId("n2")
    for ops, is_packed, identity in batches:
        with pytest.MonkeyPatch.context() as patch:
            answers = [told(ask(short, ops, is_packed=is_packed, **identity))]
            patch.setattr(general, "plain_ops", lambda context, request: None)
            answers.append(told(ask(long, ops, is_packed=is_packed, **identity)))
        assert answers[0] == answers[1]
    assert sorted(map(repr, short.router.calls)) == sorted(map(repr, long.router.calls))
    counted = [
        {labels: cell.value for labels, cell in node.api.metrics.requests.cells.items()}
        for node in (short, long)
    ]
    assert counted[0] == counted[1]


def test_plain_puts_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general, "plan_of", None)
    for is_packed in (True, False):
        reply = ask(ApiNode(), [put("a", "1"), put("b", "2"), put("a", "3")], is_packed=is_packed)
        assert [result["version"] for result in reply.content["results"]] == [1, 1, 2]


@pytest.mark.parametrize(
    "op",
    [
        put("a", "1", prev=True),
        put("a", "1", ttl=3),
        put("a", "1", key_b64="YQ=="),
        {"op": "put", "key_b64": "YQ==", "value": ""},
        {"op": "get", "key": "a"},
        put("a", 1),
        put(None),
        put(""),
        put("_locks/a"),
        put("a" * 70_000),
        7,
    ],
)
def test_anything_else_takes_the_general_way(op: Any) -> None:
    node, seen = ApiNode(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(general, "plain_ops", lambda *args: seen.append(plain_ops(*args)))
        for is_packed in (True, False):
            ask(node, [put("b"), op], is_packed=is_packed)
    assert seen == [None, None]


def test_bytes_travel_as_they_are() -> None:
    node = ApiNode(1)
    ask(node, [put(b"\xff\x00", b"\x00\xfe"), put("text", "é")], is_packed=True)
    ops = node.router.calls[0][2][1]
    assert ops == [[PUT, b"\xff\x00", b"\x00\xfe"], [PUT, b"text", "é".encode()]]


def test_a_refused_command_fails_each_of_its_operations() -> None:
    node = ApiNode(1, store=StoreLimits(sessions_bytes_max=0))
    reply = ask(node, [put("a"), put("b")], is_packed=False, kv_session="s", kv_sequence="1")
    assert [result["status"] for result in reply.content["results"]] == [429, 429]
    assert reply.headers["KV-Shard"] == "0"
