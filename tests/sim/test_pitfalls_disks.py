"""Disks that lose power, fail, fill up and hang, under whole clusters: bad schedules and their guards.

Each schedule runs twice: as it ships, and with its guard taken away. It must fail then, or it proves nothing.
"""

from __future__ import annotations

import pytest

from kvstore.errors import WalPoisoned
from kvstore.node import log_writer
from kvstore.node.host import Host
from kvstore.node.router import Router
from kvstore.raft import Core, output
from kvstore.raft.log import Flight
from kvstore.types import NodeId, ShardId
from kvstore.wal import recovery
from kvstore.wal.replay import Replay
from kvstore.wal.segment import Segment
from tests.sim.guards import acknowledge_before_the_sync
from tests.sim.script import N1, N2, N3, SHARD, Pending, Script, Tear

THREAD, LOOP = 2, 1
"""Seeds: where small batches are synced."""


def _led_by_n1(seed: int = THREAD, nodes: int = 3) -> Script:
    script = Script(seed=seed, nodes=nodes)
    script.start()
    script.lead(N1)
    return script


def _assert_kept(script: Script, written: dict[str, str]) -> None:
    for key, value in written.items():
        assert script.value(N1, key) == value, f"{key} was acknowledged and is gone"


def _until(script: Script, pending: Pending, limit_s: float = 6.0) -> None:
    script.run_until(lambda: pending.is_done, limit_s, "an answer")


# --- 7, 10: acknowledged before it is durable (etcd #14370; NATS 2.12.1)


def single_node_loses_power_at_each_answer(seed: int) -> None:
    script = _led_by_n1(seed, nodes=1)
    for number in range(5):
        write = script.send(N1, "PUT", f"/v1/kv/k{number}", b"v")
        _until(script, write)
        assert write.status == 201
        script.cut_power(N1)
        script.start(N1)
        _assert_kept(script, {f"k{each}": "v" for each in range(number + 1)})
    script.check()


def one_node_loses_power_and_the_other_never_returns() -> None:
    script = _led_by_n1()
    script.part(N3)
    written = script.fill(N1, 5)
    script.cluster.machines[N2].disk.hung_until = script.world.now + 1.5
    write = script.send(N1, "PUT", "/v1/kv/last", b"v")
    _until(script, write)
    if write.status == 201:
        written["last"] = "v"
    script.cut_power(N2)
    script.kill(N1)
    script.run(0.1)
    script.cluster.machines[N2].disk.hung_until = 0.0
    script.mend()
    script.start(N2)
    for key, value in written.items():
        assert script.value(N2, key) == value, f"{key} was acknowledged and is gone"
    script.check()


@pytest.mark.parametrize("seed", [THREAD, LOOP], ids=["thread", "loop"])
def test_pitfall_07_a_single_node_acknowledges_only_what_a_power_cut_leaves(seed: int) -> None:
    single_node_loses_power_at_each_answer(seed)


def test_pitfall_07_an_early_answer_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledge_before_the_sync(monkeypatch)
    with pytest.raises(AssertionError, match="k0 was acknowledged and is gone"):
        single_node_loses_power_at_each_answer(THREAD)


def test_pitfall_10_a_majority_without_one_power_cut_and_one_partition_still_has_everything() -> None:
    one_node_loses_power_and_the_other_never_returns()


def test_pitfall_10_acknowledging_without_sync_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    acknowledge_before_the_sync(monkeypatch)
    with pytest.raises(AssertionError, match="last was acknowledged and is gone"):
        one_node_loses_power_and_the_other_never_returns()


# --- 11: a failed sync is tried again (fsyncgate)


def sync_fails_once(seed: int) -> None:
    script = _led_by_n1(seed, nodes=1)
    written = script.fill(N1, 3)
    script.cluster.machines[N1].files.fail("datasync", path_part="wal")
    write = script.send(N1, "PUT", "/v1/kv/late", b"v")
    script.run(2.0)
    if N1 in script.cluster.processes:
        script.cut_power(N1)
    else:
        [(name, error)] = script.exits
        assert (name, type(error)) == (N1, WalPoisoned)
    script.start(N1)
    if write.status in (200, 201):
        written["late"] = "v"
    _assert_kept(script, written)
    assert write.status == 0, "something was acknowledged after a failed sync"
    assert script.put(N1, "late", "again").status in (200, 201)
    script.check()


def _sync_again(patch: pytest.MonkeyPatch) -> None:
    append = Segment.append

    def append_stubbornly(segment: Segment, content: bytes) -> None:
        try:
            append(segment, content)
        except OSError:
            segment._file.datasync()
            segment.offset += len(content)

    patch.setattr(Segment, "append", append_stubbornly)


@pytest.mark.parametrize("seed", [THREAD, LOOP], ids=["thread", "loop"])
def test_pitfall_11_a_node_whose_sync_failed_acknowledges_nothing_and_exits(seed: int) -> None:
    sync_fails_once(seed)


def test_pitfall_11_a_second_sync_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _sync_again(monkeypatch)
    with pytest.raises(AssertionError, match="late was acknowledged and is gone"):
        sync_fails_once(THREAD)


# --- 12, 29: damage in the middle of the log


def _damage_log(script: Script, name: NodeId, written_value: str) -> None:
    """Flip a bit where the log of a stopped node holds that value."""
    files = script.cluster.machines[name].files
    for file in files.list("/data/wal"):
        offset = files.read(f"/data/wal/{file}").find(written_value.encode())
        if offset >= 0:
            files.flip(f"/data/wal/{file}", offset, 0x01)
            return
    raise AssertionError(f"{written_value} is not in the log of {name}")


def follower_finds_its_log_damaged() -> None:
    script = _led_by_n1()
    written = script.fill(N1, 20, value="value-")
    script.run(0.5)
    script.kill(N3)
    _damage_log(script, N3, "value-7")
    script.part(N3)
    script.restart(N3)
    script.run(0.3)
    reason = script.damaged().get(N3, {}).get(SHARD)
    assert reason is not None, "the damage was passed over in silence"
    assert "damaged" in reason
    script.mend()
    script.run(0.5)
    written |= script.fill(N3, 5, prefix="after")
    _assert_kept(script, written)
    assert script.leader() == N1
    shards = script.ask(N2, "GET", "/v1/shards").body
    assert b'"quarantined"' in shards, "nobody is told"
    script.kill(N3)
    script.restart(N3)
    script.run(0.5)
    assert script.damaged()[N3], "a restart heals nothing"
    script.check()


def leader_dies_beside_a_damaged_and_a_lagging_follower() -> None:
    script = _led_by_n1()
    written = script.fill(N1, 5)
    script.run(0.3)
    script.part(N3)
    written |= script.fill(N1, 10, prefix="late", value="value-")
    script.run(0.3)
    script.kill(N2, N1)
    _damage_log(script, N2, "value-4")
    script.run(0.1)
    script.mend()
    script.restart(N2)
    script.run(12.0)
    if script.leader() is None:
        script.restart(N1)
    _assert_kept_at_n2(script, written)
    script.check()


def _assert_kept_at_n2(script: Script, written: dict[str, str]) -> None:
    script.run_until(script.cluster.has_all_leaders, 10.0, "a leader")
    for key, value in written.items():
        assert script.value(N2, key) == value, f"{key} was acknowledged and is gone"


def _cut_damage_off_in_silence(patch: pytest.MonkeyPatch) -> None:
    def damaged(replay: Replay, what: str) -> None:
        replay.damage.append(what)

    patch.setattr(Replay, "damaged", damaged)
    patch.setattr(recovery, "_later", lambda content, offset, nonce, above: None)
    patch.setattr(recovery, "_is_begun", lambda content, offset, nonce: False)


def test_pitfall_12_a_damaged_replica_is_taken_out_and_the_cluster_goes_on() -> None:
    follower_finds_its_log_damaged()


def test_pitfall_12_a_log_cut_at_its_damage_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _cut_damage_off_in_silence(monkeypatch)
    with pytest.raises(AssertionError, match="the damage was passed over in silence"):
        follower_finds_its_log_damaged()


def test_pitfall_29_a_damaged_and_a_lagging_replica_do_not_elect_each_other() -> None:
    leader_dies_beside_a_damaged_and_a_lagging_follower()


def test_pitfall_29_a_damaged_voter_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _cut_damage_off_in_silence(monkeypatch)
    with pytest.raises(AssertionError, match="was acknowledged and is gone"):
        leader_dies_beside_a_damaged_and_a_lagging_follower()


# --- 13: a full disk (etcd #3591; ra #578)


def leaders_disk_is_nearly_full() -> None:
    script = _led_by_n1()
    written = script.fill(N2, 5)
    files = script.cluster.machines[N1].files
    files.capacity_bytes = 1 << 20
    script.run(3.0)
    assert script.put(N2, "more", "v").status == 507, "a write that grows was taken"
    assert script.ask(N2, "DELETE", "/v1/kv/k0").status == 200, "deletes go on"
    del written["k0"]
    files.capacity_bytes = None
    script.run(2.0)
    written |= script.fill(N2, 1, prefix="more")
    _assert_kept(script, written)
    script.check()


def log_finds_no_space_for_its_next_segment() -> None:
    script = _led_by_n1(nodes=1)
    written = script.fill(N1, 5)
    files = script.cluster.machines[N1].files
    files.capacity_bytes = 1
    is_held = False
    for number in range(40):
        key = f"{'x' * 4000}{number:02}"
        delete = script.send(N1, "DELETE", f"/v1/kv/{key}", headers={"KV-Timeout": "20s"})
        script.run(0.05)
        is_held = not delete.is_done
        if is_held:
            break
        assert delete.status == 200, delete.response
    assert is_held, "more was acknowledged than the log has space for"
    script.run(3.0)
    assert not script.exits, "a full disk is no reason to stop"
    assert not delete.is_done
    files.capacity_bytes = None
    _until(script, delete, 5.0)
    assert delete.status == 200
    written |= script.fill(N1, 3, prefix="later")
    script.cut_power(N1)
    script.start(N1)
    _assert_kept(script, written)
    script.check()


def _watch_no_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Router, "set_read_only", lambda router, is_read_only: None)


def _take_a_full_disk_for_a_failed_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(log_writer, "DiskFull", type("Never", (Exception,), {}))


def test_pitfall_13_a_nearly_full_disk_refuses_growth_takes_deletes_and_recovers() -> None:
    leaders_disk_is_nearly_full()


def test_pitfall_13_an_unwatched_disk_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _watch_no_disk(monkeypatch)
    with pytest.raises(AssertionError, match="a write that grows was taken"):
        leaders_disk_is_nearly_full()


def test_pitfall_13_a_full_log_holds_its_answers_until_there_is_space() -> None:
    log_finds_no_space_for_its_next_segment()


def test_pitfall_13_a_full_log_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _take_a_full_disk_for_a_failed_one(monkeypatch)
    with pytest.raises(AssertionError, match="a full disk is no reason to stop"):
        log_finds_no_space_for_its_next_segment()


# --- 22: a leader whose disk hangs (lavinmq #2151; etcd #7617)


def leaders_disk_hangs(seconds: float) -> Script:
    script = _led_by_n1()
    script.fill(N2, 3)
    script.cluster.machines[N1].disk.hung_until = script.world.now + seconds
    script.send(N2, "PUT", "/v1/kv/k0", b"waits")
    return script


def another_node_takes_over_from_a_hung_disk() -> None:
    script = leaders_disk_hangs(20.0)
    script.run_until(lambda: script.leader() in (N2, N3), 6.0, "another node leads")
    started = script.world.now
    assert script.put(N2, "k1", "goes on").status == 200
    assert script.world.now - started < 1.0
    script.run(15.0)
    assert not script.exits
    script.run(6.0)
    assert script.value(N1, "k1") == "goes on"
    script.check()


def hung_disk_never_comes_back() -> None:
    script = leaders_disk_hangs(60.0)
    script.run(34.0)
    assert [name for name, _error in script.exits] == [N1], "a node whose disk is dead goes on"
    script.check()


def _never_look_at_the_disk(patch: pytest.MonkeyPatch) -> None:
    create = Flight.__init__

    def create_ageless(flight: Flight, *arguments: object) -> None:
        create(flight, *arguments)  # type: ignore[arg-type]
        flight.tick = 1 << 60

    patch.setattr(Flight, "__init__", create_ageless)
    patch.setattr(Core, "give_way", lambda core: None)


def test_pitfall_22_a_leader_whose_disk_hangs_makes_way() -> None:
    another_node_takes_over_from_a_hung_disk()


def test_pitfall_22_a_leader_with_a_hung_disk_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _never_look_at_the_disk(monkeypatch)
    with pytest.raises(AssertionError, match="not within 6.0 s: another node leads"):
        another_node_takes_over_from_a_hung_disk()


def writes_wait_behind_another_shards_write() -> None:
    """The write that hangs is one of shard 1; what comes for shard 0 after it never gets as far as a log."""
    script = Script(seed=2, shards=2)
    script.start()
    script.lead(N1, 0, 1)
    keys = {script.cluster.shard_of(f"k{number}"): f"k{number}" for number in range(20)}
    disk = script.cluster.machines[N1].disk
    disk.hung_until, disk.hung_lane = script.world.now + 20.0, "wal"
    script.send(N1, "PUT", f"/v1/kv/{keys[ShardId(1)]}", b"v")
    script.run(0.2)
    script.send(N1, "PUT", f"/v1/kv/{keys[ShardId(0)]}", b"v")
    script.run_until(
        lambda: all(script.leader(shard) in (N2, N3) for shard in (0, 1)), 6.0, "another node leads"
    )
    assert all(script.put(N2, keys[ShardId(shard)], "goes on").status in (200, 201) for shard in (0, 1))
    script.check()


def test_pitfall_22_a_hung_disk_takes_all_leaderships_not_only_that_of_the_shard_that_was_writing() -> None:
    writes_wait_behind_another_shards_write()


def test_pitfall_22_writes_behind_a_hung_one_are_caught_without_the_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Core, "give_way", lambda core: None)
    with pytest.raises(AssertionError, match="not within 6.0 s: another node leads"):
        writes_wait_behind_another_shards_write()


def test_pitfall_22_a_node_whose_disk_never_answers_exits() -> None:
    hung_disk_never_comes_back()


def test_pitfall_22_a_dead_disk_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "_watch_disk", lambda host, now: None)
    with pytest.raises(AssertionError, match="a node whose disk is dead goes on"):
        hung_disk_never_comes_back()


# --- 37: followers commit what the leader has not synced


def leader_loses_what_its_followers_committed() -> None:
    script = _led_by_n1()
    script.fill(N1, 3)
    disk = script.cluster.machines[N1].disk
    disk.hung_until, disk.hung_lane = script.world.now + 1.5, "wal"
    script.send(N1, "PUT", "/v1/kv/a", b"v")
    replica = script.replica(N1)
    script.run_until(lambda: replica.core.commit > replica.core.synced, 1.0, "the followers have committed")
    script.process(N1).node.keeper.flush(replica)
    script.run(0.2)
    script.cut_power(N1)
    disk.hung_until = 0.0
    script.start(N1)
    script.run(1.0)
    assert not script.damaged(), "the tablet was ahead of its log"
    assert script.value(N1, "a") == "v"
    script.check()


def _apply_what_is_committed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(output, "_committed_upto", lambda core: core.commit)


def test_pitfall_37_no_tablet_is_ahead_of_its_log_after_a_power_cut() -> None:
    leader_loses_what_its_followers_committed()


def test_pitfall_37_a_tablet_ahead_of_its_log_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _apply_what_is_committed(monkeypatch)
    with pytest.raises(AssertionError, match="the tablet was ahead of its log"):
        leader_loses_what_its_followers_committed()


# --- 41: every node tears its last batch


def all_nodes_lose_power_in_the_middle_of_a_write() -> None:
    script = Script(shards=2)
    script.start()
    written: dict[str, str] = {}
    for number in range(4):
        written |= script.fill(N1, 3, prefix=f"k{number}-")
        for machine in script.cluster.machines.values():
            machine.disk.hung_until = script.world.now + 1.0
        for each in range(6):
            script.send(N1, "PUT", f"/v1/kv/torn{each}", b"v" * 3000)
        script.run(0.5)
        script.cut_power(N1, N2, N3, fate=Tear(number))
        for machine in script.cluster.machines.values():
            machine.disk.hung_until = 0.0
        script.restart(N1, N2, N3)
        script.run(0.1)
        assert not script.damaged(), "a torn last batch was taken for damage"
        script.run_until(script.cluster.has_all_leaders, 10.0, "all shards come back by themselves")
        _assert_kept(script, written)
    script.check()


def _take_a_tear_for_damage(patch: pytest.MonkeyPatch) -> None:
    torn_bytes = recovery._torn_bytes
    check_end = recovery._check_end

    def check(replay: Replay, content: bytes, tail: recovery.Tail, header: object) -> recovery.Tail:
        if torn_bytes(content, tail.offset, header.nonce):  # type: ignore[attr-defined]
            replay.damaged("the last batch is torn")
        return check_end(replay, content, tail, header)  # type: ignore[arg-type]

    patch.setattr(recovery, "_check_end", check)


def test_pitfall_41_every_node_tears_its_last_batch_and_all_shards_come_back() -> None:
    all_nodes_lose_power_in_the_middle_of_a_write()


def test_pitfall_41_a_tear_taken_for_damage_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _take_a_tear_for_damage(monkeypatch)
    with pytest.raises(AssertionError, match="a torn last batch was taken for damage"):
        all_nodes_lose_power_in_the_middle_of_a_write()
