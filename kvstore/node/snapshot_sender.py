"""The sending end of snapshots: keeps checkpoints for a while and answers requests from them.

The host makes a checkpoint and hands it over with `offer`; from then on its directory belongs to the
sender, which removes it when a newer one comes, when nobody has asked for `keep_s`, or when the node
stops. Files are addressed by their place in the manifest, so no request can name another path. All disk
work runs in the "files" lane, one piece at a time, so that a removal never overtakes a read.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import google_crc32c

from kvstore.files import Files, join
from kvstore.node.runtime import Lane, Runtime, Transport
from kvstore.node.snapshots import Pace, SnapshotSettings, chunk_count, chunk_length
from kvstore.raft.messages import SnapshotMeta
from kvstore.types import LogIndex, NodeId, ShardId, Term
from kvstore.wire import peer
from kvstore.wire.snapshot_messages import (
    SnapshotChunk,
    SnapshotChunkRequest,
    SnapshotFile,
    SnapshotGone,
    SnapshotManifest,
    SnapshotManifestRequest,
)

log = logging.getLogger(__name__)

WAITING_MAX = 256
"""Chunk requests that may wait for the disk and the pace; more are dropped, and asked again."""


class Kept:
    """One checkpoint on offer."""

    def __init__(
        self, shard: ShardId, meta: SnapshotMeta, directory: str, snapshot: bytes, now: float
    ) -> None:
        self.shard = shard
        self.meta = meta
        self.directory = directory
        self.snapshot = snapshot
        self.manifest: SnapshotManifest | None = None
        self.waiting_for_manifest: set[NodeId] = set()
        self.used_at = now
        self.is_dropped = False


class SnapshotSender:
    """`on_missing(shard, node)` is called when a peer asks for a snapshot that is not kept (any more): the
    host may make a new one and offer it. `directory` arguments are full paths."""

    def __init__(
        self,
        runtime: Runtime,
        transport: Transport,
        files: Files,
        settings: SnapshotSettings,
        on_missing: Callable[[ShardId, NodeId], None] = lambda shard, node: None,
    ) -> None:
        self._runtime = runtime
        self._transport = transport
        self._files = files
        self._settings = settings
        self._on_missing = on_missing
        self._kept: dict[ShardId, Kept] = {}
        self._pace = Pace(settings.bytes_per_s)
        self._waiting: deque[tuple[NodeId, SnapshotChunkRequest]] = deque()
        self._is_reading = False
        self._is_sweeping = False
        self._is_closed = False
        self.bytes_sent = 0

    # ---- for the host ------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether an `offer` for a new shard would be taken."""
        return len(self._kept) < self._settings.kept_max or self._idlest() is not None

    def offer(self, shard: ShardId, meta: SnapshotMeta, directory: str) -> bool:
        """Take over a checkpoint. False: too many are in use; the directory is removed all the same."""
        if self._is_closed:
            return False
        if shard in self._kept:
            self.drop(shard)
        elif len(self._kept) >= self._settings.kept_max:
            idle = self._idlest()
            if idle is None:
                self._remove(directory)
                return False
            self.drop(idle.shard)
        kept = Kept(shard, meta, directory, self._runtime.dice.randbytes(16), self._runtime.now())
        self._kept[shard] = kept
        self._runtime.in_thread(
            lambda: self._files.list(directory),
            lambda names, error: self._listed(kept, names, error),
            lane="files",
        )
        self._schedule_sweep()
        return True

    def kept(self, shard: ShardId) -> SnapshotMeta | None:
        """The checkpoint on offer for `shard`, which another peer may as well be offered."""
        kept = self._kept.get(shard)
        return kept.meta if kept is not None else None

    def pins(self) -> dict[ShardId, LogIndex]:
        """For each shard the index of its kept checkpoint: whoever fetches it will need the log from
        there on, so the log should not be cut above it (pitfall 18). Pins end with `keep_s`."""
        return {shard: kept.meta.index for shard, kept in self._kept.items()}

    def drop(self, shard: ShardId) -> None:
        kept = self._kept.pop(shard, None)
        if kept is not None:
            kept.is_dropped = True
            self._remove(kept.directory)

    def close(self) -> None:
        for shard in list(self._kept):
            self.drop(shard)
        self._is_closed = True

    # ---- requests ----------------------------------------------------------------------------------

    def on_manifest_request(self, node: NodeId, request: SnapshotManifestRequest) -> None:
        kept = self._kept.get(request.shard)
        if kept is None or (kept.meta.index, kept.meta.term) != (request.index, request.term):
            self._send(node, SnapshotGone(request.shard, request.index, request.term, b""))
            self._on_missing(request.shard, node)
            return
        kept.used_at = self._runtime.now()
        if kept.manifest is None:
            kept.waiting_for_manifest.add(node)
        else:
            self._send(node, kept.manifest)

    def on_chunk_request(self, node: NodeId, request: SnapshotChunkRequest) -> None:
        if self._find(request) is None:
            self._gone(node, request)
            return
        job = (node, request)
        if job not in self._waiting and len(self._waiting) < WAITING_MAX:
            self._waiting.append(job)
            self._read_next()

    def _find(self, request: SnapshotChunkRequest) -> tuple[Kept, SnapshotManifest, SnapshotFile] | None:
        kept = self._kept.get(request.shard)
        if kept is None or kept.snapshot != request.snapshot or kept.manifest is None:
            return None
        if request.file >= len(kept.manifest.files):
            return None
        file = kept.manifest.files[request.file]
        return (kept, kept.manifest, file) if request.chunk < len(file.chunk_crcs) else None

    def _read_next(self) -> None:
        """One read at a time: the pace is per node, and the lane is shared with the receiver's writes."""
        if self._is_reading or not self._waiting or self._is_closed:
            return
        now = self._runtime.now()
        if (delay := self._pace.delay(now)) > 0:
            self._is_reading = True
            self._runtime.call_later(delay, self._paced)
            return
        node, request = self._waiting.popleft()
        found = self._find(request)
        if found is None:
            self._gone(node, request)
            self._read_next()
            return
        kept, manifest, file = found
        kept.used_at = now
        path = join(kept.directory, file.name)
        offset, length = request.chunk * manifest.chunk_bytes, chunk_length(manifest, file, request.chunk)
        self._pace.take(now, length)
        self._is_reading = True
        self._runtime.in_thread(
            lambda: _read(self._files, path, offset, length),
            lambda content, error: self._read(node, request, kept, content, error),
            lane="files",
        )

    def _paced(self) -> None:
        self._is_reading = False
        self._read_next()

    def _read(
        self,
        node: NodeId,
        request: SnapshotChunkRequest,
        kept: Kept,
        content: bytes,
        error: BaseException | None,
    ) -> None:
        self._is_reading = False
        if error is not None:
            self._fail(kept, error)
        elif not kept.is_dropped:
            self.bytes_sent += len(content)
            self._send(
                node,
                SnapshotChunk(request.shard, request.snapshot, request.file, request.chunk, content),
            )
        self._read_next()

    def _gone(self, node: NodeId, request: SnapshotChunkRequest) -> None:
        self._send(node, SnapshotGone(request.shard, LogIndex(0), Term(0), request.snapshot))

    # ---- the manifest ------------------------------------------------------------------------------

    def _listed(self, kept: Kept, names: list[str], error: BaseException | None) -> None:
        if error is not None:
            self._fail(kept, error)
        else:
            self._checksum(kept, deque(sorted(names)), [])

    def _checksum(self, kept: Kept, names: deque[str], done: list[SnapshotFile]) -> None:
        """One file per piece of work, so that other users of the lane get their turn in between."""
        if kept.is_dropped:
            return
        if not names:
            self._complete(kept, done)
            return
        name, chunk_bytes = names.popleft(), self._settings.chunk_bytes

        def checked(file: SnapshotFile, error: BaseException | None) -> None:
            if error is not None:
                self._fail(kept, error)
            else:
                done.append(file)
                self._checksum(kept, names, done)

        path = join(kept.directory, name)
        self._runtime.in_thread(
            lambda: _describe(self._files, path, name, chunk_bytes), checked, lane="files"
        )

    def _complete(self, kept: Kept, files: list[SnapshotFile]) -> None:
        kept.manifest = SnapshotManifest(
            kept.shard, kept.snapshot, kept.meta, self._settings.chunk_bytes, tuple(files)
        )
        kept.used_at = self._runtime.now()
        for node in sorted(kept.waiting_for_manifest):
            self._send(node, kept.manifest)
        kept.waiting_for_manifest.clear()

    # ---- small parts -------------------------------------------------------------------------------

    def _fail(self, kept: Kept, error: BaseException) -> None:
        if kept.is_dropped:
            return
        log.warning("shard=%d snapshot index=%d cannot be read: %s", kept.shard, kept.meta.index, error)
        for node in kept.waiting_for_manifest:
            self._send(node, SnapshotGone(kept.shard, kept.meta.index, kept.meta.term, b""))
        self.drop(kept.shard)

    def _send(self, node: NodeId, message: peer.PeerMessage) -> None:
        self._transport.send(node, Lane.SNAPSHOT, peer.encode([message]))

    def _remove(self, directory: str) -> None:
        def removed(_result: object, error: BaseException | None) -> None:
            if error is not None:
                log.warning("checkpoint %s could not be removed: %s", directory, error)

        self._runtime.in_thread(lambda: self._files.remove_tree(directory), removed, lane="files")

    def _idlest(self) -> Kept | None:
        """The checkpoint that has been idle longest, if long enough to make room by it."""
        idle_since = self._runtime.now() - self._settings.stall_s
        idle = [kept for kept in self._kept.values() if kept.used_at < idle_since]
        return min(idle, key=lambda kept: kept.used_at, default=None)

    def _schedule_sweep(self) -> None:
        if not self._is_sweeping:
            self._is_sweeping = True
            self._runtime.call_later(self._settings.keep_s / 4, self._sweep)

    def _sweep(self) -> None:
        self._is_sweeping = False
        unused_since = self._runtime.now() - self._settings.keep_s
        wanted = {request.shard for _node, request in self._waiting}
        for kept in list(self._kept.values()):
            if kept.used_at <= unused_since and kept.shard not in wanted:
                log.info("shard=%d snapshot index=%d dropped: unused", kept.shard, kept.meta.index)
                self.drop(kept.shard)
        if self._kept:
            self._schedule_sweep()


def _describe(files: Files, path: str, name: str, chunk_bytes: int) -> SnapshotFile:
    count = files.byte_count(path)
    file = files.open(path)
    try:
        crcs = tuple(
            int(google_crc32c.value(file.read_at(chunk * chunk_bytes, chunk_bytes)))
            for chunk in range(chunk_count(count, chunk_bytes))
        )
    finally:
        file.close()
    return SnapshotFile(name, count, crcs)


def _read(files: Files, path: str, offset: int, length: int) -> bytes:
    file = files.open(path)
    try:
        return file.read_at(offset, length)
    finally:
        file.close()
