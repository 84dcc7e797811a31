"""One seed: a cluster, clients, faults, then healing, convergence and the verdict.

Everything is drawn from the seed. Phase one runs clients and faults together; phase two heals all, waits
until every shard serves again, and compares what clients saw and what replicas hold.
"""

from __future__ import annotations

from random import Random
from typing import IO

import msgspec

from chaos.history import History
from chaos.linearizability import check
from kvstore.config import Config
from kvstore.errors import DiskFull, Fatal, WalPoisoned
from kvstore.node.keeper import KeeperSettings
from kvstore.node.replica import Replica
from kvstore.node.trace import Trace
from kvstore.types import NodeId, ShardId
from tests.sim.cluster import Process, SimCluster
from tests.sim.coverage import States
from tests.sim.crowd import Stage, favourite_shard, gather
from tests.sim.durability import Durability
from tests.sim.faults import Faults
from tests.sim.idle import Idle
from tests.sim.invariants import ClusterInvariants
from tests.sim.limp import LIMP_S, SETTLE_S, Limp
from tests.sim.pace import CRYSTAL
from tests.sim.promises import watch_promises
from tests.sim.real_tablets import put_on_rocksdb
from tests.sim.world import World
from tests.support.sim_files import Crashed

FAULT_PHASE_S = 20.0
START_S = 20.0
HEAL_S = 40.0
REST_S = 10.0
"""Without clients, at the end: what is open comes to its end, logs are cut."""
LOOK_S = 0.02
"""How often the end of a phase is looked for."""
SEARCH_MAX = 400_000
"""Steps of the checker per group of keys, a second or two; what needs more counts as undecided."""
KEEP_S = 2.0
"""Snapshots that nobody fetches are kept for so long where the end of a run looks at the logs."""
CUT_S = 3 * KEEP_S
"""A snapshot that was fetched last goes within that, and the log with it."""
LIMP_SHARE = 0.4
LARGE_ENTRY_BYTES = 20_000


class Outcome(msgspec.Struct):
    """What a seed showed. `failures` is empty when nothing is wrong."""

    seed: int
    failures: list[str]
    operations: int
    acknowledged: int
    faults: dict[str, int]
    states: dict[str, int]
    counts: dict[str, int]
    simulated_s: float
    events: int
    history: list[object] = []


class Scenario:
    """`fault_s`: seconds of clients and faults together, before the healing. `raft_trace` is given a line
    for every Raft event of all nodes (docs/trace.md). With `tablets_root`, a real directory, tablets are
    RocksDB's below it (`real_tablets.py`)."""

    def __init__(
        self,
        seed: int,
        *,
        check_invariants: bool = True,
        trace: bool = False,
        fault_s: float = FAULT_PHASE_S,
        raft_trace: IO[bytes] | None = None,
        tablets_root: str | None = None,
    ) -> None:
        self.seed = seed
        self.fault_s = fault_s
        self.dice = Random(f"{seed}/scenario")
        self.world = World(seed)
        if trace:
            self.world.trace = []
        nodes = self.dice.choice((3, 3, 3, 4, 5))
        # Often so little history is kept that who is slow to watch it finds it gone.
        history = Random(f"{seed}/history").choice((100_000, 100_000, 40))
        self.cluster = SimCluster(self.world, nodes, self.dice.choice((2, 4)), 3, history)
        self.cluster.config = _config(self.cluster.config, Random(f"{seed}/config"))
        self.cluster.on_exit = self._on_exit
        if raft_trace is not None:
            self.cluster.observe = lambda name: Trace(name, raft_trace).of
        if tablets_root is not None:
            for name, machine in self.cluster.machines.items():
                put_on_rocksdb(
                    machine, Random(f"{seed}/disk/{name}").getrandbits(32), f"{tablets_root}/{name}"
                )
        self._set_clocks(Random(f"{seed}/clocks"))
        self.history = History()
        self.clients = gather(Stage(self.cluster, self.history))
        self.failures: list[str] = []
        self.faults = Faults(self.cluster, Random(f"{seed}/faults"), self._start)
        self.faults.favourite = favourite_shard(self.cluster)
        self.world.on_crash = self.faults.after_crash
        self.cluster.keeper = _keeper(Random(f"{seed}/keeper"), self.faults.profile)
        self.append_bytes_max = Random(f"{seed}/appends").choice((1 << 20, 1 << 20, 400, 1))
        self.states = States()
        self.cluster.states = self.states.counts
        self.cluster.on_process = self._watch
        self.invariants = ClusterInvariants(self.cluster, self.failures) if check_invariants else None
        self.durability = Durability(self.failures) if check_invariants else None
        if self.invariants is not None:
            self.world.after_event = self.invariants.after_event
            self.invariants.on_change = self.states.on_change

    def _watch(self, process: Process) -> None:
        self._send_in_pieces(process)
        self.faults.ambush.watch(process)
        self.states.watch_process(process)
        if self.invariants is not None:
            self.invariants.pace.watch(process)
        if self.durability is not None:
            watch_promises(process, self.failures)
            self.durability.watch(process)

    def _send_in_pieces(self, process: Process) -> None:
        """In some runs a leader sends few entries at a time."""

        def limit(replica: Replica) -> None:
            core = replica.core
            core.settings = msgspec.structs.replace(core.settings, append_bytes_max=self.append_bytes_max)

        process.before_add.append(limit)

    def _set_clocks(self, dice: Random) -> None:
        """CLOCK_BOOTTIME starts anywhere, and no two crystals are equal (bounded, as lease reads assume)."""
        for machine in self.cluster.machines.values():
            machine.clock_offset = dice.choice((0.0, dice.uniform(0, 1e7)))
            machine.clock_rate = 1.0 + dice.uniform(-CRYSTAL, CRYSTAL)

    # ---- the run ---------------------------------------------------------------------------------

    def run(self) -> Outcome:
        try:
            self._run()
        except Exception as error:
            self.failures.append(f"{type(error).__name__}: {error}")
            self._judge_history()
            raise
        finally:
            self.history.close()
            for machine in self.cluster.machines.values():
                machine.on_death()
        return self.outcome()

    def _run(self) -> None:
        self._start_nodes()
        if not self.world.run_while(lambda: not self.cluster.has_all_leaders(), START_S, LOOK_S):
            self.failures.append("the cluster did not start")
            return
        for client in self.clients:
            client.start()
        self.faults.begin()
        self.world.run_until(self.world.now + self.fault_s)
        self._heal()
        self._limp()
        self.world.run_until(self.world.now + 2.0)
        for client in self.clients:
            client.is_stopped = True
        idle = Idle(self.faults, Random(f"{self.seed}/idle"))
        idle.begin()
        self.world.run_until(self.world.now + REST_S)
        self.world.run_while(lambda: not self._has_converged(), HEAL_S, LOOK_S)
        self.failures += idle.judge()
        self._judge()

    def _has_converged(self) -> bool:
        hashes = self.cluster.state_hashes().values()
        return all(len({applied for applied, _hash in states.values()}) == 1 for states in hashes)

    def _start_nodes(self) -> None:
        for name in self.cluster.config.node_ids():
            self.world.after(self.dice.uniform(0, 1.0), self._start, name)

    def _start(self, name: NodeId) -> None:
        if name in self.cluster.processes:
            return
        self.faults.before_start(name)
        try:
            self.cluster.start(name)
        except Crashed:
            self.cluster.count("crashed_starts")
            self._give_up_start(name, power_loss=self.dice.random() < 0.5)
        except (Fatal, DiskFull, OSError) as error:
            # The disk failed while the log was being opened: like a process that exits at its start.
            self.world.note(f"{name} does not start: {error!r}")
            self.cluster.count("failed_starts")
            self._give_up_start(name, power_loss=False)

    def _give_up_start(self, name: NodeId, *, power_loss: bool) -> None:
        machine = self.cluster.machines[name]
        if name in self.cluster.processes:
            self.cluster.kill(name, power_loss=power_loss)
        else:
            machine.on_death()
            if power_loss:
                machine.files.crash(self.dice)
            else:
                machine.files.kill()
        self.world.after(1.0, self._start, name)

    def _on_exit(self, process: Process, error: BaseException) -> None:
        """A node stopped by itself: right after a failed disk, and only for a reason that it names."""
        if not isinstance(error, Fatal | OSError):
            self.failures.append(f"{process.name} stopped with {error!r}")
        self.world.note(f"{process.name} exits: {error!r}")
        self.cluster.count("exits")
        if isinstance(error, WalPoisoned):
            self.states.counts["log failed"] += 1

        def end() -> None:
            if self.cluster.processes.get(process.name) is process:
                self.faults.end(process, power_loss=self.dice.random() < 0.5)

        self.world.after(0.0, end)

    # ---- the verdict -----------------------------------------------------------------------------

    def _heal(self) -> None:
        self.faults.heal()
        if not self.world.run_while(lambda: not self.cluster.has_all_leaders(), HEAL_S, LOOK_S):
            self.failures.append("no leaders after healing")
        elif not self.world.run_while(lambda: not self.faults.is_mended, HEAL_S, LOOK_S):
            self.failures.append("members are still missing long after healing")

    def _limp(self) -> None:
        """Sometimes, once all is well, one fault that stays."""
        dice = Random(f"{self.seed}/limp")
        if self.failures or dice.random() >= LIMP_SHARE:
            return
        limp = Limp(self.faults, dice)
        limp.begin()
        self.world.run_while(lambda: not limp.is_over(), LIMP_S + SETTLE_S, LOOK_S)
        failure = limp.failure()
        if failure is not None:
            self.failures.append(failure)
        limp.end()
        self._heal()

    def _judge_history(self) -> None:
        verdict = check(self.history.operations, SEARCH_MAX)
        for violation in verdict.violations:
            self.failures.append(f"not linearizable: {violation.keys} at {violation.operation}"[:400])
        for keys in verdict.undecided:
            self.cluster.count("undecided_partitions")
            self.world.note(f"undecided {keys}")

    def _judge(self) -> None:
        self._judge_history()
        for client in self.clients:
            self.failures += client.judge()
        for shard, hashes in self.cluster.state_hashes().items():
            self.world.note(f"shard {shard} ends as {sorted(hashes.items())}")
            if len(set(hashes.values())) > 1:
                self.failures.append(f"replicas of shard {shard} differ: {hashes}")
            self._compare_contents(shard)
        self._judge_logs()
        damaged = {
            name: process.node.host.damaged
            for name, process in self.cluster.processes.items()
            if process.node.host.damaged
        }
        if damaged:
            self.failures.append(f"quarantined without damage: {damaged}")

    def _compare_contents(self, shard: ShardId) -> None:
        """What the tablets hold, record for record: a state hash is itself a record and may be wrong."""
        contents: dict[int, tuple[NodeId, dict[bytes, bytes]]] = {}
        for name, process in self.cluster.processes.items():
            replica = process.node.host.replicas.get(shard)
            if replica is None:
                continue
            pairs = dict(replica.machine._engine.scan(b"", b"\xff" * 64))
            other, known = contents.setdefault(replica.machine.applied, (name, pairs))
            different = [key for key in {*pairs, *known} if pairs.get(key) != known.get(key)]
            if different:
                self.failures.append(
                    f"tablets of shard {shard} on {other} and {name} differ at {min(different)!r}"
                )

    def _judge_logs(self) -> None:
        """A while after load and snapshots nobody keeps more of a log in memory than the settings say."""
        if self.cluster.keeper is not None and self.cluster.config.snapshot.keep_s <= KEEP_S:
            self.world.run_while(lambda: bool(self._long_logs()), CUT_S, LOOK_S)
            self.failures += self._long_logs()

    def _long_logs(self) -> list[str]:
        settings = self.cluster.keeper
        assert settings is not None
        found = []
        for name, process in self.cluster.processes.items():
            held = settings.memory_log_bytes_max + settings.unflushed_bytes_max
            share = held // max(1, len(process.node.host.replicas)) + LARGE_ENTRY_BYTES
            for replica in process.replicas():
                core = replica.core
                if core.log_index_before_last_bytes(share) > core.first_index:
                    found.append(f"{name} keeps too long a log of shard {replica.shard}")
        return found

    def outcome(self) -> Outcome:
        operations = self.history.operations
        acknowledged = sum(operation.outcome in ("ok", "conflict") for operation in operations)
        return Outcome(
            self.seed,
            self.failures,
            len(operations),
            acknowledged,
            self.faults.fired,
            dict(self.states.counts),
            self.cluster.counts | self.cluster.network.counts,
            self.world.now,
            self.world.events_run,
            list(operations),
        )


def _keeper(dice: Random, profile: str) -> KeeperSettings | None:
    """Often so little log is kept that whoever lags needs a snapshot, and flushes come every second."""
    if profile != "members" and dice.random() < 0.4:
        return None
    return KeeperSettings(
        memory_log_bytes_max=dice.choice((4_000, 20_000, 100_000)),
        unflushed_bytes_max=dice.choice((1_000, 10_000)),
        flush_after_s=dice.choice((1.0, 5.0)),
        segments_max=1,
    )


def _config(config: Config, dice: Random) -> Config:
    """Snapshots take long in some runs and are given up soon in others."""
    snapshot = msgspec.structs.replace(
        config.snapshot,
        bytes_per_s=dice.choice((100_000, 64 << 20)),
        chunk_bytes=dice.choice((1 << 10, 256 << 10)),
        keep_s=dice.choice((KEEP_S, 120.0)),
    )
    return msgspec.structs.replace(config, snapshot=snapshot)
