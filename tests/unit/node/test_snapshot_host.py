"""When a snapshot is made, for whom, what may be installed, and when the old tablet goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvstore.errors import DiskFull, Fatal
from kvstore.node.snapshot_host import SnapshotHost
from kvstore.raft.messages import Configuration, SnapshotMeta, SnapshotOffer
from kvstore.store.machine import Machine
from kvstore.types import LogIndex, NodeId, ReplicaId, Term
from kvstore.wire import peer
from kvstore.wire.snapshot_messages import SnapshotManifestRequest
from tests.sim.script import N1, N2, N3, SHARD, Script

REPLICA_3 = ReplicaId("n3/1")


@pytest.fixture
def script() -> Script:
    script = Script()
    script.start()
    script.lead(N1)
    script.fill(N1, 5)
    script.run(0.5)
    # A tablet in memory has a directory once it was flushed.
    script.process(N3).node.keeper.flush(script.replica(N3))
    script.run(0.1)
    return script


def snapshots(script: Script, name: NodeId = N1) -> SnapshotHost:
    return script.process(name).node.snapshots


def cut_log(script: Script, *names: NodeId) -> None:
    """Flush tablets and cut logs as far as that allows."""
    for name in names:
        script.process(name).node.keeper.flush(script.replica(name))
    script.run(0.1)
    for name in names:
        script.replica(name).core.compact(script.replica(name).machine.durable_applied)


def lag(script: Script, name: NodeId = N3) -> None:
    """The node lacks what the others' logs no longer hold."""
    script.part(name)
    script.fill(N1, 3, prefix="late")
    script.run(0.2)
    cut_log(script, N1, N2)
    # A silent peer is not offered a snapshot; it is heard again once the network is whole.


def count_checkpoints(script: Script, name: NodeId = N1) -> list[str]:
    made: list[str] = []
    machine = script.replica(name).machine
    checkpoint = machine.checkpoint

    def count(directory: str) -> SnapshotMeta:
        made.append(directory)
        return checkpoint(directory)

    machine.checkpoint = count  # type: ignore[method-assign]
    return made


def tablets(script: Script, name: NodeId) -> list[str]:
    files = script.cluster.machines[name].files
    return [each for each in files.list("/data/tablets") if each.startswith("0-")]


def wait_for_install(script: Script, name: NodeId = N3) -> None:
    script.run_until(lambda: snapshots(script, name).installed > 0, 8.0, f"{name} installs a snapshot")


class TestMaking:
    def test_a_peer_that_lags_too_far_gets_one_checkpoint_and_catches_up(self, script: Script) -> None:
        made = count_checkpoints(script)
        lag(script)
        script.mend()
        wait_for_install(script)
        script.run(1.0)
        assert len(made) == 1
        assert script.replica(N3).machine.applied == script.replica(N1).machine.applied
        script.check()

    def test_two_peers_share_a_checkpoint_that_is_in_the_making(self, script: Script) -> None:
        made = count_checkpoints(script)
        host = snapshots(script)
        replica = script.replica(N1)
        host._provide(replica, ReplicaId("n2/1"))
        host._provide(replica, REPLICA_3)
        assert host.pins() == {SHARD: replica.machine.applied}
        script.run(0.2)
        assert len(made) == 1
        assert host.sender.kept(SHARD) is not None

    def test_a_kept_checkpoint_serves_the_next_peer_while_the_log_reaches_it(self, script: Script) -> None:
        made = count_checkpoints(script)
        replica = script.replica(N1)
        snapshots(script)._provide(replica, REPLICA_3)
        script.run(0.2)
        snapshots(script)._provide(replica, ReplicaId("n2/1"))
        script.run(0.2)
        assert len(made) == 1
        script.fill(N1, 3, prefix="more")
        cut_log(script, N1)
        assert replica.core.first_index - 1 > snapshots(script).pins()[SHARD]
        snapshots(script)._provide(replica, ReplicaId("n2/1"))
        script.run(0.2)
        assert len(made) == 2, "the log was cut above the first one"

    def test_a_request_for_what_was_dropped_makes_it_anew(self, script: Script) -> None:
        made = count_checkpoints(script)
        request = SnapshotManifestRequest(SHARD, LogIndex(3), Term(1))
        host = script.process(N1).node.host
        host.on_message[SnapshotManifestRequest](N3, request)
        script.run(0.2)
        assert len(made) == 1
        script.process(N2).node.host.on_message[SnapshotManifestRequest](N3, request)
        script.run(0.2)
        assert snapshots(script, N2).pins() == {}, "only a leader makes them"

    def test_pitfall_13_without_space_no_snapshot_is_made_and_the_node_goes_on(self, script: Script) -> None:
        _fail_checkpoint(script, DiskFull("no space"))
        snapshots(script)._provide(script.replica(N1), REPLICA_3)
        script.run(0.5)
        assert not script.exits
        assert snapshots(script).pins() == {}

    def test_a_checkpoint_that_fails_otherwise_ends_the_node(self, script: Script) -> None:
        _fail_checkpoint(script, Fatal("dead disk"))
        snapshots(script)._provide(script.replica(N1), REPLICA_3)
        script.run(0.5)
        assert [(name, str(error)) for name, error in script.exits] == [(N1, "dead disk")]

    def test_a_replica_that_went_meanwhile_offers_nothing(self, script: Script) -> None:
        replica = script.replica(N1)
        snapshots(script)._provide(replica, REPLICA_3)
        script.process(N1).node.host.halt(replica, "damaged")
        script.run(0.3)
        assert snapshots(script).sender.kept(SHARD) is None


def _fail_checkpoint(script: Script, error: Exception) -> None:
    def fail(directory: str) -> SnapshotMeta:
        raise error

    script.replica(N1).machine.checkpoint = fail  # type: ignore[method-assign]


class TestInstalling:
    def test_pitfall_36_the_old_tablet_goes_only_after_the_record_of_the_new_one(
        self, script: Script
    ) -> None:
        lag(script)
        [old] = tablets(script, N3)
        # The record waits for the log's thread; meanwhile the machine is the new one already.
        script.cluster.machines[N3].disk.hung_lane = "wal"
        script.mend()
        script.run_until(lambda: len(tablets(script, N3)) == 2, 5.0, "the snapshot arrives")
        script.cluster.machines[N3].disk.hung_until = script.world.now + 1.0
        wait_for_install(script)
        script.run(0.5)
        assert old in tablets(script, N3)
        assert script.replica(N3).directory != old
        script.cluster.machines[N3].disk.hung_until = 0.0
        script.run(1.5)
        assert tablets(script, N3) == [script.replica(N3).directory]
        script.check()

    def test_an_installed_tablet_is_found_by_the_next_start(self, script: Script) -> None:
        lag(script)
        script.mend()
        wait_for_install(script)
        script.run(0.5)
        directory = script.replica(N3).directory
        script.cut_power(N3)
        script.restart(N3)
        script.run(1.0)
        assert script.replica(N3).directory == directory
        assert not script.damaged()
        script.check()

    @pytest.mark.parametrize(
        "change",
        [
            lambda meta: meta._replace_index(1),
            lambda meta: meta._replace_term(1),
            lambda meta: meta._replace_members(),
        ],
        ids=["index", "term", "members"],
    )
    def test_pitfall_17_a_tablet_that_is_not_what_was_promised_is_thrown_away(
        self, script: Script, change: Callable[[Any], SnapshotMeta]
    ) -> None:
        directory = "/data/tablets/0-1-other"
        meta = script.replica(N3).machine.checkpoint(directory)
        files = script.cluster.machines[N3].files
        before = script.replica(N3).machine
        snapshots(script, N3)._on_complete(SHARD, change(_Changed(meta)), directory)
        script.run(0.2)
        assert script.replica(N3).machine is before
        assert not files.exists(directory)
        assert snapshots(script, N3).installed == 0

    def test_a_tablet_that_does_not_open_is_thrown_away(self, script: Script) -> None:
        directory = "/data/tablets/0-1-other"
        meta = script.replica(N3).machine.checkpoint(directory)
        script.cluster.machines[N3].files.flip(f"{directory}/tablet", 20)
        snapshots(script, N3)._on_complete(SHARD, meta, directory)
        script.run(0.2)
        assert tablets(script, N3) == [script.replica(N3).directory]
        assert not script.exits

    def test_a_snapshot_that_came_too_late_is_thrown_away(self, script: Script) -> None:
        directory = "/data/tablets/0-1-other"
        meta = script.replica(N3).machine.checkpoint(directory)
        before = script.replica(N3).machine
        snapshots(script, N3)._on_complete(SHARD, meta, directory)
        script.run(0.2)
        assert script.replica(N3).machine is before
        assert tablets(script, N3) == [script.replica(N3).directory]

    def test_what_arrives_for_a_replica_that_is_gone_is_thrown_away(self, script: Script) -> None:
        directory = "/data/tablets/0-1-other"
        meta = script.replica(N3).machine.checkpoint(directory)
        script.process(N3).node.host.halt(script.replica(N3), "damaged")
        snapshots(script, N3)._on_complete(SHARD, meta, directory)
        script.run(0.2)
        assert not script.cluster.machines[N3].files.exists(directory)

    def test_an_offer_that_the_core_does_not_want_starts_no_transfer(self, script: Script) -> None:
        core = script.replica(N3).core
        meta = SnapshotMeta(core.commit, core.term, core.configuration)
        offer = SnapshotOffer(ReplicaId("n1/1"), REPLICA_3, core.term, core.commit, meta)
        script.network.inject(N1, N3, peer.RaftMessages(SHARD, (offer,)))
        script.run(0.2)
        assert snapshots(script, N3).receiver._fetches == {}


class _Changed:
    def __init__(self, meta: SnapshotMeta) -> None:
        self.meta = meta

    def _replace_index(self, by: int) -> SnapshotMeta:
        return SnapshotMeta(LogIndex(self.meta.index + by), self.meta.term, self.meta.configuration)

    def _replace_term(self, by: int) -> SnapshotMeta:
        return SnapshotMeta(self.meta.index, Term(self.meta.term + by), self.meta.configuration)

    def _replace_members(self) -> SnapshotMeta:
        return SnapshotMeta(self.meta.index, self.meta.term, Configuration(voters=(REPLICA_3,)))


def test_machines_of_tablets_that_go_are_closed(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Machine] = []
    close = Machine.close

    def close_and_tell(machine: Machine) -> None:
        closed.append(machine)
        close(machine)

    monkeypatch.setattr(Machine, "close", close_and_tell)
    lag(script)
    old = script.replica(N3).machine
    script.mend()
    wait_for_install(script)
    script.run(0.5)
    assert closed == [old]
