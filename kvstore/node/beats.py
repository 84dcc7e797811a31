"""Coalesced heartbeats: one message per peer for all shards that this node leads and that are quiet.

A beat names the version of the set of (shard, replica, term) its sender leads; the set itself travels
only when it changed. Being named resets a follower's election timer; not being named does not, so a
shard whose leader is gone wakes by itself although the node lives (schedule 31). A beat confirms no
read and no lease: those rounds are per shard (schedule 30).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvstore.node.clocks import Clocks
from kvstore.node.runtime import Lane
from kvstore.types import NodeId, ReplicaId, ShardId, Term, node_of
from kvstore.wire.peer import Beat, BeatReply

if TYPE_CHECKING:
    from kvstore.node.host import Host

Led = tuple[tuple[ShardId, ReplicaId, Term], ...]


class Heard(NamedTuple):
    """The newest set a peer told us."""

    version: int
    led: Led


class Beats:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._sent: dict[NodeId, Heard] = {}
        self._confirmed: dict[NodeId, int] = {}
        self._heard: dict[NodeId, Heard] = {}
        self._owed: dict[NodeId, BeatReply] = {}
        """Replies that have nothing to say but that the peer was heard: they leave with its next beat."""
        self._seq = 0
        self.acked_at: dict[NodeId, float] = {}

    def send_all(self) -> None:
        """Send every peer its beat."""
        self._seq += 1
        led: dict[NodeId, list[tuple[ShardId, ReplicaId, Term]]] = {node: [] for node in self._host.peers}
        for shard, replica in self._host.replicas.items():
            core = replica.core
            if replica.led_term is None:
                continue
            if core.quiet:
                for member in core.configuration.members():
                    if member != replica.me:
                        led.setdefault(node_of(member), []).append((shard, replica.me, core.term))
        clocks = self._host.clocks.told(self._seq)
        for node, entries in led.items():
            self._send(node, tuple(entries), tuple(clocks.get(node, ())))

    def _send(self, node: NodeId, led: Led, clocks: Clocks) -> None:
        sent = self._sent.get(node)
        if sent is None or sent.led != led:
            sent = self._sent[node] = Heard((sent.version if sent else 0) + 1, led)
        known = self._confirmed.get(node) == sent.version
        lines = tuple((shard, clock_ms) for shard, clock_ms, _ in clocks)
        terms = tuple(term for _, _, term in clocks)
        beat = Beat(sent.version, self._seq, None if known else sent.led, lines, terms)
        self._host.post(node, Lane.CONTROL, beat)
        owed = self._owed.pop(node, None)
        if owed is not None:
            self._host.post(node, Lane.CONTROL, owed)

    def on_beat(self, node: NodeId, beat: Beat) -> None:
        for (shard, clock_ms), term in zip(beat.clocks, beat.terms, strict=False):
            self._host.clocks.hear(shard, clock_ms, term)
        heard = self._heard.get(node)
        if beat.led is not None:
            heard = self._heard[node] = Heard(beat.version, beat.led)
        if heard is None or heard.version != beat.version:
            self._host.post(node, Lane.CONTROL, BeatReply(beat.version, beat.seq, (), True))
            return
        disagree = []
        now = self._host.runtime.now()
        for shard, leader, term in heard.led:
            replica = self._host.replicas.get(shard)
            if replica is None or not replica.core.hear_leader(leader, term):
                disagree.append(shard)
            elif replica.machine.applied >= replica.core.commit:
                replica.heard_at = now
        reply = BeatReply(beat.version, beat.seq, tuple(disagree), False)
        if disagree or beat.led is not None:
            self._owed.pop(node, None)
            self._host.post(node, Lane.CONTROL, reply)
        else:
            self._owed[node] = reply

    def on_reply(self, node: NodeId, reply: BeatReply) -> None:
        sent = self._sent.get(node)
        if reply.needs_set or sent is None or reply.version != sent.version:
            self._confirmed.pop(node, None)
            return
        self._confirmed[node] = reply.version
        self.acked_at[node] = self._host.runtime.now()
        for shard, _me, term in sent.led:
            replica = self._host.replicas.get(shard)
            if replica is None or replica.core.term != term:
                continue
            if shard in reply.disagree:
                replica.core.wake()
                self._host.mark_dirty(replica)
            else:
                self._credit(replica.core.configuration.members(), node, shard)

    def _credit(self, members: tuple[ReplicaId, ...], node: NodeId, shard: ShardId) -> None:
        core = self._host.replicas[shard].core
        for member in members:
            if node_of(member) == node:
                core.hear_follower(member)

    def forget(self, node: NodeId) -> None:
        """The peer restarted or reconnected: it may have lost the set."""
        self._confirmed.pop(node, None)
