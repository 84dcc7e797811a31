"""Linearizability by trying every order: slow, obvious, and written without the checker's code."""

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from typing import Any

from chaos.history import Operation

Cell = tuple[str | None, int | None, int]
"""Value, revision (None: not told by anyone yet), and the revision that it must exceed."""


def is_linearizable(history: Sequence[Operation]) -> bool:
    sure = [operation for operation in history if operation.outcome in ("ok", "conflict")]
    open_ones = [operation for operation in history if operation.outcome == "unknown"]
    for count in range(len(open_ones) + 1):
        for chosen in combinations(open_ones, count):
            if any(_explains(order, 0, {}) for order in _orders([*sure, *chosen])):
                return True
    return False


def _orders(operations: list[Operation]) -> Iterator[tuple[Operation, ...]]:
    for order in permutations(operations):
        latest_invoke = float("-inf")
        for operation in order:
            if operation.returned is not None and operation.returned < latest_invoke:
                break
            latest_invoke = max(latest_invoke, operation.invoked)
        else:
            yield order


def _explains(order: Sequence[Operation], position: int, cells: dict[str, Cell]) -> bool:
    if position == len(order):
        return True
    return any(_explains(order, position + 1, after) for after in _after(order[position], cells))


def _after(operation: Operation, cells: dict[str, Cell]) -> Iterator[dict[str, Cell]]:
    """The worlds after the operation, none if its answer cannot be given in this one."""
    argument, result = operation.argument or {}, operation.result
    if operation.kind == "scan":
        if operation.outcome == "unknown":
            yield cells
            return
        world: dict[str, Cell] | None = dict(cells)
        for key in argument["keys"]:
            if world is not None:
                world = _run("get", key, {}, "ok", result["items"].get(key), world)
        if world is not None:
            yield world
    elif operation.kind == "txn":
        yield from _after_txn(operation, cells)
    else:
        after = _run(operation.kind, operation.key, argument, operation.outcome, result, dict(cells))
        if after is not None:
            yield after


def _after_txn(operation: Operation, cells: dict[str, Cell]) -> Iterator[dict[str, Cell]]:
    argument = operation.argument
    known = operation.outcome == "ok"
    for branch in ("then", "else"):
        if known and operation.result["succeeded"] != (branch == "then"):
            continue
        for world in _compare(argument["if"], branch == "then", cells):
            after: dict[str, Cell] | None = dict(world)
            for number, step in enumerate(argument[branch]):
                outcome = "ok" if known else "unknown"
                told = operation.result["results"][number] if known else None
                if after is not None:
                    after = _run(step["kind"], step["key"], step["argument"] or {}, outcome, told, after)
            if after is not None:
                yield after


def _compare(
    compares: list[dict[str, Any]], wanted: bool, cells: dict[str, Cell]
) -> Iterator[dict[str, Cell]]:
    if wanted:
        world: dict[str, Cell] | None = dict(cells)
        for compare in compares:
            if world is None:
                return
            if compare["field"] == "value":
                world = _run("get", compare["key"], {}, "value", {"value": compare["eq"]}, world)
            else:
                world = _at_revision(compare["key"], compare["eq"], world)
        if world is not None:
            yield world
        return
    for compare in compares:
        value, revision, _ = cells.get(compare["key"], (None, 0, 0))
        if compare["field"] == "value":
            differs = value != compare["eq"]
        elif compare["eq"] == 0:
            differs = value is not None
        else:
            differs = value is None or revision != compare["eq"]
        if differs:
            yield dict(cells)


def _at_revision(key: str, wanted: int, cells: dict[str, Cell]) -> dict[str, Cell] | None:
    value, revision, floor = cells.get(key, (None, 0, 0))
    if wanted == 0:
        return cells if value is None else None
    if value is None:
        return None
    if revision is None and wanted > floor:
        return {**cells, key: (value, wanted, wanted)}
    return cells if revision == wanted else None


def _run(
    kind: str, key: str, argument: dict[str, Any], outcome: str, result: Any, cells: dict[str, Cell]
) -> dict[str, Cell] | None:
    value, _, floor = cells.get(key, (None, 0, 0))
    if kind == "get":
        if outcome == "unknown":
            return cells
        if outcome == "value":
            return cells if value == result["value"] else None
        if result is None:
            return cells if value is None else None
        if value != result["value"]:
            return None
        told = result.get("revision")
        return cells if told is None else _at_revision(key, told, cells)
    if outcome == "conflict":
        current = (result or {}).get("current_revision")
        if current is not None:
            return _at_revision(key, current, cells)
        if "if_revision" in argument and value is not None and cells[key][1] is None:
            return cells  # its revision was never told, so it may well be another one
        return cells if _precondition(argument, key, cells) is None else None
    world = _precondition(argument, key, cells)
    if world is None:
        return None
    value, _, floor = world.get(key, (None, 0, 0))
    if kind == "delete" and value is None:
        return world if outcome == "unknown" or result["deleted"] == 0 else None
    if kind == "delete" and outcome == "ok" and result["deleted"] == 0:
        return None
    if kind == "put" and outcome == "ok" and (result.get("created", value is None) != (value is None)):
        return None
    written = {"delete": None, "put": argument.get("value"), "cas": argument.get("value")}.get(kind)
    if kind == "incr":
        try:
            written = str(int(value or "0") + argument["by"])
        except ValueError:
            return None
        if outcome == "ok" and result["value"] != int(written):
            return None
    told = (result or {}).get("revision") if outcome == "ok" else None
    if told is not None and told <= floor:
        return None
    return {**world, key: (written, told, floor if told is None else told)}


def _precondition(argument: dict[str, Any], key: str, cells: dict[str, Cell]) -> dict[str, Cell] | None:
    value = cells.get(key, (None, 0, 0))[0]
    if argument.get("if_revision"):
        return _at_revision(key, argument["if_revision"], cells)
    if argument.get("if_absent") and value is not None:
        return None
    if "expected" in argument and argument["expected"] != value:
        return None
    return cells


class World:
    """A correct store that answers in one order; its histories are linearizable by construction."""

    def __init__(self, dice: random.Random, tells_revisions: bool, numbers: bool) -> None:
        self.dice = dice
        self.tells_revisions = tells_revisions
        self.numbers = numbers
        self.cells: dict[str, tuple[str, int]] = {}
        self.revision = 0

    def operation(self, process: int, keys: Sequence[str]) -> Operation:
        dice = self.dice
        kinds = ["put", "put", "get", "get", "delete", "cas", "put_if", "scan", "txn"]
        kind = dice.choice([*kinds, "incr", "incr"] if self.numbers else kinds)
        key = dice.choice(keys)
        if kind == "scan":
            items = {name: self._item(name) for name in keys if name in self.cells}
            return Operation(process, "scan", "", {"keys": list(keys)}, result={"items": items}, outcome="ok")
        if kind == "txn":
            return self._txn(process, keys)
        argument: dict[str, Any] | None = None
        if kind == "put_if":
            kind = "put"
            absent = dice.random() < 0.3
            guess = self.cells.get(key, ("", 1))[1] if dice.random() < 0.7 else dice.randint(1, 6)
            argument = {"value": self._value(), **({"if_absent": True} if absent else {"if_revision": guess})}
        elif kind == "put":
            argument = {"value": self._value()}
        elif kind == "incr":
            argument = {"by": dice.choice([1, 1, 2])}
        elif kind == "cas":
            held = self.cells[key][0] if key in self.cells else None
            argument = {"expected": held if dice.random() < 0.6 else self._value(), "value": self._value()}
        outcome, result = self._do(kind, key, argument or {})
        return Operation(process, kind, key, argument, outcome=outcome, result=result)  # type: ignore[arg-type]

    def _value(self) -> str:
        return str(self.dice.randint(1, 3)) if self.numbers else self.dice.choice("abc")

    def _item(self, key: str) -> dict[str, Any] | None:
        if key not in self.cells:
            return None
        value, revision = self.cells[key]
        return {"value": value, "revision": revision} if self.tells_revisions else {"value": value}

    def _told(self, **fields: Any) -> dict[str, Any]:
        return {**fields, "revision": self.revision} if self.tells_revisions else fields

    def _do(self, kind: str, key: str, argument: dict[str, Any]) -> tuple[str, Any]:
        held = self.cells.get(key)
        if kind == "get":
            return "ok", self._item(key)
        wanted = argument.get("if_revision")
        refused = (wanted and (held is None or held[1] != wanted)) or (argument.get("if_absent") and held)
        if refused or ("expected" in argument and argument["expected"] != (held[0] if held else None)):
            tells = self.tells_revisions and "expected" not in argument
            return "conflict", {"current_revision": held[1] if held else 0} if tells else None
        if kind == "delete":
            if held is None:
                return "ok", {"deleted": 0}
            self.revision += 1
            del self.cells[key]
            return "ok", self._told(deleted=1)
        self.revision += 1
        if kind == "incr":
            number = int(held[0] if held else "0") + argument["by"]
            self.cells[key] = (str(number), self.revision)
            return "ok", self._told(value=number)
        self.cells[key] = (argument["value"], self.revision)
        if kind == "cas":
            return "ok", self._told()
        return "ok", self._told(created=held is None) if self.dice.random() < 0.5 else self._told()

    def _txn(self, process: int, keys: Sequence[str]) -> Operation:
        dice = self.dice
        compares = []
        for key in dice.sample(list(keys), dice.randint(0, len(keys))):
            held = self.cells.get(key)
            if self.tells_revisions and dice.random() < 0.5:
                compares.append({"key": key, "field": "revision", "eq": held[1] if held else 0})
            else:
                guess = (held[0] if held else None) if dice.random() < 0.7 else self._value()
                compares.append({"key": key, "field": "value", "eq": guess})
        branches: dict[str, list[dict[str, Any]]] = {
            name: [
                {"kind": kind, "key": key, "argument": {"value": self._value()} if kind == "put" else None}
                for key in keys
                if (kind := dice.choice(["put", "get", "none"])) != "none"
            ]
            for name in ("then", "else")
        }
        succeeded = all(self._matches(compare) for compare in compares)
        steps = branches["then" if succeeded else "else"]
        results = [self._do(step["kind"], step["key"], step["argument"] or {})[1] for step in steps]
        argument = {"if": compares, **branches}
        return Operation(
            process, "txn", "", argument, outcome="ok", result={"succeeded": succeeded, "results": results}
        )

    def _matches(self, compare: dict[str, Any]) -> bool:
        held = self.cells.get(compare["key"])
        if compare["field"] == "revision":
            return bool((held[1] if held else 0) == compare["eq"])
        return bool((held[0] if held else None) == compare["eq"])


def random_history(seed: int, length: int = 5) -> list[Operation]:
    """A history of a correct store, in half of the cases with one answer falsified."""
    dice = random.Random(seed)
    world = World(dice, tells_revisions=dice.random() < 0.6, numbers=dice.random() < 0.3)
    keys = ["x"] if dice.random() < 0.5 else ["x", "y"]
    history = []
    for number in range(length):
        operation = world.operation(number, keys)
        operation.invoked = number - dice.choice([0.2, 0.8, 1.7, 2.6])
        operation.returned = number + dice.choice([0.2, 0.8, 1.7, 2.6])
        if dice.random() < 0.25:
            operation.outcome, operation.returned, operation.result = "unknown", None, None
        history.append(operation)
    if dice.random() < 0.5:
        _falsify(dice, history)
    return history


def _falsify(dice: random.Random, history: list[Operation]) -> None:
    operation = dice.choice(history)
    result = operation.result
    if operation.outcome == "unknown":
        operation.outcome, operation.returned = "refused", operation.invoked + 1
    elif operation.kind == "scan":
        for item in result["items"].values():
            item["value"] = dice.choice("abc123")
    elif operation.kind == "txn":
        result["succeeded"] = result["succeeded"]
        for told in result["results"]:
            if told and "value" in told:
                told["value"] = dice.choice("abc123")
            elif told and "revision" in told:
                told["revision"] += dice.choice([-1, 1])
    elif result is None and operation.kind == "get":
        operation.result = {"value": dice.choice("abc123")}
    elif isinstance(result, dict):
        field = dice.choice(sorted(result) or [""])
        if field in ("revision", "current_revision"):
            result[field] = max(0, result[field] + dice.choice([-2, -1, 1]))
        elif field == "value":
            result[field] = result[field] + 1 if operation.kind == "incr" else dice.choice("abc123")
        elif field == "created":
            result[field] = not result[field]
        elif field == "deleted" and "revision" in result:
            operation.result = {"deleted": 0}
