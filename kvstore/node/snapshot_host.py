"""Snapshots between Raft and the transfer: when to make one, whom to offer it, how to install it.

Installing has one commit point, the synced `snapshot-installed` record. Until then the old directory is
untouched, so that a crash on any line leaves one whole tablet that the log names (schedule 36).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kvstore.config import Snapshot
from kvstore.errors import DiskFull, Fatal
from kvstore.files import Files, join
from kvstore.node.host import Host
from kvstore.node.keeper import Keeper
from kvstore.node.replica import Replica
from kvstore.node.runtime import Transport
from kvstore.node.snapshot_receiver import SnapshotReceiver
from kvstore.node.snapshot_sender import SnapshotSender
from kvstore.node.snapshots import SnapshotSettings
from kvstore.node.tablets import Tablets
from kvstore.raft.messages import Ready, SnapshotMeta, SnapshotOffer
from kvstore.store.engine import Engine
from kvstore.store.machine import Machine
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId, node_of
from kvstore.wire.snapshot_messages import (
    SnapshotChunk,
    SnapshotChunkRequest,
    SnapshotGone,
    SnapshotManifest,
    SnapshotManifestRequest,
)

log = logging.getLogger(__name__)


class SnapshotHost:
    def __init__(
        self,
        host: Host,
        transport: Transport,
        keeper: Keeper,
        tablets: Tablets,
        files: Files,
        settings: Snapshot,
        make_machine: Callable[[Engine], Machine],
    ) -> None:
        self._host = host
        self._tablets = tablets
        self._files = files
        self._make_machine = make_machine
        transfer = SnapshotSettings(
            chunk_bytes=settings.chunk_bytes, bytes_per_s=settings.bytes_per_s, keep_s=settings.keep_s
        )
        self.sender = SnapshotSender(host.runtime, transport, files, transfer, self._on_missing)
        self.receiver = SnapshotReceiver(host.runtime, transport, files, transfer, self._on_complete)
        self._making: dict[ShardId, tuple[LogIndex, set[ReplicaId]]] = {}
        """Checkpoints under way: the index they will be at least at, and who waits for them."""
        host.on_snapshots_wanted = self._on_wanted
        host.on_snapshot_offer = self._on_offer
        host.on_message |= {
            SnapshotManifestRequest: self.sender.on_manifest_request,
            SnapshotChunkRequest: self.sender.on_chunk_request,
            SnapshotManifest: self.receiver.on_manifest,
            SnapshotChunk: self.receiver.on_chunk,
            SnapshotGone: self.receiver.on_gone,
        }
        keeper.pins = self.pins
        self.installed = 0

    def pins(self) -> dict[ShardId, LogIndex]:
        """Logs that a snapshot under way needs from this index on (pitfall 18)."""
        pins = self.sender.pins()
        for shard, (index, _targets) in self._making.items():
            pins[shard] = min(index, pins.get(shard, index))
        return pins

    # ---- sending ---------------------------------------------------------------------------------

    def _on_wanted(self, replica: Replica, ready: Ready) -> None:
        for target in ready.snapshots_wanted:
            self._provide(replica, target)

    def _provide(self, replica: Replica, target: ReplicaId) -> None:
        shard = replica.shard
        kept = self.sender.kept(shard)
        if kept is not None and kept.index >= replica.core.first_index - 1:
            replica.core.offer_snapshot(target, kept)
            self._host.mark_dirty(replica)
        elif shard in self._making:
            self._making[shard][1].add(target)
        elif self.sender.has_room:
            self._make(replica, target)

    def _on_missing(self, shard: ShardId, node: NodeId) -> None:
        """A peer asks for a checkpoint that was dropped: make it another, if this replica still leads."""
        replica = self._host.replicas.get(shard)
        if replica is None or replica.led_term is None:
            return
        for member in replica.core.configuration.members():
            if node_of(member) == node:
                self._provide(replica, member)

    def _make(self, replica: Replica, target: ReplicaId) -> None:
        shard, machine = replica.shard, replica.machine
        directory = join(self._tablets.snapshots, self._tablets.fresh_name(shard, replica.incarnation))
        self._making[shard] = (LogIndex(machine.applied), {target})

        def done(meta: SnapshotMeta | None, error: BaseException | None) -> None:
            _index, targets = self._making.pop(shard)
            if meta is None:
                log.error("shard=%d no snapshot could be made: %s", shard, error)
                if not isinstance(error, DiskFull):
                    self._host.fail(error or Fatal("checkpoint failed"))
                return
            if self._host.replicas.get(shard) is replica and self.sender.offer(shard, meta, directory):
                for each in sorted(targets):
                    replica.core.offer_snapshot(each, meta)
                self._host.mark_dirty(replica)

        self._host.runtime.in_thread(lambda: machine.checkpoint(directory), done, lane="store")

    # ---- receiving -------------------------------------------------------------------------------

    def _on_offer(self, replica: Replica, offer: SnapshotOffer) -> None:
        if replica.core.offered is None:
            return
        name = self._tablets.fresh_name(replica.shard, replica.incarnation)
        self.receiver.fetch(replica.shard, node_of(offer.source), offer.snapshot, self._tablets.path(name))

    def _on_complete(self, shard: ShardId, meta: SnapshotMeta, directory: str) -> None:
        replica = self._host.replicas.get(shard)
        machine = None if replica is None else self._open(directory, meta)
        if replica is None or machine is None:
            self._discard(directory, machine)
        elif replica.core.install(meta):
            self._install(replica, machine, directory, meta)
        else:
            self._discard(directory, machine)
            self._host.mark_dirty(replica)

    def _open(self, directory: str, meta: SnapshotMeta) -> Machine | None:
        """The tablet that arrived, if it is what was promised, by its own records (pitfall 17)."""
        try:
            machine = self._make_machine(self._tablets.open_engine(directory))
        except (OSError, Fatal) as error:
            log.error("snapshot %s does not open: %s", directory, error)
            return None
        if machine.snapshot_meta() != meta:
            log.error("snapshot %s is %s, not %s", directory, machine.snapshot_meta(), meta)
            machine.close()
            return None
        return machine

    def _install(self, replica: Replica, machine: Machine, directory: str, meta: SnapshotMeta) -> None:
        name = directory.rpartition("/")[2]
        old_machine, old_directory = replica.replace_machine(machine, name, meta)
        self.installed += 1
        log.info("shard=%d installed snapshot index=%d term=%d", replica.shard, meta.index, meta.term)
        self._host.advance(replica)
        # The old tablet goes only once the record that names the new one is durable.
        self._host.log.then(lambda: self._discard(self._tablets.path(old_directory), old_machine))
        self._host.schedule_pass()

    def _discard(self, directory: str, machine: Machine | None) -> None:
        def work() -> None:
            if machine is not None:
                machine.close()
            self._files.remove_tree(directory)

        def done(_result: Any, error: BaseException | None) -> None:
            if error is not None:
                log.warning("tablet %s could not be removed: %s", directory, error)

        self._host.runtime.in_thread(work, done, lane="store")
