"""Clients of the simulated cluster: they ask through the request handlers and write down a history.

A client talks like the shipped one: it carries a session, retries an unknown outcome with the same
identity at another node until its deadline, and then records "unknown". Half of the clients carry no
identity: theirs are never sent twice.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from chaos.history import History, Operation
from kvstore.node.requests import Response
from kvstore.types import NodeId
from tests.sim.cluster import SimCluster

DEADLINE_S = 5.0
ATTEMPT_S = 1.5
_json = msgspec.json.decode


class Client:
    """One sequential client; `is_identified` ones retry."""

    def __init__(
        self, cluster: SimCluster, number: int, history: History, dice: Random, keys: list[str]
    ) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self.history = history
        self.dice = dice
        self.keys = keys
        self.is_identified = number % 2 == 0
        self.session = f"{dice.getrandbits(128):032x}"
        self.sequence = 0
        self.value = 0
        self.known: dict[str, int] = {}
        """Revisions seen, for compare-and-set."""
        self.is_stopped = False
        self.lease_share = 0.28
        """Of the reads, how many may be answered under a lease."""
        self.favourite_share = 0.0
        """How much goes to one key of all clients: a stale read shows only if somebody wrote meanwhile."""

    def start(self) -> None:
        self.world.after(self.dice.uniform(0, 0.2), self._next)

    def _next(self) -> None:
        if self.is_stopped:
            return
        kind, key, argument, asking = self._choose()
        operation = self.history.invoke(self.number, kind, key, argument, self.world.now)
        Attempt(self, operation, asking).send()

    def _choose(self) -> tuple[str, str, Any, tuple[str, str, dict[str, str], bytes]]:
        key = self.dice.choice(self.keys)
        if self.dice.random() < self.favourite_share:
            key = self.keys[0]
        path = f"/v1/kv/{key}"
        draw = self.dice.random()
        if key.startswith("count"):
            if draw < 0.5:
                return "incr", key, {"by": 1}, ("POST", path + "?op=incr", {}, b'{"by":1}')
            return "get", key, None, ("GET", path, {}, b"")
        self.value += 1
        value = f"{self.number}-{self.value}"
        if draw < 0.35:
            return "put", key, {"value": value}, ("PUT", path, {}, value.encode())
        if draw < 0.5 and key in self.known:
            revision = self.known[key]
            headers = {"If-Match": f'"{revision}"'}
            argument = {"value": value, "if_revision": revision}
            return "put", key, argument, ("PUT", path, headers, value.encode())
        if draw < 0.57:
            argument = {"value": value, "if_absent": True}
            return "put", key, argument, ("PUT", path, {"If-None-Match": "*"}, value.encode())
        if draw < 0.65:
            return "delete", key, None, ("DELETE", path, {}, b"")
        consistency = "?consistency=lease" if (draw - 0.65) / 0.35 < self.lease_share else ""
        return "get", key, None, ("GET", path + consistency, {}, b"")

    def finished(self) -> None:
        self.world.after(self.dice.uniform(0, 0.1), self._next)


class Attempt:
    """One operation, sent as often as is safe."""

    def __init__(
        self, client: Client, operation: Operation, asking: tuple[str, str, dict[str, str], bytes]
    ) -> None:
        self.client = client
        self.operation = operation
        self.method, self.target, self.headers, self.body = asking
        self.is_write = self.method != "GET"
        self.deadline = client.world.now + DEADLINE_S
        self.number = 0
        self.is_over = False
        self.was_unknown = False
        if self.is_write and client.is_identified:
            client.sequence += 1
            self.headers = self.headers | {
                "KV-Session": client.session,
                "KV-Sequence": str(client.sequence),
                "KV-Acked-Below": str(client.sequence),
            }

    def send(self) -> None:
        client, world = self.client, self.client.world
        self.number += 1
        number = self.number
        node = client.dice.choice(client.cluster.config.node_ids())
        self.operation.node = node
        headers = self.headers | {"KV-Timeout": f"{int(ATTEMPT_S * 1000)}ms"}
        delay = client.dice.uniform(0.0002, 0.002)
        world.after(delay, self._arrive, NodeId(node), headers, number)
        world.after(ATTEMPT_S + 0.2, self._on_answer, None, number)

    def _arrive(self, node: NodeId, headers: dict[str, str], number: int) -> None:
        def done(response: Response | None) -> None:
            delay = self.client.dice.uniform(0.0002, 0.002)
            self.client.world.after(delay, self._on_answer, response, number)

        self.client.cluster.request(node, self.method, self.target, headers, self.body, done)

    def _on_answer(self, response: Response | None, number: int) -> None:
        if self.is_over or number != self.number:
            return
        if response is None or response.status == 504:
            self.was_unknown = self.was_unknown or self.is_write
            may_retry = not self.is_write or self.client.is_identified
            self._retry_or_end("unknown", may_retry)
        elif response.status in (429, 503, 507):
            if response.status == 507:
                self.client.cluster.states["disk full"] += 1
            self._retry_or_end("unknown" if self.was_unknown else "refused", True)
        else:
            self._conclude(response)

    def _retry_or_end(self, outcome: Any, may_retry: bool) -> None:
        world = self.client.world
        if may_retry and world.now < self.deadline:
            self.number += 1
            world.after(self.client.dice.uniform(0.01, 0.2), self.send)
        else:
            self._end(outcome, None)

    def _conclude(self, response: Response) -> None:
        kind, status = self.operation.kind, response.status
        if kind == "get":
            self._end("ok", None if status == 404 else self._item(response))
        elif status == 412:
            self._end("conflict", {"current_revision": _json(response.body)["current_revision"]})
        elif status in (200, 201):
            if "Idempotency-Replayed" in response.headers:
                self.client.cluster.states["replayed session result"] += 1
            content = _json(response.body)
            if kind == "put":
                self.client.known[self.operation.key] = content["revision"]
            self._end("ok", {name: content[name] for name in _RESULT_FIELDS[kind]})
        else:
            raise AssertionError(f"{self.method} {self.target}: {status} {response.body!r}")

    def _item(self, response: Response) -> dict[str, Any]:
        assert response.status == 200, f"{response.status} {response.body!r}"
        revision = int(response.headers["KV-Revision"])
        self.client.known[self.operation.key] = revision
        return {"value": response.body.decode(), "revision": revision}

    def _end(self, outcome: Any, result: Any) -> None:
        self.is_over = True
        self.client.world.stir(b"%d %a %a" % (self.client.number, outcome, result))
        self.client.history.complete(self.operation, outcome, self.client.world.now, result)
        self.client.finished()


_RESULT_FIELDS = {
    "put": ("revision", "version", "created"),
    "delete": ("deleted", "revision"),
    "incr": ("value", "revision"),
}
