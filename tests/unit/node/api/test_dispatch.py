"""Routing, the cluster's pages, the operators' pages, and the description of it all."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.node.api.view import Check
from kvstore.node.requests import Request
from kvstore.placement import token_of
from tests.support.api_node import ApiNode


@pytest.fixture
def node() -> ApiNode:
    return ApiNode()


# --- routing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/nothing",
        "/v1",
        "/v1/",
        "/v2/kv/a",
        "/v1/kvx",
        "/v1/shards/1/2/3",
        "//v1/kv/a",
        "/v1/batch/",
        "/V1/kv/a",
    ],
)
def test_unknown_route_is_404(node: ApiNode, target: str) -> None:
    node.problem(node.ask("GET", target), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("PATCH", "/v1/kv/a", "DELETE, GET, HEAD, OPTIONS, POST, PUT"),
        ("PUT", "/v1/kv", "DELETE, GET, HEAD, OPTIONS"),
        ("GET", "/v1/batch", "OPTIONS, POST"),
        ("TRACE", "/metrics", "GET, HEAD, OPTIONS"),
        ("DELETE", "/v1/shards/1", "GET, HEAD, OPTIONS"),
        ("POST", "/", "GET, HEAD, OPTIONS"),
    ],
)
def test_wrong_method_is_405_and_says_what_is_allowed(
    node: ApiNode, method: str, target: str, allow: str
) -> None:
    reply = node.ask(method, target)
    node.problem(reply, 405, "method-not-allowed")
    assert reply.headers["Allow"] == allow


def test_options_says_what_is_allowed(node: ApiNode) -> None:
    reply = node.ask("OPTIONS", "/v1/kv/a")
    assert (reply.status, reply.headers["Allow"]) == (204, "DELETE, GET, HEAD, OPTIONS, POST, PUT")
    assert node.ask("OPTIONS", "*").status == 204
    assert "Access-Control-Allow-Origin" not in reply.headers


def test_absolute_target_is_its_path(node: ApiNode) -> None:
    assert node.ask("PUT", "http://anywhere:1/v1/kv/a", b"1").status == 201
    assert node.ask("GET", "http://anywhere:1/v1/kv/a?consistency=stale").body == b"1"
    node.problem(node.ask("GET", "nowhere"), 400, "invalid-argument")
    node.problem(node.ask("GET", "/v1/kv/a#b"), 400, "invalid-argument")


LATER = [
    ("POST", "/v1/nodes"),
    ("DELETE", "/v1/nodes/n1"),
    ("POST", "/v1/nodes/n1/drain"),
    ("POST", "/v1/shards/1/move"),
    ("POST", "/v1/backup"),
    ("POST", "/v1/restore"),
]


@pytest.mark.parametrize(("method", "target"), LATER)
def test_route_of_a_later_version_is_501(node: ApiNode, method: str, target: str) -> None:
    node.problem(node.ask(method, target), 501, "unsupported")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "SEARCH"]),
    st.text(st.characters(codec="latin-1", exclude_characters=" \r\n"), max_size=40),
    st.sampled_from(["/", "/v1/kv/", "/v1/kv?", "/v1/shards/", "/v1/keys/", "/v1/", "/readyz?", "*", ""]),
)
def test_no_target_makes_a_500(method: str, rest: str, start: str) -> None:
    reply = ApiNode(2).ask(method, start + rest, b"")
    assert reply.status < 500 or reply.status == 501


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "If-Match",
                "If-None-Match",
                "KV-Session",
                "KV-Sequence",
                "KV-Acked-Below",
                "KV-Since",
                "KV-Epoch",
                "KV-Timeout",
                "KV-Request-Id",
                "Idempotency-Key",
                "Content-Type",
                "Accept",
                "Origin",
            ]
        ),
        st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=12)
        | st.sampled_from(['"1"', "*", "1", "1s", "s", "text/plain"]),
        max_size=5,
    ),
    st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
)
def test_no_headers_make_a_500(headers: dict[str, str], method: str) -> None:
    node = ApiNode(1)
    node.put("a", "1")
    reply = node.ask(method, "/v1/kv/a" + ("?op=incr" if method == "POST" else ""), b"", headers)
    assert reply.status < 500
    for line in reply.response.head.split(b"\r\n")[:-1]:  # type: ignore[union-attr]
        assert re.fullmatch(rb"[A-Za-z-]+: [\x20-\x7e]*", line), "an answer's header was injected"


# --- the cluster ---------------------------------------------------------------------------------


def test_cluster_nodes_and_routes_are_the_views(node: ApiNode) -> None:
    assert node.ask("GET", "/v1/cluster").content.items() >= {"name": "paper", "meta_leader": "n1"}.items()
    assert [row["id"] for row in node.ask("GET", "/v1/nodes").content["nodes"]] == ["n1", "n2", "n3"]
    routes = node.ask("GET", "/v1/routes").content
    assert routes["epoch"] == 5
    assert routes["shards"][1].items() >= {"id": 1, "start": "4000000000000000", "leader": "n1"}.items()
    assert routes["nodes"][2] == {"id": "n3", "client": "10.0.0.3:7401"}
    assert node.ask("GET", "/v1/routes", accept="application/msgpack").content["epoch"] == 5


def test_shards_are_listed_and_single(node: ApiNode) -> None:
    rows = node.ask("GET", "/v1/shards").content["shards"]
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    assert node.ask("GET", "/v1/shards/2").content == rows[2]
    assert rows[2]["replicas"] == [{"node": "n1", "role": "leader", "match": 9}]


@pytest.mark.parametrize("number", ["4", "-1", "x", "99999999", "0x1", "%FF", "1.0", "%31%00"])
def test_shard_that_does_not_exist_is_404(node: ApiNode, number: str) -> None:
    node.problem(node.ask("GET", f"/v1/shards/{number}"), 404, "not-found")


def test_leadership_is_transferred(node: ApiNode) -> None:
    reply = node.ask_json("POST", "/v1/shards/1/transfer", {"to": "n2"})
    assert (reply.status, reply.content) == (200, {"shard": 1, "to": "n2", "leader": "n2"})
    assert node.view.transfers == [(1, "n2")]
    node.problem(node.ask_json("POST", "/v1/shards/9/transfer", {"to": "n2"}), 404, "not-found")
    for bad in ({}, {"to": 1}, {"to": "n2", "x": 1}, []):
        node.problem(node.ask_json("POST", "/v1/shards/1/transfer", bad), 400, "invalid-argument")
    node.problem(node.ask("POST", "/v1/shards/1/transfer"), 400, "invalid-argument")


def test_explain_tells_where_a_key_lives(node: ApiNode) -> None:
    content = node.ask("GET", "/v1/keys/a%2F{b}c/d/explain").content
    shard = node.router.shard_of(b"a/{b}c/d")
    assert (
        content.items()
        >= {
            "key": "a/{b}c/d",
            "hash_tag": "b",
            "token": f"{token_of(b'a/{b}c/d'):016x}",
            "shard": shard,
            "leader": "n1",
            "address": "10.0.0.1:7401",
        }.items()
    )
    assert [each["node"] for each in content["replicas"]] == ["n1", "n2", "n3"]
    assert node.ask("GET", "/v1/keys/%FF/explain").content["key_b64"] == "/w=="
    node.problem(node.ask("GET", "/v1/keys//explain"), 400, "invalid-argument")


# --- operators -----------------------------------------------------------------------------------


def test_readiness_names_what_is_missing(node: ApiNode) -> None:
    assert node.ask("GET", "/readyz").content == {"status": "ok"}
    checks = node.ask("GET", "/readyz?verbose=1").content["checks"]
    assert checks[0] == {"name": "joined", "ok": True, "detail": ""}
    node.view.checks.append(Check("seeds", False, "n3 has not answered"))
    document = node.problem(node.ask("GET", "/readyz"), 503, "not-ready")
    assert document["failed"] == ["seeds"]
    assert "n3 has not answered" in document["detail"]
    assert node.problem(node.ask("GET", "/readyz?verbose"), 503, "not-ready")["checks"][-1]["ok"] is False
    assert node.ask("GET", "/livez").status == 200
    node.problem(node.ask("GET", "/livez?x=1"), 400, "invalid-argument")


def test_info_has_version_and_limits(node: ApiNode) -> None:
    content = node.ask("GET", "/v1/info").content
    assert content["limits"]["value_bytes_max"] == 1 << 20
    assert content["sessions"] == {"window": 1024, "lifetime_s": 600.0}
    assert (content["node"], content["cluster"], content["engine"]) == ("n1", "paper", "memory")
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", content["version"])


def test_page_for_people_is_html(node: ApiNode) -> None:
    reply = node.ask("GET", "/")
    assert reply.headers["Content-Type"].startswith("text/html")
    assert b"n1" in reply.body


def test_metrics_count_requests_by_operation_and_code(node: ApiNode) -> None:
    node.put("a")
    node.put("a")
    node.ask("GET", "/v1/kv/b")
    node.ask_json("POST", "/v1/batch", {"ops": [{"op": "get", "key": "a"}, {"op": "get", "key": "zzz"}]})
    node.runtime.time_s += 0.003
    reply = node.ask("GET", "/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    text = reply.body.decode()
    assert 'kv_requests_total{code="201",op="put"} 1.0' in text
    assert 'kv_requests_total{code="404",op="get"} 2.0' in text
    assert 'kv_requests_total{code="200",op="batch"} 1.0' in text
    assert 'kv_http_request_duration_seconds_count{code="200",method="PUT",route="put"} 1.0' in text
    assert (
        'kv_http_request_duration_seconds_bucket{code="200",le="+Inf",method="PUT",route="put"} 1.0' in text
    )


def test_body_limits_are_known_before_a_body_is_read(node: ApiNode) -> None:
    limit = node.api.body_limit
    assert limit("PUT", "/v1/kv/a?x") == ("value_bytes_max", 1 << 20)
    assert limit("POST", "/v1/batch?x") == ("batch_bytes_max", 8 << 20)
    assert limit("POST", "/v1/shards/1/transfer")[1] < 1 << 20
    assert limit("PUT", "/elsewhere")[1] < 1 << 20


# --- the description -----------------------------------------------------------------------------


def document(node: ApiNode) -> Any:
    reply = node.ask("GET", "/v1/openapi.json")
    assert reply.headers["Content-Type"] == "application/json"
    return json.loads(reply.body)


def test_description_lists_every_route_once(node: ApiNode) -> None:
    described = document(node)
    assert described["openapi"].startswith("3.1")
    listed = {
        (method.upper(), path)
        for path, methods in described["paths"].items()
        for method in methods
        if method != "head"
    }
    assert listed == {(operation.method, operation.path) for operation in node.api.operations}
    names = [
        operation["operationId"] for methods in described["paths"].values() for operation in methods.values()
    ]
    assert len(names) == len(set(names))


def test_references_of_the_description_lead_somewhere(node: ApiNode) -> None:
    text = json.dumps(document(node))
    schemas = document(node)["components"]["schemas"]
    wanted = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert wanted <= schemas.keys()


def test_described_parameters_are_the_ones_that_are_accepted(node: ApiNode) -> None:
    """What a handler refuses as unknown must not be described, and the other way round."""
    for operation in node.api.operations:
        if operation.handler is None:
            continue
        target = re.sub(r"\{\w+\}", "1", operation.path)
        for parameter in operation.parameters:
            reply = node.ask(operation.method, f"{target}?{parameter.name}=%zz")
            assert parameter.name in reply.content["detail"], (operation.name, parameter.name)
            assert "unknown" not in reply.content["detail"]
        reply = node.ask(operation.method, f"{target}?surely_unknown=1")
        assert (reply.status, reply.content["parameter"]) == (400, "surely_unknown"), operation.name


def test_handlers_run_without_a_server_or_a_loop(node: ApiNode) -> None:
    """The simulator makes requests by hand: nothing on the way may need asyncio."""
    answered: list[Request] = []

    class Sink:
        def answer(self, request: Request, response: object) -> None:
            answered.append(request)

    from kvstore.node.requests import NO_HEADERS

    node.api.handle(Request("PUT", "/v1/kv/a", NO_HEADERS, b"1", "", Sink()))  # type: ignore[arg-type]
    assert len(answered) == 1
