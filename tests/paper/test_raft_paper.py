"""A test per claim of the Raft paper (Ongaro and Ousterhout, 2014), cited as "Raft n".

They speak of one server and messages; what a whole group does under faults is in
`tests/unit/raft/test_random_network.py`. The thesis has a file of its own.
"""

import pytest

from kvstore.raft import Role
from kvstore.raft.messages import (
    AppendReply,
    AppendRequest,
    Heartbeat,
    SnapshotOffer,
    VoteReply,
    VoteRequest,
)
from kvstore.types import LogIndex
from tests.support.raft_core import (
    accept,
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
from tests.support.raft_group import Group, rid, voters


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
