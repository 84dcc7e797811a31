"""What must hold after every event of a simulated run, seen from inside the nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.raft.invariants import ClusterHistory, InvariantViolated, View, check, check_cluster
from kvstore.types import ShardId

if TYPE_CHECKING:
    from tests.sim.cluster import Process, SimCluster


class ClusterInvariants:
    """Checks the replicas that the last event touched; `failures` gets what does not hold."""

    def __init__(self, cluster: SimCluster, failures: list[str]) -> None:
        self._cluster = cluster
        self._failures = failures
        self._views: dict[tuple[int, ShardId], View] = {}
        self._histories: dict[ShardId, ClusterHistory] = {}
        self._hashes: dict[tuple[ShardId, int], int] = {}
        self.checks = 0

    def after_event(self) -> None:
        process = self._cluster.last_active
        self._cluster.last_active = None
        if process is None or not process.runtime.is_alive:
            return
        try:
            self._check(process)
        except InvariantViolated as violation:
            text = str(violation)
            if text not in self._failures:
                self._failures.append(text)

    def _check(self, process: Process) -> None:
        for replica in process.replicas():
            core = replica.core
            key = (id(process), replica.shard)
            previous = self._views.get(key)
            view = check(core, previous)
            if view == previous:
                continue
            self.checks += 1
            self._views[key] = view
            self._histories[replica.shard] = check_cluster([core], self._histories.get(replica.shard))
            self._check_hash(replica.shard, replica.machine.applied, replica.machine.state_hash)

    def _check_hash(self, shard: ShardId, applied: int, state_hash: int) -> None:
        known = self._hashes.setdefault((shard, applied), state_hash)
        if known != state_hash:
            raise InvariantViolated(f"shard {shard} has two states at index {applied}: {known} and {state_hash}")
