"""Lists that grow: by compare-and-set of one key, and together with others in transactions."""

import json
from typing import Any

from chaos.callers import Caller
from chaos.exchange import Reply
from chaos.history import Operation
from chaos.workloads.base import FinalRead, Workload, reader

Step = dict[str, Any]


class Append(Workload):
    """Lists in one value: every element stays, in order. Three at a time lie in different shards and grow
    together, each by one element if none has changed since they were read, or one alone."""

    name = "append"

    def __init__(self, width: int = 12, uses_max: int = 40) -> None:
        super().__init__(width, uses_max)

    async def step(self, caller: Caller) -> None:
        group, element = self.keys.draw(caller), self.keys.value()
        if caller.dice.random() < 0.3:
            await self._grow_one(caller, caller.dice.choice(_lists(group)), element)
        else:
            await self._grow_all(caller, _lists(group), element)

    async def read(self, caller: Caller) -> None:
        lists = _lists(self.keys.draw(caller))
        if caller.dice.random() < 0.5:
            await caller.get(caller.dice.choice(lists))
        else:
            await txn(caller, then=[_step("get", name) for name in lists])

    async def _grow_one(self, caller: Caller, name: str, element: str) -> None:
        for _ in range(20):
            seen = await caller.get(name)
            if seen.outcome != "ok":
                return
            if seen.result is None:
                written = await caller.put(name, element, if_absent=True)
            else:
                longer = f"{seen.result['value']} {element}"
                written = await caller.put(name, longer, if_revision=seen.result["revision"])
            if written.outcome != "conflict":
                return

    async def _grow_all(self, caller: Caller, lists: list[str], element: str) -> None:
        for _ in range(10):
            seen = await txn(caller, then=[_step("get", name) for name in lists])
            if seen.outcome != "ok":
                return
            compares, steps = [], []
            for name, item in zip(lists, seen.result["results"], strict=True):
                revision, old = (item["revision"], item["value"] + " ") if item else (0, "")
                compares.append({"key": name, "field": "revision", "eq": revision})
                steps.append(_step("put", name, {"value": old + element}))
            written = await txn(caller, compares, steps)
            if written.outcome != "ok" or written.result["succeeded"]:
                return

    def final_reads(self) -> list[FinalRead]:
        return [reader(name) for group in self.keys.all() for name in _lists(group)]


def _lists(group: str) -> list[str]:
    return [f"{group}.{letter}" for letter in "abc"]


def _step(kind: str, key: str, argument: dict[str, Any] | None = None) -> Step:
    return {"kind": kind, "key": key, "argument": argument}


async def txn(caller: Caller, compares: list[Any] | None = None, then: list[Step] | None = None) -> Operation:
    """A transaction as one operation of the history, without an else-branch."""
    steps = then or []
    argument = {"if": compares or [], "then": steps, "else": []}
    body = {
        "if": [{"key": each["key"], each["field"]: {"eq": each["eq"]}} for each in compares or []],
        "then": [{"op": step["kind"], "key": step["key"], **(step["argument"] or {})} for step in steps],
    }

    def told(reply: Reply) -> dict[str, Any]:
        content = json.loads(reply.body)
        results = zip(steps, content["results"], strict=False)
        return {"succeeded": content["succeeded"], "results": [_picked(step, each) for step, each in results]}

    return await caller.call(
        "txn",
        "",
        argument,
        "POST",
        "/v1/txn",
        told,
        headers={"Content-Type": "application/json"},
        body=json.dumps(body).encode(),
        is_write=any(step["kind"] != "get" for step in steps),
    )


_TOLD = {"get": ("value", "revision"), "put": ("revision", "version", "created")}


def _picked(step: Step, result: dict[str, Any]) -> dict[str, Any] | None:
    if result["status"] == 404:
        return None
    return {name: result[name] for name in _TOLD[step["kind"]]}
