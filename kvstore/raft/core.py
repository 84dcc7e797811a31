"""One replica of one Raft group, without any I/O: inputs in, `Ready` out.

The host calls `step`, `tick`, `propose`, ... in any order from one thread, then takes a `Ready` and does what
it says. The core never reads a clock, a disk or a socket; its randomness is an argument. It calls the role
modules (`follower`, `candidate`, `leader`), which see it as a type only and work on its attributes.

Attributes without a leading underscore belong to the package. Outside it may be read: `term`, `role`,
`leader`, `commit`, `applied_index`, `last_index`, `synced`, `configuration`, `progress`, `round`,
`confirmed_round`, `lease_forbidden`, `term_start`, `offered`, `transfer_target`, `vote`, `me`, `settings`.
Two may be set: `clock_ms` and `quiet`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvstore.raft import candidate, follower, leader, membership, output, replication, rounds
from kvstore.raft.log import RaftLog
from kvstore.raft.messages import (
    AppendRequest,
    Configuration,
    Entry,
    Heartbeat,
    Message,
    Ready,
    SnapshotMeta,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvstore.raft.progress import Progress
from kvstore.raft.reads import WaitingReads
from kvstore.raft.restored import Restored
from kvstore.raft.role import Role
from kvstore.raft.settings import RaftSettings
from kvstore.types import LogIndex, ReplicaId, Term

Observe = Callable[[str, dict[str, Any]], None]

_FROM_LEADER = (AppendRequest, Heartbeat, SnapshotOffer, TimeoutNow)

_HANDLERS: dict[Role, dict[type, Callable[[Any, Any], None]]] = {
    Role.FOLLOWER: {**follower.HANDLERS},
    Role.PRE_CANDIDATE: {**follower.HANDLERS, **candidate.HANDLERS},
    Role.CANDIDATE: {**follower.HANDLERS, **candidate.HANDLERS},
    # A leader's messages reach another leader of the same term only if Raft is broken: follower.py says so.
    Role.LEADER: {**follower.HANDLERS, **leader.HANDLERS},
}

TURN_SHARE = 5
"""Turns of a first campaign are two such parts of the shortest election timeout apart."""


class Core:
    __slots__ = (
        "_handlers",
        "applied_index",
        "clock_ms",
        "clock_term",
        "commit",
        "confirmed_round",
        "configuration",
        "dice",
        "durable_commit",
        "elapsed",
        "election_timeout",
        "emitted",
        "flush_wanted",
        "heartbeat_elapsed",
        "asked_to_lead_tick",
        "is_beat_due",
        "is_leader",
        "leader",
        "lease_forbidden",
        "log",
        "me",
        "messages_after_sync",
        "messages_now",
        "number",
        "observe",
        "offered",
        "outgoing_progress",
        "own_progress",
        "peers",
        "pending_install",
        "progress",
        "promise_left",
        "quiet",
        "reads",
        "reads_lost",
        "reads_ready",
        "role",
        "round",
        "settings",
        "settled_round",
        "snapshots_wanted",
        "term",
        "term_start",
        "ticks",
        "transfer_target",
        "transfer_tick",
        "uncommitted_bytes",
        "vote",
        "voter_progress",
        "votes",
        "written",
    )

    def __init__(
        self,
        me: ReplicaId,
        settings: RaftSettings,
        restored: Restored,
        dice: Callable[[int, int], int],
        observe: Observe | None = None,
    ) -> None:
        """Start as a follower that grants no vote for `election_ticks_min` ticks.

        `dice(low, high)` returns an integer in [low, high]; `observe(event, fields)` is told every event.

        Raises:
            Corrupt: what was restored contradicts itself.
        """
        self.me = me
        self.settings = settings
        self.dice = dice
        self.observe = observe
        self._restore(restored)
        self.role = Role.FOLLOWER
        self.is_leader = False
        self.leader: ReplicaId | None = None
        self._handlers = _HANDLERS[Role.FOLLOWER]
        self.clock_ms, self.clock_term = 0, Term(0)
        """The shard clock as known here, and the term of the leader whose clock it is; the host runs it on,
        votes carry it. The newest leader's word counts, also where it is lower."""
        self.quiet = False
        """Set by the host on a leader that `can_be_quiet`: no heartbeats until something happens."""
        self._start_clocks()
        self._start_leader_state()
        self._start_outbox()
        if observe is not None:
            is_new = self.term == 0 and self.log.last_index == 0
            self.trace("init" if is_new else "restart", log=self.log.term_runs())

    def _restore(self, restored: Restored) -> None:
        hard_state = restored.hard_state
        self.log = RaftLog.restore(restored.snapshot, restored.entries, restored.applied)
        self.term = max(hard_state.term, self.log.last_term)
        self.vote = hard_state.vote if self.term == hard_state.term else None
        self.written = hard_state
        self.configuration = restored.configuration
        self.applied_index = self.emitted = restored.applied
        commit = max(restored.applied, min(hard_state.commit, self.log.last_index))
        changes = self.log.unapplied_configurations
        if len(changes) > 1:
            # A change is proposed only once the one before it is applied, hence committed.
            commit = max(commit, changes[-2])
        self.commit = commit
        self.durable_commit = hard_state.commit
        """Commit index that a restart would know of."""

    def _start_clocks(self) -> None:
        self.ticks = 0
        self.elapsed = 0
        """Follower, candidate: ticks since a leader was heard. Leader: since the quorum was checked."""
        self.heartbeat_elapsed = 0
        self.promise_left = self.settings.election_ticks_min
        """Ticks for which no vote is granted: some leader may count on it, or may before the restart."""
        self._draw_timeout()

    def _start_leader_state(self) -> None:
        self.votes: dict[ReplicaId, bool] = {}
        self.asked_to_lead_tick: int | None = None
        """When the leader of this term handed over to this replica, which could not campaign yet."""
        self.progress: dict[ReplicaId, Progress] = {}
        """Leader: what it knows of each member, itself included. Else empty."""
        self.own_progress = Progress(self.me, 1)
        self.peers: tuple[Progress, ...] = ()
        self.voter_progress: tuple[Progress, ...] = ()
        self.outgoing_progress: tuple[Progress, ...] = ()
        self.round = 0
        """Leader: the newest confirmation round of this term."""
        self.confirmed_round = 0
        """Leader: the newest round that a quorum has answered; falls if a peer is forgotten."""
        self.settled_round = 0
        self.term_start = LogIndex(0)
        """Leader: index of its first entry; reads and leases must wait until that is committed."""
        self.uncommitted_bytes = 0
        self.lease_forbidden = False
        """Leader: a TimeoutNow has left, so that voters may elect another without waiting."""
        self.transfer_target: ReplicaId | None = None
        self.transfer_tick = 0
        self.reads = WaitingReads()

    def _start_outbox(self) -> None:
        self.number = 0
        self.flush_wanted = False
        self.is_beat_due = False
        self.messages_now: list[Message] = []
        self.messages_after_sync: list[Message] = []
        self.reads_ready: list[tuple[int, LogIndex]] = []
        self.reads_lost: list[int] = []
        self.snapshots_wanted: list[ReplicaId] = []
        self.pending_install: SnapshotMeta | None = None
        self.offered: SnapshotOffer | None = None
        """A snapshot of the present leader that this replica needs: fetch it, then call `install`."""

    # --- what it is

    @property
    def last_index(self) -> LogIndex:
        return self.log.last_index

    @property
    def first_index(self) -> LogIndex:
        """Lowest index whose entry is in memory, or would be."""
        return LogIndex(self.log.base_index + 1)

    def log_index_before_last_bytes(self, bytes_max: int) -> LogIndex:
        """Return the lowest index to `compact` at so that the log in memory holds at most `bytes_max`."""
        return self.log.cut_to_keep(bytes_max)

    @property
    def synced(self) -> LogIndex:
        """Last index that is on this replica's disk."""
        return self.log.synced

    @property
    def commit_term(self) -> Term:
        term = self.log.term_at(self.commit)
        assert term is not None, f"entry {self.commit} is not in the log"
        return term

    @property
    def is_fresh(self) -> bool:
        """It has just started and may have supported a leader before (pitfall 39)."""
        return self.ticks < self.settings.election_ticks_min

    @property
    def is_voter(self) -> bool:
        return self.me in self.configuration.voters or self.me in self.configuration.outgoing

    @property
    def has_committed_in_term(self) -> bool:
        """Leader: its first entry is committed, so that its commit index covers all older terms."""
        return self.is_leader and self.commit >= self.term_start

    @property
    def has_writes_in_flight(self) -> bool:
        """Some Ready with writes is not `persisted` yet."""
        return bool(self.log.flights)

    def can_be_quiet(self) -> bool:
        """Tell whether every member has everything and knows it, so that heartbeats may stop."""
        return self.is_leader and not self.has_ready() and leader.can_be_quiet(self)

    # --- inputs

    def tick(self) -> None:
        """Let one tick pass."""
        self.ticks += 1
        if self.is_leader:
            leader.tick(self)
            return
        if self.promise_left:
            self.promise_left -= 1
        self.elapsed += 1
        if self.elapsed >= self.election_timeout:
            self.elapsed = 0
            self._draw_timeout()
            if candidate.may_campaign(self):
                candidate.campaign(self, is_transfer=False)

    def step(self, message: Message) -> None:
        """Take a message from a peer: it may be late, repeated, out of order, or for an older incarnation.

        Raises:
            Corrupt: it proves that this replica, or the group, has lost what it had acknowledged.
        """
        if message.target != self.me:
            return
        if self.observe is not None:
            self.trace("receive", message=message)
        kind = type(message)
        if kind is VoteRequest:
            candidate.on_vote_request(self, message)  # type: ignore[arg-type]
            return
        if kind is VoteReply:
            candidate.learn(self, message)  # type: ignore[arg-type]
        if message.term != self.term:
            if message.term < self.term:
                follower.answer_older_leader(self, message)
                return
            is_pre_vote_granted = kind is VoteReply and message.is_pre_vote and message.is_granted  # type: ignore[union-attr]
            if not is_pre_vote_granted:
                self.become_follower(message.term, message.source if kind in _FROM_LEADER else None)
        handler = self._handlers.get(kind)
        if handler is not None:
            handler(self, message)

    def propose(self, payloads: Sequence[bytes]) -> tuple[Term, LogIndex]:
        """Append one NORMAL entry per payload; return the term and index of the first.

        The entry at that index is the proposed one only if it commits with that very term.

        Raises:
            NotLeader: this replica does not lead, or is handing over. Nothing was appended.
            ProposalDropped: too much is uncommitted. Nothing was appended.
            TooLarge: a payload is above `entry_bytes_max`. Nothing was appended.
        """
        return leader.propose(self, payloads)

    def propose_configuration(self, change: membership.Change) -> LogIndex:
        """Start a change of members; the group leaves a joint configuration by itself.

        Raises:
            NotLeader: this replica does not lead, or is handing over.
            ProposalDropped: a change is in flight, or the leader has not committed in its term.
            InvalidArgument: the change makes no sense.
        """
        return leader.propose_configuration(self, change)

    def read(self, context: int) -> None:
        """Ask for an index at which a read that arrives now may be served.

        It comes back in `Ready.reads`, or in `Ready.reads_lost` if this replica does not lead any more.
        """
        if self.is_leader:
            self.quiet = False
            self.reads.parked.append(context)
            self.flush_wanted = True
        else:
            self.reads_lost.append(context)

    def transfer_leadership(self, target: ReplicaId) -> None:
        """Hand over to a voter: proposals stop until it is done or an election timeout has passed.

        Raises:
            NotLeader: this replica does not lead.
            InvalidArgument: `target` is no voter.
        """
        leader.transfer(self, target)

    def give_way(self) -> None:
        """Leader: this node can write nothing for now. Step down and let another voter campaign at once."""
        if self.is_leader:
            leader.hand_over(self)

    def persisted(self, number: int) -> None:
        """Ready `number` and all before it are synced."""
        landed = self.log.landed(number)
        if not landed:
            return
        self.durable_commit = landed[-1].commit
        for flight in landed:
            if flight.installed is not None:
                self._installed(flight.installed)
        if self.is_leader:
            leader.own_entries_synced(self)
        elif self.role is Role.CANDIDATE and landed[-1].term == self.term and landed[-1].vote == self.me:
            candidate.own_vote_synced(self)

    def applied(self, index: LogIndex) -> None:
        """The machine has applied everything up to `index`; configurations up to there are now in force."""
        if index <= self.applied_index:
            return
        assert index <= self.emitted, f"applied {index}, but only {self.emitted} was given"
        self.applied_index = index
        changes = self.log.unapplied_configurations
        while changes and changes[0] <= index:
            self._adopt(membership.decode(self.log.entry(changes.popleft()).payload))
        if self.is_leader and self.configuration.outgoing:
            leader.leave_joint_if_due(self)
        elif self.asked_to_lead_tick is not None:
            candidate.campaign_as_asked(self)

    def compact(self, index: LogIndex) -> None:
        """Drop the log up to `index`, at most up to what is applied."""
        self.log.compact(min(index, self.applied_index))

    def offer_snapshot(self, target: ReplicaId, meta: SnapshotMeta) -> None:
        """The host keeps a snapshot for `target`: offer it until the target has it or is silent for long."""
        if self.is_leader:
            replication.offer_snapshot(self, target, meta)

    def install(self, meta: SnapshotMeta) -> bool:
        """The host holds a complete snapshot: let the log start after it.

        False: it is not needed any more, throw it away. True: the next Ready carries it in `installed`;
        once that is persisted the machine must be the snapshot's, and `applied_index` is `meta.index`.
        """
        return follower.install(self, meta)

    def forget(self, replica: ReplicaId) -> None:
        """A peer's disk is damaged: nothing it acknowledged, voted or supported counts any more."""
        self.votes.pop(replica, None)
        if self.is_leader:
            leader.forget(self, replica)

    def hear_leader(self, source: ReplicaId, term: Term) -> bool:
        """A heartbeat of `source`'s node says that it leads this shard at `term`.

        False: not as far as this replica knows, or it lacks something; the leader must wake the shard.
        """
        return follower.hear_leader(self, source, term)

    def hear_follower(self, replica: ReplicaId) -> None:
        """The peer's node has answered for a quiet shard: it counts as present, for nothing else."""
        peer = self.progress.get(replica)
        if peer is not None:
            peer.is_active = True

    def wake(self) -> None:
        """Leader: leave quietness at once; every peer hears a heartbeat in the next Ready."""
        if self.is_leader:
            self.quiet = False
            rounds.beat(self)

    # --- outputs

    def has_ready(self) -> bool:
        """Tell whether `take_ready` has something to say."""
        return output.has_ready(self)

    def take_ready(self) -> Ready:
        """Return everything the host must now do; see `Ready` for the order it must keep."""
        return output.take_ready(self)

    # --- for the role modules

    def send_now(self, message: Message) -> None:
        self.messages_now.append(message)

    def send_after_sync(self, message: Message) -> None:
        self.messages_after_sync.append(message)

    def commit_to(self, index: LogIndex) -> None:
        assert self.commit < index <= self.log.last_index, f"commit {self.commit} to {index}"
        self.commit = index
        if self.observe is not None:
            self.trace("commit")

    def become_follower(self, term: Term, leader_known: ReplicaId | None) -> None:
        """Follow `leader_known`, or nobody yet, in `term`, which must not be lower than the present one."""
        assert term >= self.term, f"term {self.term} cannot fall to {term}"
        if term > self.term:
            self.term = term
            self.vote = None
            self.asked_to_lead_tick = None
            # Promises of the older term that were never given: the truths they tell are void by now.
            self.messages_after_sync.clear()
        if self.is_leader:
            self._stop_leading()
        if leader_known != self.leader:
            self.offered = None
        self.leader = leader_known
        self.votes = {}
        if leader_known is not None:
            self.elapsed = 0
            self.promise_left = self.settings.election_ticks_min
        self._become(Role.FOLLOWER)

    def _stop_leading(self) -> None:
        self.reads_lost.extend(self.reads.lose())
        self.progress = {}
        self.peers = self.voter_progress = self.outgoing_progress = ()
        self.transfer_target = None
        self.flush_wanted = self.is_beat_due = self.quiet = False
        self.snapshots_wanted.clear()
        self.elapsed = 0
        self._draw_timeout()

    def become_pre_candidate(self) -> None:
        assert not self.is_leader, "a leader does not campaign"
        self.leader = None
        self.offered = None
        self.votes = {}
        self._become(Role.PRE_CANDIDATE)

    def become_candidate(self) -> None:
        """Enter the next term and vote for itself; the vote counts once it is synced."""
        assert not self.is_leader, "a leader does not campaign"
        self.term = Term(self.term + 1)
        self.vote = self.me
        self.asked_to_lead_tick = None
        self.leader = None
        self.offered = None
        self.votes = {}
        self.messages_after_sync.clear()
        self.elapsed = 0
        self._draw_timeout()
        self._become(Role.CANDIDATE)

    def become_leader(self) -> None:
        assert self.role is Role.CANDIDATE, f"a {self.role.value} cannot win"
        self.leader = self.me
        self.votes = {}
        self.elapsed = 0
        self.promise_left = 0
        self.lease_forbidden = False
        self.is_leader = True
        self._become(Role.LEADER)
        leader.begin_term(self)

    def _become(self, role: Role) -> None:
        self.role = role
        self.is_leader = role is Role.LEADER
        self._handlers = _HANDLERS[role]
        if self.observe is not None and role is not Role.PRE_CANDIDATE:
            self.trace(f"become_{role.value}")

    def order_first_campaign(self, rank: int) -> None:
        """In a new group, let the members campaign one after another, `rank` 0 first: who leads first is then
        not a matter of chance. Does nothing in a group that may have had one."""
        if self.term == 0 and self.log.last_index == 0:
            low = self.settings.election_ticks_min
            self.election_timeout = low + (2 * rank + 1) * max(1, low // TURN_SHARE)

    def _draw_timeout(self) -> None:
        self.election_timeout = self.dice(self.settings.election_ticks_min, self.settings.election_ticks_max)

    def _installed(self, meta: SnapshotMeta) -> None:
        if meta.index > self.applied_index:
            self.applied_index = meta.index
            self._adopt(meta.configuration)

    def _adopt(self, configuration: Configuration) -> None:
        self.configuration = configuration
        if self.observe is not None:
            self.trace("apply_conf_change")
        if self.is_leader:
            leader.configuration_changed(self)

    # --- trace

    def trace_append(self, entries: Sequence[Entry]) -> None:
        if self.observe is not None:
            self.trace("append", entries=entries)

    def trace_send(self, message: Message) -> None:
        """The host hands `message` to the network now. Until then it may still be withdrawn or die unsent."""
        if self.observe is not None:
            self.trace("send", message=message)

    def trace(self, event: str, **more: Any) -> None:
        """Tell the observer of an event, with the state after it; `more` is the message or entries."""
        assert self.observe is not None
        fields: dict[str, Any] = {
            "replica": self.me,
            "term": self.term,
            "vote": self.vote,
            "commit": self.commit,
            "last_index": self.log.last_index,
            "role": self.role.value,
            "configuration": self.configuration,
        }
        self.observe(event, fields | more)
