"""Clients that look closely for a moment, at one shard and at every node at once, when a fault was staged.

Others come to such a moment only by chance, and by then they often wait for an answer that does not come. Of
these, one reads at each node, again and again and with little patience, and one begins to write there.
"""

from __future__ import annotations

from random import Random
from typing import Any

from chaos.history import History
from kvstore.types import NodeId, ShardId
from tests.sim.caller import Ask
from tests.sim.clients import Client
from tests.sim.cluster import SimCluster

READ_PACE_S = 0.03
WRITE_PACE_S = 0.03
READ_PATIENCES_S = (0.01, 0.06, 0.06)
"""Who waits for an answer asks nothing later, which might be answered wrongly."""
WAKES_S = 0.06
WRITE_PATIENCE_S = 0.4
WRITE_DEADLINE_S = 2.5
LEASE_SHARE = 0.6


class Prober(Client):
    """Asks only while `cluster.probed` says so. A reader asks at its `place` only, a writer there first."""

    def __init__(
        self,
        cluster: SimCluster,
        number: int,
        history: History,
        dice: Random,
        keys: dict[ShardId, str],
        place: NodeId,
        *,
        writes: bool,
    ) -> None:
        super().__init__(cluster, number, history, dice, sorted(keys.values()))
        self.place = place
        self.writes = writes
        self._key_of = keys
        self._is_awake = False
        self.is_identified = True
        self.pace_s = WRITE_PACE_S if writes else READ_PACE_S
        self.attempt_s, self.deadline_s = (WRITE_PATIENCE_S, WRITE_DEADLINE_S) if writes else (0.0, 0.0)

    def start(self) -> None:
        self.cluster.probed.wake.append(self._wake)

    def _wake(self) -> None:
        if not self._is_awake:
            self._is_awake = True
            self.home = self.place
            self.world.after(self.dice.uniform(0, WRITE_PACE_S / 2 if self.writes else WAKES_S), self._next)

    def _next(self) -> None:
        if self.is_stopped or self.world.now >= self.cluster.probed.until:
            self._is_awake = False
        elif self.writes and self.may_only_read():
            self.world.after(self.pace_s / 4, self._next)
        else:
            self.ask_next()

    def finished(self) -> None:
        self.world.after(self.dice.uniform(0, self.pace_s), self._next)

    def node(self) -> NodeId:
        if not self.writes:
            return self.place
        if self.home is None:
            self.home = self.dice.choice(self.cluster.config.node_ids())
        return self.home

    def _choose(self) -> tuple[str, str, Any, Ask]:
        key = self._key_of[self.cluster.probed.shard]
        path = f"/v1/kv/{key}"
        if self.writes:
            return self._choose_write(key, path)
        self.attempt_s = self.dice.choice(READ_PATIENCES_S)
        consistency = "?consistency=lease" if self.dice.random() < LEASE_SHARE else ""
        return "get", key, None, Ask("GET", path + consistency, {})
