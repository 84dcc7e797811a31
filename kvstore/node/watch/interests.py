"""Who wants to hear of a key: by exact key, and by prefix, one table for each length that occurs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from kvstore.node.watch.watcher import Part

FILTERED_MAX: Final = 64
"""Up to so many keys and prefixes are named to the log's reader, so that it leaves out the rest."""


class Interest(msgspec.Struct, frozen=True):
    """One key, or all that begin with a prefix; the empty prefix is the whole store."""

    key: bytes | None
    prefix: bytes = b""


class Interests:
    """Followers of one run through the log."""

    __slots__ = ("_exact", "_filter", "_prefixes", "_wants_prev", "parts")

    def __init__(self) -> None:
        self.parts: dict[Part, None] = {}
        self._exact: dict[bytes, dict[Part, None]] = {}
        self._prefixes: dict[int, dict[bytes, dict[Part, None]]] = {}
        self._wants_prev = 0
        self._filter: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.parts)

    def add(self, part: Part) -> None:
        self.parts[part] = None
        interest = part.watcher.interest
        if interest.key is not None:
            self._exact.setdefault(interest.key, {})[part] = None
        else:
            table = self._prefixes.setdefault(len(interest.prefix), {})
            table.setdefault(interest.prefix, {})[part] = None
        self._wants_prev += part.watcher.wants_prev
        self._filter = None

    def remove(self, part: Part) -> None:
        del self.parts[part]
        interest = part.watcher.interest
        if interest.key is not None:
            _discard(self._exact, interest.key, part)
        else:
            length = len(interest.prefix)
            _discard(self._prefixes[length], interest.prefix, part)
            if not self._prefixes[length]:
                del self._prefixes[length]
        self._wants_prev -= part.watcher.wants_prev
        self._filter = None

    def of(self, key: bytes) -> list[Part]:
        found = list(self._exact.get(key, ()))
        for length, table in self._prefixes.items():
            # A shorter key cannot be found: a table holds prefixes of one length only.
            below = table.get(key[:length])
            if below is not None:
                found.extend(below)
        return found

    def options(self) -> dict[str, Any]:
        """What to ask of the change log for these followers; equal as long as the same is wanted."""
        if self._filter is None:
            self._filter = self._make_filter()
        return self._filter

    def _make_filter(self) -> dict[str, Any]:
        options: dict[str, Any] = {"prev": True} if self._wants_prev else {}
        prefixes = [prefix for table in self._prefixes.values() for prefix in table]
        if b"" not in prefixes and len(prefixes) + len(self._exact) <= FILTERED_MAX:
            options["keys"] = sorted(self._exact)
            options["prefixes"] = sorted(prefixes)
        return options


def _discard(table: dict[bytes, dict[Part, None]], name: bytes, part: Part) -> None:
    parts = table[name]
    del parts[part]
    if not parts:
        del table[name]
