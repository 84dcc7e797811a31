"""Head records that were used lately, so that a hot key costs no look-up in the engine.

Between drafts every record here equals the engine's: one machine owns a tablet and all writes pass it. A
draft reads and writes the young generation itself, so a draft that fails must be followed by `clear`.
A look-up of a present key in RocksDB takes 2 to 4 us, here 0.1.

Two generations instead of an order of use: what is used moves to the young one, and when the young ones of
all machines that share a budget are full together, each drops its old one and the young ones age.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from weakref import WeakSet

from kvstore.store.engine import Engine

RECORD_BYTES_MAX: Final = 512
"""Longer records are not kept between drafts."""
_COLD_SHARE: Final = 16
"""More than one look-up in so many missed: the next draft should look up all its keys at once."""
_UNKNOWN: Final = object()


class HeadBudget:
    """How many records, of about 250 bytes each, the machines that share this keep together."""

    def __init__(self, count_max: int) -> None:
        self._generation_max = count_max // 2
        self._young_count = 0
        self._sharers: WeakSet[Heads] = WeakSet()

    def join(self, heads: Heads) -> None:
        self._sharers.add(heads)

    def grow(self, count: int) -> None:
        """The young generations have grown by so many records; negative: shrunk."""
        self._young_count += count
        if self._young_count > self._generation_max:
            for heads in self._sharers:
                heads.age()
            self._young_count = 0


class Heads:
    def __init__(self, engine: Engine, budget: HeadBudget) -> None:
        self._engine = engine
        self._budget = budget
        self._old: dict[bytes, bytes | None] = {}
        self.young: dict[bytes, bytes | None] = {}
        """Record by record key, None for a key that is absent."""
        self._counted = 0
        """Records of `young` that the budget knows of."""
        self._missed = 0
        self._large: list[bytes] = []
        self.is_cold = True
        """The last draft missed so often that the next one should `fetch` first: look-ups of many keys at
        once cost two thirds of single ones, but finding out which are needed costs as well."""
        budget.join(self)

    def get(self, record_key: bytes) -> bytes | None:
        """For a read between drafts: it does not make the record a hot one."""
        for generation in (self.young, self._old):
            record = generation.get(record_key, _UNKNOWN)
            if record is not _UNKNOWN:
                return record  # type: ignore[return-value]
        return self._engine.get(record_key)

    def get_all(self, record_keys: list[bytes]) -> list[bytes | None]:
        """`get` of many keys, in their order."""
        found: dict[bytes, bytes | None] = {}
        missing: list[bytes] = []
        for key in record_keys:
            for generation in (self.young, self._old):
                if key in generation:
                    found[key] = generation[key]
                    break
            else:
                missing.append(key)
        if missing:
            found.update(zip(missing, self._engine.get_many(missing), strict=True))
        return [found[key] for key in record_keys]

    def find(self, record_key: bytes) -> bytes | None:
        """Bring a record into the young generation, where a draft has not found it."""
        record = self._old.pop(record_key, _UNKNOWN)
        if record is _UNKNOWN:
            self._missed += 1
            record = self._engine.get(record_key)
            if record is not None and len(record) > RECORD_BYTES_MAX:
                self._large.append(record_key)
        self.young[record_key] = record  # type: ignore[assignment]
        return record  # type: ignore[return-value]

    def fetch(self, record_keys: Iterable[bytes]) -> None:
        """Bring the records of all keys into the young generation, whatever is missing by one look-up."""
        young, old = self.young, self._old
        missing = []
        for key in record_keys:
            if key not in young:
                if key in old:
                    young[key] = old.pop(key)
                else:
                    missing.append(key)
        if len(missing) == 1:
            self.find(missing[0])
        elif missing:
            self._missed += len(missing)
            for key, record in zip(missing, self._engine.get_many(missing), strict=True):
                young[key] = record
                if record is not None and len(record) > RECORD_BYTES_MAX:
                    self._large.append(key)

    def settle(self, looked_up: int, large: list[bytes]) -> None:
        """A draft is in the engine: bound what it left here. `looked_up`: about how many heads it used.
        `large`: the keys whose new records are longer than `RECORD_BYTES_MAX`."""
        self.is_cold = self._missed * _COLD_SHARE > looked_up
        self._missed = 0
        for key in (*large, *self._large):
            self.young.pop(key, None)
            self._old.pop(key, None)
        self._large.clear()
        grown = len(self.young) - self._counted
        if grown:
            self._counted += grown
            self._budget.grow(grown)

    def clear(self) -> None:
        """Forget all: a draft has failed."""
        self._old = {}
        self.young = {}
        self._missed = 0
        self._large.clear()
        self._budget.grow(-self._counted)
        self._counted = 0

    def age(self) -> None:
        self._old = self.young
        self.young = {}
        self._counted = 0
