"""Snapshots that reach a lagging node through crashes and changes of leader: schedules and their guards.

Each schedule runs twice: as it ships, and with its guard taken away. It must fail then, or it proves nothing.
"""

from __future__ import annotations

import pytest

from kvstore.node.keeper import Keeper
from kvstore.node.replica import Replica
from kvstore.node.snapshot_host import SnapshotHost
from kvstore.raft.messages import SnapshotMeta
from kvstore.store.machine import Machine
from kvstore.types import LogIndex, NodeId
from tests.sim.script import N1, N2, N3, Script


def _lagging_n3() -> tuple[Script, dict[str, str]]:
    """n3 is down, and the others' logs no longer reach back to where it is."""
    script = Script()
    script.start()
    script.lead(N1)
    written = script.fill(N1, 6)
    script.run(0.5)
    script.kill(N3)
    return script, written | _write_and_cut(script, "late")


def _write_and_cut(script: Script, prefix: str) -> dict[str, str]:
    written = script.fill(N1, 4, prefix=prefix)
    _cut_logs(script, N1, N2)
    return written


def _cut_logs(script: Script, *names: NodeId) -> None:
    for name in names:
        script.process(name).node.keeper.flush(script.replica(name))
    script.run(0.1)
    for name in names:
        replica = script.replica(name)
        replica.core.compact(replica.machine.durable_applied)


def _is_level(script: Script, name: NodeId) -> bool:
    replicas = script.process(name).node.host.replicas
    return (
        bool(replicas)
        and replicas[script.replica(N1).shard].machine.applied >= script.replica(N1).core.commit
    )


# --- 36: a crash around the rename and the record of an install


def node_crashes_at_every_step_of_an_install() -> None:
    script, written = _lagging_n3()
    steps: list[str] = []
    while True:
        missed = script.crash_at_step(N3, len(steps))
        script.start_until_crash(N3)
        script.run_through_crashes(1.5)
        if not missed:
            break
        steps += missed[:1]
        script.restart(N3)
        script.run_until(lambda: bool(script.damaged()) or _is_level(script, N3), 6.0, "n3 is level")
        assert not script.damaged(), f"n3 does not recover from a crash before: {missed[0]}"
        script.kill(N3)
        written |= _write_and_cut(script, f"after{len(steps)}-")
    assert any("sync_dir /data/tablets" in step for step in steps), steps
    assert any("datasync /data/wal" in step for step in steps), steps
    assert script.process(N3).node.snapshots.installed == 1
    assert script.values(N3, written) == written
    script.check()


def _drop_the_old_tablet_first(patch: pytest.MonkeyPatch) -> None:
    install = SnapshotHost._install

    def discard_and_install(
        snapshots: SnapshotHost, replica: Replica, machine: Machine, directory: str, meta: SnapshotMeta
    ) -> None:
        snapshots._files.remove_tree(snapshots._tablets.path(replica.directory))
        install(snapshots, replica, machine, directory, meta)

    patch.setattr(SnapshotHost, "_install", discard_and_install)


def test_pitfall_36_a_node_recovers_by_itself_from_a_crash_at_every_step_of_an_install() -> None:
    node_crashes_at_every_step_of_an_install()


def test_pitfall_36_an_install_out_of_order_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _drop_the_old_tablet_first(monkeypatch)
    with pytest.raises(AssertionError, match="n3 does not recover from a crash before:"):
        node_crashes_at_every_step_of_an_install()


# --- 18: the log is cut under a snapshot that is under way


def log_is_cut_again_and_again_under_a_slow_snapshot() -> None:
    script, written = _lagging_n3()
    script.network.faults.loss = 0.3
    script.restart(N3)
    for number in range(12):
        script.run(0.25)
        written |= script.fill(N1, 2, prefix=f"more{number}-")
        for name in (N1, N2):
            script.process(name).node.keeper.flush(script.replica(name))
            script.run(0.05)
            script.process(name).node.keeper.cut(script.replica(name))
    script.network.faults.loss = 0.0
    script.run_until(lambda: _is_level(script, N3), 10.0, "n3 is level")
    assert script.process(N3).node.snapshots.installed == 1, "a snapshot was too old by the time it was there"
    assert script.values(N3, written) == written
    script.check()


def _keep_no_log(patch: pytest.MonkeyPatch) -> None:
    """As if memory for the log were scarce."""

    def log_index_before_last_bytes(keeper: Keeper, replica: Replica) -> None:
        index = LogIndex(replica.machine.durable_applied)
        pinned = keeper.pins().get(replica.shard)
        replica.core.compact(index if pinned is None else min(index, pinned))

    patch.setattr(Keeper, "cut", log_index_before_last_bytes)


def _pin_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SnapshotHost, "pins", lambda snapshots: {})


def test_pitfall_18_a_slow_snapshot_pins_the_log_that_must_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _keep_no_log(monkeypatch)
    log_is_cut_again_and_again_under_a_slow_snapshot()


def test_pitfall_18_a_log_without_pins_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _keep_no_log(monkeypatch)
    _pin_nothing(monkeypatch)
    with pytest.raises(AssertionError, match="a snapshot was too old|not within 10.0 s: n3 is level"):
        log_is_cut_again_and_again_under_a_slow_snapshot()
