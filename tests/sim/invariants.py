"""What must hold after every event of a simulated run, seen from inside the nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvstore.node.replica import Replica
from kvstore.raft import Core
from kvstore.raft.invariants import ClusterHistory, InvariantViolated, View, check, check_cluster
from kvstore.raft.messages import Configuration
from kvstore.types import ReplicaId, ShardId
from tests.sim.pace import Pace

if TYPE_CHECKING:
    from tests.sim.cluster import Process, SimCluster


Life = tuple[str, ShardId, ReplicaId]
"""A replica in one life of its node."""


def _mark(core: Core) -> tuple[object, ...]:
    """Changes whenever anything changed that a claim is about."""
    log = core.log
    return (
        core.term,
        core.vote,
        core.role,
        core.leader,
        core.commit,
        core.applied_index,
        core.round,
        core.configuration,
        core.lease_forbidden,
        log.last_index,
        log.synced,
        log.taken,
        log.base_index,
        log.truncations,
        len(log.flights),
    )


class ClusterInvariants:
    """Checks the replicas that the last event touched; `failures` gets what does not hold."""

    def __init__(self, cluster: SimCluster, failures: list[str]) -> None:
        self._cluster = cluster
        self._failures = failures
        self._views: dict[Life, View] = {}
        self._histories: dict[ShardId, ClusterHistory] = {}
        self._hashes: dict[tuple[ShardId, int], int] = {}
        self._members: dict[tuple[ShardId, int], Configuration] = {}
        self._marks: dict[Life, tuple[object, ...]] = {}
        self.pace = Pace(cluster)
        self.checks = 0
        self.on_change: Callable[[Process, Replica], None] = lambda process, replica: None

    def after_event(self) -> None:
        process = self._cluster.last_active
        self._cluster.last_active = None
        if process is None or not process.touched or not process.runtime.is_alive:
            return
        try:
            self._check(process)
        except InvariantViolated as violation:
            text = str(violation)
            if text not in self._failures:
                self._failures.append(text)

    def _check(self, process: Process) -> None:
        replicas = process.node.host.replicas
        touched = [replica for shard, replica in process.touched.items() if replicas.get(shard) is replica]
        process.touched.clear()
        for replica in touched:
            core = replica.core
            key = (process.life, replica.shard, replica.me)
            mark = _mark(core)
            if self._marks.get(key) == mark:
                continue
            self._marks[key] = mark
            self.checks += 1
            self.on_change(process, replica)
            self._views[key] = check(core, self._views.get(key))
            self._histories[replica.shard] = check_cluster([core], self._histories.get(replica.shard))
            self._check_hash(replica.shard, replica.machine.applied, replica.machine.state_hash)
            self._check_members(replica)
            self.pace.look(replica)

    def _check_hash(self, shard: ShardId, applied: int, state_hash: int) -> None:
        known = self._hashes.setdefault((shard, applied), state_hash)
        if known != state_hash:
            raise InvariantViolated(
                f"shard {shard} has two states at index {applied}: {known} and {state_hash}"
            )

    def _check_members(self, replica: Replica) -> None:
        """Everyone who has applied as much has the same members in force (pitfalls 2, 16)."""
        machine, core = replica.machine, replica.core
        if machine.applied != core.applied_index or machine.applied == 0:
            return  # the tablet of a snapshot is in place before its record is synced
        if machine.configuration == core.configuration == Configuration():
            return  # who joins knows no configuration until it has applied one
        known = self._members.setdefault((replica.shard, machine.applied), machine.configuration)
        if not known == machine.configuration == core.configuration:
            raise InvariantViolated(
                f"shard {replica.shard} has other members at index {machine.applied} on {replica.me}: "
                f"{known}, tablet {machine.configuration}, core {core.configuration}"
            )
