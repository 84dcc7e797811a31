"""Leases over shards: no early death, no wrong key deleted, none forgotten: schedules, and their guards.

Each schedule runs twice: as it ships, and with its guard taken away. It must fail then, or it proves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kvstore.node.lease_ends import LeaseEnds
from kvstore.node.requests import Response
from kvstore.store import apply, commands, keys, lease_commands, lease_ends, leases
from kvstore.store.draft import Draft
from kvstore.types import NodeId
from kvstore.wire import peer
from tests.sim.guards import Remove
from tests.sim.script import N1, N2, N3, Script

LEASE = "mine"
JSON = {"Content-Type": "application/json"}


def _started() -> tuple[Script, int, int]:
    """n1 leads the home of the lease, n2 another shard; their numbers."""
    script = Script(shards=2)
    script.start()
    home = int(script.process(N1).node.router.shard_of(f"_leases/{LEASE}".encode()))
    script.lead(N1, home)
    script.lead(N2, 1 - home)
    return script, home, 1 - home


def _key_on(script: Script, shard: int) -> str:
    shard_of = script.process(N1).node.router.shard_of
    return next(key for number in range(99) if shard_of((key := f"k{number}").encode()) == shard)


def _grant(script: Script, ttl_s: float, at: NodeId = N1) -> None:
    body = json.dumps({"ttl": ttl_s, "id": LEASE}).encode()
    response = script.ask(at, "POST", "/v1/leases", body, JSON)
    assert response.status == 201, response


def _tie(script: Script, at: NodeId, key: str, value: str = "v") -> Response:
    return script.ask(at, "PUT", f"/v1/kv/{key}?lease={LEASE}", value.encode())


def _renew(script: Script, at: NodeId = N1) -> Response:
    return script.ask(at, "PUT", f"/v1/leases/{LEASE}/keepalive")


def _is_put(command: bytes) -> bool:
    return any(op[0] == commands.PUT for op in commands.decode(command)[1])


def _is_end(command: bytes) -> bool:
    return any(op[0] == lease_commands.ENDED for op in commands.decode(command)[1])


def _hold_back(
    script: Script, wants: Callable[[bytes], bool]
) -> list[tuple[NodeId, NodeId, peer.ForwardWrite]]:
    """Keep forwarded writes of one kind on their way; the list gets them."""
    held: list[tuple[NodeId, NodeId, peer.ForwardWrite]] = []

    def sift(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        if isinstance(message, peer.ForwardWrite) and wants(message.command):
            held.append((source, target, message))
            return None
        return message

    script.network.sift = sift
    return held


def _arrive(script: Script, held: list[tuple[NodeId, NodeId, peer.ForwardWrite]]) -> None:
    """What was held back arrives, late."""
    script.network.sift = None
    for source, target, message in held:
        script.process(target).node.host.on_message[peer.ForwardWrite](source, message)
    script.run(1.0)


# --- 43: a keepalive reaches home but not the shard of the lease's key


def keepalives_reach_home_only() -> None:
    script, _home, other = _started()
    key = _key_on(script, other)
    _grant(script, 2.0)
    assert _tie(script, N1, key).status == 201
    script.part(N2, N1)
    for _ in range(12):
        script.run(0.5)
        assert _renew(script).status == 200
    assert script.value(N3, key) == "v", "died early, although its lease was kept alive"
    script.mend()
    script.run(5.0)
    assert script.value(N3, key) is None, "outlived its lease"
    script.check()


# --- 43: an attach passes a revoke


def an_attach_is_on_its_way_while_the_lease_is_revoked() -> None:
    script, _home, other = _started()
    key = _key_on(script, other)
    _grant(script, 60.0)
    held = _hold_back(script, _is_put)
    script.send(N1, "PUT", f"/v1/kv/{key}?lease={LEASE}", b"late")
    script.run_until(lambda: bool(held), 3.0, "the put is on its way")
    assert script.ask(N1, "DELETE", f"/v1/leases/{LEASE}").status == 200
    _arrive(script, held)
    script.run(3.0)
    assert script.value(N3, key) is None, "tied to a lease that had ended"
    script.check()


# --- 43: an end is late and meets a new grant of the same id


def an_end_is_late_and_meets_a_new_grant() -> None:
    script, _home, other = _started()
    key = _key_on(script, other)
    _grant(script, 60.0)
    assert _tie(script, N1, key).status == 201
    held = _hold_back(script, _is_end)
    headers = {"KV-Timeout": "1s"}
    assert script.ask(N1, "DELETE", f"/v1/leases/{LEASE}", b"", headers).status == 202
    _grant(script, 60.0)
    script.ask(N2, "PUT", f"/v1/kv/{key}?lease={LEASE}", b"new")
    assert script.value(N3, key) == "new"
    _arrive(script, held)
    script.run(3.0)
    assert script.value(N3, key) == "new", "a late end took a key of the new grant"
    assert _renew(script).status == 200
    script.check()


# --- 43: whoever tells the shards of an end dies


def the_teller_dies_and_nobody_else_was_told() -> None:
    script, home, other = _started()
    key = _key_on(script, other)
    _grant(script, 2.0)
    assert _tie(script, N1, key).status == 201
    _hold_back(script, _is_end)
    script.run_until(lambda: script.replica(N1, home).machine.has_lease_ends, 5.0, "the lease has expired")
    script.run(1.0)
    script.kill(N1)
    script.network.sift = None
    script.run_until(script.cluster.has_all_leaders, 15.0, "all shards are led")
    script.run(4.0)
    assert script.value(N3, key) is None, "nobody told the shard that the lease has ended"
    script.check()


# --- guards


def _decide_without_home(patch: pytest.MonkeyPatch) -> None:
    """As if a tied key had the lease's time to live at its put, and nobody moved it."""

    def claim(draft: Draft, options: Any) -> Any:
        options["ttl_ms"] = 2_000
        return keys.number(options.get("lease_generation") or 1) + options["lease"], None

    patch.setattr(leases, "claim", claim)


def _leave_no_marks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lease_ends, "_mark", lambda draft, lease_id, generation: None)


def _end_by_id(patch: pytest.MonkeyPatch) -> None:
    """As if an end named an id and not a grant of it."""

    def apply_ended(draft: Draft, op: list[Any]) -> Any:
        grants = []
        for lease_id, _generation, kind in op[1]:
            for record_key, _ in draft.engine.scan(keys.LEASED_KEY, b"l"):
                length = record_key[1]
                if record_key[2 : 2 + length] == lease_id:
                    grants.append(
                        [lease_id, int.from_bytes(record_key[2 + length : 10 + length], "big"), kind]
                    )
        return lease_ends.apply_ended(draft, [op[0], grants, op[2]])

    patch.setitem(apply.APPLY, lease_commands.ENDED, apply_ended)
    patch.setattr(lease_ends, "_mark", lambda draft, lease_id, generation: None)


def _tell_once(patch: pytest.MonkeyPatch) -> None:
    """As if who revoked, or saw the expiry, told the shards and left it at that."""
    sweep = LeaseEnds.sweep
    told: set[NodeId] = set()

    def once(driver: LeaseEnds) -> None:
        if driver._host.me == N1 or told:
            told.add(driver._host.me)
            if driver._host.me == N1:
                sweep(driver)

    patch.setattr(LeaseEnds, "sweep", once)


SCHEDULES: dict[str, tuple[Callable[[], None], Remove, str]] = {
    "keepalives reach home only": (keepalives_reach_home_only, _decide_without_home, "died early"),
    "an attach passes a revoke": (
        an_attach_is_on_its_way_while_the_lease_is_revoked,
        _leave_no_marks,
        "tied to a lease that had ended",
    ),
    "a late end meets a new grant": (an_end_is_late_and_meets_a_new_grant, _end_by_id, "a late end took"),
    "the teller dies": (the_teller_dies_and_nobody_else_was_told, _tell_once, "nobody told"),
}


@pytest.mark.parametrize("name", SCHEDULES)
class TestPitfall43:
    def test_pitfall_43_a_lease_ends_with_its_keys_and_with_no_others(self, name: str) -> None:
        SCHEDULES[name][0]()

    def test_pitfall_43_shows_without_its_guard(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        schedule, remove, sign = SCHEDULES[name]
        remove(monkeypatch)
        with pytest.raises(AssertionError, match=sign):
            schedule()


def test_a_put_that_was_long_on_its_way_is_refused_and_built_anew() -> None:
    script, _home, other = _started()
    key = _key_on(script, other)
    _grant(script, 60.0)
    assert _tie(script, N3, key).status == 201
    held = _hold_back(script, _is_put)
    answer = script.send(N3, "PUT", f"/v1/kv/{key}?lease={LEASE}", b"2", {"KV-Timeout": "60s"})
    script.run_until(lambda: bool(held), 3.0, "the put is on its way")
    script.run(15.0)
    _arrive(script, held)
    script.run_until(lambda: answer.is_done, 10.0, "an answer")
    assert answer.status == 200
    assert script.value(N3, key) == "2"
    script.check()
