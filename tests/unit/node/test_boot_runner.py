"""The first boot on a runtime and real data directories: persist before saying, one callback at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.errors import Fatal
from kvstore.files import OsFiles
from kvstore.node.boot import Boot, ClusterKnowsMe
from kvstore.node.boot_runner import BootRunner
from kvstore.node.identity import DataDirectory, Identity
from kvstore.types import NodeId, ReplicaId, ShardId
from kvstore.wire.boot_messages import MEMBER, BootState, ShardPlan
from tests.support.fake_runtime import FakeRuntime

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
SEEDS = (N1, N2, N3)


class Cluster:
    """Three seeds on one runtime; a stopped one neither hears nor speaks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runtime = FakeRuntime()
        self.runners: dict[NodeId, BootRunner] = {}
        self.directories: dict[NodeId, DataDirectory] = {}
        self.members: list[NodeId] = []
        self.fatal: dict[NodeId, BaseException] = {}
        self.prepare: Callable[[Identity, Callable[[], None]], None] = lambda identity, go_on: go_on()

    def start(self, node: NodeId) -> BootRunner:
        files = OsFiles()
        directory = DataDirectory.open(files, str(self.root / node), "demo", node)
        boot = Boot(
            directory.identity,
            SEEDS,
            {"shards": 1},
            b"hash",
            lambda: (ShardPlan(ShardId(0), (ReplicaId("n1/1"),)),),
            lambda: files.entropy(16),
        )
        runner = BootRunner(
            boot,
            directory,
            self.runtime,
            lambda target, state: self.runtime.call_later(0.001, self.deliver, node, target, state),
            lambda: self.members.append(node),
            lambda error: self.fatal.update({node: error}),
            prepare=lambda identity, go_on: self.prepare(identity, go_on),
        )
        self.runners[node], self.directories[node] = runner, directory
        runner.start()
        return runner

    def deliver(self, source: NodeId, target: NodeId, state: BootState) -> None:
        on_disk = self.directories[source].identity if source in self.directories else None
        if on_disk is not None and source in self.runners:
            assert (state.promised, state.stage) <= (on_disk.promised, MEMBER), "said before it was durable"
        if target in self.runners:
            self.runners[target].on_message(source, state)

    def stop(self, node: NodeId) -> None:
        self.runners.pop(node).stop()
        self.directories.pop(node).release()


def test_three_seeds_become_members_within_a_second_of_the_last_start(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for node in SEEDS:
        cluster.start(node)
    cluster.runtime.run(1.0)
    assert sorted(cluster.members) == [N1, N2, N3]
    stored = {directory.identity.cluster_id for directory in cluster.directories.values()}
    assert len(stored) == 1
    assert None not in stored


def test_a_member_restarts_alone_and_is_told_at_once(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for node in SEEDS:
        cluster.start(node)
    cluster.runtime.run(1.0)
    for node in SEEDS:
        cluster.stop(node)
    cluster.members.clear()
    cluster.start(N2)
    assert cluster.members == [N2]


def test_pitfall_20_an_emptied_node_stops_with_what_to_run(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for node in SEEDS:
        cluster.start(node)
    cluster.runtime.run(1.0)
    cluster.stop(N3)
    (tmp_path / N3 / "identity").unlink()
    cluster.start(N3)
    cluster.runtime.run(2.0)
    assert isinstance(cluster.fatal[N3], ClusterKnowsMe)
    assert cluster.members.count(N3) == 1
    assert cluster.directories[N3].identity.stage != MEMBER


def test_a_disk_that_cannot_store_the_promise_stops_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path)
    for node in SEEDS:
        cluster.start(node)

    def broken(identity: Identity) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cluster.directories[N2], "save", broken)
    cluster.runtime.run(3.0)
    assert isinstance(cluster.fatal[N2], Fatal)
    assert cluster.members == []


def test_membership_waits_for_what_must_be_durable_before_it(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    held: list[Callable[[], None]] = []

    def prepare(identity: Identity, go_on: Callable[[], None]) -> None:
        if identity.is_member:
            held.append(go_on)
        else:
            go_on()

    cluster.prepare = prepare
    for node in SEEDS:
        cluster.start(node)
    cluster.runtime.run(2.0)
    assert cluster.members == []
    assert len(held) == 3
    for go_on in held:
        go_on()
    cluster.runtime.run(0.1)
    assert sorted(cluster.members) == [N1, N2, N3]


def test_a_link_that_comes_up_speeds_the_boot_up(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for node in SEEDS:
        cluster.start(node)
    sent = []
    runner = cluster.runners[N1]
    runner._send = lambda target, state: sent.append(target)
    runner.greet(N2)
    assert sent == [N2]


def test_a_stopped_runner_does_nothing_more(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for node in SEEDS:
        cluster.start(node)
    for node in SEEDS:
        cluster.runners[node].stop()
    cluster.runtime.run(5.0)
    assert cluster.members == []
    assert cluster.runtime.pending_count == 0
