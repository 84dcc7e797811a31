"""Reads that must never show the past, on whole clusters: bad schedules and their guards.

Each schedule runs twice: as it ships, and with its guard taken away. It must fail then, or it proves nothing.
"""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.node.calls import Call
from kvstore.node.host import Host
from kvstore.node.replica import Replica
from kvstore.node.router import Router
from kvstore.raft import Core, leader
from kvstore.raft.messages import (
    AppendReply,
    AppendRequest,
    Heartbeat,
    Message,
    TimeoutNow,
    VoteRequest,
)
from kvstore.raft.rounds import confirm_rounds
from kvstore.types import LogIndex, NodeId, ReplicaId
from kvstore.wire import peer
from tests.sim.script import N1, N2, N3, SHARD, Pending, Script


def _led_by_n1() -> Script:
    script = Script()
    script.start()
    script.lead(N1)
    assert script.put(N1, "a", "old").status == 201
    script.run(0.5)
    return script


def _write_at(script: Script, name: NodeId, *, limit_s: float = 4.0) -> None:
    """Once somebody but n1 leads, have a write acknowledged there."""
    script.run_until(lambda: script.leader() == name, limit_s, f"{name} leads")
    write = script.send(name, "PUT", "/v1/kv/a", b"new")
    script.run_until(lambda: write.is_done, 1.0, "the new leader answers")
    assert write.status == 200


def _assert_not_stale(read: Pending, at: str) -> None:
    if read.status == 200:
        assert read.response is not None
        assert read.response.body == b"new", f"stale read {at}"


# --- 5: ReadIndex before the first commit of the term (etcd #7331; tikv #9208; redisraft #22)


def read_at_a_leader_that_does_not_know_what_is_committed() -> None:
    script = _led_by_n1()
    new = script.replica(N1).core.last_index + 1

    def hides_the_commit(source: NodeId, target: NodeId, message: Message) -> bool:
        return not (isinstance(message, AppendRequest | Heartbeat) and message.commit >= new)

    script.sift(hides_the_commit)
    assert script.put(N1, "a", "new").status == 200
    script.kill(N1)

    def lets_n2_win_but_not_commit(source: NodeId, target: NodeId, message: Message) -> bool:
        if isinstance(message, VoteRequest):
            return source == N2
        return not isinstance(message, AppendReply)

    script.sift(lets_n2_win_but_not_commit)
    script.run_until(lambda: script.leader() == N2, 10.0, "n2 leads")
    assert script.replica(N2).core.commit < new
    read = script.send(N2, "GET", "/v1/kv/a")
    script.run(0.5)
    _assert_not_stale(read, "at a leader that had committed nothing in its term")
    script.mend()
    script.run_until(lambda: read.is_done, 5.0, "the read is answered")
    assert read.status == 200
    _assert_not_stale(read, "after the first commit")
    script.check()


def _serve_reads_from_the_start_of_the_term(patch: pytest.MonkeyPatch) -> None:
    begin = leader.begin_term

    def begin_without_mark(core: Core) -> None:
        begin(core)
        core.term_start = LogIndex(0)

    patch.setattr(leader, "begin_term", begin_without_mark)


def test_pitfall_05_a_lagging_new_leader_answers_reads_only_after_its_first_commit() -> None:
    read_at_a_leader_that_does_not_know_what_is_committed()


def test_pitfall_05_a_lagging_new_leader_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _serve_reads_from_the_start_of_the_term(monkeypatch)
    with pytest.raises(AssertionError, match="stale read at a leader that had committed nothing"):
        read_at_a_leader_that_does_not_know_what_is_committed()


# --- 6: the process sleeps between looking at its lease and answering (etcd #20418)


def process_sleeps_in_the_middle_of_a_lease_read() -> None:
    script = _led_by_n1()
    process, machine = script.process(N1), script.replica(N1).machine
    query = machine.query

    def query_and_sleep(asked: list[Any]) -> Any:
        machine.query = query  # type: ignore[method-assign]
        found = query(asked)
        process.runtime.paused_until = script.world.now + 6.0
        script.run_until(lambda: bool(_leaders(script)), 5.0, "another leader")
        _write_at(script, _leaders(script)[0])
        script.world.run_until(process.runtime.paused_until)
        return found

    machine.query = query_and_sleep  # type: ignore[method-assign, assignment]
    read = script.send(N1, "GET", "/v1/kv/a?consistency=lease")
    script.run_until(lambda: read.is_done, 9.0, "the read is answered")
    _assert_not_stale(read, "after the process had slept")
    script.run(1.0)
    assert script.value(N1, "a", "lease") == "new"
    script.check()


def _leaders(script: Script) -> list[NodeId]:
    return [name for name in (N2, N3) if script.replica(name).led_term is not None]


def _trust_the_lease_once_looked_at(patch: pytest.MonkeyPatch) -> None:
    """Neither is the lease looked at again after the read, nor what is committed before it."""

    def serve_lease(router: Router, replica: Replica, call: Call) -> bool:
        if not (router._host.holds_lease(replica) and replica.core.has_committed_in_term):
            return False
        replica.serve(call)
        return True

    patch.setattr(Router, "_serve_lease", serve_lease)


def test_pitfall_06_a_lease_read_is_checked_again_after_the_value_was_read() -> None:
    process_sleeps_in_the_middle_of_a_lease_read()


def test_pitfall_06_a_lease_read_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _trust_the_lease_once_looked_at(monkeypatch)
    with pytest.raises(AssertionError, match="stale read after the process had slept"):
        process_sleeps_in_the_middle_of_a_lease_read()


def leader_wakes_and_is_asked_before_it_hears_anything() -> None:
    script = _led_by_n1()
    script.process(N1).runtime.paused_until = script.world.now + 5.0
    script.part(N1)
    script.run_until(lambda: bool(_leaders(script)), 4.5, "another leader")
    _write_at(script, _leaders(script)[0])
    script.world.run_until(script.process(N1).runtime.paused_until)
    read = script.send(N1, "GET", "/v1/kv/a?consistency=lease")
    script.run(0.2)
    _assert_not_stale(read, "at a leader whose lease had run out")
    script.mend()
    script.run_until(lambda: read.is_done, 6.0, "the read is answered")
    assert read.status == 200
    script.check()


def _lease_without_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Host, "holds_lease", lambda host, replica: replica.lease_until > 0)


def test_pitfall_06_a_lease_runs_out_while_its_holder_sleeps() -> None:
    leader_wakes_and_is_asked_before_it_hears_anything()


def test_pitfall_06_a_lease_that_runs_out_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _lease_without_end(monkeypatch)
    with pytest.raises(AssertionError, match="stale read at a leader whose lease had run out"):
        leader_wakes_and_is_asked_before_it_hears_anything()


def leader_wakes_and_takes_a_write_before_it_is_read() -> None:
    script = _led_by_n1()
    script.run_until(lambda: script.replica(N1).core.quiet, 3.0, "the shard is quiet")
    script.process(N1).runtime.paused_until = script.world.now + 5.0
    script.part(N1)
    script.run_until(lambda: bool(_leaders(script)), 4.5, "another leader")
    _write_at(script, _leaders(script)[0])
    script.world.run_until(script.process(N1).runtime.paused_until)
    script.send(N1, "PUT", "/v1/kv/b", b"1")
    script.run(0.005)
    read = script.send(N1, "GET", "/v1/kv/a?consistency=lease")
    script.run(0.2)
    _assert_not_stale(read, "under a lease that no round had confirmed")
    script.mend()
    script.run_until(lambda: read.is_done, 6.0, "the read is answered")
    script.check()


def _date_rounds_again_and_again(patch: pytest.MonkeyPatch) -> None:
    advance = Host.advance

    def advance_and_date(host: Host, replica: Replica) -> None:
        advance(host, replica)
        if replica.led_term is not None:
            replica.round_sent_at.setdefault(replica.core.round, host.runtime.now())

    patch.setattr(Host, "advance", advance_and_date)


def test_pitfall_06_a_leader_that_wakes_gives_itself_no_lease_by_taking_a_write() -> None:
    leader_wakes_and_takes_a_write_before_it_is_read()


def test_pitfall_06_a_lease_given_to_itself_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _date_rounds_again_and_again(monkeypatch)
    with pytest.raises(AssertionError, match="stale read under a lease that no round had confirmed"):
        leader_wakes_and_takes_a_write_before_it_is_read()


def leader_with_a_slow_disk_is_read_after_its_follower() -> None:
    script = _led_by_n1()
    disk = script.cluster.machines[N1].disk
    disk.hung_until, disk.hung_lane = script.world.now + 0.4, "wal"
    write = script.send(N1, "PUT", "/v1/kv/a", b"new")
    script.run(0.1)
    assert not write.is_done, "the leader acknowledged what it had not applied"
    assert script.value(N2, "a") == "new", "two of three have it on disk"
    read = script.send(N1, "GET", "/v1/kv/a?consistency=lease")
    script.run_until(lambda: read.is_done, 2.0, "the lease read is answered")
    assert read.status == 200
    _assert_not_stale(read, "by lease, after a follower had shown the new value")
    script.check()


def test_pitfall_06_a_lease_read_waits_for_what_is_committed_but_not_applied() -> None:
    leader_with_a_slow_disk_is_read_after_its_follower()


def test_pitfall_06_a_leader_that_has_not_applied_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _trust_the_lease_once_looked_at(monkeypatch)
    with pytest.raises(AssertionError, match="stale read by lease"):
        leader_with_a_slow_disk_is_read_after_its_follower()


# --- 30: a node that is alive confirms no read


def deposed_leader_hears_that_a_node_is_alive() -> None:
    script = _led_by_n1()
    script.run_until(lambda: script.replica(N1).core.quiet, 3.0, "the shard is quiet")
    held: list[peer.BeatReply] = []

    def holds_beat_replies(
        source: NodeId, target: NodeId, message: peer.PeerMessage
    ) -> peer.PeerMessage | None:
        if source == N2 and target == N1 and isinstance(message, peer.BeatReply):
            held.append(message)
        return message if target != N1 else None

    script.network.sift = holds_beat_replies
    script.run_until(lambda: bool(held), 1.0, "n2 has answered a beat")
    script.process(N1).runtime.paused_until = script.world.now + 5.0
    script.run_until(lambda: bool(_leaders(script)), 4.0, "another leader")
    _write_at(script, _leaders(script)[0])
    script.world.run_until(script.process(N1).runtime.paused_until)
    assert script.replica(N1).led_term is not None, "n1 does not know yet"
    read = script.send(N1, "GET", "/v1/kv/a")
    script.run(0.001)
    script.network.inject(N2, N1, held[0])
    script.run(0.2)
    _assert_not_stale(read, "confirmed by a node that was alive")
    script.mend()
    script.run_until(lambda: read.is_done, 6.0, "the read is answered")
    assert read.status == 200
    _assert_not_stale(read, "in the end")
    script.check()


def _take_life_for_confirmation(patch: pytest.MonkeyPatch) -> None:
    def hear_follower(core: Core, replica: ReplicaId) -> None:
        core.progress[replica].round = core.round
        confirm_rounds(core)

    patch.setattr(Core, "hear_follower", hear_follower)


def test_pitfall_30_a_node_that_is_alive_confirms_no_read_of_a_deposed_leader() -> None:
    deposed_leader_hears_that_a_node_is_alive()


def test_pitfall_30_a_living_node_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _take_life_for_confirmation(monkeypatch)
    with pytest.raises(AssertionError, match="stale read confirmed by a node"):
        deposed_leader_hears_that_a_node_is_alive()


# --- 39: promises that a lease rests on, forgotten by a restart or called off by a late TimeoutNow


def supporter_of_a_lease_restarts_and_is_asked_to_vote() -> None:
    script = _led_by_n1()
    script.part(N1, N3)
    script.run(2.5)
    assert script.value(N1, "a") == "old", "n2 supports the leader"
    script.part(N1, N2)
    script.kill(N2)
    script.run(0.05)
    script.restart(N2)
    for _ in range(8):
        core = script.replica(N3).core
        if not core.is_leader:
            core.elapsed = core.election_timeout
        script.run(0.05)
    write = script.send(N3, "PUT", "/v1/kv/a", b"new")
    script.run(0.05)
    read = script.send(N1, "GET", "/v1/kv/a?consistency=lease")
    script.run(0.02)
    assert read.status == 200, "the lease still holds"
    if write.status == 200:
        _assert_not_stale(read, "under a lease whose supporter had voted")
    script.mend()
    script.run_until(lambda: write.is_done, 6.0, "the write is answered")
    script.check()


def _start_without_old_promises(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "is_fresh", False)
    start = Core._start_clocks

    def start_free(core: Core) -> None:
        start(core)
        core.promise_left = 0

    patch.setattr(Core, "_start_clocks", start_free)


def test_pitfall_39_a_restarted_node_votes_only_after_what_it_may_have_promised() -> None:
    supporter_of_a_lease_restarts_and_is_asked_to_vote()


def test_pitfall_39_a_restarted_node_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _start_without_old_promises(monkeypatch)
    with pytest.raises(AssertionError, match="stale read under a lease whose supporter had voted"):
        supporter_of_a_lease_restarts_and_is_asked_to_vote()


def timeout_now_arrives_after_the_transfer_was_given_up() -> None:
    script = _led_by_n1()
    held: list[TimeoutNow] = []

    def holds_timeout_now(source: NodeId, target: NodeId, message: Message) -> bool:
        if isinstance(message, TimeoutNow):
            held.append(message)
            return False
        return True

    script.sift(holds_timeout_now)
    script.process(N1).node.ask_transfer(SHARD, N2)
    script.run(1.5)
    assert held
    assert script.leader() == N1
    assert script.put(N1, "a", "old").status == 200, "the leader goes on"
    script.run(0.3)
    script.mend()
    script.network.inject(N1, N2, peer.RaftMessages(SHARD, (held[0],)))
    script.part(N1)
    _write_at(script, N2, limit_s=0.3)
    read = script.send(N1, "GET", "/v1/kv/a?consistency=lease")
    script.run(0.02)
    _assert_not_stale(read, "under a lease that came back")
    script.mend()
    script.run_until(lambda: read.is_done, 6.0, "the read is answered")
    assert read.status == 200
    script.check()


def _take_the_lease_back(patch: pytest.MonkeyPatch) -> None:
    tick = leader.tick

    def tick_and_forgive(core: Core) -> None:
        tick(core)
        core.lease_forbidden = core.transfer_target is not None

    patch.setattr(leader, "tick", tick_and_forgive)


def test_pitfall_39_a_lease_stays_off_once_a_timeout_now_has_left() -> None:
    timeout_now_arrives_after_the_transfer_was_given_up()


def test_pitfall_39_a_lease_that_comes_back_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _take_the_lease_back(monkeypatch)
    with pytest.raises(AssertionError, match="stale read under a lease that came back"):
        timeout_now_arrives_after_the_transfer_was_given_up()
