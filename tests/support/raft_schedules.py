"""Schedules that broke other systems, replayed on bare cores. Each asserts the claim that must hold.

`tests/unit/raft/test_pitfalls.py` runs them as they are, `test_pitfall_guards.py` with their guard removed.
"""

from collections.abc import Callable

import pytest

from kvstore.raft import Change, Core, ProposalDropped
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
from kvstore.types import LogIndex, Term
from tests.support.raft_core import make_core, make_leader, meta, only, sent, settled_leader, work
from tests.support.raft_group import Group, between, rid, voters, without


def group_led_by_n1(*numbers: int) -> Group:
    group = Group(voters(*(numbers or (1, 2, 3))))
    group.elect(1)
    return group


def let_promises_expire(group: Group, *numbers: int) -> None:
    """Let the promises of some replicas expire without any of them campaigning."""
    for number in numbers:
        group.core(number).promise_left = 0
        group.core(number).elapsed = 0


def wins(group: Group, number: int, allows: Callable[[Message], bool]) -> bool:
    core = group.core(number)
    core.elapsed = core.election_timeout
    core.tick()
    group.pump(allows)
    return core.is_leader


# --- 5: ReadIndex before the first commit of the term (etcd #7331; tikv #9208)


def lagging_leader_is_read_at_once() -> None:
    group = group_led_by_n1()
    group.propose(1, b"acknowledged")
    # n2 stores the entry and n1 commits it, but the commit index reaches nobody.
    group.pump(lambda message: isinstance(message, AppendRequest | AppendReply) and message.target != rid(3))
    assert group.commands(1) == (b"acknowledged",)
    group.crash(1)
    let_promises_expire(group, 2, 3)
    votes_only = (VoteRequest, VoteReply, Heartbeat, HeartbeatReply)
    assert wins(group, 2, lambda message: isinstance(message, votes_only))
    group.core(2).read(7)
    group.pump(lambda message: isinstance(message, votes_only))
    index = group[2].reads.get(7)
    assert index is None, f"read served at {index}, below what was acknowledged"
    group.tick(2)
    assert group[2].reads[7] >= 2


# --- 7: acknowledged before durable with a single voter (etcd #14370)


def single_voter_loses_power_before_the_sync() -> None:
    group = group_led_by_n1(1)
    group.propose(1, b"a")
    group[1].take()
    group[1].take()
    assert group.core(1).commit == 1, "committed before it was on disk"
    assert group.commands(1) == ()
    group.crash(1)
    group.restart(1)
    assert group.core(1).last_index == 1


# --- 8: entries of an older term committed by counting (Raft figure 8; logcabin #44)


def figure_8() -> None:
    group = group_led_by_n1(1, 2, 3, 4, 5)
    group.propose(1, b"old")
    group.pump(between(1, 2))
    group.crash(1)
    # n5 leads term 2 with n3 and n4 and writes an entry that reaches nobody.
    let_promises_expire(group, 3, 4, 5)
    elections = (VoteRequest, VoteReply)
    assert wins(
        group, 5, lambda m: isinstance(m, elections) and {m.source, m.target} <= {rid(3), rid(4), rid(5)}
    )
    group.crash(5)
    # n1 leads term 3 and goes on with its old entry, which now is on n1, n2, n3.
    group.restart(1)
    group.core(1).ticks = group.settings.election_ticks_min
    let_promises_expire(group, 1, 2, 3)

    def only_old_entries(message: Message) -> bool:
        inside = {message.source, message.target} <= {rid(1), rid(2), rid(3)}
        return inside and not (
            isinstance(message, AppendRequest) and any(entry.term > 1 for entry in message.entries)
        )

    assert not wins(group, 1, only_old_entries)  # it learns of term 2
    assert wins(group, 1, only_old_entries)
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
    let_promises_expire(group, 3, 4, 5)
    wins(group, 5, between(3, 4, 5))
    assert wins(group, 5, between(3, 4, 5))
    group.tick(2, allows=between(3, 4, 5))
    assert group.core(3).log.term_at(2) == 2


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


# --- 15: snapshot installed over a conflicting log (openraft #559 #753)


def divergent_follower_installs_a_snapshot() -> None:
    core = make_core(1, 1, 1, 1, 1, 1, commit=2)
    assert core.install(meta(4, 2))
    work(core)
    assert core.last_index == 4, "entries of the old log survived above the snapshot"
    assert (core.log.term_at(4), core.commit, core.applied_index) == (2, 4, 4)


# --- 16: snapshot and configuration disagree (openraft #1808; dragonboat)


def lagging_replica_gets_the_members_with_the_snapshot() -> None:
    group = group_led_by_n1()
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
    asked = {message.target for message in only(campaign_messages(replica.living), VoteRequest)}
    assert asked == {rid(1), rid(4)}


def campaign_messages(core: Core) -> list[Message]:
    core.promise_left, core.elapsed = 0, core.election_timeout
    core.tick()
    return sent(core)


# --- 19: changes of members one by one (Ongaro 2015), and at once


def replacing_a_majority() -> None:
    """n1 replaces n2 and n3 by n4 and n5; n2 does not know that this is committed and stands for election."""
    group = group_led_by_n1()
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
    let_promises_expire(group, 2, 3)
    wins(group, 2, between(2, 3))
    if group.core(2).is_leader:
        group.propose(2, b"old half")
        group.pump(between(2, 3))
    assert not ({b"new half"} <= set(group.commands(1)) and {b"old half"} <= set(group.commands(2)))


def leader_changes_members_before_it_has_committed() -> None:
    core = make_leader(1)
    work(core)
    with pytest.raises(ProposalDropped):
        core.propose_configuration(Change(removed=(rid(3),)))


# --- 21: partial partitions and returning replicas disrupt (Cloudflare 2020; hashicorp/raft #524)


def isolated_replica_returns() -> None:
    group = group_led_by_n1()
    group.tick(100, allows=without(3))
    assert group.core(3).term == 1, "an isolated replica raised its term"
    group.tick(3)
    assert (group.core(1).is_leader, group.core(1).term) == (True, 1)


def replica_hears_the_others_but_not_the_leader() -> None:
    group = group_led_by_n1()

    def allows(message: Message) -> bool:
        return {message.source, message.target} != {rid(1), rid(3)}

    for _ in range(100):
        group.tick(1, allows=allows)
        assert (group.core(1).is_leader, group.core(1).term) == (True, 1), "the leader was deposed"


# --- 22: zombie leader on a hung disk (lavinmq #2151; etcd #7617)


def leader_with_a_hung_disk() -> None:
    group = group_led_by_n1()
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


# --- 29: damage of a replica takes it out of every quorum


def acknowledgement_from_before_the_damage() -> None:
    group = group_led_by_n1()
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


# --- 30: a paused leader wakes up in an older term (etcd #20418)


def paused_leader_hears_that_nodes_are_alive() -> None:
    group = group_led_by_n1()
    let_promises_expire(group, 2, 3)
    assert wins(group, 2, between(2, 3))
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


# --- 31: one shard loses its leader while the node's heartbeats go on


def node_goes_on_without_leading_this_shard() -> None:
    group = group_led_by_n1()
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


# --- 37: followers commit what the leader has not synced; power fails


def leader_loses_what_its_followers_committed() -> None:
    group = group_led_by_n1()
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


# --- 39: a lease outlives the restart of its supporter; and a transfer that came to nothing


def supporter_restarts_and_is_asked_to_vote() -> None:
    group = group_led_by_n1()
    group.tick(1)
    group.crash(2)
    group.restart(2)
    let_promises_expire(group, 3)
    assert not wins(group, 3, between(2, 3)), "elected while the old leader's lease holds"


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
