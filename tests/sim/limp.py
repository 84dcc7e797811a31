"""One lasting fault that a cluster must live with: every shard goes on, through its whole nodes.

The random faults of a run end too soon to tell whether the cluster would ever have got over them. So some
runs end with one that does not: a node that is deaf or mute, two that do not hear each other, a disk that
hangs, a process that is stopped (pitfalls 21, 22).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from kvstore.node.requests import Response
from kvstore.types import NodeId, ShardId

if TYPE_CHECKING:
    from tests.sim.faults import Faults

MANNERS = ("deaf", "mute", "pair", "hung disk", "stopped")
LIMP_S = 15.0
"""Long enough for a leader to notice, to be replaced, and for the answer."""
SETTLE_S = 2.5
"""The fault is there for so long before the first question."""
ASK_AGAIN_S = 1.0


class Limp:
    """Begin it, run the world until `is_over` or `LIMP_S` have passed, then `end` it."""

    def __init__(self, faults: Faults, dice: Random) -> None:
        self.faults = faults
        self.cluster = faults.cluster
        self.world = faults.world
        self.dice = dice
        self.manner = dice.choice(MANNERS)
        self.lame = self._choose_node()
        self._keys = {self.cluster.shard_of(key): key for key in (f"limp-{number}" for number in range(200))}
        self.waiting = set(self._keys)
        """Shards that have not served since."""

    def _choose_node(self) -> NodeId:
        """Mostly one that leads."""
        shard = ShardId(self.dice.randrange(self.cluster.config.shards))
        leader = self.cluster.leader_of(shard)
        if leader is not None and self.dice.random() < 0.75:
            return leader.name
        return self.dice.choice(self.cluster.config.node_ids())

    def begin(self) -> None:
        network, others = self.cluster.network, [n for n in self.cluster.config.node_ids() if n != self.lame]
        if self.manner == "deaf":
            network.cut |= {(other, self.lame) for other in others}
        elif self.manner == "mute":
            network.cut |= {(self.lame, other) for other in others}
        elif self.manner == "pair":
            other = self.dice.choice(others)
            network.cut |= {(self.lame, other), (other, self.lame)}
        elif self.manner == "hung disk":
            self.cluster.machines[self.lame].disk.hung_until = self.world.now + LIMP_S + SETTLE_S
            self.cluster.machines[self.lame].disk.hung_lane = "wal"
        elif self.lame in self.cluster.processes:
            self.cluster.processes[self.lame].runtime.paused_until = self.world.now + LIMP_S + SETTLE_S
        self.faults.fired[f"limp: {self.manner}"] = 1
        self.world.note(f"limp: {self.manner} {self.lame}")
        self.world.after(SETTLE_S, self._ask)

    def _ask(self) -> None:
        if not self.waiting:
            return
        for shard in sorted(self.waiting):
            whole = [name for name in self.cluster.config.node_ids() if name != self.lame]
            self._put(shard, self.dice.choice(whole))
        self.world.after(ASK_AGAIN_S, self._ask)

    def _put(self, shard: ShardId, name: NodeId) -> None:
        def done(response: Response | None) -> None:
            if response is not None and response.status in (200, 201):
                self.waiting.discard(shard)

        headers = {"KV-Timeout": "5s"}
        self.cluster.request(name, "PUT", f"/v1/kv/{self._keys[shard]}", headers, b"1", done)

    def end(self) -> None:
        """What hangs, in a disk's queue or in a stopped process, does not come back: that takes a restart."""
        if self.manner in ("hung disk", "stopped") and self.lame in self.cluster.processes:
            self.cluster.kill(self.lame, power_loss=False)

    def is_over(self) -> bool:
        return not self.waiting

    def failure(self) -> str | None:
        if not self.waiting:
            return None
        return (
            f"no progress in shards {sorted(self.waiting)} while one fault lasts: {self.manner} {self.lame}"
        )
