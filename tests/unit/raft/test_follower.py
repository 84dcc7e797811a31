import pytest

from kvstore.errors import Corrupt
from kvstore.raft.messages import AppendReply, HeartbeatReply, SnapshotOffer, TimeoutNow, VoteRequest
from kvstore.raft.role import Role
from kvstore.types import LogIndex, Term
from tests.support.raft_core import append, beat, campaign, make_core, meta, only, sent, work
from tests.support.raft_group import rid, voters


def terms_of(core: object) -> list[int]:
    log = core.log  # type: ignore[attr-defined]
    return [entry.term for entry in log.between(log.base_index, log.last_index)]


def test_matching_append_is_stored_and_acknowledged_after_the_sync() -> None:
    core = make_core(1, 1)
    core.step(append(1, (2, 1), 1, 1, commit=3, round=9))
    ready = core.take_ready()
    assert [entry.index for entry in ready.entries] == [3, 4]
    assert ready.messages_now == ()
    [reply] = only(ready.messages_after_sync, AppendReply)
    assert (reply.index, reply.is_rejected, reply.round, reply.term) == (4, False, 9, 1)
    assert core.commit == 3


def test_commit_does_not_pass_what_the_append_covers() -> None:
    core = make_core(1, 1, 1, 1)
    core.step(append(1, (2, 1), commit=4))
    assert core.commit == 2


def test_committed_entries_are_given_only_once_they_are_synced() -> None:
    core = make_core(1)
    core.step(append(1, (1, 1), 1, commit=2))
    ready = core.take_ready()
    assert [entry.index for entry in ready.committed] == [1]
    core.persisted(ready.number)
    assert [entry.index for entry in core.take_ready().committed] == [2]


def test_append_after_a_gap_is_refused_with_the_end_of_the_log() -> None:
    core = make_core(1, 2)
    core.step(append(3, (9, 3), 3))
    [reply] = only(sent(core), AppendReply)
    assert (reply.is_rejected, reply.index, reply.hint_index, reply.hint_term) == (True, 9, 2, 2)
    assert terms_of(core) == [1, 2]


def test_refusal_steps_over_terms_the_leader_cannot_have_there() -> None:
    core = make_core(1, 1, 4, 4, 4)
    core.step(append(6, (5, 3), 6))
    [reply] = only(sent(core), AppendReply)
    assert (reply.hint_index, reply.hint_term) == (2, 1)


def test_conflicting_suffix_is_replaced_and_the_disk_told_first() -> None:
    core = make_core(1, 2, 2, 2)
    core.step(append(3, (2, 2), 3))
    ready = core.take_ready()
    assert (ready.truncate_after, [entry.term for entry in ready.entries]) == (2, [3])
    assert terms_of(core) == [1, 2, 3]
    assert core.synced == 2
    core.persisted(ready.number)
    assert core.synced == 3


def test_old_append_shortens_nothing() -> None:
    core = make_core(1, 1, 1, 1)
    core.step(append(1, (1, 1), 1))
    [reply] = only(sent(core), AppendReply)
    assert (reply.index, core.last_index, core.log.truncations) == (2, 4, 0)


def test_repeated_append_changes_nothing() -> None:
    core = make_core(1)
    for _ in range(2):
        core.step(append(1, (1, 1), 1, 1))
    assert [len(ready.entries) for ready in work(core)] == [2]
    assert core.last_index == 3


def test_append_below_the_commit_is_answered_with_the_commit() -> None:
    core = make_core(1, 1, 1, 1, commit=3)
    core.step(append(1, (1, 1), 1))
    [reply] = only(sent(core), AppendReply)
    assert (reply.is_rejected, reply.index) == (False, 3)


@pytest.mark.parametrize("index", [1, 2])
def test_contradiction_of_a_committed_entry_halts_the_replica(index: int) -> None:
    core = make_core(1, 1, 1, commit=2)
    with pytest.raises(Corrupt, match=f"contradicts the committed entry {index}"):
        core.step(append(3, (index, 2), 3))


def test_malformed_append_is_ignored() -> None:
    core = make_core(1)
    request = append(1, (1, 1), 1, 1)
    core.step(append(1, (1, 1), entries=request.entries[1:]))
    assert core.last_index == 1
    assert only(sent(core), AppendReply) == []


def test_heartbeat_moves_the_commit_and_echoes_its_round() -> None:
    core = make_core(1, 1)
    core.step(beat(1, commit=2, round_number=5))
    [ready] = work(core)[:1]
    [reply] = only(ready.messages_after_sync, HeartbeatReply)
    assert (reply.round, core.commit, core.leader) == (5, 2, rid(2))


def test_commit_notice_wants_no_answer() -> None:
    core = make_core(1, 1)
    core.step(beat(1, commit=2, round_number=0))
    assert core.commit == 2
    assert sent(core) == []


def test_commit_beyond_the_log_proves_that_acknowledged_entries_are_gone() -> None:
    core = make_core(1, 1)
    with pytest.raises(Corrupt, match="log ends at 2"):
        core.step(beat(1, commit=3))


def test_two_leaders_in_one_term_halt_the_replica() -> None:
    core = make_core(1)
    core.step(beat(1, source=2))
    with pytest.raises(Corrupt, match="two leaders"):
        core.step(beat(1, source=3))


def test_leader_of_an_older_term_is_shown_the_newer_one() -> None:
    core = make_core(1, term=4)
    core.step(append(3, (1, 1), 3))
    core.step(beat(2))
    replies = sent(core)
    assert [(type(reply), reply.term) for reply in replies] == [(HeartbeatReply, 4), (HeartbeatReply, 4)]
    assert core.last_index == 1
    assert core.leader is None


def test_message_for_another_incarnation_is_ignored() -> None:
    core = make_core(1)
    core.step(append(9, (1, 1), 9, target="n1/2"))
    assert (core.term, core.last_index) == (1, 1)


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_candidate_follows_the_leader_of_its_term(role: Role) -> None:
    core = make_core(1)
    campaign(core)
    if role is Role.CANDIDATE:
        core.become_candidate()
    core.step(append(core.term, (1, 1), commit=1))
    assert (core.role, core.leader, core.commit) == (Role.FOLLOWER, rid(2), 1)


# --- the coalesced word of a node


def test_word_of_the_leaders_node_resets_the_election_timer() -> None:
    core = make_core(1, commit=1)
    core.step(beat(1, commit=1))
    core.elapsed, core.promise_left = 9, 0
    assert core.hear_leader(rid(2), Term(1))
    assert (core.elapsed, core.promise_left) == (0, 10)


def test_follower_that_lacks_something_wants_the_leader_awake() -> None:
    core = make_core(1, 1, commit=1)
    core.step(beat(1, commit=1))
    assert not core.hear_leader(rid(2), Term(1))


@pytest.mark.parametrize(("source", "term"), [(2, 3), (2, 1), (3, 2)])
def test_word_of_another_term_or_leader_holds_nobody_back(source: int, term: int) -> None:
    core = make_core(1, term=2, commit=1)
    core.step(beat(2, commit=1))
    core.elapsed = 9
    assert not core.hear_leader(rid(source), Term(term))
    assert core.elapsed == 9


# --- snapshots


def offer(index: int, term: int) -> SnapshotOffer:
    return SnapshotOffer(
        source=rid(2), target=rid(1), term=Term(term), commit=LogIndex(index), snapshot=meta(index, term)
    )


def test_offer_of_something_unknown_is_shown_to_the_host() -> None:
    core = make_core(1, 1)
    core.step(offer(9, 3))
    assert core.offered is not None
    assert (core.offered.snapshot.index, core.leader) == (9, rid(2))


def test_offer_of_something_known_is_answered() -> None:
    core = make_core(1, 1, 1, commit=1)
    core.step(offer(2, 1))
    [reply] = only(sent(core), AppendReply)
    assert (core.offered, core.commit, reply.index) == (None, 2, 2)


def test_offer_of_a_leader_that_is_gone_is_dropped() -> None:
    core = make_core(1, 1)
    core.step(offer(9, 3))
    core.step(beat(4, source=3))
    assert core.offered is None


def test_installation_is_one_step_and_acknowledged_after_its_sync() -> None:
    core = make_core(1, 1, 1, commit=1)
    core.step(offer(9, 3))
    assert core.install(meta(9, 3))
    assert (core.first_index, core.last_index, core.commit, core.synced, core.offered) == (10, 9, 9, 1, None)
    assert core.applied_index == 0
    ready = core.take_ready()
    assert (ready.installed, ready.entries, ready.truncate_after, ready.committed) == (
        meta(9, 3),
        (),
        None,
        (),
    )
    [reply] = only(ready.messages_after_sync, AppendReply)
    assert reply.index == 9
    core.persisted(ready.number)
    assert (core.applied_index, core.synced) == (9, 9)


def test_installation_takes_the_configuration_at_its_own_index() -> None:
    core = make_core(1)
    assert core.install(meta(9, 3, voters(2, 3, 4)))
    assert core.configuration == voters(1, 2, 3)
    work(core)
    assert core.configuration == voters(2, 3, 4)


def test_installation_of_what_is_committed_or_matches_is_refused() -> None:
    core = make_core(1, 1, 1, commit=1)
    assert not core.install(meta(1, 1))
    assert not core.install(meta(3, 1))
    assert (core.commit, core.first_index, core.last_index) == (3, 1, 3)


def test_snapshot_of_a_later_term_brings_its_term() -> None:
    core = make_core(1)
    core.step(offer(4, 1))
    assert core.install(meta(9, 3))
    assert (core.term, core.leader) == (3, None)
    [ready] = work(core)
    assert ready.hard_state is not None
    assert (ready.hard_state.term, ready.hard_state.commit) == (3, 9)


def test_replica_that_is_installing_does_not_campaign() -> None:
    core = make_core(1)
    core.install(meta(9, 3))
    core.elapsed = core.election_timeout
    core.tick()
    assert core.role is Role.FOLLOWER


# --- transfer


def test_timeout_now_starts_an_election_without_a_pre_vote() -> None:
    core = make_core(1)
    core.step(beat(1))
    core.step(TimeoutNow(source=rid(2), target=rid(1), term=Term(1)))
    requests = only(sent(core), VoteRequest)
    assert (core.role, core.term) == (Role.CANDIDATE, 2)
    assert {(request.target, request.is_transfer, request.is_pre_vote) for request in requests} == {
        (rid(2), True, False),
        (rid(3), True, False),
    }


def test_timeout_now_of_an_older_term_is_ignored() -> None:
    core = make_core(1, term=3)
    core.step(TimeoutNow(source=rid(2), target=rid(1), term=Term(2)))
    assert (core.role, core.term) == (Role.FOLLOWER, 3)
