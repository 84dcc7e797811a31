"""Group commit: all shards' records of a pass become one batch, one write and one sync.

While a batch is on its way to the disk, what arrives meanwhile forms the next one; there are no timers.
A failed write or sync is final: the log is poisoned and the node must stop (fsyncgate).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from kvstore.errors import DiskFull
from kvstore.node.replica import Replica
from kvstore.node.runtime import Runtime
from kvstore.raft.messages import Message
from kvstore.wal import Entries, Record

DISK_FULL_RETRY_S = 0.5
INLINE_BYTES_MAX = 2048
"""Entry payload of a batch that may be synced on the loop: about what one or two callers wait for."""
SYNCS_AVERAGED = 8


class AppendsRecords(Protocol):
    def append(self, records: Sequence[Record]) -> None: ...


class Promise(NamedTuple):
    """What a replica may say once its Ready `number` is on disk."""

    replica: Replica
    number: int
    messages: tuple[Message, ...]


class LogWriter:
    """Owns the order of batches. `on_synced` gets the promises of a batch once it is durable.
    `inline_sync_s`: while syncs take less, small batches are synced on the loop; 0 never."""

    def __init__(
        self,
        runtime: Runtime,
        wal: AppendsRecords,
        on_synced: Callable[[list[Promise]], None],
        on_fatal: Callable[[BaseException], None],
        inline_sync_s: float = 0.0,
    ) -> None:
        self._runtime = runtime
        self._wal = wal
        self._on_synced = on_synced
        self._on_fatal = on_fatal
        self._inline_sync_s = inline_sync_s
        self._sync_s = 0.0
        """Moving average of a write and sync."""
        self._lane_jobs = 0
        self._records: list[Record] = []
        self._record_bytes = 0
        self._promises: list[Promise] = []
        self._callbacks: list[Callable[[], None]] = []
        self.is_busy = False
        self.is_dead = False
        self.is_disk_full = False
        self.busy_since: float | None = None
        """When the oldest unsynced batch was handed over: a hung disk shows here."""
        self.batches = 0

    def add(self, records: Sequence[Record], promise: Promise | None) -> None:
        self._records.extend(records)
        for record in records:
            if isinstance(record, Entries):
                self._record_bytes += sum(len(entry.payload) for entry in record.entries)
        if promise is not None:
            self._promises.append(promise)

    def then(self, callback: Callable[[], None]) -> None:
        """Call back once everything added so far is durable."""
        self._callbacks.append(callback)

    @property
    def is_pending(self) -> bool:
        return bool(self._records or self._promises or self._callbacks)

    @property
    def prefers_loop(self) -> bool:
        """Whether what waits is so little, and the disk so fast, that two thread switches cost more than
        a sync on the loop. A disk that begins to stall blocks the loop once, then threads are used again."""
        return (
            self._record_bytes <= INLINE_BYTES_MAX
            and self._sync_s < self._inline_sync_s
            and not self._lane_jobs
        )

    def flush(self) -> None:
        """Hand what waits to the disk, unless a batch is on its way already."""
        if self.is_busy or self.is_dead or not self.is_pending:
            return
        records, self._records = self._records, []
        promises, self._promises = self._promises, []
        callbacks, self._callbacks = self._callbacks, []
        is_inline = self.prefers_loop
        self._record_bytes = 0
        self.is_busy = True
        self.busy_since = self._runtime.now()
        self._submit(records, promises, callbacks, is_inline=is_inline)

    def _submit(
        self,
        records: list[Record],
        promises: list[Promise],
        callbacks: list[Callable[[], None]],
        *,
        is_inline: bool = False,
    ) -> None:
        def append() -> float:
            started = self._runtime.now()
            self._wal.append(records)
            return self._runtime.now() - started

        def done(seconds: float | None, error: BaseException | None) -> None:
            if error is None:
                self._sync_s += ((seconds or 0.0) - self._sync_s) / SYNCS_AVERAGED
                self._completed(promises, callbacks)
            elif isinstance(error, DiskFull):
                # Nothing was written, so nothing is in doubt: hold the batch until there is space.
                self.is_disk_full = True
                self._runtime.call_later(DISK_FULL_RETRY_S, self._submit, records, promises, callbacks)
            else:
                self.is_dead = True
                self._on_fatal(error)

        if not is_inline:
            self._runtime.in_thread(append, done, lane="wal")
            return
        try:
            seconds = append()
        except Exception as error:  # noqa: BLE001 - the same errors a thread would hand over
            done(None, error)
        else:
            done(seconds, None)

    def run(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Other work on the log, in the thread and order of its batches."""
        self._lane_jobs += 1

        def finished(result: Any, error: BaseException | None) -> None:
            self._lane_jobs -= 1
            done(result, error)

        self._runtime.in_thread(work, finished, lane="wal")

    def _completed(self, promises: list[Promise], callbacks: list[Callable[[], None]]) -> None:
        self.is_busy = False
        self.is_disk_full = False
        self.busy_since = None
        self.batches += 1
        for callback in callbacks:
            callback()
        self._on_synced(promises)

    def busy_s(self, now: float) -> float:
        return 0.0 if self.busy_since is None else now - self.busy_since
