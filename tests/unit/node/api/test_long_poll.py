"""`GET /v1/kv/{key}?wait=`: held while the answer would tell the caller nothing new."""

from __future__ import annotations

import pytest

from tests.support.api_node import ApiNode, Reply


@pytest.fixture
def node() -> ApiNode:
    return ApiNode()


def poll(node: ApiNode, known: str, wait: str = "30s", **more: str) -> Reply:
    return node.ask("GET", f"/v1/kv/a?wait={wait}", if_none_match=known, **more)


def test_a_poll_is_held_until_the_key_is_written(node: ApiNode) -> None:
    node.put("a", "1")
    reply = poll(node, '"1"')
    node.put("b")
    assert not reply.is_there
    node.put("a", "2")
    assert (reply.status, reply.body, reply.headers["ETag"]) == (200, b"2", '"2"')


def test_a_poll_with_an_old_revision_is_answered_at_once(node: ApiNode) -> None:
    node.put("a", "1")
    node.put("a", "2")
    assert poll(node, '"1"').body == b"2"
    assert poll(node, 'W/"1"').body == b"2"


def test_nothing_new_by_the_end_is_304(node: ApiNode) -> None:
    node.put("a", "1")
    reply = poll(node, '"1"')
    node.router.end_waits()
    assert (reply.status, reply.headers["ETag"], reply.body) == (304, '"1"', b"")


def test_a_deletion_ends_the_wait_with_404(node: ApiNode) -> None:
    node.put("a", "1")
    replies = [poll(node, '"1"'), poll(node, "*")]
    node.ask("DELETE", "/v1/kv/a")
    for reply in replies:
        node.problem(reply, 404, "key-not-found")


def test_revision_0_waits_for_an_absent_key_to_appear(node: ApiNode) -> None:
    reply, never = poll(node, '"0"'), node.ask("GET", "/v1/kv/z?wait=1s", if_none_match='"0"')
    node.put("a", "1")
    assert (reply.status, reply.body) == (200, b"1")
    node.router.end_waits()
    node.problem(never, 404, "key-not-found")


def test_a_star_is_held_while_the_key_exists_whatever_is_written(node: ApiNode) -> None:
    node.put("a", "1")
    reply = poll(node, "*")
    node.put("a", "2")
    assert not reply.is_there
    node.router.end_waits()
    assert reply.status == 304


@pytest.mark.parametrize(
    ("headers", "wait_s", "deadline_s"),
    [({}, 30.0, 35.0), ({"KV-Timeout": "12s"}, 7.0, 12.0), ({"KV-Timeout": "2s"}, 1.0, 2.0)],
)
def test_the_deadline_is_the_wait_and_time_for_the_answer(
    node: ApiNode, headers: dict[str, str], wait_s: float, deadline_s: float
) -> None:
    node.ask("GET", "/v1/kv/a?wait=30s", b"", headers, if_none_match='"0"')
    [call] = node.router.waiting
    now = node.runtime.now()
    assert (call.wait_until, call.deadline) == (now + wait_s, now + deadline_s)


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("wait=30s", {}),
        ("wait=30s", {"If-None-Match": '"1", "2"'}),
        ("wait=30s", {"If-None-Match": '"x"'}),
        ("wait=6m", {"If-None-Match": '"1"'}),
        ("wait=soon", {"If-None-Match": '"1"'}),
        ("wait=1s&revision=3", {"If-None-Match": '"1"'}),
        ("wait=1s&consistency=stale", {"If-None-Match": '"1"'}),
    ],
)
def test_what_cannot_be_waited_for_is_refused(node: ApiNode, query: str, headers: dict[str, str]) -> None:
    node.problem(node.ask("GET", f"/v1/kv/a?{query}", b"", headers), 400, "invalid-argument")


def test_a_caller_that_goes_takes_its_wait_along(node: ApiNode) -> None:
    reply = Reply()
    request = node.request("GET", "/v1/kv/a?wait=30s", reply, if_none_match='"0"')
    node.api.handle(request)
    assert request.on_gone is not None
    request.on_gone()
    assert not node.router.waiting
