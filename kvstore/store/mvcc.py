"""What each op does to a tablet. Deterministic: the draft and the op are all it looks at.

A write of a key replaces its head. The old head goes, as it is, into the entry's change record, so that
history costs no record of its own; marks lead to it (`records.MARK_EVERY`). Every op that changes
something takes the next revision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import msgspec

from kvstore.store import commands, deadlines, keys, leases, records
from kvstore.store.draft import Draft
from kvstore.store.heads import RECORD_BYTES_MAX
from kvstore.store.limits import StoreLimits
from kvstore.store.records import (
    CHANGE_DELETE,
    CHANGE_PUT,
    INLINE_BYTES_MAX,
    MARK_EVERY,
    NO_ATTRIBUTES,
    SAME_REVISION,
    Attributes,
    pack_plain_head,
    unpack_head,
)
from kvstore.store.results import NOT_A_NUMBER, OK, OUT_OF_RANGE, PRECONDITION_FAILED, Result

RANGE_KEYS_MAX: Final = 10_000
RANGE_BYTES_MAX: Final = 8 << 20
"""Bounds of one range delete, so that one entry can not hold up a node; the result says `more`."""

_NO_OPTIONS: Final[dict[str, Any]] = {}
_UNKNOWN: Final = object()
_KEYED: Final = frozenset((commands.PUT, commands.DELETE, commands.INCR))


def heads_of(payloads: list[list[Any] | None]) -> list[bytes]:
    """Record keys of the heads that the commands of some entries will look at."""
    return [
        b"h" + op[1]
        for payload in payloads
        if payload is not None
        for command in payload[1:]
        for op in command[1:]
        if op[0] in _KEYED
    ]


def apply_plain_puts(
    draft: Draft, ops: list[commands.Op], position: int, results: list[Result] | deque[Result]
) -> int:
    """The hot loop: a run of puts without options, from `position` on; gives the position behind it.
    Same effect as `_apply_put`, which a test compares."""
    writes, heads = draft.writes, draft.heads
    changed, answer, known = draft.changes.extend, results.append, heads.get
    revision, created = draft.revision, 0
    for op in islice(ops, position, None):
        if len(op) != 3 or op[0] != 1:
            break
        _, key, value = op
        revision += 1
        record_key = b"h" + key
        old: Any = known(record_key, _UNKNOWN)
        if old is _UNKNOWN:
            old = draft.head(record_key)
        if old is None:
            created += 1
            record = pack_plain_head(0, revision, revision, 1) + value
            writes[record_key] = heads[record_key] = record
            changed((key, 0, 0, None))
            answer([0, revision, 1, True, None])
        else:
            flags, replaced, create_revision, version = unpack_head(old)
            version += 1
            if flags:
                detach(draft, key, old)
            record = pack_plain_head(0, revision, create_revision, version) + value
            writes[record_key] = heads[record_key] = record
            if version % MARK_EVERY == 0 or len(old) > INLINE_BYTES_MAX:
                old = draft.keep_old(key, old, revision, version % MARK_EVERY == 0)
            changed((key, replaced, 0, old))
            answer([0, revision, version, False, None])
        if len(record) > RECORD_BYTES_MAX:
            draft.large_heads.append(record_key)
    position += revision - draft.revision
    draft.revision = revision
    draft.key_count += created
    return position


def _refusal(old: bytes | None, options: dict[str, Any]) -> Result | None:
    """The result of a condition that does not hold."""
    if not options:
        return None
    current = unpack_head(old)[1] if old is not None else 0
    wanted = options.get("if_revision")
    if (
        (wanted is not None and wanted != current)
        or (options.get("if_absent") and current)
        or (options.get("if_present") and not current)
    ):
        return [PRECONDITION_FAILED, current]
    return None


def detach(draft: Draft, key: bytes, old: bytes) -> None:
    """Forget what else in the tablet leads to the key, before its head `old` is replaced or removed."""
    _, attributes = records.value_and_attributes(old)
    if attributes.deadline_ms is not None:
        deadlines.remove_deadline(draft, attributes.deadline_ms, deadlines.KEY, key)
    if attributes.lease is not None:
        leases.detach(draft, attributes.lease, key)


def write_head(
    draft: Draft, key: bytes, old: bytes | None, value: bytes, attributes: Attributes
) -> tuple[int, int]:
    """Make `value` the key's newest version. Returns its revision and version."""
    assert key not in draft.intents.locks, "a write of a key that a transaction holds"
    flag = draft.take_revision()
    revision = draft.revision
    if old is None:
        replaced, create_revision, version = 0, revision, 1
        kept: bytes | bool | None = None
        draft.key_count += 1
    else:
        _, replaced, create_revision, version = unpack_head(old)
        version += 1
        detach(draft, key, old)
        kept = draft.keep_old(key, old, revision, version % MARK_EVERY == 0)
    draft.set_head(b"h" + key, records.pack_head(revision, create_revision, version, value, attributes))
    if attributes.deadline_ms is not None:
        deadlines.set_deadline(draft, attributes.deadline_ms, deadlines.KEY, key)
    if attributes.lease is not None:
        leases.attach(draft, attributes.lease, key)
    draft.changes.extend((key, replaced, CHANGE_PUT | flag, kept))
    return revision, version


def _apply_put(draft: Draft, op: commands.Op) -> Result:
    key, value = op[1], op[2]
    options = (op[3] if len(op) > 3 else None) or _NO_OPTIONS
    old = draft.head(b"h" + key)
    refusal = _refusal(old, options)
    if refusal is not None:
        return refusal
    lease: bytes | None = options.get(leases.TIED)
    if "lease" in options:
        lease, refusal = leases.claim(draft, options)
        if refusal is not None:
            return refusal
    attributes = _attributes_of(draft, options, lease)
    revision, version = write_head(draft, key, old, value, attributes)
    prev = records.item(old) if old is not None and options.get("prev") else None
    return [OK, revision, version, old is None, prev]


def _attributes_of(draft: Draft, options: dict[str, Any], lease: bytes | None) -> Attributes:
    if not options:
        return NO_ATTRIBUTES
    ttl_ms = options.get("ttl_ms")
    deadline_ms = None if ttl_ms is None else draft.clock_ms + ttl_ms
    return Attributes(options.get("content_type") or None, lease, deadline_ms)


def _apply_delete(draft: Draft, op: commands.Op) -> Result:
    key = op[1]
    options = (op[2] if len(op) > 2 else None) or _NO_OPTIONS
    old = draft.head(b"h" + key)
    refusal = _refusal(old, options)
    if refusal is not None:
        return refusal
    if old is None:
        return [OK, draft.revision, 0, None]
    _remove(draft, key, old, CHANGE_DELETE | draft.take_revision())
    return [OK, draft.revision, 1, records.item(old) if options.get("prev") else None]


def remove(draft: Draft, key: bytes, kind: int) -> None:
    """Remove a present key at the next revision."""
    old = draft.head(b"h" + key)
    assert old is not None, "removal of an absent key"
    _remove(draft, key, old, kind | draft.take_revision())


def _remove(draft: Draft, key: bytes, old: bytes, kind: int) -> None:
    """Remove a present key at `draft.revision`."""
    assert key not in draft.intents.locks, "a removal of a key that a transaction holds"
    detach(draft, key, old)
    kept = draft.keep_old(key, old, draft.revision, True)
    draft.set_head(b"h" + key, None)
    draft.key_count -= 1
    draft.changes.extend((key, unpack_head(old)[1], kind, kept))


def _apply_incr(draft: Draft, op: commands.Op) -> Result:
    refusal = incr_refusal(draft, op)
    if refusal is not None:
        return refusal
    key = op[1]
    old = draft.head(b"h" + key)
    value, attributes = records.value_and_attributes(old) if old is not None else (b"0", NO_ATTRIBUTES)
    total = int(value) + op[2]
    revision, _ = write_head(draft, key, old, b"%d" % total, attributes)
    return [OK, revision, total]


def incr_refusal(draft: Draft, op: commands.Op) -> Result | None:
    """Why an INCR cannot be carried out on the key as it is, else None."""
    _, key, by, low, high = op
    old = draft.head(b"h" + key)
    current = decimal(records.value_and_attributes(old)[0]) if old is not None else 0
    if current is None:
        return [NOT_A_NUMBER]
    total = current + by
    if (
        not commands.INT64_MIN <= total <= commands.INT64_MAX
        or (low is not None and total < low)
        or (high is not None and total > high)
    ):
        return [OUT_OF_RANGE, current]
    return None


def decimal(value: bytes) -> int | None:
    """A 64-bit decimal integer as `incr` writes it: no spaces, plus signs or leading zeros."""
    if not 0 < len(value) <= 20 or not value.removeprefix(b"-").isdigit():
        return None
    parsed = int(value)
    if b"%d" % parsed != value or not commands.INT64_MIN <= parsed <= commands.INT64_MAX:
        return None
    return parsed


def _apply_delete_range(draft: Draft, op: commands.Op) -> Result:
    start, end = op[1], op[2]
    options = (op[3] if len(op) > 3 else None) or _NO_OPTIONS
    limit = min(options.get("limit", RANGE_KEYS_MAX), RANGE_KEYS_MAX)
    found: list[tuple[bytes, bytes]] = []
    byte_count, has_more = 0, False
    for record_key, record in draft.scan(b"h" + start, keys.HEAD_END if end is None else b"h" + end):
        if len(found) >= limit or byte_count >= RANGE_BYTES_MAX:
            has_more = True
            break
        found.append((record_key[1:], record))
        byte_count += len(record)
    kind = CHANGE_DELETE
    if found:
        draft.revision += 1
    for key, record in found:
        _remove(draft, key, record, kind)
        kind = CHANGE_DELETE | SAME_REVISION
    return [OK, draft.revision, len(found), has_more]


def _apply_limits(draft: Draft, op: commands.Op) -> Result:
    draft.limits = msgspec.convert(op[1], StoreLimits)
    draft.writes[keys.LIMITS] = records.pack_limits(draft.limits)
    return [OK, draft.revision]


APPLY: Final[dict[int, Callable[[Draft, commands.Op], Result]]] = {
    commands.PUT: _apply_put,
    commands.DELETE: _apply_delete,
    commands.INCR: _apply_incr,
    commands.DELETE_RANGE: _apply_delete_range,
    commands.LIMITS: _apply_limits,
}
