"""One seed: a cluster, clients, faults, then healing, convergence and the verdict.

Everything is drawn from the seed. Phase one runs clients and faults together; phase two heals all, waits
until every shard serves again, and compares what clients saw and what replicas hold.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import IO

import msgspec

from chaos.history import History
from chaos.linearizability import check
from kvstore.errors import Fatal
from kvstore.node.trace import Trace
from kvstore.types import NodeId
from tests.sim.clients import Client
from tests.sim.cluster import Process, SimCluster
from tests.sim.invariants import ClusterInvariants
from tests.sim.world import World

FAULT_PHASE_S = 25.0
START_S = 20.0
HEAL_S = 40.0


class Outcome(msgspec.Struct):
    """What a seed showed. `failures` is empty when nothing is wrong."""

    seed: int
    failures: list[str]
    operations: int
    acknowledged: int
    faults: dict[str, int]
    counts: dict[str, int]
    simulated_s: float
    events: int
    history: list[object] = []


class Scenario:
    """`fault_s`: seconds of clients and faults together, before the healing. `raft_trace` is given a line
    for every Raft event of all nodes (docs/trace.md)."""

    def __init__(
        self,
        seed: int,
        *,
        check_invariants: bool = True,
        trace: bool = False,
        fault_s: float = FAULT_PHASE_S,
        raft_trace: IO[bytes] | None = None,
    ) -> None:
        self.seed = seed
        self.fault_s = fault_s
        self.dice = Random(f"{seed}/scenario")
        self.world = World(seed)
        if trace:
            self.world.trace = []
        nodes = self.dice.choice((3, 3, 3, 4, 5))
        self.cluster = SimCluster(self.world, nodes, shards=self.dice.choice((2, 4)), replication=3)
        self.cluster.on_exit = self._on_exit
        if raft_trace is not None:
            self.cluster.observe = lambda name: Trace(name, raft_trace).of
        self._set_clocks(Random(f"{seed}/clocks"))
        self.history = History()
        keys = [f"k{number}" for number in range(self.dice.choice((4, 8, 16)))] + ["count-a", "count-b"]
        self.clients = [
            Client(self.cluster, number, self.history, Random(f"{seed}/client/{number}"), keys)
            for number in range(8)
        ]
        self.failures: list[str] = []
        self.faults: dict[str, int] = {}
        self.is_healing = False
        self.invariants = ClusterInvariants(self.cluster, self.failures) if check_invariants else None
        if self.invariants is not None:
            self.world.after_event = self.invariants.after_event

    def _set_clocks(self, dice: Random) -> None:
        """CLOCK_BOOTTIME starts anywhere, and no two crystals are equal (bounded, as lease reads assume)."""
        for machine in self.cluster.machines.values():
            machine.clock_offset = dice.choice((0.0, dice.uniform(0, 1e7)))
            machine.clock_rate = 1.0 + dice.uniform(-0.03, 0.03)

    # ---- the run ---------------------------------------------------------------------------------

    def run(self) -> Outcome:
        try:
            self._run()
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.history.close()
        return self.outcome()

    def _run(self) -> None:
        self._start_nodes()
        if not self.world.run_while(lambda: not self.cluster.has_all_leaders(), START_S):
            self.failures.append("the cluster did not start")
            return
        for client in self.clients:
            client.start()
        self.world.after(0.5, self._next_fault)
        self.world.run_until(self.world.now + self.fault_s)
        self._heal()
        self.world.run_until(self.world.now + 5.0)
        for client in self.clients:
            client.is_stopped = True
        self.world.run_until(self.world.now + 8.0)
        self._judge()

    def _start_nodes(self) -> None:
        for name in self.cluster.config.node_ids():
            self.world.after(self.dice.uniform(0, 1.0), self._start, name)

    def _start(self, name: NodeId) -> None:
        if name in self.cluster.processes:
            return
        try:
            self.cluster.start(name)
        except (Fatal, OSError) as error:
            # The disk failed while the log was being opened: like a process that exits at its start.
            self.world.note(f"{name} does not start: {error!r}")
            self.cluster.count("failed_starts")
            self.cluster.machines[name].files.kill()
            self.world.after(1.0, self._start, name)

    # ---- faults ----------------------------------------------------------------------------------

    def _next_fault(self) -> None:
        if self.is_healing:
            return
        kinds: list[Callable[[], str]] = [
            self._kill,
            self._kill,
            self._power_loss,
            self._kill_all,
            self._pause,
            self._cut,
            self._cut_one_way,
            self._isolate_leader,
            self._bad_network,
            self._slow_disk,
            self._hang_disk,
            self._fail_disk,
            self._transfer,
        ]
        fault = self.dice.choice(kinds)()
        self.faults[fault] = self.faults.get(fault, 0) + 1
        self.world.note(f"fault {fault}")
        self.world.after(self.dice.uniform(0.3, 3.0), self._next_fault)

    def _any_process(self) -> Process | None:
        names = sorted(self.cluster.processes)
        return self.cluster.processes[self.dice.choice(names)] if names else None

    def _end(self, process: Process, *, power_loss: bool) -> None:
        name = process.name
        self.cluster.kill(name, power_loss=power_loss)
        self.world.after(self.dice.choice((0.05, 0.5, 2.0, 5.0)), self._start, name)

    def _kill(self) -> str:
        process = self._any_process()
        if process is None:
            return "nothing"
        self._end(process, power_loss=False)
        return "kill"

    def _power_loss(self) -> str:
        process = self._any_process()
        if process is None:
            return "nothing"
        self._end(process, power_loss=True)
        return "power_loss"

    def _kill_all(self) -> str:
        for name in sorted(self.cluster.processes):
            self._end(self.cluster.processes[name], power_loss=True)
        return "power_loss_all"

    def _pause(self) -> str:
        process = self._any_process()
        if process is None:
            return "nothing"
        process.runtime.paused_until = self.world.now + self.dice.choice((0.3, 1.5, 4.0))
        return "pause"

    def _cut(self) -> str:
        names = list(self.cluster.config.node_ids())
        self.dice.shuffle(names)
        side = names[: self.dice.randint(1, len(names) - 1)]
        links = {(a, b) for a in side for b in names if b not in side}
        self._cut_links(links | {(b, a) for a, b in links})
        return "partition"

    def _cut_one_way(self) -> str:
        source, target = self.dice.sample(self.cluster.config.node_ids(), 2)
        self._cut_links({(source, target)})
        return "one_way_cut"

    def _isolate_leader(self) -> str:
        shard = self.dice.randrange(self.cluster.config.shards)
        leader = self.cluster.leader_of(shard)  # type: ignore[arg-type]
        if leader is None:
            return "nothing"
        others = [name for name in self.cluster.config.node_ids() if name != leader.name]
        links = {(leader.name, other) for other in others}
        self._cut_links(links | {(b, a) for a, b in links})
        return "isolate_leader"

    def _cut_links(self, links: set[tuple[NodeId, NodeId]]) -> None:
        network = self.cluster.network
        network.cut |= links

        def mend() -> None:
            network.cut -= links

        self.world.after(self.dice.choice((0.5, 2.0, 6.0)), mend)

    def _bad_network(self) -> str:
        faults = self.cluster.network.faults
        faults.loss = self.dice.choice((0.0, 0.02, 0.2))
        faults.repeat = self.dice.choice((0.0, 0.1))
        faults.reorder = self.dice.choice((0.0, 0.2))
        faults.delay_high = self.dice.choice((0.002, 0.02, 0.2))
        self.world.after(self.dice.uniform(1, 5), self._good_network)
        return "bad_network"

    def _good_network(self) -> None:
        faults = self.cluster.network.faults
        faults.loss = faults.repeat = faults.reorder = 0.0
        faults.delay_high = 0.002

    def _slow_disk(self) -> str:
        disk = self.cluster.machines[self.dice.choice(self.cluster.config.node_ids())].disk
        disk.high = self.dice.choice((0.02, 0.2))

        def mend() -> None:
            disk.high = 0.002

        self.world.after(self.dice.uniform(1, 4), mend)
        return "slow_disk"

    def _hang_disk(self) -> str:
        disk = self.cluster.machines[self.dice.choice(self.cluster.config.node_ids())].disk
        disk.hung_until = self.world.now + self.dice.choice((1.0, 4.0))
        return "hang_disk"

    def _fail_disk(self) -> str:
        process = self._any_process()
        if process is None:
            return "nothing"
        step = self.dice.choice(("write", "datasync"))
        self.cluster.machines[process.name].files.fail(step, path_part="wal")
        return f"fail_{step}"

    def _transfer(self) -> str:
        shard = self.dice.randrange(self.cluster.config.shards)
        leader = self.cluster.leader_of(shard)  # type: ignore[arg-type]
        if leader is None:
            return "nothing"
        to = self.dice.choice(self.cluster.config.node_ids())
        leader.node.ask_transfer(shard, to)  # type: ignore[arg-type]
        return "transfer"

    def _on_exit(self, process: Process, error: BaseException) -> None:
        """A node stopped by itself: right after a failed disk, and only for a reason that it names."""
        if not isinstance(error, Fatal | OSError):
            self.failures.append(f"{process.name} stopped with {error!r}")
        self.world.note(f"{process.name} exits: {error!r}")
        self.cluster.count("exits")

        def end() -> None:
            if self.cluster.processes.get(process.name) is process:
                self._end(process, power_loss=self.dice.random() < 0.5)

        self.world.after(0.0, end)

    # ---- the verdict -----------------------------------------------------------------------------

    def _heal(self) -> None:
        self.is_healing = True
        self.cluster.network.cut.clear()
        self._good_network()
        for name, machine in self.cluster.machines.items():
            machine.disk.high = 0.002
            machine.disk.hung_until = 0.0
            machine.files.heal()
            if name in self.cluster.processes:
                runtime = self.cluster.processes[name].runtime
                runtime.paused_until = runtime.busy_until
            else:
                self._start(name)
        if not self.world.run_while(lambda: not self.cluster.has_all_leaders(), HEAL_S):
            self.failures.append("no leaders after healing")

    def _judge(self) -> None:
        verdict = check(self.history.operations)
        for violation in verdict.violations:
            self.failures.append(f"not linearizable: {violation.keys} at {violation.operation}")
        for keys in verdict.undecided:
            self.cluster.count("undecided_partitions")
            self.world.note(f"undecided {keys}")
        for shard, hashes in self.cluster.state_hashes().items():
            self.world.note(f"shard {shard} ends as {sorted(hashes.items())}")
            if len(set(hashes.values())) > 1:
                self.failures.append(f"replicas of shard {shard} differ: {hashes}")
        damaged = {
            name: process.node.host.damaged
            for name, process in self.cluster.processes.items()
            if process.node.host.damaged
        }
        if damaged:
            self.failures.append(f"quarantined without damage: {damaged}")

    def outcome(self) -> Outcome:
        operations = self.history.operations
        acknowledged = sum(operation.outcome in ("ok", "conflict") for operation in operations)
        return Outcome(
            self.seed,
            self.failures,
            len(operations),
            acknowledged,
            self.faults,
            self.cluster.counts | self.cluster.network.counts,
            self.world.now,
            self.world.events_run,
            list(operations),
        )
