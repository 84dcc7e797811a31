import pytest

from kvstore.errors import Corrupt
from kvstore.raft import NO_SNAPSHOT, Change, Core, Restored
from kvstore.raft.messages import EMPTY, HardState, Heartbeat, SnapshotMeta, TimeoutNow
from kvstore.raft.role import Role
from kvstore.types import LogIndex, Term
from tests.support.raft_core import (
    accept,
    append,
    ask_vote,
    beat,
    campaign,
    entries,
    make_core,
    make_leader,
    meta,
    sent,
    settled_leader,
    work,
)
from tests.support.raft_group import QUICK, rid, voters

# --- restoring


def test_new_core_has_nothing_to_do() -> None:
    core = make_core(fresh=True)
    assert not core.has_ready()
    assert (core.role, core.term, core.leader, core.commit, core.last_index) == (Role.FOLLOWER, 0, None, 0, 0)


def test_restored_core_goes_on_from_what_was_durable() -> None:
    core = make_core(1, 1, 2, term=3, vote=rid(2), commit=2, applied=1)
    assert (core.term, core.vote, core.commit, core.applied_index) == (3, rid(2), 2, 1)
    [ready] = work(core)
    assert (ready.has_writes, [entry.index for entry in ready.committed]) == (False, [2])


def test_commit_hint_beyond_the_log_is_not_believed() -> None:
    assert make_core(1, 1, commit=9).commit == 2


def test_what_is_applied_is_committed() -> None:
    assert make_core(1, 1, 1, commit=1, applied=2).commit == 2


def test_restoring_from_a_snapshot_starts_behind_it() -> None:
    restored = Restored(
        HardState(Term(4)), entries(3, first=8), meta(7, 2, voters(1, 4)), LogIndex(7), voters(1, 4)
    )
    core = Core(rid(1), QUICK, restored, lambda low, _high: low)
    assert (core.first_index, core.last_index, core.commit, core.configuration) == (8, 8, 7, voters(1, 4))


def test_machine_ahead_of_its_log_is_refused() -> None:
    restored = Restored(HardState(), entries(1), NO_SNAPSHOT, LogIndex(2), voters(1))
    with pytest.raises(Corrupt):
        Core(rid(1), QUICK, restored, lambda low, _high: low)


# --- the first campaign


def test_members_of_a_new_group_campaign_one_after_another() -> None:
    ticks = []
    for rank in range(3):
        core = make_core(fresh=True)
        core.order_first_campaign(rank)
        while core.role is Role.FOLLOWER:
            core.tick()
        ticks.append(core.ticks)
    assert core.settings.election_ticks_min < ticks[0] < ticks[1] < ticks[2]


def test_a_group_that_may_have_had_a_leader_knows_no_order() -> None:
    core = make_core(1)
    drawn = core.election_timeout
    core.order_first_campaign(5)
    assert core.election_timeout == drawn


# --- readies


def test_hard_state_is_written_when_term_or_vote_change_and_with_other_writes() -> None:
    core = make_core(1, 1)
    core.step(beat(1, commit=1))
    assert core.take_ready().hard_state is None
    core.step(append(1, (2, 1), 1, commit=2))
    assert core.take_ready().hard_state == HardState(Term(1), None, LogIndex(2))
    core.step(append(1, (3, 1), 1, commit=2))
    assert core.take_ready().hard_state is None
    core.promise_left = 0
    core.step(ask_vote(2, (9, 9)))
    assert core.take_ready().hard_state == HardState(Term(2), rid(2), LogIndex(2))


def test_ready_without_writes_needs_no_completion() -> None:
    core = make_core(1)
    core.step(beat(1))
    ready = core.take_ready()
    assert ready.messages_after_sync
    assert not ready.has_writes
    assert not core.has_writes_in_flight


def test_completion_of_several_readies_at_once_counts_for_all() -> None:
    core = settled_leader()
    core.propose([b"a"])
    core.take_ready()
    core.propose([b"b"])
    last = core.take_ready()
    assert (core.synced, core.has_writes_in_flight) == (1, True)
    core.persisted(last.number)
    core.persisted(last.number)
    assert (core.synced, core.has_writes_in_flight) == (3, False)


def test_promises_of_an_older_term_are_not_given_after_a_newer_one_began() -> None:
    core = make_core(1)
    core.step(append(1, (1, 1), 1))
    core.step(append(2, (1, 1), 2, source=3))
    replies = core.take_ready().messages_after_sync
    assert {reply.term for reply in replies} == {2}


def test_large_replay_is_given_in_slices() -> None:
    settings = type(QUICK)(
        **{name: getattr(QUICK, name) for name in QUICK.__struct_fields__} | {"committed_bytes_max": 60}
    )
    core = make_core(*[1] * 6, commit=6, settings=settings)
    slices = [[entry.index for entry in ready.committed] for ready in work(core)]
    assert slices == [[1, 2], [3, 4], [5, 6]]


def test_has_ready_tells_whether_a_ready_holds_anything() -> None:
    core = settled_leader()
    assert not core.has_ready()
    core.propose([b"a"])
    assert core.has_ready()
    ready = core.take_ready()
    assert not core.has_ready()
    core.persisted(ready.number)
    assert not core.has_ready()
    accept(core, 2)
    assert core.has_ready()


def test_applied_beyond_what_was_given_is_the_hosts_mistake() -> None:
    core = make_core(1, 1, commit=1)
    work(core)
    with pytest.raises(AssertionError):
        core.applied(LogIndex(2))


def test_change_of_members_is_applied_only_once_its_commit_is_on_disk() -> None:
    core = settled_leader()
    core.propose_configuration(Change(learners=(rid(4),)))
    work(core)
    accept(core, 2)
    assert core.commit == 2
    ready = core.take_ready()
    assert (ready.committed, ready.hard_state) == ((), HardState(Term(1), rid(1), LogIndex(2)))
    assert not core.has_ready()
    core.persisted(ready.number)
    assert [entry.index for entry in core.take_ready().committed] == [2]


def test_applied_index_never_goes_back() -> None:
    core = make_core(1, 1, commit=2)
    work(core)
    core.applied(LogIndex(1))
    assert core.applied_index == 2


# --- time


def test_timeouts_are_drawn_between_the_limits() -> None:
    asked: list[tuple[int, int]] = []

    def dice(low: int, high: int) -> int:
        asked.append((low, high))
        return high

    core = Core(rid(1), QUICK, Restored(HardState(), (), NO_SNAPSHOT, LogIndex(0), voters(1, 2)), dice)
    for _ in range(QUICK.election_ticks_max - 1):
        core.tick()
    assert core.role is Role.FOLLOWER
    core.tick()
    assert core.role is Role.PRE_CANDIDATE
    assert set(asked) == {(QUICK.election_ticks_min, QUICK.election_ticks_max)}
    assert len(asked) > 1


def test_fresh_core_does_not_campaign_even_when_asked() -> None:
    core = make_core(1, fresh=True)
    core.step(TimeoutNow(source=rid(2), target=rid(1), term=Term(1)))
    assert core.role is Role.FOLLOWER
    for _ in range(QUICK.election_ticks_min - 1):
        core.tick()
        assert core.role is Role.FOLLOWER


def test_hand_over_that_came_before_a_change_was_applied_is_followed_after_it() -> None:
    core = settled_leader()
    core.propose_configuration(Change(removed=(rid(1),)))
    follower = make_core(stored=core.log.between(0, 2), commit=2, term=1)
    ready = follower.take_ready()
    assert [entry.index for entry in ready.committed] == [1, 2]
    follower.step(TimeoutNow(source=rid(2), target=rid(1), term=Term(1)))
    assert follower.role is Role.FOLLOWER
    follower.applied(LogIndex(2))
    assert (follower.role, follower.term) == (Role.CANDIDATE, 2)


def test_hand_over_that_was_given_up_is_not_followed_later() -> None:
    core = settled_leader()
    core.propose_configuration(Change(removed=(rid(1),)))
    follower = make_core(stored=core.log.between(0, 2), commit=2, term=1)
    follower.take_ready()
    follower.step(TimeoutNow(source=rid(2), target=rid(1), term=Term(1)))
    for _ in range(QUICK.election_ticks_min):
        follower.step(beat(1))
        follower.tick()
    follower.applied(LogIndex(2))
    assert follower.role is Role.FOLLOWER


# --- cutting the log


def test_compaction_never_passes_what_is_applied() -> None:
    core = make_core(1, 1, 1, commit=2)
    work(core)
    core.compact(LogIndex(3))
    assert (core.first_index, core.last_index) == (3, 3)


def test_log_index_before_last_bytes_leaves_that_much() -> None:
    core = make_core(1, 1, 1, 1, commit=4, applied=4)
    one = core.log.bytes_held // 4
    assert core.log_index_before_last_bytes(4 * one) == 0
    assert core.log_index_before_last_bytes(2 * one) == 2


# --- the leader of one


def test_leader_of_one_works_alone() -> None:
    core = make_leader(configuration=voters(1))
    work(core)
    assert (core.commit, core.applied_index) == (1, 1)
    core.propose([b"a"])
    assert [entry.index for ready in work(core) for entry in ready.committed] == [2]


def test_waking_a_quiet_leader_sends_heartbeats_at_once() -> None:
    core = settled_leader()
    core.quiet = True
    core.wake()
    assert {type(message) for message in sent(core)} == {Heartbeat}
    follower = make_core(1)
    follower.wake()
    assert not follower.has_ready()


# --- trace


def test_every_raft_event_is_told() -> None:
    told: list[tuple[str, dict[str, object]]] = []
    core = make_core(observe=lambda event, fields: told.append((event, fields)))
    campaign(core)
    core.become_candidate()
    work(core)
    core.become_leader()
    work(core)
    accept(core, 2)
    work(core)
    core.propose_configuration(Change(learners=(rid(4),)))
    work(core)
    accept(core, 2)
    work(core)
    core.step(beat(9))
    names = [name for name, _ in told]
    assert names[0] == "init"
    assert {"become_candidate", "become_leader", "append", "receive", "commit"} <= set(names)
    assert {"apply_conf_change", "become_follower"} <= set(names)
    state = {"replica", "term", "vote", "commit", "last_index", "role", "configuration"}
    assert set(next(fields for name, fields in told if name == "receive")) == {*state, "message"}
    appended = next(fields["entries"] for name, fields in told if name == "append")
    assert [entry.kind for entry in appended] == [EMPTY]  # type: ignore[attr-defined]


def test_sends_are_told_when_the_host_sends_and_not_before() -> None:
    told: list[str] = []
    core = make_core(observe=lambda event, _fields: told.append(event))
    core.become_candidate()
    core.step(ask_vote(3, (0, 0), source=3))
    [answer, *_] = sent(core)
    assert "send" not in told
    core.trace_send(answer)
    assert told[-1] == "send"


def test_restart_is_told_apart_from_the_first_start_and_describes_the_log() -> None:
    told: list[tuple[str, object]] = []
    make_core(1, 1, 2, observe=lambda event, fields: told.append((event, fields["log"])))
    assert told == [("restart", [(0, 0), (1, 1), (3, 2)])]


def test_an_installed_snapshot_is_told_with_the_log_after_it() -> None:
    told: list[tuple[str, dict[str, object]]] = []
    core = make_core(1, observe=lambda event, fields: told.append((event, fields)))
    core.step(beat(2))
    assert core.install(SnapshotMeta(LogIndex(9), Term(2), core.configuration))
    event, fields = told[-1]
    assert (event, fields["commit"], fields["last_index"]) == ("install_snapshot", 9, 9)
