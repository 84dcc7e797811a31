"""The receiving end of snapshots: fetches a checkpoint into a directory of its own, chunk by chunk.

The directory is named by the host, was never used before and is no replica's until the host has recorded
it in the log (pitfall 36): this code never touches a live tablet, and what it leaves behind after a crash
is debris. Every chunk is checked against the manifest before it is written; all files and directories are
synced before `on_complete`.

A fetch survives lost, repeated and reordered frames and reconnects. If the sender no longer has the
snapshot, what was fetched stays until the leader's next offer, and files that are the same there (tablet
files never change) are not fetched again (pitfall 18). A newer offer supersedes an older fetch.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import google_crc32c

from kvstore.files import Files, is_full, join, parent
from kvstore.node.runtime import Lane, Runtime, Timer, Transport
from kvstore.node.snapshots import (
    Pace,
    SnapshotSettings,
    chunk_length,
    manifest_fault,
    total_bytes,
)
from kvstore.raft.messages import SnapshotMeta
from kvstore.types import NodeId, ShardId
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

Place = tuple[int, int]
"""(file, chunk), as places in the manifest."""

FREE_BYTES_MIN = 64 << 20
"""Kept free on the disk beyond the snapshot itself."""


class Progress(NamedTuple):
    source: NodeId
    meta: SnapshotMeta
    bytes_done: int
    bytes_total: int
    """0 while the manifest has not come."""


class Fetch:
    """One shard's transfer. `round` changes whenever answers to earlier disk work are void."""

    def __init__(
        self, shard: ShardId, source: NodeId, meta: SnapshotMeta, directory: str, now: float
    ) -> None:
        self.shard = shard
        self.source = source
        self.meta = meta
        self.directory = directory
        self.manifest: SnapshotManifest | None = None
        """Of `meta`, once it has come."""
        self.leftovers: tuple[SnapshotManifest, set[Place]] | None = None
        """What the directory holds of an earlier snapshot."""
        self.owns_directory = False
        """It did not exist before: whatever happens, only then may it be removed."""
        self.is_prepared = False
        """The directory exists and holds only what the manifest names."""
        self.is_gone = False
        """The sender has dropped it: wait for the next offer."""
        self.is_finishing = False
        self.is_over = False
        self.round = 0
        self.missing: deque[Place] = deque()
        self.asked: dict[Place, float] = {}
        self.writing: set[Place] = set()
        self.written: set[Place] = set()
        self.bytes_done = 0
        self.damaged = 0
        self.turn = 0
        """Of its last request, so that fetches share the pace evenly."""
        self.manifest_asked_at = -1e9
        self.progress_at = now
        self.timeouts = 0

    @property
    def on_the_way(self) -> int:
        return len(self.asked) + len(self.writing)

    @property
    def waits_for_pace(self) -> bool:
        return self.is_prepared and not self.is_gone and bool(self.missing) and not self.on_the_way

    def on_disk(self) -> tuple[SnapshotManifest, set[Place]] | None:
        """The chunks that the directory holds, as places in the manifest they came by."""
        return (self.manifest, self.written) if self.manifest is not None else self.leftovers


class SnapshotReceiver:
    """`on_complete(shard, meta, directory)` hands over the finished directory; `on_failed(shard, reason)`
    says that a fetch was given up (its directory is removed). The leader repeats its offer, so a failed
    fetch begins again with the host's next `fetch`."""

    def __init__(
        self,
        runtime: Runtime,
        transport: Transport,
        files: Files,
        settings: SnapshotSettings,
        on_complete: Callable[[ShardId, SnapshotMeta, str], None],
        on_failed: Callable[[ShardId, str], None] = lambda shard, reason: None,
    ) -> None:
        self._runtime = runtime
        self._transport = transport
        self._files = files
        self._settings = settings
        self._on_complete = on_complete
        self._on_failed = on_failed
        self._fetches: dict[ShardId, Fetch] = {}
        self._pace = Pace(settings.bytes_per_s)
        self._turn = 0
        self._sweep_s = settings.retry_s / 2
        self._sweep_timer: Timer | None = None
        self._pump_timer: Timer | None = None
        self.bytes_received = 0

    # ---- for the host ------------------------------------------------------------------------------

    def fetch(self, shard: ShardId, source: NodeId, meta: SnapshotMeta, directory: str) -> None:
        """Fetch the snapshot `meta` from `source` into `directory`, a full path that was never used.

        Call it for every offer, also a repeated one: then it does nothing, or goes on after the sender
        had dropped the snapshot. `directory` is ignored while an earlier fetch of the shard has one.
        """
        now = self._runtime.now()
        current = self._fetches.get(shard)
        if current is None:
            self._fetches[shard] = Fetch(shard, source, meta, directory, now)
        elif current.is_finishing:
            return
        elif (current.source, current.meta) != (source, meta):
            if current.source == source and meta.index < current.meta.index:
                return
            log.info("shard=%d snapshot index=%d is superseded by %d", shard, current.meta.index, meta.index)
            self._fetches[shard] = self._successor(current, source, meta)
        elif not current.is_gone:
            return
        fetch = self._fetches[shard]
        fetch.is_gone = False
        self._ask_manifest(fetch)
        self._schedule_sweep()

    def cancel(self, shard: ShardId) -> None:
        """Stop fetching and remove what was fetched: the replica caught up by its log, or is gone."""
        fetch = self._fetches.pop(shard, None)
        if fetch is not None:
            self._discard(fetch)

    def progress(self, shard: ShardId) -> Progress | None:
        fetch = self._fetches.get(shard)
        if fetch is None:
            return None
        total = total_bytes(fetch.manifest) if fetch.manifest is not None else 0
        return Progress(fetch.source, fetch.meta, fetch.bytes_done, total)

    # ---- the manifest ------------------------------------------------------------------------------

    def on_manifest(self, node: NodeId, manifest: SnapshotManifest) -> None:
        fetch = self._fetches.get(manifest.shard)
        if fetch is None or fetch.source != node or fetch.meta != manifest.meta or fetch.is_finishing:
            return
        if fetch.manifest is not None and fetch.manifest.snapshot == manifest.snapshot:
            return
        if (fault := manifest_fault(manifest)) is not None:
            self._fail(fetch, f"manifest of node {node} is refused: {fault}")
            return
        kept = _same_places(fetch, manifest)
        fetch.manifest = manifest
        fetch.is_prepared = False
        fetch.round += 1
        fetch.asked.clear()
        fetch.writing.clear()
        fetch.written = kept
        fetch.bytes_done = sum(chunk_length(manifest, manifest.files[file], chunk) for file, chunk in kept)
        fetch.missing = deque(
            (number, chunk)
            for number, file in enumerate(manifest.files)
            for chunk in range(len(file.chunk_crcs))
            if (number, chunk) not in kept
        )
        self._note_progress(fetch)
        self._prepare(fetch, manifest, {manifest.files[file].name for file, _chunk in kept})

    def _prepare(self, fetch: Fetch, manifest: SnapshotManifest, keep: set[str]) -> None:
        needed = total_bytes(manifest) - fetch.bytes_done
        self._run(
            fetch,
            lambda: _prepare(self._files, fetch, manifest, keep, needed),
            lambda: self._prepared(fetch),
        )

    def _prepared(self, fetch: Fetch) -> None:
        fetch.is_prepared = True
        self._pump()
        self._finish_if_whole(fetch)

    def _ask_manifest(self, fetch: Fetch) -> None:
        fetch.manifest_asked_at = self._runtime.now()
        meta = fetch.meta
        self._send(fetch.source, [SnapshotManifestRequest(fetch.shard, meta.index, meta.term)])

    def on_gone(self, node: NodeId, gone: SnapshotGone) -> None:
        fetch = self._fetches.get(gone.shard)
        if fetch is None or fetch.source != node or fetch.is_finishing:
            return
        manifest = fetch.manifest
        if gone.snapshot:
            is_this = manifest is not None and manifest.snapshot == gone.snapshot
        else:
            is_this = (fetch.meta.index, fetch.meta.term) == (gone.index, gone.term)
        if is_this and not fetch.is_gone:
            log.info("shard=%d snapshot index=%d is gone at node=%s", fetch.shard, fetch.meta.index, node)
            fetch.is_gone = True
            fetch.missing.extendleft(fetch.asked)
            fetch.asked.clear()

    # ---- chunks ------------------------------------------------------------------------------------

    def on_chunk(self, node: NodeId, chunk: SnapshotChunk) -> None:
        fetch = self._fetches.get(chunk.shard)
        place = (chunk.file, chunk.chunk)
        if fetch is None or fetch.source != node or fetch.manifest is None or place not in fetch.asked:
            return
        manifest = fetch.manifest
        if manifest.snapshot != chunk.snapshot:
            return
        file = manifest.files[chunk.file]
        del fetch.asked[place]
        if (
            len(chunk.content) != chunk_length(manifest, file, chunk.chunk)
            or int(google_crc32c.value(chunk.content)) != file.chunk_crcs[chunk.chunk]
        ):
            self._on_damaged(fetch, place, file)
            return
        self.bytes_received += len(chunk.content)
        self._write(fetch, place, file, chunk.content)
        self._pump()

    def _on_damaged(self, fetch: Fetch, place: Place, file: SnapshotFile) -> None:
        fetch.damaged += 1
        log.warning("shard=%d chunk %d of %s arrived damaged", fetch.shard, place[1], file.name)
        if fetch.damaged >= self._settings.damaged_max:
            self._fail(fetch, f"node {fetch.source} sent {fetch.damaged} damaged chunks")
            return
        fetch.missing.append(place)
        self._pump()

    def _write(self, fetch: Fetch, place: Place, file: SnapshotFile, content: bytes) -> None:
        assert fetch.manifest is not None
        fetch.writing.add(place)
        path = join(fetch.directory, file.name)
        offset = place[1] * fetch.manifest.chunk_bytes

        def written() -> None:
            fetch.writing.discard(place)
            fetch.written.add(place)
            fetch.bytes_done += len(content)
            self._note_progress(fetch)
            self._pump()
            self._finish_if_whole(fetch)

        self._run(fetch, lambda: _write(self._files, path, offset, content), written)

    def _pump(self) -> None:
        """Ask for chunks while the pace allows it, each time for the fetch that has waited longest."""
        now = self._runtime.now()
        requests: dict[NodeId, list[peer.PeerMessage]] = {}
        while (fetch := self._next_fetch()) is not None:
            if (delay := self._pace.delay(now)) > 0:
                self._pump_later(delay)
                break
            manifest = fetch.manifest
            assert manifest is not None
            place = fetch.missing.popleft()
            fetch.asked[place] = now
            self._turn += 1
            fetch.turn = self._turn
            self._pace.take(now, chunk_length(manifest, manifest.files[place[0]], place[1]))
            request = SnapshotChunkRequest(fetch.shard, manifest.snapshot, *place)
            requests.setdefault(fetch.source, []).append(request)
        for node, batch in requests.items():
            self._send(node, batch)

    def _next_fetch(self) -> Fetch | None:
        able = [
            fetch
            for fetch in self._fetches.values()
            if fetch.is_prepared
            and not fetch.is_gone
            and fetch.missing
            and fetch.on_the_way < self._settings.window_chunks
        ]
        return min(able, key=lambda fetch: fetch.turn, default=None)

    def _pump_later(self, delay_s: float) -> None:
        if self._pump_timer is None:
            self._pump_timer = self._runtime.call_later(delay_s, self._pump_now)

    def _pump_now(self) -> None:
        self._pump_timer = None
        self._pump()

    # ---- the end -----------------------------------------------------------------------------------

    def _finish_if_whole(self, fetch: Fetch) -> None:
        if fetch.missing or fetch.asked or fetch.writing or not fetch.is_prepared or fetch.is_finishing:
            return
        assert fetch.manifest is not None
        fetch.is_finishing = True
        names = [file.name for file in fetch.manifest.files]
        self._run(
            fetch,
            lambda: _sync(self._files, fetch.directory, names),
            lambda: self._finished(fetch),
        )

    def _finished(self, fetch: Fetch) -> None:
        del self._fetches[fetch.shard]
        fetch.is_over = True
        log.info(
            "shard=%d snapshot index=%d term=%d fetched bytes=%d",
            fetch.shard,
            fetch.meta.index,
            fetch.meta.term,
            fetch.bytes_done,
        )
        self._on_complete(fetch.shard, fetch.meta, fetch.directory)

    def _fail(self, fetch: Fetch, reason: str) -> None:
        log.warning("shard=%d snapshot index=%d given up: %s", fetch.shard, fetch.meta.index, reason)
        del self._fetches[fetch.shard]
        self._discard(fetch)
        self._on_failed(fetch.shard, reason)

    def _discard(self, fetch: Fetch) -> None:
        """Remove what was fetched, after any disk work of the fetch that is still in the lane."""
        fetch.is_over = True
        directory = fetch.directory

        def remove() -> None:
            if fetch.owns_directory:
                self._files.remove_tree(directory)

        def removed(_result: object, error: BaseException | None) -> None:
            if error is not None:
                log.warning("debris %s could not be removed: %s", directory, error)

        self._runtime.in_thread(remove, removed, lane="files")

    def _successor(self, fetch: Fetch, source: NodeId, meta: SnapshotMeta) -> Fetch:
        """The same directory for another snapshot; `on_manifest` sorts out what of it can stay."""
        fetch.is_over = True
        heir = Fetch(fetch.shard, source, meta, fetch.directory, self._runtime.now())
        heir.leftovers = fetch.on_disk()
        heir.owns_directory = fetch.owns_directory
        return heir

    # ---- time --------------------------------------------------------------------------------------

    def _schedule_sweep(self) -> None:
        if self._sweep_timer is None and self._fetches:
            self._sweep_timer = self._runtime.call_later(self._sweep_s, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        now = self._runtime.now()
        for fetch in list(self._fetches.values()):
            if fetch.is_finishing:
                continue
            if now - fetch.progress_at > self._settings.stall_s:
                self._fail(fetch, f"no progress for {self._settings.stall_s:g} s")
            elif not fetch.is_gone:
                self._retry(fetch, now)
        self._pump()
        self._schedule_sweep()

    def _retry(self, fetch: Fetch, now: float) -> None:
        patience_s = self._settings.retry_s * 2 ** min(fetch.timeouts, 3)
        if fetch.manifest is None:
            if now - fetch.manifest_asked_at >= patience_s:
                fetch.timeouts += 1
                self._ask_manifest(fetch)
            return
        if fetch.waits_for_pace:
            # Nobody is late, and the sender must not think that nobody wants the snapshot.
            fetch.progress_at = min(now, fetch.progress_at + self._sweep_s)
            if now - fetch.manifest_asked_at >= self._settings.keep_s / 4:
                self._ask_manifest(fetch)
            return
        late = [place for place, asked_at in fetch.asked.items() if now - asked_at >= patience_s]
        if late:
            fetch.timeouts += 1
        for place in late:
            del fetch.asked[place]
            fetch.missing.appendleft(place)

    def _note_progress(self, fetch: Fetch) -> None:
        fetch.progress_at = self._runtime.now()
        fetch.timeouts = 0

    # ---- small parts -------------------------------------------------------------------------------

    def _run(self, fetch: Fetch, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Disk work of one fetch; its end is void once the fetch is over or has got another manifest."""
        number = fetch.round

        def done(_result: object, error: BaseException | None) -> None:
            if fetch.is_over or fetch.round != number:
                return
            if error is None:
                then()
            elif isinstance(error, OSError):
                full = "the disk is full: " if is_full(error) else ""
                self._fail(fetch, f"{full}{error}")
            else:
                raise error

        self._runtime.in_thread(work, done, lane="files")

    def _send(self, node: NodeId, messages: list[peer.PeerMessage]) -> None:
        self._transport.send(node, Lane.SNAPSHOT, peer.encode(messages))


def _same_places(fetch: Fetch, manifest: SnapshotManifest) -> set[Place]:
    """Chunks already on disk of files that are the same in `manifest`, as places in it."""
    on_disk = fetch.on_disk()
    if on_disk is None or on_disk[0].chunk_bytes != manifest.chunk_bytes:
        return set()
    earlier, written = on_disk
    now_at = {file: number for number, file in enumerate(manifest.files)}
    return {
        (now_at[earlier.files[number]], chunk) for number, chunk in written if earlier.files[number] in now_at
    }


def _prepare(files: Files, fetch: Fetch, manifest: SnapshotManifest, keep: set[str], needed: int) -> None:
    """Make the directory with an empty file for each name, but leave those in `keep` as they are."""
    directory = fetch.directory
    if not fetch.owns_directory:
        if files.exists(directory):
            raise FileExistsError(f"{directory} exists: a snapshot is only ever fetched into a new directory")
        fetch.owns_directory = True
    files.mkdirs(directory)
    if files.free_bytes(directory) < needed + FREE_BYTES_MIN:
        raise OSError(f"{needed} bytes of snapshot do not fit on the disk of {directory}")
    for name in files.list(directory):
        if name not in keep:
            files.remove(join(directory, name))
    for file in manifest.files:
        if file.name not in keep:
            files.create(join(directory, file.name)).close()


def _write(files: Files, path: str, offset: int, content: bytes) -> None:
    file = files.open(path)
    try:
        file.write_at(offset, content)
    finally:
        file.close()


def _sync(files: Files, directory: str, names: list[str]) -> None:
    for name in names:
        file = files.open(join(directory, name))
        try:
            file.datasync()
        finally:
            file.close()
    files.sync_dir(directory)
    files.sync_dir(parent(directory))
