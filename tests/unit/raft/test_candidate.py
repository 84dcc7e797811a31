import pytest

from kvstore.raft import Change
from kvstore.raft.membership import encode
from kvstore.raft.messages import (
    CONFIGURATION,
    AppendRequest,
    Configuration,
    Entry,
    HardState,
    VoteReply,
    VoteRequest,
)
from kvstore.raft.role import Role
from kvstore.types import LogIndex, Term
from tests.support.raft_core import ask_vote, beat, campaign, make_core, make_leader, meta, only, sent, work
from tests.support.raft_group import Group, rid, voters


def vote(
    core: object, number: int, *, granted: bool = True, pre: bool = False, term: int | None = None
) -> None:
    at = core.term + (1 if pre and granted else 0) if term is None else term  # type: ignore[attr-defined]
    core.step(  # type: ignore[attr-defined]
        VoteReply(source=rid(number), target=rid(1), term=Term(at), is_granted=granted, is_pre_vote=pre)
    )


# --- asking


def test_silence_leads_to_a_pre_vote_that_leaves_the_term_alone() -> None:
    core = make_core(1, 2)
    core.clock_ms = 77
    requests = only(campaign(core), VoteRequest)
    assert (core.role, core.term, core.vote) == (Role.PRE_CANDIDATE, 2, None)
    assert [(r.target, r.term, r.last_index, r.last_term, r.is_pre_vote, r.clock_ms) for r in requests] == [
        (rid(2), 3, 2, 2, True, 77),
        (rid(3), 3, 2, 2, True, 77),
    ]


def test_pre_vote_majority_leads_to_a_real_election() -> None:
    core = make_core(1)
    campaign(core)
    vote(core, 2, pre=True)
    assert (core.role, core.term, core.vote) == (Role.CANDIDATE, 2, rid(1))
    assert {request.is_pre_vote for request in only(sent(core), VoteRequest)} == {False}


def test_own_vote_counts_only_once_it_is_synced() -> None:
    core = make_core(1)
    campaign(core)
    vote(core, 2, pre=True)
    ready = core.take_ready()
    assert ready.hard_state is not None
    assert ready.messages_now == ()
    vote(core, 2)
    assert core.role is Role.CANDIDATE
    core.persisted(ready.number)
    assert core.role is Role.LEADER


def test_sync_of_an_older_vote_does_not_count_for_a_newer_term() -> None:
    core = make_core(1)
    campaign(core)
    vote(core, 2, pre=True)
    first = core.take_ready()
    core.elapsed = core.election_timeout
    core.tick()
    vote(core, 2, pre=True)
    second = core.take_ready()
    vote(core, 2)
    core.persisted(first.number)
    assert (core.role, core.term) == (Role.CANDIDATE, 3)
    core.persisted(second.number)
    assert core.role is Role.LEADER


def test_refusals_of_a_majority_end_the_election() -> None:
    core = make_core(1)
    campaign(core)
    vote(core, 2, granted=False, pre=True)
    assert core.role is Role.PRE_CANDIDATE
    vote(core, 3, granted=False, pre=True)
    assert core.role is Role.FOLLOWER


def test_second_answer_of_a_voter_does_not_count() -> None:
    core = make_core(1, configuration=voters(1, 2, 3, 4, 5))
    campaign(core)
    for _ in range(3):
        vote(core, 2, pre=True)
    assert core.role is Role.PRE_CANDIDATE


def test_pre_votes_of_an_earlier_round_do_not_count() -> None:
    core = make_core(1)
    campaign(core)
    vote(core, 2, pre=True, term=core.term)
    assert core.role is Role.PRE_CANDIDATE


def test_pre_votes_are_no_votes() -> None:
    core = make_core(1)
    campaign(core)
    vote(core, 2, pre=True)
    work(core)
    vote(core, 3, pre=True, term=core.term)
    assert core.role is Role.CANDIDATE


def test_higher_term_in_a_refusal_ends_the_election() -> None:
    core = make_core(1)
    campaign(core)
    vote(core, 2, granted=False, pre=True, term=9)
    assert (core.role, core.term, core.vote) == (Role.FOLLOWER, 9, None)


def test_lost_candidate_asks_again_after_another_silence() -> None:
    core = make_core(1)
    campaign(core)
    vote(core, 2, pre=True)
    work(core)
    requests = only(campaign(core), VoteRequest)
    assert (core.role, core.term) == (Role.PRE_CANDIDATE, 2)
    assert {request.term for request in requests} == {3}


def test_clocks_of_voters_are_learnt() -> None:
    core = make_core(1)
    campaign(core)
    core.step(
        VoteReply(source=rid(2), target=rid(1), term=Term(2), is_granted=True, is_pre_vote=True, clock_ms=500)
    )
    assert core.clock_ms == 500
    core.step(ask_vote(1, (0, 0), clock_ms=900))
    assert core.clock_ms == 900
    assert only(sent(core), VoteReply)[-1].clock_ms == 900


# --- who may stand


def test_learner_and_stranger_do_not_campaign() -> None:
    for configuration in (voters(2, 3, learners=[1]), voters(2, 3), Configuration()):
        core = make_core(1, configuration=configuration)
        assert campaign(core) == []
        assert core.role is Role.FOLLOWER


def test_voter_of_the_outgoing_half_may_campaign() -> None:
    core = make_core(1, configuration=Configuration(voters=(rid(2),), outgoing=(rid(1), rid(2))))
    assert {message.target for message in campaign(core)} == {rid(2)}


def _change(index: int) -> Entry:
    return Entry(LogIndex(index), Term(1), CONFIGURATION, encode(voters(1, 2, 3)))


def test_committed_change_that_is_not_applied_forbids_an_election() -> None:
    stored = [Entry(LogIndex(1), Term(1), 0, b"x"), _change(2)]
    assert campaign(make_core(stored=stored, commit=1)) != []
    core = make_core(stored=stored, commit=2)
    core.elapsed = core.election_timeout
    core.tick()
    assert core.role is Role.FOLLOWER


def test_second_change_in_the_log_proves_that_the_first_is_committed() -> None:
    # The commit index written with it may be lost, the conclusion is not.
    core = make_core(stored=[_change(1), _change(2)], commit=0)
    assert core.commit == 1
    core.elapsed = core.election_timeout
    core.tick()
    assert core.role is Role.FOLLOWER


def test_replica_with_a_stuck_disk_does_not_campaign() -> None:
    core = make_core(1)
    core.step(beat(2))
    ready = core.take_ready()
    core.election_timeout = 25
    for _ in range(25):
        core.tick()
    assert core.role is Role.FOLLOWER
    core.persisted(ready.number)
    assert campaign(core) != []


# --- giving votes


def granted(core: object) -> list[bool]:
    return [reply.is_granted for reply in only(sent(core), VoteReply)]  # type: ignore[arg-type]


def test_vote_leaves_only_after_term_and_vote_are_written() -> None:
    core = make_core(1)
    core.step(ask_vote(2, (1, 1)))
    ready = core.take_ready()
    assert ready.hard_state is not None
    assert (ready.hard_state.term, ready.hard_state.vote) == (2, rid(2))
    assert ready.messages_now == ()
    [reply] = only(ready.messages_after_sync, VoteReply)
    assert (reply.is_granted, reply.term) == (True, 2)


def test_one_vote_per_term_but_the_same_answer_twice() -> None:
    core = make_core(1)
    core.step(ask_vote(2, (1, 1), source=2))
    core.step(ask_vote(2, (1, 1), source=3))
    core.step(ask_vote(2, (1, 1), source=2))
    assert granted(core) == [True, False, True]


@pytest.mark.parametrize(
    ("last", "expected"), [((3, 2), True), ((2, 2), False), ((9, 1), False), ((1, 3), True)]
)
@pytest.mark.parametrize("pre", [True, False])
def test_log_that_is_not_up_to_date_gets_no_vote(last: tuple[int, int], expected: bool, pre: bool) -> None:
    core = make_core(1, 1, 2)
    core.step(ask_vote(3, last, is_pre_vote=pre))
    assert granted(core) == [expected]


def test_pre_vote_binds_nobody() -> None:
    core = make_core(1)
    core.step(ask_vote(5, (1, 1), source=2, is_pre_vote=True))
    core.step(ask_vote(5, (1, 1), source=3, is_pre_vote=True))
    assert (core.term, core.vote) == (1, None)
    assert granted(core) == [True, True]


def test_request_of_an_older_term_learns_the_newer_one() -> None:
    core = make_core(1, term=5)
    core.step(ask_vote(4, (9, 4)))
    core.step(ask_vote(5, (9, 4), is_pre_vote=True))
    replies = only(sent(core), VoteReply)
    assert [(reply.is_granted, reply.term) for reply in replies] == [(False, 5), (False, 5)]


def test_vote_in_the_leaders_own_term_is_refused() -> None:
    core = make_core(1, term=2)
    core.step(beat(2))
    core.promise_left = 0
    core.step(ask_vote(2, (9, 2), source=3))
    assert granted(core) == [False]


def test_learner_may_vote_for_it_may_not_know_its_promotion() -> None:
    core = make_core(1, configuration=voters(2, 3, learners=[1]))
    core.step(ask_vote(2, (1, 1)))
    assert granted(core) == [True]


def test_granted_vote_resets_the_election_timer_and_a_refused_one_does_not() -> None:
    core = make_core(1, 1)
    core.elapsed = 9
    core.step(ask_vote(2, (1, 1)))
    assert core.elapsed == 9
    core.step(ask_vote(3, (2, 1)))
    assert core.elapsed == 0


# --- being bound


@pytest.mark.parametrize("pre", [True, False])
def test_no_vote_while_a_leader_is_heard(pre: bool) -> None:
    core = make_core(1)
    core.step(beat(1))
    work(core)
    for _ in range(9):
        core.tick()
    core.step(ask_vote(2, (9, 9), source=3, is_pre_vote=pre))
    assert core.term == 1
    assert granted(core) == ([False] if pre else [])
    core.tick()
    work(core)
    core.step(ask_vote(2, (9, 9), source=3, is_pre_vote=pre))
    assert granted(core)[-1]


def test_stray_higher_term_does_not_void_the_promise() -> None:
    # The leader of term 1 may serve reads on a lease that rests on this replica's silence.
    core = make_core(1)
    core.step(beat(1))
    vote(core, 3, granted=False, term=7)
    assert (core.term, core.leader) == (7, None)
    core.step(ask_vote(8, (9, 9), source=3))
    core.step(ask_vote(7, (9, 9), source=3))
    assert granted(core) == [False]
    assert core.vote is None


def test_fresh_replica_votes_for_nobody_not_even_in_a_transfer() -> None:
    core = make_core(1, fresh=True)
    core.step(ask_vote(2, (9, 9)))
    core.step(ask_vote(2, (9, 9), is_transfer=True))
    assert granted(core) == []
    for _ in range(10):
        core.tick()
    core.step(ask_vote(2, (9, 9)))
    assert granted(core)[-1]


def test_transfer_does_not_wait_for_the_leaders_silence() -> None:
    core = make_core(1)
    core.step(beat(1))
    work(core)
    core.step(ask_vote(2, (1, 1), source=3, is_transfer=True))
    assert granted(core) == [True]


def test_leader_votes_for_nobody_else_unless_it_hands_over() -> None:
    core = make_leader(1)
    work(core)
    core.step(ask_vote(9, (99, 8)))
    core.step(ask_vote(9, (99, 8), is_pre_vote=True))
    assert core.is_leader
    assert granted(core) == [False]
    core.step(ask_vote(9, (99, 8), is_transfer=True))
    assert (core.role, granted(core)) == (Role.FOLLOWER, [True])


def test_candidate_that_installs_a_snapshot_stops_asking() -> None:
    core = make_core(1)
    campaign(core)
    assert core.install(meta(5, 1))
    assert core.role is Role.FOLLOWER


# --- what votes carry


def test_candidate_learns_from_a_refusal_that_another_configuration_decides() -> None:
    stored = [Entry(LogIndex(1), Term(1), 0, b"x"), _change(2)]
    core = make_core(stored=stored, commit=1)
    campaign(core)
    core.step(
        VoteReply(
            source=rid(2), target=rid(1), term=Term(1), is_granted=False, is_pre_vote=True,
            commit=LogIndex(2), commit_term=Term(1),
        )
    )  # fmt: skip
    assert (core.commit, core.role) == (2, Role.FOLLOWER)
    work(core)
    assert campaign(core) != []


def test_commit_in_a_vote_counts_only_where_the_entry_is_held() -> None:
    core = make_core(1, 1)
    core.step(ask_vote(5, (9, 4), commit=LogIndex(2), commit_term=Term(3)))
    core.step(ask_vote(5, (9, 4), commit=LogIndex(9), commit_term=Term(4)))
    assert core.commit == 0
    core.step(ask_vote(5, (9, 4), commit=LogIndex(2), commit_term=Term(1)))
    assert core.commit == 2


def test_only_voter_of_a_new_configuration_finds_out_that_it_is_in_force() -> None:
    # n1 alone stays a voter. It commits the change and crashes before it has written that; n2 and n3 are
    # learners by now, hold more entries and so refuse it in the old configuration, but may not lead.
    group = Group(voters(1, 2, 3))
    group.elect(1)
    group.core(1).propose_configuration(Change(learners=(rid(2), rid(3))))
    group.pump()
    joint = 2
    group[1].disk.machine = type(group[1].machine)(LogIndex(1), Term(1), voters(1, 2, 3))
    group[1].disk.hard_state = HardState(Term(1), rid(1), LogIndex(joint))
    for number in (2, 3):
        entry = Entry(LogIndex(4), Term(1), 0, b"more")
        group.core(number).step(
            AppendRequest(
                source=rid(1), target=rid(number), term=Term(1), prev_index=LogIndex(3), prev_term=Term(1),
                commit=LogIndex(3), round=9, entries=(entry,),
            )
        )  # fmt: skip
    group.pump(lambda _message: False)
    group.crash(1)
    group.restart(1)
    assert (group.core(1).last_index, group.core(1).commit) == (3, joint)
    group.tick(60)
    assert group.core(1).is_leader
    assert group.core(1).configuration == voters(1, learners=[2, 3])
