import pytest

from kvstore.errors import InvalidArgument, TooLarge
from kvstore.raft import Change, NotLeader, ProposalDropped, RaftSettings
from kvstore.raft.messages import AppendRequest, Configuration, Heartbeat, TimeoutNow, VoteReply
from kvstore.raft.progress import ProgressState
from kvstore.raft.role import Role
from kvstore.types import LogIndex, Term
from tests.support.raft_core import (
    accept,
    alive,
    beat,
    campaign,
    make_core,
    make_leader,
    only,
    reject,
    sent,
    settled_leader,
    work,
)
from tests.support.raft_group import QUICK, rid, voters


def limited(**limits: int) -> RaftSettings:
    fields = {name: getattr(QUICK, name) for name in QUICK.__struct_fields__}
    return RaftSettings(**(fields | limits))


# --- the term begins


def test_leader_starts_its_term_with_an_empty_entry() -> None:
    core = make_leader(1, 1)
    ready = core.take_ready()
    assert [(entry.index, entry.term, entry.payload) for entry in ready.entries] == [(3, 2, b"")]
    assert core.term_start == 3
    assert {request.target for request in only(ready.messages_now, AppendRequest)} == {rid(2), rid(3)}
    assert not core.has_committed_in_term


def test_uncommitted_entries_of_older_terms_count_against_the_limit() -> None:
    core = make_leader(1, 1, 1, commit=1)
    assert core.uncommitted_bytes == 2


# --- proposals


def test_proposals_get_the_term_and_index_of_the_first() -> None:
    core = settled_leader()
    assert core.propose([b"a", b"b"]) == (1, 2)
    assert core.propose([b"c"]) == (1, 4)
    entries = core.take_ready().entries
    assert [(entry.index, entry.payload) for entry in entries] == [(2, b"a"), (3, b"b"), (4, b"c")]


def test_follower_takes_no_proposal_and_says_who_does() -> None:
    core = make_core(1)
    core.step(beat(1))
    with pytest.raises(NotLeader) as refusal:
        core.propose([b"a"])
    assert refusal.value.fields == {"leader": rid(2)}
    assert core.last_index == 1


def test_payload_above_the_limit_is_refused_whole() -> None:
    core = settled_leader(settings=limited(entry_bytes_max=3))
    with pytest.raises(TooLarge):
        core.propose([b"abc", b"abcd"])
    assert core.last_index == 1


def test_proposals_are_dropped_above_the_uncommitted_limit_but_one_always_passes() -> None:
    core = settled_leader(settings=limited(uncommitted_bytes_max=10))
    core.propose([b"x" * 50])
    with pytest.raises(ProposalDropped):
        core.propose([b"y"])
    core.propose([b""])
    work(core)
    accept(core, 2)
    assert core.uncommitted_bytes == 0
    core.propose([b"y"])


# --- committing


def test_entry_commits_with_a_quorum_of_synced_copies() -> None:
    core = settled_leader()
    core.propose([b"a"])
    work(core)
    assert core.commit == 1
    accept(core, 2, 2)
    assert core.commit == 2


def test_followers_alone_may_commit_what_the_leader_has_not_synced() -> None:
    core = settled_leader()
    core.propose([b"a"])
    ready = core.take_ready()
    accept(core, 2, 2)
    assert core.commit == 1
    accept(core, 3, 2)
    assert core.commit == 2
    assert core.take_ready().committed == ()
    core.persisted(ready.number)
    assert [entry.index for entry in core.take_ready().committed] == [2]


def test_learners_do_not_count() -> None:
    core = settled_leader(configuration=voters(1, 2, 3, learners=[4, 5]))
    core.propose([b"a"])
    work(core)
    accept(core, 4, 2)
    accept(core, 5, 2)
    assert core.commit == 1


def test_joint_configuration_commits_with_both_halves() -> None:
    joint = Configuration(voters=(rid(1), rid(4), rid(5)), outgoing=(rid(1), rid(2), rid(3)))
    core = make_leader(configuration=joint)
    work(core)
    accept(core, 2)
    accept(core, 3)
    assert core.commit == 0
    accept(core, 4)
    assert core.commit == 1


def test_answer_of_a_stranger_or_beyond_the_log_is_ignored() -> None:
    core = settled_leader()
    core.propose([b"a"])
    work(core)
    accept(core, 9, 2)
    accept(core, 2, 7)
    accept(core, 2, 2, round=99)
    assert core.commit == 1
    assert core.progress[rid(2)].match == 1


# --- finding where logs part


def test_refusal_steps_back_over_a_whole_term() -> None:
    core = make_leader(1, 1, 3, 3, 3)
    work(core)
    # n2 has 1 1 2 2 2: the leader has nothing of term 2, so all of it and all of term 3 is skipped.
    reject(core, 2, 5, hint=(5, 2))
    peer = core.progress[rid(2)]
    assert (peer.state, peer.next) == (ProgressState.PROBE, 3)
    [request] = [message for message in only(sent(core), AppendRequest) if message.target == rid(2)]
    assert (request.prev_index, request.prev_term) == (2, 1)


def test_late_refusals_change_nothing() -> None:
    core = make_leader(1, 1, 1)
    work(core)
    accept(core, 2, 4)
    reject(core, 2, 3, hint=(0, 0))
    reject(core, 3, 1, hint=(0, 0))
    assert (core.progress[rid(2)].match, core.progress[rid(3)].next) == (4, 4)


def test_refusal_while_replicating_goes_back_to_what_is_known_to_match() -> None:
    core = settled_leader()
    core.propose([b"a", b"b"])
    work(core)
    reject(core, 2, 2, hint=(1, 1))
    peer = core.progress[rid(2)]
    assert (peer.state, peer.next, len(peer.inflight)) == (ProgressState.PROBE, 2, 0)


def test_refusal_below_the_cut_leads_to_a_snapshot() -> None:
    core = settled_leader(1, 1, 1, 1, commit=4)
    core.compact(LogIndex(4))
    core.progress[rid(2)].forget(core.last_index, 0)
    core.progress[rid(2)].is_active = True
    core.flush_wanted = True
    work(core)
    reject(core, 2, 5, hint=(1, 1))
    assert core.take_ready().snapshots_wanted == (rid(2),)
    assert core.progress[rid(2)].state is ProgressState.SNAPSHOT


# --- time


def test_leader_without_a_quorum_steps_down_after_an_election_timeout() -> None:
    core = settled_leader()
    for _ in range(10):
        core.tick()
        alive(core, 2)
    assert core.is_leader
    for _ in range(10):
        core.tick()
    assert core.is_leader
    for _ in range(10):
        core.tick()
    assert core.role is Role.FOLLOWER
    assert core.leader is None


def test_node_acknowledgement_keeps_a_quiet_leader_in_office() -> None:
    core = settled_leader()
    for _ in range(50):
        core.tick()
        core.hear_follower(rid(2))
    assert core.is_leader


def test_leader_sends_heartbeats_with_a_new_round_each_time() -> None:
    core = settled_leader(settings=limited(heartbeat_ticks=3))
    work(core)
    rounds = []
    for _ in range(6):
        core.tick()
        rounds.append({message.round for message in only(sent(core), Heartbeat)})
    assert rounds == [set(), set(), {2}, set(), set(), {3}]


def test_higher_term_deposes_the_leader() -> None:
    core = settled_leader()
    alive(core, 2, term=5)
    assert (core.role, core.term, core.progress) == (Role.FOLLOWER, 5, {})


# --- quietness


def test_leader_may_be_quiet_when_everybody_has_answered_after_the_last_commit() -> None:
    core = settled_leader()
    assert not core.can_be_quiet()
    core.tick()
    work(core)
    alive(core, 2)
    assert not core.can_be_quiet()
    alive(core, 3)
    assert core.can_be_quiet()
    core.quiet = True
    core.tick()
    assert sent(core) == []


@pytest.mark.parametrize("wakes", ["propose", "read", "transfer", "change", "forget", "wake"])
def test_work_ends_quietness(wakes: str) -> None:
    core = settled_leader()
    core.quiet = True
    match wakes:
        case "propose":
            core.propose([b"a"])
        case "read":
            core.read(1)
        case "transfer":
            core.transfer_leadership(rid(2))
        case "change":
            core.propose_configuration(Change(learners=(rid(4),)))
        case "forget":
            core.forget(rid(2))
        case "wake":
            core.wake()
    assert not core.quiet
    assert sent(core) != []


def test_quiet_leader_still_checks_its_quorum() -> None:
    core = settled_leader()
    core.quiet = True
    for _ in range(20):
        core.tick()
    assert core.role is Role.FOLLOWER


def test_leader_is_not_quiet_while_anything_is_open() -> None:
    core = settled_leader()
    core.tick()
    work(core)
    alive(core, 2)
    alive(core, 3)
    assert core.can_be_quiet()
    core.transfer_leadership(rid(2))
    work(core)
    assert not core.can_be_quiet()
    assert not make_core(1).can_be_quiet()


# --- handing over


def test_transfer_waits_until_the_target_has_everything() -> None:
    core = settled_leader()
    core.propose([b"a"])
    work(core)
    core.transfer_leadership(rid(2))
    assert only(sent(core), TimeoutNow) == []
    assert not core.lease_forbidden
    accept(core, 2)
    assert [message.target for message in only(sent(core), TimeoutNow)] == [rid(2)]
    assert core.lease_forbidden


def test_no_proposals_and_changes_while_handing_over() -> None:
    core = settled_leader()
    core.transfer_leadership(rid(2))
    with pytest.raises(NotLeader):
        core.propose([b"a"])
    with pytest.raises(NotLeader):
        core.propose_configuration(Change(learners=(rid(4),)))


def test_transfer_is_given_up_after_an_election_timeout() -> None:
    core = settled_leader()
    core.transfer_leadership(rid(2))
    for _ in range(10):
        alive(core, 3)
        core.tick()
    assert core.transfer_target is None
    core.propose([b"a"])


def test_transfer_goes_to_voters_only() -> None:
    core = settled_leader(configuration=voters(1, 2, 3, learners=[4]))
    for target in (rid(4), rid(9)):
        with pytest.raises(InvalidArgument):
            core.transfer_leadership(target)
    core.transfer_leadership(rid(1))
    assert core.transfer_target is None
    with pytest.raises(NotLeader):
        make_core(1).transfer_leadership(rid(2))


def test_transfer_to_a_voter_that_is_removed_meanwhile_is_given_up() -> None:
    core = settled_leader()
    core.propose_configuration(Change(removed=(rid(3),)))
    core.transfer_leadership(rid(3))
    for _ in range(2):
        work(core)
        accept(core, 2)
        accept(core, 3)
    work(core)
    assert core.transfer_target is None


def test_removed_leader_hands_over_to_the_longest_log() -> None:
    core = settled_leader()
    core.propose_configuration(Change(removed=(rid(1),)))
    work(core)
    accept(core, 3)
    accept(core, 2)
    work(core)
    assert core.configuration.is_joint
    accept(core, 2, core.last_index - 1)
    accept(core, 3)
    accept(core, 2)
    readies = work(core)
    messages = [message for ready in readies for message in ready.messages_now]
    assert core.role is Role.FOLLOWER
    assert len(only(messages, TimeoutNow)) == 1


# --- members


def test_change_waits_for_the_first_commit_of_the_term() -> None:
    core = make_leader(1)
    work(core)
    with pytest.raises(ProposalDropped, match="term"):
        core.propose_configuration(Change(learners=(rid(4),)))
    accept(core, 2)
    work(core)
    core.propose_configuration(Change(learners=(rid(4),)))


def test_new_member_is_tracked_once_the_change_is_applied() -> None:
    core = settled_leader()
    core.propose_configuration(Change(learners=(rid(4),)))
    work(core)
    assert rid(4) not in core.progress
    accept(core, 2)
    messages = sent(core)
    assert core.progress[rid(4)].state is ProgressState.PROBE
    assert [message.target for message in only(messages, AppendRequest)] == [rid(4)]


def test_change_that_shrinks_the_quorum_may_commit_what_waited() -> None:
    joint = Configuration(voters=(rid(1), rid(2)), outgoing=(rid(1), rid(2), rid(3), rid(4), rid(5)))
    core = make_leader(configuration=joint)
    work(core)
    accept(core, 2)
    accept(core, 3)
    work(core)
    core.propose([b"a"])
    work(core)
    accept(core, 3, 2)
    accept(core, 4, 2)
    accept(core, 2, 3)
    assert core.commit == 2
    work(core)
    assert (core.configuration, core.commit) == (voters(1, 2), 3)


# --- damage


def test_forgotten_match_leaves_every_quorum() -> None:
    core = settled_leader()
    core.propose([b"a"])
    work(core)
    accept(core, 2, 2, round=1)
    assert core.commit == 2
    core.propose([b"b"])
    work(core)
    core.forget(rid(2))
    assert core.progress[rid(2)].match == 0
    accept(core, 2, 3, round=1)
    assert core.progress[rid(2)].match == 0
    assert core.commit == 2
    accept(core, 3, 3)
    assert core.commit == 3


def test_forgotten_support_lowers_the_confirmed_round() -> None:
    core = settled_leader()
    for _ in range(3):
        core.tick()
    work(core)
    alive(core, 2)
    assert core.confirmed_round == core.round == 4
    core.forget(rid(2))
    assert core.confirmed_round == 1
    assert core.progress[rid(3)].round == 1


def test_forgotten_vote_does_not_elect() -> None:
    core = make_core(1, configuration=voters(1, 2, 3, 4, 5))
    campaign(core)
    for number in (2, 3):
        core.step(
            VoteReply(source=rid(number), target=rid(1), term=Term(1), is_granted=True, is_pre_vote=True)
        )
        core.forget(rid(2))
    assert core.role is Role.PRE_CANDIDATE


def test_forgetting_a_stranger_or_oneself_changes_nothing() -> None:
    core = settled_leader()
    before = core.round
    core.forget(rid(9))
    core.forget(rid(1))
    assert core.round == before
