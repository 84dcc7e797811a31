"""Clients of a few locks that many want: taken, waited for, kept, given back or left lying.

They hang up now and then while they wait, and sometimes go without giving back what they hold.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from chaos.history import History, Operation, Outcome
from chaos.holds import check_locks
from kvstore.node.requests import Response
from tests.sim.caller import Ask, Attempt, Caller, parse
from tests.sim.cluster import SimCluster

TTL_S = 2.0
_JSON = {"Content-Type": "application/json"}


class LockClient(Caller):
    def __init__(self, cluster: SimCluster, number: int, dice: Random, names: list[str]) -> None:
        super().__init__(cluster, number, dice)
        self.names = names
        self.loyalty = 0.5
        self.own = History()
        self.crowd: list[LockClient] = []
        """All of them, for the one that judges."""

    def ask_next(self) -> None:
        name = self.dice.choice(self.names)
        if self.dice.random() < 0.2:
            self._ask("holder", name, None, Ask("GET", f"/v1/locks/{name}", {}), self._seen)
            return
        wait_s = self.dice.choice((0.0, 0.3, 1.0))
        body = json.dumps({"ttl": TTL_S, "wait": wait_s}).encode()
        ask = Ask("POST", f"/v1/locks/{name}", _JSON, body)
        self._ask("acquire", name, {"ttl_s": TTL_S}, ask, self._acquired)

    def _ask(self, kind: str, name: str, argument: Any, ask: Ask, answered: Any) -> None:
        operation = self.own.invoke(self.number, kind, name, argument, self.world.now)

        def done(outcome: Outcome, response: Response | None) -> None:
            operation.node = attempt.node
            answered(operation, outcome, response)

        attempt = Attempt(self, ask, done)
        attempt.send()
        if kind == "acquire" and self.dice.random() < 0.15:
            self.world.after(self.dice.uniform(0, 1.0), attempt.hang_up)

    def _complete(self, operation: Operation, outcome: Outcome, result: Any = None) -> None:
        self.own.complete(operation, outcome, self.world.now, result)

    def _seen(self, operation: Operation, outcome: Outcome, response: Response | None) -> None:
        found = None
        if response is not None and response.status == 200:
            found = {"fence": parse(response.body)["fence"]}
        self._complete(operation, outcome, found)
        self.finished()

    def _acquired(self, operation: Operation, outcome: Outcome, response: Response | None) -> None:
        if response is None or response.status != 200:
            assert response is None or response.status in (404, 409), response
            self._complete(operation, outcome if response is None else "conflict")
            self.finished()
            return
        content = parse(response.body)
        self.cluster.states["lock granted"] += 1
        self._complete(operation, "ok", {"token": content["token"], "fence": content["fence"]})
        self._hold(operation.key, content["token"], self.dice.choice((0, 0, 1, 3)))

    def _hold(self, name: str, token: str, renewals: int) -> None:
        path, argument = f"/v1/locks/{name}/{token}", {"token": token}
        draw = self.dice.random()

        def kept(operation: Operation, outcome: Outcome, response: Response | None) -> None:
            is_held = response is not None and response.status == 200
            self._complete(operation, outcome, {"is_held": is_held})
            if outcome != "ok" or not is_held:
                self.finished()
            else:
                self.world.after(self.dice.uniform(0, 0.5), self._hold, name, token, renewals - 1)

        def released(operation: Operation, outcome: Outcome, response: Response | None) -> None:
            is_released = response is not None and response.status == 200
            self._complete(operation, outcome, {"is_released": is_released})
            self.finished()

        if renewals:
            self._ask("keepalive", name, argument, Ask("PUT", path + "/keepalive", {}), kept)
        elif draw < 0.85:
            self._ask("release", name, argument, Ask("DELETE", path, {}), released)
        else:
            self.finished()

    def judge(self) -> list[str]:
        # Where a clock jumps ahead of the world, time in force is shorter than what clients measure.
        if not self.crowd or self.cluster.counts.get("clock_jumps"):
            return []
        faults = check_locks(operation for client in self.crowd for operation in client.own.operations)
        return faults + self._overdue()

    def _overdue(self) -> list[str]:
        """Nobody may wait behind somebody whose time has passed long ago."""
        faults = []
        for name in self.names:
            key = b"_locks/" + name.encode()
            leader = self.cluster.leader_of(self.cluster.shard_of(key.decode()))
            if leader is None:
                continue
            replica = leader.node.host.replicas[self.cluster.shard_of(key.decode())]
            found = replica.machine.query(["holder", key])
            if found is not None and found[2] < replica.known_clock_ms - 1_000:
                faults.append(f"lock {name} is held {replica.known_clock_ms - found[2]} ms beyond its time")
        return faults
