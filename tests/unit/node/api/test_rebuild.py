"""POST /v1/shards/{id}/rebuild: what it takes, what it answers."""

import pytest

from kvstore.errors import KvError, Unavailable
from kvstore.node.api.view import RebuildRow
from kvstore.node.flow import Promise
from kvstore.types import META_SHARD, NodeId, ShardId
from tests.support.api_node import ApiNode


@pytest.mark.parametrize(("role", "status"), [("learner", 202), ("follower", 200)])
def test_a_rebuild_says_who_comes_and_how_far_it_is(role: str, status: int) -> None:
    node = ApiNode()
    node.view.rebuild_role = role
    reply = node.ask_json("POST", "/v1/shards/1/rebuild", {"node": "n2"})
    assert reply.status == status
    assert reply.content == {"shard": 1, "node": "n2", "replica": "n2/2", "role": role}
    assert node.view.rebuilds == [(1, "n2")]


def test_the_meta_shard_has_a_name(node: ApiNode) -> None:
    assert node.ask_msgpack("POST", "/v1/shards/meta/rebuild", {"node": "n2"}).status == 202
    assert node.view.rebuilds == [(META_SHARD, "n2")]


@pytest.mark.parametrize("body", [{}, {"node": 7}, {"to": "n2"}, {"node": "n2", "now": True}, []])
def test_a_body_of_another_shape_is_refused(node: ApiNode, body: object) -> None:
    node.problem(node.ask_json("POST", "/v1/shards/1/rebuild", body), 400, "invalid-argument")
    assert node.view.rebuilds == []


def test_an_unknown_shard_and_an_empty_body_are_refused(node: ApiNode) -> None:
    node.problem(node.ask_json("POST", "/v1/shards/9/rebuild", {"node": "n2"}), 404, "not-found")
    node.problem(node.ask("POST", "/v1/shards/1/rebuild"), 400, "invalid-argument")
    assert node.ask("GET", "/v1/shards/1/rebuild").status == 405


def test_a_refusal_is_a_problem_document(node: ApiNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(shard: ShardId, of: NodeId, deadline: float) -> Promise[RebuildRow]:
        promise: Promise[RebuildRow] = Promise()
        error: KvError = Unavailable(f"node {of} does not answer", retry_after=1)
        promise.fail(error)
        return promise

    monkeypatch.setattr(node.view, "rebuild", refuse)
    reply = node.ask_json("POST", "/v1/shards/1/rebuild", {"node": "n3"})
    assert node.problem(reply, 503, "unavailable")["detail"] == "node n3 does not answer"


def test_the_route_is_described(node: ApiNode) -> None:
    described = node.ask("GET", "/v1/openapi.json").content
    operation = described["paths"]["/v1/shards/{id}/rebuild"]["post"]
    assert operation["operationId"] == "rebuild"
    assert "RebuildRow" in described["components"]["schemas"]


@pytest.fixture
def node() -> ApiNode:
    return ApiNode()
