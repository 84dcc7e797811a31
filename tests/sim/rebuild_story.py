"""A simulated cluster that loses a replica and gets it back: what the rebuild tests tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from kvstore.files import join
from kvstore.node.requests import Response
from kvstore.raft.messages import Configuration
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId
from tests.sim.cluster import DATA, Process, SimCluster
from tests.sim.invariants import ClusterInvariants
from tests.sim.world import World

SHARD = ShardId(0)
N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
OLD, NEW = ReplicaId("n1/1"), ReplicaId("n1/2")
WAL = join(DATA, "wal")


class Story:
    """A cluster of three whose n1 is about to lose its replica of the only shard."""

    def __init__(self, seed: int = 1, shards: int = 1, nodes: int = 3) -> None:
        self.world = World(seed)
        self.cluster = SimCluster(self.world, nodes, shards=shards)
        self.failures: list[str] = []
        self.world.after_event = ClusterInvariants(self.cluster, self.failures).after_event
        self.cluster.start_all()
        self.until(self.cluster.has_all_leaders)
        for number in range(40):
            self.put(f"key-{number}", f"needle-{number}")
        self.run(1.0)

    # ---- time and requests

    def run(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)
        assert self.failures == []

    def until(self, condition: Callable[[], bool], limit_s: float = 30.0) -> None:
        assert self.world.run_while(lambda: not condition(), limit_s), "it never came to that"
        assert self.failures == []

    def ask(
        self, node: NodeId, method: str, target: str, body: bytes = b"", timeout: str = "5s"
    ) -> list[Response | None]:
        answers: list[Response | None] = []
        self.cluster.request(node, method, target, {"KV-Timeout": timeout}, body, answers.append)
        return answers

    def reply(self, *question: Any, **more: Any) -> Response:
        answers = self.ask(*question, **more)
        self.until(lambda: bool(answers))
        assert answers[0] is not None
        return answers[0]

    def put(self, key: str, value: str, node: NodeId = N2) -> None:
        assert self.reply(node, "PUT", f"/v1/kv/{key}", value.encode()).status in (200, 201)

    def rebuild(self, node: NodeId = N1, via: NodeId = N2, timeout: str = "5s") -> Response:
        return self.reply(
            via, "POST", f"/v1/shards/{SHARD}/rebuild", b'{"node":"%b"}' % node.encode(), timeout
        )

    def roles(self, via: NodeId = N2) -> list[tuple[str, str]]:
        row = msgspec.json.decode(self.reply(via, "GET", f"/v1/shards/{SHARD}").body)
        return [(each["node"], each["role"]) for each in row["replicas"]]

    # ---- faults

    def stop(self, node: NodeId, *, power_loss: bool = False) -> None:
        self.cluster.kill(node, power_loss=power_loss)

    def rot(self, node: NodeId, needle: bytes = b"needle-20") -> None:
        """Flip a byte in the middle of the log of a stopped node."""
        files = self.cluster.machines[node].files
        for name in reversed(files.list(WAL)):
            offset = files.read(join(WAL, name)).rfind(needle)
            if offset >= 0:
                files.flip(join(WAL, name), offset)
                return
        raise AssertionError("the needle is not in the log")

    def lose_replica(self, node: NodeId = N1, *, is_leader: bool = False) -> None:
        """Quarantine the node's replica: stop, damage, start."""
        if not is_leader:
            self.lead_elsewhere(node)
        self.stop(node)
        self.rot(node)
        self.run(0.1)
        self.cluster.start(node)
        self.until(lambda: SHARD in self.process(node).node.host.damaged)
        self.until(lambda: self.leader() is not None)
        self.run(3.0)

    def lead_elsewhere(self, node: NodeId) -> None:
        other = next(each for each in self.cluster.config.node_ids() if each != node)
        body = b'{"to":"%b"}' % other.encode()
        assert self.reply(other, "POST", f"/v1/shards/{SHARD}/transfer", body).status in (200, 202)
        self.until(lambda: (leader := self.leader()) is not None and leader.name == other)

    # ---- looking inside

    def process(self, node: NodeId) -> Process:
        return self.cluster.processes[node]

    def leader(self) -> Process | None:
        return self.cluster.leader_of(SHARD)

    def configuration(self) -> Configuration:
        leader = self.leader()
        return Configuration() if leader is None else leader.node.host.replicas[SHARD].core.configuration

    def match_of_new(self) -> LogIndex:
        leader = self.leader()
        progress = {} if leader is None else leader.node.host.replicas[SHARD].core.progress
        return progress[NEW].match if NEW in progress else LogIndex(0)

    def hosted(self, node: NodeId = N1) -> ReplicaId | None:
        process = self.cluster.processes.get(node)
        replica = None if process is None else process.node.host.replicas.get(SHARD)
        return None if replica is None else replica.me

    def has_swapped(self) -> bool:
        configuration = self.configuration()
        return NEW in configuration.voters and not configuration.is_joint

    def is_over(self) -> bool:
        process = self.cluster.processes.get(N1)
        return (
            self.has_swapped()
            and process is not None
            and self.hosted() == NEW
            and not process.node.quarantine.copies
        )

    def proposed(self) -> str:
        """Configurations in the leader's log that are not in force yet, as text."""
        leader = self.leader()
        if leader is None:
            return ""
        core = leader.node.host.replicas[SHARD].core
        return "".join(str(core.log.entry(index).payload) for index in core.log.unapplied_configurations)

    def quarantine_knows(self, incarnation: int) -> bool:
        process = self.cluster.processes.get(N1)
        return process is not None and process.node.quarantine.newest(SHARD) >= incarnation

    def old_is_kept(self) -> bool:
        process = self.cluster.processes.get(N1)
        return process is not None and (SHARD, 1) in process.node.quarantine.copies

    def tablets(self, node: NodeId = N1) -> list[str]:
        names = self.cluster.machines[node].files.list(join(DATA, "tablets"))
        return sorted(name.rpartition("-")[0] for name in names)

    def check_members(self) -> None:
        self.until(self.is_over)
        assert self.configuration() == Configuration(voters=(NEW, ReplicaId("n2/1"), ReplicaId("n3/1")))

    def check_whole(self) -> None:
        """The shard has all its voters, equal, and n1's is the new incarnation; nobody is writing."""
        self.check_members()
        self.run(3.0)
        states = self.cluster.state_hashes()[SHARD]
        assert len(states) == 3
        assert len(set(states.values())) == 1, states
        assert self.process(N1).node.host.damaged == {}
        assert self.process(N1).node.host.damaged_replicas == {}
        assert "0-1" not in self.tablets()


def cut_logs(story: Story) -> None:
    """Make every replica forget its old entries, so that only a snapshot can bring a new one up."""
    for process in story.cluster.processes.values():
        for replica in process.replicas():
            replica.machine.flush()()
            replica.core.compact(replica.machine.durable_applied)
