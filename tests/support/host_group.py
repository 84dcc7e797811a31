"""Hosts and routers of a few nodes on the simulated network, without disks, boot or housekeeping.

Cores and machines are real; the log is a list. `tests/sim` runs whole nodes; this is for the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from kvstore.node.calls import Answer, ReadAnswer
from kvstore.node.expiry import Expiry
from kvstore.node.host import Host, HostSettings
from kvstore.node.lease_ends import LeaseEnds
from kvstore.node.replica import Replica, ReplicaLimits
from kvstore.node.router import Router
from kvstore.node.runtime import Lane
from kvstore.placement import ShardMap
from kvstore.raft import NO_SNAPSHOT, Core, RaftSettings, Restored
from kvstore.raft.messages import Configuration, HardState
from kvstore.store import commands
from kvstore.store.machine import Machine
from kvstore.store.memory import MemoryEngines
from kvstore.types import Incarnation, LogIndex, NodeId, ShardId, replica_id
from kvstore.wal import Record
from kvstore.wire import peer
from tests.sim.network import Network, SimTransport
from tests.sim.world import DiskTimes, SimRuntime, World
from tests.support.sim_files import SimFiles

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
SHARD = ShardId(0)
FIRST = Incarnation(1)


class ListLog:
    """A log that is a list of batches; `failure` is raised instead of the next write."""

    def __init__(self) -> None:
        self.batches: list[list[Record]] = []
        self.failure: BaseException | None = None
        self.segment_count = 1
        self.reclaimed: list[dict[Any, LogIndex]] = []
        self.idle: set[Any] = set()
        self.more_to_reclaim = 0

    def append(self, records: Sequence[Record]) -> None:
        self._fail_if_told()
        self.batches.append(list(records))

    def reclaim(self, needed: Any, idle: Any = ()) -> bool:
        self._fail_if_told()
        self.reclaimed.append(dict(needed))
        self.idle = set(idle)
        self.more_to_reclaim -= 1
        return self.more_to_reclaim >= 0

    def _fail_if_told(self) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure


class Outcome:
    """What became of a call; `wait` runs the world until it is known."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.is_done = False
        self.answer: Any = None
        self.error: BaseException | None = None

    def __call__(self, answer: Any, error: BaseException | None) -> None:
        assert not self.is_done, "answered twice"
        self.is_done, self.answer, self.error = True, answer, error

    def wait(self, limit_s: float = 8.0) -> Any:
        """The answer, or the error raised."""
        assert self._world.run_while(lambda: not self.is_done, limit_s), f"no answer within {limit_s} s"
        if self.error is not None:
            raise self.error
        return self.answer


class HostedNode:
    def __init__(
        self, group: HostGroup, name: NodeId, peers: tuple[NodeId, ...], settings: HostSettings
    ) -> None:
        self.name = name
        self.disk = DiskTimes()
        self.runtime = SimRuntime(group.world, name, Random(name), self.disk)
        self.transport = SimTransport(group.network, name, self.runtime)
        self.log = ListLog()
        self.fatal: list[BaseException] = []
        self.host = Host(name, peers, self.runtime, self.transport, self.log, settings, self.fatal.append)
        self.router = Router(self.host, self.transport, ShardMap(group.shard_count))
        self.expiry = Expiry(self.host)
        self.lease_ends = LeaseEnds(self.host, self.router)
        self.host.on_role_change = lambda replica: self.router.wake(replica.shard)
        self.files = SimFiles()
        self._group = group

    def add_replica(self, shard: int, configuration: Configuration, limits: ReplicaLimits) -> Replica:
        me = replica_id(self.name, FIRST)
        machine = Machine(MemoryEngines(self.files).open(f"{shard}"))
        machine.bootstrap(configuration)
        restored = Restored(HardState(), (), NO_SNAPSHOT, LogIndex(0), configuration)
        core = Core(me, RaftSettings(), restored, self.runtime.dice.randint)
        replica = Replica(ShardId(shard), me, FIRST, core, machine, f"{shard}", limits, self.router.dispatch)
        self.host.add(replica)
        return replica

    def start(self) -> None:
        self._group.network.listen(self.name, self.host.on_frame)
        self.host.start()
        self._sweep()

    def _sweep(self) -> None:
        self.router.sweep()
        self.expiry.sweep()
        self.lease_ends.sweep()
        self.runtime.call_later(self.host.settings.tick_s, self._sweep)

    def stop(self) -> None:
        """The process ends."""
        self.host.stop()
        self.runtime.stop()
        self._group.network.leave(self.name)

    def replica(self, shard: int = 0) -> Replica:
        return self.host.replicas[ShardId(shard)]

    @property
    def now(self) -> float:
        return self.runtime.now()


class HostGroup:
    """Nodes n1, n2, ... that hold `shards` shards; `homes` are the nodes with replicas, by default all."""

    def __init__(
        self,
        nodes: int = 3,
        shards: int = 1,
        *,
        homes: int | None = None,
        limits: ReplicaLimits | None = None,
        settings: HostSettings | None = None,
    ) -> None:
        self.world = World(1)
        self.shard_count = shards
        self.network = Network(self.world, Random("network"))
        names = [NodeId(f"n{number}") for number in range(1, nodes + 1)]
        self.nodes = {
            name: HostedNode(
                self, name, tuple(other for other in names if other != name), settings or HostSettings()
            )
            for name in names
        }
        members = names[: homes or nodes]
        configuration = Configuration(voters=tuple(replica_id(name, FIRST) for name in members))
        for name in members:
            for shard in range(shards):
                self.nodes[name].add_replica(shard, configuration, limits or ReplicaLimits())
        for node in self.nodes.values():
            node.router.homes = {ShardId(shard): tuple(members) for shard in range(shards)}
            node.start()

    def __getitem__(self, name: NodeId) -> HostedNode:
        return self.nodes[name]

    # ---- time and leaders ------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)

    def run_until(self, condition: Callable[[], bool], limit_s: float = 8.0) -> None:
        assert self.world.run_while(lambda: not condition(), limit_s), f"not within {limit_s} s"

    def lead(self, name: NodeId, *shards: int) -> HostedNode:
        """Make `name` the leader of the shards (by default 0) and let everybody hear of it."""
        node = self.nodes[name]
        cores = [node.replica(shard).core for shard in shards or (0,)]
        if cores[0].is_fresh:
            self.run(cores[0].settings.election_ticks_min * node.host.settings.tick_s)
        for shard, core in zip(shards or (0,), cores, strict=True):
            leader = self.leader(shard)
            if leader not in (None, node):
                leader.replica(shard).core.transfer_leadership(core.me)
                leader.host.mark_dirty(leader.replica(shard))
                continue
            for other in self.nodes.values():
                if ShardId(shard) in other.host.replicas:
                    other.replica(shard).core.promise_left = 0
            core.elapsed = core.election_timeout
        self.run_until(lambda: all(core.has_committed_in_term for core in cores))
        self.run(0.25)
        return node

    def leader(self, shard: int = 0) -> HostedNode | None:
        return next(
            (
                node
                for node in self.nodes.values()
                if node.runtime.is_alive
                and ShardId(shard) in node.host.replicas
                and node.replica(shard).led_term is not None
            ),
            None,
        )

    # ---- the network -----------------------------------------------------------------------------

    def watch(self, kind: type, source: NodeId | None = None) -> list[Any]:
        """Collects every message of that kind that is sent from now on, if told by `source` only."""
        seen: list[Any] = []
        before = self.network.sift

        def look(sender: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
            if isinstance(message, kind) and source in (None, sender):
                seen.append(message)
            return message if before is None else before(sender, target, message)

        self.network.sift = look
        return seen

    def part(self, name: NodeId) -> None:
        """Nothing reaches the node, nothing leaves it."""
        others = [other for other in self.nodes if other != name]
        self.network.cut |= {(name, other) for other in others} | {(other, name) for other in others}

    def deliver(self, source: NodeId, target: NodeId, *messages: peer.PeerMessage) -> None:
        self.nodes[target].host.on_frame(source, Lane.CONTROL, peer.encode(messages))

    # ---- operations ------------------------------------------------------------------------------

    def write(
        self, name: NodeId, op: commands.Op, *, shard: int = 0, identity: Any = None, timeout_s: float = 5.0
    ) -> Outcome:
        outcome, node = Outcome(self.world), self.nodes[name]
        command = commands.encode(identity, [op])
        node.router.write_then(ShardId(shard), command, identity is not None, node.now + timeout_s, outcome)
        return outcome

    def read(
        self, name: NodeId, key: bytes, consistency: str = "linearizable", *, shard: int = 0, **options: Any
    ) -> Outcome:
        outcome, node = Outcome(self.world), self.nodes[name]
        timeout_s = options.pop("timeout_s", 5.0)
        node.router.read_then(
            ShardId(shard), ["get", key, None], consistency, node.now + timeout_s, outcome, **options
        )
        return outcome


def value_of(answer: ReadAnswer) -> bytes | None:
    return None if answer.value is None else answer.value[0]


def result_of(answer: Answer) -> list[Any]:
    result: list[Any] = answer.result.results[0]
    return result
