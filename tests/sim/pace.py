"""No shard clock runs faster than crystals may: or what ends by it would end early.

The shard clock of each entry is held against the world's time at which a leader proposed it. From one entry
that took effect to any later one the clock may not gain on the world more than the quickest crystal does. It
may lose as much as it likes, by outages, and never makes up for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.node.replica import Replica
from kvstore.raft.invariants import InvariantViolated
from kvstore.types import LogIndex, ShardId, Term

if TYPE_CHECKING:
    from tests.sim.cluster import Process, SimCluster

CRYSTAL = 0.03
"""By how much a machine's clock may differ from the world's, as a share."""
SLACK_S = 0.02
"""Clocks are told in whole milliseconds, and what is told was true when it was sent."""


class Pace:
    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._proposed: dict[tuple[ShardId, LogIndex, Term], float] = {}
        """When: the time of the quickest crystal, in seconds."""
        self._least_gains: dict[ShardId, float] = {}
        """How far the clock was ahead of the quickest crystal, where it was furthest behind."""
        self._judged: dict[ShardId, LogIndex] = {}

    def watch(self, process: Process) -> None:
        """Note when entries are proposed in this process life."""
        runtime = process.runtime

        def observe(replica: Replica) -> None:
            propose, log = replica.propose_queue, replica.core.log

            def proposed(now: float) -> None:
                first = log.last_index + 1
                propose(now)
                # Not the world's now: a turn that works on the disk is ahead of it.
                quickest_s = (now - runtime.offset) / runtime.rate * (1 + CRYSTAL)
                for index in range(first, log.last_index + 1):
                    self._proposed[replica.shard, LogIndex(index), log.last_term] = quickest_s

            replica.propose_queue = proposed  # type: ignore[method-assign]

        process.before_add.append(observe)

    def look(self, replica: Replica) -> None:
        """Judge the newest entry that took effect, if it was proposed and is not judged."""
        machine, shard = replica.machine, replica.shard
        if machine.applied <= self._judged.get(shard, 0):
            return
        self._judged[shard] = machine.applied
        quickest_s = self._proposed.pop((shard, machine.applied, machine.applied_term), None)
        if quickest_s is not None:
            # Not the entry's stamp: one below the clock leaves that where it is.
            self._judge(shard, machine.applied, machine.clock_ms / 1000 - quickest_s)

    def _judge(self, shard: ShardId, index: LogIndex, gain: float) -> None:
        least = self._least_gains[shard] = min(gain, self._least_gains.get(shard, gain))
        # A node whose clock has jumped may lead at any later time.
        jumped_s = sum(seconds for _at, seconds in self._cluster.clock_jumps)
        if gain > least + jumped_s + SLACK_S:
            raise InvariantViolated(
                f"shard {shard}: the clock of entry {index} is {gain - least:.3f} s ahead of an earlier one's"
            )
