"""Judges what ends by time: nothing dies early, nothing comes back, nothing outlives the end of its lease.

Each key and lease belongs to one client, which asks one thing after the other, and never again once an
answer did not come.

| kind | of | argument | result |
|---|---|---|---|
| keep | key | `{"ttl_s"}` or `{"lease"}` | `{}`; None: there is no such lease |
| look | key | `{"is_final"?}` | `{"is_there"}` |
| grant | lease | `{"ttl_s"}` | `{}`; None: one of this id lives |
| renew | lease | | `{"left_s"}`; None: there is no such lease |
| revoke | lease | | `{"is_complete"}`; None: there is no such lease |

A None may also be a conflict.

What is kept surely lives until its time has passed since the request that was granted was *sent*. The store
may let it live longer by an outage, never shorter; how much longer shows in the final looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from chaos.history import Operation

KINDS = frozenset({"keep", "look", "grant", "renew", "revoke"})
DRIFT = 0.05
"""How much faster the clocks of the store may run than the clients'."""

NEVER = float("-inf")


@dataclass
class Life:
    """Of a lease, or of a key with a TTL."""

    until: float = NEVER
    """Surely alive before this."""
    is_over: bool = False
    """Surely ended, until it is begun anew."""
    keys: set[str] = field(default_factory=set)


@dataclass
class Kept:
    life: Life
    is_gone: bool = False
    """Was seen to be gone."""


Ahead = Callable[[float], float]
"""How many seconds the shard clocks may have run ahead by then, beyond drift."""


def check_lives(history: Iterable[Operation], ahead: Ahead = lambda now: 0.0) -> list[str]:
    """What is wrong, in words, client by client."""
    by_client: dict[int, list[Operation]] = {}
    for operation in history:
        if operation.kind in KINDS:
            by_client.setdefault(operation.process, []).append(operation)
    return [fault for own in by_client.values() for fault in _Judge(ahead).faults(own)]


class _Judge:
    def __init__(self, ahead: Ahead) -> None:
        self._ahead = ahead
        self._leases: dict[str, Life] = {}
        self._keys: dict[str, Kept] = {}
        self._faults: list[str] = []

    def faults(self, operations: list[Operation]) -> list[str]:
        for operation in operations:
            if operation.outcome in ("ok", "conflict"):
                getattr(self, f"_{operation.kind}")(operation)
            elif operation.outcome == "unknown":
                self._lose_sight(operation)
        return self._faults

    def _lose_sight(self, operation: Operation) -> None:
        """It may take effect at any time, or never."""
        if operation.kind in ("grant", "renew", "revoke"):
            life = self._leases.pop(operation.key, None)
            for key in life.keys if life is not None and operation.kind == "revoke" else ():
                self._keys.pop(key, None)
        elif operation.kind == "keep":
            self._keys.pop(operation.key, None)

    def _say(self, operation: Operation, what: str) -> None:
        self._faults.append(f"{operation.kind} {operation.key} at {operation.invoked:.3f}: {what}")

    def _surely_lives(self, life: Life, now: float | None) -> bool:
        return now is not None and not life.is_over and now < life.until - self._ahead(now)

    def _grant(self, operation: Operation) -> None:
        life = self._leases.get(operation.key)
        if operation.result is None:
            if life is not None and life.is_over:
                self._say(operation, "refused, although the lease of this id has ended")
            return
        if life is not None and self._surely_lives(life, operation.returned):
            self._say(operation, f"granted, although one of this id lives until {life.until:.3f}")
        ttl_s = operation.argument["ttl_s"]
        self._leases[operation.key] = Life(operation.invoked + ttl_s * (1 - DRIFT))

    def _renew(self, operation: Operation) -> None:
        life = self._leases.get(operation.key)
        if life is None:
            return
        if operation.result is None:
            if self._surely_lives(life, operation.returned):
                self._say(operation, f"not found, although it lives until {life.until:.3f}")
            life.until, life.is_over = NEVER, True
        elif life.is_over:
            self._say(operation, "renewed, although it has ended")
        else:
            until = operation.invoked + operation.result["left_s"] * (1 - DRIFT)
            life.until = max(life.until, until)

    def _revoke(self, operation: Operation) -> None:
        life = self._leases.get(operation.key)
        if life is None:
            return
        if operation.result is None and self._surely_lives(life, operation.returned):
            self._say(operation, f"not found, although it lives until {life.until:.3f}")
        life.until, life.is_over = NEVER, True
        if operation.result is not None and operation.result["is_complete"]:
            for key in life.keys:
                kept = self._keys.get(key)
                if kept is not None and kept.life is life:
                    kept.is_gone = True

    def _keep(self, operation: Operation) -> None:
        ttl_s, lease = operation.argument.get("ttl_s"), operation.argument.get("lease")
        if lease is None:
            self._keys[operation.key] = Kept(Life(operation.invoked + ttl_s * (1 - DRIFT)))
            return
        life = self._leases.get(lease)
        if life is None:
            self._keys.pop(operation.key, None)
        elif operation.result is None:
            if self._surely_lives(life, operation.returned):
                self._say(operation, f"no lease {lease}, although it lives until {life.until:.3f}")
            life.until, life.is_over = NEVER, True
        elif life.is_over:
            self._say(operation, f"tied to lease {lease}, which has ended")
        else:
            life.keys.add(operation.key)
            self._keys[operation.key] = Kept(life)

    def _look(self, operation: Operation) -> None:
        kept = self._keys.get(operation.key)
        if operation.result["is_there"]:
            if operation.argument and operation.argument.get("is_final"):
                self._say(operation, "still there long after its time")
            if kept is not None and kept.is_gone:
                self._say(operation, "is there again, or still, behind its end")
            return
        if kept is None:
            return
        if not kept.is_gone and self._surely_lives(kept.life, operation.returned):
            self._say(operation, f"gone, although it lives until {kept.life.until:.3f}")
        kept.is_gone = True
