"""A test per claim of the Raft paper (Ongaro and Ousterhout, 2014) and thesis (Ongaro, 2014).

Sections of the paper are cited as "Raft n", those of the thesis as "thesis n". Tests of the paper speak of
one server and messages; what a whole group does under faults is in `tests/unit/raft/test_random_network.py`.
"""

import pytest

from kvstore.raft import Change, NotLeader, Role
from kvstore.raft.messages import (
    AppendReply,
    AppendRequest,
    Configuration,
    Heartbeat,
    HeartbeatReply,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvstore.types import LogIndex, Term
from tests.support.raft_core import (
    accept,
    alive,
    append,
    ask_vote,
    beat,
    campaign,
    make_core,
    make_leader,
    meta,
    only,
    reject,
    sent,
    settled_leader,
    work,
)
from tests.support.raft_group import Group, between, rid, voters, without


class TestTerms:
    """Raft 5.1."""

    @pytest.mark.parametrize("role", list(Role))
    def test_server_with_a_smaller_term_takes_the_larger_one_and_follows(self, role: Role) -> None:
        core = make_leader() if role is Role.LEADER else make_core(1)
        if role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
            campaign(core)
        if role is Role.CANDIDATE:
            core.become_candidate()
        assert core.role is role
        core.step(append(9, (0, 0)))
        assert (core.term, core.role, core.leader) == (9, Role.FOLLOWER, rid(2))

    def test_request_of_a_stale_term_is_rejected(self) -> None:
        core = make_core(1, term=5)
        core.step(append(4, (1, 1), 4))
        core.step(ask_vote(4, (9, 4)))
        assert core.last_index == 1
        assert [reply.is_granted for reply in only(sent(core), VoteReply)] == [False]

    def test_server_starts_as_a_follower(self) -> None:
        assert make_core(1, 2, 3).role is Role.FOLLOWER


class TestElection:
    """Raft 5.2."""

    def test_heartbeats_keep_a_follower(self) -> None:
        core = make_core(1)
        for _ in range(10 * core.settings.election_ticks_max):
            core.step(beat(1))
            core.tick()
        assert core.role is Role.FOLLOWER

    def test_leader_sends_heartbeats_to_everybody_in_each_interval(self) -> None:
        core = settled_leader()
        for _ in range(3):
            core.tick()
            targets = [message.target for message in only(sent(core), Heartbeat)]
            assert targets == [rid(2), rid(3)]

    def test_follower_without_word_from_a_leader_starts_an_election(self) -> None:
        core = make_core(1)
        for _ in range(core.election_timeout):
            core.tick()
        requests = only(sent(core), VoteRequest)
        assert {request.target for request in requests} == {rid(2), rid(3)}

    def test_candidate_increments_its_term_and_votes_for_itself(self) -> None:
        core = make_core(1, term=3)
        core.become_candidate()
        assert (core.term, core.vote) == (4, rid(1))

    @pytest.mark.parametrize(
        ("size", "grants", "wins"), [(1, 0, True), (3, 1, True), (3, 0, False), (5, 2, True), (5, 1, False)]
    )
    def test_candidate_with_the_votes_of_a_majority_leads(self, size: int, grants: int, wins: bool) -> None:
        core = make_core(configuration=voters(*range(1, size + 1)))
        core.become_candidate()
        work(core)
        for number in range(2, 2 + grants):
            core.step(
                VoteReply(
                    source=rid(number), target=rid(1), term=core.term, is_granted=True, is_pre_vote=False
                )
            )
        assert core.is_leader is wins

    @pytest.mark.parametrize(("vote", "asks", "grants"), [(None, 2, True), (2, 2, True), (3, 2, False)])
    def test_server_votes_for_at_most_one_candidate_first_come_first_served(
        self, vote: int | None, asks: int, grants: bool
    ) -> None:
        core = make_core(term=1, vote=None if vote is None else rid(vote))
        core.step(ask_vote(1, (0, 0), source=asks))
        assert [reply.is_granted for reply in only(sent(core), VoteReply)] == [grants]

    def test_candidate_that_hears_a_leader_of_its_term_or_later_follows(self) -> None:
        for term in (1, 2):
            core = make_core()
            core.become_candidate()
            core.step(beat(term))
            assert (core.role, core.term, core.leader) == (Role.FOLLOWER, term, rid(2))

    def test_candidate_that_hears_a_stale_leader_goes_on(self) -> None:
        core = make_core(term=4)
        core.become_candidate()
        core.step(beat(4))
        assert (core.role, core.term) == (Role.CANDIDATE, 5)

    def test_election_timeouts_are_random_within_the_interval(self) -> None:
        drawn = iter([13, 19, 11, 17])
        group = Group(voters(1), dice=lambda _me: lambda low, high: next(drawn))
        core = group.core(1)
        seen = []
        for _ in range(3):
            core.elapsed = core.election_timeout
            seen.append(core.election_timeout)
            core.promise_left = 1
            core.tick()
        assert seen == [13, 19, 11]

    def test_split_vote_is_resolved_by_the_next_timeout(self) -> None:
        group = Group(voters(1, 2, 3, 4), dice=lambda me: lambda low, _high: low + int(me[1]) % 3 * 2)
        group.tick(60)
        assert group.leader is not None


class TestReplication:
    """Raft 5.3."""

    def test_leader_appends_a_command_and_sends_it_to_all(self) -> None:
        core = settled_leader()
        core.propose([b"x"])
        requests = only(sent(core), AppendRequest)
        assert {request.target for request in requests} == {rid(2), rid(3)}
        assert {(r.prev_index, r.prev_term, r.entries[0].payload) for r in requests} == {(1, 1, b"x")}

    @pytest.mark.parametrize(
        ("size", "acceptors", "commits"),
        [
            (1, [], True),
            (3, [], False),
            (3, [2], True),
            (5, [2], False),
            (5, [2, 3], True),
            (5, [2, 3, 4, 5], True),
        ],
    )
    def test_entry_is_committed_once_a_majority_stores_it(
        self, size: int, acceptors: list[int], commits: bool
    ) -> None:
        core = settled_leader(configuration=voters(*range(1, size + 1)))
        core.propose([b"x"])
        work(core)
        for number in acceptors:
            accept(core, number)
        assert (core.commit == core.last_index) is commits

    def test_commit_covers_all_preceding_entries(self) -> None:
        core = make_leader(1, 1, 1)
        work(core)
        accept(core, 2)
        assert [entry.index for ready in work(core) for entry in ready.committed] == [1, 2, 3, 4]

    def test_leader_tells_the_commit_index_and_followers_apply_in_order(self) -> None:
        core = make_core()
        core.step(append(1, (0, 0), 1, 1))
        work(core)
        core.step(append(1, (2, 1), 1, commit=3))
        applied = [entry.index for ready in work(core) for entry in ready.committed]
        assert applied == [1, 2, 3]

    @pytest.mark.parametrize(
        ("prev", "accepts"),
        [((0, 0), True), ((1, 1), True), ((2, 2), True), ((1, 2), False), ((2, 3), False), ((3, 2), False)],
    )
    def test_follower_refuses_entries_after_one_it_does_not_hold(
        self, prev: tuple[int, int], accepts: bool
    ) -> None:
        core = make_core(1, 2)
        core.step(append(3, prev))
        [reply] = only(sent(core), AppendReply)
        assert reply.is_rejected is not accepts

    @pytest.mark.parametrize(
        ("stored", "prev", "new", "expected"),
        [
            ([1, 1], (2, 1), [3], [1, 1, 3]),
            ([1, 2], (1, 1), [3], [1, 3]),
            ([1, 2, 2, 2], (1, 1), [3, 4], [1, 3, 4]),
            ([1, 1, 1], (0, 0), [1], [1, 1, 1]),
            ([], (0, 0), [3, 3], [3, 3]),
            ([2, 2], (0, 0), [3, 3], [3, 3]),
        ],
    )
    def test_conflicting_entries_are_deleted_and_matching_ones_kept(
        self, stored: list[int], prev: tuple[int, int], new: list[int], expected: list[int]
    ) -> None:
        core = make_core(*stored)
        core.step(append(max(new), prev, *new))
        assert [entry.term for entry in core.log.between(0, core.last_index)] == expected

    @pytest.mark.parametrize(
        "follower",
        [
            pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6], id="a: one missing"),
            pytest.param([1, 1, 1, 4], id="b: many missing"),
            pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6], id="c: one extra"),
            pytest.param([1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7], id="d: extra of another term"),
            pytest.param([1, 1, 1, 4, 4, 4, 4], id="e: both"),
            pytest.param([1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3], id="f: long and old"),
        ],
    )
    def test_leader_brings_every_follower_log_into_line(self, follower: list[int]) -> None:
        # Figure 7. The leader of term 8 holds 1 1 1 4 4 5 5 6 6 6.
        leader = make_leader(1, 1, 1, 4, 4, 5, 5, 6, 6, 6, term=7)
        other = make_core(*follower, term=8)
        other.me = rid(2)
        exchanges = 0
        messages = sent(leader)
        while messages:
            for message in messages:
                if message.target == rid(2):
                    other.step(message)
            replies = sent(other)
            for reply in replies:
                leader.step(reply)
            messages = [message for message in sent(leader) if message.target == rid(2)]
            exchanges += 1
            assert exchanges < 8
        assert other.log.between(0, other.last_index) == leader.log.between(0, leader.last_index)

    def test_refusals_skip_whole_terms(self) -> None:
        # "With this approach, one AppendEntries RPC will be required for each term with conflicting entries."
        leader = make_leader(*[1] * 10, *[5] * 40, term=6)
        other = make_core(*[1] * 10, *[2] * 20, *[3] * 20, term=7)
        other.me = rid(2)
        refusals = 0
        messages = sent(leader)
        while messages:
            for message in messages:
                if message.target == rid(2):
                    other.step(message)
            for reply in sent(other):
                refusals += isinstance(reply, AppendReply) and reply.is_rejected
                leader.step(reply)
            messages = [message for message in sent(leader) if message.target == rid(2)]
        assert other.last_index == leader.last_index
        assert refusals <= 2

    def test_leader_never_overwrites_its_own_log(self) -> None:
        core = settled_leader(1, 1)
        before = core.log.between(0, core.last_index)
        reject(core, 2, 1, hint=(0, 0))
        core.propose([b"x"])
        assert core.log.between(0, core.last_index)[: len(before)] == before


class TestSafety:
    """Raft 5.4."""

    @pytest.mark.parametrize(
        ("mine", "last", "grants"),
        [
            ([1], (1, 1), True),
            ([1], (2, 1), True),
            ([1, 1], (1, 1), False),
            ([1], (1, 2), True),
            ([2], (1, 1), False),
            ([2], (2, 1), False),
            ([1, 1, 1], (1, 2), True),
        ],
    )
    def test_voter_denies_a_candidate_whose_log_is_less_up_to_date(
        self, mine: list[int], last: tuple[int, int], grants: bool
    ) -> None:
        # Raft 5.4.1.
        core = make_core(*mine)
        core.step(ask_vote(5, last))
        assert [reply.is_granted for reply in only(sent(core), VoteReply)] == [grants]

    @pytest.mark.parametrize(("index", "commit"), [(1, 0), (2, 0), (3, 3)])
    def test_only_entries_of_the_current_term_commit_by_counting(self, index: int, commit: int) -> None:
        # Raft 5.4.2.
        core = make_leader(1, 2)
        work(core)
        accept(core, 2, index)
        assert core.commit == commit

    def test_committed_entries_survive_every_later_leader(self) -> None:
        # Raft 5.4.3, Leader Completeness: checked by the group's invariants as well.
        group = Group(voters(1, 2, 3))
        group.elect(1)
        for leader, other in ((1, 2), (2, 3), (3, 1)):
            group.propose(leader, b"by %d" % leader)
            group.pump()
            group.elect(other)
            for number in (1, 2, 3):
                assert b"by %d" % leader in group.commands(number)


class TestCrashesAndTiming:
    """Raft 5.5, 5.6."""

    def test_repeated_requests_change_nothing(self) -> None:
        core = make_core(1)
        request = append(2, (1, 1), 2, 2, commit=2)
        core.step(request)
        work(core)
        before = core.log.between(0, core.last_index)
        core.step(request)
        assert [reply.index for reply in only(sent(core), AppendReply)] == [3]
        assert (core.log.between(0, core.last_index), core.commit) == (before, 2)

    def test_leader_repeats_what_a_crashed_follower_missed(self) -> None:
        group = Group(voters(1, 2, 3))
        group.elect(1)
        group.crash(3)
        group.propose(1, b"x")
        group.pump()
        group.restart(3)
        group.tick(2)
        assert group.commands(3) == (b"x",)

    def test_group_of_three_works_with_two(self) -> None:
        group = Group(voters(1, 2, 3))
        group.elect(1)
        group.crash(1)
        group.tick(40)
        assert group.leader is not None
        group.propose(int(group.leader.me[1]), b"x")
        group.pump()
        assert group.commands(2) == group.commands(3) == (b"x",)

    def test_vote_and_term_survive_a_crash(self) -> None:
        group = Group(voters(1, 2, 3))
        group.elect(1)
        term = group.core(2).term
        vote = group.core(2).vote
        group.crash(2)
        group.restart(2)
        assert (group.core(2).term, group.core(2).vote) == (term, vote)


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


class TestSnapshots:
    """Raft 7."""

    def test_leader_that_has_discarded_the_next_entry_sends_a_snapshot(self) -> None:
        core = make_leader(1, 1, 1, commit=3)
        work(core)
        accept(core, 2)
        work(core)
        core.compact(LogIndex(3))
        reject(core, 3, 3, hint=(1, 1))
        assert [ready.snapshots_wanted for ready in work(core)] == [(rid(3),)]
        core.offer_snapshot(rid(3), meta(4, 2))
        assert [offer.snapshot.index for offer in only(sent(core), SnapshotOffer)] == [4]

    def test_snapshot_supersedes_a_log_that_it_does_not_continue(self) -> None:
        core = make_core(1, 1, 1)
        assert core.install(meta(5, 2))
        work(core)
        assert (core.first_index, core.last_index, core.commit) == (6, 5, 5)

    def test_snapshot_of_a_prefix_keeps_the_entries_that_follow_it(self) -> None:
        core = make_core(1, 1, 1)
        assert not core.install(meta(2, 1))
        assert (core.last_index, core.commit) == (3, 2)


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
