"""`GET /v1/watch`: every line of the contract, over a node that reads its shards from afar."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvstore.config import Limits
from kvstore.errors import NoLeader
from kvstore.node.watch import positions
from kvstore.store import StoreLimits, commands
from tests.support.api_node import ApiNode, Reply


@pytest.fixture
def node() -> ApiNode:
    return ApiNode()


def watch(node: ApiNode, query: str = "", **more: str) -> Reply:
    reply = node.ask("GET", f"/v1/watch{query}", **more)
    return reply


def told(reply: Reply) -> list[tuple[Any, ...]]:
    """(type, key, value) of the events."""
    return [
        (line["type"], line["key"], line.get("value"))
        for line in reply.lines
        if line["type"] in ("put", "delete", "expire")
    ]


def by_key(events: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    """Order is kept in each key; over shards there is none."""
    found: dict[str, list[Any]] = {}
    for kind, key, value in events:
        found.setdefault(key, []).append((kind, value))
    return found


def pass_time(node: ApiNode, seconds: float) -> None:
    for _ in range(round(seconds * 2)):
        node.runtime.run(0.5)
        if node.runtime.now() % 5 < 0.5:
            node.router.end_waits()


def last_position(reply: Reply) -> str:
    position: str = reply.lines[-1]["pos"]
    return position


# --- what is told --------------------------------------------------------------------------------


def test_a_watch_begins_with_its_position(node: ApiNode) -> None:
    reply = watch(node)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/x-ndjson")
    assert reply.headers["Cache-Control"] == "no-store"
    [line] = reply.lines
    assert line.keys() == {"type", "pos"}
    assert line["type"] == "start"


def test_puts_and_deletes_of_the_whole_store_are_told_as_they_happen(node: ApiNode) -> None:
    node.put("before")
    reply = watch(node)
    node.put("a", "1")
    node.put("b", "2")
    node.put("a", "3")
    node.ask("DELETE", "/v1/kv/b")
    assert told(reply) == [("put", "a", "1"), ("put", "b", "2"), ("put", "a", "3"), ("delete", "b", None)]
    [_, first, _, third, deleted] = reply.lines
    assert (first["create_revision"], first["version"], third["version"]) == (first["revision"], 1, 2)
    assert first["shard"] == node.router.shard_of(b"a")
    assert "value" not in deleted
    assert deleted["revision"] == 2


def test_a_key_and_a_prefix_are_told_nothing_else(node: ApiNode) -> None:
    one, some = watch(node, "?key=a"), watch(node, "?prefix=a")
    for key in ("a", "ab", "b", "a"):
        node.put(key, key)
    assert [key for _, key, _ in told(one)] == ["a", "a"]
    assert [key for _, key, _ in told(some)] == ["a", "ab", "a"]


def test_an_expiry_is_told_as_one(node: ApiNode) -> None:
    reply = watch(node, "?key=a&prev=1")
    node.router.write(
        node.router.shard_of(b"a"), commands.encode(None, [commands.put(b"a", b"1", ttl_ms=5)]), False, 0
    )
    node.router.clock_ms += 10
    node.router.write(node.router.shard_of(b"a"), commands.encode(None, [commands.expire(1, 10)]), False, 0)
    node.runtime.turn()
    assert told(reply) == [("put", "a", "1"), ("expire", "a", None)]
    assert reply.lines[-1]["prev"]["value"] == "1"


def test_prev_gives_what_was_replaced(node: ApiNode) -> None:
    node.put("a", "0")
    reply, plain = watch(node, "?prefix=a&prev=1"), watch(node)
    node.put("a", "1")
    node.put("ab", "x")
    node.ask("DELETE", "/v1/kv/a")
    prevs = [line["prev"] for line in reply.lines[1:]]
    assert [prev and prev["value"] for prev in prevs] == ["0", None, "1"]
    assert prevs[0]["version"] == 1
    assert all("prev" not in line for line in plain.lines)


def test_bytes_that_are_no_text_are_base64(node: ApiNode) -> None:
    reply = watch(node, "?prefix=%FF")
    node.ask("PUT", "/v1/kv/%FFa", b"\xfe")
    [_, line] = reply.lines
    assert (line["key_b64"], line["value_b64"]) == ("/2E=", "/g==")
    assert "key" not in line


def test_content_types_are_told(node: ApiNode) -> None:
    reply = watch(node)
    node.put("a", "{}", content_type="application/json")
    assert reply.lines[1]["content_type"] == "application/json"


def test_server_sent_events_carry_the_position_as_id(node: ApiNode) -> None:
    reply = watch(node, "?key=a", accept="text/event-stream")
    assert reply.headers["Content-Type"] == "text/event-stream"
    node.put("a", "1")
    assert reply.stream is not None
    frames = b"".join(reply.stream.pieces).decode().split("\n\n")
    assert frames.pop() == ""
    [start, put] = [dict(line.split(": ", 1) for line in frame.split("\n")) for frame in frames]
    assert (start["event"], put["event"]) == ("start", "put")
    assert json.loads(put["data"])["pos"] == put["id"]
    resumed = watch(node, "?key=a&from=" + start["id"], last_event_id=put["id"])
    node.put("a", "2")
    assert told(resumed) == [("put", "a", "2")], "the header is newer than the target"


# --- positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["?", "?prefix=k&", "?key=k3&"])
def test_pitfall_46_list_then_watch_sees_what_lies_between_exactly_once(node: ApiNode, query: str) -> None:
    for number in range(8):
        node.put(f"k{number}", "listed")
    position = node.ask("GET", "/v1/kv?limit=2").content["pos"]
    node.put("k3", "between")
    reply = watch(node, f"{query}from={position}")
    node.put("k3", "after")
    assert told(reply) == [("put", "k3", "between"), ("put", "k3", "after")]


def test_a_count_gives_a_position_too(node: ApiNode) -> None:
    position = node.ask("GET", "/v1/kv?count_only=1").content["pos"]
    node.put("a", "1")
    assert told(watch(node, f"?from={position}")) == [("put", "a", "1")]


@pytest.mark.parametrize("query", ["?", "?prefix=k&", "?key=k1&"])
def test_a_watch_goes_on_exactly_where_any_of_its_lines_stood(node: ApiNode, query: str) -> None:
    reply = watch(node, query)
    for number in range(12):
        node.put(f"k{number % 3}", str(number))
    everything = told(reply)
    assert everything
    for seen, line in enumerate(reply.lines):
        resumed = watch(node, f"{query}from={line['pos']}")
        assert by_key(told(resumed)) == by_key(everything[seen:])


def test_a_resume_amid_the_changes_of_one_revision_gives_the_rest_of_them(node: ApiNode) -> None:
    reply = watch(node, "?prefix=%7Bt%7D")
    for number in range(4):
        node.put(f"{{t}}{number}", "v")
    node.ask("DELETE", "/v1/kv?prefix=%7Bt%7D&confirm=*")
    deletes = [line for line in reply.lines if line["type"] == "delete"]
    assert len({line["revision"] for line in deletes}) == 1
    for seen, line in enumerate(deletes):
        resumed = watch(node, f"?prefix=%7Bt%7D&from={line['pos']}")
        assert [event["key"] for event in resumed.lines[1:]] == [
            event["key"] for event in deletes[seen + 1 :]
        ]


def test_a_prefix_with_a_whole_hash_tag_looks_at_one_shard(node: ApiNode) -> None:
    reply = watch(node, "?prefix=%7Buser%7D/")
    assert reply.headers["KV-Shard"] == str(node.router.shard_of(b"{user}"))
    assert len(node.watches.feeds) == 1
    node.put("{user}/a", "1")
    assert told(reply) == [("put", "{user}/a", "1")]


def test_a_position_of_one_shard_does_not_do_for_all(node: ApiNode) -> None:
    position = last_position(watch(node, "?key=a"))
    node.problem(watch(node, f"?from={position}"), 400, "invalid-argument")
    other = next(key for key in "bcdefgh" if node.router.shard_of(key.encode()) != node.router.shard_of(b"a"))
    node.problem(watch(node, f"?key={other}&from={position}"), 400, "invalid-argument")


@pytest.mark.parametrize("position", ["", "7", "eA", "cG9z"])
def test_what_is_no_position_is_refused(node: ApiNode, position: str) -> None:
    node.problem(watch(node, f"?from={position}"), 400, "invalid-argument")
    cursor = node.ask("GET", "/v1/kv?limit=1").content["next"]
    assert cursor is None


def test_a_position_that_nobody_has_reached_is_refused(node: ApiNode) -> None:
    ahead = positions.seal_all([positions.behind(99)] * 4)
    document = node.problem(watch(node, f"?from={ahead}"), 400, "revision-in-future")
    assert document["revision"] == 0


# --- history that is gone ------------------------------------------------------------------------


def test_a_position_in_compacted_history_is_told_so_with_where_it_goes_on() -> None:
    node = ApiNode(1, StoreLimits(history_revisions=2))
    position = last_position(watch(node))
    for number in range(9):
        node.put("a", str(number))
    reply = watch(node, f"?from={position}")
    [start, compacted, end] = reply.lines
    assert [start["type"], compacted["type"], end["type"]] == ["start", "compacted", "end"]
    assert reply.stream is not None
    assert reply.stream.is_ended
    going_on = watch(node, f"?from={compacted['pos']}")
    assert [value for _, _, value in told(going_on)] == ["6", "7", "8"]


# --- bounds, errors, ends ------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["?key=a&prefix=b", "?key=", "?keys=a", "?prev=maybe"])
def test_what_cannot_be_watched_is_refused(node: ApiNode, query: str) -> None:
    node.problem(watch(node, query), 400, "invalid-argument")


def test_a_shard_without_a_leader_is_an_error_before_the_stream(node: ApiNode) -> None:
    node.router.fail[node.router.shard_of(b"a")] = NoLeader("gone")
    node.problem(watch(node, "?key=a"), 503, "no-leader")
    node.problem(watch(node), 503, "no-leader")


def test_more_watches_than_the_node_allows_are_refused() -> None:
    node = ApiNode(limits=Limits(watchers_max=2))
    replies = [watch(node, "?key=a") for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert replies[2].headers["Retry-After"]
    assert node.ask("GET", "/v1/info").content["limits"]["watchers_max"] == 2


def test_a_caller_that_goes_leaves_nothing_behind(node: ApiNode) -> None:
    reply = Reply()
    request = node.request("GET", "/v1/watch", reply)
    node.api.handle(request)
    assert len(node.watches.watchers) == 1
    assert request.on_gone is not None
    request.on_gone()
    node.runtime.run(1.0)
    assert not node.watches.watchers
    assert not node.watches.feeds
    assert not node.router.waiting


def test_progress_comes_every_ten_seconds_with_the_position(node: ApiNode) -> None:
    reply, other = watch(node), watch(node, "?key=b")
    node.put("a", "1")
    pass_time(node, 9.0)
    assert [line["type"] for line in reply.lines] == ["start", "put"]
    pass_time(node, 21.5)
    assert [line["type"] for line in reply.lines] == ["start", "put", "progress", "progress", "progress"]
    assert [line["type"] for line in other.lines].count("progress") == 3
    assert reply.lines[2]["pos"] == reply.lines[1]["pos"]
    node.put("c", "1")
    assert told(watch(node, f"?from={reply.lines[2]['pos']}")) == [("put", "c", "1")]


def test_no_progress_is_told_while_a_shard_is_not_heard_of(node: ApiNode) -> None:
    reply, other = watch(node, "?key=a"), watch(node, "?key=b")
    assert node.router.shard_of(b"a") != node.router.shard_of(b"b")
    node.router.fail[node.router.shard_of(b"a")] = NoLeader("gone")
    pass_time(node, 41.0)
    assert [line["type"] for line in reply.lines].count("progress") <= 1
    assert [line["type"] for line in other.lines].count("progress") == 4
    del node.router.fail[node.router.shard_of(b"a")]
    pass_time(node, 11.0)
    assert reply.lines[-1]["type"] == "progress"


def test_a_node_that_stops_ends_its_streams_with_an_error(node: ApiNode) -> None:
    reply = watch(node)
    node.watches.stop()
    line = reply.lines[-1]
    assert (line["type"], line["code"], line["status"]) == ("error", "unavailable", 503)
    assert line["pos"]
    assert reply.stream is not None
    assert reply.stream.is_ended
    node.problem(watch(node), 503, "unavailable")


def test_head_is_answered_without_a_stream(node: ApiNode) -> None:
    reply = node.ask("HEAD", "/v1/watch")
    assert (reply.status, reply.stream) == (200, None)
    assert not node.watches.watchers
