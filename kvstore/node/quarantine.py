"""Copies of shards on this node that are out of every quorum: damaged, halted, or lost.

They have no Raft core: they neither vote nor acknowledge nor support a leader (schedule 29), whatever
arrives for them. The mark is durable, peers are told again and again, and the damaged tablet stays where
it is, because it may be all that is left of the shard. What ends it is a later incarnation of the same shard
on this node (`rebuild.py`):

1. `CreateReplica`: the leader has committed a learner for this node. Its creation is in the log before it
   is hosted; it knows no configuration, so it cannot campaign, and takes everything from the leader.
2. `DestroyReplica`: a configuration without exactly this incarnation was committed. Only then, and only
   while its successor lives here, the tombstone is written, and after that the tablet removed.

All three records survive a crash between any two of these steps; the leader and the notices repeat
the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from kvstore.node.host import Host
from kvstore.node.replica import Replica
from kvstore.node.tablets import Tablets
from kvstore.raft.messages import Configuration
from kvstore.types import Incarnation, NodeId, ShardId, incarnation_of, node_of, replica_id
from kvstore.wal import Key, Quarantined, RecoveredReplica, ShardCreated, ShardDestroyed
from kvstore.wire import peer

log = logging.getLogger(__name__)

NOTICE_S = 1.0
"""How often peers are reminded of a quarantined replica: the notice may be lost, a leader may be new."""


class Copy(NamedTuple):
    reason: str
    is_marked: bool
    """Its mark is in the log, or on its way: no restart will host it."""
    halted: Replica | None
    """What this process had opened of it."""


class Quarantine:
    """`host_replica` opens and hosts a replica whose creation is durable; `forget_fetch` ends the transfer of
    a snapshot for an earlier incarnation."""

    def __init__(
        self,
        host: Host,
        tablets: Tablets,
        host_replica: Callable[[ShardId, Incarnation, RecoveredReplica], None],
        forget_fetch: Callable[[ShardId], None],
    ) -> None:
        self._host = host
        self._tablets = tablets
        self._host_replica = host_replica
        self._forget_fetch = forget_fetch
        self.copies: dict[Key, Copy] = {}
        """Every incarnation on disk that is not hosted."""
        self._newest: dict[ShardId, Incarnation] = {}
        """Highest incarnation this node has ever known of each shard, destroyed ones included."""
        self._destroying: set[Key] = set()
        self.is_open = False
        """What the log holds is known: until then nothing may be created or destroyed."""
        host.on_halt = self._on_halt
        host.on_message[peer.CreateReplica] = self._on_create
        host.on_message[peer.DestroyReplica] = self._on_destroy

    def start(self) -> None:
        self._notice()

    def know(self, shard: ShardId, incarnation: Incarnation) -> None:
        """This incarnation exists or existed here, so it is never made again."""
        self._newest[shard] = max(incarnation, self._newest.get(shard, Incarnation(0)))

    def newest(self, shard: ShardId) -> int:
        """Highest incarnation ever known here, 0 if there was none."""
        return self._newest.get(shard, 0)

    def halted(self) -> list[Replica]:
        """Replicas that this process has opened and taken out of service."""
        return [copy.halted for copy in self.copies.values() if copy.halted is not None]

    # ---- taking out ------------------------------------------------------------------------------

    def mark(self, shard: ShardId, incarnation: Incarnation, reason: str) -> None:
        """Take a replica out of every quorum, durably."""
        self._host.log.add([Quarantined(shard, incarnation, reason)], None)
        self._host.schedule_pass()
        self.hold(shard, incarnation, reason)

    def hold(self, shard: ShardId, incarnation: Incarnation, reason: str) -> None:
        """Keep a replica whose mark is in the log."""
        me = replica_id(self._host.me, incarnation)
        log.critical("shard=%d replica=%s is quarantined: %s", shard, me, reason)
        self._keep((shard, incarnation), Copy(reason, is_marked=True, halted=None))

    def _on_halt(self, replica: Replica, reason: str, is_lost: bool) -> None:
        """It is out of service. Unless it is lost, a restart may find it fit: it has no mark yet."""
        key = (replica.shard, replica.incarnation)
        if is_lost:
            self._host.log.add([Quarantined(*key, reason)], None)
            self._host.schedule_pass()
        self._keep(key, Copy(reason, is_marked=is_lost, halted=replica))

    def _keep(self, key: Key, copy: Copy) -> None:
        self.know(*key)
        self.copies[key] = copy
        self._speak_of_newest(key[0])

    def _speak_of_newest(self, shard: ShardId) -> None:
        """Several incarnations of a shard may be kept; people are told of the newest."""
        mine = [key for key in self.copies if key[0] == shard]
        if mine:
            newest = max(mine)
            self._host.damaged[shard] = self.copies[newest].reason
            self._host.damaged_replicas[shard] = replica_id(self._host.me, newest[1])
        else:
            self._host.damaged.pop(shard, None)
            self._host.damaged_replicas.pop(shard, None)

    def _notice(self) -> None:
        if self._host.is_stopped:
            return
        me = self._host.me
        for shard, incarnation in sorted(self.copies):
            notice = peer.QuarantineNotice(shard, replica_id(me, incarnation))
            for node in (me, *self._host.peers):
                self._host.tell(node, notice)
        self._host.runtime.call_later(NOTICE_S, self._notice)

    # ---- the successor ---------------------------------------------------------------------------

    def _on_create(self, node: NodeId, message: peer.CreateReplica) -> None:
        shard, incarnation = message.shard, incarnation_of(message.replica)
        if node_of(message.replica) != self._host.me or not self.is_open:
            return
        hosted = self._host.replicas.get(shard)
        if hosted is not None and hosted.incarnation < incarnation:
            log.error("shard=%d replica=%s is healthy: %s is refused", shard, hosted.me, message.replica)
            self._host.tell(node, peer.CreateRefused(shard, message.replica))
        elif incarnation > self.newest(shard):
            self._create(shard, incarnation)

    def _create(self, shard: ShardId, incarnation: Incarnation) -> None:
        self.know(shard, incarnation)
        self._forget_fetch(shard)
        for key, copy in list(self.copies.items()):
            if key[0] == shard and not copy.is_marked:
                # Halted only: a restart must not host it beside its successor.
                self._host.log.add([Quarantined(*key, copy.reason)], None)
                self.copies[key] = copy._replace(is_marked=True)
        directory = self._tablets.fresh_name(shard, incarnation)
        created = ShardCreated(shard, incarnation, directory, Configuration())
        log.info("shard=%d replica=%s is created empty", shard, replica_id(self._host.me, incarnation))
        self._host.log.add([created], None)
        self._host.log.then(lambda: self._created(created))
        self._host.schedule_pass()

    def _created(self, created: ShardCreated) -> None:
        if not self._host.is_stopped:
            self._host_replica(created.shard, created.incarnation, RecoveredReplica(created=created))

    # ---- the end ---------------------------------------------------------------------------------

    def _on_destroy(self, node: NodeId, message: peer.DestroyReplica) -> None:
        """The leader's word is for this exact incarnation; the copy goes only where its successor lives."""
        key = (message.shard, incarnation_of(message.replica))
        heir = self._host.replicas.get(message.shard)
        if (
            node_of(message.replica) != self._host.me
            or key not in self.copies
            or key in self._destroying
            or heir is None
            or heir.incarnation <= key[1]
        ):
            return
        self._destroying.add(key)
        self._host.log.add([ShardDestroyed(*key)], None)
        self._host.log.then(lambda: self._destroyed(key))
        self._host.schedule_pass()

    def _destroyed(self, key: Key) -> None:
        shard, incarnation = key
        self._destroying.discard(key)
        halted = self.copies.pop(key).halted
        self._speak_of_newest(shard)
        log.info("shard=%d replica=%s is destroyed", shard, replica_id(self._host.me, incarnation))

        def work() -> None:
            if halted is not None:
                halted.machine.close()
            self._tablets.remove_all_of(key)

        def done(_result: object, error: BaseException | None) -> None:
            if error is not None:
                log.warning("tablet of shard=%d %s could not be removed: %s", shard, incarnation, error)

        # The lane of flushes and checkpoints: none of them is still at work on a machine that gets closed.
        self._host.runtime.in_thread(work, done, lane="store")
