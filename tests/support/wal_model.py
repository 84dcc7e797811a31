"""What a log must give back: a plain model of its records, and a source of random valid ones."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from random import Random

from kvstore.raft.messages import Configuration, Entry, HardState, SnapshotMeta
from kvstore.types import Incarnation, LogIndex, ReplicaId, ShardId, Term
from kvstore.wal import (
    ClockRecord,
    Entries,
    HardStateRecord,
    Key,
    Quarantined,
    Record,
    Recovered,
    ShardCreated,
    ShardDestroyed,
    SnapshotInstalled,
    Truncate,
    WalSettings,
)

SMALL = WalSettings(segment_bytes=4096, reserve_bytes=4096, zero_ahead_bytes=1024, inventory_every_bytes=2048)
"""Everything happens often: a segment holds seven sectors of batches."""

IDENTITY = b"cluster/n1"
VOTERS = Configuration(voters=(ReplicaId("n1/1"), ReplicaId("n2/1"), ReplicaId("n3/1")))


def entry(index: int, term: int = 1, payload: bytes = b"x") -> Entry:
    return Entry(LogIndex(index), Term(term), 0, payload)


def entries(shard: int, first: int, count: int = 1, term: int = 1, payload: bytes = b"x") -> Entries:
    made = tuple(entry(index, term, payload) for index in range(first, first + count))
    return Entries(ShardId(shard), Incarnation(1), made)


def created(shard: int, incarnation: int = 1) -> ShardCreated:
    return ShardCreated(ShardId(shard), Incarnation(incarnation), f"{shard}-{incarnation}", VOTERS)


def hard_state(shard: int, term: int, vote: str | None = "n1/1", commit: int = 0) -> HardStateRecord:
    chosen = None if vote is None else ReplicaId(vote)
    return HardStateRecord(ShardId(shard), Incarnation(1), Term(term), chosen, LogIndex(commit))


def installed(shard: int, index: int, term: int, directory: str = "installed") -> SnapshotInstalled:
    meta = SnapshotMeta(LogIndex(index), Term(term), VOTERS)
    return SnapshotInstalled(ShardId(shard), Incarnation(1), directory, meta)


def key(shard: int, incarnation: int = 1) -> Key:
    return ShardId(shard), Incarnation(incarnation)


@dataclass
class ModelReplica:
    created: ShardCreated
    entries: dict[int, Entry] = field(default_factory=dict)
    last: int = 0
    needed: int = 1
    hard_state: HardState = field(default_factory=HardState)
    installed: tuple[str, SnapshotMeta] | None = None
    quarantined: str | None = None
    is_destroyed: bool = False


class Model:
    def __init__(self) -> None:
        self.replicas: dict[Key, ModelReplica] = {}
        self.clocks: dict[int, int] = {}

    def copy(self) -> Model:
        return copy.deepcopy(self)

    def apply(self, records: list[Record]) -> None:
        for record in records:
            match record:
                case ClockRecord(clocks):
                    for shard, clock in clocks:
                        self.clocks[shard] = max(clock, self.clocks.get(shard, 0))
                case ShardCreated(shard, incarnation):
                    self.replicas[shard, incarnation] = ModelReplica(record)
                case Entries() | Truncate() | SnapshotInstalled() | HardStateRecord():
                    self._apply_to(self.replicas[record.shard, record.incarnation], record)
                case ShardDestroyed(shard, incarnation):
                    self.replicas[shard, incarnation].is_destroyed = True
                case Quarantined(shard, incarnation, reason):
                    self.replicas[shard, incarnation].quarantined = reason
                case _:
                    raise AssertionError(f"{record} is no record of a host")

    @staticmethod
    def _apply_to(
        replica: ModelReplica, record: Entries | Truncate | SnapshotInstalled | HardStateRecord
    ) -> None:
        match record:
            case Entries(_, _, made):
                for each in made:
                    replica.entries[each.index] = each
                replica.last = made[-1].index
            case Truncate(_, _, index):
                replica.entries = {each: replica.entries[each] for each in replica.entries if each <= index}
                replica.last = min(replica.last, index)
            case SnapshotInstalled(_, _, directory, meta):
                replica.entries.clear()
                replica.last, replica.needed = meta.index, meta.index + 1
                replica.installed = (directory, meta)
            case HardStateRecord(_, _, term, vote, commit):
                replica.hard_state = HardState(term, vote, commit)

    def need(self, needed: dict[Key, LogIndex]) -> None:
        for each, index in needed.items():
            self.replicas[each].needed = max(self.replicas[each].needed, index)

    def difference(self, recovered: Recovered, *, except_quarantined: bool = False) -> str | None:
        """Why the recovered log is not this one, or None. `except_quarantined`: a replica that was reported
        as damaged may differ, and one may be missing if the log says that it has lost track."""
        for each, replica in self.replicas.items():
            found = recovered.replicas.get(each)
            if except_quarantined and (
                recovered.has_lost_track if found is None else found.quarantined is not None
            ):
                continue
            if replica.is_destroyed:
                is_superseded = any(shard == each[0] and inc > each[1] for shard, inc in self.replicas)
                if not (found.destroyed if found else is_superseded):
                    return f"{each} came back from the dead"
            elif found is None or found.destroyed:
                return f"{each} is lost"
            elif replica.quarantined != found.quarantined:
                return f"{each} is quarantined: {found.quarantined}, should be: {replica.quarantined}"
            elif (difference := _difference(replica, found)) is not None:
                return f"{each}: {difference}"
        for each, found in recovered.replicas.items():
            if each not in self.replicas and not found.destroyed:
                return f"{each} was never created"
        if recovered.clocks != self.clocks and not (except_quarantined and recovered.damage):
            return f"clocks are {recovered.clocks}, should be {self.clocks}"
        return None


def _difference(replica: ModelReplica, found: object) -> str | None:
    from kvstore.wal import RecoveredReplica

    assert isinstance(found, RecoveredReplica)
    wanted = [replica.entries[index] for index in range(replica.needed, replica.last + 1)]
    got = [each for each in found.entries if each.index >= replica.needed]
    if wanted != got:
        return f"entries {_ranges(got)}, should be {_ranges(wanted)}"
    if found.hard_state != replica.hard_state:
        return f"{found.hard_state}, should be {replica.hard_state}"
    if found.created != replica.created:
        return f"{found.created}, should be {replica.created}"
    snapshot = None if found.installed is None else (found.installed.directory, found.installed.meta)
    if snapshot != replica.installed:
        return f"installed {snapshot}, should be {replica.installed}"
    return None


def _ranges(made: list[Entry]) -> str:
    return str([(each.index, each.term) for each in made])


class Chance:
    """Random records that a host may write in the state of the model."""

    def __init__(self, dice: Random, shards: int = 4) -> None:
        self._dice = dice
        self._shards = shards

    def batch(self, model: Model) -> list[Record]:
        model = model.copy()
        records: list[Record] = []
        for _ in range(self._dice.randint(1, 4)):
            made = self._records(model)
            model.apply(made)
            records.extend(made)
        return records

    def needed(self, model: Model) -> dict[Key, LogIndex]:
        """What `reclaim` is told: most hosts are up to date, some lag."""
        needed: dict[Key, LogIndex] = {}
        for each, replica in model.replicas.items():
            if not replica.is_destroyed and self._dice.random() < 0.8:
                lag = self._dice.choice((0, 0, 1, 3, 10))
                needed[each] = LogIndex(max(replica.needed, replica.last + 1 - lag))
        return needed

    def _records(self, model: Model) -> list[Record]:
        shard = ShardId(self._dice.randrange(self._shards))
        incarnation = max((inc for each, inc in model.replicas if each == shard), default=Incarnation(0))
        replica = model.replicas.get((shard, incarnation))
        if replica is None or replica.is_destroyed:
            return [created(shard, incarnation + 1)]
        return self._records_of(shard, incarnation, replica)

    def _records_of(self, shard: ShardId, incarnation: Incarnation, replica: ModelReplica) -> list[Record]:
        dice, term = self._dice, replica.hard_state.term
        match dice.choices(range(7), (60, 15, 8, 5, 5, 1, 6))[0]:
            case 0:
                return [self._entries(shard, incarnation, replica.last, Term(term))]
            case 1:
                new = Term(term + dice.randint(0, 2))
                vote = dice.choice((None, ReplicaId("n2/1")))
                return [HardStateRecord(shard, incarnation, new, vote, LogIndex(replica.last))]
            case 2 if replica.last >= replica.needed:
                index = LogIndex(dice.randint(replica.needed - 1, replica.last - 1))
                new = self._entries(shard, incarnation, index, Term(term + 1))
                return [Truncate(shard, incarnation, index), new]
            case 3:
                index = LogIndex(replica.last + dice.randint(1, 5))
                meta = SnapshotMeta(index, Term(term), VOTERS)
                return [SnapshotInstalled(shard, incarnation, f"dir-{dice.random()}", meta)]
            case 4:
                return [ShardDestroyed(shard, incarnation)]
            case 5 if replica.quarantined is None:
                return [Quarantined(shard, incarnation, "the tablet is damaged")]
            case _:
                return [ClockRecord(((shard, dice.randrange(10**6)),))]

    def _entries(self, shard: ShardId, incarnation: Incarnation, last: int, term: Term) -> Entries:
        dice = self._dice
        made = tuple(
            Entry(LogIndex(last + 1 + each), term, 0, dice.randbytes(dice.choice((0, 5, 60, 400))))
            for each in range(dice.randint(1, 3))
        )
        return Entries(shard, incarnation, made)
