"""Shrinks a violation to the few operations that cannot all be true, and says them in sentences.

A weaker history that still cannot be explained is a better explanation. Weakening never invents a
violation: a read may be left out, and a write may be turned into one of unknown outcome, since both
allow strictly more. What is still needed after all attempts is the core.
"""

import time
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from chaos.history import Operation
from chaos.linearizability import OverBudget, Search, Violation
from chaos.partitions import Partition

ATTEMPT_EXPANSIONS_MAX = 50_000
PAIRS_MAX = 400
SECONDS_MAX = 10.0
"""Shrinking ends here with what it has: a long explanation is better than a late one."""


def core_of(violation: Violation) -> list[Operation]:
    """The operations that must be believed for the contradiction, in order of invocation."""
    end = violation.operation.returned
    assert end is not None, "only an answer can contradict"
    kept = [operation for operation in violation.operations if operation.invoked <= end]
    jump = _jump_of_a_counter(kept)
    if jump:
        return jump
    return _Shrinker(violation.keys, kept, violation.operation).core()


def _jump_of_a_counter(operations: Sequence[Operation]) -> list[Operation] | None:
    """Two increments, next to each other by revision, whose values are not one increment apart.

    Only where every operation is an increment or a read that told its revision: shrinking would turn
    increments into unknown ones, any number of which explain almost everything.
    """
    increments: dict[int, Operation] = {}
    for operation in operations:
        told = operation.result or {}
        if operation.outcome != "ok" or operation.kind not in ("incr", "get"):
            return None
        if operation.kind == "incr" and "revision" in told:
            increments[told["revision"]] = operation
    for earlier, later in pairwise(sorted(increments)):
        before, after = increments[earlier], increments[later]
        if after.result["value"] - after.argument["by"] != before.result["value"]:
            return [before, after]
    return None


class _Shrinker:
    def __init__(self, keys: Sequence[str], operations: Sequence[Operation], failed: Operation) -> None:
        self._keys = keys
        self._operations = sorted(operations, key=lambda operation: operation.invoked)
        self._deadline = time.monotonic() + SECONDS_MAX
        self._failed = next(number for number, item in enumerate(self._operations) if item is failed)

    def core(self) -> list[Operation]:
        believed = [number for number, item in enumerate(self._operations) if item.outcome != "unknown"]
        # Most contradictions are between two answers, and halving would often end in a longer one.
        for number in reversed(believed[-PAIRS_MAX:]):
            pair = sorted({number, self._failed})
            if self._contradicts(pair):
                return [self._operations[member] for member in pair]
        chunk = max(1, len(believed) // 2)
        while True:
            start = 0
            while start < len(believed):
                fewer = believed[:start] + believed[start + chunk :]
                if self._contradicts(fewer):
                    believed = fewer
                else:
                    start += chunk
            if chunk == 1:
                return [self._operations[number] for number in believed]
            chunk = max(1, chunk // 2)

    def _contradicts(self, believed: Sequence[int]) -> bool:
        if time.monotonic() > self._deadline:
            return False
        kept = set(believed)
        weaker = [
            operation if number in kept else _doubted(operation)
            for number, operation in enumerate(self._operations)
        ]
        partition = Partition(self._keys, weaker)
        if len(partition.definite) == 0:
            return False
        try:
            return Search(partition, ATTEMPT_EXPANSIONS_MAX).run() is not None
        except OverBudget:
            return False


def _doubted(operation: Operation) -> Operation:
    return msgspec.structs.replace(operation, outcome="unknown", returned=None, result=None)


def explanation(core: Sequence[Operation]) -> str:
    """One line for each operation, with times relative to the first, and what is wrong with them."""
    if not core:
        return "no operation is to blame alone: the history is too large to shrink"
    first = min(operation.invoked for operation in core)
    lines = [f"  {_sentence(operation, first)}" for operation in core]
    return "\n".join(["These answers cannot all be true in any order that respects time:", *lines])


def _sentence(operation: Operation, first_s: float) -> str:
    begun = (operation.invoked - first_s) * 1000
    ended = "?" if operation.returned is None else f"{(operation.returned - first_s) * 1000:.1f}"
    where = f" at {operation.node}" if operation.node else ""
    return f"[{begun:.1f} .. {ended} ms] client {operation.process}{where}: {describe(operation)}"


def describe(operation: Operation) -> str:
    """The operation and its answer, short enough for one line."""
    result, argument = operation.result, operation.argument or {}
    answer = {"ok": "", "conflict": "conflict ", "refused": "refused ", "unknown": "unknown"}[
        operation.outcome
    ]
    if operation.kind == "get":
        told = "absent" if result is None else _told(result)
        return f"get {operation.key} -> {told if operation.outcome == 'ok' else answer}"
    if operation.kind in ("put", "cas"):
        condition = "".join(
            f" {name}={argument[name]}"
            for name in ("if_revision", "if_absent", "expected")
            if argument.get(name) is not None
        )
        call = f"{operation.kind} {operation.key} = {argument['value']}{condition}"
    elif operation.kind == "incr":
        call = f"incr {operation.key} by {argument['by']}"
    elif operation.kind == "delete":
        call = f"delete {operation.key}"
    else:
        call = f"{operation.kind} {msgspec.json.encode(operation.argument).decode()}"
    return f"{call} -> {answer}{_told(result) if result else ''}".rstrip()


def _told(result: dict[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in result.items() if value is not None)
