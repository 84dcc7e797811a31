"""What a run of entries writes, before any of it is in the engine.

Ops of one apply must see what earlier ones wrote, and nothing may be in the engine until all of it is. So
writes collect here, per entry for the state hash and over all entries for the engine, and reads look
here first. Order matters: the hash runs over the writes in the order in which they were first made, which
follows from the entries and the replicated state alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import google_crc32c

from kvstore.store import keys, records
from kvstore.store.deadlines import Deadlines
from kvstore.store.engine import Engine
from kvstore.store.heads import RECORD_BYTES_MAX
from kvstore.store.intents import Intents
from kvstore.store.lease_hints import Ends
from kvstore.store.limits import StoreLimits
from kvstore.store.records import (
    CHANGE_FIELDS,
    INLINE_BYTES_MAX,
    SAME_REVISION,
    Logged,
    Meta,
)

if TYPE_CHECKING:
    from kvstore.store.sessions import Sessions

_STAND: Final = struct.Struct(">8Q")
_REMOVED: Final = b"\x00removed"
_extend = google_crc32c.extend


class Draft:
    """Counters of `Meta` as they will be, and the writes that lead there."""

    __slots__ = (
        "_find_head",
        "_first_revision",
        "_shared",
        "changes",
        "clock_ms",
        "compacted",
        "deadlines",
        "ends",
        "engine",
        "has_refused",
        "heads",
        "intents",
        "key_count",
        "large_heads",
        "limits",
        "others",
        "pending",
        "revision",
        "session_bytes",
        "sessions",
        "state_hash",
        "term",
        "writes",
    )

    def __init__(
        self,
        engine: Engine,
        meta: Meta,
        limits: StoreLimits,
        heads: dict[bytes, bytes | None],
        deadlines: Deadlines,
        intents: Intents,
        sessions: Sessions,
        find_head: Callable[[bytes], bytes | None] | None = None,
        ends: Ends | None = None,
    ) -> None:
        self.engine = engine
        self._find_head = find_head
        self.limits = limits
        self.deadlines = deadlines
        self.intents = intents
        self.sessions = sessions
        self.ends = Ends(engine) if ends is None else ends
        self.has_refused = False
        """An op answered REFUSED: its result must not be kept."""
        self.term = 0
        """Of the entry at hand."""
        self.revision = meta.revision
        self.clock_ms = meta.clock_ms
        self.compacted = meta.compacted
        self.key_count = meta.key_count
        self.session_bytes = meta.session_bytes
        self.state_hash = meta.state_hash
        self.pending: dict[bytes, bytes | None] = {}
        """Writes of entries that are finished."""
        self.writes: dict[bytes, bytes | None] = {}
        """Writes of the entry at hand."""
        self.heads = heads
        """Head records as they are now, by record key: what was looked up and what was written."""
        self.large_heads: list[bytes] = []
        """Keys whose new head is too long to be kept in memory afterwards."""
        self.changes: list[Any] = []
        """Flat, see `records.pack_change`."""
        self.others: list[bytes] = []
        """Keys of marks and old versions that belong to `changes`."""
        self._first_revision = meta.revision + 1
        self._shared: bool | None = None
        """Changes take one revision together; whether the first of them has taken it. None: each its own."""

    def get(self, record_key: bytes) -> bytes | None:
        """A record that is not a head."""
        if record_key in self.writes:
            return self.writes[record_key]
        if record_key in self.pending:
            return self.pending[record_key]
        return self.engine.get(record_key)

    def head(self, record_key: bytes) -> bytes | None:
        try:
            return self.heads[record_key]
        except KeyError:
            find = self._find_head or self.engine.get
            found = self.heads[record_key] = find(record_key)
            return found

    def keep_old(self, key: bytes, old: bytes, revision: int, is_marked: bool) -> bytes | bool:
        """Keep what the change at `revision` replaces; what to name in the change as its old record.
        Not needed for a small record without a mark: that one is its own name."""
        if is_marked:
            mark = keys.mark(key, revision)
            self.writes[mark] = b""
            self.others.append(mark)
        if len(old) <= INLINE_BYTES_MAX:
            return old
        apart = keys.old(revision, key)
        self.writes[apart] = old
        self.others.append(apart)
        return True

    def share_revision(self, shares: bool) -> None:
        """From here on, all changes have one revision; or again each its own."""
        self._shared = False if shares else None

    def take_revision(self) -> int:
        """Give the next change its revision. The flag that its kind must carry."""
        if self._shared:
            return SAME_REVISION
        if self._shared is not None:
            self._shared = True
        self.revision += 1
        return 0

    def set_head(self, record_key: bytes, record: bytes | None) -> None:
        self.heads[record_key] = self.writes[record_key] = record
        if record is not None and len(record) > RECORD_BYTES_MAX:
            self.large_heads.append(record_key)

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Ascending pairs, what was written here included. Must be used up before the next write."""
        over = {key for layer in (self.pending, self.writes) for key in layer if start <= key < end}
        if not over:
            yield from self.engine.scan(start, end)
            return
        waiting = sorted(over, reverse=True)
        for key, value in self.engine.scan(start, end):
            while waiting and waiting[-1] < key:
                yield from self._written(waiting.pop())
            if waiting and waiting[-1] == key:
                yield from self._written(waiting.pop())
            else:
                yield key, value
        while waiting:
            yield from self._written(waiting.pop())

    def _written(self, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        value = self.writes[key] if key in self.writes else self.pending[key]
        if value is not None:
            yield key, value

    def close_changes(self) -> Logged | None:
        """Write the entry's record in the change log, if it has changed something."""
        logged = None
        if self.changes:
            key, count = keys.change(self._first_revision), len(self.changes) // CHANGE_FIELDS
            self.writes[key] = records.pack_change(self.clock_ms, self.revision, self.others, self.changes)
            logged = (key, self._first_revision, self.clock_ms, self.revision, count, self.others)
            self.changes = []
            self.others = []
        self._first_revision = self.revision + 1
        return logged

    def finish_entry(self, index: int, term: int) -> None:
        """Chain the entry's writes into the state hash and open the next entry."""
        writes = self.writes
        names = b"".join(writes)
        values = writes.values()
        try:
            content = b"".join(values)  # type: ignore[arg-type]
        except TypeError:
            content = b"".join([_REMOVED if value is None else value for value in values])
        stand = _STAND.pack(
            index,
            term,
            self.revision,
            self.clock_ms,
            self.compacted,
            self.key_count,
            len(names),
            len(content),
        )
        self.state_hash = _extend(_extend(_extend(self.state_hash, stand), names), content)
        if self.pending:
            self.pending.update(writes)
        else:
            self.pending = writes
        self.writes = {}

    def meta(self, applied: int, applied_term: int) -> Meta:
        return Meta(
            applied,
            applied_term,
            self.revision,
            self.clock_ms,
            self.compacted,
            self.key_count,
            self.session_bytes,
            self.state_hash,
        )
