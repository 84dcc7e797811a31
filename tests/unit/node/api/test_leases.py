"""Leases over HTTP: what is granted, renewed, shown, revoked and tied."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvstore.errors import NoLeader, OutcomeUnknown
from kvstore.node.flow import spawn
from kvstore.node.leases import HORIZON_MS, Renewed
from kvstore.store import commands, lease_commands
from tests.support.api_node import ApiNode, Reply


@pytest.fixture
def node() -> ApiNode:
    made = ApiNode(4)
    made.router.clock_ms = 50_000
    return made


def grant(node: ApiNode, ttl: Any = "10s", **fields: Any) -> Reply:
    return node.ask("POST", "/v1/leases", json.dumps({"ttl": ttl, **fields}).encode())


def keep(node: ApiNode, *ids: str) -> list[dict[str, Any]]:
    reply = node.ask("POST", "/v1/leases/keepalive", json.dumps({"leases": ids}).encode())
    node.runtime.turn()
    assert reply.status == 200, reply.body
    results: list[dict[str, Any]] = reply.content["results"]
    return results


def keep_one(node: ApiNode, lease: str) -> Reply:
    reply = node.ask("PUT", f"/v1/leases/{lease}/keepalive")
    node.runtime.turn()
    return reply


def home(node: ApiNode, lease: str) -> Any:
    return node.router.shard_of(b"_leases/" + lease.encode())


def key_of(node: ApiNode, shard: Any, prefix: str = "k") -> str:
    return next(key for n in range(999) if node.router.shard_of((key := f"{prefix}{n}").encode()) == shard)


def keys_here_and_elsewhere(node: ApiNode, lease: str) -> tuple[str, str]:
    here = home(node, lease)
    return key_of(node, here), key_of(node, (here + 1) % 4)


def expire_all(node: ApiNode) -> None:
    """What the leaders' drivers do when time has come, at home."""
    for shard in node.router.shards():
        node.router._apply(shard, commands.encode(None, [commands.expire(1, 100)]))


# --- grants


def test_a_grant_names_the_lease_and_its_time(node: ApiNode) -> None:
    reply = grant(node, "10s")
    assert (reply.status, reply.content["ttl_ms"]) == (201, 10_000)
    assert grant(node).content["lease"] != reply.content["lease"]
    assert grant(node, 2.5, id="mine").content == {"lease": "mine", "ttl_ms": 2_500}


def test_an_id_that_lives_is_refused_and_may_be_granted_after_its_end(node: ApiNode) -> None:
    grant(node, id="mine")
    document = node.problem(grant(node, id="mine"), 412, "precondition-failed")
    assert document["lease"] == "mine"
    assert node.ask("DELETE", "/v1/leases/mine").status == 200
    assert grant(node, id="mine").status == 201


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ttl": None},
        {"ttl": "99ms"},
        {"ttl": "soon"},
        {"ttl": -1},
        {"ttl": "10s", "id": ""},
        {"ttl": "10s", "id": "a b"},
        {"ttl": "10s", "id": "a/b"},
        {"ttl": "10s", "id": "x" * 65},
        {"ttl": "10s", "id": "keepalive"},
        {"ttl": "10s", "more": 1},
    ],
)
def test_a_bad_grant_is_400(node: ApiNode, body: dict[str, Any]) -> None:
    reply = node.ask("POST", "/v1/leases", json.dumps(body).encode())
    node.problem(reply, 400, "invalid-argument")
    assert not node.router.calls


def test_a_repeated_grant_is_one_lease(node: ApiNode) -> None:
    headers = {"KV-Session": "s", "KV-Sequence": "1"}
    first, again = (node.ask("POST", "/v1/leases", b'{"ttl":"9s"}', headers) for _ in range(2))
    assert first.content == again.content
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(node.ask("GET", "/v1/leases").content["leases"]) == 1


# --- renewals


def test_a_keepalive_says_how_long_it_now_lasts(node: ApiNode) -> None:
    grant(node, "10s", id="mine")
    assert keep_one(node, "mine").content == {"lease": "mine", "ttl_ms": 10_000, "granted_ttl_ms": 10_000}
    node.problem(keep_one(node, "none"), 404, "lease-not-found")
    node.problem(keep_one(node, "%20"), 404, "lease-not-found")


def test_many_are_renewed_with_a_query_and_a_command_for_each_shard(node: ApiNode) -> None:
    ids = [f"lease-{number}" for number in range(40)]
    for lease in ids:
        grant(node, "10s", id=lease)
    node.router.clock_ms += 5_000
    for shard in node.router.shards():
        node.put(key_of(node, shard))
    node.router.calls.clear()
    results = keep(node, *ids, "none", ids[0])
    assert [result["status"] for result in results] == [200] * 40 + [404, 200]
    assert results[40]["code"] == "lease-not-found"
    kinds = [call[0] for call in node.router.calls]
    assert sorted(kinds) == ["linearizable"] * 4 + ["write"] * 4


def test_a_renewal_that_is_worth_little_is_no_write(node: ApiNode) -> None:
    grant(node, "10s", id="mine")
    shard = home(node, "mine")
    node.router.clock_ms += 2_000
    node.put(key_of(node, shard))
    node.router.calls.clear()
    assert keep_one(node, "mine").content["ttl_ms"] == 8_000
    assert [call[0] for call in node.router.calls] == ["linearizable"]
    node.router.clock_ms += 500
    node.put(key_of(node, shard))
    assert keep_one(node, "mine").content["ttl_ms"] == 10_000


def test_keepalives_of_one_turn_travel_together(node: ApiNode) -> None:
    grant(node, "10s", id="mine")
    node.router.calls.clear()
    leases = node.api.context.leases
    found = [spawn(leases.renew([b"mine"], node.runtime.now() + 5)) for _ in range(5)]
    assert not node.router.calls
    node.runtime.turn()
    assert [each.result() for each in found] == [[Renewed(10_000, 10_000)]] * 5
    assert len(node.router.calls) == 1


def test_a_shard_that_does_not_answer_fails_its_own_leases_only(node: ApiNode) -> None:
    ids = [f"lease-{number}" for number in range(8)]
    for lease in ids:
        grant(node, "10s", id=lease)
    broken = home(node, ids[0])
    node.router.fail[broken] = NoLeader("nobody")
    for lease, result in zip(ids, keep(node, *ids), strict=True):
        assert result["status"] == (503 if home(node, lease) == broken else 200)
    node.problem(keep_one(node, ids[0]), 503, "no-leader")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"leases":[1]}', b'{"leases":["a b"]}', b"[]"])
def test_a_bad_list_of_leases_is_400(node: ApiNode, body: bytes) -> None:
    node.problem(node.ask("POST", "/v1/leases/keepalive", body), 400, "invalid-argument")


# --- looking


def test_a_lease_shows_what_is_left_and_its_keys_on_all_shards(node: ApiNode) -> None:
    grant(node, "10s", id="mine")
    wanted = [key_of(node, shard) for shard in range(4)]
    for key in wanted:
        assert node.ask("PUT", f"/v1/kv/{key}?lease=mine", b"1").status == 201
    assert node.ask("PUT", "/v1/kv/%FF?lease=mine", b"1").status == 201
    node.router.clock_ms += 4_000
    node.put(key_of(node, home(node, "mine"), "clock"))
    content = node.ask("GET", "/v1/leases/mine").content
    assert (content["lease"], content["ttl_ms"], content["remaining_ms"]) == ("mine", 10_000, 6_000)
    assert content["keys"] == [*sorted(wanted), {"key_b64": "/w=="}]
    assert content["more"] is False
    few = node.ask("GET", "/v1/leases/mine?limit=2").content
    assert (len(few["keys"]), few["more"]) == (2, True)
    node.problem(node.ask("GET", "/v1/leases/none"), 404, "lease-not-found")


def test_leases_are_listed_page_by_page(node: ApiNode) -> None:
    ids = {f"lease-{number}" for number in range(11)}
    for lease in ids:
        grant(node, "10s", id=lease)
    seen: list[str] = []
    target = "/v1/leases?limit=3"
    while target:
        content = node.ask("GET", target).content
        assert len(content["leases"]) <= 3
        seen += [row["lease"] for row in content["leases"]]
        target = f"/v1/leases?limit=3&cursor={content['next']}" if content["next"] else ""
    assert sorted(seen) == sorted(ids)
    node.problem(node.ask("GET", "/v1/leases?cursor=abc"), 400, "invalid-argument")


# --- ties


def test_a_tied_key_says_so_and_unties_when_rewritten(node: ApiNode) -> None:
    grant(node, id="mine")
    for key in keys_here_and_elsewhere(node, "mine"):
        assert node.ask("PUT", f"/v1/kv/{key}?lease=mine&ttl=5s", b"1").status == 201
        headers = node.ask("GET", f"/v1/kv/{key}").headers
        assert (headers["KV-Lease"], headers["KV-TTL"]) == ("mine", "5.000")
        node.put(key)
        assert "KV-Lease" not in node.ask("GET", f"/v1/kv/{key}").headers
    assert node.ask("GET", "/v1/leases/mine").content["keys"] == []


def test_a_put_under_no_lease_is_404_and_writes_nothing(node: ApiNode) -> None:
    for key in keys_here_and_elsewhere(node, "none"):
        node.problem(node.ask("PUT", f"/v1/kv/{key}?lease=none", b"1"), 404, "lease-not-found")
        assert node.ask("GET", f"/v1/kv/{key}").status == 404
    node.problem(node.ask("PUT", "/v1/kv/a?lease=a%20b", b"1"), 400, "invalid-argument")


def test_home_is_told_of_a_shard_once_and_asked_seldom(node: ApiNode) -> None:
    grant(node, id="mine")
    elsewhere = keys_here_and_elsewhere(node, "mine")[1]
    node.router.calls.clear()
    for _ in range(5):
        node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"1")
    ops = [call[2][1][0][0] for call in node.router.calls if call[0] == "write"]
    assert ops == [lease_commands.ATTACH] + [commands.PUT] * 5
    node.runtime.run(3.0)
    node.router.calls.clear()
    node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"1")
    assert [call[2][0] for call in node.router.calls if call[0] != "write"] == ["lease"]


def test_what_home_said_is_not_used_beyond_the_end_of_the_lease(node: ApiNode) -> None:
    """Seed 43: a client was told of the end, and then let tie a key to the lease by what was known before."""
    grant(node, "1s", id="mine")
    elsewhere = keys_here_and_elsewhere(node, "mine")[1]
    assert node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"1").status == 201
    node.router.clock_ms += 1_000
    node.runtime.run(1.0)
    # Only home: its shards have not been told.
    node.router._apply(home(node, "mine"), commands.encode(None, [commands.expire(1, 100)]))
    node.problem(node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"2"), 404, "lease-not-found")


def test_a_put_that_is_refused_is_built_anew(node: ApiNode) -> None:
    grant(node, id="mine")
    elsewhere = keys_here_and_elsewhere(node, "mine")[1]
    assert node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"1").status == 201
    node.router.clock_ms += HORIZON_MS + 1
    assert node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"2").status == 200
    assert node.value(elsewhere) == b"2"


def test_pitfall_43_a_put_finds_the_new_grant_behind_what_it_knew(node: ApiNode) -> None:
    grant(node, id="mine")
    elsewhere = keys_here_and_elsewhere(node, "mine")[1]
    node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"1")
    assert node.ask("DELETE", "/v1/leases/mine").status == 200
    node.problem(node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"1"), 404, "lease-not-found")
    grant(node, id="mine")
    assert node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"2").status == 201


def test_a_put_that_is_refused_while_home_does_not_answer_is_503(node: ApiNode) -> None:
    grant(node, id="mine")
    elsewhere = keys_here_and_elsewhere(node, "mine")[1]
    assert node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"1").status == 201
    node.router.clock_ms += HORIZON_MS + 1
    node.router.fail[home(node, "mine")] = NoLeader("nobody")
    node.problem(node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"2"), 503, "no-leader")
    ops = [
        {"op": "put", "key": elsewhere, "value": "2", "lease": "mine"},
        {"op": "incr", "key": "n{" + elsewhere + "}"},
    ]
    results = node.ask("POST", "/v1/batch", json.dumps({"ops": ops}).encode()).content["results"]
    assert [result["status"] for result in results] == [503, 503], "what travels together"
    assert node.value(elsewhere) == b"1"


def test_a_home_that_does_not_answer_is_503_and_nothing_is_written(node: ApiNode) -> None:
    grant(node, id="mine")
    elsewhere = keys_here_and_elsewhere(node, "mine")[1]
    node.router.fail[home(node, "mine")] = OutcomeUnknown("lost")
    node.problem(node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"1"), 503, "unavailable")
    assert node.value(elsewhere) is None


def test_a_repeated_put_gets_its_old_answer_also_when_the_lease_is_gone(node: ApiNode) -> None:
    grant(node, id="mine")
    for number, key in enumerate(keys_here_and_elsewhere(node, "mine")):
        headers = {"KV-Session": "s", "KV-Sequence": str(number)}
        first = node.ask("PUT", f"/v1/kv/{key}?lease=mine", b"1", headers)
        assert first.status == 201
        node.ask("DELETE", "/v1/leases/mine")
        again = node.ask("PUT", f"/v1/kv/{key}?lease=mine", b"1", headers)
        assert (again.status, again.content) == (201, first.content)
        assert again.headers["Idempotency-Replayed"] == "true"
        grant(node, id="mine")


def test_a_batch_ties_its_puts(node: ApiNode) -> None:
    grant(node, id="mine")
    here, elsewhere = keys_here_and_elsewhere(node, "mine")
    body = {
        "ops": [
            {"op": "put", "key": here, "value": "1", "lease": "mine"},
            {"op": "put", "key": elsewhere, "value": "1", "lease": "mine"},
            {"op": "put", "key": elsewhere + "x", "value": "1", "lease": "none"},
            {"op": "put", "key": "plain", "value": "1"},
            {"op": "get", "key": elsewhere},
        ]
    }
    results = node.ask("POST", "/v1/batch", json.dumps(body).encode()).content["results"]
    assert [result["status"] for result in results] == [201, 201, 404, 201, 200]
    assert results[2]["code"] == "lease-not-found"
    assert results[4]["lease"] == "mine"
    body["ops"][0]["lease"] = "a b"
    node.problem(node.ask("POST", "/v1/batch", json.dumps(body).encode()), 400, "invalid-argument")


@pytest.mark.parametrize("identity", [{}, {"KV-Session": "s", "KV-Sequence": "7"}])
def test_what_of_a_batch_is_refused_is_done_again_and_nothing_twice(
    node: ApiNode, identity: dict[str, str]
) -> None:
    grant(node, id="mine")
    elsewhere = keys_here_and_elsewhere(node, "mine")[1]
    assert node.ask("PUT", f"/v1/kv/{elsewhere}?lease=mine", b"1").status == 201
    node.router.clock_ms += HORIZON_MS + 1
    ops = [
        {"op": "incr", "key": "n{" + elsewhere + "}"},
        {"op": "put", "key": elsewhere, "value": "2", "lease": "mine"},
    ]
    reply = node.ask("POST", "/v1/batch", json.dumps({"ops": ops}).encode(), identity)
    assert [result["status"] for result in reply.content["results"]] == [200, 200]
    assert node.value("n{" + elsewhere + "}") == b"1"
    assert node.value(elsewhere) == b"2"


# --- ends


def test_a_revoke_has_deleted_all_keys_when_it_answers(node: ApiNode) -> None:
    grant(node, id="mine")
    tied = keys_here_and_elsewhere(node, "mine")
    for key in tied:
        node.ask("PUT", f"/v1/kv/{key}?lease=mine", b"1")
    node.put("stays")
    reply = node.ask("DELETE", "/v1/leases/mine")
    assert (reply.status, reply.content) == (200, {"lease": "mine", "revoked": True})
    assert [node.value(key) for key in (*tied, "stays")] == [None, None, b"v"]
    node.problem(node.ask("DELETE", "/v1/leases/mine"), 404, "lease-not-found")
    assert not any(machine.has_lease_ends for machine in node.router.machines.values())


def test_a_revoke_says_which_shards_are_behind(node: ApiNode) -> None:
    grant(node, id="mine")
    here, elsewhere = keys_here_and_elsewhere(node, "mine")
    for key in (here, elsewhere):
        node.ask("PUT", f"/v1/kv/{key}?lease=mine", b"1")
    broken = node.router.shard_of(elsewhere.encode())
    node.router.fail[broken] = NoLeader("nobody")
    reply = node.ask("DELETE", "/v1/leases/mine", KV_Timeout="1s")
    node.runtime.run(2.0)
    assert reply.status == 202
    assert reply.content == {"lease": "mine", "revoked": True, "pending_shards": [broken]}
    assert node.value(here) is None
    assert node.router.machines[home(node, "mine")].has_lease_ends


def test_a_repeated_revoke_is_answered_as_the_first_one(node: ApiNode) -> None:
    grant(node, id="mine")
    headers = {"KV-Session": "s", "KV-Sequence": "1"}
    assert node.ask("DELETE", "/v1/leases/mine", b"", headers).status == 200
    grant(node, id="mine")
    again = node.ask("DELETE", "/v1/leases/mine", b"", headers)
    assert again.status == 200
    assert again.headers["Idempotency-Replayed"] == "true"
    assert node.ask("GET", "/v1/leases/mine").status == 200, "the new grant lives"


def test_an_expired_lease_is_not_found(node: ApiNode) -> None:
    grant(node, "10s", id="mine")
    node.router.clock_ms += 10_000
    expire_all(node)
    node.problem(keep_one(node, "mine"), 404, "lease-not-found")
    assert node.ask("GET", "/v1/leases").content == {"leases": [], "next": None}
