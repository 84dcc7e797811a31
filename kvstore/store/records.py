"""Bytes of a tablet's records. The keys they lie under are in `keys.py`; docs: `docs/data_on_disk.md`.

A replaced version is kept as the head record that it was, so that history is made without packing again.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import msgspec

from kvstore.errors import Corrupt
from kvstore.store.limits import StoreLimits
from kvstore.store.results import OK, Item

FORMAT: Final = 1

HEAD: Final = struct.Struct(">BQQQ")
"""flags, revision, create revision, version; then attributes if flagged, then the value."""
HEAD_BYTES: Final = HEAD.size
HAS_ATTRIBUTES: Final = 1
"""Two bytes of length and a msgpack array `[content type, lease, deadline]` stand before the value."""
pack_plain_head = HEAD.pack
unpack_head = HEAD.unpack_from

CHANGE_PUT: Final = 0
CHANGE_DELETE: Final = 1
CHANGE_EXPIRE: Final = 2
CHANGE_KIND: Final = 0x0F
SAME_REVISION: Final = 0x10
"""Flag of a change that shares its revision with the change before it, as in a range delete."""

INLINE_BYTES_MAX: Final = 1024
"""A replaced record up to this size is kept inside the change record that replaced it, others apart."""
MARK_EVERY: Final = 16
"""Each so-manieth version of a key, and each deletion, leaves a mark: reading a key as of an older revision
enters its past at a mark, and then follows at most so many changes."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Attributes(NamedTuple):
    """What a key carries besides its value. Most have none."""

    content_type: str | None = None
    lease: bytes | None = None
    """8 bytes of generation, then the id."""
    deadline_ms: int | None = None


NO_ATTRIBUTES: Final = Attributes()


def pack_head(
    revision: int, create_revision: int, version: int, value: bytes, attributes: Attributes = NO_ATTRIBUTES
) -> bytes:
    if attributes == NO_ATTRIBUTES:
        return HEAD.pack(0, revision, create_revision, version) + value
    packed = _encode(attributes)
    head = HEAD.pack(HAS_ATTRIBUTES, revision, create_revision, version)
    return b"".join((head, len(packed).to_bytes(2, "big"), packed, value))


def value_and_attributes(record: bytes) -> tuple[bytes, Attributes]:
    flags = record[0]
    if not flags:
        return record[HEAD_BYTES:], NO_ATTRIBUTES
    if flags != HAS_ATTRIBUTES:
        raise Corrupt(f"head record with unknown flags {flags:#x}")
    end = HEAD_BYTES + 2 + int.from_bytes(record[HEAD_BYTES : HEAD_BYTES + 2], "big")
    return record[end:], Attributes(*_decode(record[HEAD_BYTES + 2 : end]))


def item(record: bytes) -> Item:
    """A head or version record as the item that queries and results give out."""
    flags, revision, create_revision, version = HEAD.unpack_from(record)
    if not flags:
        return [record[HEAD_BYTES:], revision, create_revision, version, None, None, None]
    value, (content_type, lease, deadline_ms) = value_and_attributes(record)
    lease_id = None if lease is None else lease[8:]
    return [value, revision, create_revision, version, content_type, lease_id, deadline_ms]


def pack_change(clock_ms: int, last_revision: int, others: list[bytes], changes: list[Any]) -> bytes:
    """What one entry changed. `others` are the keys of the marks and old versions that go with it.

    `changes` is flat: key, revision of the version it replaced (0: none), kind and flags, the replaced
    record (None: none, True: too large, it lies under `keys.old`), and so on. The first has the record's
    first revision, each next one the next unless flagged SAME_REVISION."""
    head = _encode([clock_ms, last_revision, len(changes) // CHANGE_FIELDS, others])
    return b"".join((len(head).to_bytes(4, "big"), head, _encode(changes)))


CHANGE_FIELDS: Final = 4


class ChangeHead(NamedTuple):
    clock_ms: int
    last_revision: int
    change_count: int
    others: list[bytes]


Logged = tuple[bytes, int, int, int, int, list[bytes]]
"""A record of the change log: its key, its first revision, the fields of its head."""


class Change(NamedTuple):
    revision: int
    key: bytes
    replaced: int
    kind: int
    old: bytes | bool | None


def unpack_change_head(record: bytes) -> ChangeHead:
    return ChangeHead(*_decode(record[4 : 4 + int.from_bytes(record[:4], "big")]))


def unpack_changes(first_revision: int, record: bytes) -> list[Change]:
    flat = _decode(record[4 + int.from_bytes(record[:4], "big") :])
    changes = []
    revision = first_revision - 1
    for at in range(0, len(flat), CHANGE_FIELDS):
        key, replaced, kind, old = flat[at : at + CHANGE_FIELDS]
        if not kind & SAME_REVISION:
            revision += 1
        changes.append(Change(revision, key, replaced, kind & CHANGE_KIND, old))
    return changes


def find_change(first_revision: int, record: bytes, revision: int, key: bytes) -> Change | None:
    """The change of `key` at `revision`."""
    flat = _decode(record[4 + int.from_bytes(record[:4], "big") :])
    at = first_revision - 1
    for position in range(0, len(flat), CHANGE_FIELDS):
        if not flat[position + 2] & SAME_REVISION:
            at += 1
        if at == revision and flat[position] == key:
            kind = flat[position + 2] & CHANGE_KIND
            return Change(revision, key, flat[position + 1], kind, flat[position + 3])
    return None


def without_values(result: list[Any]) -> list[Any]:
    """An OK result in which the items, read or replaced, have lost their values."""
    last = result[-1]
    if result[0] != OK:
        return result
    if isinstance(last, list):
        return [*result[:-1], [None, *last[1:]]]
    if len(result) > 2 and isinstance(result[2], list):
        return [*result[:2], [without_values(each) for each in result[2]], *result[3:]]
    return result


_META: Final = struct.Struct(">BQQQQQQQI")


class Meta(NamedTuple):
    """Where a tablet stands. Written by every apply, so that it is exactly as old as its data."""

    applied: int = 0
    applied_term: int = 0
    revision: int = 0
    clock_ms: int = 0
    compacted: int = 0
    """First revision from which reads and the change log are complete."""
    key_count: int = 0
    session_bytes: int = 0
    state_hash: int = 0

    def pack(self) -> bytes:
        return _META.pack(FORMAT, *self)

    @classmethod
    def unpack(cls, record: bytes) -> Meta:
        if not record or record[0] != FORMAT:
            raise Corrupt(f"tablet has format {record[:1].hex()}, this program reads {FORMAT:02x}")
        if len(record) != _META.size:
            raise Corrupt(f"meta record of {len(record)} bytes, expected {_META.size}")
        return cls(*_META.unpack(record)[1:])


_SESSION: Final = struct.Struct(">QQQQ")


class SessionHeader(NamedTuple):
    """A session as stored; its kept results are records of their own."""

    floor: int
    """Sequences below are acknowledged or forgotten, and never executed again."""
    newest: int
    used_ms: int
    """Shard clock of its newest command: it lives for a lifetime from there."""
    kept_bytes: int
    principal: bytes

    def pack(self) -> bytes:
        return _SESSION.pack(self.floor, self.newest, self.used_ms, self.kept_bytes) + self.principal

    @classmethod
    def unpack(cls, record: bytes) -> SessionHeader:
        floor, newest, used_ms, kept_bytes = _SESSION.unpack_from(record)
        return cls(floor, newest, used_ms, kept_bytes, record[_SESSION.size :])


def pack_result(
    clock_ms: int, body_hash: bytes | None, runs: list[list[Any]], *, encode: Any = _encode
) -> bytes:
    """`runs` is `[[index of the first op, [result, ...]], ...]`, ascending, not touching."""
    packed: bytes = encode([clock_ms, body_hash, runs])
    return packed


def unpack_result(record: bytes) -> tuple[int, bytes | None, list[list[Any]]]:
    clock_ms, body_hash, runs = _decode(record)
    return clock_ms, body_hash, runs


def pack_limits(limits: StoreLimits) -> bytes:
    return _encode(limits)


def unpack_limits(record: bytes) -> StoreLimits:
    return msgspec.msgpack.decode(record, type=StoreLimits)
