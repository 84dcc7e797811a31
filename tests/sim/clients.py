"""Clients that work on single keys, registers and counters, and write down a history for the checker."""

from __future__ import annotations

from random import Random
from typing import Any

from chaos.history import History, Operation, Outcome
from kvstore.node.requests import Response
from kvstore.types import NodeId
from tests.sim.caller import Ask, Attempt, Caller, parse
from tests.sim.cluster import SimCluster


class Client(Caller):
    """Puts, compares and sets, deletes, counts and reads."""

    def __init__(
        self, cluster: SimCluster, number: int, history: History, dice: Random, keys: list[str]
    ) -> None:
        super().__init__(cluster, number, dice)
        self.is_reader = True
        self.history = history
        self.keys = keys
        self.value = 0
        self.known: dict[str, int] = {}
        """Revisions seen, for compare-and-set."""
        self.read_share = 0.35
        self.lease_share = 0.28
        """Of the reads, how many may be answered under a lease."""
        self.favourite_share = 0.0
        """How much goes to one key of all clients: a stale read shows only if somebody wrote meanwhile."""
        self.paddings: tuple[int, ...] = (0,)
        """How many bytes may be added to a value: small values fit into one sector, whose write is atomic."""

    def ask_next(self) -> None:
        kind, key, argument, ask = self._choose()
        operation = self.history.invoke(self.number, kind, key, argument, self.world.now)

        def done(outcome: Outcome, response: Response | None) -> None:
            self._end(operation, attempt.node, outcome, response)

        attempt = Attempt(self, ask, done)
        attempt.send()

    def _choose(self) -> tuple[str, str, Any, Ask]:
        key = self.dice.choice(self.keys)
        if self.dice.random() < self.favourite_share:
            key = self.keys[0]
        path = f"/v1/kv/{key}"
        if self.may_only_read() or self.dice.random() < self.read_share:
            consistency = "?consistency=lease" if self.dice.random() < self.lease_share else ""
            return "get", key, None, Ask("GET", path + consistency, {})
        if key.startswith("count"):
            return "incr", key, {"by": 1}, Ask("POST", path + "?op=incr", {}, b'{"by":1}')
        return self._choose_write(key, path)

    def _choose_write(self, key: str, path: str) -> tuple[str, str, Any, Ask]:
        draw = self.dice.random()
        self.value += 1
        value = f"{self.number}-{self.value}" + "." * self.dice.choice(self.paddings)
        if draw < 0.1:
            return "delete", key, None, Ask("DELETE", path, {})
        if draw < 0.2:
            argument: dict[str, Any] = {"value": value, "if_absent": True}
            return "put", key, argument, Ask("PUT", path, {"If-None-Match": "*"}, value.encode())
        if draw < 0.4 and key in self.known:
            revision = self.known[key]
            argument = {"value": value, "if_revision": revision}
            return "put", key, argument, Ask("PUT", path, {"If-Match": f'"{revision}"'}, value.encode())
        return "put", key, {"value": value}, Ask("PUT", path, {}, value.encode())

    def _end(self, operation: Operation, node: NodeId, outcome: Outcome, response: Response | None) -> None:
        operation.node = node
        result = None
        if response is not None:
            outcome, result = self._read(operation, response)
        self.history.complete(operation, outcome, self.world.now, result)
        self.finished()

    def _read(self, operation: Operation, response: Response) -> tuple[Outcome, Any]:
        kind, key, status = operation.kind, operation.key, response.status
        if kind == "get" and status in (200, 404):
            return "ok", None if status == 404 else self._item(key, response)
        if kind != "get" and status == 412:
            return "conflict", {"current_revision": parse(response.body)["current_revision"]}
        if kind == "get" or status not in (200, 201):
            raise AssertionError(f"{kind} {key}: {status} {response.body!r}")
        content = parse(response.body)
        if kind == "put":
            self.known[key] = content["revision"]
        return "ok", {name: content[name] for name in RESULT_FIELDS[kind]}

    def _item(self, key: str, response: Response) -> dict[str, Any]:
        revision = int(response.headers["KV-Revision"])
        self.known[key] = revision
        return {"value": response.body.decode(), "revision": revision}


RESULT_FIELDS = {
    "put": ("revision", "version", "created"),
    "delete": ("deleted", "revision"),
    "incr": ("value", "revision"),
}
