"""Bugs that other systems paid for, and bad schedules, as far as they concern the consensus core.

Each is a schedule and a claim. Each is also run with its guard taken away, and must then fail: a test that
passes without the guard would prove nothing.
"""

from collections.abc import Callable

import pytest

from kvstore.raft import Change, Core, ProposalDropped, Role, candidate, follower, leader, membership, output
from kvstore.raft.log import Flight, RaftLog
from kvstore.raft.messages import (
    AppendReply,
    AppendRequest,
    Configuration,
    Heartbeat,
    HeartbeatReply,
    Message,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvstore.raft.progress import Progress
from kvstore.types import LogIndex, ReplicaId, Term
from tests.support.raft_core import make_core, make_leader, meta, only, sent, settled_leader, work
from tests.support.raft_group import Group, between, rid, voters, without

Remove = Callable[[pytest.MonkeyPatch], None]


def _group(*numbers: int) -> Group:
    group = Group(voters(*(numbers or (1, 2, 3))))
    group.elect(1)
    return group


def _age(group: Group, *numbers: int) -> None:
    """Let the promises of some replicas expire without any of them campaigning."""
    for number in numbers:
        group.core(number).promise_left = 0
        group.core(number).elapsed = 0


def _wins(group: Group, number: int, allows: Callable[[Message], bool]) -> bool:
    core = group.core(number)
    core.elapsed = core.election_timeout
    core.tick()
    group.pump(allows)
    return core.is_leader


# --- 5: ReadIndex before the first commit of the term (etcd #7331; tikv #9208)


def lagging_leader_is_read_at_once() -> None:
    group = _group()
    group.propose(1, b"acknowledged")
    # n2 stores the entry and n1 commits it, but the commit index reaches nobody.
    group.pump(lambda message: isinstance(message, AppendRequest | AppendReply) and message.target != rid(3))
    assert group.commands(1) == (b"acknowledged",)
    group.crash(1)
    _age(group, 2, 3)
    votes_only = (VoteRequest, VoteReply, Heartbeat, HeartbeatReply)
    assert _wins(group, 2, lambda message: isinstance(message, votes_only))
    group.core(2).read(7)
    group.pump(lambda message: isinstance(message, votes_only))
    index = group[2].reads.get(7)
    assert index is None, f"read served at {index}, below what was acknowledged"
    group.tick(2)
    assert group[2].reads[7] >= 2


def test_pitfall_05_new_leader_serves_no_read_before_its_first_commit() -> None:
    lagging_leader_is_read_at_once()


# --- 7: acknowledged before durable with a single voter (etcd #14370)


def single_voter_loses_power_before_the_sync() -> None:
    group = _group(1)
    group.propose(1, b"a")
    group[1].take()
    group[1].take()
    assert group.core(1).commit == 1, "committed before it was on disk"
    assert group.commands(1) == ()
    group.crash(1)
    group.restart(1)
    assert group.core(1).last_index == 1


def test_pitfall_07_group_of_one_commits_only_what_its_disk_holds() -> None:
    single_voter_loses_power_before_the_sync()


# --- 8: entries of an older term committed by counting (Raft figure 8; logcabin #44)


def figure_8() -> None:
    group = _group(1, 2, 3, 4, 5)
    group.propose(1, b"old")
    group.pump(between(1, 2))
    group.crash(1)
    # n5 leads term 2 with n3 and n4 and writes an entry that reaches nobody.
    _age(group, 3, 4, 5)
    elections = (VoteRequest, VoteReply)
    assert _wins(
        group, 5, lambda m: isinstance(m, elections) and {m.source, m.target} <= {rid(3), rid(4), rid(5)}
    )
    group.crash(5)
    # n1 leads term 3 and goes on with its old entry, which now is on n1, n2, n3.
    group.restart(1)
    group.core(1).ticks = group.settings.election_ticks_min
    _age(group, 1, 2, 3)

    def only_old_entries(message: Message) -> bool:
        inside = {message.source, message.target} <= {rid(1), rid(2), rid(3)}
        return inside and not (
            isinstance(message, AppendRequest) and any(entry.term > 1 for entry in message.entries)
        )

    assert not _wins(group, 1, only_old_entries)  # it learns of term 2
    assert _wins(group, 1, only_old_entries)
    for number in (2, 3):
        peer = group.core(1).progress[rid(number)]
        peer.become_probe(2)
        peer.match = LogIndex(1)
        last = group.core(number).last_index
        entries = group.core(1).log.between(1, 2)
        group.deliver(
            AppendRequest(
                source=rid(1), target=rid(number), term=Term(3), prev_index=LogIndex(1), prev_term=Term(1),
                commit=LogIndex(1), round=1, entries=entries,
            )
        )  # fmt: skip
        assert group.core(number).last_index == max(last, 2)
    group.pump(only_old_entries)
    assert all(group.core(number).log.term_at(2) == 1 for number in (1, 2, 3))
    assert group.core(1).commit == 1, "an entry of an older term was committed by counting"
    # n5 comes back, wins with n3 and n4, and overwrites it.
    group.crash(1)
    group.restart(5)
    group.core(5).ticks = group.settings.election_ticks_min
    _age(group, 3, 4, 5)
    _wins(group, 5, between(3, 4, 5))
    assert _wins(group, 5, between(3, 4, 5))
    group.tick(2, allows=between(3, 4, 5))
    assert group.core(3).log.term_at(2) == 2


def test_pitfall_08_entries_of_older_terms_are_not_committed_by_counting() -> None:
    figure_8()


# --- 9: term or vote not persisted (PySyncObj #84 #98 #201)


def voter_restarts_between_two_requests() -> None:
    group = Group(voters(1, 2, 3))
    for replica in group.living:
        replica.living.ticks, replica.living.promise_left = group.settings.election_ticks_min, 0
    for number in (1, 3):
        group.core(number).become_candidate()
        group[number].take()
        group[number].sync()

    def asks(number: int) -> None:
        group.deliver(
            VoteRequest(
                source=rid(number), target=rid(2), term=Term(1), last_index=LogIndex(0), last_term=Term(0),
                is_pre_vote=False, is_transfer=False,
            )
        )  # fmt: skip

    asks(1)
    group[2].take()
    group.crash(2)  # before the sync
    group.restart(2)
    group.core(2).ticks, group.core(2).promise_left = group.settings.election_ticks_min, 0
    asks(3)
    group.pump()
    assert sum(group.core(number).is_leader for number in (1, 3)) <= 1, "two leaders of one term"


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


# --- 15: snapshot installed over a conflicting log (openraft #559 #753)


def divergent_follower_installs_a_snapshot() -> None:
    core = make_core(1, 1, 1, 1, 1, 1, commit=2)
    assert core.install(meta(4, 2))
    work(core)
    assert core.last_index == 4, "entries of the old log survived above the snapshot"
    assert (core.log.term_at(4), core.commit, core.applied_index) == (2, 4, 4)


def test_pitfall_15_snapshot_resets_a_log_that_does_not_match() -> None:
    divergent_follower_installs_a_snapshot()


def test_pitfall_15_snapshot_keeps_a_log_that_matches() -> None:
    core = make_core(1, 1, 1, 1, 1, 1, commit=2)
    assert not core.install(meta(4, 1))
    assert (core.last_index, core.commit) == (6, 4)


def test_pitfall_15_crash_on_either_side_of_the_installation_is_consistent() -> None:
    for is_synced in (False, True):
        group = _group()
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


# --- 16: snapshot and configuration disagree (openraft #1808; dragonboat)


def lagging_replica_gets_the_members_with_the_snapshot() -> None:
    group = _group()
    group.add(rid(4), Configuration())
    group.core(1).propose_configuration(Change(voters=(rid(4),), removed=(rid(2),)))
    group.pump(without(3))
    group.tick(1, allows=without(3))
    assert group.core(1).configuration == voters(1, 3, 4)
    replica = group[3]
    replica.fetched = group[1].machine
    assert replica.living.install(group[1].machine.meta())
    group.pump(without(3))
    while replica.take() is not None:
        replica.sync()
    assert replica.living.configuration == voters(1, 3, 4), "the members are not those of the snapshot"
    asked = {message.target for message in only(_campaign(replica.living), VoteRequest)}
    assert asked == {rid(1), rid(4)}


def _campaign(core: Core) -> list[Message]:
    core.promise_left, core.elapsed = 0, core.election_timeout
    core.tick()
    return sent(core)


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


# --- 19: changes of members one by one (Ongaro 2015), and at once


def replacing_a_majority() -> None:
    """n1 replaces n2 and n3 by n4 and n5; n2 does not know that this is committed and stands for election."""
    group = _group()
    group.add(rid(4), Configuration())
    group.add(rid(5), Configuration())
    group.core(1).propose_configuration(Change(learners=(rid(4), rid(5))))
    group.pump()
    group.core(1).propose_configuration(Change(voters=(rid(4), rid(5)), removed=(rid(2), rid(3))))
    # n2 stores the change, which commits it, but hears nothing of that.
    appends = (AppendRequest, AppendReply)
    group[1].take()
    group[1].sync()
    group.network = [message for message in group.network if message.target == rid(2)]
    group.deliver_all()
    group[2].take()
    group[2].sync()
    group.deliver_all()
    group.pump(lambda message: isinstance(message, appends) and between(1, 4, 5)(message))
    group.propose(1, b"new half")
    group.pump(between(1, 4, 5))
    _age(group, 2, 3)
    _wins(group, 2, between(2, 3))
    if group.core(2).is_leader:
        group.propose(2, b"old half")
        group.pump(between(2, 3))
    assert not ({b"new half"} <= set(group.commands(1)) and {b"old half"} <= set(group.commands(2)))


def test_pitfall_19_old_and_new_majority_never_decide_apart() -> None:
    replacing_a_majority()


def leader_changes_members_before_it_has_committed() -> None:
    core = make_leader(1)
    work(core)
    with pytest.raises(ProposalDropped):
        core.propose_configuration(Change(removed=(rid(3),)))


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
    group = _group(1, 2, 3, 4)
    group.add(rid(5), Configuration())
    group.core(1).propose_configuration(first)
    group[1].take()
    group[1].sync()
    group.network.clear()
    _age(group, 2, 3, 4)
    assert _wins(group, 2, between(2, 3, 4))
    group.core(2).propose_configuration(second)
    group.pump(between(2, 3, 5))
    group.tick(1, 2, allows=between(2, 3, 5))
    group.core(1).become_follower(group.core(1).term, None)
    for _ in range(3):
        _age(group, 1, 4)
        _wins(group, 1, between(1, 4, 5))
    group.check()
    assert not group.core(1).is_leader


# --- 21: partial partitions and returning replicas disrupt (Cloudflare 2020; hashicorp/raft #524)


def isolated_replica_returns() -> None:
    group = _group()
    group.tick(100, allows=without(3))
    assert group.core(3).term == 1, "an isolated replica raised its term"
    group.tick(3)
    assert (group.core(1).is_leader, group.core(1).term) == (True, 1)


def test_pitfall_21_isolated_replica_disturbs_nobody_when_it_returns() -> None:
    isolated_replica_returns()


def replica_hears_the_others_but_not_the_leader() -> None:
    group = _group()

    def allows(message: Message) -> bool:
        return {message.source, message.target} != {rid(1), rid(3)}

    for _ in range(100):
        group.tick(1, allows=allows)
        assert (group.core(1).is_leader, group.core(1).term) == (True, 1), "the leader was deposed"


def test_pitfall_21_replica_that_hears_only_followers_deposes_nobody() -> None:
    replica_hears_the_others_but_not_the_leader()


def test_pitfall_21_leader_that_is_not_heard_back_makes_way() -> None:
    group = _group()
    # n1 reaches everybody, nobody reaches n1: without check-quorum it would block the group for ever.
    for _ in range(60):
        group.tick(1, allows=lambda message: message.target != rid(1))
    assert group.leader is not None
    assert group.leader.me != rid(1)
    assert not group.core(1).is_leader


# --- 22: zombie leader on a hung disk (lavinmq #2151; etcd #7617)


def leader_with_a_hung_disk() -> None:
    group = _group()
    group.propose(1, b"a")
    for _ in range(50):
        for replica in group.living:
            replica.living.tick()
        for _ in range(4):
            for number in (1, 2, 3):
                while group[number].take() is not None:
                    pass
                if number != 1:
                    group[number].sync()
            group.deliver_all()
    assert not group.core(1).is_leader, "a leader that cannot write stays in office"
    assert group.leader is not None


def test_pitfall_22_leader_on_a_hung_disk_hands_over() -> None:
    leader_with_a_hung_disk()


# --- 29: damage of a replica takes it out of every quorum


def acknowledgement_from_before_the_damage() -> None:
    group = _group()
    group.propose(1, b"a")
    group.pump(lambda message: isinstance(message, AppendRequest) and message.target == rid(2))
    acknowledged = AppendReply(
        source=rid(2), target=rid(1), term=Term(1), index=LogIndex(2), is_rejected=False,
        hint_index=LogIndex(0), hint_term=Term(0), round=group.core(1).round,
    )  # fmt: skip
    group.core(1).forget(rid(2))
    group.crash(2)
    group.deliver(acknowledged)
    assert group.core(1).commit == 1, "a damaged copy was counted"
    group.tick(2, allows=between(1, 3))
    assert group.core(1).commit == 2


def test_pitfall_29_forgotten_replica_commits_nothing_with_late_answers() -> None:
    acknowledgement_from_before_the_damage()


def test_pitfall_29_new_incarnation_does_not_vote_for_the_damaged_one() -> None:
    # n1 and n2 hold a committed entry that n3 lacks. n2's log rots; its node comes back as n2/2. n1 dies.
    group = _group()
    group.propose(1, b"committed")
    group.pump(between(1, 2))
    group.core(1).forget(rid(2))
    group.crash(1, 2)
    group.add(ReplicaId("n2/2"), Configuration())
    newcomer = group.replicas[ReplicaId("n2/2")].living
    newcomer.ticks, newcomer.promise_left = group.settings.election_ticks_min, 0
    _age(group, 3)
    for _ in range(3):
        assert not _wins(group, 3, lambda _message: True)
        newcomer.step(
            VoteRequest(
                source=rid(3), target=rid(2), term=Term(9), last_index=LogIndex(1), last_term=Term(1),
                is_pre_vote=False, is_transfer=False,
            )
        )  # fmt: skip
    assert (newcomer.term, newcomer.role) == (0, Role.FOLLOWER)


# --- 30: a paused leader wakes up in an older term (etcd #20418)


def paused_leader_hears_that_nodes_are_alive() -> None:
    group = _group()
    _age(group, 2, 3)
    assert _wins(group, 2, between(2, 3))
    group.propose(2, b"newer")
    group.pump(between(2, 3))
    old = group.core(1)
    assert old.is_leader
    old.read(7)
    group[1].take()
    group.network.clear()
    # The nodes answer each other, which proves nothing about this shard and term.
    old.hear_follower(rid(2))
    old.hear_follower(rid(3))
    group[1].take()
    assert 7 not in group[1].reads, "a read was served in a term that is over"
    group.pump()
    group.tick(1)
    assert group[1].reads_lost == [7]


def test_pitfall_30_living_node_confirms_no_read() -> None:
    paused_leader_hears_that_nodes_are_alive()


# --- 31: one shard loses its leader while the node's heartbeats go on


def node_goes_on_without_leading_this_shard() -> None:
    group = _group()
    group.tick(2)
    group.core(1).become_follower(group.core(1).term, None)
    group.core(1).elapsed = -1000
    for core in (group.core(2), group.core(3)):
        core.step(
            HeartbeatReply(source=rid(1), target=core.me, term=Term(2), round=0)
        )  # something of term 2 has been heard
    for _ in range(60):
        for number in (2, 3):
            group.core(number).hear_leader(rid(1), Term(1))
            group.core(number).tick()
        group.pump()
    assert group.leader is not None, "the word of a node kept followers from electing"
    assert group.leader.me != rid(1)


def test_pitfall_31_followers_elect_when_their_leader_leads_this_shard_no_more() -> None:
    node_goes_on_without_leading_this_shard()


# --- 37: followers commit what the leader has not synced; power fails


def leader_loses_what_its_followers_committed() -> None:
    group = _group()
    group.propose(1, b"a")
    group[1].take()
    group.deliver_all()
    for number in (2, 3):
        group[number].take()
        group[number].sync()
    group.deliver_all()
    assert group.core(1).commit == 2
    group[1].take()
    assert group[1].machine.applied == 1, "the machine is ahead of its log"
    group[1].flush_machine()
    group.crash(1, 2, 3)
    group.restart(1, 2, 3)
    group.tick(30)
    assert {group.commands(number) for number in (1, 2, 3)} == {(b"a",)}


def test_pitfall_37_leader_applies_nothing_that_its_own_disk_does_not_hold() -> None:
    leader_loses_what_its_followers_committed()


# --- 39: a lease outlives the restart of its supporter; and a transfer that came to nothing


def supporter_restarts_and_is_asked_to_vote() -> None:
    group = _group()
    group.tick(1)
    group.crash(2)
    group.restart(2)
    _age(group, 3)
    assert not _wins(group, 3, between(2, 3)), "elected while the old leader's lease holds"


def test_pitfall_39_restarted_replica_does_not_break_a_lease_it_may_support() -> None:
    supporter_restarts_and_is_asked_to_vote()


def transfer_comes_to_nothing() -> None:
    core = settled_leader()
    core.transfer_leadership(rid(2))
    assert only(sent(core), TimeoutNow) != []
    for _ in range(12):
        core.hear_follower(rid(2))
        core.tick()
    assert core.is_leader
    assert core.transfer_target is None
    assert core.lease_forbidden, "the lease came back while TimeoutNow may still arrive"


def test_pitfall_39_lease_stays_off_after_a_transfer_that_came_to_nothing() -> None:
    transfer_comes_to_nothing()


# --- the guards


def _count_from_any_term(patch: pytest.MonkeyPatch) -> None:
    begin = leader.begin_term

    def begin_without_mark(core: Core) -> None:
        begin(core)
        core.term_start = LogIndex(0)

    patch.setattr(leader, "begin_term", begin_without_mark)


def _count_own_unsynced_entries(patch: pytest.MonkeyPatch) -> None:
    append = leader._append

    def append_and_count(core: Core, kind: int, payloads: list[bytes]) -> LogIndex:
        index = append(core, kind, payloads)
        core.own_progress.match = core.last_index
        leader.advance_commit(core)
        return index

    patch.setattr(leader, "_append", append_and_count)


def _promise_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "send_after_sync", Core.send_now)


def _keep_the_old_tail(patch: pytest.MonkeyPatch) -> None:
    def reset(log: RaftLog, index: LogIndex, term: Term, commit: LogIndex) -> None:
        log.compact(min(index, log.last_index))

    patch.setattr(RaftLog, "reset", reset)


def _forget_the_snapshots_members(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "_installed", lambda core, at: setattr(core, "applied_index", at.index))


def _change_members_in_one_step(patch: pytest.MonkeyPatch) -> None:
    def at_once(current: Configuration, change: Change) -> Configuration:
        following = membership.next_configuration(current, change)
        return membership.left_joint(following) if following.is_joint else following

    patch.setattr(
        leader, "membership", type("Patched", (), {**vars(membership), "next_configuration": at_once})
    )


def _campaign_without_asking_first(patch: pytest.MonkeyPatch) -> None:
    ask = candidate.campaign
    patch.setattr(candidate, "campaign", lambda core, is_transfer: ask(core, is_transfer=True))


def _vote_at_any_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(candidate, "_is_bound", lambda _core, _message: False)


def _never_look_at_the_disk(patch: pytest.MonkeyPatch) -> None:
    create = Flight.__init__

    def create_ageless(flight: Flight, *arguments: object) -> None:
        create(flight, *arguments)  # type: ignore[arg-type]
        flight.tick = 1 << 60

    patch.setattr(Flight, "__init__", create_ageless)


def _remember_the_damaged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Progress, "forget", lambda _peer, last_index, round_floor: None)


def _take_life_for_confirmation(patch: pytest.MonkeyPatch) -> None:
    def hear_follower(core: Core, replica: ReplicaId) -> None:
        core.progress[replica].round = core.round
        leader.confirm_rounds(core)

    patch.setattr(Core, "hear_follower", hear_follower)


def _believe_any_node(patch: pytest.MonkeyPatch) -> None:
    def hear_leader(core: Core, _source: ReplicaId, _term: Term) -> bool:
        core.elapsed = 0
        return True

    patch.setattr(follower, "hear_leader", hear_leader)


def _apply_what_is_committed(patch: pytest.MonkeyPatch) -> None:
    def take(core: Core) -> tuple[object, ...]:
        committed = core.log.between(core.emitted, core.commit)
        core.emitted = core.commit
        return committed

    patch.setattr(output, "_take_committed", take)


def _start_unbound(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "is_fresh", False)
    start = Core._start_clocks

    def start_free(core: Core) -> None:
        start(core)
        core.promise_left = 0

    patch.setattr(Core, "_start_clocks", start_free)


def _take_the_lease_back(patch: pytest.MonkeyPatch) -> None:
    tick = leader.tick

    def tick_and_forgive(core: Core) -> None:
        tick(core)
        core.lease_forbidden = core.transfer_target is not None

    patch.setattr(leader, "tick", tick_and_forgive)


GUARDS: list[tuple[Callable[[], None], Remove]] = [
    (lagging_leader_is_read_at_once, _count_from_any_term),
    (single_voter_loses_power_before_the_sync, _count_own_unsynced_entries),
    (figure_8, _count_from_any_term),
    (voter_restarts_between_two_requests, _promise_before_the_sync),
    (divergent_follower_installs_a_snapshot, _keep_the_old_tail),
    (lagging_replica_gets_the_members_with_the_snapshot, _forget_the_snapshots_members),
    (replacing_a_majority, _change_members_in_one_step),
    (leader_changes_members_before_it_has_committed, _count_from_any_term),
    (isolated_replica_returns, _campaign_without_asking_first),
    (replica_hears_the_others_but_not_the_leader, _vote_at_any_time),
    (leader_with_a_hung_disk, _never_look_at_the_disk),
    (acknowledgement_from_before_the_damage, _remember_the_damaged),
    (paused_leader_hears_that_nodes_are_alive, _take_life_for_confirmation),
    (node_goes_on_without_leading_this_shard, _believe_any_node),
    (leader_loses_what_its_followers_committed, _apply_what_is_committed),
    (supporter_restarts_and_is_asked_to_vote, _start_unbound),
    (transfer_comes_to_nothing, _take_the_lease_back),
]


@pytest.mark.parametrize(
    ("schedule", "remove"),
    GUARDS,
    ids=[f"{schedule.__name__}-{remove.__name__[1:]}" for schedule, remove in GUARDS],
)
def test_schedule_fails_when_its_guard_is_taken_away(
    schedule: Callable[[], None], remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule()
    remove(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        schedule()
