"""Long histories of a store that is correct by construction, with many clients at once."""

import heapq
import random
from typing import Any

from chaos.history import Operation


def busy_history(operations: int, keys: int, clients: int, unknown: float, seed: int) -> list[Operation]:
    """Each client does one operation after the other; each takes effect at a moment inside its interval.

    `unknown` is the share of operations whose answer is lost; every second of those took effect.
    """
    dice = random.Random(seed)
    ready = [(dice.random() / 100, client) for client in range(clients)]
    heapq.heapify(ready)
    moments = []
    for number in range(operations):
        begun, client = heapq.heappop(ready)
        ended = begun + dice.uniform(0.001, 0.01)
        moments.append((dice.uniform(begun, ended), begun, ended, client, number))
        heapq.heappush(ready, (ended, client))
    store = _Store(dice)
    history = []
    for _, begun, ended, client, number in sorted(moments):
        operation = store.next_operation(client, f"k{dice.randrange(keys)}", number, dice.random() < unknown)
        operation.invoked = begun
        operation.returned = None if operation.outcome == "unknown" else ended
        history.append(operation)
    return history


class _Store:
    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.cells: dict[str, tuple[str, int]] = {}
        self.revision = 0
        self.last_seen: dict[str, int] = {}

    def next_operation(self, client: int, key: str, number: int, is_lost: bool) -> Operation:
        kind = self.dice.choices(["get", "put", "swap", "delete"], [45, 35, 10, 10])[0]
        held = self.cells.get(key)
        takes_effect = not is_lost or self.dice.random() < 0.5
        argument: dict[str, Any] | None = None
        outcome = "ok"
        result: dict[str, Any] | None = None
        if kind == "get":
            result = {"value": held[0], "revision": held[1]} if held else None
        elif kind == "delete":
            result = {"deleted": 0}
            if held:
                result = {"deleted": 1, "revision": self._write(key, None, takes_effect)}
        else:
            argument = {"value": f"v{number}"}
            if kind == "swap":
                argument["if_revision"] = self.last_seen.get(key, 1)
            if kind == "swap" and (held is None or held[1] != argument["if_revision"]):
                outcome, result = "conflict", {"current_revision": held[1] if held else 0}
            else:
                revision = self._write(key, argument["value"], takes_effect)
                result = {"revision": revision, "created": held is None}
        if is_lost:
            outcome, result = "unknown", None
        elif result and result.get("revision"):
            self.last_seen[key] = result["revision"]
        name = "put" if kind == "swap" else kind
        return Operation(client, name, key, argument, outcome=outcome, result=result)  # type: ignore[arg-type]

    def _write(self, key: str, value: str | None, takes_effect: bool) -> int:
        if takes_effect:
            self.revision += 1
            if value is None:
                del self.cells[key]
            else:
                self.cells[key] = (value, self.revision)
        return self.revision
