"""A replica whose log rotted comes back as a new incarnation, whatever crashes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest

from chaos.history import History
from chaos.linearizability import check
from kvstore.files import join
from kvstore.node.requests import Response
from kvstore.raft.messages import Configuration
from kvstore.types import META_SHARD, LogIndex, NodeId, ReplicaId, ShardId
from kvstore.wal import Recovered, Wal
from kvstore.wire import peer
from tests.sim.clients import Client
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


@pytest.fixture
def story() -> Story:
    return Story()


def cut_logs(story: Story) -> None:
    """Make every replica forget its old entries, so that only a snapshot can bring a new one up."""
    for process in story.cluster.processes.values():
        for replica in process.replicas():
            replica.machine.flush()()
            replica.core.compact(replica.machine.durable_applied)


# ---- the plain course


@pytest.mark.parametrize("is_cut", [False, True], ids=["by log", "by snapshot"])
def test_a_quarantined_replica_is_rebuilt_by_one_request(story: Story, is_cut: bool) -> None:
    story.lose_replica()
    assert ("n1", "quarantined") in story.roles()
    if is_cut:
        cut_logs(story)
    answer = story.rebuild()
    assert answer.status == 202
    assert msgspec.json.decode(answer.body) == {
        "shard": 0,
        "node": "n1",
        "replica": "n1/2",
        "role": "learner",
    }
    story.check_whole()
    assert story.process(N1).node.snapshots.installed == int(is_cut)
    assert sorted(role for _node, role in story.roles()) == ["follower", "follower", "leader"]
    assert story.reply(N1, "GET", "/v1/kv/key-20").body == b"needle-20"
    assert story.reply(N1, "GET", "/v1/kv/key-20?consistency=stale").body == b"needle-20"


def test_clients_notice_nothing_of_a_rebuild(story: Story) -> None:
    history = History()
    keys = [f"k{number}" for number in range(6)] + ["count-a"]
    clients = [Client(story.cluster, number, history, Random(number), keys) for number in range(6)]
    for client in clients:
        client.start()
    story.run(2.0)
    story.lose_replica()
    assert story.rebuild(via=N3).status == 202
    story.check_members()
    for client in clients:
        client.is_stopped = True
    story.run(6.0)
    history.close()
    verdict = check(history.operations)
    assert not verdict.violations
    assert sum(operation.outcome == "ok" for operation in history.operations) > 100
    story.check_whole()


# ---- crashes

STEPS: dict[str, Callable[[Story], bool]] = {
    "the learner is proposed": lambda story: NEW in story.proposed(),
    "the learner is committed": lambda story: NEW in story.configuration().learners,
    "the node was told": lambda story: story.quarantine_knows(2),
    "the replica is hosted": lambda story: story.hosted() == NEW,
    "the replica acknowledges": lambda story: story.match_of_new() > 0,
    "the group is joint": lambda story: story.configuration().is_joint,
    "the swap is committed": lambda story: story.has_swapped(),
    "the tombstone is written": lambda story: story.has_swapped() and not story.old_is_kept(),
}


@pytest.mark.parametrize("is_cut", [False, True], ids=["by log", "by snapshot"])
@pytest.mark.parametrize("victim", ["leader", "target", "all"])
@pytest.mark.parametrize("step", STEPS)
def test_a_rebuild_survives_a_crash_when(step: str, victim: str, is_cut: bool) -> None:
    story = Story(seed=sum(map(ord, step + victim)))
    story.lose_replica()
    if is_cut:
        cut_logs(story)
    story.ask(N2, "POST", f"/v1/shards/{SHARD}/rebuild", b'{"node":"n1"}')
    story.until(lambda: STEPS[step](story))
    leader = story.leader()
    assert leader is not None
    names = {"leader": [leader.name], "target": [N1], "all": [N1, N2, N3]}[victim]
    for name in names:
        story.stop(name, power_loss=True)
    story.run(1.0)
    for name in names:
        story.cluster.start(name)
    story.until(lambda: story.leader() is not None)
    if NEW not in story.configuration().members():
        # Nothing was committed, and nobody was told that anything would happen.
        assert step in ("the learner is proposed", "the learner is committed")
        story.run(3.0)
        if NEW not in story.configuration().members():
            assert story.rebuild(via=N3).status == 202
    story.check_whole()
    for number in range(40):
        assert story.reply(N1, "GET", f"/v1/kv/key-{number}").body == f"needle-{number}".encode()


def test_losing_the_new_replica_too_brings_a_third(story: Story) -> None:
    story.lose_replica()
    assert story.rebuild().status == 202
    story.until(lambda: story.match_of_new() > 0)
    story.put("after", "the copy")
    story.stop(N1)
    story.rot(N1, b"needle-30")
    story.cluster.start(N1)
    story.run(3.0)
    assert sorted(story.process(N1).node.quarantine.copies) == [(SHARD, 1), (SHARD, 2)]
    assert story.hosted() is None
    answer = story.rebuild(via=N3)
    assert msgspec.json.decode(answer.body)["replica"] == "n1/3"
    story.until(lambda: not story.process(N1).node.quarantine.copies)
    story.run(2.0)
    third = ReplicaId("n1/3")
    assert story.configuration() == Configuration(voters=(third, ReplicaId("n2/1"), ReplicaId("n3/1")))
    assert story.hosted() == third
    assert len(set(story.cluster.state_hashes()[SHARD].values())) == 1


def test_a_node_that_lost_its_whole_log_gets_every_replica_again() -> None:
    story = Story(shards=2)
    story.lead_elsewhere(N1)
    story.stop(N1)
    files = story.cluster.machines[N1].files
    kept = files.list(join(DATA, "tablets"))
    files.remove_tree(WAL)
    story.cluster.start(N1)
    story.run(4.0)
    node = story.process(N1).node
    assert sorted(node.host.damaged) == [0, 1, META_SHARD]
    assert files.list(join(DATA, "tablets")) == kept, "the tablets may be all that is left of a shard"
    for shard in (0, 1, "meta"):
        assert story.reply(N2, "POST", f"/v1/shards/{shard}/rebuild", b'{"node":"n1"}').status == 202
    story.until(lambda: not node.quarantine.copies)
    story.run(3.0)
    meta = msgspec.json.decode(story.reply(N2, "GET", "/v1/shards/meta").body)
    assert sorted(each["role"] for each in meta["replicas"]) == ["follower", "follower", "leader"]
    for hashes in story.cluster.state_hashes().values():
        assert len(hashes) == 3
        assert len(set(hashes.values())) == 1
    # A second loss of the same kind: the plan names only the first incarnations.
    story.lead_elsewhere(N1)
    story.stop(N1)
    files.remove_tree(WAL)
    story.cluster.start(N1)
    story.run(4.0)
    answer = story.rebuild()
    assert msgspec.json.decode(answer.body)["replica"] == "n1/3"
    story.until(lambda: story.hosted() == "n1/3" and "n1/3" in story.configuration().voters)


def test_a_halted_replica_is_rebuilt_and_its_mark_outlives_the_process(story: Story) -> None:
    story.lead_elsewhere(N1)
    host = story.process(N1).node.host
    host.halt(host.replicas[SHARD], "apply failed: a test says so")
    story.run(2.0)
    assert ("n1", "quarantined") in story.roles()
    assert story.rebuild().status == 202
    story.until(lambda: story.hosted() == NEW)
    story.stop(N1, power_loss=True)
    story.cluster.start(N1)
    story.until(lambda: story.process(N1).node.is_ready)
    assert story.hosted() == NEW
    story.check_whole()


def test_a_replica_that_recovers_by_a_restart_stays_and_its_learner_goes(story: Story) -> None:
    story.lead_elsewhere(N1)
    host = story.process(N1).node.host
    host.halt(host.replicas[SHARD], "read failed: a test says so")
    story.run(2.0)
    story.ask(N2, "POST", f"/v1/shards/{SHARD}/rebuild", b'{"node":"n1"}')
    story.until(lambda: NEW in story.proposed())
    story.stop(N1)
    story.cluster.start(N1)
    story.until(lambda: story.process(N1).node.is_ready)
    assert story.hosted() == OLD
    story.until(lambda: NEW in story.configuration().learners)
    story.until(lambda: NEW not in story.configuration().members())
    story.run(3.0)
    assert story.hosted() == OLD
    assert story.process(N1).node.host.damaged == {}
    assert len(set(story.cluster.state_hashes()[SHARD].values())) == 1


# ---- refusals


def test_a_healthy_replica_is_not_rebuilt(story: Story) -> None:
    answer = story.rebuild()
    assert answer.status == 400
    assert msgspec.json.decode(answer.body)["detail"] == "n1 holds a healthy replica of shard 0: n1/1"
    story.run(1.0)
    assert story.configuration().learners == ()


def test_only_a_home_of_the_shard_is_rebuilt() -> None:
    story = Story(nodes=4)
    homes = {node for node in story.cluster.config.node_ids() if story.hosted(node) is not None}
    (stranger,) = set(story.cluster.config.node_ids()) - homes
    answer = story.rebuild(stranger, via=min(homes))
    assert answer.status == 400
    assert f"{stranger} is no home of shard 0" in msgspec.json.decode(answer.body)["detail"]
    assert story.rebuild(NodeId("n9"), via=min(homes)).status == 400


def test_without_a_majority_of_other_voters_nothing_is_begun(story: Story) -> None:
    story.lose_replica()
    story.stop(N3)
    answer = story.rebuild(timeout="4s")
    assert answer.status == 503
    story.run(3.0)
    assert story.rebuild(timeout="2s").status == 503
    story.cluster.start(N3)
    story.until(lambda: story.leader() is not None)
    story.run(2.0)
    assert story.rebuild().status == 202
    story.check_whole()


def test_a_node_that_is_down_cannot_be_copied_to(story: Story) -> None:
    story.lead_elsewhere(N1)
    story.stop(N1)
    story.run(2.0)
    answer = story.rebuild()
    assert answer.status == 503
    assert "does not answer" in msgspec.json.decode(answer.body)["detail"]


def test_asking_twice_is_asking_once(story: Story) -> None:
    story.lose_replica()
    answers = [
        story.ask(node, "POST", f"/v1/shards/{SHARD}/rebuild", b'{"node":"n1"}') for node in (N1, N2, N3)
    ]
    story.until(lambda: all(answers))
    assert {answer[0].status for answer in answers if answer[0] is not None} <= {200, 202}
    story.check_whole()


# ---- schedule 29


def lose_the_only_full_copy(story: Story, *, is_last_gone: bool) -> tuple[NodeId, NodeId, NodeId]:
    """L and F1 hold committed entries that F2 lacks; F1's log rots; L dies, before F1 is back or after."""
    story.lead_elsewhere(N1)
    leader = story.leader()
    assert leader is not None
    last, first, second = leader.name, N1, next(each for each in (N2, N3) if each != leader.name)
    links = {(a, second) for a in (last, first)}
    story.cluster.network.cut |= links | {(b, a) for a, b in links}
    for number in range(81, 101):
        story.put(f"late-{number}", f"late-{number}", last)
    story.stop(first)
    story.rot(first)
    if is_last_gone:
        story.stop(last)
        story.run(0.5)
    story.cluster.start(first)
    story.world.run_until(story.world.now + 0.5)
    if not is_last_gone:
        story.stop(last)
    story.cluster.network.cut.clear()
    story.world.run_until(story.world.now + 10.0)
    return last, first, second


@pytest.mark.parametrize("is_last_gone", [False, True])
def test_pitfall_29_a_damaged_replica_never_helps_to_elect(story: Story, is_last_gone: bool) -> None:
    last, first, second = lose_the_only_full_copy(story, is_last_gone=is_last_gone)
    assert story.leader() is None, "F1 and F2 must not elect each other"
    assert story.rebuild(first, via=second, timeout="3s").status == 503
    assert story.hosted(first) is None
    story.cluster.start(last)
    story.until(lambda: story.leader() is not None)
    story.run(2.0)
    assert story.rebuild(first, via=second).status == 202
    story.check_whole()
    for number in range(81, 101):
        assert story.reply(first, "GET", f"/v1/kv/late-{number}").body == f"late-{number}".encode()


def forget_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the guard away: a replica goes on with what damage has left of its log."""
    careful = Wal.open

    def careless(*arguments: Any) -> tuple[Wal, Recovered]:
        wal, recovered = careful(*arguments)
        for replica in recovered.replicas.values():
            replica.quarantined = None
        return wal, recovered

    monkeypatch.setattr(Wal, "open", careless)


def test_pitfall_29_happens_without_the_quarantine(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_marks(monkeypatch)
    _last, _first, second = lose_the_only_full_copy(story, is_last_gone=True)
    assert story.leader() is not None
    answers = story.ask(second, "GET", "/v1/kv/late-90")
    story.world.run_while(lambda: not answers, 5.0)
    assert answers[0] is not None
    assert answers[0].status == 404, "an acknowledged write is gone"
    assert story.failures, "the invariants see it too"


def test_a_replica_that_its_leader_proves_wrong_is_quarantined(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage that the log did not show is seen once the leader says what was acknowledged."""
    with monkeypatch.context() as patched:
        forget_marks(patched)
        story.lead_elsewhere(N1)
        story.stop(N1)
        story.rot(N1)
        story.cluster.start(N1)
        story.run(2.0)
    assert "contradicted by its group" in story.process(N1).node.host.damaged[SHARD]
    assert story.hosted() is None
    story.stop(N1)
    story.cluster.start(N1)
    story.run(2.0)
    assert story.hosted() is None, "no restart brings it back"
    assert story.rebuild().status == 202
    story.check_whole()


def test_a_damaged_replica_acknowledges_nothing_and_supports_no_leader(story: Story) -> None:
    story.lose_replica()
    leader = story.leader()
    assert leader is not None
    (other,) = {N2, N3} - {leader.name}
    story.stop(other)
    answers = story.ask(leader.name, "PUT", "/v1/kv/alone", b"x", timeout="3s")
    story.until(lambda: bool(answers))
    assert answers[0] is not None
    assert answers[0].status in (503, 504)
    story.run(3.0)
    assert story.leader() is None, "check-quorum counts no damaged replica"


def test_a_copy_in_the_making_answers_no_reads_of_its_own(story: Story) -> None:
    """An empty learner hears its leader; a stale read must not take that for knowing everything."""
    story.lose_replica()
    cut_logs(story)
    story.ask(N2, "POST", f"/v1/shards/{SHARD}/rebuild", b'{"node":"n1"}')
    story.until(lambda: story.hosted() == NEW)
    replica = story.process(N1).node.host.replicas[SHARD]
    while not replica.core.is_voter:
        for consistency in ("stale", "linearizable"):
            answer = story.reply(N1, "GET", f"/v1/kv/key-20?consistency={consistency}")
            assert (answer.status, answer.body) == (200, b"needle-20")
    story.check_whole()


# ---- what is left


def test_a_destroyed_replica_leaves_neither_log_nor_directory_behind(story: Story) -> None:
    """A damaged replica keeps its entries; once destroyed they must not hold the log for ever."""
    story.lose_replica()
    assert story.rebuild().status == 202
    story.check_whole()
    node = story.process(N1).node
    for number in range(300):
        story.put(f"more-{number % 20}", "x" * 1000)
    for _ in range(6):
        for replica in node.host.replicas.values():
            node.keeper.flush(replica)
            replica.core.compact(replica.machine.durable_applied)
        story.run(1.0)
        node.keeper.reclaim()
        story.run(1.0)
    assert node.wal.segment_count <= 3
    assert node.wal.oldest_segment > 1
    story.stop(N1)
    story.cluster.start(N1)
    story.until(lambda: story.process(N1).node.is_ready)
    assert story.process(N1).node.host.damaged == {}, "the plan's first incarnation is not missed"
    assert story.hosted() == NEW
    assert "0-1" not in story.tablets()
    story.run(3.0)
    assert len(set(story.cluster.state_hashes()[SHARD].values())) == 1


def test_a_late_word_for_another_incarnation_destroys_nothing(story: Story) -> None:
    story.lose_replica()
    quarantine = story.process(N1).node.quarantine
    on_message = story.process(N1).node.host.on_message
    for replica in (OLD, NEW, ReplicaId("n2/1"), ReplicaId("n1/9")):
        on_message[peer.DestroyReplica](N2, peer.DestroyReplica(SHARD, replica))
    story.run(1.0)
    assert list(quarantine.copies) == [(SHARD, 1)], "no successor lives here"
    assert story.rebuild().status == 202
    story.check_whole()
    for replica in (OLD, NEW, ReplicaId("n1/9")):
        on_message[peer.DestroyReplica](N2, peer.DestroyReplica(SHARD, replica))
        on_message[peer.CreateReplica](N2, peer.CreateReplica(SHARD, min(replica, NEW)))
    story.run(2.0)
    story.check_whole()


# ---- anything at any time


@pytest.mark.parametrize("seed", range(8))
def test_a_rebuild_under_random_faults_loses_nothing(seed: int) -> None:
    """Clients, crashes, cuts and a bad network all through it; at the end every voter is there and equal."""
    story = Story(seed=1000 + seed)
    dice, cluster = Random(f"rebuild/{seed}"), story.cluster
    history = History()
    clients = [
        Client(cluster, number, history, Random(f"{seed}/{number}"), ["a", "b", "c", "count-a"])
        for number in range(5)
    ]
    story.lose_replica()
    for client in clients:
        client.start()
    faults = cluster.network.faults
    faults.loss, faults.repeat, faults.reorder = dice.choice((0.0, 0.05)), 0.05, 0.1
    for _ in range(12):
        if dice.random() < 0.3:
            cut_logs(story)
        story.ask(dice.choice((N1, N2, N3)), "POST", f"/v1/shards/{SHARD}/rebuild", b'{"node":"n1"}')
        story.run(dice.uniform(0.0, 1.5))
        name = dice.choice((N1, N1, N2, N3))
        if dice.random() < 0.5:
            story.stop(name, power_loss=dice.random() < 0.5)
            story.run(dice.uniform(0.1, 2.0))
            cluster.start(name)
        else:
            other = dice.choice([each for each in (N1, N2, N3) if each != name])
            cluster.network.cut |= {(name, other)} if dice.random() < 0.5 else {(name, other), (other, name)}
            story.run(dice.uniform(0.1, 2.0))
            cluster.network.cut.clear()
    faults.loss = faults.repeat = faults.reorder = 0.0
    story.until(lambda: story.leader() is not None)
    story.run(3.0)
    if NEW not in story.configuration().members():
        assert story.rebuild().status == 202
    story.check_members()
    for client in clients:
        client.is_stopped = True
    story.run(8.0)
    history.close()
    assert not check(history.operations).violations
    story.check_whole()
