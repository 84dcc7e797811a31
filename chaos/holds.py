"""Judges locks: fences grow, holders never overlap in fence order, nobody loses early, who lost is told.

| kind | argument | result |
|---|---|---|
| acquire | `{"ttl_s"}`, `"is_final"`: nobody else wants it now | `{"token", "fence"}`; None: lost again |
| keepalive | `{"token"}` | `{"is_held"}` |
| release | `{"token"}` | `{"is_released"}` |
| holder | | `{"fence"}`, None: nobody holds it |

Who holds is known for sure only for a part of the time. A client surely holds from the moment it was told
(`returned`) until its TTL has passed since it last *sent* a request that was granted, or it sends a release.
The store may let it hold longer, never shorter.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chaos.history import Operation

KINDS = frozenset({"acquire", "keepalive", "release", "holder"})

DRIFT = 0.05
"""How much faster the clocks of the store may run than the clients'."""


@dataclass
class Hold:
    """One grant, as its client knows it."""

    fence: int
    asked: float
    told: float
    until: float
    """Surely held before this."""


def check_locks(history: Iterable[Operation]) -> list[str]:
    """What is wrong, in words, lock by lock."""
    by_name: dict[str, list[Operation]] = {}
    for operation in history:
        if operation.kind in KINDS:
            by_name.setdefault(operation.key, []).append(operation)
    return [f"lock {name}: {fault}" for name, own in sorted(by_name.items()) for fault in _faults(own)]


def _faults(operations: Sequence[Operation]) -> list[str]:
    holds: dict[str, Hold] = {}
    faults: list[str] = []
    for operation in operations:
        if operation.kind != "acquire":
            continue
        if operation.argument.get("is_final") and operation.outcome == "conflict":
            faults.append(f"nobody holds it any more, and it can not be had at {operation.invoked:.3f}")
        if operation.outcome == "ok" and operation.result is not None:
            until = operation.invoked + operation.argument["ttl_s"] * (1 - DRIFT)
            hold = Hold(operation.result["fence"], operation.invoked, _end(operation), until)
            holds[operation.result["token"]] = hold
    ttl_of = {
        operation.result["token"]: operation.argument["ttl_s"]
        for operation in operations
        if operation.kind == "acquire" and operation.outcome == "ok" and operation.result is not None
    }
    for operation in sorted(operations, key=lambda each: each.invoked):
        if operation.kind in ("keepalive", "release"):
            faults += _follow(operation, holds, ttl_of)
    faults += _order(list(holds.values()))
    faults += _renewals(operations, holds)
    faults += _looks(operations, list(holds.values()))
    return faults


def _end(operation: Operation) -> float:
    return float("inf") if operation.returned is None else operation.returned


def _follow(operation: Operation, holds: dict[str, Hold], ttl_of: dict[str, float]) -> list[str]:
    """Carry a hold on by what its client did. Its operations come one after the other."""
    token = operation.argument["token"]
    hold = holds.get(token)
    if hold is None:
        return [f"a token from nowhere: {token}"]
    if operation.outcome == "ok" and operation.kind == "keepalive" and not operation.result["is_held"]:
        until, hold.until = hold.until, min(hold.until, operation.invoked)
        if _end(operation) < until:
            return [f"fence {hold.fence} was lost by {_end(operation):.3f}, it lasts until {until:.3f}"]
    elif operation.kind == "release":
        until, hold.until = hold.until, min(hold.until, operation.invoked)
        is_refused = operation.outcome == "ok" and not operation.result["is_released"]
        if is_refused and _end(operation) < until:
            return [f"fence {hold.fence} was lost by {_end(operation):.3f}, it lasts until {until:.3f}"]
    elif operation.outcome == "ok":
        hold.until = max(hold.until, operation.invoked + ttl_of[token] * (1 - DRIFT))
    return []


def _order(holds: list[Hold]) -> list[str]:
    faults = []
    holds.sort(key=lambda hold: hold.fence)
    last: Hold | None = None
    for hold in holds:
        if last is not None and hold.fence == last.fence:
            faults.append(f"two holders with fence {hold.fence}")
        elif last is not None and hold.told < last.until:
            faults.append(
                f"fence {hold.fence} was granted by {hold.told:.3f}, fence {last.fence} lasts until "
                f"{last.until:.3f}"
            )
        if last is None or hold.until > last.until:
            last = hold
    highest = 0
    told = sorted(holds, key=lambda hold: hold.told)
    place = 0
    for hold in sorted(holds, key=lambda hold: hold.asked):
        while place < len(told) and told[place].told < hold.asked:
            highest = max(highest, told[place].fence)
            place += 1
        if hold.fence < highest:
            faults.append(f"fence {hold.fence} was granted after fence {highest}")
    return faults


def _renewals(operations: Sequence[Operation], holds: dict[str, Hold]) -> list[str]:
    """Who was followed by another can not renew."""
    by_told = sorted(holds.values(), key=lambda hold: hold.told)
    times = [hold.told for hold in by_told]
    highest: list[int] = []
    for hold in by_told:
        highest.append(max(hold.fence, highest[-1] if highest else 0))
    faults = []
    for operation in operations:
        if operation.kind != "keepalive" or operation.outcome != "ok" or not operation.result["is_held"]:
            continue
        own = holds.get(operation.argument["token"])
        before = bisect.bisect_left(times, operation.invoked)
        if own is not None and before and highest[before - 1] > own.fence:
            faults.append(f"fence {own.fence} was renewed after fence {highest[before - 1]} was granted")
    return faults


def _looks(operations: Sequence[Operation], holds: list[Hold]) -> list[str]:
    """Who looks sees the holder."""
    by_told = sorted(holds, key=lambda hold: hold.told)
    times = [hold.told for hold in by_told]
    faults = []
    for operation in operations:
        if operation.kind != "holder" or operation.outcome != "ok":
            continue
        seen = 0 if operation.result is None else operation.result["fence"]
        before = bisect.bisect_left(times, operation.invoked)
        for hold in by_told[max(0, before - 8) : before]:
            if _end(operation) < hold.until and seen != hold.fence:
                faults.append(f"at {_end(operation):.3f} fence {seen} was seen, {hold.fence} holds")
    return faults
