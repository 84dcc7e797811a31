"""What one record of the log can say, and its bytes.

A record belongs to one replica, but for `ClockRecord` and `Inventory`, which speak for the node. Its row
(fixed width, one table per batch) carries type, replica, number, term, index and the payload's length and
checksum; the payload is msgpack. `number` counts the records ever written for that replica: a gap in it
shows that a damaged part of the log held something of this replica. The format is in
`docs/data_on_disk.md`; a type code once given is never used for anything else.
"""

import struct
from typing import Final

import msgspec

from kvstore.errors import Corrupt
from kvstore.raft.messages import Configuration, Entry, SnapshotMeta
from kvstore.types import Incarnation, LogIndex, ReplicaId, ShardId, Term

ENTRIES: Final = 1
HARD_STATE: Final = 2
TRUNCATE: Final = 3
SNAPSHOT_INSTALLED: Final = 4
SHARD_CREATED: Final = 5
SHARD_DESTROYED: Final = 6
QUARANTINED: Final = 7
RELOCATED: Final = 8
CLOCK: Final = 9
INVENTORY: Final = 10

KIND_NAMES: Final = {
    ENTRIES: "entries",
    HARD_STATE: "hard-state",
    TRUNCATE: "truncate",
    SNAPSHOT_INSTALLED: "snapshot-installed",
    SHARD_CREATED: "shard-created",
    SHARD_DESTROYED: "shard-destroyed",
    QUARANTINED: "quarantined",
    RELOCATED: "relocated",
    CLOCK: "clock",
    INVENTORY: "inventory",
}

ROW = struct.Struct("<B3xIIIQQQI")
"""kind, shard, incarnation, payload bytes, number, term, index, CRC32C of the payload."""

Key = tuple[ShardId, Incarnation]
"""Which replica of this node a record belongs to."""


class Entries(msgspec.Struct, frozen=True):
    """Raft entries with successive indexes. They follow the last index of the replica's log: to overwrite,
    a `Truncate` goes first."""

    shard: ShardId
    incarnation: Incarnation
    entries: tuple[Entry, ...]


class HardStateRecord(msgspec.Struct, frozen=True):
    shard: ShardId
    incarnation: Incarnation
    term: Term
    vote: ReplicaId | None
    commit: LogIndex


class Truncate(msgspec.Struct, frozen=True):
    """Entries above `index` are void."""

    shard: ShardId
    incarnation: Incarnation
    index: LogIndex


class SnapshotInstalled(msgspec.Struct, frozen=True):
    """The commit point of a snapshot install: the tablet is `directory`, the log is empty and starts after
    `meta.index`. Not for a log that holds (meta.index, meta.term): its entries above may be acknowledged
    (pitfall 15; Raft figure 13, step 6)."""

    shard: ShardId
    incarnation: Incarnation
    directory: str
    meta: SnapshotMeta
    origin: int = 0
    """0, or this is a copy of an earlier record and changes nothing: the batch it was copied from."""


class ShardCreated(msgspec.Struct, frozen=True):
    """A replica's first record: its log is empty, its tablet is `directory`."""

    shard: ShardId
    incarnation: Incarnation
    directory: str
    configuration: Configuration


class ShardDestroyed(msgspec.Struct, frozen=True):
    """A replica's last record. The replica never comes back under this incarnation."""

    shard: ShardId
    incarnation: Incarnation


class Quarantined(msgspec.Struct, frozen=True):
    shard: ShardId
    incarnation: Incarnation
    reason: str


class Relocated(msgspec.Struct, frozen=True):
    """Copies of live entries out of a segment that is about to go. They fill a range, whatever
    was appended since, and never truncate (pitfall 27)."""

    shard: ShardId
    incarnation: Incarnation
    origin: int
    """Sequence of the batch that held the first of them: what was void after that stays void."""
    entries: tuple[Entry, ...]


class ClockRecord(msgspec.Struct, frozen=True):
    """Shard clocks in ms, so that a restart of every node lengthens a TTL by little."""

    clocks: tuple[tuple[ShardId, int], ...]


class InventoryLine(msgspec.Struct, frozen=True, array_like=True):
    shard: ShardId
    incarnation: Incarnation
    number: int
    """Of the replica's last record before this batch."""
    first: LogIndex
    """Entries below it may be missing: the replica's host said that it needs them no more."""
    last: LogIndex
    is_destroyed: bool


class Inventory(msgspec.Struct, frozen=True, array_like=True):
    """Everything that must be found in the log, as of just before this batch. Heads every segment."""

    oldest_segment: int
    """Segments with lower numbers are garbage."""
    has_lost_track: bool
    """Damage may once have swallowed every trace of some replica."""
    replicas: tuple[InventoryLine, ...]


ReplicaRecord = (
    Entries
    | HardStateRecord
    | Truncate
    | SnapshotInstalled
    | ShardCreated
    | ShardDestroyed
    | Quarantined
    | Relocated
)
Record = ReplicaRecord | ClockRecord | Inventory

Coded = tuple[int, int, int, int, int, bytes]
"""kind, shard, incarnation, term, index, payload."""

_encode = msgspec.msgpack.Encoder().encode
decode_entries = msgspec.msgpack.Decoder(tuple[Entry, ...]).decode
_decode_vote = msgspec.msgpack.Decoder(ReplicaId | None).decode
_decode_installed = msgspec.msgpack.Decoder(tuple[str, Configuration, int]).decode
_decode_created = msgspec.msgpack.Decoder(tuple[str, Configuration]).decode
_decode_reason = msgspec.msgpack.Decoder(str).decode
_decode_relocated = msgspec.msgpack.Decoder(tuple[int, tuple[Entry, ...]]).decode
_decode_clocks = msgspec.msgpack.Decoder(tuple[tuple[ShardId, int], ...]).decode
_decode_inventory = msgspec.msgpack.Decoder(Inventory).decode


def encode(record: Record) -> Coded:
    match record:
        case Entries(shard, incarnation, entries):
            first = entries[0]
            return ENTRIES, shard, incarnation, first.term, first.index, _encode(entries)
        case HardStateRecord(shard, incarnation, term, vote, commit):
            return HARD_STATE, shard, incarnation, term, commit, _encode(vote)
        case Truncate(shard, incarnation, index):
            return TRUNCATE, shard, incarnation, 0, index, b""
        case SnapshotInstalled(shard, incarnation, directory, meta, origin):
            payload = _encode((directory, meta.configuration, origin))
            return SNAPSHOT_INSTALLED, shard, incarnation, meta.term, meta.index, payload
        case ShardCreated(shard, incarnation, directory, configuration):
            return SHARD_CREATED, shard, incarnation, 0, 0, _encode((directory, configuration))
        case ShardDestroyed(shard, incarnation):
            return SHARD_DESTROYED, shard, incarnation, 0, 0, b""
        case Quarantined(shard, incarnation, reason):
            return QUARANTINED, shard, incarnation, 0, 0, _encode(reason)
        case Relocated(shard, incarnation, origin, entries):
            first = entries[0]
            return RELOCATED, shard, incarnation, first.term, first.index, _encode((origin, entries))
        case ClockRecord(clocks):
            return CLOCK, 0, 0, 0, 0, _encode(clocks)
        case Inventory():
            return INVENTORY, 0, 0, 0, 0, _encode(record)


def entry_count(payload: bytes) -> int:
    """How many entries the payload of an `Entries` record holds, without decoding it."""
    head = payload[0]
    if head & 0xF0 == 0x90:
        return head & 0x0F
    return int.from_bytes(payload[1 : 3 if head == 0xDC else 5], "big")


def decode(
    kind: int, shard_number: int, incarnation_number: int, term: int, index: int, payload: bytes
) -> Record:
    """The record that `encode` was given.

    Raises: Corrupt, if the checksum was right but the content makes no sense to this version.
    """
    shard, incarnation = ShardId(shard_number), Incarnation(incarnation_number)
    try:
        match kind:
            case 1:
                return Entries(shard, incarnation, decode_entries(payload))
            case 2:
                return HardStateRecord(shard, incarnation, Term(term), _decode_vote(payload), LogIndex(index))
            case 3:
                return Truncate(shard, incarnation, LogIndex(index))
            case 4:
                directory, configuration, origin = _decode_installed(payload)
                meta = SnapshotMeta(LogIndex(index), Term(term), configuration)
                return SnapshotInstalled(shard, incarnation, directory, meta, origin)
            case 5:
                return ShardCreated(shard, incarnation, *_decode_created(payload))
            case 6:
                return ShardDestroyed(shard, incarnation)
            case 7:
                return Quarantined(shard, incarnation, _decode_reason(payload))
            case 8:
                return Relocated(shard, incarnation, *_decode_relocated(payload))
            case 9:
                return ClockRecord(_decode_clocks(payload))
            case 10:
                return _decode_inventory(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"record of type {KIND_NAMES[kind]} makes no sense: {error}") from error
    raise Corrupt(f"record of unknown type {kind}: was it written by a newer version?")
