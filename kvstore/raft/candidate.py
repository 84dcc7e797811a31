"""Elections: asking for votes, giving them, winning and losing (Raft 5.2, 5.4.1; thesis 9.6, 4.2.3).

A replica first holds a pre-vote: it asks whether it would win in the next term, without entering it.
Voters refuse, in a pre-vote as in a vote, while they are bound: for `election_ticks_min` after they
heard a leader, since that leader may serve reads on a lease that they support, and for as long after a
start, since they no longer know whom they supported before. Being bound outlives the term in which
the leader was heard: a stray message of a higher term must not void what the lease rests on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvstore.raft import quorum
from kvstore.raft.messages import VoteReply, VoteRequest
from kvstore.raft.role import Role
from kvstore.types import Term

if TYPE_CHECKING:
    from kvstore.raft.core import Core


def may_campaign(core: Core) -> bool:
    """Tell whether this replica may stand for election."""
    if core.is_leader or core.is_fresh or not core.is_voter:
        return False
    if core.applied_index < core.log.base_index:
        return False  # a snapshot is being installed: who votes there is not in force yet
    changes = core.log.unapplied_configurations
    if changes and (changes[0] <= core.commit or len(changes) > 1):
        return False  # a committed change is not in force yet, so its quorum would be the wrong one
    # What an election needs written would queue behind a write that hangs.
    flights = core.log.flights
    return not flights or core.ticks - flights[0].tick <= core.settings.election_ticks_max


def campaign(core: Core, *, is_transfer: bool) -> None:
    """Start an election; the caller has checked `may_campaign`."""
    if is_transfer:
        core.become_candidate()
        _ask(core, core.term, is_pre_vote=False, is_transfer=True)
        return
    core.become_pre_candidate()
    core.votes[core.me] = True
    _ask(core, Term(core.term + 1), is_pre_vote=True, is_transfer=False)
    _judge(core)


def campaign_as_asked(core: Core) -> None:
    """Follow a hand-over that came before this replica could, unless the leader has given it up since."""
    asked_tick = core.asked_to_lead_tick
    if asked_tick is None or core.ticks - asked_tick >= core.settings.election_ticks_min:
        core.asked_to_lead_tick = None
    elif may_campaign(core):
        campaign(core, is_transfer=True)


def _ask(core: Core, term: Term, *, is_pre_vote: bool, is_transfer: bool) -> None:
    configuration = core.configuration
    for voter in sorted({*configuration.voters, *configuration.outgoing}):
        if voter != core.me:
            core.send_after_sync(
                VoteRequest(
                    source=core.me,
                    target=voter,
                    term=term,
                    last_index=core.log.last_index,
                    last_term=core.log.last_term,
                    is_pre_vote=is_pre_vote,
                    is_transfer=is_transfer,
                    clock_ms=core.clock_ms,
                    commit=core.commit,
                    commit_term=core.commit_term,
                    clock_term=core.clock_term,
                )
            )


def own_vote_synced(core: Core) -> None:
    """The candidate's vote for itself is on disk: only now does it count (pitfall 9)."""
    if core.role is Role.CANDIDATE:
        core.votes[core.me] = True
        _judge(core)


def learn(core: Core, message: VoteRequest | VoteReply) -> None:
    """Take the clock and the commit index that votes carry; they are true whatever the vote.

    A restarted voter may not know that a change of members is committed, campaign in the old
    configuration, and be refused there for ever by replicas that know better but may not lead.
    """
    if (message.clock_term, message.clock_ms) > (core.clock_term, core.clock_ms) and not core.is_leader:
        core.clock_term, core.clock_ms = message.clock_term, message.clock_ms
    is_news = message.commit > core.commit and not core.is_leader
    if is_news and core.log.matches(message.commit, message.commit_term):
        core.commit_to(message.commit)
        if core.role is not Role.FOLLOWER and not may_campaign(core):
            core.become_follower(core.term, None)


def on_vote_reply(core: Core, message: VoteReply) -> None:
    if message.is_pre_vote != (core.role is Role.PRE_CANDIDATE):
        return
    if message.is_pre_vote and message.is_granted and message.term != core.term + 1:
        return  # granted in an earlier round
    core.votes.setdefault(message.source, message.is_granted)
    _judge(core)


def _judge(core: Core) -> None:
    outcome = quorum.vote_outcome(core.configuration, core.votes)
    if outcome is quorum.Outcome.LOST:
        core.become_follower(core.term, None)
    elif outcome is quorum.Outcome.WON:
        if core.role is Role.PRE_CANDIDATE:
            core.become_candidate()
            _ask(core, core.term, is_pre_vote=False, is_transfer=False)
        else:
            core.become_leader()


def _is_bound(core: Core, message: VoteRequest) -> bool:
    if core.is_fresh:
        return True
    if message.is_transfer:
        return False  # the leader that asked for this election has given up its lease
    return core.role is Role.LEADER or core.promise_left > 0


def on_vote_request(core: Core, message: VoteRequest) -> None:
    """Answer a vote or pre-vote. Unlike other messages it does not by itself raise the term here."""
    learn(core, message)
    core.quiet = False
    if message.term < core.term:
        _answer(core, message, is_granted=False)
    elif _is_bound(core, message):
        if message.is_pre_vote or message.term == core.term:
            _answer(core, message, is_granted=False)
    elif message.is_pre_vote:
        is_ahead = message.term > core.term
        _answer(core, message, is_granted=is_ahead and _has_my_log(core, message))
    else:
        if message.term > core.term:
            core.become_follower(message.term, None)
        is_free = core.vote == message.source or (core.vote is None and core.leader is None)
        if is_free and _has_my_log(core, message):
            core.vote = message.source
            core.elapsed = 0
            _answer(core, message, is_granted=True)
        else:
            _answer(core, message, is_granted=False)


def _has_my_log(core: Core, message: VoteRequest) -> bool:
    return core.log.is_up_to_date(message.last_index, message.last_term)


def _answer(core: Core, message: VoteRequest, *, is_granted: bool) -> None:
    # A granted pre-vote speaks of the term it was asked about; every other answer of the voter's own.
    term = message.term if is_granted else core.term
    core.send_after_sync(
        VoteReply(
            source=core.me,
            target=message.source,
            term=term,
            is_granted=is_granted,
            is_pre_vote=message.is_pre_vote,
            clock_ms=core.clock_ms,
            commit=core.commit,
            commit_term=core.commit_term,
            clock_term=core.clock_term,
        )
    )


HANDLERS: dict[type, Callable[[Any, Any], None]] = {VoteReply: on_vote_reply}
