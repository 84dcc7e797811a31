"""What a node may say about the cluster, from its own knowledge and what the others answer."""

from __future__ import annotations

import re

import msgspec
import pytest

from kvstore.errors import InvalidArgument, NoLeader, NotFound
from kvstore.node.flow import Promise
from kvstore.node.view import NodeView, _newest_leaders
from kvstore.store.intents import Pending
from kvstore.types import META_SHARD, NodeId, ReplicaId, ShardId, Term
from tests.sim.script import N1, N2, N3, SHARD, Script


@pytest.fixture
def script() -> Script:
    script = Script(nodes=4, shards=4)
    script.start()
    script.run(1.0)
    return script


def view_of(script: Script, name: NodeId = N1) -> NodeView:
    process = script.process(name)
    return NodeView(process.node, process.transport)


def wait(script: Script, promise: Promise) -> object:  # type: ignore[type-arg]
    script.run_until(lambda: promise.is_done, 8.0, "an answer")
    return promise.result()


class TestRoutes:
    def test_every_node_names_leader_homes_and_range_of_every_shard(self, script: Script) -> None:
        for name in script.cluster.config.node_ids():
            routes = view_of(script, name).routes()
            assert [row.id for row in routes.shards] == [0, 1, 2, 3]
            assert routes.shards[0].start == "0" * 16
            assert routes.shards[-1].end == "f" * 16
            assert all(len(row.replicas) == 3 for row in routes.shards)
            assert [node.client for node in routes.nodes] == [
                f"10.0.0.{number}:7400" for number in (1, 2, 3, 4)
            ]
            for row in routes.shards:
                is_home = name in row.replicas
                assert (row.clock_ms is not None) == is_home
                assert row.leader == script.leader(row.id) or (row.leader is None and not is_home)

    def test_the_epoch_grows_with_every_election(self, script: Script) -> None:
        view = view_of(script)
        shard = next(iter(script.process(N1).node.host.replicas))
        before = view.epoch()
        others = [name for name in view._homes(shard) if name != script.leader(shard)]
        script.process(N1).node.ask_transfer(shard, others[0])
        script.run(0.5)
        assert view.epoch() > before


class TestCluster:
    def test_a_healthy_cluster(self, script: Script) -> None:
        row = wait(script, view_of(script).cluster())
        assert (row.name, row.health, row.shards_without_leader, row.nodes_down) == ("sim", "ok", [], [])  # type: ignore[attr-defined]
        assert (row.shards, row.nodes, row.replication, row.node) == (4, 4, 3, N1)  # type: ignore[attr-defined]
        identity = script.process(N2).node.boot.identity
        assert identity.cluster_id is not None
        assert row.id == identity.cluster_id.hex()  # type: ignore[attr-defined]

    def test_a_node_down_degrades_it(self, script: Script) -> None:
        script.kill(NodeId("n4"))
        script.run(4.0)
        row = wait(script, view_of(script).cluster())
        assert (row.health, row.nodes_down) == ("degraded", ["n4"])  # type: ignore[attr-defined]
        rows = {each.id: each.up for each in view_of(script).nodes()}
        assert rows == {"n1": True, "n2": True, "n3": True, "n4": False}

    def test_a_shard_without_leader_makes_it_unavailable(self, script: Script) -> None:
        script.kill(N2, N3)
        script.run(4.0)
        row = wait(script, view_of(script).cluster())
        assert row.health == "unavailable"  # type: ignore[attr-defined]
        assert row.shards_without_leader  # type: ignore[attr-defined]

    def test_a_damaged_replica_degrades_it_and_is_named_in_its_shard(self, script: Script) -> None:
        name, shard = _a_follower(script)
        script.process(name).node.host.halt(script.replica(name, shard), "bad block")
        script.run(0.5)
        row = wait(script, view_of(script).cluster())
        assert row.health == "degraded"  # type: ignore[attr-defined]
        rows = {each.id: each for each in wait(script, view_of(script).shard_rows())}  # type: ignore[attr-defined]
        roles = {replica.node: replica.role for replica in rows[shard].replicas}
        assert roles[name] == "quarantined"
        assert sorted(roles.values()) == ["follower", "leader", "quarantined"]


def _a_follower(script: Script) -> tuple[NodeId, ShardId]:
    process = script.process(N2)
    replica = next(each for each in process.replicas() if each.led_term is None and each.shard != META_SHARD)
    return N2, replica.shard


class TestShards:
    def test_a_row_tells_what_the_leader_knows(self, script: Script) -> None:
        script.fill(N1, 20)
        script.run(1.0)
        rows = {row.id: row for row in wait(script, view_of(script).shard_rows())}  # type: ignore[attr-defined]
        data = [rows[ShardId(shard)] for shard in range(4)]
        assert sum(row.keys for row in data) == 20
        for row in data:
            leader = script.process(row.leader).node.host.replicas[row.id]
            assert (row.term, row.applied) == (leader.core.term, leader.machine.applied)
            assert {replica.match for replica in row.replicas} == {leader.core.last_index}
        assert rows[META_SHARD].start == ""

    def test_the_newest_leader_is_believed(self, script: Script) -> None:
        """A deposed one that was cut off does not know it yet."""
        name, shard = _a_follower(script)
        leader = script.leader(shard)
        assert leader is not None
        mine = script.process(leader).node.status.mine()
        [row] = [each for each in mine.led if each.shard == shard]
        older = msgspec.structs.replace(row, term=Term(row.term - 1), leader=ReplicaId(f"{name}/1"))
        deposed = msgspec.structs.replace(mine, led=(older,))
        for statuses in ({name: deposed, leader: mine}, {leader: mine, name: deposed}):
            assert _newest_leaders(statuses)[shard] == row


class TestTransfer:
    def test_it_ends_once_the_chosen_node_leads(self, script: Script) -> None:
        view = view_of(script)
        homes = view.routes().shards[0].replicas
        to = next(name for name in homes if name != script.leader(0))
        asker = view_of(script, to)
        wait(script, asker.transfer(SHARD, to, script.process(to).runtime.now() + 5.0))
        assert script.leader(0) == to

    def test_unknown_shards_and_nodes_that_are_no_home_are_refused(self, script: Script) -> None:
        view = view_of(script)
        with pytest.raises(NotFound):
            wait(script, view.transfer(ShardId(9), N1, 1e9))
        stranger = next(
            name for name in script.cluster.config.node_ids() if name not in view.routes().shards[0].replicas
        )
        with pytest.raises(InvalidArgument, match="no voting replica"):
            wait(script, view.transfer(SHARD, stranger, 1e9))

    def test_it_gives_up_at_its_deadline(self, script: Script) -> None:
        view = view_of(script)
        homes = view.routes().shards[0].replicas
        to = next(name for name in homes if name not in (script.leader(0), N1))
        script.kill(to)
        promise = view.transfer(SHARD, to, script.process(N1).runtime.now() + 0.5)
        with pytest.raises(NoLeader, match="before the deadline"):
            wait(script, promise)


class TestHealth:
    def test_a_member_with_leaders_and_space_is_ready(self, script: Script) -> None:
        checks = view_of(script).readiness()
        assert all(check.is_ok for check in checks), checks
        assert {check.name for check in checks} == {
            "member", "leaders_known", "no_quarantine", "disk_space", "log_disk", "transactions", "running",
            "log",
        }  # fmt: skip

    def test_transactions_that_do_not_end_are_named_and_keep_no_node_from_serving(
        self, script: Script, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replica = next(replica for replica in script.process(N1).replicas() if replica.shard != META_SHARD)
        intents = replica.machine.intents
        monkeypatch.setattr(
            intents, "pending", {b"t": Pending(0, [[0, 9], [1, 9]], [True, None, None], False)}
        )
        monkeypatch.setattr(intents, "prepared_count", 1)
        script.run(5.0)
        [check] = [check for check in view_of(script).readiness() if check.name == "transactions"]
        assert check.is_ok
        told = rf"shard {replica.shard}: 1 undecided, the oldest for \d+\.\d s"
        assert re.fullmatch(told, check.detail), check.detail

    def test_before_the_first_boot_it_says_what_it_waits_for(self) -> None:
        script = Script()
        script.cluster.start(N1)
        script.run(1.0)
        [check] = view_of(script).readiness()
        assert (check.name, check.is_ok) == ("member", False)
        assert "n2: not reached" in check.detail

    def test_each_trouble_has_its_own_check(self, script: Script) -> None:
        node = script.process(N1).node
        shard = next(iter(node.host.replicas))
        node.host.halt(node.host.replicas[shard], "bad block")
        script.cluster.machines[N1].files.capacity_bytes = 1
        disk = script.cluster.machines[N1].disk
        disk.hung_until, disk.hung_lane = script.world.now + 30.0, "wal"
        node.host.log.add([], None)
        node.host.log.then(lambda: None)
        node.host.schedule_pass()
        script.run(2.0)
        failed = {check.name: check.detail for check in view_of(script).readiness() if not check.is_ok}
        assert set(failed) >= {"no_quarantine", "disk_space", "log_disk"}
        assert "bad block" in failed["no_quarantine"]

    def test_a_disk_that_hangs_is_no_reason_to_restart_the_node(self, script: Script) -> None:
        node = script.process(N1).node
        disk = script.cluster.machines[N1].disk
        disk.hung_until, disk.hung_lane = script.world.now + 20.0, "wal"
        node.host.log.add([], None)
        node.host.log.then(lambda: None)
        node.host.schedule_pass()
        for _ in range(5):
            script.run(2.0)
            assert "log_disk" in {check.name for check in view_of(script).readiness() if not check.is_ok}
            assert all(check.is_ok for check in view_of(script).liveness())
        script.run(15.0)
        assert all(check.is_ok for check in view_of(script).readiness())

    def test_a_failed_log_is_a_reason_to_restart_the_node(self, script: Script) -> None:
        script.process(N1).node.host.log.is_dead = True
        failed = [check for check in view_of(script).liveness() if not check.is_ok]
        assert [(check.name, check.detail) for check in failed] == [("log", "the log has failed")]

    def test_a_shard_without_known_leader_is_named(self, script: Script) -> None:
        script.part(N1)
        script.run(4.0)
        failed = {check.name: check.detail for check in view_of(script).readiness() if not check.is_ok}
        assert set(failed) == {"leaders_known"}

    def test_a_stopped_node_is_not_alive(self, script: Script) -> None:
        script.process(N1).node.stop()
        assert [check.name for check in view_of(script).liveness() if not check.is_ok] == ["running"]

    def test_facts_of_the_node(self, script: Script) -> None:
        assert view_of(script).facts() == {"node": N1, "engine": "memory", "shards": 4, "replication": 3}
