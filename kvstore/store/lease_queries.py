"""Reads of leases: what `queries` answers about them. Shapes are in its table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kvstore.store import keys
from kvstore.store.engine import Engine
from kvstore.store.lease_commands import unpack
from kvstore.store.leases import RESERVED, Lease
from kvstore.store.records import Meta

LIST_MAX: Final = 10_000


def _lease(engine: Engine, _meta: Meta, lease_id: bytes, shard: int | None) -> list[Any] | None:
    record = engine.get(keys.lease(lease_id))
    if record is None:
        return None
    lease = Lease.unpack(record)
    is_registered = shard is not None and engine.get(keys.lease_shard(lease.generation, shard)) is not None
    return [lease.generation, lease.ttl_ms, lease.deadline_ms, is_registered]


def _leases(engine: Engine, _meta: Meta, lease_ids: list[bytes]) -> list[Any]:
    found = engine.get_many([keys.LEASE + lease_id for lease_id in lease_ids])
    return [None if record is None else list(Lease.unpack(record)[:3]) for record in found]


def _list(engine: Engine, _meta: Meta, after: bytes, limit: int) -> list[Any]:
    limit = min(limit, LIST_MAX)
    rows: list[Any] = []
    for key, record in engine.scan(keys.LEASE + after + b"\x00" * bool(after), keys.LEASE_END):
        if len(rows) >= limit:
            return [rows, True]
        lease = Lease.unpack(record)
        rows.append([key[len(keys.LEASE) :], lease.ttl_ms, lease.deadline_ms])
    return [rows, False]


def _shards(engine: Engine, _meta: Meta, generation: int) -> list[int]:
    start, end = keys.lease_shards_of(generation), keys.lease_shards_of(generation + 1)
    return [int.from_bytes(key[-4:], "big") for key, _ in engine.scan(start, end)]


def _keys(
    engine: Engine, _meta: Meta, lease_id: bytes, generation: int, after: bytes, limit: int
) -> list[Any]:
    limit = min(limit, LIST_MAX)
    prefix = keys.leased_keys_of(lease_id, generation)
    found: list[bytes] = []
    start = prefix + after + b"\x00" * bool(after)
    for key, record in engine.scan(start, keys.leased_keys_of(lease_id, generation + 1)):
        if record == RESERVED:
            continue
        if len(found) >= limit:
            return [found, True]
        found.append(key[len(prefix) :])
    return [found, False]


def _ends(engine: Engine, meta: Meta, after: int, limit: int) -> list[Any]:
    rows: list[Any] = []
    for key, record in engine.scan(keys.ended_grant(after + 1), keys.ENDED_GRANT_END):
        if len(rows) >= min(limit, LIST_MAX):
            break
        lease_id, kind, _count = unpack(record)
        generation = int.from_bytes(key[len(keys.ENDED_GRANT) :], "big")
        rows.append([generation, lease_id, kind, _shards(engine, meta, generation)])
    return rows


def _clock(_engine: Engine, _meta: Meta) -> None:
    return None


QUERIES: Final[dict[str, Callable[..., Any]]] = {
    "lease": _lease,
    "leases": _leases,
    "lease_list": _list,
    "lease_shards": _shards,
    "lease_keys": _keys,
    "lease_ends": _ends,
    "clock": _clock,
}
