"""Transactions over HTTP: bodies, one shard, several shards, exactly once."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.config import Limits
from kvstore.errors import NoLeader, OutcomeUnknown, Overloaded
from kvstore.store import commands, txn_commands
from tests.support.api_node import ApiNode, Reply


@pytest.fixture
def node() -> ApiNode:
    return ApiNode()


def txn(node: ApiNode, compares: Any = (), then: Any = (), otherwise: Any = (), **more: str) -> Reply:
    body = {"if": list(compares), "then": list(then), "else": list(otherwise)}
    reply = node.ask_json("POST", "/v1/txn", body, **more)
    node.runtime.run(6.0)
    return reply


def put(key: str, value: str = "v", **more: Any) -> dict[str, Any]:
    return {"op": "put", "key": key, "value": value, **more}


def get(key: str) -> dict[str, Any]:
    return {"op": "get", "key": key}


def beside(key: str, name: str) -> str:
    """Another key of the same shard."""
    return "{" + key + "}" + name


def incr(key: str, by: int = 1, **more: Any) -> dict[str, Any]:
    return {"op": "incr", "key": key, "by": by, **more}


def is_clean(node: ApiNode) -> bool:
    """Nothing is held, and nothing is left to be brought to its end."""
    intents = [machine.intents for machine in node.router.machines.values()]
    return not any(each.locks or each.pending for each in intents)


def spread(node: ApiNode, count: int, name: str = "k") -> list[str]:
    """Keys of so many shards."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < count:
        key = f"{name}{number}"
        found.setdefault(node.router.shard_of(key.encode()), key)
        number += 1
    return list(found.values())


# --- one shard


def test_one_shard_answers_one_revision(node: ApiNode) -> None:
    node.put("{x}old", "1")
    reply = txn(
        node,
        [{"key": "{x}new", "revision": {"eq": 0}}, {"key": "{x}old", "value": {"eq": "1"}}],
        [
            put("{x}new", "n"),
            get("{x}old"),
            {"op": "delete", "key": "{x}old"},
            incr("{x}n", 4),
            get("{x}none"),
        ],
    )
    assert reply.status == 200
    content = reply.content
    assert (content["succeeded"], content["revision"]) == (True, 2)
    assert content["results"][0] == {"status": 201, "revision": 2, "version": 1, "created": True}
    assert (
        content["results"][1].items() >= {"status": 200, "key": "{x}old", "value": "1", "revision": 1}.items()
    )
    assert content["results"][2:] == [
        {"status": 200, "deleted": 1, "revision": 2},
        {"status": 200, "value": 4, "revision": 2},
        {"status": 404},
    ]
    assert reply.headers["KV-Revision"] == "2"
    assert reply.headers["KV-Shard"] == str(node.router.shard_of(b"{x}old"))
    assert content["revisions"] == {reply.headers["KV-Shard"]: 2}


def test_other_branch_is_done_when_a_compare_fails(node: ApiNode) -> None:
    node.put("a", "1")
    reply = txn(node, [{"key": "a", "version": {"gt": 1}}], [put("a", "then")], [put("a", "else")])
    assert reply.content["succeeded"] is False
    assert node.value("a") == b"else"


def test_several_tests_of_a_compare_all_count(node: ApiNode) -> None:
    node.put("a", "m")
    both = {"key": "a", "value": {"ge": "a", "lt": "z"}, "version": {"eq": 1, "ne": 2}}
    assert txn(node, [both]).content["succeeded"] is True
    assert txn(node, [both | {"create_revision": {"gt": 1}}]).content["succeeded"] is False
    assert txn(node, [{"key": "a", "lease": {"eq": ""}}]).content["succeeded"] is True


def test_bytes_travel_as_base64_and_in_messagepack(node: ApiNode) -> None:
    compare = {"key_b64": "/w==", "value_b64": {"eq": "/g=="}}
    write = {"op": "put", "key_b64": "/w==", "value_b64": "/g=="}
    assert txn(node, [], [write]).status == 200
    assert (
        txn(node, [compare], [{"op": "get", "key_b64": "/w=="}]).content["results"][0]["value_b64"] == "/g=="
    )
    body = {"if": [{"key": b"\xff", "value": {"eq": b"\xfe"}}], "then": [{"op": "get", "key": b"\xff"}]}
    reply = node.ask_msgpack("POST", "/v1/txn", body)
    assert reply.status == 200
    content = msgpack.unpackb(reply.body)
    assert content["succeeded"] is True
    assert content["results"][0]["value"] == b"\xfe"


def test_ttl_of_a_put_counts(node: ApiNode) -> None:
    txn(node, [], [put("a", ttl="30s")])
    assert float(node.ask("GET", "/v1/kv/a").headers["KV-TTL"]) == 30.0


# --- refusals


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({}, "names no key"),
        ({"then": [{"op": "put", "key": "a"}]}, "$.then[0]"),
        ({"then": [put("a"), incr("a")]}, "$.then[1] writes a key that $.then[0]"),
        ({"else": [put("a"), put("b"), {"op": "delete", "key": "a"}]}, "$.else[2]"),
        ({"then": [put("a", if_revision=3)]}, "$.then[0] has a condition"),
        ({"then": [put("a", if_absent=True)]}, "$.then[0] has a condition"),
        ({"then": [{"op": "get", "key": "a", "revision": 1}]}, "$.then[0].revision"),
        ({"then": [put("_locks/a")]}, "$.then[0].key"),
        ({"if": [{"key": "a"}]}, "$.if[0] compares nothing"),
        ({"if": [{"key": "a", "revision": {}}]}, "$.if[0] compares nothing"),
        ({"if": [{"key": "a", "revision": {"eq": -1}}]}, "$.if[0].revision.eq"),
        ({"if": [{"key": "a", "revision": {"like": 1}}]}, "like"),
        ({"if": [{"revision": {"eq": 1}}]}, "$.if[0] needs 'key'"),
        ({"if": [{"key": "", "revision": {"eq": 1}}]}, "$.if[0].key"),
        ({"if": [{"key": "a", "value": {"eq": 5}}]}, "$.if[0].value"),
        ({"when": []}, "when"),
    ],
)
def test_body_that_is_not_understood_is_named(node: ApiNode, body: Any, part: str) -> None:
    problem = node.problem(node.ask_json("POST", "/v1/txn", body), 400, "invalid-argument")
    assert part in problem["detail"]
    assert node.router.calls == []


def test_reads_and_compares_of_reserved_keys_are_fine(node: ApiNode) -> None:
    reply = txn(node, [{"key": "_locks/a", "revision": {"eq": 0}}], [get("_locks/a"), put("{_locks/a}b")])
    assert reply.content["succeeded"] is True


def test_too_much_is_refused_with_the_limit() -> None:
    node = ApiNode(limits=Limits(txn_bytes_max=300, txn_ops_max=3, txn_shards_max=2))
    too_long = node.problem(txn(node, [], [put("a", "x" * 300)]), 413, "too-large")
    assert too_long["limit"] == "txn_bytes_max"
    too_many = node.problem(txn(node, [], [get("a"), get("a"), get("a"), get("a")]), 413, "too-large")
    assert (too_many["limit"], too_many["size"]) == ("txn_ops_max", 4)
    too_wide = node.problem(txn(node, [], [get(key) for key in spread(node, 3)]), 413, "too-large")
    assert (too_wide["limit"], too_wide["size"]) == ("txn_shards_max", 3)


@pytest.mark.parametrize("count", [1, 3])
def test_op_that_cannot_be_done_changes_nothing_anywhere(node: ApiNode, count: int) -> None:
    keys = spread(node, count)
    ops = [incr(key, 5) for key in keys]
    ops += [put(beside(keys[0], "text")), incr(beside(keys[-1], "low"), -1, min=0)]
    problem = node.problem(txn(node, [], ops), 409, "out-of-range")
    assert (problem["op"], problem["succeeded"]) == (count + 1, True)
    assert [node.value(key) for key in keys] == [None] * count
    assert is_clean(node)


# --- several shards


def test_several_shards_answer_their_revisions(node: ApiNode) -> None:
    a, b, c = spread(node, 3)
    node.put(b, "1")
    compares = [{"key": a, "revision": {"eq": 0}}, {"key": b, "value": {"eq": "1"}}]
    reply = txn(node, compares, [put(c, "c"), get(b), put(a, "a")])
    assert reply.status == 200
    content = reply.content
    shards = {key: str(node.router.shard_of(key.encode())) for key in (a, b, c)}
    assert content["succeeded"] is True
    assert "revision" not in content
    assert content["revisions"] == {shards[a]: 1, shards[b]: 1, shards[c]: 1}
    assert [each["status"] for each in content["results"]] == [201, 200, 201]
    assert content["results"][1]["value"] == "1"
    assert "KV-Shard" not in reply.headers
    assert "KV-Clock" in reply.headers
    assert (node.value(a), node.value(c)) == (b"a", b"c")
    assert is_clean(node)


def test_one_false_compare_chooses_the_other_branch_everywhere(node: ApiNode) -> None:
    a, b, c = spread(node, 3)
    node.put(b, "other")
    compares = [{"key": a, "revision": {"eq": 0}}, {"key": b, "value": {"eq": "1"}}]
    then, otherwise = [put(c, "then"), put(a, "then")], [put(a, "else"), get(b)]
    content = txn(node, compares, then, otherwise).content
    assert content["succeeded"] is False
    assert [each["status"] for each in content["results"]] == [201, 200]
    assert [node.value(key) for key in (a, b, c)] == [b"else", b"other", None]
    assert is_clean(node)


def test_snapshot_read_spans_all_shards(node: ApiNode) -> None:
    keys = spread(node, 4)
    for key in keys:
        node.put(key, key)
    content = txn(node, [], [get(key) for key in reversed(keys)]).content
    assert [each["value"] for each in content["results"]] == keys[::-1]
    assert len(content["revisions"]) == 4
    assert is_clean(node)


def hold(node: ApiNode, key: str) -> None:
    """Another transaction holds the key."""
    machine = node.router.machines[node.router.shard_of(key.encode())]
    limit = int(machine.clock_ms) + 30_000
    parts = ([], [commands.put(key.encode(), b"theirs")], [])
    node.router._apply(
        node.router.shard_of(key.encode()),
        commands.encode(None, [txn_commands.prepare(b"other", limit, [[0, limit]], parts)]),
    )
    assert key.encode() in machine.intents.locks


def test_collision_is_tried_again_until_the_deadline(node: ApiNode) -> None:
    a, b, c = spread(node, 3)
    hold(node, b)
    problem = node.problem(txn(node, [], [put(a), put(b), put(c)], KV_Timeout="1s"), 409, "conflict")
    assert problem["retryable"] is True
    prepares = [
        call for call in node.router.calls if call[0] == "write" and call[2][1][0][0] == txn_commands.PREPARE
    ]
    assert len({call[2][1][0][1] for call in prepares}) > 5, "each try has an id of its own"
    locks = [key for machine in node.router.machines.values() for key in machine.intents.locks]
    assert locks == [b.encode()], "nothing of ours is held"
    assert (node.value(a), node.value(c)) == (None, None)


def test_shard_that_was_not_asked_ends_the_try_with_its_error(node: ApiNode) -> None:
    a, b = spread(node, 2)
    node.router.fail[node.router.shard_of(b.encode())] = NoLeader("gone", retry_after=1)
    node.problem(txn(node, [], [put(a), put(b)]), 503, "no-leader")
    node.router.fail.clear()
    assert is_clean(node)
    assert node.value(a) is None


def test_missing_vote_is_an_unknown_outcome_and_nothing_is_decided(node: ApiNode) -> None:
    a, b = spread(node, 2)
    node.router.fail[node.router.shard_of(b.encode())] = OutcomeUnknown("lost")
    node.problem(txn(node, [], [put(a), put(b)]), 504, "outcome-unknown")
    machine = node.router.machines[node.router.shard_of(a.encode())]
    assert a.encode() in machine.intents.locks, "the other shard may have voted yes: its prepare stays"


def test_full_shard_is_told_and_lets_the_others_go(node: ApiNode) -> None:
    a, b = spread(node, 2)
    node.router.fail[node.router.shard_of(a.encode())] = Overloaded("full", retry_after=1)
    node.problem(txn(node, [], [put(a), put(b)]), 429, "overloaded")
    node.router.fail.clear()
    assert is_clean(node)


def test_unknown_clock_costs_one_more_try(node: ApiNode) -> None:
    node.router.clock_ms = 10_000_000
    keys = spread(node, 2)
    for key in keys:
        node.put(key)
    node.router.knows_clocks = False
    reply = txn(node, [], [put(key, "x") for key in keys], KV_Timeout="200ms")
    assert reply.status in (200, 409)
    node.router.knows_clocks = True
    assert txn(node, [], [put(key, "x") for key in keys]).status == 200


# --- leases


def grant(node: ApiNode, lease: str = "mine") -> None:
    assert node.ask_json("POST", "/v1/leases", {"id": lease, "ttl": "10s"}).status == 201


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("who", [{}, {"KV_Session": "s1", "KV_Sequence": "1"}])
def test_puts_of_a_transaction_are_tied_to_their_lease(
    node: ApiNode, who: dict[str, str], count: int
) -> None:
    keys = spread(node, count)
    grant(node)
    ops = [put(key, lease="mine") for key in keys]
    assert [each["status"] for each in txn(node, [], ops, **who).content["results"]] == [201] * count
    assert sorted(node.ask("GET", "/v1/leases/mine").content["keys"]) == sorted(keys)
    assert node.ask("DELETE", "/v1/leases/mine").status == 200
    assert [node.value(key) for key in keys] == [None] * count
    assert is_clean(node)
    if who:
        assert txn(node, [], ops, **who).headers["Idempotency-Replayed"] == "true", "the lease is not asked"


@pytest.mark.parametrize("count", [1, 3])
def test_transaction_whose_lease_is_gone_changes_nothing(node: ApiNode, count: int) -> None:
    keys = spread(node, count)
    ops = [put(keys[0]), put(beside(keys[-1], "tied"), lease="gone")]
    problem = node.problem(txn(node, [], ops), 404, "lease-not-found")
    assert (problem["op"], problem["succeeded"]) == (1, True)
    assert node.value(keys[0]) is None
    assert txn(node, [{"key": keys[0], "version": {"gt": 0}}], ops, [get(keys[0])]).status == 200
    assert is_clean(node)


@pytest.mark.parametrize("count", [1, 3])
def test_transaction_asks_again_for_a_lease_that_was_granted_anew(node: ApiNode, count: int) -> None:
    """What this node knows of the first grant would be refused: it has ended everywhere."""
    keys = spread(node, count)
    ops = [put(key, lease="mine") for key in keys]
    for _ in range(2):
        grant(node)
        assert txn(node, [], ops).status == 200
        assert node.ask("DELETE", "/v1/leases/mine").status == 200
        assert [node.value(key) for key in keys] == [None] * count
    assert is_clean(node)


def test_transaction_whose_lease_has_no_home_is_not_begun(node: ApiNode) -> None:
    home = node.router.shard_of(b"_leases/mine")
    a, b, *_ = [key for key in spread(node, 3) if node.router.shard_of(key.encode()) != home]
    grant(node)
    node.router.fail[home] = NoLeader("gone", retry_after=1)
    problem = node.problem(txn(node, [], [put(a, lease="mine"), put(b)]), 503, "no-leader")
    assert problem["retryable"] is True
    node.router.fail.clear()
    assert is_clean(node)
    assert node.value(b) is None


def test_id_of_a_lease_is_checked(node: ApiNode) -> None:
    problem = node.problem(txn(node, [], [put("a", lease="no such")]), 400, "invalid-argument")
    assert "$.then[0].lease" in problem["detail"]


# --- exactly once

WHO = {"KV_Session": "s1", "KV_Sequence": "1"}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("who", [WHO, {"Idempotency_Key": '"once"'}])
def test_identified_transaction_happens_once(node: ApiNode, who: dict[str, str], count: int) -> None:
    ops = [incr(key) for key in spread(node, count)]
    first = txn(node, [], ops, **who)
    again = txn(node, [], ops, **who)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.content == first.content
    assert [each["value"] for each in again.content["results"]] == [1] * count
    assert is_clean(node)


@pytest.mark.parametrize("count", [1, 2])
def test_same_key_with_another_body_is_refused(node: ApiNode, count: int) -> None:
    keys = spread(node, 2 * count)
    key = {"Idempotency_Key": '"once"'}
    txn(node, [], [incr(each) for each in keys[:count]], **key)
    problem = txn(node, [], [incr(each) for each in keys[count:]], **key)
    node.problem(problem, 422, "idempotency-mismatch")
    assert [node.value(each) for each in keys[count:]] == [None] * count


def test_conflict_is_no_result(node: ApiNode) -> None:
    a, b = spread(node, 2)
    hold(node, b)
    node.problem(txn(node, [], [incr(a), incr(b)], KV_Timeout="100ms", **WHO), 409, "conflict")
    shard = node.router.shard_of(b.encode())
    node.router._apply(shard, commands.encode(None, [txn_commands.decide(b"other", commit=False)]))
    reply = txn(node, [], [incr(a), incr(b)], **WHO)
    assert reply.status == 200
    assert "Idempotency-Replayed" not in reply.headers


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "incr", "delete", "get"]), st.sampled_from([f"{n}" for n in range(8)])
        ),
        max_size=8,
        unique_by=lambda op: op[1],
    ),
    st.sampled_from([f"{n}" for n in range(8)]),
    st.integers(0, 2),
)
def test_transactions_equal_a_dictionary(ops: list[tuple[str, str]], compared: str, version: int) -> None:
    node = ApiNode(4)
    model = {"0": 5, "3": 7}
    for key, value in model.items():
        node.put(key, str(value))
    holds = (1 if compared in model else 0) == version
    bodies = [{"op": kind, "key": key} | ({"value": "100"} if kind == "put" else {}) for kind, key in ops]
    reply = txn(node, [{"key": compared, "version": {"eq": version}}], bodies)
    assert reply.content["succeeded"] is holds
    for kind, key in ops if holds else []:
        if kind == "put":
            model[key] = 100
        elif kind == "incr":
            model[key] = model.get(key, 0) + 1
        elif kind == "delete":
            model.pop(key, None)
    found = {f"{n}": node.value(f"{n}") for n in range(8)}
    assert {key: int(value) for key, value in found.items() if value is not None} == model
    assert is_clean(node)


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none()
        | st.integers(-3, 3)
        | st.sampled_from(["if", "then", "else", "key", "op", "put", "eq", "a"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["if", "then", "else", "key", "op", "value", "revision", "eq"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    ).map(lambda content: json.dumps(content).encode())
)
def test_no_body_makes_a_500(body: bytes) -> None:
    reply = ApiNode(2).ask("POST", "/v1/txn", body, {"Content-Type": "application/json"})
    assert reply.status < 500 or reply.status == 501
