"""The change log read forward, in slices: what watches are made of.

A slice holds whole revisions, so that what one op changed at once arrives at once. It ends after `limit`
changes looked at or `bytes` of values found, at the next border between revisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from kvstore.store import keys, records
from kvstore.store.engine import Engine
from kvstore.store.records import Change

LIMIT_MAX: Final = 1_000
BYTES_MAX: Final = 4 << 20
_NO_KEYS: Final = frozenset[bytes]()

RecordAt = Callable[[bytes, int], bytes | None]
"""The record of a key as of a revision."""


def read(
    engine: Engine, newest: int, from_revision: int, options: dict[str, Any], record_at: RecordAt
) -> list[Any]:
    """`[events, next revision]`, see `queries`; `newest` is the tablet's revision."""
    if from_revision > newest:
        return [[], from_revision]
    limit = min(options.get("limit") or LIMIT_MAX, LIMIT_MAX)
    changes, following = _whole_revisions(engine, newest, from_revision, limit)
    wanted = _chosen(changes, options)
    reader = _Values(engine, record_at, changes)
    bytes_left = min(options.get("bytes") or BYTES_MAX, BYTES_MAX)
    with_prev = options.get("prev", False)
    places = _places(changes)
    events: list[Any] = []
    revision = 0
    for at in wanted:
        change = changes[at]
        if bytes_left <= 0 and change.revision != revision:
            return [events, change.revision]
        revision = change.revision
        record = None if change.kind else reader.written(at)
        old = reader.replaced(change) if with_prev else None
        bytes_left -= len(change.key) + len(record or b"") + len(old or b"")
        events.append(
            [
                revision,
                change.kind,
                change.key,
                None if record is None else records.item(record),
                None if old is None else records.item(old),
                *places[at],
            ]
        )
    return [events, following]


def _whole_revisions(engine: Engine, newest: int, from_revision: int, limit: int) -> tuple[list[Change], int]:
    """About `limit` changes from a revision on, and the revision behind them."""
    changes: list[Change] = []
    for change in _log(engine, from_revision):
        if len(changes) >= limit and change.revision != changes[-1].revision:
            return changes, change.revision
        changes.append(change)
    return changes, newest + 1


def _log(engine: Engine, from_revision: int) -> Iterator[Change]:
    start = keys.CHANGE
    for key, _ in engine.scan(keys.CHANGE, keys.change(from_revision + 1), reverse=True):
        # The record that holds the revision begins with it or earlier.
        start = key
        break
    for key, record in engine.scan(start, keys.CHANGE_END):
        for change in records.unpack_changes(int.from_bytes(key[1:], "big"), record):
            if change.revision >= from_revision:
                yield change


def _chosen(changes: list[Change], options: dict[str, Any]) -> list[int]:
    """Positions of the changes of the wanted keys: all, or those of `keys` and below `prefixes`."""
    if "keys" not in options and "prefixes" not in options:
        return list(range(len(changes)))
    exact = frozenset(options.get("keys") or _NO_KEYS)
    prefixes = tuple(options.get("prefixes") or ())
    return [at for at, change in enumerate(changes) if change.key in exact or change.key.startswith(prefixes)]


def _places(changes: list[Change]) -> list[tuple[int, int]]:
    """For each change how many of the same revision come before it, and after it."""
    if not changes or changes[-1].revision - changes[0].revision == len(changes) - 1:
        return [(0, 0)] * len(changes)
    before = [0] * len(changes)
    for at in range(1, len(changes)):
        if changes[at].revision == changes[at - 1].revision:
            before[at] = before[at - 1] + 1
    after = [0] * len(changes)
    for at in range(len(changes) - 2, -1, -1):
        if changes[at].revision == changes[at + 1].revision:
            after[at] = after[at + 1] + 1
    return list(zip(before, after, strict=True))


class _Values:
    """Finds the records that changes of a slice wrote. Most lie in the slice itself: what one change wrote
    is what the key's next change replaced."""

    def __init__(self, engine: Engine, record_at: RecordAt, changes: list[Change]) -> None:
        self._engine = engine
        self._record_at = record_at
        self._changes = changes
        self._next: list[int] | None = None

    def written(self, at: int) -> bytes | None:
        if self._next is None:
            self._next = self._link()
        following = self._next[at]
        if following:
            return self.replaced(self._changes[following])
        change = self._changes[at]
        return self._record_at(change.key, change.revision)

    def replaced(self, change: Change) -> bytes | None:
        if change.old is True:
            return self._engine.get(keys.old(change.revision, change.key))
        return change.old or None

    def _link(self) -> list[int]:
        """For each change the position of the key's next one, 0 if there is none."""
        newest: dict[bytes, int] = {}
        links = [0] * len(self._changes)
        for at in range(len(self._changes) - 1, -1, -1):
            key = self._changes[at].key
            links[at] = newest.get(key, 0)
            newest[key] = at
        return links
