"""Bugs in consensus: reads, leases, votes, promises, members."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from kvstore.node.host import Host
from kvstore.node.replica import Replica
from kvstore.node.router import Router
from kvstore.node.tablets import Tablets
from kvstore.raft import candidate, leader, quorum, replication
from kvstore.raft.core import Core
from kvstore.raft.messages import HardState
from kvstore.raft.rounds import confirm_rounds
from kvstore.store.machine import Machine
from kvstore.types import LogIndex
from kvstore.wal import HardStateRecord
from kvstore.wal.segment import Segment
from tests.sim.plant import planted

# --- 2, 16: which configuration is in force


@planted(2, "a restart takes the members from the record of creation, not from the tablet")
def configuration_of_creation_after_restart() -> Iterator[None]:
    check = Tablets._check_or_bootstrap

    def forget(machine: Machine, replica: Any) -> None:
        check(machine, replica)
        if replica.created.configuration.voters:
            machine.configuration = replica.created.configuration

    with patch.object(Tablets, "_check_or_bootstrap", staticmethod(forget)):
        yield


@planted(16, "an installed snapshot does not bring its configuration")
def snapshot_without_configuration() -> Iterator[None]:
    def installed(self: Core, meta: Any) -> None:
        if meta.index > self.applied_index:
            self.applied_index = meta.index

    with patch.object(Core, "_installed", installed):
        yield


# --- 5, 6: reads


@planted(5, "a leader serves reads before it has committed in its term")
def read_before_first_commit() -> Iterator[None]:
    flush = replication.flush

    def early(core: Core) -> None:
        start, core.term_start = core.term_start, LogIndex(0)
        flush(core)
        core.term_start = start

    with patch.object(replication, "flush", early):
        yield


@planted(6, "a leader serves reads without asking a quorum whether it still leads")
def read_without_quorum() -> Iterator[None]:
    flush = replication.flush

    def alone(core: Core) -> None:
        flush(core)
        if core.reads:
            core.reads_ready.extend(core.reads.confirm(core.round))

    with patch.object(replication, "flush", alone):
        yield


@planted(6, "a follower serves a read before it has applied the confirmed index")
def read_below_confirmed_index() -> Iterator[None]:
    answer = Replica.answer_indexed_reads

    def at_once(self: Replica) -> None:
        self.reads_indexed = [(LogIndex(0), calls) for _index, calls in self.reads_indexed]
        answer(self)

    with patch.object(Replica, "answer_indexed_reads", at_once):
        yield


@planted(6, "a lease lasts as long as the leader believes to lead")
def lease_never_ends() -> Iterator[None]:
    def holds(self: Host, replica: Replica) -> bool:
        return replica.led_term is not None and replica.lease_until > 0

    with patch.object(Host, "holds_lease", holds):
        yield


@planted(6, "a lease counts from when the answers arrive, not from when the round was sent")
def lease_from_receipt() -> Iterator[None]:
    extend = Host._extend_lease

    def late(self: Host, replica: Replica) -> None:
        for number in replica.round_sent_at:
            replica.round_sent_at[number] = self.runtime.now()
        extend(self, replica)

    with patch.object(Host, "_extend_lease", late):
        yield


@planted(6, "a lease goes on after the leadership was given away")
def lease_kept_after_transfer() -> Iterator[None]:
    send = leader._send_timeout_now

    def keep(core: Core, target: Any) -> None:
        send(core, target)
        core.lease_forbidden = False

    with patch.object(leader, "_send_timeout_now", keep):
        yield


@planted(6, "a lease read does not wait until everything committed is applied")
def lease_read_before_apply() -> Iterator[None]:
    def serve(self: Router, replica: Replica, call: Any) -> bool:
        if not self._host.holds_lease(replica):
            return False
        replica.serve(call)
        return True

    with patch.object(Router, "_serve_lease", serve):
        yield


@planted(6, "the answer to a node's heartbeat confirms the reads of each of its shards")
def beat_confirms_reads() -> Iterator[None]:
    hear = Core.hear_follower

    def confirm(self: Core, replica: Any) -> None:
        hear(self, replica)
        peer = self.progress.get(replica)
        if peer is not None:
            peer.round = self.round
            confirm_rounds(self)

    with patch.object(Core, "hear_follower", confirm):
        yield


@planted(6, "voters do not keep the promise that a lease rests on")
def votes_while_leader_is_heard() -> Iterator[None]:
    with patch.object(candidate, "_is_bound", lambda core, message: False):
        yield


@planted(6, "a restarted voter may vote at once, though it may have supported a lease")
def votes_right_after_restart() -> Iterator[None]:
    start = Core._start_clocks

    def unbound(self: Core) -> None:
        start(self)
        self.ticks = self.settings.election_ticks_min
        self.promise_left = 0

    with patch.object(Core, "_start_clocks", unbound):
        yield


# --- 7 to 11: what is durable when


@planted(7, "a leader counts its own entries before they are synced")
def leader_counts_unsynced() -> Iterator[None]:
    flush = replication.flush

    def count(core: Core) -> None:
        flush(core)
        if core.own_progress.match < core.last_index:
            core.own_progress.match = core.last_index
            leader.advance_commit(core)

    with patch.object(replication, "flush", count):
        yield


@planted(8, "entries of older terms commit by counting")
def commits_older_terms() -> Iterator[None]:
    def advance(core: Core) -> None:
        index = quorum.agreed([peer.match for peer in core.voter_progress])
        if core.outgoing_progress:
            index = min(index, quorum.agreed([peer.match for peer in core.outgoing_progress]))
        if index > core.commit:
            for entry in core.log.between(core.commit, index):
                core.uncommitted_bytes -= len(entry.payload)
            core.commit_to(LogIndex(index))
            core.settled_round = core.round
            core.flush_wanted = True

    with patch.object(leader, "advance_commit", advance):
        yield


@planted(9, "a vote is answered before it is synced")
def vote_before_sync() -> Iterator[None]:
    answer = candidate._answer

    def at_once(core: Core, message: Any, *, is_granted: bool) -> None:
        answer(core, message, is_granted=is_granted)
        core.messages_now.append(core.messages_after_sync.pop())

    with patch.object(candidate, "_answer", at_once):
        yield


@planted(9, "a candidate counts its own vote before it is synced")
def own_vote_before_sync() -> Iterator[None]:
    become, ask = Core.become_candidate, candidate._ask

    def count(self: Core) -> None:
        become(self)
        self.votes[self.me] = True

    def at_once(core: Core, term: Any, *, is_pre_vote: bool, is_transfer: bool) -> None:
        ask(core, term, is_pre_vote=is_pre_vote, is_transfer=is_transfer)
        core.messages_now += core.messages_after_sync
        core.messages_after_sync.clear()

    with patch.object(Core, "become_candidate", count), patch.object(candidate, "_ask", at_once):
        yield


@planted(9, "the vote is never written")
def vote_not_written() -> Iterator[None]:
    records = Host._records

    def forget(replica: Replica, ready: Any) -> list[Any]:
        return [
            HardStateRecord(each.shard, each.incarnation, each.term, None, each.commit)
            if isinstance(each, HardStateRecord)
            else each
            for each in records(replica, ready)
        ]

    with patch.object(Host, "_records", staticmethod(forget)):
        yield


@planted(9, "term and vote are forgotten by a restart")
def hard_state_lost() -> Iterator[None]:
    restore = Core._restore

    def forget(self: Core, restored: Any) -> None:
        forgotten = HardState(commit=restored.hard_state.commit)
        restore(self, replace(restored, hard_state=forgotten))

    with patch.object(Core, "_restore", forget):
        yield


@planted(10, "a follower acknowledges before its sync")
def acknowledges_before_sync() -> Iterator[None]:
    persist = Host._persist

    def promise(self: Host, replica: Replica, ready: Any) -> None:
        self._post_raft(replica, ready.messages_after_sync)
        persist(self, replica, replace(ready, messages_after_sync=()))

    with patch.object(Host, "_persist", promise):
        yield


@planted(11, "a sync that fails is taken for done")
def failed_sync_ignored() -> Iterator[None]:
    append = Segment.append

    def ignore(self: Segment, content: bytes) -> None:
        offset = self.offset
        try:
            append(self, content)
        except OSError:
            self.offset = offset + len(content)

    with patch.object(Segment, "append", ignore):
        yield


# --- 19, 20: members


@planted(19, "in a joint configuration only the new half is asked")
def joint_quorum_of_new_half() -> Iterator[None]:
    rebuild, outcome = leader.rebuild_progress, quorum.vote_outcome

    def one_half(core: Core) -> None:
        rebuild(core)
        core.outgoing_progress = ()

    def new_half(configuration: Any, votes: Any) -> quorum.Outcome:
        return outcome(type(configuration)(voters=configuration.voters), votes)

    with (
        patch.object(leader, "rebuild_progress", one_half),
        patch.object(quorum, "vote_outcome", new_half),
    ):
        yield


@planted(20, "a quarantined replica is hosted all the same")
def quarantine_ignored() -> Iterator[None]:
    from kvstore.node.node import Node

    host = Node._host_replicas

    def trust(self: Node) -> None:
        for replica in self.recovered.replicas.values():
            replica.quarantined = None
        host(self)

    with patch.object(Node, "_host_replicas", trust):
        yield


# --- 21, 22: leaders that are in the way


@planted(21, "a leader that hears no quorum goes on leading")
def leader_without_quorum_stays() -> Iterator[None]:
    with patch.object(leader, "_check_quorum", lambda core: True):
        yield


@planted(22, "a leader whose disk hangs goes on leading")
def leader_with_hung_disk_stays() -> Iterator[None]:
    tick = leader.tick

    def patient(core: Core) -> None:
        flights, core.log.flights = core.log.flights, type(core.log.flights)()
        try:
            tick(core)
        finally:
            core.log.flights = flights

    with patch.object(leader, "tick", patient), patch.object(Core, "give_way", lambda self: None):
        yield
