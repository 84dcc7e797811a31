"""What the records of a log mean, taken in the order they were written.

Keeps per replica the entries that are alive, and works out whom damage hurt: record numbers without a
gap across the damage, or an inventory that agrees, clear a replica; the rest is quarantined
(see `recovery.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kvstore.raft.messages import Entry, HardState
from kvstore.types import Incarnation, LogIndex, ShardId
from kvstore.wal.batch import Batch, Row, record_of
from kvstore.wal.index import Index, Place, ReplicaIndex
from kvstore.wal.record import (
    CLOCK,
    ENTRIES,
    INVENTORY,
    KIND_NAMES,
    ClockRecord,
    Entries,
    HardStateRecord,
    Inventory,
    InventoryLine,
    Key,
    Quarantined,
    Relocated,
    ReplicaRecord,
    ShardCreated,
    SnapshotInstalled,
    Truncate,
    decode_entries,
    entry_count,
)


@dataclass(slots=True)
class RecoveredReplica:
    hard_state: HardState = field(default_factory=HardState)
    entries: list[Entry] = field(default_factory=list)
    """Contiguous, from the first that its host still needs; of a quarantined replica, up to the damage."""
    installed: SnapshotInstalled | None = None
    created: ShardCreated | None = None
    quarantined: str | None = None
    """Why it must neither vote nor acknowledge. On disk by the time the log is open."""
    destroyed: bool = False


@dataclass(slots=True)
class Recovered:
    replicas: dict[Key, RecoveredReplica] = field(default_factory=dict)
    clocks: dict[ShardId, int] = field(default_factory=dict)
    torn_bytes: int = 0
    """Length of the unacknowledged batch that was cut, as far as it can be told."""
    damage: list[str] = field(default_factory=list)
    """Each damaged place, for the operator. Replicas that it hurt are quarantined."""
    has_lost_track: bool = False
    """Damage, now or earlier, may have swallowed every trace of some replica: a replica that this log does
    not know must not be taken for one that never was."""
    is_new: bool = False
    """There was no log. Wrong for a node that was a member before."""
    oldest_segment: int = 0
    """Segments with lower numbers are garbage that a crash left."""


@dataclass(slots=True)
class Held:
    """Entries of one replica while the log is read."""

    index: ReplicaIndex
    floor: int = 0
    """Entries below are checked like all others but not kept."""
    entries: list[Entry] = field(default_factory=list)
    """A contiguous run that ends at the replica's last index; may be empty."""
    filled: dict[int, Entry] = field(default_factory=dict)
    """Relocated entries below that run."""
    voids: list[tuple[int, int]] = field(default_factory=list)
    """(sequence, index): entries above index from batches before sequence are void."""
    hurt: str | None = None
    unsure: str | None = None
    """Damage that the replica has not been cleared of yet."""

    def extend(self, row: Row, payload: bytes, place: Place) -> bool:
        """The short way for nearly all records of a log: entries that follow, of a replica in good health.
        False: it is not that simple."""
        _, _, _, payload_bytes, number, _, first, _ = row
        index = self.index
        if (
            number != index.number + 1
            or first != index.last + 1
            or self.hurt is not None
            or self.unsure is not None
            or index.is_destroyed
        ):
            return False
        index.number = number
        if first < self.floor and (last := first + entry_count(payload) - 1) < self.floor:
            index.last = last
            return True
        entries = decode_entries(payload)
        self.entries.extend(entries)
        index.add(first, first + len(entries) - 1, payload_bytes, place)
        return True

    def take(self, record: ReplicaRecord, last: int, place: Place) -> str | None:
        """Apply one record to the entries; the answer says why it can't be right."""
        match record:
            case Entries(_, _, entries):
                if entries[0].index != last + 1:
                    return f"entries from {entries[0].index} on follow index {last}"
                self.entries.extend(entries)
            case Truncate(_, _, index):
                self.voids.append((place.sequence, index))
                self.keep_up_to(index)
            case SnapshotInstalled(_, _, _, _, origin):
                if not origin:
                    self.voids.append((place.sequence, 0))
                    self.keep_up_to(0)
            case Relocated(_, _, _, entries):
                return self._fill(entries)
        return None

    def _fill(self, entries: Sequence[Entry]) -> str | None:
        base = self.entries[0].index if self.entries else None
        for entry in entries:
            here = self.filled.get(entry.index)
            if base is not None and base <= entry.index <= self.entries[-1].index:
                here = self.entries[entry.index - base]
            if here is None:
                self.filled[entry.index] = entry
            elif here.term != entry.term:
                return f"entry {entry.index} of term {here.term} has a copy of term {entry.term}"
        return None

    def alive(self, record: Relocated) -> Relocated | None:
        """The record without the entries that became void after the batch it copies from."""
        limit = min((index for sequence, index in self.voids if sequence > record.origin), default=None)
        if limit is None or limit >= record.entries[-1].index:
            return record
        entries = tuple(entry for entry in record.entries if entry.index <= limit)
        return Relocated(record.shard, record.incarnation, record.origin, entries) if entries else None

    def keep_up_to(self, index: int) -> None:
        if self.entries:
            del self.entries[max(0, index + 1 - self.entries[0].index) :]
        for each in [each for each in self.filled if each > index]:
            del self.filled[each]

    def keep_from(self, index: int) -> None:
        if self.entries and self.entries[0].index < index:
            del self.entries[: index - self.entries[0].index]
        for each in [each for each in self.filled if each < index]:
            del self.filled[each]

    def from_first(self, first: int) -> list[Entry]:
        """All entries from `first` on that follow each other."""
        run: list[Entry] = []
        base = self.entries[0].index if self.entries else None
        while (base is None or first < base) and first in self.filled:
            run.append(self.filled[LogIndex(first)])
            first += 1
        if base is not None and base <= first:
            run.extend(self.entries[first - base :])
        return run


class Replay:
    """`floors`: first index that each replica needs, from an inventory that is still to come. Entries below
    are checked like all others but not kept, which is most of the work and memory of a long log."""

    def __init__(self, floors: Mapping[Key, LogIndex] | None = None) -> None:
        self.index = Index()
        self._floors = floors or {}
        self.damage: list[str] = []
        self.torn_bytes = 0
        self._held: dict[Key, Held] = {}
        self._is_first_batch = True
        self._is_blind = False
        """Since the last damage no inventory has said which replicas there are."""
        self._oldest_segment = 0

    def damaged(self, what: str) -> None:
        """Some records are lost here, and nothing says whose."""
        self.damage.append(what)
        self._is_first_batch = False
        self._is_blind = True
        for key, replica in self.index.replicas.items():
            if not replica.is_destroyed:
                self._held[key].unsure = what

    def replay(
        self, batch: Batch, payloads: list[bytes | None], place: Place, *, is_whole: bool = False
    ) -> None:
        """Take one batch; a payload that could not be read is None. `is_whole`: surely none is."""
        if not is_whole and None in payloads:
            self._hurt_by_rows(batch, payloads, place)
        held_of: Callable[[tuple[int, int]], Held | None] = self._held.get  # type: ignore[assignment]
        for row, payload in zip(batch.rows, payloads, strict=True):
            if payload is None:
                continue
            if row[0] == ENTRIES:
                held = held_of(row[1:3])
                if held is not None and held.extend(row, payload, place):
                    continue
            record = record_of(row, payload)
            if isinstance(record, Inventory):
                self._compare(record)
            elif isinstance(record, ClockRecord):
                self.index.note(record, 0, 0, place)
            else:
                self._apply(record, row, place)
        self._is_first_batch = False

    def _hurt_by_rows(self, batch: Batch, payloads: list[bytes | None], place: Place) -> None:
        for (kind, shard, incarnation, _, number, _, _, _), payload in zip(batch.rows, payloads, strict=True):
            if payload is not None:
                continue
            where = f"segment {place.segment} at {place.offset}"
            if kind == INVENTORY and self._is_first_batch:
                self.damaged(f"{where}: the first inventory is damaged")
            elif kind in (INVENTORY, CLOCK):
                self.damage.append(f"{where}: {KIND_NAMES[kind]} record is damaged, no replica is")
            else:
                what = f"{where}: {KIND_NAMES.get(kind, kind)} record of shard {shard} is damaged"
                self.damage.append(what)
                key = (ShardId(shard), Incarnation(incarnation))
                self._hurt(key, what)
                self.index.replica(key).number = number

    def _hurt(self, key: Key, why: str) -> None:
        held = self._hold(key)
        if held.hurt is None:
            held.hurt = why

    def _hold(self, key: Key) -> Held:
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = Held(self.index.replica(key), self._floors.get(key, 0))
        return held

    def _apply(self, record: ReplicaRecord, row: Row, place: Place) -> None:
        key, number = (record.shard, record.incarnation), row[4]
        held = self._hold(key)
        replica = held.index
        if number == replica.number + 1:
            held.unsure = None
        elif held.hurt is None:
            held.hurt = held.unsure or f"records {replica.number + 1} to {number - 1} are missing"
        if isinstance(record, Relocated):
            alive = held.alive(record)
            if alive is None:
                replica.number = number
                return
            record = alive
        if held.hurt is None:
            held.hurt = held.take(record, replica.last, place)
        if held.hurt is None or not isinstance(record, (Entries, Truncate, Relocated)):
            self.index.note(record, number, row[3], place)
        else:
            replica.number = number
        if replica.is_destroyed:
            self._held[key] = Held(replica)

    def _compare(self, inventory: Inventory) -> None:
        """Check what has been read against what must be there."""
        listed: set[Key] = set()
        for line in inventory.replicas:
            key = (line.shard, line.incarnation)
            listed.add(key)
            if key in self.index.replicas:
                self._compare_line(key, line)
            else:
                replica = self.index.replicas[key] = ReplicaIndex(line.number, line.first, line.last)
                replica.is_destroyed = line.is_destroyed
                self._hold(key)
                if not self._is_first_batch and not line.is_destroyed:
                    self._hurt(key, "every record of it is lost")
        for key, replica in self.index.replicas.items():
            if key not in listed and not replica.is_destroyed:
                self._hurt(key, "its destruction, or what followed it, is lost")
        self._is_blind = False
        self._oldest_segment = inventory.oldest_segment
        self.index.has_lost_track |= inventory.has_lost_track

    def _compare_line(self, key: Key, line: InventoryLine) -> None:
        replica, held = self.index.replicas[key], self._held[key]
        if replica.is_destroyed:
            return
        if replica.number != line.number:
            self._hurt(key, held.unsure or f"records {replica.number + 1} to {line.number} are missing")
            replica.number = line.number
        held.unsure = None
        if held.hurt is None:
            replica.drop_below(line.first)
            held.keep_from(replica.first)

    def check_oldest(self, segments: Sequence[int]) -> None:
        if segments and segments[0] > self._oldest_segment > 0:
            self.damaged(f"segments {self._oldest_segment} to {segments[0] - 1} are missing")

    def finish(self) -> Recovered:
        self.index.has_lost_track |= self._is_blind
        replicas = {key: self._finish(key, replica) for key, replica in self.index.replicas.items()}
        return Recovered(
            replicas,
            dict(self.index.clocks),
            self.torn_bytes,
            self.damage,
            self.index.has_lost_track,
            is_new=False,
            oldest_segment=self._oldest_segment,
        )

    def _finish(self, key: Key, replica: ReplicaIndex) -> RecoveredReplica:
        if replica.is_destroyed:
            return RecoveredReplica(destroyed=True)
        held, newest = self._held[key], {kind: each.record for kind, each in replica.newest.items()}
        entries = held.from_first(replica.first)
        hard, created = newest.get(HardStateRecord), newest.get(ShardCreated)
        installed, quarantined = newest.get(SnapshotInstalled), newest.get(Quarantined)
        assert hard is None or isinstance(hard, HardStateRecord)
        assert created is None or isinstance(created, ShardCreated)
        assert installed is None or isinstance(installed, SnapshotInstalled)
        if held.hurt is None:
            held.hurt = held.unsure
        if held.hurt is None and replica.first + len(entries) != replica.last + 1:
            held.hurt = f"entries from {replica.first + len(entries)} on are missing"
        if held.hurt is None and created is None:
            held.hurt = "its creation is missing"
        if isinstance(quarantined, Quarantined):
            held.hurt = quarantined.reason
        return RecoveredReplica(
            HardState() if hard is None else HardState(hard.term, hard.vote, hard.commit),
            entries,
            installed,
            created,
            held.hurt,
        )
