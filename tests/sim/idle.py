"""Shards at rest, in which something must end by time: at the end of a run, when nobody asks for anything.

A key with a time to live is written to each shard, and then leadership changes hands again and again. Nothing
else moves the shards' clocks meanwhile, and yet no change of leader may make a key live longer, or shorter
(pitfalls 4, 42).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from kvstore.node.requests import Response
from kvstore.types import ShardId, node_of

if TYPE_CHECKING:
    from tests.sim.faults import Faults

TTL_S = 5
EARLY_S = 0.9 * TTL_S
"""Clocks differ in rate by less than that."""
TURNS_S = (1.2, 2.2, 3.2, 4.2, 5.2, 6.2, 7.2)
"""When leaders change. A key that each of them gave its whole time anew would outlive the rest."""


class Idle:
    """`begin` it when the clients have stopped; `judge` tells what ended too soon or too late."""

    def __init__(self, faults: Faults, dice: Random) -> None:
        self.cluster = faults.cluster
        self.world = faults.world
        self.dice = dice
        self.failures: list[str] = []
        shards = range(self.cluster.config.shards)
        names = [f"idle-{number}" for number in range(200)]
        self._keys = {
            ShardId(shard): next(name for name in names if self.cluster.shard_of(name) == shard)
            for shard in shards
        }
        self._kept: set[ShardId] = set()

    def begin(self) -> None:
        for shard, key in self._keys.items():
            self._put(shard, key)
        for delay_s in TURNS_S:
            self.world.after(delay_s, self._turn)
        self.world.after(EARLY_S, self._look_early)

    def _put(self, shard: ShardId, key: str) -> None:
        def done(response: Response | None) -> None:
            if response is not None and response.status in (200, 201):
                self._kept.add(shard)

        name = self.dice.choice(self.cluster.config.node_ids())
        self.cluster.request(name, "PUT", f"/v1/kv/{key}?ttl={TTL_S}s", {"KV-Timeout": "1s"}, b"1", done)

    def _turn(self) -> None:
        for shard in self._keys:
            leader = self.cluster.leader_of(shard)
            if leader is not None:
                core = leader.node.host.replicas[shard].core
                heirs = [node_of(voter) for voter in core.configuration.voters if voter != core.me]
                leader.node.ask_transfer(shard, self.dice.choice(heirs))

    def _is_there(self, shard: ShardId) -> bool:
        """By what any replica has applied."""
        query = ["get", self._keys[shard].encode(), None]
        replicas = (process.node.host.replicas.get(shard) for process in self.cluster.processes.values())
        return any(replica is not None and replica.machine.query(query) is not None for replica in replicas)

    def _look_early(self) -> None:
        gone = [shard for shard in sorted(self._kept) if not self._is_there(shard)]
        self.failures += [f"life of a key in idle shard {shard} ended too soon" for shard in gone]

    def judge(self) -> list[str]:
        left = [shard for shard in sorted(self._kept) if self._is_there(shard)]
        return self.failures + [f"life of a key in idle shard {shard} did not end in time" for shard in left]
