"""What a leader does: appending, committing, confirming reads, handing over, stepping down.

What leaves for the followers is built by `replication.py` when a Ready is taken. Only two numbers decide
anything: the synced match of a quorum, which commits, and the round a quorum has answered, which
confirms reads. Both are counted per half in a joint configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kvstore.errors import InvalidArgument, TooLarge
from kvstore.raft import membership, quorum, replication
from kvstore.raft.messages import (
    CONFIGURATION,
    EMPTY,
    NORMAL,
    AppendReply,
    Configuration,
    Entry,
    HeartbeatReply,
    TimeoutNow,
)
from kvstore.raft.progress import Progress, ProgressState
from kvstore.raft.refusals import NotLeader, ProposalDropped
from kvstore.raft.rounds import beat, confirm_rounds
from kvstore.types import LogIndex, ReplicaId, Term

if TYPE_CHECKING:
    from kvstore.raft.core import Core


# --- the term begins


def begin_term(core: Core) -> None:
    """Append the empty entry that lets this term commit (Raft 8), and announce the leader."""
    core.round = core.confirmed_round = core.settled_round = 0
    core.progress = {}
    core.term_start = LogIndex(core.log.last_index + 1)
    uncommitted = core.log.between(core.commit, core.log.last_index)
    core.uncommitted_bytes = sum(len(entry.payload) for entry in uncommitted)
    rebuild_progress(core)
    _append(core, EMPTY, (b"",))
    beat(core)


def rebuild_progress(core: Core) -> None:
    """Follow the configuration in force: add who is new, drop who is gone, keep what is known of the rest."""
    known = core.progress
    configuration = core.configuration
    members = sorted({*configuration.members(), core.me})
    # A leader that was removed still needs its own match while it finishes.
    core.progress = {
        member: known.get(member) or Progress(member, core.log.last_index + 1) for member in members
    }
    own = core.progress[core.me]
    own.match = min(core.log.synced, core.log.last_index)
    own.round = core.round
    core.own_progress = own
    core.peers = tuple(peer for peer in core.progress.values() if peer is not own)
    core.voter_progress = tuple(core.progress[voter] for voter in configuration.voters)
    core.outgoing_progress = tuple(core.progress[voter] for voter in configuration.outgoing)
    core.flush_wanted = True


# --- proposals


def propose(core: Core, payloads: Sequence[bytes]) -> tuple[Term, LogIndex]:
    _refuse_unless_leading(core)
    assert payloads, "nothing is proposed"
    settings = core.settings
    bytes_sum = 0
    for payload in payloads:
        bytes_count = len(payload)
        if bytes_count > settings.entry_bytes_max:
            raise TooLarge("entry is too large", limit=settings.entry_bytes_max, size=bytes_count)
        bytes_sum += bytes_count
    held = core.uncommitted_bytes
    # One proposal always passes when nothing is held, however large: it could never pass otherwise.
    if held and bytes_sum and held + bytes_sum > settings.uncommitted_bytes_max:
        raise ProposalDropped("too much is uncommitted", limit=settings.uncommitted_bytes_max)
    return core.term, _append(core, NORMAL, payloads)


def _refuse_unless_leading(core: Core) -> None:
    if not core.is_leader:
        raise NotLeader(leader=core.leader)
    if core.transfer_target is not None:
        raise NotLeader("leadership is being handed over", leader=None)


def _append(core: Core, kind: int, payloads: Sequence[bytes]) -> LogIndex:
    term = core.term
    first = core.log.last_index + 1
    if len(payloads) == 1:
        payload = payloads[0]
        entries: list[Entry] = [Entry(LogIndex(first), term, kind, payload)]
        core.uncommitted_bytes += len(payload)
    else:
        entries = [
            Entry(LogIndex(index), term, kind, payload) for index, payload in enumerate(payloads, start=first)
        ]
        core.uncommitted_bytes += sum(map(len, payloads))
    core.log.append(entries)
    core.quiet = False
    core.flush_wanted = True
    core.trace_append(entries)
    return entries[0].index


def propose_configuration(core: Core, change: membership.Change) -> LogIndex:
    _refuse_unless_leading(core)
    if core.commit < core.term_start:
        # Without this, two leaders in turn can commit changes that do not know each other (Ongaro 2015).
        raise ProposalDropped("the leader has not committed in its term yet")
    if core.configuration.is_joint or core.log.unapplied_configurations:
        raise ProposalDropped("another configuration change is in flight")
    return _append_configuration(core, membership.next_configuration(core.configuration, change))


def _append_configuration(core: Core, configuration: Configuration) -> LogIndex:
    return _append(core, CONFIGURATION, (membership.encode(configuration),))


def leave_joint_if_due(core: Core) -> None:
    """Once a joint configuration is applied, propose what follows it. Every leader of one does."""
    if (
        core.configuration.is_joint
        and core.commit >= core.term_start
        and not core.log.unapplied_configurations
        and core.transfer_target is None
    ):
        _append_configuration(core, membership.left_joint(core.configuration))


def configuration_changed(core: Core) -> None:
    """A new configuration is in force here."""
    rebuild_progress(core)
    if core.transfer_target is not None and core.transfer_target not in core.configuration.voters:
        core.transfer_target = None
    if not core.is_voter:
        hand_over(core)
        return
    advance_commit(core)
    confirm_rounds(core)


# --- what followers answer


def on_append_reply(core: Core, message: AppendReply) -> None:
    peer = core.progress.get(message.source)
    if peer is None or not _heed(core, peer, message.round):
        return
    if message.is_rejected:
        _on_rejection(core, peer, message)
        return
    index = message.index
    if index > core.log.last_index:
        return  # not what any core of this term sends
    if index > peer.match:
        peer.acknowledged(index)
    elif index < peer.match or peer.state is not ProgressState.PROBE:
        return
    if peer.state is ProgressState.PROBE:
        peer.become_replicate()
    elif peer.state is ProgressState.SNAPSHOT:
        if index < core.log.base_index:
            if peer.snapshot is not None and index >= peer.snapshot.index:
                # It has what was offered, but the log was cut above that meanwhile: once more.
                replication.want_snapshot(core, peer)
            return
        peer.become_replicate()
    core.settled_round = core.round
    core.flush_wanted = True
    if index > core.commit:
        advance_commit(core)
    if core.transfer_target == message.source:
        send_timeout_now_if_ready(core)


def _on_rejection(core: Core, peer: Progress, message: AppendReply) -> None:
    """Step back, over all entries of terms that the follower cannot have (thesis 3.5)."""
    failed = message.index
    if failed <= peer.match:
        return  # overtaken by what it has accepted since
    if peer.state is ProgressState.REPLICATE:
        # Something was lost on the way; what it has accepted is the place to go on from.
        peer.become_probe(peer.match + 1)
    elif peer.state is ProgressState.PROBE and peer.next - 1 == failed:
        hint_index, _ = core.log.last_at_or_below_term(message.hint_index, message.hint_term)
        if hint_index == core.log.base_index and message.hint_index < hint_index:
            hint_index = message.hint_index  # below the cut: a snapshot must bridge it
        peer.become_probe(min(failed, hint_index + 1))
    else:
        return
    core.quiet = False
    core.flush_wanted = True


def on_heartbeat_reply(core: Core, message: HeartbeatReply) -> None:
    peer = core.progress.get(message.source)
    if peer is None or not _heed(core, peer, message.round):
        return
    if peer.match < core.log.last_index and peer.state is not ProgressState.SNAPSHOT:
        # It lives, but lacks something: what was sent may be lost. An empty append will tell.
        peer.is_probe_sent = False
        peer.is_poked = True
        core.flush_wanted = True


def _heed(core: Core, peer: Progress, round_number: int) -> bool:
    """Note that the peer follows this term. False: its answer is from before its quarantine."""
    if round_number < peer.round_floor:
        return False
    if round_number > peer.round:
        if round_number > core.round:
            return False  # not what any core of this term sends
        peer.round = round_number
        if round_number > core.confirmed_round:
            confirm_rounds(core)
    peer.is_active = True
    peer.silent_ticks = 0
    return True


# --- quorum decisions


def advance_commit(core: Core) -> None:
    """Commit what a quorum has synced, if it is of this term; older entries go with it (Raft 5.4.2)."""
    index = quorum.agreed([peer.match for peer in core.voter_progress])
    if core.outgoing_progress:
        index = min(index, quorum.agreed([peer.match for peer in core.outgoing_progress]))
    commit = core.commit
    if index <= commit or index < core.term_start:
        return
    entries = core.log.between(commit, index)
    assert entries[-1].term == core.term, "only entries of the own term commit by counting"
    for entry in entries:
        core.uncommitted_bytes -= len(entry.payload)
    core.commit_to(LogIndex(index))
    core.settled_round = core.round
    core.flush_wanted = True


def own_entries_synced(core: Core) -> None:
    """The leader is a voter like any other: it counts itself up to what its own disk holds."""
    own = core.own_progress
    synced = core.log.synced
    if synced > own.match:
        own.match = synced
        if synced > core.commit:
            advance_commit(core)


# --- time


def tick(core: Core) -> None:
    settings = core.settings
    flights = core.log.flights
    if flights and core.ticks - flights[0].tick > settings.election_ticks_max:
        # A leader whose disk hangs acknowledges nothing and must not keep others from leading (pitfall 22).
        hand_over(core)
        return
    core.elapsed += 1
    if core.elapsed >= settings.election_ticks_min:
        core.elapsed = 0
        if not _check_quorum(core):
            core.become_follower(core.term, None)
            return
    if core.transfer_target is not None and core.ticks - core.transfer_tick >= settings.election_ticks_min:
        core.transfer_target = None
        leave_joint_if_due(core)
    if core.quiet:
        return
    core.heartbeat_elapsed += 1
    if core.heartbeat_elapsed >= settings.heartbeat_ticks:
        replication.watch_snapshots(core, core.heartbeat_elapsed)
        beat(core)


def _check_quorum(core: Core) -> bool:
    """Tell whether a quorum was heard in the period that ends now, and start the next one."""
    present = {peer.replica for peer in core.peers if peer.is_active}
    present.add(core.me)
    for peer in core.peers:
        peer.is_active = False
    return quorum.has_quorum(core.configuration, present)


# --- handing over


def transfer(core: Core, target: ReplicaId) -> None:
    if not core.is_leader:
        raise NotLeader(leader=core.leader)
    if target == core.me or target == core.transfer_target:
        return
    if target not in core.configuration.voters:
        raise InvalidArgument(f"{target} is no voter of this group")
    core.quiet = False
    core.transfer_target = target
    core.transfer_tick = core.ticks
    peer = core.progress[target]
    peer.is_poked = True
    core.flush_wanted = True
    send_timeout_now_if_ready(core)


def send_timeout_now_if_ready(core: Core) -> None:
    target = core.transfer_target
    assert target is not None
    if core.progress[target].match == core.log.last_index:
        _send_timeout_now(core, target)


def _send_timeout_now(core: Core, target: ReplicaId) -> None:
    # Voters will not wait for this leader's silence, now or whenever the message arrives: no lease any more.
    core.lease_forbidden = True
    core.send_now(TimeoutNow(source=core.me, target=target, term=core.term))


def hand_over(core: Core) -> None:
    """Step down, and let the voter with the longest log campaign at once."""
    replication.flush(core)
    heirs = [core.progress[voter] for voter in core.configuration.voters if voter != core.me]
    if heirs:
        _send_timeout_now(core, max(heirs, key=lambda peer: (peer.is_active, peer.match)).replica)
    core.become_follower(core.term, None)


def forget(core: Core, replica: ReplicaId) -> None:
    peer = core.progress.get(replica)
    if peer is None or peer is core.own_progress:
        return
    core.quiet = False
    beat(core)
    peer.forget(core.log.last_index, core.round)
    confirm_rounds(core)


def can_be_quiet(core: Core) -> bool:
    last_index = core.log.last_index
    if (
        core.commit != last_index
        or core.log.synced != last_index
        or core.applied_index != last_index
        or core.configuration.is_joint
        or core.transfer_target is not None
        or core.reads
    ):
        return False
    # A round opened after the last change of commit or match has told the commit to everybody.
    return all(peer.match == last_index and peer.round > core.settled_round for peer in core.peers)


HANDLERS: dict[type, Callable[[Any, Any], None]] = {
    AppendReply: on_append_reply,
    HeartbeatReply: on_heartbeat_reply,
}
