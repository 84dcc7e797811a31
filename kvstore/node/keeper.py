"""Housekeeping that no request waits for: flush tablets, cut logs, reclaim segments, watch the disk.

The log may be cut only below what a flush has made durable. So: capture what is applied, flush in a
thread, then cut. What slow peers still need is kept within a byte budget; past it they get a snapshot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from kvstore.errors import DiskFull
from kvstore.files import Files
from kvstore.node.host import Host
from kvstore.node.replica import Replica
from kvstore.types import Incarnation, LogIndex, ShardId

log = logging.getLogger(__name__)

MIB = 1 << 20


Needs = Mapping[tuple[ShardId, Incarnation], LogIndex]
"""The first index that each replica still needs."""


class ReclaimsLog(Protocol):
    @property
    def segment_count(self) -> int: ...

    def reclaim(
        self,
        needed: Needs,
        idle: Collection[tuple[ShardId, Incarnation]] = (),
    ) -> bool: ...


class KeeperSettings(msgspec.Struct, frozen=True):
    interval_s: float = 1.0
    memory_log_bytes_max: int = 48 * MIB
    """Log kept in memory for slow peers, all shards together."""
    unflushed_bytes_max: int = 24 * MIB
    """Entry bytes applied since the last flush, all shards together: bounds the replay at a start."""
    flush_after_s: float = 60.0
    segments_max: int = 3
    """More segments than this make the keeper flush whatever pins the oldest."""
    free_bytes_min: int = 256 * MIB


class Standing(NamedTuple):
    """What a reclaim goes by."""

    segment_count: int
    needed: Needs
    idle: Needs


class Keeper:
    def __init__(
        self,
        host: Host,
        wal: ReclaimsLog,
        files: Files,
        data: str,
        settings: KeeperSettings,
        on_read_only: Callable[[bool], None],
    ) -> None:
        self._host = host
        self._wal = wal
        self._files = files
        self._data = data
        self._settings = settings
        self._on_read_only = on_read_only
        self._is_reclaiming = False
        self._reclaimed: Standing | None = None
        """The last reclaim that left nothing to do: at rest there is no need to look again."""
        self._is_watching = False
        self.free_bytes: int | None = None
        self.pins: Callable[[], Mapping[ShardId, LogIndex]] = dict
        """Logs that a snapshot under way still needs from this index on (pitfall 18)."""
        self.halted: Callable[[], Iterable[Replica]] = tuple
        """Replicas out of service that a restart may bring back: they neither flush nor write."""

    def start(self) -> None:
        self._host.runtime.call_later(self._settings.interval_s, self._round)

    def _round(self) -> None:
        if self._host.is_stopped:
            return
        now = self._host.runtime.now()
        share = max(1, len(self._host.replicas))
        is_log_long = self._wal.segment_count > self._settings.segments_max
        for replica in self._host.replicas.values():
            unflushed = replica.unflushed_bytes
            if (
                unflushed > self._settings.unflushed_bytes_max // share
                or (unflushed and now - replica.flushed_at > self._settings.flush_after_s)
                or (unflushed and is_log_long)
            ):
                self.flush(replica)
            else:
                self.cut(replica)
        if self._wal.segment_count > 1 and self._standing() != self._reclaimed:
            # Also tells the log which entries nobody needs, so that a restart does not load them.
            self.reclaim()
        self._watch_disk()
        self._host.runtime.call_later(self._settings.interval_s, self._round)

    def flush(self, replica: Replica) -> None:
        if replica.is_flushing:
            return
        replica.is_flushing = True
        replica.flushed_at = self._host.runtime.now()
        flushing_bytes, replica.unflushed_bytes = replica.unflushed_bytes, 0
        machine = replica.machine

        def done(_result: Any, error: BaseException | None) -> None:
            replica.is_flushing = False
            if isinstance(error, DiskFull):
                log.error("shard=%d cannot be flushed, the disk is full", replica.shard)
                replica.unflushed_bytes += flushing_bytes
            elif error is not None:
                self._host.fail(error)
            elif replica.machine is machine:
                self.cut(replica)

        self._host.runtime.in_thread(machine.flush(), done, lane="store")

    def cut(self, replica: Replica) -> None:
        """Drop the part of the in-memory log that nobody needs or that costs too much to keep."""
        share = max(1, len(self._host.replicas))
        core = replica.core
        durable = replica.machine.durable_applied
        limit = min(durable, self.pins().get(replica.shard, durable))
        keep_bytes = self._settings.memory_log_bytes_max // share
        index = min(limit, core.log_index_before_last_bytes(keep_bytes))
        if index > core.first_index:
            core.compact(index)

    def reclaim(self) -> None:
        if self._is_reclaiming:
            return
        self._is_reclaiming = True
        standing = self._standing()
        needed = {**standing.needed, **standing.idle}

        def done(has_more: Any, error: BaseException | None) -> None:
            self._is_reclaiming = False
            if error is not None and not isinstance(error, DiskFull):
                self._host.fail(error)
            elif error is None and has_more and self._wal.segment_count > self._settings.segments_max:
                self.reclaim()
            elif error is None and not has_more:
                self._reclaimed = standing

        self._host.log.run(lambda: self._wal.reclaim(needed, standing.idle), done)

    def _standing(self) -> Standing:
        needed = {
            (replica.shard, replica.incarnation): LogIndex(
                min(replica.core.first_index, replica.machine.durable_applied + 1)
            )
            for replica in self._host.replicas.values()
        }
        idle = {
            (replica.shard, replica.incarnation): LogIndex(replica.machine.durable_applied + 1)
            for replica in self.halted()
        }
        return Standing(self._wal.segment_count, needed, idle)

    def _watch_disk(self) -> None:
        if self._is_watching:
            return
        self._is_watching = True

        def done(free: Any, error: BaseException | None) -> None:
            self._is_watching = False
            if error is None:
                self.free_bytes = free
                self._on_read_only(free < self._settings.free_bytes_min)

        self._host.runtime.in_thread(lambda: self._files.free_bytes(self._data), done, lane="files")
