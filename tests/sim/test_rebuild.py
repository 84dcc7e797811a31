"""A replica whose log rotted comes back as a new incarnation, whatever crashes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest

from chaos.history import History
from chaos.linearizability import check
from kvstore.files import join
from kvstore.raft.messages import Configuration
from kvstore.types import META_SHARD, NodeId, ReplicaId
from kvstore.wire import peer
from tests.sim.clients import Client
from tests.sim.cluster import DATA
from tests.sim.rebuild_story import N1, N2, N3, NEW, OLD, SHARD, WAL, Story, cut_logs

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
