"""What ends by time ends in time, never early, whoever leads: schedules on whole clusters, and their guards.

Each schedule runs twice: as it ships, and with its guard taken away. It must fail then, or it proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvstore.node import expiry as node_expiry
from kvstore.node.calls import Call, ReadAnswer
from kvstore.node.clocks import ShardClocks
from kvstore.node.replica import FOLLOWED_PACE, Replica
from kvstore.raft.messages import AppendRequest
from kvstore.store import apply, commands, deadlines, expiry, keys
from kvstore.store.draft import Draft
from kvstore.types import Term
from tests.sim.guards import Remove
from tests.sim.script import N1, N2, N3, Edit, Script, with_timeouts

NODES = (N1, N2, N3)

SLOW: Edit = with_timeouts(
    tick_ms=500, heartbeat_ms=1000, election_ms_min=5_000, election_ms_max=10_000, lease_ms=2_000
)
"""An hour in few events."""


def _put_with_ttl(script: Script, key: str, ttl_s: float) -> float:
    """Returns when, at the earliest, the key may go."""
    asked_at = script.world.now
    response = script.ask(N1, "PUT", f"/v1/kv/{key}?ttl={ttl_s}s", b"1")
    assert response.status in (200, 201), response
    return asked_at + ttl_s


def _time_of_death(script: Script, key: str, limit_s: float) -> float:
    """When the removal of a present key was applied by whoever leads."""

    def is_gone() -> bool:
        leader = script.cluster.leader_of(script.cluster.shard_of(key))
        return leader is not None and _is_gone_at(leader.name)

    def _is_gone_at(name: Any) -> bool:
        return script.replica(name).machine.query(["get", key.encode()]) is None

    script.run_until(is_gone, limit_s, f"{key} is gone")
    return script.world.now


# --- 42: an hour's TTL on an idle shard, and then failovers


def _kill_the_leader(script: Script) -> float:
    leader, lost_at = script.leader(), script.world.now
    assert leader is not None
    script.kill(leader)
    script.run_until(lambda: script.leader() not in (None, leader), 40.0, "another leader")
    lost_s = script.world.now - lost_at
    script.restart(leader)
    script.run(2.0)
    return lost_s * (1 - FOLLOWED_PACE / 1000)


def _transfer_around(script: Script) -> float:
    for name in (N2, N3, N1, N3):
        script.lead(name)
        script.run(2.0)
    return 0.0


def _kill_one_after_the_other(script: Script) -> float:
    return sum(_kill_the_leader(script) for _ in range(4))


def _lose_all_at_once(script: Script) -> float:
    lost_at = script.world.now
    script.cut_power(*NODES)
    script.run(30.0)
    script.restart(*NODES)
    script.run_until(script.cluster.has_all_leaders, 60.0, "a leader")
    return script.world.now - lost_at + 10.0


FAILOVERS: dict[str, Callable[[Script], float]] = {
    "the leader dies": _kill_the_leader,
    "the leadership is handed around": _transfer_around,
    "four leaders die one after the other": _kill_one_after_the_other,
    "all nodes lose power": _lose_all_at_once,
}
"""Each returns by how much it may lengthen a life beside a few ticks."""


def an_hour_on_an_idle_shard(fail_over: Callable[[Script], float]) -> None:
    script = Script(edit=SLOW)
    script.start()
    due_at = _put_with_ttl(script, "a", 3600.0)
    script.run(59 * 60)
    lengthened_s = fail_over(script)
    died_at = _time_of_death(script, "a", 3600.0)
    assert died_at >= due_at, f"{due_at - died_at} s early"
    assert died_at <= due_at + lengthened_s + 3.0, f"{died_at - due_at} s late"
    script.check()


def _tell_no_clocks(patch: pytest.MonkeyPatch) -> None:
    """As if a new leader began where the last entry stopped."""

    def run_clock(replica: Replica, now: float) -> None:
        if not replica.is_leader or replica.led_term is None:
            replica.start_clock(now)
        replica.core.clock_ms = int(replica.machine.clock_ms)

    patch.setattr(Replica, "run_clock", run_clock)
    patch.setattr(ShardClocks, "told", lambda clocks, number: {})


def _log_no_clocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ShardClocks, "_log", lambda clocks: None)


@pytest.mark.parametrize("name", FAILOVERS)
def test_pitfall_42_a_ttl_of_an_hour_ends_at_one_hour_after_any_failovers(name: str) -> None:
    an_hour_on_an_idle_shard(FAILOVERS[name])


@pytest.mark.parametrize(
    ("name", "remove"),
    [
        ("the leader dies", _tell_no_clocks),
        ("the leadership is handed around", _tell_no_clocks),
        ("four leaders die one after the other", _tell_no_clocks),
        ("all nodes lose power", _log_no_clocks),
    ],
)
def test_pitfall_42_shows_without_clocks_heard_and_logged(
    name: str, remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch)
    with pytest.raises(AssertionError):
        an_hour_on_an_idle_shard(FAILOVERS[name])


# --- 4: each change of leader starts the TTL again (etcd #9395 #17132 #13491)


def leaders_change_faster_than_keys_die() -> None:
    script = Script()
    script.start()
    due_at = {f"k{number}": _put_with_ttl(script, f"k{number}", 4.0 + number) for number in range(3)}
    for turn in range(8):
        script.lead(NODES[turn % 3])
    for key, due in due_at.items():
        died_at = _time_of_death(script, key, 8.0)
        assert due <= died_at <= due + 1.0 or died_at == script.world.now > due, (key, died_at - due)
    assert script.world.now <= max(due_at.values()) + 1.0, "a change of leader lengthened a life"
    script.check()


def _begin_deadlines_anew(patch: pytest.MonkeyPatch) -> None:
    """A new leader's clock begins where the last entry stopped, as if nothing had passed since."""
    _tell_no_clocks(patch)


def test_pitfall_04_a_ttl_outlasts_many_changes_of_leader() -> None:
    leaders_change_faster_than_keys_die()


def test_pitfall_04_shows_when_each_leader_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    _begin_deadlines_anew(monkeypatch)
    with pytest.raises(AssertionError):
        leaders_change_faster_than_keys_die()


# --- 4, the other way: a leader that slept brings a clock that is ahead of its successor's


def a_leader_that_slept_knows_a_later_clock() -> None:
    """Whoever follows it has heard of its clock late, and goes on from there: by that much its own clock is
    behind. What it sets must not meet the sleeper's clock."""
    script = Script()
    script.start()
    script.lead(N1)
    _put_with_ttl(script, "x", 600.0)
    faults = script.network.faults
    faults.delay_low = faults.delay_high = 0.3
    for name in (N2, N3):
        script.kill(name)
        script.restart(name)
        script.run(3.0)
    script.process(N1).runtime.paused_until = script.world.now + 6.0
    faults.delay_low, faults.delay_high = 0.0002, 0.002
    script.run_until(lambda: script.leader() not in (None, N1), 5.5, "another leader")
    leader = script.leader()
    assert leader is not None
    asked_at = script.world.now
    assert script.ask(leader, "PUT", "/v1/kv/a?ttl=9s", b"1").status in (200, 201)
    script.run(7.0)
    script.lead(N1)
    died_at = _time_of_death(script, "a", 8.0)
    assert died_at >= asked_at + 9.0, f"{asked_at + 9.0 - died_at} s early"
    assert died_at <= asked_at + 9.8
    script.check()


def _go_by_the_highest_clock(patch: pytest.MonkeyPatch) -> None:
    def hear(replica: Replica, clock_ms: int, term: Term, now: float) -> None:
        replica.restore_clock(clock_ms, now)

    def run(replica: Replica, now: float) -> None:
        replica.restore_clock(max(replica.core.clock_ms, replica.machine.clock_ms), now)
        replica.core.clock_ms = replica.stamp_ms(now)

    patch.setattr(Replica, "hear_clock", hear)
    patch.setattr(Replica, "run_clock", run)
    patch.setattr("kvstore.node.replica.FOLLOWED_PACE", 1000)


def test_pitfall_04_a_leader_that_slept_brings_no_clock_of_its_own() -> None:
    a_leader_that_slept_knows_a_later_clock()


def test_pitfall_04_shows_when_the_highest_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    _go_by_the_highest_clock(monkeypatch)
    with pytest.raises(AssertionError, match="early"):
        a_leader_that_slept_knows_a_later_clock()


# --- 4, crystals: who was cut off for long has a clock of its own


def a_quick_crystal_was_cut_off() -> None:
    """Seed 219: a follower that hears nothing for seconds measures them by its own crystal, and by
    as much as that is quick its clock is ahead of the leader's. Then it leads."""
    script = Script()
    script.cluster.machines[N2].clock_rate = 1.03
    script.start()
    script.lead(N1)
    due_at = _put_with_ttl(script, "a", 24.0)
    script.run(0.5)
    script.cut(N1, N2)
    script.run(20.0)
    script.kill(N1)
    script.lead(N2)
    died_at = _time_of_death(script, "a", 8.0)
    assert died_at >= due_at, f"{due_at - died_at} s early"
    assert died_at <= due_at + 20.0 * (1 - FOLLOWED_PACE / 1000) + 2.0
    script.restart(N1)
    script.check()


def test_pitfall_04_a_quick_crystal_ends_nothing_early() -> None:
    a_quick_crystal_was_cut_off()


def test_pitfall_04_shows_when_followers_count_time_as_the_leader_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvstore.node.replica.FOLLOWED_PACE", 1000)
    with pytest.raises(AssertionError, match="early"):
        a_quick_crystal_was_cut_off()


# --- 3: a leader that slept takes what others have renewed (etcd #15247 #12528)


def a_leader_sleeps_while_another_renews() -> None:
    script = Script()
    script.start()
    script.lead(N1)
    due_at = _put_with_ttl(script, "a", 3.0)
    script.run(1.0)
    script.process(N1).runtime.paused_until = script.world.now + 5.0
    script.run_until(lambda: script.leader() not in (None, N1), 4.5, "another leader")
    while script.world.now < due_at + 3.0:
        renewed = script.ask(N2, "PUT", "/v1/kv/a?ttl=3s", b"2")
        assert renewed.status == 200, f"the key had gone: {renewed}"
        script.run(0.2)
    script.check()


def _expire_by_the_proposer_s_opinion(patch: pytest.MonkeyPatch) -> None:
    """As if the command named what had to go, and followed the leadership."""

    def apply_expire(draft: Draft, op: commands.Op) -> Any:
        for record_key, _ in list(draft.scan(keys.DEADLINE, keys.DEADLINE_END))[: op[2]]:
            expiry._expire_key(draft, *deadlines.parts(record_key)[::2])
        return [0, draft.revision, 1, False]

    patch.setitem(apply.APPLY, commands.EXPIRE, apply_expire)
    patch.setattr(node_expiry, "Call", lambda *args, is_forwarded: Call(*args, identified=True))


def test_pitfall_03_a_leader_that_slept_expires_nothing_that_was_renewed() -> None:
    a_leader_sleeps_while_another_renews()


def test_pitfall_03_shows_when_the_proposer_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    _expire_by_the_proposer_s_opinion(monkeypatch)
    with pytest.raises(AssertionError, match="the key had gone"):
        a_leader_sleeps_while_another_renews()


# --- 40: a clock's opinion hides a key, and a failover brings it back


def what_is_overdue_is_there_until_an_entry_removes_it() -> None:
    script = Script()
    script.start()
    script.lead(N1)
    _put_with_ttl(script, "a", 1.0)
    # The removal is proposed and reaches nobody: the leader knows that the key is due, and may not say so.
    script.sift(lambda source, target, message: not (type(message) is AppendRequest and message.entries))
    script.run(1.5)
    assert script.value(N1, "a") == "1", "what is there for a write is there for a read"
    script.kill(N1)
    script.mend()
    script.run_until(lambda: script.leader() not in (None, N1), 15.0, "another leader")
    script.run(2.0)
    assert script.value(N2, "a") is None
    assert script.ask(N3, "PUT", "/v1/kv/a", b"2", {"If-None-Match": "*"}).status == 201
    script.check()


def _hide_what_is_overdue(patch: pytest.MonkeyPatch) -> None:
    """As if a replica's own clock could say that a key has gone."""
    serve = Replica.serve

    def hide(replica: Replica, call: Call, staleness_s: float | None = None) -> None:
        done = call.done

        def judged(answer: Any, error: BaseException | None) -> None:
            assert done is not None
            item = None if answer is None else answer.value
            if isinstance(item, list) and item[6] is not None and item[6] <= replica.known_clock_ms:
                answer = ReadAnswer(answer.shard, None, answer.clock_ms, answer.staleness_s)
            done(answer, error)

        call.done = judged
        serve(replica, call, staleness_s)

    patch.setattr(Replica, "serve", hide)


def test_pitfall_40_existence_is_what_entries_say() -> None:
    what_is_overdue_is_there_until_an_entry_removes_it()


def test_pitfall_40_shows_when_a_clock_hides_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide_what_is_overdue(monkeypatch)
    with pytest.raises(AssertionError, match="is there for a write"):
        what_is_overdue_is_there_until_an_entry_removes_it()
