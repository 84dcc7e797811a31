"""A test per claim of Ongaro's thesis (2014) that goes beyond the paper, cited as "thesis n"."""

import pytest

from kvstore.raft import Change, NotLeader, Role
from kvstore.raft.messages import (
    AppendReply,
    AppendRequest,
    Configuration,
    HeartbeatReply,
    TimeoutNow,
    VoteReply,
)
from kvstore.types import Term
from tests.support.raft_core import (
    accept,
    alive,
    append,
    ask_vote,
    beat,
    make_core,
    make_leader,
    only,
    sent,
    settled_leader,
    work,
)
from tests.support.raft_group import Group, between, rid, voters, without


class TestMembership:
    """Thesis 4."""

    def test_joint_configuration_needs_separate_majorities(self) -> None:
        # Thesis 4.3.
        joint = Configuration(voters=(rid(1), rid(4), rid(5)), outgoing=(rid(1), rid(2), rid(3)))
        core = make_core(configuration=joint)
        core.become_candidate()
        work(core)
        for number, wins in ((2, False), (3, False), (4, True)):
            core.step(
                VoteReply(
                    source=rid(number), target=rid(1), term=core.term, is_granted=True, is_pre_vote=False
                )
            )
            assert core.is_leader is wins

    def test_entries_of_a_joint_configuration_go_to_both_halves(self) -> None:
        joint = Configuration(voters=(rid(1), rid(4), rid(5)), outgoing=(rid(1), rid(2), rid(3)))
        core = make_leader(configuration=joint)
        assert {request.target for request in only(sent(core), AppendRequest)} == {
            rid(2), rid(3), rid(4), rid(5),
        }  # fmt: skip

    def test_leader_that_is_not_in_the_new_configuration_steps_down_when_it_is_committed(self) -> None:
        # Thesis 4.2.2.
        group = Group(voters(1, 2, 3))
        group.elect(1)
        group.core(1).propose_configuration(Change(removed=(rid(1),)))
        group.pump()
        assert group.core(1).role is Role.FOLLOWER
        group.tick(25)
        assert group.leader is not None
        assert group.leader.living.configuration == voters(2, 3)

    def test_removed_server_cannot_disrupt_the_group(self) -> None:
        # Thesis 4.2.3: it hears no heartbeats any more, times out and asks for votes.
        group = Group(voters(1, 2, 3))
        group.elect(1)
        group.core(1).propose_configuration(Change(removed=(rid(3),)))
        group.pump(without(3))
        for _ in range(60):
            group.tick(1)
        assert (group.core(1).is_leader, group.core(1).term) == (True, 1)

    def test_new_server_catches_up_without_a_vote(self) -> None:
        # Thesis 4.2.1.
        group = Group(voters(1, 2, 3))
        group.elect(1)
        group.add(rid(4), Configuration())
        group.core(1).propose_configuration(Change(learners=(rid(4),)))
        group.pump()
        group.propose(1, b"x")
        group.pump()
        assert group.commands(4) == (b"x",)
        group.core(4).elapsed = group.core(4).election_timeout
        group.core(4).tick()
        assert group.core(4).role is Role.FOLLOWER

    def test_leader_must_commit_in_its_term_before_it_changes_members(self) -> None:
        # Ongaro's correction of 2015 to thesis 4.1.
        core = make_leader(1)
        with pytest.raises(Exception, match="term"):
            core.propose_configuration(Change(learners=(rid(4),)))


class TestTransfer:
    """Thesis 3.10."""

    def test_leader_stops_accepting_requests_and_brings_the_target_up_to_date(self) -> None:
        core = settled_leader()
        core.propose([b"x"])
        work(core)
        core.transfer_leadership(rid(3))
        with pytest.raises(NotLeader):
            core.propose([b"y"])
        assert only(sent(core), TimeoutNow) == []
        accept(core, 3)
        assert [message.target for message in only(sent(core), TimeoutNow)] == [rid(3)]

    def test_target_starts_an_election_at_once(self) -> None:
        core = make_core(1)
        core.step(beat(1))
        core.step(TimeoutNow(source=rid(2), target=rid(1), term=Term(1)))
        assert (core.role, core.term) == (Role.CANDIDATE, 2)

    def test_transfer_that_takes_an_election_timeout_is_abandoned(self) -> None:
        core = settled_leader()
        core.transfer_leadership(rid(3))
        for _ in range(core.settings.election_ticks_min):
            core.tick()
            alive(core, 2)
        core.propose([b"y"])

    def test_prior_leader_steps_down_when_the_target_wins(self) -> None:
        group = Group(voters(1, 2, 3))
        group.elect(1)
        group.core(1).transfer_leadership(rid(2))
        group.pump()
        assert (group.core(2).is_leader, group.core(1).leader, group.core(2).term) == (True, rid(2), 2)


class TestClients:
    """Raft 8, thesis 6.4: reads that bypass the log."""

    def test_leader_commits_an_empty_entry_at_the_start_of_its_term(self) -> None:
        core = make_leader(1)
        [ready] = work(core)[:1]
        assert [(entry.term, entry.payload) for entry in ready.entries] == [(2, b"")]

    def test_read_waits_for_an_entry_of_the_leaders_term(self) -> None:
        # Thesis 6.4, step 1.
        core = make_leader(1, 1)
        core.read(1)
        work(core)
        alive(core, 2)
        assert all(not ready.reads for ready in work(core))
        accept(core, 2)
        work(core)
        alive(core, 2)
        assert [read for ready in work(core) for read in ready.reads] == [(1, 3)]

    def test_read_index_is_the_commit_index_when_the_round_starts(self) -> None:
        # Thesis 6.4, steps 2 and 3.
        core = settled_leader()
        core.read(1)
        work(core)
        core.propose([b"x"])
        work(core)
        accept(core, 2, round=1)
        assert core.commit == 2
        alive(core, 3)
        assert [read for ready in work(core) for read in ready.reads] == [(1, 1)]

    def test_read_needs_a_majority_that_has_not_moved_to_a_newer_term(self) -> None:
        core = settled_leader(configuration=voters(1, 2, 3, 4, 5))
        core.read(1)
        work(core)
        alive(core, 2)
        assert all(not ready.reads for ready in work(core))
        alive(core, 3, term=9)
        assert [ready.reads_lost for ready in work(core)] == [(1,)]

    def test_leader_that_hears_no_majority_for_an_election_timeout_steps_down(self) -> None:
        # Thesis 6.2.
        core = settled_leader()
        for _ in range(2 * core.settings.election_ticks_min):
            core.tick()
        assert core.role is Role.FOLLOWER


class TestPreVoteAndLeases:
    """Thesis 9.6 and 4.2.3."""

    def test_pre_vote_needs_an_up_to_date_log_and_silence(self) -> None:
        core = make_core(1, 1)
        core.step(ask_vote(5, (1, 1), is_pre_vote=True))
        core.step(ask_vote(5, (2, 1), is_pre_vote=True))
        core.step(beat(1))
        core.step(ask_vote(5, (2, 1), source=3, is_pre_vote=True))
        assert [reply.is_granted for reply in only(sent(core), VoteReply)] == [False, True, False]
        assert core.term == 1

    def test_partitioned_server_keeps_its_term(self) -> None:
        group = Group(voters(1, 2, 3))
        group.elect(1)
        group.tick(60, allows=without(3))
        group.tick(3)
        assert {group.core(number).term for number in (1, 2, 3)} == {1}

    def test_vote_requests_are_ignored_within_the_minimum_timeout_of_hearing_a_leader(self) -> None:
        core = make_core(1)
        core.step(beat(1))
        work(core)
        core.step(ask_vote(7, (9, 9), source=3))
        assert (core.term, only(sent(core), VoteReply)) == (1, [])


class TestDisk:
    """Thesis 10.2.1 and 10.2.2."""

    def test_leader_sends_entries_while_it_writes_them(self) -> None:
        core = settled_leader()
        core.propose([b"x"])
        ready = core.take_ready()
        assert [entry.payload for entry in ready.entries] == [b"x"]
        assert len(only(ready.messages_now, AppendRequest)) == 2

    def test_leader_counts_itself_only_after_its_own_write(self) -> None:
        core = settled_leader()
        core.propose([b"x"])
        ready = core.take_ready()
        accept(core, 2)
        assert core.commit == 1
        core.persisted(ready.number)
        assert core.commit == 2

    def test_followers_acknowledge_after_their_write(self) -> None:
        core = make_core()
        core.step(append(1, (0, 0), 1))
        core.step(beat(1))
        ready = core.take_ready()
        assert ready.messages_now == ()
        assert {type(message) for message in ready.messages_after_sync} == {AppendReply, HeartbeatReply}

    def test_leader_pipelines_without_waiting_for_answers(self) -> None:
        core = settled_leader()
        for _ in range(5):
            core.propose([b"x"])
            assert len(only(sent(core), AppendRequest)) == 2

    def test_partition_heals_without_losing_what_was_committed(self) -> None:
        group = Group(voters(1, 2, 3, 4, 5), dice=lambda me: lambda low, _high: low + int(me[1]))
        group.elect(1)
        group.propose(1, b"a")
        group.pump()
        group.propose(1, b"lost")
        group.tick(40, allows=between(3, 4, 5))
        assert group.leader is not None
        number = int(group.leader.me[1])
        assert number in (3, 4, 5)
        group.propose(number, b"b")
        group.pump(between(3, 4, 5))
        group.tick(40)
        assert {group.commands(member) for member in range(1, 6)} == {(b"a", b"b")}
