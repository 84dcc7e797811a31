"""Reads of a tablet. A query is a msgpack-able list `[name, ...]`, and so is its answer.

| query | answer |
|---|---|
| `["get", key, revision or None]` | None, or an item (see `results`) |
| `["wait", key, revision]` | as `get`; worth waiting for while the key's revision (0: absent) is that one; \
None: while it exists |
| `["revision"]` | `[revision, compacted]` |
| `["gets", [key, ...]]` | for each key None or an item, at the newest revision |
| `["scan", start, end or None, options]` | `[[[key, *item], ...], more, revision, last key or None]` |
| `["count", start, end or None, options]` | `[count, more, revision, last key or None]` |
| `["changes", from revision, options]` | `[[change, ...], next revision]` |
| `["claim", lock name, claim]` | None: no entry, or `[its fence, 0 while it waits]` |
| `["holder", lock name]` | None, or `[value, fence, due clock, how many wait]` |
| `["lease", id, shard or None]` | None, or `[generation, ttl_ms, deadline_ms, shard is registered]` |
| `["leases", [id, ...]]` | for each id None, or `[generation, ttl_ms, deadline_ms]` |
| `["lease_list", after id, limit]` | `[[[id, ttl_ms, deadline_ms], ...], more]` |
| `["lease_shards", generation]` | shards that are registered for the grant |
| `["lease_keys", id, generation, after key, limit]` | `[[key, ...], more]` |
| `["lease_ends", after generation, limit]` | `[[generation, id, kind, [shard, ...]], ...]` |
| `["clock"]` | None: for the clock that every answer carries |
| `["info"]` | a map of the tablet's counters |

Ranges are start <= key < end in byte order; `end` None: to the last key. Options, all of them optional:
`revision` (a snapshot; default the newest, and the answer says which one it was), `after` (go on behind
this key), `limit` (keys; at most `KEYS_MAX`), `bytes` (of keys and values; at least one item is given),
`reverse`, `keys_only` (values are None). `more` says that the range may hold further keys: go on with
`after` = last key and `revision` = the answer's, so that all pages show one snapshot.

A change is `[revision, kind, key, item, prev, before, after]`, its item the key's version of that change,
None for a deletion; its kind one of `records`: 0 put, 1 deleted, 2 expired. `prev` is what it replaced if
the option `prev` asks for it, else None. `before` and `after` count the other changes of the same revision,
of any key. Options: `keys` and `prefixes` (only changes of these keys and below these prefixes), `limit`
(changes looked at), `bytes` (of values given out), both to the end of the revision at hand.

Raises: Compacted for revisions below the tablet's `compacted`, RevisionInFuture above its newest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from kvstore.errors import Compacted, Corrupt, InvalidArgument, RevisionInFuture
from kvstore.store import changes, keys, lease_queries, lock_queue, records
from kvstore.store.engine import Engine
from kvstore.store.records import HEAD_BYTES, Change, Meta, unpack_head

KEYS_MAX: Final = 10_000
"""Keys one scan looks at; a count may look at `COUNT_KEYS_MAX`."""
BYTES_MAX: Final = 16 << 20
COUNT_KEYS_MAX: Final = 100_000
_STEPS_BEFORE_SEEK: Final = 8
"""A step costs 0.25 us and a seek 4: skipping more marks than this is cheaper by seek."""

Options = dict[str, Any]


def run(engine: Engine, meta: Meta, query: list[Any]) -> Any:
    """Answer `query` from the engine, whose state `meta` describes."""
    answer = _QUERIES.get(query[0])
    if answer is None:
        raise InvalidArgument(f"unknown query {query[0]!r}")
    return answer(engine, meta, *query[1:])


def _get(engine: Engine, meta: Meta, key: bytes, revision: int | None = None) -> Any:
    if revision is None:
        head = engine.get(b"h" + key)
        return None if head is None else records.item(head)
    record = record_at(engine, key, _readable(meta, revision))
    return None if record is None else records.item(record)


def _wait(engine: Engine, meta: Meta, key: bytes, _known: int | None) -> Any:
    return _get(engine, meta, key)


def _revision(_engine: Engine, meta: Meta) -> list[int]:
    return [meta.revision, meta.compacted]


def _gets(engine: Engine, _meta: Meta, record_keys: list[bytes]) -> list[Any]:
    found = engine.get_many([b"h" + key for key in record_keys])
    return [None if record is None else records.item(record) for record in found]


def _readable(meta: Meta, revision: int | None) -> int:
    if revision is None:
        return meta.revision
    if revision < meta.compacted:
        raise Compacted(
            f"revision {revision} is compacted, the oldest is {meta.compacted}", compacted=meta.compacted
        )
    if revision > meta.revision:
        raise RevisionInFuture(
            f"revision {revision} is above the newest, {meta.revision}", revision=meta.revision
        )
    return revision


def record_at(engine: Engine, key: bytes, revision: int) -> bytes | None:
    """The key's record as of `revision`, None if it was absent. Must not be below the compaction point."""
    head = engine.get(b"h" + key)
    if head is not None and unpack_head(head)[1] <= revision:
        return head
    return _replaced_after(engine, key, revision, head)


def _replaced_after(engine: Engine, key: bytes, revision: int, head: bytes | None) -> bytes | None:
    """The record that the first change of `key` above `revision` replaced.

    Enter the key's past at the nearest mark above, or at the head, and follow the changes down. There is
    always a mark where the key was deleted, so that the way never leads through an absence."""
    at = 0 if head is None else unpack_head(head)[1]
    for mark, _ in engine.scan(keys.marks_of(key), keys.mark(key, revision), reverse=True):
        at = keys.mark_parts(mark)[1]
        break
    while at:
        change = _change_of(engine, key, at)
        if change.replaced <= revision:
            return engine.get(keys.old(at, key)) if change.old is True else change.old or None
        at = change.replaced
    return None


def _change_of(engine: Engine, key: bytes, revision: int) -> Change:
    for record_key, record in engine.scan(keys.CHANGE, keys.change(revision + 1), reverse=True):
        change = records.find_change(int.from_bytes(record_key[1:], "big"), record, revision, key)
        if change is not None:
            return change
        break
    raise Corrupt(f"no change of key {key!r} at revision {revision}")


def _bounds(start: bytes, end: bytes | None, options: Options) -> tuple[bytes, bytes | None]:
    """The range without what lies at and before `after`."""
    after = options.get("after")
    if after is None:
        return start, end
    if options.get("reverse"):
        return start, after if end is None else min(after, end)
    return max(start, after + b"\x00"), end


def _scan(engine: Engine, meta: Meta, start: bytes, end: bytes | None, options: Options) -> list[Any]:
    revision = _readable(meta, options.get("revision"))
    start, end = _bounds(start, end, options)
    limit = min(options.get("limit") or KEYS_MAX, KEYS_MAX)
    bytes_left = min(options.get("bytes") or BYTES_MAX, BYTES_MAX)
    keys_only = options.get("keys_only", False)
    items: list[Any] = []
    last: bytes | None = None
    for key, record in _visible(engine, meta, start, end, revision, bool(options.get("reverse"))):
        if len(items) >= limit or (bytes_left <= 0 and items):
            return [items, True, revision, last]
        last = key
        item = records.item(record)
        if keys_only:
            item[0] = None
            bytes_left -= len(key)
        else:
            bytes_left -= len(key) + len(record) - HEAD_BYTES
        items.append([key, *item])
    return [items, False, revision, last]


def _count(engine: Engine, meta: Meta, start: bytes, end: bytes | None, options: Options) -> list[Any]:
    revision = _readable(meta, options.get("revision"))
    start, end = _bounds(start, end, options)
    limit = min(options.get("limit") or COUNT_KEYS_MAX, COUNT_KEYS_MAX)
    count = 0
    last: bytes | None = None
    for key, _ in _visible(engine, meta, start, end, revision, bool(options.get("reverse"))):
        if count >= limit:
            return [count, True, revision, last]
        count += 1
        last = key
    return [count, False, revision, last]


def _visible(
    engine: Engine, meta: Meta, start: bytes, end: bytes | None, revision: int, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Keys that exist at `revision`, with their records as of it."""
    heads = engine.scan(b"h" + start, keys.HEAD_END if end is None else b"h" + end, reverse=reverse)
    if revision == meta.revision:
        for record_key, record in heads:
            yield record_key[1:], record
        return
    # Keys deleted since then have no head, but a mark.
    marked = _marked_keys(engine, start, end, reverse)
    head, key = next(heads, None), next(marked, None)
    while head is not None or key is not None:
        if head is None or (key is not None and (key > head[0][1:] if reverse else key < head[0][1:])):
            assert key is not None
            found = _replaced_after(engine, key, revision, None)
            if found is not None:
                yield key, found
            key = next(marked, None)
            continue
        if key == head[0][1:]:
            key = next(marked, None)
        found = head[1]
        if unpack_head(found)[1] > revision:
            found = _replaced_after(engine, head[0][1:], revision, found)
        if found is not None:
            yield head[0][1:], found
        head = next(heads, None)


def _marked_keys(engine: Engine, start: bytes, end: bytes | None, reverse: bool) -> Iterator[bytes]:
    """Each key that has marks, once."""
    low = keys.MARK + keys.escaped(start)
    high = keys.MARK_END if end is None else keys.MARK + keys.escaped(end)
    while True:
        steps, prefix = 0, b""
        for record_key, _ in engine.scan(low, high, reverse=reverse):
            if record_key[:-8] != prefix:
                steps, prefix = 0, record_key[:-8]
                yield keys.unescaped(prefix[1:])
            steps += 1
            if steps > _STEPS_BEFORE_SEEK:
                break
        else:
            return
        if reverse:
            high = prefix
        else:
            low = keys.marks_end(keys.unescaped(prefix[1:]))


def _changes(engine: Engine, meta: Meta, from_revision: int, options: Options) -> list[Any]:
    if from_revision < meta.compacted:
        _readable(meta, from_revision)
    return changes.read(
        engine, meta.revision, from_revision, options, lambda key, revision: record_at(engine, key, revision)
    )


def _claim(engine: Engine, _meta: Meta, name: bytes, claim: bytes) -> Any:
    return lock_queue.find_claim(engine, name, claim)


def _holder(engine: Engine, _meta: Meta, name: bytes) -> Any:
    return lock_queue.find_holder(engine, name)


def _info(engine: Engine, meta: Meta) -> dict[str, int]:
    return {**meta._asdict(), "bytes": engine.byte_count()}


_QUERIES: Final[dict[str, Callable[..., Any]]] = {
    "get": _get,
    "wait": _wait,
    "revision": _revision,
    "gets": _gets,
    "scan": _scan,
    "count": _count,
    "changes": _changes,
    "claim": _claim,
    "holder": _holder,
    "info": _info,
    **lease_queries.QUERIES,
}
