"""A lost replica comes back as a new incarnation on the same node: the leader's side.

`begin` makes the new incarnation a learner. Everything after that is read off the shard's committed
configuration and what this leader knows of its peers, by whoever leads, again and again:

    a learner beside an older incarnation of its node,
        that never acknowledged anything   tell the node to create it
        that keeps pace                    one joint change: the new one votes, the older are out
    a notice of an incarnation that the configuration has replaced   tell the node to destroy it

Nothing is remembered between these steps, so a crash on any line loses nothing. Incarnations only grow
within a configuration, hence one that is lower than a member of its node and no member itself never
comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from kvstore.errors import (
    BY_CODE,
    InvalidArgument,
    KvError,
    NoLeader,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
)
from kvstore.node.flow import Promise
from kvstore.node.host import Host
from kvstore.node.replica import Replica
from kvstore.node.runtime import Lane, Timer, Transport
from kvstore.raft import NotLeader, ProposalDropped
from kvstore.raft.membership import Change
from kvstore.raft.messages import Configuration
from kvstore.raft.quorum import majority
from kvstore.types import (
    Incarnation,
    LogIndex,
    NodeId,
    ReplicaId,
    ShardId,
    Term,
    incarnation_of,
    node_of,
    replica_id,
)
from kvstore.wire import peer

log = logging.getLogger(__name__)

DRIVE_S = 0.5
"""How often a leader looks for the next step, and tells what may have been lost."""
NOTICED_S = 5.0
"""For how long a notice of a quarantined replica holds: they come every second."""
ASK_S = 1.0


class Succession(NamedTuple):
    """A learner and the members of its node that it will replace."""

    learner: ReplicaId
    older: tuple[ReplicaId, ...]


def incarnations(configuration: Configuration, node: NodeId) -> list[ReplicaId]:
    """Members of the group on `node`, the oldest first."""
    mine = [member for member in configuration.members() if node_of(member) == node]
    return sorted(mine, key=incarnation_of)


def successions(configuration: Configuration) -> list[Succession]:
    """What is under way by a configuration; a joint one is left by Raft itself."""
    found = []
    for learner in () if configuration.is_joint else configuration.learners:
        *older, newest = incarnations(configuration, node_of(learner))
        if newest == learner and any(each in configuration.voters for each in older):
            found.append(Succession(learner, tuple(older)))
    return found


def is_replaced(configuration: Configuration, replica: ReplicaId) -> bool:
    """Whether a committed configuration proves that this incarnation is out for ever."""
    mine = incarnations(configuration, node_of(replica))
    return replica not in mine and bool(mine) and incarnation_of(mine[-1]) > incarnation_of(replica)


def replacement(
    configuration: Configuration, lost: ReplicaId, is_live: Callable[[ReplicaId], bool]
) -> tuple[ReplicaId, Change | None]:
    """The incarnation that replaces `lost`, and the change that brings it in; None: it is in already.

    Raises:
        InvalidArgument: `lost` is not and was not a member.
        Overloaded: another change is under way.
        Unavailable: without `lost` no majority of voters is live, so no change can be committed.
    """
    node = node_of(lost)
    mine = incarnations(configuration, node)
    if not mine or incarnation_of(mine[-1]) < incarnation_of(lost):
        raise InvalidArgument(f"{lost} is no member of the shard: {', '.join(configuration.members())} are")
    if mine[-1] != lost:
        return mine[-1], None
    if configuration.is_joint:
        raise Overloaded("another change of members is under way", retry_after=1)
    others = [voter for voter in configuration.voters if node_of(voter) != node]
    live = [voter for voter in others if is_live(voter)]
    needed = majority(len(configuration.voters))
    if len(live) < needed:
        raise Unavailable(
            f"{len(live)} of {len(configuration.voters)} voters live without {node}; {needed} are needed",
            retry_after=1,
        )
    heir = replica_id(node, Incarnation(incarnation_of(lost) + 1))
    removed = (lost,) if lost in configuration.learners else ()
    return heir, Change(learners=(heir,), removed=removed)


class Rebuilds:
    """See the module. Also carries the request to the leader, wherever it is."""

    def __init__(self, host: Host, transport: Transport) -> None:
        self._host = host
        self._transport = transport
        self._asked: dict[int, tuple[Promise[ReplicaId], Timer]] = {}
        self._next_id = 0
        self._noticed: dict[tuple[ShardId, ReplicaId], float] = {}
        self._goals: dict[ShardId, tuple[ReplicaId, Term, LogIndex]] = {}
        """Where the log of a leader's term ended a period ago: a learner that has come this far keeps pace
        (thesis 4.2.1)."""
        host.on_message |= {
            peer.RebuildRequest: self._on_request,
            peer.RebuildReply: self._on_reply,
            peer.CreateRefused: self._on_refused,
            peer.QuarantineNotice: self.on_notice,
        }

    def start(self) -> None:
        self._drive()

    # ---- the request -----------------------------------------------------------------------------

    def ask(self, leader: NodeId, shard: ShardId, lost: ReplicaId) -> Promise[ReplicaId]:
        """Have the shard's leader replace `lost`; the new incarnation, which may not be committed yet.

        Fails with what `replacement` raises; with OutcomeUnknown if no answer comes: ask again."""
        promise: Promise[ReplicaId] = Promise()
        if leader == self._host.me:
            try:
                promise.resolve(self.begin(shard, lost))
            except KvError as error:
                promise.fail(error)
            return promise
        self._next_id += 1
        number = self._next_id

        def give_up() -> None:
            if self._asked.pop(number, None) is not None:
                promise.fail(OutcomeUnknown(f"leader {leader} did not answer; asking again is safe"))

        self._asked[number] = promise, self._host.runtime.call_later(ASK_S, give_up)
        self._host.post(leader, Lane.CONTROL, peer.RebuildRequest(number, shard, lost))
        return promise

    def _on_request(self, node: NodeId, request: peer.RebuildRequest) -> None:
        try:
            heir = self.begin(request.shard, request.lost)
        except KvError as error:
            reply = peer.RebuildReply(request.id, None, error.code, error.detail[:1000])
        else:
            reply = peer.RebuildReply(request.id, heir, None, "")
        self._host.post(node, Lane.CONTROL, reply)

    def _on_reply(self, node: NodeId, reply: peer.RebuildReply) -> None:
        promise, timer = self._asked.pop(reply.id, (None, None))
        if promise is None or timer is None:
            return
        timer.cancel()
        if reply.replica is not None:
            promise.resolve(reply.replica)
        else:
            promise.fail(BY_CODE.get(reply.error or "", OutcomeUnknown)(reply.detail))

    def begin(self, shard: ShardId, lost: ReplicaId) -> ReplicaId:
        """Leader: propose the learner that will replace `lost`, unless that has begun already.

        Raises: as `replacement`; NoLeader if this node does not lead the shard.
        """
        replica = self._host.replicas.get(shard)
        if replica is None or replica.led_term is None:
            raise NoLeader(f"{self._host.me} does not lead shard {shard}", retry_after=1)
        heir, change = replacement(
            replica.core.configuration, lost, lambda voter: self._is_live(replica, voter)
        )
        if change is not None:
            self._propose(replica, change)
            log.info("shard=%d replica=%s is lost, %s comes in its place", shard, lost, heir)
        return heir

    def _is_live(self, replica: Replica, voter: ReplicaId) -> bool:
        if voter == replica.me:
            return True
        noticed_at = self._noticed.get((replica.shard, voter))
        is_damaged = noticed_at is not None and self._host.runtime.now() - noticed_at < NOTICED_S
        return self._transport.is_connected(node_of(voter)) and not is_damaged

    def _propose(self, replica: Replica, change: Change) -> None:
        try:
            replica.core.propose_configuration(change)
        except NotLeader as error:
            raise NoLeader("leadership is being handed over", retry_after=1) from error
        except ProposalDropped as error:
            raise Overloaded(str(error), retry_after=1) from error
        self._host.mark_dirty(replica)

    # ---- the steps -------------------------------------------------------------------------------

    def _drive(self) -> None:
        if self._host.is_stopped:
            return
        for replica in self._host.replicas.values():
            if replica.led_term is not None and replica.core.configuration.learners:
                for succession in successions(replica.core.configuration):
                    self._advance(replica, succession)
        self._host.runtime.call_later(DRIVE_S, self._drive)

    def _advance(self, replica: Replica, succession: Succession) -> None:
        core, learner = replica.core, succession.learner
        match = core.progress[learner].match
        if not core.has_committed_in_term or replica.machine.applied < core.commit:
            return  # a later configuration may be committed than the one in force here
        if match == 0:
            # Nothing of it counts yet, so it may even be made a second time if its node lost every trace.
            self._host.tell(node_of(learner), peer.CreateReplica(replica.shard, learner))
            return
        goal = self._goals.get(replica.shard)
        self._goals[replica.shard] = learner, core.term, core.last_index
        if goal is None or goal[:2] != (learner, core.term) or match < goal[2]:
            return
        try:
            self._propose(replica, Change(voters=(learner,), removed=succession.older))
        except KvError as error:
            log.info("shard=%d replica=%s waits to vote: %s", replica.shard, learner, error)
            return
        log.info("shard=%d replica=%s votes for %s", replica.shard, learner, ", ".join(succession.older))

    def _on_refused(self, node: NodeId, message: peer.CreateRefused) -> None:
        """The lost replica is back in health, say after a restart: the learner was never made."""
        replica = self._host.replicas.get(message.shard)
        if replica is None or replica.led_term is None or node_of(message.replica) != node:
            return
        core = replica.core
        for learner, _older in successions(core.configuration):
            if learner == message.replica and core.progress[learner].match == 0:
                log.warning("shard=%d replica=%s is not needed: its node is healthy", replica.shard, learner)
                try:
                    self._propose(replica, Change(removed=(learner,)))
                except KvError as error:
                    log.info("shard=%d replica=%s stays for now: %s", replica.shard, learner, error)

    def on_notice(self, node: NodeId, notice: peer.QuarantineNotice) -> None:
        """A replica is damaged: nothing of it counts. One that was replaced may go for good."""
        shard, damaged = notice.shard, notice.replica
        if node_of(damaged) != node:
            return
        self._noticed[shard, damaged] = self._host.runtime.now()
        replica = self._host.replicas.get(shard)
        if replica is None:
            return
        replica.core.forget(damaged)
        # What the damaged replica promised no longer holds, the lease it helped to win included.
        replica.lease_until = 0.0
        self._host.mark_dirty(replica)
        if replica.led_term is not None and is_replaced(replica.core.configuration, damaged):
            self._noticed.pop((shard, damaged))
            self._host.tell(node, peer.DestroyReplica(shard, damaged))
