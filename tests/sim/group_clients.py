"""Clients of a few keys that lie in one shard: batches that write some of them, scans that show them all.

A scan must show one state of the shard, through all its pages.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from chaos.history import History, Operation, Outcome
from kvstore.node.requests import Response
from tests.sim.caller import Ask, Attempt, Caller, parse
from tests.sim.clients import RESULT_FIELDS
from tests.sim.cluster import SimCluster

GROUP = [f"{{g}}{number}" for number in range(4)]
PAGE = 3
_UNSURE = (500, 504)
_NOT_DONE = (429, 503, 507)


class GroupClient(Caller):
    def __init__(self, cluster: SimCluster, number: int, history: History, dice: Random) -> None:
        super().__init__(cluster, number, dice)
        self.history = history
        self.value = 0
        self.loyalty = 0.5
        self.is_reader = True

    def ask_next(self) -> None:
        if self.may_only_read() or self.dice.random() < 0.5:
            self._scan()
        else:
            self._write()

    # ---- scans -----------------------------------------------------------------------------------

    def _scan(self) -> None:
        operation = self.history.invoke(self.number, "scan", "", {"keys": GROUP}, self.world.now)
        limit = self.dice.choice((PAGE, 100))
        self._page(operation, f"/v1/kv?prefix=%7Bg%7D&limit={limit}", {})

    def _page(self, operation: Operation, target: str, found: dict[str, Any]) -> None:
        def answered(outcome: Outcome, response: Response | None) -> None:
            if response is None or response.status != 200:
                self.history.complete(operation, "refused", self.world.now)
                self.finished()
                return
            page = parse(response.body)
            for item in page["items"]:
                found[item["key"]] = {"value": item["value"], "revision": item["revision"]}
            if page["next"] is not None:
                self._page(operation, f"/v1/kv?limit={PAGE}&cursor={page['next']}", found)
                return
            self.history.complete(operation, "ok", self.world.now, {"items": found})
            self.finished()

        Attempt(self, Ask("GET", target, {}), answered).send()

    # ---- batches ---------------------------------------------------------------------------------

    def _write(self) -> None:
        keys = self.dice.sample(GROUP, self.dice.randint(1, 3))
        ops, operations = [], []
        for key in keys:
            self.value += 1
            if self.dice.random() < 0.25:
                kind, argument = "delete", None
                ops.append({"op": "delete", "key": key})
            else:
                kind, argument = "put", {"value": f"{self.number}-{self.value}"}
                ops.append({"op": "put", "key": key, **argument})
            operations.append(self.history.invoke(self.number, kind, key, argument, self.world.now))
        body = json.dumps({"ops": ops}).encode()

        def answered(outcome: Outcome, response: Response | None) -> None:
            results = parse(response.body)["results"] if response is not None else [None] * len(operations)
            for operation, result in zip(operations, results, strict=True):
                operation.node = attempt.node
                self._complete(operation, outcome, result, attempt.was_unknown)
            self.finished()

        attempt = Attempt(
            self, Ask("POST", "/v1/batch", {"Content-Type": "application/json"}, body), answered
        )
        attempt.send()

    def _complete(
        self, operation: Operation, outcome: Outcome, result: dict[str, Any] | None, was_unknown: bool
    ) -> None:
        """Each of them has its own outcome."""
        now = self.world.now
        if result is None or result["status"] in _UNSURE:
            self.history.complete(operation, outcome if result is None else "unknown", now)
        elif result["status"] in _NOT_DONE:
            self.history.complete(operation, "unknown" if was_unknown else "refused", now)
        else:
            names = RESULT_FIELDS[operation.kind]
            self.history.complete(operation, "ok", now, {name: result[name] for name in names})
