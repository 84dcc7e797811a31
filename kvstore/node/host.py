"""The one loop over this node's dirty shards: send, sync, apply, answer.

Everything that happens to a node (a request, a frame from a peer, a finished sync, a tick) marks
replicas dirty and schedules a pass. A pass takes what each dirty replica's core made ready, lets its
messages leave, hands the records of all shards to the log as one batch, and applies what is committed.
So the cost of a sync, of a frame and of a wake-up is shared by everything that arrived meanwhile.

The host knows no socket, file, thread or clock: `Runtime`, `Transport` and the log are given to it, and
the simulator gives it others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from kvstore.errors import Corrupt, DiskFailed, DiskFull, Fatal
from kvstore.node.beats import Beats
from kvstore.node.clocks import ShardClocks
from kvstore.node.log_writer import DISK_FULL_RETRY_S, AppendsRecords, LogWriter, Promise
from kvstore.node.patience import Patience
from kvstore.node.replica import Replica
from kvstore.node.runtime import Lane, Runtime, Transport
from kvstore.raft.messages import AppendRequest, Heartbeat, Message, Ready, SnapshotOffer
from kvstore.types import NodeId, ReplicaId, ShardId, node_of
from kvstore.wal import Entries, HardStateRecord, Record, SnapshotInstalled, Truncate
from kvstore.wire import peer

log = logging.getLogger(__name__)

NOTICE_S = 0.005
"""How long a follower may wait to be told a commit, if nothing else is sent to it meanwhile."""

BURST_S = 0.0003
"""A frame that comes so soon after a pass has most likely waited for its end, and others with it: they share
the next one."""

LAG_S = 0.01
"""How long a follower that nobody asks gathers commits, to apply them together: half of its work."""

PATIENCE_TICKS = 5
"""The loop is late now and then: the disk is judged as if it looked once in so many ticks."""


class HostSettings(msgspec.Struct, frozen=True):
    """Times in seconds."""

    tick_s: float = 0.05
    beat_ticks: int = 2
    lease_s: float = 0.7
    """Shorter than the minimum election timeout by more than two ticks and the clock's drift."""
    inline_sync_s: float = 0.0
    """While a sync takes less, small batches are synced on the loop."""
    disk_stalled_s: float = 2.0
    """A batch unsynced for longer makes this node give up all its leaderships: also of shards that have
    nothing in that batch, for their writes wait behind it."""
    disk_dead_s: float = 30.0
    """A batch unsynced for longer ends the process (pitfall 22)."""


class PutOff(NamedTuple):
    replica: Replica
    notice: Message
    since: float


class Host:
    """All replicas of one node. `on_fatal` must end the process: going on could fake data."""

    def __init__(
        self,
        me: NodeId,
        peers: tuple[NodeId, ...],
        runtime: Runtime,
        transport: Transport,
        wal: AppendsRecords,
        settings: HostSettings,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.me = me
        self.peers = peers
        self.runtime = runtime
        self.settings = settings
        self.replicas: dict[ShardId, Replica] = {}
        self.damaged: dict[ShardId, str] = {}
        """Shards whose copy here is quarantined or halted, with the reason."""
        self.damaged_replicas: dict[ShardId, ReplicaId] = {}
        """The quarantined ones, of which the peers must be told."""
        self.log = LogWriter(runtime, wal, self._on_synced, self._on_log_failure, settings.inline_sync_s)
        self._patience = Patience(settings.disk_dead_s, PATIENCE_TICKS * settings.tick_s)
        self.clocks = ShardClocks(self)
        self.beats = Beats(self)
        self.on_message: dict[type, Callable[[NodeId, Any], None]] = {
            peer.RaftMessages: self._on_raft,
            peer.Beat: self.beats.on_beat,
            peer.BeatReply: self.beats.on_reply,
        }
        """What to do with each kind of peer message; the router and the snapshots add theirs."""
        self.on_applied: dict[ShardId, Callable[[], None]] = {}
        """Whom to tell that a shard's replica here may have applied something."""
        self.on_tick: Callable[[], None] = lambda: None
        self.on_role_change: Callable[[Replica], None] = lambda replica: None
        self.on_halt: Callable[[Replica, str, bool], None] = lambda replica, reason, is_lost: None
        self.on_snapshot_offer: Callable[[Replica, SnapshotOffer], None] = lambda replica, offer: None
        self.on_snapshots_wanted: Callable[[Replica, Ready], None] = lambda replica, ready: None
        self._transport = transport
        self._on_fatal = on_fatal
        self._outbox: dict[tuple[NodeId, Lane], list[peer.PeerMessage]] = {}
        self._notices: dict[tuple[ShardId, ReplicaId], PutOff] = {}
        """Commits that followers were not told yet, by shard and follower."""
        self._is_notice_due = False
        self._dirty: dict[ShardId, Replica] = {}
        self._lagging: dict[ShardId, Replica] = {}
        """Followers' replicas that apply what is committed at the next `_catch_up`."""
        self._pass_scheduled = False
        self._is_in_pass = False
        self._holds_pass = False
        self._pass_ended_at = 0.0
        self._ticks = 0
        self._next_tick_at = 0.0
        self.is_stopped = False

    # ---- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        self._next_tick_at = self.runtime.now() + self.settings.tick_s
        self.runtime.call_later(self.settings.tick_s, self._tick)
        self.clocks.start()

    def stop(self) -> None:
        self.is_stopped = True

    def fail(self, error: BaseException) -> None:
        """Stop at once: nothing may be acknowledged from here on."""
        if not self.is_stopped:
            self.stop()
            self._on_fatal(error)

    def add(self, replica: Replica) -> None:
        self.replicas[replica.shard] = replica
        replica.start_clock(self.runtime.now())
        self.mark_dirty(replica)

    def mark_dirty(self, replica: Replica) -> None:
        if not replica.is_dirty and self.replicas.get(replica.shard) is replica:
            replica.is_dirty = True
            self._dirty[replica.shard] = replica
            self.schedule_pass()

    def schedule_pass(self) -> None:
        if not self._pass_scheduled and not self._holds_pass:
            self._pass_scheduled = True
            self.runtime.call_soon(self._run_pass)

    # ---- frames ----------------------------------------------------------------------------------

    def post(self, node: NodeId, lane: Lane, message: peer.PeerMessage) -> None:
        """Put a message into the frame that leaves at the end of this pass."""
        self._outbox.setdefault((node, lane), []).append(message)
        if not self._is_in_pass:
            self.schedule_pass()

    def tell(self, node: NodeId, message: peer.PeerMessage) -> None:
        """Send a control message to a node, which may be this one."""
        if node == self.me:
            self.on_message[type(message)](node, message)
        else:
            self.post(node, Lane.CONTROL, message)

    def on_frame(self, node: NodeId, lane: Lane, frame: bytes) -> None:
        if self.is_stopped:
            return
        self._holds_pass = True
        try:
            for message in peer.decode(frame):
                handler = self.on_message.get(type(message))
                if handler is not None:
                    handler(node, message)
        finally:
            self._holds_pass = False
        if not self._dirty and not self._outbox:
            return
        if self.runtime.now() - self._pass_ended_at < BURST_S:
            self.schedule_pass()
        else:
            # A peer waits for what follows from its frame: one turn of the loop is saved.
            self._run_pass()

    def _on_raft(self, node: NodeId, envelope: peer.RaftMessages) -> None:
        replica = self.replicas.get(envelope.shard)
        if replica is None:
            return
        for message in envelope.messages:
            # A message to an earlier incarnation must not touch the present one (pitfall 20).
            if message.target != replica.me or node_of(message.source) != node:
                continue
            self._note_heard(replica, message)
            try:
                replica.core.step(message)
            except Corrupt as error:
                self.halt(replica, f"contradicted by its group: {error}", is_lost=True)
                return
            if type(message) is SnapshotOffer:
                self.on_snapshot_offer(replica, message)
        if replica.core.has_ready() or replica.has_work or replica.shard in self.on_applied:
            self.mark_dirty(replica)
        else:
            # The acknowledgement of a minority: no pass for it.
            self._watch_role(replica)
            self._extend_lease(replica)

    def _note_heard(self, replica: Replica, message: Message) -> None:
        if (
            isinstance(message, AppendRequest | Heartbeat)
            and message.term >= replica.core.term
            and not (type(message) is Heartbeat and message.is_behind)
        ):
            replica.hear(message.commit, self.runtime.now())

    def _send_frames(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for (node, lane), messages in outbox.items():
            self._send(node, lane, messages)

    def _send(self, node: NodeId, lane: Lane, messages: list[peer.PeerMessage]) -> None:
        try:
            frame = peer.encode(messages)
        except peer.PeerProtocolError:
            for part in _halves(messages):
                self._send(node, lane, part)
        else:
            self._transport.send(node, lane, frame)

    def _post_raft(self, replica: Replica, messages: tuple[Message, ...], *, is_first: bool = False) -> None:
        by_link: dict[tuple[NodeId, Lane], list[Message]] = {}
        for message in messages:
            if is_first and _is_notice(message):
                self._put_off(replica, message)
                continue
            lane = Lane.CONTROL
            if type(message) is AppendRequest:
                lane = Lane.APPEND
                # It tells the commit too.
                self._notices.pop((replica.shard, message.target), None)
            if replica.core.observe is not None:
                replica.core.trace_send(message)
            by_link.setdefault((node_of(message.target), lane), []).append(message)
        for (node, lane), batch in by_link.items():
            self.post(node, lane, peer.RaftMessages(replica.shard, tuple(batch)))

    def _put_off(self, replica: Replica, notice: Message) -> None:
        """Under load the next append tells the commit soon enough: a frame to each follower and its pass
        are saved for every write of a lone caller."""
        key = replica.shard, notice.target
        put_off = self._notices.get(key)
        since = self.runtime.now() if put_off is None else put_off.since
        self._notices[key] = PutOff(replica, notice, since)
        self._look_at_notices(NOTICE_S)

    def _look_at_notices(self, delay_s: float) -> None:
        if not self._is_notice_due:
            self._is_notice_due = True
            self.runtime.call_later(delay_s, self._tell_old_commits)

    def _tell_old_commits(self) -> None:
        self._is_notice_due = False
        self.tell_commits(min_age_s=NOTICE_S / 2)
        if self._notices:
            self._look_at_notices(NOTICE_S / 2)

    def tell_commits(self, min_age_s: float = 0.0) -> None:
        """Tell followers the commits they were not told yet, now: a read there may wait for one."""
        now = self.runtime.now()
        notices, self._notices = self._notices, {}
        for key, each in notices.items():
            if now - each.since < min_age_s:
                self._notices[key] = each
            else:
                self._post_raft(each.replica, (each.notice,))

    # ---- the pass --------------------------------------------------------------------------------

    def _run_pass(self) -> None:
        """First what others wait for: what the peers do with a frame takes longer than anything here."""
        self._pass_scheduled = False
        if self.is_stopped:
            return
        self._is_in_pass = True
        dirty, self._dirty = self._dirty, {}
        for replica in dirty.values():
            replica.is_dirty = False
            self.advance(replica)
        self._send_frames()
        self.log.flush()
        # What was just synced is promised before anything is applied.
        self._send_frames()
        for replica in dirty.values():
            if self.replicas.get(replica.shard) is replica:
                self._apply(replica)
        self._send_frames()
        self._is_in_pass = False
        self._pass_ended_at = self.runtime.now()

    def advance(self, replica: Replica) -> None:
        """Carry out what one core made ready, up to handing its records to the log."""
        core = replica.core
        if replica.led_term is not None:
            # While a batch is on its way to the disk, writes gather for one larger entry.
            if replica.queue and not self.log.is_busy:
                replica.propose_queue(self.runtime.now())
            if replica.reads_new:
                replica.confirm_reads()
        if not core.has_ready():
            self._watch_role(replica)
            return
        ready = core.take_ready()
        self._watch_role(replica)
        if replica.led_term is not None and core.round > replica.round_dated:
            # Once only: a round that was confirmed already says nothing about the present.
            replica.round_dated = core.round
            replica.round_sent_at[core.round] = self.runtime.now()
        if ready.messages_now:
            self._post_raft(replica, ready.messages_now, is_first=True)
        self._persist(replica, ready)
        replica.take_committed(ready)
        if ready.snapshots_wanted:
            self.on_snapshots_wanted(replica, ready)

    def _persist(self, replica: Replica, ready: Ready) -> None:
        """Queue what must be durable; promises with nothing to wait for leave at once."""
        records = self._records(replica, ready)
        if not records and not replica.unsynced_readies:
            replica.core.persisted(ready.number)
            if ready.messages_after_sync:
                self._post_raft(replica, ready.messages_after_sync)
            return
        replica.unsynced_readies += 1
        self.log.add(records, Promise(replica, ready.number, ready.messages_after_sync))

    @staticmethod
    def _records(replica: Replica, ready: Ready) -> list[Record]:
        shard, incarnation = replica.shard, replica.incarnation
        records: list[Record] = []
        if ready.installed is not None:
            records.append(SnapshotInstalled(shard, incarnation, replica.directory, ready.installed))
        if ready.truncate_after is not None:
            records.append(Truncate(shard, incarnation, ready.truncate_after))
        if ready.entries:
            records.append(Entries(shard, incarnation, ready.entries))
        if ready.hard_state is not None:
            state = ready.hard_state
            records.append(HardStateRecord(shard, incarnation, state.term, state.vote, state.commit))
        return records

    def _on_synced(self, promises: list[Promise]) -> None:
        if self.is_stopped:
            return
        for replica, number, messages in promises:
            replica.unsynced_readies -= 1
            if self.replicas.get(replica.shard) is not replica:
                continue
            replica.core.persisted(number)
            if messages:
                self._post_raft(replica, messages)
            if replica.core.has_ready():
                self.mark_dirty(replica)
        for replica in self.replicas.values():
            if replica.queue:
                self.mark_dirty(replica)
        if self.log.is_pending:
            self.schedule_pass()

    def _on_log_failure(self, error: BaseException) -> None:
        log.critical("the log failed, this node stops: %s", error)
        self.fail(error)

    def _apply(self, replica: Replica) -> None:
        if not replica.may_lag or replica.shard in self.on_applied:
            self._apply_now(replica)
            return
        now = self.runtime.now()
        is_stream, replica.committed_at = now - replica.committed_at < LAG_S, now
        if not is_stream:
            self._apply_now(replica)
            return
        if not self._lagging:
            self.runtime.call_later(LAG_S, self._catch_up)
        self._lagging[replica.shard] = replica

    def _catch_up(self) -> None:
        lagging, self._lagging = self._lagging, {}
        for replica in lagging.values():
            if not self.is_stopped and self.replicas.get(replica.shard) is replica:
                self._apply_now(replica)

    def _apply_now(self, replica: Replica) -> None:
        try:
            more = replica.apply_slice()
        except DiskFull as error:
            log.error("shard=%d cannot apply, the disk is full: %s", replica.shard, error)
            self.runtime.call_later(DISK_FULL_RETRY_S, self.mark_dirty, replica)
            return
        except DiskFailed as error:
            self.fail(error)
            return
        except Fatal as error:
            self.halt(replica, f"apply failed: {error}")
            return
        if replica.reads_indexed:
            replica.answer_indexed_reads()
        if self.on_applied:
            told = self.on_applied.get(replica.shard)
            if told is not None:
                told()
        if replica.damage is not None:
            self.halt(replica, f"read failed: {replica.damage}")
            return
        self._extend_lease(replica)
        if more or replica.core.has_ready() or self._may_confirm(replica) or replica.held.has_freed:
            replica.held.has_freed = False
            self.mark_dirty(replica)

    @staticmethod
    def _may_confirm(replica: Replica) -> bool:
        return bool(replica.led_term is not None and replica.reads_new and not replica.reads_confirming)

    def halt(self, replica: Replica, reason: str, *, is_lost: bool = False) -> None:
        """Take one damaged replica out of service, loudly; other shards go on. `is_lost`: it has forgotten
        what it had acknowledged, so that no restart may bring it back."""
        log.critical("shard=%d replica=%s halted: %s", replica.shard, replica.me, reason)
        self.replicas.pop(replica.shard, None)
        self._dirty.pop(replica.shard, None)
        self.damaged[replica.shard] = reason
        self.on_halt(replica, reason, is_lost)
        for call in list(replica.waiting_calls()):
            call.expire()

    # ---- roles and leases ------------------------------------------------------------------------

    def _watch_role(self, replica: Replica) -> None:
        core = replica.core
        leads = core.term if replica.is_leader else None
        if leads == replica.led_term:
            return
        was_leading = replica.led_term is not None
        replica.led_term = leads
        replica.round_sent_at.clear()
        replica.round_dated = 0
        replica.lease_until = 0.0
        if leads is not None:
            replica.run_clock(self.runtime.now())
        if was_leading:
            replica.lost_leadership()
        self.on_role_change(replica)

    def _extend_lease(self, replica: Replica) -> None:
        """The lease counts from the send time of a round that a quorum confirmed (thesis 6.4.1)."""
        confirmed = replica.core.confirmed_round
        for number in [number for number in replica.round_sent_at if number <= confirmed]:
            sent_at = replica.round_sent_at.pop(number)
            replica.lease_until = max(replica.lease_until, sent_at + self.settings.lease_s)
            if replica.has_applied_all:
                replica.heard_at = max(replica.heard_at, sent_at)

    def holds_lease(self, replica: Replica) -> bool:
        return (
            replica.led_term is not None
            and not replica.core.lease_forbidden
            and self.runtime.now() < replica.lease_until
        )

    # ---- time ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self.is_stopped:
            return
        now = self.runtime.now()
        self._ticks += 1
        self._watch_disk(now)
        self._holds_pass = True
        for replica in list(self.replicas.values()):
            # Before the tick, which may have a heartbeat due that keeps the shard awake for ever.
            if replica.led_term is not None and not replica.core.quiet and replica.core.can_be_quiet():
                replica.core.quiet = True
            # Before the tick too: it may ask for votes.
            replica.run_clock(now)
            replica.core.tick()
            replica.expire_calls(now)
            if replica.core.has_ready() or replica.queue:
                self.mark_dirty(replica)
            else:
                self._watch_role(replica)
        if self._ticks % self.settings.beat_ticks == 0:
            self.beats.send_all()
        self._holds_pass = False
        if self._dirty or self._outbox:
            self._run_pass()
        # After a stall the missed ticks are dropped: a burst would make followers impatient.
        self._next_tick_at = max(self._next_tick_at + self.settings.tick_s, now + self.settings.tick_s / 2)
        self.runtime.call_later(self._next_tick_at - now, self._tick)
        self.on_tick()

    def _watch_disk(self, now: float) -> None:
        busy_s = self.log.busy_s(now)
        if self._patience.is_over(busy_s) and not self.log.is_disk_full:
            self.fail(Fatal(f"the disk has not finished a log write for {busy_s:.0f} s"))
        elif busy_s > self.settings.disk_stalled_s:
            for replica in self.replicas.values():
                if replica.led_term is not None:
                    replica.core.give_way()


def _is_notice(message: Message) -> bool:
    """Whether a leader's message does nothing but tell the commit."""
    if type(message) is Heartbeat:
        return message.round == 0
    return type(message) is AppendRequest and not message.entries


def _halves(messages: list[peer.PeerMessage]) -> list[list[peer.PeerMessage]]:
    """Two smaller frames for one that is too large; nothing for a single message that no frame can hold."""
    if len(messages) > 1:
        middle = len(messages) // 2
        return [messages[:middle], messages[middle:]]
    only = messages[0]
    if isinstance(only, peer.RaftMessages) and len(only.messages) > 1:
        middle = len(only.messages) // 2
        parts = (only.messages[:middle], only.messages[middle:])
        return [[peer.RaftMessages(only.shard, part)] for part in parts]
    log.error("a %s is too large for any frame and was dropped", type(only).__name__)
    return []
