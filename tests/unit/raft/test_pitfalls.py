"""Bugs that other systems paid for, and bad schedules, as far as they concern the consensus core.

`test_pitfall_guards.py` shows that each schedule fails when its guard is taken away.
"""

import pytest

from kvstore.raft import Change, ProposalDropped, Role, membership
from kvstore.raft.messages import (
    AppendRequest,
    Configuration,
    VoteRequest,
)
from kvstore.types import LogIndex, ReplicaId, Term
from tests.support.raft_core import make_core, meta, settled_leader, work
from tests.support.raft_group import Group, between, rid, voters, without
from tests.support.raft_schedules import (
    acknowledgement_from_before_the_damage,
    divergent_follower_installs_a_snapshot,
    figure_8,
    group_led_by_n1,
    isolated_replica_returns,
    lagging_leader_is_read_at_once,
    lagging_replica_gets_the_members_with_the_snapshot,
    leader_changes_members_before_it_has_committed,
    leader_loses_what_its_followers_committed,
    leader_with_a_hung_disk,
    let_promises_expire,
    node_goes_on_without_leading_this_shard,
    paused_leader_hears_that_nodes_are_alive,
    replacing_a_majority,
    replica_hears_the_others_but_not_the_leader,
    single_voter_loses_power_before_the_sync,
    supporter_restarts_and_is_asked_to_vote,
    transfer_comes_to_nothing,
    voter_restarts_between_two_requests,
    wins,
)


def test_pitfall_05_new_leader_serves_no_read_before_its_first_commit() -> None:
    lagging_leader_is_read_at_once()


def test_pitfall_07_group_of_one_commits_only_what_its_disk_holds() -> None:
    single_voter_loses_power_before_the_sync()


def test_pitfall_08_entries_of_older_terms_are_not_committed_by_counting() -> None:
    figure_8()


def test_pitfall_09_no_vote_leaves_before_it_is_on_disk() -> None:
    voter_restarts_between_two_requests()


def test_pitfall_09_whole_group_restarting_during_elections_keeps_every_promise() -> None:
    group = Group(voters(1, 2, 3), dice=lambda me: lambda low, _high: low + int(me[1]))
    for repetition in range(30):
        group.tick(13 + repetition % 7)
        if group.leader is not None and repetition % 3 == 0:
            group.leader.living.propose([b"%d" % repetition])
            for replica in group.living:
                replica.take()
        group.crash(1, 2, 3)
        group.network.clear()
        group.restart(1, 2, 3)
        group.check()
    group.tick(40)
    assert group.leader is not None


def test_pitfall_15_snapshot_resets_a_log_that_does_not_match() -> None:
    divergent_follower_installs_a_snapshot()


def test_pitfall_15_snapshot_keeps_a_log_that_matches() -> None:
    core = make_core(1, 1, 1, 1, 1, 1, commit=2)
    assert not core.install(meta(4, 1))
    assert (core.last_index, core.commit) == (6, 4)


def test_pitfall_15_crash_on_either_side_of_the_installation_is_consistent() -> None:
    for is_synced in (False, True):
        group = group_led_by_n1()
        group.propose(1, b"a", b"b")
        group.pump(without(3))
        replica = group[3]
        group.core(1).compact(LogIndex(3))
        replica.fetched = group[1].machine
        assert replica.living.install(group[1].machine.meta())
        replica.take()
        if is_synced:
            replica.sync()
        group.crash(3)
        group.restart(3)
        assert group.core(3).last_index == (3 if is_synced else 1)
        assert group[3].machine.commands == ((b"a", b"b") if is_synced else ())
        group.check()


def test_pitfall_16_members_come_from_the_snapshot_at_its_own_index() -> None:
    lagging_replica_gets_the_members_with_the_snapshot()


def test_pitfall_16_changes_after_the_snapshot_come_from_the_log() -> None:
    core = make_core(1)
    core.install(meta(4, 1, voters(1, 2)))
    work(core)
    change = membership.encode(voters(1, 2, 5))
    group = settled_leader()
    entry = type(group.log.entry(1))(LogIndex(5), Term(1), 2, change)
    core.step(
        AppendRequest(
            source=rid(2), target=rid(1), term=Term(1), prev_index=LogIndex(4), prev_term=Term(1),
            commit=LogIndex(5), round=1, entries=(entry,),
        )
    )  # fmt: skip
    work(core)
    assert core.configuration == voters(1, 2, 5)


def test_pitfall_19_old_and_new_majority_never_decide_apart() -> None:
    replacing_a_majority()


def test_pitfall_19_no_change_before_the_first_commit_of_the_term() -> None:
    leader_changes_members_before_it_has_committed()


def test_pitfall_19_one_change_at_a_time() -> None:
    core = settled_leader()
    core.propose_configuration(Change(removed=(rid(3),)))
    with pytest.raises(ProposalDropped):
        core.propose_configuration(Change(voters=(rid(4),)))


@pytest.mark.parametrize("first", [Change(voters=(rid(5),)), Change(removed=(rid(1),))])
@pytest.mark.parametrize("second", [Change(removed=(rid(1),)), Change(voters=(rid(5),))])
def test_pitfall_19_interrupted_change_and_a_later_one_do_not_split_the_group(
    first: Change, second: Change
) -> None:
    # The published schedules (add/remove, remove/remove, add/add): n1 starts a change that reaches nobody,
    # n2 leads and makes another, n1 returns and campaigns with whoever it had in mind.
    group = group_led_by_n1(1, 2, 3, 4)
    group.add(rid(5), Configuration())
    group.core(1).propose_configuration(first)
    group[1].take()
    group[1].sync()
    group.network.clear()
    let_promises_expire(group, 2, 3, 4)
    assert wins(group, 2, between(2, 3, 4))
    group.core(2).propose_configuration(second)
    group.pump(between(2, 3, 5))
    group.tick(1, 2, allows=between(2, 3, 5))
    group.core(1).become_follower(group.core(1).term, None)
    for _ in range(3):
        let_promises_expire(group, 1, 4)
        wins(group, 1, between(1, 4, 5))
    group.check()
    assert not group.core(1).is_leader


def test_pitfall_21_isolated_replica_disturbs_nobody_when_it_returns() -> None:
    isolated_replica_returns()


def test_pitfall_21_replica_that_hears_only_followers_deposes_nobody() -> None:
    replica_hears_the_others_but_not_the_leader()


def test_pitfall_21_leader_that_is_not_heard_back_makes_way() -> None:
    group = group_led_by_n1()
    # n1 reaches everybody, nobody reaches n1: without check-quorum it would block the group for ever.
    for _ in range(60):
        group.tick(1, allows=lambda message: message.target != rid(1))
    assert group.leader is not None
    assert group.leader.me != rid(1)
    assert not group.core(1).is_leader


def test_pitfall_22_leader_on_a_hung_disk_hands_over() -> None:
    leader_with_a_hung_disk()


def test_pitfall_29_forgotten_replica_commits_nothing_with_late_answers() -> None:
    acknowledgement_from_before_the_damage()


def test_pitfall_29_new_incarnation_does_not_vote_for_the_damaged_one() -> None:
    # n1 and n2 hold a committed entry that n3 lacks. n2's log rots; its node comes back as n2/2. n1 dies.
    group = group_led_by_n1()
    group.propose(1, b"committed")
    group.pump(between(1, 2))
    group.core(1).forget(rid(2))
    group.crash(1, 2)
    group.add(ReplicaId("n2/2"), Configuration())
    newcomer = group.replicas[ReplicaId("n2/2")].living
    newcomer.ticks, newcomer.promise_left = group.settings.election_ticks_min, 0
    let_promises_expire(group, 3)
    for _ in range(3):
        assert not wins(group, 3, lambda _message: True)
        newcomer.step(
            VoteRequest(
                source=rid(3), target=rid(2), term=Term(9), last_index=LogIndex(1), last_term=Term(1),
                is_pre_vote=False, is_transfer=False,
            )
        )  # fmt: skip
    assert (newcomer.term, newcomer.role) == (0, Role.FOLLOWER)


def test_pitfall_30_living_node_confirms_no_read() -> None:
    paused_leader_hears_that_nodes_are_alive()


def test_pitfall_31_followers_elect_when_their_leader_leads_this_shard_no_more() -> None:
    node_goes_on_without_leading_this_shard()


def test_pitfall_37_leader_applies_nothing_that_its_own_disk_does_not_hold() -> None:
    leader_loses_what_its_followers_committed()


def test_pitfall_39_restarted_replica_does_not_break_a_lease_it_may_support() -> None:
    supporter_restarts_and_is_asked_to_vote()


def test_pitfall_39_lease_stays_off_after_a_transfer_that_came_to_nothing() -> None:
    transfer_comes_to_nothing()
