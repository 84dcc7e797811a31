"""Head records that were used lately, so that a hot key costs no look-up in the engine.

Between drafts every record here equals the engine's: one machine owns a tablet and all writes pass it.
A look-up of a present key in RocksDB takes 1.5 to 3 us, here 0.1.

Two generations instead of an order of use: what is used moves to the young one, and when that is full, the
old one is dropped and the young one ages. At most `count_max` records of `RECORD_BYTES_MAX`.
"""

from __future__ import annotations

from typing import Final

from kvstore.store.engine import Engine

RECORD_BYTES_MAX: Final = 512


class Heads:
    def __init__(self, engine: Engine, count_max: int) -> None:
        self._engine = engine
        self._generation_max = count_max // 2
        self._young: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}

    def get(self, record_key: bytes) -> bytes | None:
        record = self._young.get(record_key) or self._old.get(record_key)
        return record if record is not None else self._engine.get(record_key)

    def get_all(self, record_keys: list[bytes]) -> dict[bytes, bytes | None]:
        """The records of all keys, None where there is none."""
        found: dict[bytes, bytes | None] = {}
        missing = record_keys
        if self._young or self._old:
            young, old = self._young.get, self._old.get
            found = {key: young(key) or old(key) for key in record_keys}
            missing = [key for key, record in found.items() if record is None]
        if len(missing) == 1:
            found[missing[0]] = self._engine.get(missing[0])
        elif missing:
            found.update(zip(missing, self._engine.get_many(missing), strict=True))
        return found

    def keep(self, heads: dict[bytes, bytes | None]) -> None:
        """Take over what a draft, now in the engine, looked up and wrote."""
        young, old = self._young, self._old
        for key, record in heads.items():
            if record is not None and len(record) <= RECORD_BYTES_MAX:
                young[key] = record
            else:
                young.pop(key, None)
                old.pop(key, None)
        if len(young) > self._generation_max:
            self._old = young
            self._young = {}
