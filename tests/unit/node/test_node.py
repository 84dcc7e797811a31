"""A whole node but for its sockets: its life, its first boot, what it does with orders from others."""

from __future__ import annotations

import msgspec
import pytest

from kvstore.errors import Corrupt, DiskFailed
from kvstore.node.identity import DirectoryRefused
from kvstore.store.limits import StoreLimits
from kvstore.store.memory import MemoryEngines
from kvstore.types import META_SHARD, NodeId, ReplicaId
from kvstore.wire import peer
from kvstore.wire.boot_messages import MEMBER
from tests.sim.script import N1, N2, N3, SHARD, Script


@pytest.fixture
def script() -> Script:
    script = Script()
    script.start()
    script.lead(N1)
    return script


class TestLife:
    def test_it_serves_once_all_seeds_have_agreed_and_says_what_it_waits_for_until_then(self) -> None:
        script = Script()
        for name in (N1, N2):
            script.cluster.start(name)
        script.run(3.0)
        node = script.process(N1).node
        assert not node.is_ready
        assert node.waiting_for() == ["n3: not reached"]
        script.start(N3)
        assert node.is_ready
        assert node.waiting_for() == []
        assert node.boot.identity.stage == MEMBER

    def test_it_hosts_every_replica_that_the_plan_puts_here(self, script: Script) -> None:
        assert set(script.process(N1).node.host.replicas) >= {SHARD}
        assert {each.me for each in script.process(N2).replicas()} == {"n2/1"}

    def test_the_first_leaders_are_spread_evenly_over_the_nodes(self) -> None:
        script = Script(shards=8)
        script.start()
        script.run(2.0)
        led = {
            name: sum(each.is_leader for each in script.process(name).replicas() if each.shard != META_SHARD)
            for name in (N1, N2, N3)
        }
        assert sorted(led.values()) == [2, 3, 3]

    def test_a_restart_finds_everything_without_asking_anybody(self, script: Script) -> None:
        written = script.fill(N1, 5)
        script.run(0.5)
        applied = script.replica(N2).machine.applied
        script.kill(N2)
        script.part(N2)
        script.restart(N2)
        script.run(0.2)
        core = script.replica(N2).core
        assert core.last_index >= applied
        assert core.leader is None
        script.mend()
        script.run(2.0)
        assert script.values(N2, written) == written

    def test_a_stopped_node_acknowledges_nothing(self, script: Script) -> None:
        script.process(N1).node.stop()
        write = script.send(N1, "PUT", "/v1/kv/a", b"1")
        script.run(3.0)
        assert not write.is_done
        assert script.leader() in (N1, N2, N3)

    def test_a_disk_that_refuses_a_write_at_the_start_ends_the_node_and_quarantines_nothing(
        self, script: Script, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = script.fill(N1, 3)
        script.kill(N2)

        def refuse(self: object, directory: str) -> None:
            raise DiskFailed("While fdatasync: Input/output error")

        with monkeypatch.context() as broken:
            broken.setattr(MemoryEngines, "open", refuse)
            script.restart(N2)
            script.run(0.1)
            assert N2 not in script.cluster.processes
        script.restart(N2)
        script.run(3.0)
        assert not script.damaged()
        assert script.values(N2, written) == written

    def test_a_closed_node_leaves_its_directory_to_the_next(self, script: Script) -> None:
        node = script.process(N2).node
        files = script.cluster.machines[N2].files
        with pytest.raises(DirectoryRefused, match="in use"):
            type(node.directory).open(files, "/data", "sim", N2)
        node.stop()
        node.close()
        type(node.directory).open(files, "/data", "sim", N2).release()

    def test_a_clean_stop_hands_every_leadership_over(self, script: Script) -> None:
        written = script.fill(N1, 3)
        led = [each.shard for each in script.process(N1).replicas() if each.led_term is not None]
        assert led
        script.process(N1).node.hand_over()
        script.run(0.3)
        assert all(script.leader(shard) in (N2, N3) for shard in led)
        assert script.values(N2, written) == written

    def test_a_single_node_has_nobody_to_hand_over_to(self) -> None:
        script = Script(nodes=1)
        script.start()
        script.process(N1).node.hand_over()
        script.run(0.5)
        assert script.put(N1, "a", "1").status == 201


class TestFirstBoot:
    def test_replicas_are_in_the_log_before_the_identity_says_member(self) -> None:
        """Else a member whose log lacks them could not be told from one that has lost its log."""
        script = Script()
        script.start()
        for name in (N1, N2, N3):
            node = script.process(name).node
            identity = node.directory.identity
            assert identity.is_member
            assert identity.accepted is not None
        script.cut_power(N1, N2, N3)
        script.start()
        assert not script.damaged()

    @pytest.mark.parametrize("step", range(0, 24, 2))
    def test_a_power_cut_anywhere_in_it_costs_only_time(self, step: int) -> None:
        script = Script()
        script.crash_at_step(N2, step)
        for name in (N1, N2, N3):
            script.start_until_crash(name)
        script.run_through_crashes(3.0)
        if N2 not in script.cluster.processes:
            script.restart(N2)
        script.run_until(script.cluster.has_all_leaders, 15.0, "all shards have leaders")
        assert script.put(N3, "a", "1").status == 201
        assert not script.damaged()

    def test_a_damaged_identity_stops_the_node(self, script: Script) -> None:
        script.kill(N2)
        script.cluster.machines[N2].files.flip("/data/identity", 30)
        error = script.try_to_start(N2)
        assert isinstance(error, Corrupt)


class TestOrders:
    def test_a_transfer_may_be_asked_of_any_node(self, script: Script) -> None:
        script.process(N3).node.ask_transfer(SHARD, N2)
        script.run(0.3)
        assert script.leader() == N2

    def test_a_transfer_to_no_voter_or_at_no_leader_does_nothing(self, script: Script) -> None:
        node = script.process(N1).node
        node.ask_transfer(SHARD, NodeId("n9"))
        script.process(N2).node.host.on_message[peer.TransferRequest](N1, peer.TransferRequest(0, SHARD, N2))
        script.run(0.5)
        assert script.leader() == N1
        assert script.replica(N1).core.transfer_target is None

    def test_a_new_leader_brings_its_configured_limits_into_the_shard(self) -> None:
        script = Script(
            edit=lambda config: msgspec.structs.replace(
                config, history=msgspec.structs.replace(config.history, revisions=77)
            )
        )
        script.start()
        script.run(1.0)
        assert {script.replica(name).machine.limits.history_revisions for name in (N1, N2, N3)} == {77}
        assert StoreLimits().history_revisions != 77

    def test_a_damaged_peer_is_forgotten_by_its_leader(self, script: Script) -> None:
        script.fill(N1, 2)
        script.run(0.5)
        progress = script.replica(N1).core.progress[ReplicaId("n3/1")]
        assert progress.match > 0
        script.part(N1, N3)
        host = script.process(N1).node.host
        host.on_message[peer.QuarantineNotice](N3, peer.QuarantineNotice(SHARD, ReplicaId("n3/1")))
        assert progress.match == 0
        script.mend()
        script.run(1.0)
        assert progress.match > 0, "it was healthy after all"

    def test_nobody_speaks_for_the_replica_of_another_node(self, script: Script) -> None:
        script.run(0.5)
        progress = script.replica(N1).core.progress[ReplicaId("n3/1")]
        host = script.process(N1).node.host
        host.on_message[peer.QuarantineNotice](N2, peer.QuarantineNotice(SHARD, ReplicaId("n3/1")))
        assert progress.match > 0


class TestAddresses:
    def test_a_changed_address_is_learnt_kept_and_passed_on(self, script: Script) -> None:
        moved = peer.NodeAddress(N3, 9, "10.9.9.9:1", "10.9.9.9:2")
        changes: list[str] = []
        script.process(N1).node.on_addresses = lambda: changes.append("n1")
        script.process(N1).node.learn_addresses((moved,))
        script.run(0.1)
        assert changes == ["n1"]
        assert script.process(N1).node.client_address(N3) == "10.9.9.9:2"
        assert moved in script.process(N1).node.directory.identity.addresses
        script.process(N2).node.greet(N1)
        script.process(N1).node.greet(N2)
        script.run(0.1)
        assert script.process(N2).node.address_of(N3) == moved

    def test_what_is_known_already_changes_nothing(self, script: Script) -> None:
        node = script.process(N1).node
        known = node.address_of(N3)
        assert known is not None
        node.on_addresses = lambda: pytest.fail("nothing is new")
        node.learn_addresses((known,))

    def test_addresses_that_cannot_be_saved_are_still_used(self, script: Script) -> None:
        script.cluster.machines[N1].files.fail("write", path_part="identity")
        moved = peer.NodeAddress(N3, 9, "10.9.9.9:1", "10.9.9.9:2")
        script.process(N1).node.learn_addresses((moved,))
        script.run(0.2)
        assert script.process(N1).node.address_of(N3) == moved
        assert not script.exits

    def test_the_seed_list_answers_for_nodes_never_heard_of(self, script: Script) -> None:
        node = script.process(N1).node
        assert node.client_address(N2) == "10.0.0.2:7400"
        assert node.client_address(NodeId("n9")) is None


def test_every_role_change_is_counted(script: Script) -> None:
    before = {name: script.process(name).node.role_changes for name in (N1, N2)}
    script.lead(N2)
    after = {name: script.process(name).node.role_changes for name in (N1, N2)}
    assert (after[N1] - before[N1], after[N2] - before[N2]) == (1, 1)


def test_a_node_that_lost_its_whole_log_holds_nothing_back_from_the_others(script: Script) -> None:
    written = script.fill(N1, 3)
    script.kill(N3)
    script.cluster.machines[N3].files.remove_tree("/data/wal")
    script.restart(N3)
    script.run(1.0)
    damaged = script.process(N3).node.host.damaged
    assert "no trace" in damaged[SHARD]
    assert set(damaged) <= {SHARD, META_SHARD}
    assert script.values(N3, written) == written, "it passes operations on"
