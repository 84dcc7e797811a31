"""What the end of a lease does on the shards of its keys.

Home has committed the end; whoever drives it tells each shard that is registered. A shard deletes the keys
of that very grant, a slice with each entry, and leaves an end mark first, so that what is attached
late is refused. Being told twice is being told once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Final

from kvstore.store import deadlines, keys, mvcc
from kvstore.store.draft import Draft
from kvstore.store.leases import EXPIRED
from kvstore.store.records import CHANGE_DELETE, CHANGE_EXPIRE
from kvstore.store.results import OK, Result

MARK_MS: Final = 600_000
"""For how long an end mark stays. A put that is on its way names a not-after of at most a minute or two
behind the end (`node/leases.py`): this leaves room for clocks that stood still."""
KEYS_MAX: Final = 1000
"""Most keys that one op deletes, whatever it asks for."""

Written = dict[bytes, bytes | None]


def apply_ended(draft: Draft, op: list[Any]) -> Result:
    """`[ENDED, [[id, generation, kind], ...], limit]` -> `[OK, revision, deleted, [is finished, ...]]`."""
    _, grants, limit = op
    room = min(limit, KEYS_MAX)
    written = _written_since(draft)
    finished = []
    for lease_id, generation, kind in grants:
        _mark(draft, lease_id, generation)
        deleted, is_finished = _delete(draft, written, lease_id, generation, kind, room)
        room -= deleted
        finished.append(is_finished)
    return [OK, draft.revision, min(limit, KEYS_MAX) - room, finished]


def _delete(
    draft: Draft, written: Written, lease_id: bytes, generation: int, kind: int, room: int
) -> tuple[int, bool]:
    """Delete keys of one grant that no transaction holds; how many, and whether there are no more."""
    change = CHANGE_EXPIRE if kind == EXPIRED else CHANGE_DELETE
    deleted = held = 0
    for key in _keys_of(draft, written, lease_id, generation):
        if deleted == room or held == KEYS_MAX:
            return deleted, False
        if key in draft.intents.locks:
            held += 1
        else:
            mvcc.remove(draft, key, change)
            deleted += 1
    return deleted, held == 0


def _mark(draft: Draft, lease_id: bytes, generation: int) -> None:
    record_key = keys.lease_mark(lease_id, generation)
    if draft.get(record_key) is None:
        draft.writes[record_key] = b""
        deadlines.set_deadline(draft, draft.clock_ms + MARK_MS, deadlines.LEASE_MARK, record_key[1:])


def expire_mark(draft: Draft, due_ms: int, subject: bytes) -> bool:
    """The handler of an end mark's deadline."""
    draft.writes[keys.LEASE_MARK + subject] = None
    deadlines.remove_deadline(draft, due_ms, deadlines.LEASE_MARK, subject)
    return True


def _written_since(draft: Draft) -> Written:
    """Ties of keys to leases that the engine does not know yet."""
    return {
        key: value
        for layer in (draft.pending, draft.writes)
        for key, value in layer.items()
        if key.startswith(keys.LEASED_KEY)
    }


def _keys_of(draft: Draft, written: Written, lease_id: bytes, generation: int) -> Iterator[bytes]:
    """Keys of the grant in their order, whatever of them is in the engine by now."""
    prefix = keys.leased_keys_of(lease_id, generation)
    added = sorted(key for key, value in written.items() if value is not None and key.startswith(prefix))
    stored = (
        key
        for key, _ in draft.engine.scan(prefix, keys.leased_keys_of(lease_id, generation + 1))
        if key not in written
    )
    for record_key in heapq.merge(stored, added):
        # An op may name a grant twice.
        if draft.writes.get(record_key, b"") is not None:
            yield record_key[len(prefix) :]
