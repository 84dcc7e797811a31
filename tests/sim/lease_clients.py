"""Clients of leases and of keys with a time to live, each with its own: kept alive, left to die, revoked.

Some ids of leases are granted again right after their end, while what was said about the earlier grant may
still be on its way.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from chaos.history import History, Operation, Outcome
from chaos.lives import check_lives
from kvstore.node.requests import Response
from kvstore.store import keys
from tests.sim.caller import Ask, Attempt, Caller, parse
from tests.sim.cluster import SimCluster

_JSON = {"Content-Type": "application/json"}
LATE_MS = 1_000
"""What is due may wait so long for its removal, on a healthy cluster."""


class LeaseClient(Caller):
    def __init__(self, cluster: SimCluster, number: int, dice: Random) -> None:
        super().__init__(cluster, number, dice)
        self.own = History()
        self.loyalty = 0.5
        self.crowd: list[LeaseClient] = []
        """All of them, for the one that judges."""
        self._count = 0
        self._lease: str | None = None
        self._again: str | None = None
        """An id that was revoked and will be granted again."""
        self._keys: list[str] = []

    def ask_next(self) -> None:
        draw = self.dice.random()
        if self._keys and draw < 0.35:
            self._look(self.dice.choice(self._keys))
        elif draw < 0.5:
            self._keep({"ttl_s": self.dice.choice((0.5, 2.0, 5.0))})
        elif self._lease is None:
            self._grant(self._fresh("l"))
        elif draw < 0.63:
            self._keep({"lease": self._lease})
        elif draw < 0.7:
            self._keep_two({"lease": self._lease})
        elif draw < 0.9:
            self._renew(self._lease)
        elif draw < 0.96:
            self._revoke(self._lease)
        else:
            # Left to die.
            self._lease = None
            self.finished()

    def _fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self.number}-{self._count}"

    def _ask(self, kind: str, subject: str, argument: Any, ask: Ask, answered: Any, *more: str) -> None:
        """`more`: further subjects of the same request."""
        operations = [
            self.own.invoke(self.number, kind, each, argument, self.world.now) for each in (subject, *more)
        ]

        def done(outcome: Outcome, response: Response | None) -> None:
            if response is not None and response.status in (404, 412) and kind != "look":
                outcome = "conflict"
            elif response is not None and response.status == 409:
                # Others held the keys of this transaction; an earlier copy of it may not have met them.
                outcome = "unknown" if attempt.was_unknown else "refused"
            result = answered(response) if outcome == "ok" and response is not None else None
            for operation in operations:
                operation.node = attempt.node
                self.own.complete(operation, outcome, self.world.now, result)
                self._follow(operation)
            self.finished()

        attempt = Attempt(self, ask, done)
        attempt.send()

    def _follow(self, operation: Operation) -> None:
        """Never touch again what did not answer."""
        kind, outcome = operation.kind, operation.outcome
        if kind == "keep" and outcome == "ok" and operation.key not in self._keys:
            self._keys.append(operation.key)
            del self._keys[:-12]
        elif kind == "keep" and outcome != "ok" and operation.key in self._keys:
            self._keys.remove(operation.key)
        if kind == "grant":
            self._lease = operation.key if outcome == "ok" else None
        elif kind in ("renew", "revoke") and outcome in ("unknown", "conflict"):
            self._lease = None
        elif kind == "revoke" and outcome == "ok":
            self.cluster.states["lease revoked"] += 1
            self._lease = None
            self._again = operation.key if self.dice.random() < 0.5 else None

    def _grant(self, lease: str) -> None:
        if self._again is not None:
            lease, self._again = self._again, None
        ttl_s = self.dice.choice((1.0, 2.0, 4.0))
        body = json.dumps({"ttl": ttl_s, "id": lease}).encode()
        self._ask("grant", lease, {"ttl_s": ttl_s}, Ask("POST", "/v1/leases", _JSON, body), lambda _: {})

    def _renew(self, lease: str) -> None:
        def left(response: Response) -> dict[str, float]:
            return {"left_s": parse(response.body)["ttl_ms"] / 1000}

        self._ask("renew", lease, None, Ask("PUT", f"/v1/leases/{lease}/keepalive", {}), left)

    def _revoke(self, lease: str) -> None:
        def is_complete(response: Response) -> dict[str, bool]:
            return {"is_complete": response.status == 200}

        self._ask("revoke", lease, None, Ask("DELETE", f"/v1/leases/{lease}", {}), is_complete)

    def _keep(self, argument: dict[str, Any]) -> None:
        key = self.dice.choice(self._keys) if self._keys and self.dice.random() < 0.3 else self._fresh("t")
        how = f"lease={argument['lease']}" if "lease" in argument else f"ttl={argument['ttl_s']}s"
        self._ask("keep", key, argument, Ask("PUT", f"/v1/kv/{key}?{how}", {}, b"v"), lambda _: {})

    def _keep_two(self, argument: dict[str, Any]) -> None:
        """In one transaction, most often of two shards."""
        keys = [self._fresh("t"), self.dice.choice(self._keys) if self._keys else self._fresh("t")]
        puts = [{"op": "put", "key": key, "value": "v", **argument} for key in keys]
        self.cluster.states["transaction with a lease"] += 1
        body = json.dumps({"then": puts}).encode()
        self._ask("keep", keys[0], argument, Ask("POST", "/v1/txn", _JSON, body), lambda _: {}, keys[1])

    def _look(self, key: str) -> None:
        def seen(response: Response) -> dict[str, bool]:
            return {"is_there": response.status == 200}

        self._ask("look", key, None, Ask("GET", f"/v1/kv/{key}", {}), seen)

    # ---- the verdict -----------------------------------------------------------------------------

    def judge(self) -> list[str]:
        if not self.crowd:
            return []
        operations = [operation for client in self.crowd for operation in client.own.operations]
        jumps = self.cluster.clock_jumps

        def ahead(now: float) -> float:
            return sum(seconds for at, seconds in jumps if at <= now)

        return [f"life {fault}" for fault in check_lives(operations, ahead) + self._left_behind()]

    def _left_behind(self) -> list[str]:
        """What should have gone by now, on a cluster that has been well for a while."""
        faults = []
        for shard in range(self.cluster.config.shards):
            leader = self.cluster.leader_of(shard)  # type: ignore[arg-type]
            if leader is None:
                continue
            replica = leader.node.host.replicas[shard]  # type: ignore[index]
            machine, clock_ms = replica.machine, replica.known_clock_ms
            due_ms = machine.next_deadline_ms
            if due_ms is not None and due_ms < clock_ms - LATE_MS:
                faults.append(f"shard {shard} has something due for {clock_ms - due_ms} ms")
            if machine.has_lease_ends:
                faults.append(f"shard {shard} has ends of leases that were not carried out")
            faults += self._orphans(machine._engine, shard)
        return faults

    def _orphans(self, engine: Any, shard: int) -> list[str]:
        """Keys tied to a grant that does not live."""
        faults = []
        for record_key, _ in engine.scan(keys.LEASED_KEY, b"l"):
            length = record_key[1]
            lease, rest = record_key[2 : 2 + length], record_key[2 + length :]
            home = self.cluster.leader_of(self.cluster.shard_of(f"_leases/{lease.decode()}"))
            if home is None:
                continue
            where = self.cluster.shard_of(f"_leases/{lease.decode()}")
            living = home.node.host.replicas[where].machine.query(["lease", lease, None])
            if living is None or living[0] != int.from_bytes(rest[:8], "big"):
                faults.append(f"shard {shard}: key {rest[8:]!r} outlived its lease {lease!r}")
        return faults
