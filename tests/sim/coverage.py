"""What simulated runs reached: which rare states, faults and fakes. What never happened was not tested."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from kvstore.node.calls import Call
from kvstore.node.replica import Replica
from kvstore.raft import Core, Role
from kvstore.types import ReplicaId, ShardId, Term
from tests.sim.ambush import MOMENTS, TXN_MOMENTS
from tests.sim.faults import ALL_FAULTS
from tests.sim.limp import MANNERS

if TYPE_CHECKING:
    from tests.sim.cluster import Process
    from tests.sim.scenario import Outcome

FAKES: dict[str, tuple[str, ...]] = {
    "tests.sim.world (time, dice, threads)": ("kvstore.node.aio_runtime",),
    "tests.sim.network (transport)": ("kvstore.node.peer_links",),
    "tests.sim.cluster.Sink (sockets, HTTP)": (
        "kvstore.node.http_connection",
        "kvstore.node.http_refusals",
        "kvstore.node.http_server",
        "kvstore.node.http_stream",
    ),
    "tests.sim.cluster.Process (process: signals, memory, metrics' export, watchdog thread)": (
        "kvstore.node.__main__",
        "kvstore.node.allocator",
        "kvstore.node.scrape",
        "kvstore.node.server",
        "kvstore.node.watchdog",
    ),
    "tests.support.sim_files (disk)": ("kvstore.files.OsFiles",),
    "kvstore.store.memory (tablets; not with --rocksdb)": ("kvstore.store.rocks",),
    "nothing (a tool to look at logs)": ("kvstore.wal.dump",),
}
"""Every module of a node that is not what runs in the simulator, by what stands for it."""

STATES = (
    "two candidates in a term",
    "conflict truncation",
    "snapshot installed",
    "read parked until first commit",
    "transfer completed",
    "joint configuration",
    "shard went quiet",
    "torn tail cut",
    "quarantine",
    "replica rebuilt",
    "replayed session result",
    "disk full",
    "log failed",
    "lease read served",
    "lease read refused",
    "read at a follower",
    "forwarded write",
    "log cut",
    "lock granted",
    "change watched",
    "watch told of compaction",
    "leader changed under a snapshot",
    "transaction over shards",
    "conflict with a transaction",
)


class States:
    """Notices rare states of one cluster; `counts` by the names of `STATES`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._candidates: dict[tuple[ShardId, Term], set[ReplicaId]] = {}
        self._heirs: dict[tuple[ShardId, Term], ReplicaId] = {}
        self._seen: set[tuple[object, ...]] = set()
        self._truncations: dict[tuple[str, ShardId, ReplicaId], int] = {}

    def watch_process(self, process: Process) -> None:
        """Count what one process life shows of itself."""
        if process.node.recovered.torn_bytes:
            self.counts["torn tail cut"] += 1
        router = process.node.router
        serve_lease, forward, ask_index = router._serve_lease, router._forward, router._ask_index

        def serve(replica: Replica, call: Call) -> bool:
            is_served = serve_lease(replica, call)
            self.counts["lease read served" if is_served else "lease read refused"] += 1
            return is_served

        def send(call: Call) -> None:
            self.counts["forwarded write"] += call.is_write
            forward(call)

        def ask(replica: Replica) -> None:
            self.counts["read at a follower"] += bool(replica.reads_new)
            ask_index(replica)

        router._serve_lease = serve  # type: ignore[method-assign]
        router._forward = send  # type: ignore[method-assign]
        router._ask_index = ask  # type: ignore[method-assign]

    def on_change(self, process: Process, replica: Replica) -> None:
        """Something about a replica is different from before."""
        core, shard = replica.core, replica.shard
        life = (process.life, shard, core.me)
        if replica.incarnation > 1:
            self._once("replica rebuilt", shard, core.me)
        if core.role is Role.CANDIDATE:
            standing = self._candidates.setdefault((shard, core.term), set())
            standing.add(core.me)
            if len(standing) > 1:
                self._once("two candidates in a term", shard, core.term)
        if core.log.truncations != self._truncations.get(life, 0):
            self._truncations[life] = core.log.truncations
            self.counts[
                "conflict truncation" if core.log.base_index < core.commit else "snapshot installed"
            ] += 1
        if core.configuration.is_joint:
            self._once("joint configuration", shard, core.configuration)
        if core.log.base_index > 0:
            self._once("log cut", life)
        if core.is_leader:
            self._on_leader(core, shard)
        if process.node.host.log.is_disk_full:
            self._once("disk full", process.life)

    def _on_leader(self, core: Core, shard: ShardId) -> None:
        if core.reads.parked and core.commit < core.term_start:
            self._once("read parked until first commit", shard, core.term)
        if core.lease_forbidden and core.transfer_target is not None:
            self._heirs[shard, Term(core.term + 1)] = core.transfer_target
        if self._heirs.get((shard, core.term)) == core.me:
            self._once("transfer completed", shard, core.term)
        if core.quiet:
            self._once("shard went quiet", shard, core.term)

    def _once(self, state: str, *about: object) -> None:
        if (state, *about) not in self._seen:
            self._seen.add((state, *about))
            self.counts[state] += 1


class Coverage:
    """Sums over seeds."""

    def __init__(self) -> None:
        self.seeds = self.failed = self.operations = self.acknowledged = self.events = 0
        self.simulated_s = 0.0
        self.faults: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.failed += bool(outcome.failures)
        self.operations += outcome.operations
        self.acknowledged += outcome.acknowledged
        self.events += outcome.events
        self.simulated_s += outcome.simulated_s
        self.faults.update(outcome.faults)
        self.states.update(outcome.states)
        self.counts.update(outcome.counts)

    def line(self, elapsed_s: float) -> str:
        return (
            f"{self.seeds} seeds, {self.failed} failed, {self.operations} operations "
            f"({self.operations / elapsed_s:.0f}/s), {self.simulated_s / elapsed_s:.0f}x real time"
        )

    def never(self) -> list[str]:
        """Faults and states that no seed came to."""
        faults = (*ALL_FAULTS, *(f"limp: {manner}" for manner in MANNERS))
        return [name for name in faults if not self.faults[name]] + [
            name for name in STATES if not self.states[name]
        ]

    def unsprung(self) -> list[str]:
        """Moments at which no fault was ever laid; in few seeds that is chance."""
        return [moment for moment in (*MOMENTS, *TXN_MOMENTS) if not self.states[f"trap: {moment}"]]

    def summary(self, elapsed_s: float) -> str:
        never = self.never()
        return "\n".join(
            (
                self.line(elapsed_s),
                "replaced by fakes:",
                *(f"  {', '.join(modules)} by {fake}" for fake, modules in FAKES.items()),
                f"faults: {_listed(self.faults)}",
                f"states: {_listed(self.states)}",
                f"counts: {_listed(self.counts)}",
                f"traps that never sprung: {', '.join(self.unsprung()) or 'none'}",
                f"NEVER REACHED: {', '.join(never)}" if never else "every fault and state was reached",
            )
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
