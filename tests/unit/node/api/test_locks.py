"""Locks and elections over HTTP: taking, waiting, holding, giving up, and what nobody may write."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.errors import OutcomeUnknown, Unavailable
from kvstore.node.requests import Request
from kvstore.store import commands, lock_queue
from kvstore.types import ShardId
from tests.support.api_node import ApiNode, Reply

JOBS = "/v1/locks/jobs"


@pytest.fixture
def node() -> ApiNode:
    return ApiNode()


def take(node: ApiNode, path: str = JOBS, *, wait: str | None = None, ttl: str = "10s", **more: str) -> Reply:
    body = {"ttl": ttl} if wait is None else {"ttl": ttl, "wait": wait}
    return node.ask_json("POST", path, body, **more)


def taken(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    content = reply.content
    assert isinstance(content, dict)
    return content


def shard_of(node: ApiNode, name: bytes = b"_locks/jobs") -> ShardId:
    return node.router.shard_of(name)


def holder(node: ApiNode, name: bytes = b"_locks/jobs") -> Any:
    return node.router.machines[shard_of(node, name)].query(["holder", name])


def ops_of(node: ApiNode) -> list[int]:
    return [call[2][1][0][0] for call in node.router.calls if call[0] == "write"]


def ask_and_keep(node: ApiNode, wait: str = "5s", ttl: str = "10s", **more: str) -> tuple[Request, Reply]:
    """A request for the lock whose caller may go."""
    reply = Reply()
    body = b'{"ttl":"%b","wait":"%b"}' % (ttl.encode(), wait.encode())
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): more[name] for name in more}
    request = node.request("POST", JOBS, reply, body, headers)
    node.api.handle(request)
    return request, reply


# --- taking


def test_a_free_lock_is_taken_with_a_fence_that_is_the_revision_of_its_key(node: ApiNode) -> None:
    reply = take(node)
    content = taken(reply)
    assert content["ttl_ms"] == 10_000
    assert len(content["token"]) == 32
    assert reply.headers["KV-Revision"] == str(content["fence"])
    key = node.ask("GET", "/v1/kv/_locks%2Fjobs")
    assert (key.status, key.headers["KV-Revision"]) == (200, str(content["fence"]))


def test_a_held_lock_is_409_at_once_without_wait(node: ApiNode) -> None:
    fence = taken(take(node))["fence"]
    assert node.problem(take(node), 409, "locked")["fence"] == fence
    assert holder(node)[3] == 0


def test_who_waits_gets_it_when_it_is_released_in_order(node: ApiNode) -> None:
    first = taken(take(node))
    second, third = take(node, wait="5s"), take(node, wait="5s")
    assert not second.is_there
    assert node.ask("DELETE", f"{JOBS}/{first['token']}").status == 200
    assert taken(second)["fence"] > first["fence"]
    assert not third.is_there
    assert node.ask("DELETE", f"{JOBS}/{taken(second)['token']}").status == 200
    assert taken(third)["fence"] > taken(second)["fence"]


def test_after_its_wait_a_request_is_withdrawn_and_409(node: ApiNode) -> None:
    taken(take(node))
    waits = take(node, wait="5s")
    node.router.end_waits()
    node.problem(waits, 409, "locked")
    assert holder(node)[3] == 0


def test_what_was_granted_at_the_last_moment_is_kept(node: ApiNode) -> None:
    first = taken(take(node))
    waits = take(node, wait="5s")
    # Released, and its wait over, before it heard of that.
    waiting, node.router.waiting = node.router.waiting, []
    assert node.ask("DELETE", f"{JOBS}/{first['token']}").status == 200
    for call in waiting:
        call.finish(type("Over", (), {"value": [0], "clock_ms": 0, "staleness_s": None})())
    assert taken(waits)["fence"] == holder(node)[1]


def test_the_deadline_is_the_wait_and_five_seconds(node: ApiNode) -> None:
    taken(take(node))
    node.router.deadlines.clear()
    take(node, wait="20s")
    assert node.router.deadlines == [125.0, 125.0]


def test_a_shorter_deadline_of_the_caller_leaves_time_to_withdraw(node: ApiNode) -> None:
    taken(take(node))
    take(node, wait="20s", kv_timeout="2s")
    assert node.router.waiting[0].wait_until == 101.0


def test_a_node_that_does_not_know_the_clock_learns_it_from_the_first_answer(node: ApiNode) -> None:
    node.router.knows_clocks = False
    node.router.clock_ms = 50_000_000
    assert taken(take(node))["ttl_ms"] == 10_000
    assert ops_of(node) == [24, 24]


def test_names_may_be_any_bytes(node: ApiNode) -> None:
    for name in ("a%2Fb", "%FF", "%7Btag%7Dx", "_"):
        token = taken(take(node, f"/v1/locks/{name}"))["token"]
        assert node.ask("GET", f"/v1/locks/{name}").status == 200
        assert node.ask("PUT", f"/v1/locks/{name}/{token}/keepalive").status == 200
        assert node.ask("DELETE", f"/v1/locks/{name}/{token}").status == 200


def test_a_hash_tag_puts_the_lock_where_its_keys_are(node: ApiNode) -> None:
    reply = take(node, "/v1/locks/%7Buser9%7D")
    assert reply.headers["KV-Shard"] == str(node.router.shard_of(b"user9"))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ttl": "500ms"},
        {"ttl": "90000s"},
        {"ttl": "x"},
        {"ttl": None},
        {"ttl": "10s", "wait": "11m"},
        {"ttl": "10s", "wait": -1},
        {"ttl": "10s", "value": 5},
        {"ttl": "10s", "value_b64": "?"},
        {"ttl": "10s", "other": 1},
        [],
    ],
)
def test_bodies_that_make_no_sense_are_400(node: ApiNode, body: Any) -> None:
    node.problem(node.ask_json("POST", JOBS, body), 400, "invalid-argument")


def test_a_large_value_is_413(node: ApiNode) -> None:
    node.problem(node.ask_json("POST", JOBS, {"ttl": 10, "value": "x" * 5000}), 413, "too-large")


def test_a_full_queue_is_429(node: ApiNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_queue, "ENTRIES_MAX", 2)
    taken(take(node))
    take(node, wait="5s")
    reply = take(node, wait="5s")
    node.problem(reply, 429, "overloaded")
    assert "Retry-After" in reply.headers


# --- the same request again


def test_a_repeated_request_gets_the_same_grant(node: ApiNode) -> None:
    first = taken(take(node, idempotency_key='"k"'))
    node.router.clock_ms += 3_000
    again = taken(take(node, idempotency_key='"k"'))
    assert again == first
    other = {"kv_session": "s", "kv_sequence": "1"}
    node.problem(take(node, **other), 409, "locked")


def test_a_repeated_request_with_another_body_is_422(node: ApiNode) -> None:
    taken(take(node, idempotency_key='"k"'))
    node.problem(take(node, idempotency_key='"k"', ttl="20s"), 422, "idempotency-mismatch")


def test_a_repeated_request_shares_its_place_in_the_queue(node: ApiNode) -> None:
    first = taken(take(node))
    session = {"kv_session": "s", "kv_sequence": "7"}
    waits = take(node, wait="5s", **session)
    node.router.clock_ms += 1
    again = take(node, wait="5s", **session)
    assert holder(node)[3] == 1
    node.ask("DELETE", f"{JOBS}/{first['token']}")
    assert taken(again)["fence"] == holder(node)[1]
    assert taken(waits)["token"] == taken(again)["token"]


def test_a_try_whose_caller_has_gone_takes_nothing_from_another(node: ApiNode) -> None:
    first = taken(take(node))
    session = {"kv_session": "s", "kv_sequence": "7"}
    request, _reply = ask_and_keep(node, **session)
    again = take(node, wait="5s", **session)
    assert request.on_gone is not None
    request.on_gone()
    assert holder(node)[3] == 1
    node.ask("DELETE", f"{JOBS}/{first['token']}")
    assert taken(again)["fence"] == holder(node)[1]


def test_a_repeated_request_whose_lock_has_ended_is_told_so(node: ApiNode) -> None:
    session = {"kv_session": "s", "kv_sequence": "7"}
    token = taken(take(node, **session))["token"]
    node.ask("DELETE", f"{JOBS}/{token}")
    node.router.clock_ms += 1
    node.problem(take(node, **session), 404, "lock-lost")


# --- who goes


def test_pitfall_44_a_caller_that_goes_while_it_waits_leaves_no_entry(node: ApiNode) -> None:
    first = taken(take(node))
    request, reply = ask_and_keep(node)
    assert request.on_gone is not None
    request.on_gone()
    assert holder(node)[3] == 0
    assert node.router.waiting == []
    node.ask("DELETE", f"{JOBS}/{first['token']}")
    assert holder(node) is None
    node.problem(reply, 409, "locked")


def test_a_caller_that_closes_its_half_is_taken_for_gone(node: ApiNode) -> None:
    taken(take(node))
    request, reply = ask_and_keep(node)
    assert request.on_end_of_input is not None
    request.on_end_of_input()
    assert holder(node)[3] == 0
    node.problem(reply, 409, "locked")


def test_a_caller_that_goes_while_it_enters_leaves_no_entry(node: ApiNode) -> None:
    node.router.held = []
    request, reply = ask_and_keep(node)
    assert request.on_gone is not None
    request.on_gone()
    while node.router.held:
        node.router.held.pop(0)()
    assert holder(node) is None
    assert not reply.is_there or reply.status == 409


def test_an_entry_of_unknown_outcome_is_withdrawn(node: ApiNode) -> None:
    shard = shard_of(node)
    node.router.fail[shard] = OutcomeUnknown("too slow")
    node.problem(take(node, wait="5s"), 504, "outcome-unknown")
    assert [call[2][1][0][0] for call in node.router.calls if call[0] == "write"] == [24, 25]


def test_an_entry_that_was_surely_not_made_is_not_withdrawn(node: ApiNode) -> None:
    node.router.fail[shard_of(node)] = Unavailable("no leader")
    node.problem(take(node, wait="5s"), 503, "unavailable")
    assert ops_of(node) == [24]


def test_a_wait_that_fails_withdraws_and_says_why(node: ApiNode) -> None:
    taken(take(node))
    waits = take(node, wait="5s")
    call = node.router.waiting.pop()
    call.fail(Unavailable("this node stops"))
    node.problem(waits, 503, "unavailable")
    assert holder(node)[3] == 0


def test_a_withdrawal_that_is_held_up_is_tried_again_in_the_background(node: ApiNode) -> None:
    taken(take(node))
    waits = take(node, wait="5s")
    shard = shard_of(node)
    node.router.fail[shard] = Unavailable("no leader")
    call = node.router.waiting.pop()
    call.finish(type("Over", (), {"value": [0], "clock_ms": 0, "staleness_s": None})())
    node.problem(waits, 503, "unavailable")
    assert ops_of(node)[-2:] == [25, 25]


# --- holding


def test_keepalive_counts_the_ttl_from_now_and_tells_who_lost(node: ApiNode) -> None:
    content = taken(take(node))
    node.router.clock_ms += 9_000
    kept = node.ask("PUT", f"{JOBS}/{content['token']}/keepalive")
    assert kept.content == {"fence": content["fence"], "ttl_ms": 10_000}
    node.router.clock_ms += 10_000
    node.router._apply(shard_of(node), commands.encode(None, [commands.expire(1, 100)]))
    node.problem(node.ask("PUT", f"{JOBS}/{content['token']}/keepalive"), 404, "lock-lost")
    node.problem(node.ask("DELETE", f"{JOBS}/{content['token']}"), 404, "lock-lost")


def test_a_release_may_be_repeated(node: ApiNode) -> None:
    token = taken(take(node))["token"]
    for _ in range(2):
        assert node.ask("DELETE", f"{JOBS}/{token}").content == {"released": True}


@pytest.mark.parametrize("token", ["x", "ab", "%20", "0" * 30, "0" * 34])
def test_a_token_that_was_never_given_out_is_404(node: ApiNode, token: str) -> None:
    node.problem(node.ask("PUT", f"{JOBS}/{token}/keepalive"), 404, "lock-lost")
    node.problem(node.ask("DELETE", f"{JOBS}/{token}"), 404, "lock-lost")


def test_tokens_of_one_lock_do_not_fit_another(node: ApiNode) -> None:
    token = taken(take(node))["token"]
    taken(take(node, "/v1/locks/other"))
    node.problem(node.ask("DELETE", f"/v1/locks/other/{token}"), 404, "lock-lost")


# --- looking


def test_who_holds_a_lock_can_be_asked(node: ApiNode) -> None:
    node.problem(node.ask("GET", JOBS), 404, "key-not-found")
    fence = node.ask_json("POST", JOBS, {"ttl": "10s", "value": "me"}).content["fence"]
    take(node, wait="5s")
    assert node.ask("GET", JOBS).content == {"fence": fence, "ttl_ms": 10_000, "waiting": 1, "value": "me"}


def test_the_token_is_shown_to_nobody_else(node: ApiNode) -> None:
    token = taken(take(node))["token"]
    for target in (JOBS, "/v1/kv/_locks%2Fjobs", "/v1/kv?prefix=_locks/"):
        reply = node.ask("GET", target)
        assert token.encode() not in reply.body
        assert bytes.fromhex(token) not in reply.body


# --- elections


def test_the_elected_value_is_the_value_of_the_key(node: ApiNode) -> None:
    office = "/v1/elections/leader"
    node.problem(node.ask("GET", office), 404, "key-not-found")
    elected = taken(node.ask_json("POST", office, {"value": "n1", "ttl": "10s"}))
    assert node.value("_elections%2Fleader") == b"n1"
    assert node.ask("GET", office).content["value"] == "n1"
    waits = node.ask_json("POST", office, {"value": "n2", "ttl": "10s"})
    assert not waits.is_there
    assert node.ask("PUT", f"{office}/{elected['token']}/keepalive").status == 200
    assert node.ask("DELETE", f"{office}/{elected['token']}").content == {"released": True}
    assert taken(waits)["fence"] > elected["fence"]
    assert node.value("_elections%2Fleader") == b"n2"


def test_without_wait_a_candidate_waits_as_long_as_its_request_may_take(node: ApiNode) -> None:
    office = "/v1/elections/leader"
    taken(node.ask_json("POST", office, {"value": "n1", "ttl": "10s"}))
    waits = node.ask_json("POST", office, {"value": "n2", "ttl": "10s"})
    assert node.router.waiting[0].wait_until == 104.0
    node.router.end_waits()
    node.problem(waits, 409, "locked")
    node.problem(node.ask_json("POST", office, {"value": "n2", "ttl": "10s", "wait": 0}), 409, "locked")


def test_a_candidate_needs_a_value(node: ApiNode) -> None:
    node.problem(node.ask_json("POST", "/v1/elections/x", {"ttl": "10s"}), 400, "invalid-argument")


def test_values_that_are_not_text_go_through_both_formats(node: ApiNode) -> None:
    office = "/v1/elections/bytes"
    taken(node.ask_msgpack("POST", office, {"value": b"\xff\x00", "ttl": 10}))
    assert node.ask("GET", office).content["value_b64"] == "/wA="
    assert node.ask("GET", office, accept="application/msgpack").content["value"] == b"\xff\x00"


# --- fences in transactions


def test_a_transaction_can_ask_for_the_fence(node: ApiNode) -> None:
    first = taken(take(node, "/v1/locks/%7Bu%7D"))

    def write(fence: int, value: str) -> bool:
        condition = {"key": "_locks/{u}", "revision": {"eq": fence}}
        put = {"op": "put", "key": "{u}data", "value": value}
        reply = node.ask_json("POST", "/v1/txn", {"if": [condition], "then": [put], "else": []})
        assert reply.status == 200, reply.body
        return bool(reply.content["succeeded"])

    assert write(first["fence"], "1")
    node.ask("DELETE", f"/v1/locks/%7Bu%7D/{first['token']}")
    assert not write(first["fence"], "late")
    second = taken(take(node, "/v1/locks/%7Bu%7D"))
    assert not write(first["fence"], "late")
    assert write(second["fence"], "2")
    assert node.value("%7Bu%7Ddata") == b"2"


# --- what only the store writes


@pytest.mark.parametrize("key", ["_locks/jobs", "_elections/leader", "_locks%2Fnew"])
def test_keys_of_locks_and_elections_can_not_be_written(node: ApiNode, key: str) -> None:
    taken(take(node))
    path = f"/v1/kv/{key}"
    for method, target in (("PUT", path), ("DELETE", path), ("POST", path + "?op=incr")):
        document = node.problem(node.ask(method, target), 400, "invalid-argument")
        assert document["reserved"] in ("_locks/", "_elections/")
    name = key.replace("%2F", "/")
    for op in (
        {"op": "put", "key": name, "value": "x"},
        {"op": "delete", "key": name},
        {"op": "incr", "key": name},
    ):
        node.problem(node.ask_json("POST", "/v1/batch", {"ops": [op]}), 400, "invalid-argument")
        node.problem(node.ask_json("POST", "/v1/txn", {"then": [op]}), 400, "invalid-argument")
    assert node.ask_json("POST", "/v1/batch", {"ops": [{"op": "get", "key": name}]}).status == 200


def test_keys_that_only_look_like_it_can_be_written(node: ApiNode) -> None:
    for key in ("_locks", "_elections", "_lock/a", "locks/a", "_locks0"):
        assert node.put(key).status == 201


def test_a_range_delete_passes_them_over(node: ApiNode) -> None:
    taken(take(node))
    taken(node.ask_json("POST", "/v1/elections/x", {"value": "n1", "ttl": "10s"}))
    for key in ("A", "_a", "_elections", "_elections0", "_f", "_locks", "_locks0", "z"):
        node.put(key)
    assert node.ask("DELETE", "/v1/kv?prefix=").content["count"] == 8
    assert node.ask("DELETE", "/v1/kv?prefix=&confirm=*").content == {"deleted": 8}
    assert holder(node) is not None
    assert node.ask("GET", "/v1/kv?prefix=").content["count"] == 2
    for query in ("prefix=_locks/", "prefix=_elections/a", "start=_locks/a&end=_locks/b"):
        node.problem(node.ask("DELETE", f"/v1/kv?{query}&confirm=*"), 400, "invalid-argument")


def test_limits_are_told(node: ApiNode) -> None:
    assert node.ask("GET", "/v1/info").content["locks"]["entries_max"] == lock_queue.ENTRIES_MAX
