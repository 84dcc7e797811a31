"""The log of a node: one sequence of batches for all its replicas, one write and one sync per batch.

Driven by one thread, which calls `append` and `reclaim`; nothing here may be called from two at once. A
batch is acknowledged by `append` returning. The first write or sync that fails poisons the log for good:
what the kernel kept of it is unknown, and asking again proves nothing (pitfall 11); only a restart, which
reads the disk again, helps. A full disk is noticed before anything is written, when a new segment's space
can't be reserved, and poisons nothing (pitfall 13).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from kvstore.errors import WalPoisoned
from kvstore.files import Files
from kvstore.types import LogIndex
from kvstore.wal import batch, reclaim
from kvstore.wal.index import Index, Place
from kvstore.wal.record import (
    Coded,
    Key,
    Quarantined,
    Record,
    encode,
)
from kvstore.wal.recovery import Tail, recover
from kvstore.wal.replay import Recovered
from kvstore.wal.segment import HEADER_BYTES, Segment
from kvstore.wal.segment_files import SegmentFiles, WalSettings


class Wal:
    """Made by `open`. The public attributes may be read from any thread."""

    def __init__(self, files: Files, segments: SegmentFiles, settings: WalSettings, index: Index, tail: Tail):
        self._files = files
        self._segments = segments
        self._settings = settings
        self._index = index
        self._active: Segment | None = None
        self._sequence = tail.next_sequence
        self._checksum = tail.checksum or 0
        self._last_segment = tail.segment
        self._since_inventory = 0
        self._poisoned: str | None = None
        self.sync_count = 0
        """Batches written and synced, hence acknowledged."""
        self.bytes_written = 0
        self.holders: tuple[Key, ...] = ()
        """Replicas whose entries kept `reclaim` from dropping the oldest segment: flush these."""

    @classmethod
    def open(
        cls, files: Files, directory: str, settings: WalSettings, identity: bytes
    ) -> tuple["Wal", Recovered]:
        """Read the log, or begin one, and be ready to append.

        `identity` says whose log this is. Replicas that damage hurt are quarantined on disk by the time
        this returns.

        Raises: Corrupt, if the log belongs to another identity. DiskFull, WalPoisoned, OSError.
        """
        files.mkdirs(directory)
        recovered, index, tail, numbers = recover(files, directory, identity)
        segments = SegmentFiles(files, directory, settings, identity)
        wal = cls(files, segments, settings, index, tail)
        with wal._poisoned_by_failure():
            wal._take_over(tail, numbers, recovered.oldest_segment)
            segments.fill_reserve()
        if recovered.damage:
            wal._write(_quarantines(index, recovered), is_own=True, wants_inventory=True)
        return wal, recovered

    @property
    def segment_count(self) -> int:
        return len(self._segments.segments)

    @property
    def oldest_segment(self) -> int:
        return self._segments.segments[0][0]

    @property
    def has_reserve(self) -> bool:
        return self._segments.has_reserve

    def append(self, records: Sequence[Record]) -> None:
        """Make the records durable as one batch: after a crash all of them are there, or none.

        Raises: WalPoisoned, now and for ever, once a write or sync has failed; whether this batch will be
        found after a restart is unknown. DiskFull, if there is no room: nothing was written, and a later
        call may succeed.
        """
        if records:
            self._write(records)

    def reclaim(self, needed: Mapping[Key, LogIndex], idle: Collection[Key] = ()) -> bool:
        """Give up entries below the first index that each replica still needs, and drop segments that
        nobody needs. A replica that is not named keeps all it has. `idle` ones will not need less before a
        restart: what they have is copied, however much. True: there is more to do than one call may read.

        Raises: as `append`; Corrupt, if something old that is needed can't be read any more.
        """
        self._refuse_if_poisoned()
        self._index.drop_below(needed)
        budget = reclaim.READ_BYTES_MAX
        while budget > 0 and self.segment_count > 1:
            number, capacity = self._segments.segments[0]
            if not reclaim.is_worth_copying(self._index, number, capacity, idle):
                break
            path = self._segments.path(number)
            entries, budget, is_all = reclaim.live_entries(self._files, path, self._index, number, budget)
            if is_all:
                lasting = reclaim.lasting_records(self._index, number)
                following = self._segments.segments[1][0]
                self._write([*lasting, *entries], is_own=True, wants_inventory=True, oldest=following)
                with self._poisoned_by_failure():
                    self._segments.retire()
            elif entries:
                self._write(entries, is_own=True)
        with self._poisoned_by_failure():
            self._segments.fill_reserve()
        self.holders = reclaim.holders(self._index, self.oldest_segment) if self.segment_count > 1 else ()
        return budget <= 0

    def close(self) -> None:
        if self._active is not None:
            self._active.close()
            self._active = None
        self._poisoned = self._poisoned or "it is closed"

    def _take_over(self, tail: Tail, numbers: Sequence[int], oldest: int) -> None:
        self._segments.adopt(numbers, oldest)
        if tail.last_batch is not None:
            # A process that died before its sync, or whose sync failed, leaves a last batch that is whole in
            # the page cache and maybe nowhere else. From now on it counts as durable, so make it so.
            offset, content = tail.last_batch
            file = self._files.open(self._segments.path(tail.segment))
            file.write_at(offset, content)
            file.datasync()
            file.close()
        if tail.header is None:
            self._roll(HEADER_BYTES + batch.byte_count(1, 0), is_own=True)
        else:
            file = self._files.open(self._segments.path(tail.segment))
            self._active = Segment(file, tail.header, tail.offset, self._settings.zero_ahead_bytes)

    def _write(
        self,
        records: Sequence[Record],
        *,
        is_own: bool = False,
        wants_inventory: bool = False,
        oldest: int | None = None,
    ) -> None:
        """`is_own`: the log's own need, which may use the reserve. `oldest`: the oldest segment from now."""
        self._refuse_if_poisoned()
        numbers = self._index.number_records(records)
        coded = [encode(record) for record in records]
        if wants_inventory or self._needs_inventory() or not self._has_room(_byte_count(coded)):
            inventory = self._index.inventory(self.oldest_segment if oldest is None else oldest)
            coded.insert(0, encode(inventory))
            numbers.insert(0, 0)
            records = [inventory, *records]
            if not self._has_room(_byte_count(coded)):
                self._roll(HEADER_BYTES + _byte_count(coded), is_own=is_own)
            self._since_inventory = 0
        place = self._write_batch(coded, numbers)
        for record, number, each in zip(records, numbers, coded, strict=True):
            self._index.note(record, number, len(each[5]), place)

    def _needs_inventory(self) -> bool:
        """Every segment begins with one, also if a crash left it empty."""
        segment = self._active
        is_late = self._since_inventory >= self._settings.inventory_every_bytes
        return is_late or (segment is not None and segment.offset == HEADER_BYTES)

    def _has_room(self, count: int) -> bool:
        return self._active is not None and self._active.has_room(count)

    def _write_batch(self, coded: list[Coded], numbers: list[int]) -> Place:
        segment = self._active
        assert segment is not None, "no segment to write to"
        rows = list(map(batch.row, coded, numbers))
        payloads = [each[5] for each in coded]
        content, checksum = batch.encode(segment.header.nonce, self._sequence, self._checksum, rows, payloads)
        offset = segment.offset
        try:
            segment.append(content)
        except OSError as error:
            raise self._poison(error) from error
        place = Place(segment.header.number, offset, segment.offset, self._sequence)
        self._sequence += 1
        self._checksum = checksum
        self._since_inventory += len(content)
        self.sync_count += 1
        self.bytes_written += len(content)
        return place

    def _roll(self, needed: int, *, is_own: bool) -> None:
        with self._poisoned_by_failure():
            number = self._last_segment + 1
            segment = self._segments.make(number, self._sequence, needed, is_own=is_own)
            if self._active is not None:
                self._active.close()
            self._active, self._last_segment = segment, number

    @contextmanager
    def _poisoned_by_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._poison(error) from error

    def _poison(self, error: OSError) -> WalPoisoned:
        self._poisoned = str(error)
        return WalPoisoned(f"the log failed to write: {error}")

    def _refuse_if_poisoned(self) -> None:
        if self._poisoned is not None:
            raise WalPoisoned(f"the log takes no more writes: {self._poisoned}")


def _byte_count(coded: list[Coded]) -> int:
    return batch.byte_count(len(coded), sum([len(each[5]) for each in coded]))


def _quarantines(index: Index, recovered: Recovered) -> list[Record]:
    """A mark for each replica that damage hurt and that has none yet."""
    return [
        Quarantined(*key, replica.quarantined)
        for key, replica in recovered.replicas.items()
        if replica.quarantined is not None and Quarantined not in index.replicas[key].newest
    ]
