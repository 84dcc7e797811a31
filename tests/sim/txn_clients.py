"""Clients of transactions: money moved between accounts of several shards, lists grown together.

No transfer changes the sum of all accounts, so every read of all of them at one moment must show it. Single
reads and writes of the same keys run beside them and meet their locks.
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

_JSON = {"Content-Type": "application/json"}


PATIENT_S = 4.5
"""Long enough for an answer to a prepare that is sent for the third time."""
PATIENT_TRANSFERS = 0.8
UNKNOWN_MAX = 6
"""Transfers of unknown outcome per set of accounts: each doubles what may have happened."""


class Accounts:
    """Some accounts that belong together; after too many doubts all clients go on with new ones."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._sets = 0
        self._unknown = 0
        self.renew()

    def renew(self) -> None:
        self._sets += 1
        self._unknown = 0
        self.names = [f"account{self._sets}-{number}" for number in range(self._count)]

    def doubt(self, name: str) -> None:
        """Nobody can tell what became of a transfer."""
        self._unknown += name in self.names
        if self._unknown >= UNKNOWN_MAX:
            self.renew()

    def all_sets(self) -> list[list[str]]:
        return [
            [f"account{which}-{number}" for number in range(self._count)]
            for which in range(1, self._sets + 1)
        ]


class TxnClient(Caller):
    def __init__(
        self,
        cluster: SimCluster,
        number: int,
        history: History,
        dice: Random,
        accounts: Accounts,
        lists: list[str],
    ) -> None:
        super().__init__(cluster, number, dice)
        self.history = history
        self.accounts = accounts
        self.lists = lists
        self.element = 0
        self.loyalty = 0.3
        self.wrong_sums: list[str] = []
        self.is_judge = False
        """It also looks whether anything was left behind."""

    def ask_next(self) -> None:
        draw = self.dice.random()
        if draw < (PATIENT_TRANSFERS if self._is_patient() else 0.4):
            self._transfer()
        elif self.world.now < self.cluster.singly_until:
            self._single("get", self.dice.choice(self.accounts.names), None)
        elif draw < 0.55:
            self._txn([], [_step("get", account) for account in self.accounts.names], self._check_sum)
        elif draw < 0.65:
            self._single("get", self.dice.choice(self.accounts.names + self.lists), None)
        elif draw < 0.75:
            self.element += 1
            argument = {"value": f"{self.number}-{self.element}"}
            self._single("put", self.dice.choice(self.lists), argument)
        else:
            self._txn([], [_step("get", name) for name in self.lists], self._append)

    def _is_patient(self) -> bool:
        return self.world.now < self.cluster.patient_until

    def patience_s(self) -> float:
        return max(self.attempt_s, PATIENT_S) if self._is_patient() else self.attempt_s

    # ---- what it does ----------------------------------------------------------------------------

    def _transfer(self) -> None:
        count = self.dice.choice((2, 2, 2, 3))
        source, *targets = self.dice.sample(self.accounts.names, count)
        steps = [_step("incr", target, {"by": 1}) for target in targets]
        self._txn([], [_step("incr", source, {"by": -len(targets)}), *steps], lambda results: self.finished())

    def _check_sum(self, results: list[Any]) -> None:
        total = sum(int(item["value"]) for item in results if item is not None)
        if total != 0:
            self.wrong_sums.append(f"a snapshot shows half a transfer: the accounts sum up to {total}")
        self.finished()

    def _append(self, seen: list[Any]) -> None:
        """Add to all lists if none has changed since they were read; else say so in the first."""
        self.element += 1
        element = f"{self.number}-{self.element}"
        compares = []
        for name, item in zip(self.lists, seen, strict=True):
            if item is None or self.dice.random() < 0.5:
                compares.append({"key": name, "field": "revision", "eq": item["revision"] if item else 0})
            else:
                compares.append({"key": name, "field": "value", "eq": item["value"]})
        then = []
        for name, item in zip(self.lists, seen, strict=True):
            old = item["value"] if item else ""
            then.append(_step("put", name, {"value": f"{old[-40:]},{element}"}))
        otherwise = [_step("put", self.lists[0], {"value": f"late {element}"})]
        self._txn(compares, then, lambda results: self.finished(), otherwise)

    # ---- asking ----------------------------------------------------------------------------------

    def _txn(
        self, compares: list[Any], then: list[Any], answered: Any, otherwise: list[Any] | None = None
    ) -> None:
        argument = {"if": compares, "then": then, "else": otherwise or []}
        operation = self.history.invoke(self.number, "txn", "", argument, self.world.now)
        body = {
            "if": [{"key": each["key"], each["field"]: {"eq": each["eq"]}} for each in compares],
            "then": [_op(step) for step in then],
            "else": [_op(step) for step in otherwise or []],
        }

        def done(outcome: Outcome, response: Response | None) -> None:
            operation.node = attempt.node
            if response is None or response.status == 409:
                self._refused(operation, outcome, response, attempt)
                return
            assert response.status == 200, f"{response.status} {response.body!r}"
            content = parse(response.body)
            steps = then if content["succeeded"] else otherwise or []
            results = [_result(step, each) for step, each in zip(steps, content["results"], strict=True)]
            result = {"succeeded": content["succeeded"], "results": results}
            self.history.complete(operation, "ok", self.world.now, result)
            if len(content["revisions"]) > 1:
                self.cluster.states["transaction over shards"] += 1
            answered(results)

        attempt = Attempt(self, Ask("POST", "/v1/txn", _JSON, json.dumps(body).encode()), done)
        attempt.send()

    def _single(self, kind: str, key: str, argument: dict[str, Any] | None) -> None:
        operation = self.history.invoke(self.number, kind, key, argument, self.world.now)

        def done(outcome: Outcome, response: Response | None) -> None:
            operation.node = attempt.node
            if response is None or response.status == 409:
                self._refused(operation, outcome, response, attempt)
                return
            result: dict[str, Any] | None = None
            if kind == "put":
                content = parse(response.body)
                result = {name: content[name] for name in RESULT_FIELDS[kind]}
            elif response.status == 200:
                result = {"value": response.body.decode(), "revision": int(response.headers["KV-Revision"])}
            self.history.complete(operation, "ok", self.world.now, result)
            self.finished()

        path = f"/v1/kv/{key}"
        ask = Ask("GET", path, {}) if argument is None else Ask("PUT", path, {}, argument["value"].encode())
        attempt = Attempt(self, ask, done)
        attempt.send()

    def _refused(
        self, operation: Operation, outcome: Outcome, response: Response | None, attempt: Attempt
    ) -> None:
        """A conflict says that this try did nothing, and nothing of the tries before it."""
        if response is not None:
            assert parse(response.body)["code"] == "conflict", response
            self.cluster.states["conflict with a transaction"] += 1
            outcome = "unknown" if attempt.was_unknown else "refused"
        self.history.complete(operation, outcome, self.world.now)
        if operation.kind == "txn" and outcome == "unknown" and operation.argument["then"]:
            self.accounts.doubt(operation.argument["then"][0]["key"])
        self.disappointed()
        self.finished()

    # ---- the verdict -----------------------------------------------------------------------------

    def judge(self) -> list[str]:
        return self.wrong_sums + (self._left_behind() + self._wrong_ends() if self.is_judge else [])

    def _wrong_ends(self) -> list[str]:
        """Every transfer has happened whole or not at all, also those that nobody has looked at since."""
        found = []
        for names in self.accounts.all_sets():
            total = 0
            for name in names:
                shard = self.cluster.shard_of(name)
                leader = self.cluster.leader_of(shard)
                if leader is None:
                    return found
                item = leader.node.host.replicas[shard].machine.query(["get", name.encode(), None])
                total += 0 if item is None else int(item[0])
            if total != 0:
                found.append(f"half a transfer is left: {names} sum up to {total}")
        return found

    def _left_behind(self) -> list[str]:
        """All is healed and at rest: no transaction may be open anywhere."""
        found = []
        for name, process in self.cluster.processes.items():
            for replica in process.replicas():
                intents = replica.machine.intents
                if intents.locks or intents.pending:
                    open_ones = f"{len(intents.pending)} transactions, {len(intents.locks)} keys"
                    found.append(f"{name} still holds {open_ones} of shard {replica.shard}")
        return found


def _step(kind: str, key: str, argument: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"kind": kind, "key": key, "argument": argument}


def _op(step: dict[str, Any]) -> dict[str, Any]:
    return {"op": step["kind"], "key": step["key"], **(step["argument"] or {})}


def _result(step: dict[str, Any], result: dict[str, Any]) -> dict[str, Any] | None:
    if step["kind"] == "get":
        return {name: result[name] for name in ("value", "revision")} if result["status"] == 200 else None
    return {name: result[name] for name in RESULT_FIELDS[step["kind"]]}
