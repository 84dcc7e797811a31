"""Batches: independent results, order per key, exactly once."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.config import Limits
from kvstore.errors import NoLeader, OutcomeUnknown
from kvstore.types import NodeId
from tests.support.api_node import ApiNode, Reply


@pytest.fixture
def node() -> ApiNode:
    return ApiNode()


def batch(node: ApiNode, *ops: dict[str, Any], **more: str) -> list[Any]:
    reply = node.ask_json("POST", "/v1/batch", {"ops": ops}, **more)
    assert reply.status == 200, reply.response
    results = reply.content["results"]
    assert isinstance(results, list)
    return results


def put(key: str, value: str = "v", **more: Any) -> dict[str, Any]:
    return {"op": "put", "key": key, "value": value, **more}


def get(key: str, **more: Any) -> dict[str, Any]:
    return {"op": "get", "key": key, **more}


def delete(key: str, **more: Any) -> dict[str, Any]:
    return {"op": "delete", "key": key, **more}


def incr(key: str, by: int = 1, **more: Any) -> dict[str, Any]:
    return {"op": "incr", "key": key, "by": by, **more}


# --- results -------------------------------------------------------------------------------------


def test_each_operation_has_the_result_of_its_single_request(node: ApiNode) -> None:
    results = batch(
        node, put("a", "1"), put("a", "2"), get("a"), get("b"), incr("c", 5), delete("a"), delete("b")
    )
    assert results[0] == {"status": 201, "revision": 1, "version": 1, "created": True}
    assert results[1] == {"status": 200, "revision": 2, "version": 2, "created": False}
    assert (
        results[2].items() >= {"status": 200, "key": "a", "value": "2", "revision": 2, "version": 2}.items()
    )
    assert results[2]["lease"] is None
    assert results[3] == {"status": 404}
    assert results[4].items() >= {"status": 200, "value": 5}.items()
    assert results[5].items() >= {"status": 200, "deleted": 1}.items()
    assert results[6].items() >= {"status": 200, "deleted": 0}.items()


def test_failed_operation_fails_alone(node: ApiNode) -> None:
    batch(node, put("a", "x"))
    results = batch(
        node,
        put("a", "y", if_revision=9),
        incr("a"),
        put("b", "1"),
        put("b", "2", if_absent=True),
        incr("n", 1, max=0),
    )
    assert [result["status"] for result in results] == [412, 409, 201, 412, 409]
    assert [result.get("code") for result in results] == [
        "precondition-failed",
        "not-a-number",
        None,
        "precondition-failed",
        "out-of-range",
    ]
    assert results[0]["current_revision"] == 1
    assert results[0]["detail"]
    assert node.value("a") == b"x"


def test_options_of_operations_are_those_of_single_requests(node: ApiNode) -> None:
    results = batch(
        node,
        put("a", "1", if_absent=True, content_type="text/plain"),
        put("a", "2", if_revision=1, prev=True),
    )
    assert [result["status"] for result in results] == [201, 200]
    assert results[1]["prev"].items() >= {"value": "1", "content_type": "text/plain"}.items()
    [result] = batch(node, delete("a", if_revision=2, prev=True))
    assert (result["deleted"], result["prev"]["value"]) == (1, "2")
    [old] = batch(node, get("a", revision=1))
    assert (old["status"], old["value"]) == (200, "1")


def test_batch_in_msgpack_carries_bytes(node: ApiNode) -> None:
    ops = [
        {"op": "put", "key": b"\xff", "value": b"\x00"},
        {"op": "get", "key": b"\xff"},
        {"op": "get", "key": "text"},
    ]
    results = node.ask_msgpack("POST", "/v1/batch", {"ops": ops}).content["results"]
    assert results[1].items() >= {"status": 200, "key": b"\xff", "value": b"\x00"}.items()
    assert results[2] == {"status": 404}


def test_batch_in_json_carries_bytes_as_base64(node: ApiNode) -> None:
    results = batch(
        node, {"op": "put", "key_b64": "/w==", "value_b64": "AP8="}, {"op": "get", "key_b64": "/w=="}
    )
    assert results[0]["status"] == 201
    assert results[1].items() >= {"key_b64": "/w==", "value_b64": "AP8="}.items()


def test_base64_is_understood_in_msgpack_too(node: ApiNode) -> None:
    ops = [{"op": "put", "key_b64": "/w==", "value_b64": b"\x01"}]
    assert node.ask_msgpack("POST", "/v1/batch", {"ops": ops}).content["results"][0]["status"] == 201
    assert node.value("%FF") == b"\x01"


def test_answer_format_follows_accept(node: ApiNode) -> None:
    body = msgpack.packb({"ops": [put("a")]})
    headers = {"Content-Type": "application/msgpack", "Accept": "application/json"}
    reply = node.ask("POST", "/v1/batch", body, headers)
    assert reply.headers["Content-Type"] == "application/json"


def test_empty_batch_has_no_results(node: ApiNode) -> None:
    assert batch(node) == []


def test_batch_of_one_shard_names_it(node: ApiNode) -> None:
    reply = node.ask_json("POST", "/v1/batch", {"ops": [put("{t}a"), put("{t}b")]})
    assert reply.headers["KV-Shard"] == str(node.router.shard_of(b"{t}"))
    assert reply.headers["KV-Clock"] == "1000"
    assert len(node.router.calls) == 1


def test_operations_of_a_shard_travel_in_one_command_and_one_query(node: ApiNode) -> None:
    batch(node, *(put(f"k{n}") for n in range(50)))
    assert len(node.router.calls) == 4
    node.router.calls.clear()
    batch(node, *(get(f"k{n}") for n in range(50)))
    assert [call[2][0] for call in node.router.calls] == ["gets"] * 4


# --- order ---------------------------------------------------------------------------------------


def test_read_sees_the_write_before_it_and_not_the_one_behind(node: ApiNode) -> None:
    results = batch(
        node, get("a"), put("a", "1"), get("a"), put("a", "2"), delete("a"), get("a"), put("a", "3")
    )
    values = [result.get("value") for result in results]
    assert values == [None, None, "1", None, None, None, None]
    assert [result["status"] for result in results] == [404, 201, 200, 200, 200, 404, 201]
    assert node.value("a") == b"3"


def test_next_level_waits_for_the_one_before(node: ApiNode) -> None:
    node.router.held = []
    reply = node.ask_json("POST", "/v1/batch", {"ops": [put("a", "1"), get("a"), put("b", "2")]})
    assert [call[0] for call in node.router.calls] == ["write"] * (
        1 if node.router.shard_of(b"a") == node.router.shard_of(b"b") else 2
    )
    while node.router.held:
        node.router.held.pop()()
    assert reply.content["results"][1]["value"] == "1"


_KEYS = st.sampled_from(["a", "b", "{t}c", "{t}d"])
_OPS = st.one_of(
    st.builds(put, _KEYS, st.sampled_from(["1", "2", "x"])),
    st.builds(get, _KEYS),
    st.builds(delete, _KEYS),
    st.builds(incr, _KEYS, st.integers(-3, 3)),
    st.builds(lambda key: put(key, "once", if_absent=True), _KEYS),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_OPS, max_size=25))
def test_batch_equals_its_operations_one_by_one_on_each_key(ops: list[dict[str, Any]]) -> None:
    together, apart = ApiNode(), ApiNode()
    results = batch(together, *ops)
    singles = [batch(apart, op)[0] for op in ops]
    hidden = ("revision", "create_revision", "current_revision", "detail")
    for result, single in zip(results, singles, strict=True):
        assert {k: v for k, v in result.items() if k not in hidden} == {
            k: v for k, v in single.items() if k not in hidden
        }
    for key in ("a", "b", "{t}c", "{t}d"):
        assert together.value(key) == apart.value(key)


# --- failures of shards --------------------------------------------------------------------------


def test_shard_that_fails_fails_only_its_operations(node: ApiNode) -> None:
    failing = node.router.shards()[0]
    node.router.fail[failing] = NoLeader("no leader", retry_after=1)
    keys = [f"k{number}" for number in range(20)]
    results = batch(node, *(put(key) for key in keys))
    for key, result in zip(keys, results, strict=True):
        if node.router.shard_of(key.encode()) == failing:
            assert (result["status"], result["code"], result["retryable"]) == (503, "no-leader", True)
        else:
            assert result["status"] == 201


def test_unknown_outcome_of_a_shard_is_told_for_each_of_its_operations(node: ApiNode) -> None:
    node.router.fail = dict.fromkeys(node.router.shards(), OutcomeUnknown("who knows"))
    assert [result["code"] for result in batch(node, put("a"), put("b"))] == ["outcome-unknown"] * 2


def test_fault_of_ours_is_outcome_unknown(node: ApiNode, caplog: pytest.LogCaptureFixture) -> None:
    node.router.fail = dict.fromkeys(node.router.shards(), KeyError("secret"))  # type: ignore[arg-type]
    [result] = batch(node, put("a"))
    assert (result["status"], result["code"]) == (504, "outcome-unknown")
    assert "secret" not in json.dumps(result)
    assert "secret" in caplog.text


# --- exactly once --------------------------------------------------------------------------------


def ask_twice(node: ApiNode, ops: list[dict[str, Any]], **identity: str) -> tuple[Reply, Reply]:
    first = node.ask_json("POST", "/v1/batch", {"ops": ops}, **identity)
    return first, node.ask_json("POST", "/v1/batch", {"ops": ops}, **identity)


@pytest.mark.parametrize("identity", [{"kv_session": "s", "kv_sequence": "3"}, {"idempotency_key": '"k"'}])
def test_repeated_batch_applies_once_over_all_shards(node: ApiNode, identity: dict[str, str]) -> None:
    first, again = ask_twice(node, [incr(f"n{number}") for number in range(20)], **identity)
    assert first.content == again.content
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert {node.value(f"n{number}") for number in range(20)} == {b"1"}


def test_pitfall_38_batch_that_broke_off_resumes_where_it_stood(node: ApiNode) -> None:
    ops = [incr(f"n{number}") for number in range(20)]
    node.router.fail[node.router.shards()[0]] = OutcomeUnknown("lost")
    batch(node, *ops, kv_session="s", kv_sequence="1")
    node.router.fail.clear()
    results = batch(node, *ops, kv_session="s", kv_sequence="1")
    assert {result["value"] for result in results} == {1}
    assert {node.value(f"n{number}") for number in range(20)} == {b"1"}


def test_writes_of_one_key_in_several_levels_apply_once(node: ApiNode) -> None:
    ops = [incr("a"), get("a"), incr("a"), get("a"), incr("a"), incr("{a}b")]
    first, again = ask_twice(node, ops, kv_session="s", kv_sequence="1")
    assert [result.get("value") for result in first.content["results"]] == [1, "1", 2, "2", 3, 1]
    assert [result.get("value") for result in again.content["results"]] == [1, "3", 2, "3", 3, 1]
    assert node.value("a") == b"3"


def test_idempotency_key_with_another_batch_is_422_wherever_its_keys_live(node: ApiNode) -> None:
    for number in range(20):
        batch(node, put("{first}a"), idempotency_key=f'"k{number}"')
        other = {"ops": [put(f"other{number}")]}
        reply = node.ask_json("POST", "/v1/batch", other, idempotency_key=f'"k{number}"')
        node.problem(reply, 422, "idempotency-mismatch")
        assert node.value(f"other{number}") is None


def test_batch_whose_body_could_not_be_marked_did_not_happen(node: ApiNode) -> None:
    node.router.fail = dict.fromkeys(node.router.shards(), NoLeader("none"))
    reply = node.ask_json("POST", "/v1/batch", {"ops": [put("a")]}, idempotency_key='"k"')
    node.problem(reply, 503, "no-leader")


# --- routing -------------------------------------------------------------------------------------


def test_batch_of_one_shard_at_the_wrong_node_gets_the_route(node: ApiNode) -> None:
    node.view.leaders[node.router.shard_of(b"a")] = NodeId("n2")
    reply = node.ask_json("POST", "/v1/batch", {"ops": [put("a"), get("a")]}, kv_epoch="1")
    assert node.problem(reply, 421, "wrong-route")["leader"] == "n2"
    assert not node.router.calls


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({}, "ops"),
        ([], "object"),
        ({"ops": {}}, "$.ops"),
        ({"ops": [1]}, "$.ops[0]"),
        ({"ops": [{}]}, "$.ops[0]"),
        ({"ops": [{"op": "swap", "key": "a"}]}, "$.ops[0].op"),
        ({"ops": [{"op": 1, "key": "a"}]}, "$.ops[0].op"),
        ({"ops": [get("a"), {"op": "get", "key": 5}]}, "$.ops[1].key"),
        ({"ops": [{"op": "get"}]}, "$.ops[0]"),
        ({"ops": [{"op": "get", "key": "a", "key_b64": "YQ=="}]}, "$.ops[0]"),
        ({"ops": [{"op": "get", "key_b64": "?"}]}, "$.ops[0].key_b64"),
        ({"ops": [{"op": "get", "key": ""}]}, "$.ops[0].key"),
        ({"ops": [{"op": "put", "key": "a"}]}, "$.ops[0]"),
        ({"ops": [{"op": "put", "key": "a", "value": 1}]}, "$.ops[0].value"),
        ({"ops": [{"op": "put", "key": "a", "value": None}]}, "$.ops[0]"),
        ({"ops": [put("a", "1", extra=1)]}, "extra"),
        ({"ops": [put("a", "1", if_revision=-1)]}, "$.ops[0].if_revision"),
        ({"ops": [put("a", "1", if_revision=1, if_absent=True)]}, "$.ops[0]"),
        ({"ops": [put("a", "1", content_type="nope")]}, "$.ops[0].content_type"),
        ({"ops": [put("a", "1", prev="yes")]}, "$.ops[0].prev"),
        ({"ops": [get("a", revision=1 << 70)]}, "$.ops[0].revision"),
        ({"ops": [incr("a", 1 << 63)]}, "$.ops[0].by"),
        ({"ops": [incr("a", 1, min=3, max=2)]}, "$.ops[0].min"),
        ({"ops": [], "more": 1}, "more"),
    ],
)
def test_malformed_batch_is_400_and_names_the_place(node: ApiNode, content: Any, path: str) -> None:
    for ask in (node.ask_json, node.ask_msgpack):
        if ask == node.ask_msgpack and "1 << 70" in str(content):
            continue
        try:
            reply = ask("POST", "/v1/batch", content)
        except OverflowError:
            continue  # msgpack has no such number
        document = node.problem(reply, 400, "invalid-argument")
        if ask == node.ask_json:
            assert path in document["detail"]
    assert not node.router.calls


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{",
        b'{"ops":[}',
        b'{"ops":' + b"[" * 50_000,
        b'{"ops":[{"op":"get","key":"\\ud800"}]}',
        b'{"ops":[{"op":"get","key":"\xff"}]}',
        b'{"ops":[{"op":"get","key":"a","revision":NaN}]}',
        b'{"ops":[{"op":"get","key":"a","revision":1e400}]}',
    ],
)
def test_malformed_json_is_400(node: ApiNode, body: bytes) -> None:
    node.problem(node.ask("POST", "/v1/batch", body), 400, "invalid-argument")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81\xa3ops",
        b"\x81\xa3ops\xdd\xff\xff\xff\xff",
        b"\x81\xa3ops\xdf\xff\xff\xff\xff",
        b"\x81\xa3ops\x91\x82\xa2op\xa3get\xa3key" + b"\x91" * 100_000,
        b"\x81\xa3ops\x91\x82\xa2op\xa3get\xa3key\xa1\xff",
        b"\x81\xa3ops\x91\x82\xa2op\xa3get\xa3key\xc7\xff\x01",
        b"\x81\xa3ops\x90\x00",
    ],
)
def test_malformed_msgpack_is_400(node: ApiNode, body: bytes) -> None:
    reply = node.ask("POST", "/v1/batch", body, {"Content-Type": "application/msgpack"})
    node.problem(reply, 400, "invalid-argument")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_no_body_makes_a_500(body: bytes, is_msgpack: bool) -> None:
    headers = {"Content-Type": "application/msgpack"} if is_msgpack else {}
    assert ApiNode(1).ask("POST", "/v1/batch", body, headers).status in (200, 400)


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_FIELDS = (
    "key",
    "key_b64",
    "value",
    "value_b64",
    "if_revision",
    "if_absent",
    "prev",
    "by",
    "min",
    "max",
    "revision",
    "ttl",
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "get", "delete", "incr"]),
            st.dictionaries(
                st.sampled_from(_FIELDS), _ANYTHING | st.binary(min_size=1, max_size=3), max_size=4
            ),
        ),
        max_size=3,
    )
)
def test_no_combination_of_fields_makes_a_500(ops: list[tuple[str, dict[str, Any]]]) -> None:
    content = {"ops": [{"op": name, **fields} for name, fields in ops]}
    reply = ApiNode(1).ask_msgpack("POST", "/v1/batch", content)
    assert reply.status in (200, 400), reply.response
    if reply.status == 200:
        assert all(result["status"] < 500 or result["status"] == 501 for result in reply.content["results"])


def test_limits_of_a_batch_are_named() -> None:
    node = ApiNode(limits=Limits(batch_ops_max=2, batch_bytes_max=200, value_bytes_max=5, key_bytes_max=4))
    document = node.problem(node.ask_json("POST", "/v1/batch", {"ops": [get("a")] * 3}), 413, "too-large")
    assert (document["limit"], document["max"], document["size"]) == ("batch_ops_max", 2, 3)
    document = node.problem(
        node.ask_json("POST", "/v1/batch", {"ops": [put("a", "x" * 300)]}), 413, "too-large"
    )
    assert document["limit"] == "batch_bytes_max"
    results = batch(node, put("a", "123456"), put("12345"))
    assert [(result["status"], result["limit"]) for result in results] == [
        (413, "value_bytes_max"),
        (413, "key_bytes_max"),
    ]


@pytest.mark.parametrize("ttl", ["3s", 3, 3.0, "3000ms"])
def test_a_put_of_a_batch_may_have_a_ttl(node: ApiNode, ttl: Any) -> None:
    assert [result["status"] for result in batch(node, put("a", "1", ttl=ttl), put("b"))] == [201, 201]
    assert node.ask("GET", "/v1/kv/a").headers["KV-TTL"] == "3.000"
    assert "KV-TTL" not in node.ask("GET", "/v1/kv/b").headers


@pytest.mark.parametrize("ttl", ["", "never", 0, -1, 1e300])
def test_a_bad_ttl_in_a_batch_is_400(node: ApiNode, ttl: Any) -> None:
    reply = node.ask("POST", "/v1/batch", json.dumps({"ops": [put("a", "1", ttl=ttl)]}).encode())
    assert "$.ops[0].ttl" in node.problem(reply, 400, "invalid-argument")["detail"]


def test_body_of_another_type_is_415(node: ApiNode) -> None:
    reply = node.ask("POST", "/v1/batch", b"<ops/>", {"Content-Type": "application/xml"})
    node.problem(reply, 415, "unsupported-media-type")


def test_form_as_curl_sends_it_is_read_as_json(node: ApiNode) -> None:
    reply = node.ask(
        "POST", "/v1/batch", b'{"ops":[]}', {"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert reply.status == 200
