"""Ranges of keys over all shards: ordered scans by cursor, counts, range deletes.

A scan merges the shards' ordered pages. The first page of each shard fixes its snapshot; the cursor
carries all the snapshots' revisions, so that every page of one scan shows the same state, and `pos` names
it to a watch. Shards hold equal shares of the keys, so each is asked for its share of the page and some
slack, and again only if it runs dry before the others.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Sequence
from typing import Any

import msgspec

from kvstore.errors import ConfirmRequired, InvalidArgument, KvError, OutcomeUnknown
from kvstore.node.api.context import CONSISTENCIES, Context
from kvstore.node.api.items import item_fields
from kvstore.node.api.kv import consistency_of
from kvstore.node.api.reserved import check_writable, writable_parts
from kvstore.node.calls import Answer, ReadAnswer
from kvstore.node.flow import Promise, gather, spawn
from kvstore.node.requests import BodyStream, Request, Response
from kvstore.node.watch import positions
from kvstore.store import commands
from kvstore.store.results import error_of
from kvstore.types import ShardId
from kvstore.wire import api

log = logging.getLogger(__name__)

_encode_line = msgspec.json.Encoder().encode

NDJSON = b"Content-Type: application/x-ndjson\r\n"
_SLACK_ITEMS = 4
_SLACK_BYTES = 65_536
_STREAM_PAGE_ITEMS = 512
_DELETE_PASSES_MAX = 100_000
_NOTHING = (b"", b"\x00")
"""A range that only the empty key could be in, which does not exist."""


class KeyRange(msgspec.Struct, frozen=True):
    """start <= key < end in byte order, never end <= start; `end` None: to the last key."""

    start: bytes
    end: bytes | None
    is_descending: bool = False


def end_of_prefix(prefix: bytes) -> bytes | None:
    """The first key behind all those with the prefix; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


def range_of(query: api.Query, order: str = "asc") -> KeyRange:
    """The keys named by `prefix`, `start` and `end`, which narrow each other."""
    prefix, start, end = query.get("prefix", b""), query.get("start", b""), query.get("end")
    low, high = max(prefix, start), end_of_prefix(prefix) if prefix else None
    if end is not None and end:
        high = end if high is None else min(high, end)
    if high is not None and high <= low:
        low, high = _NOTHING
    return KeyRange(low, high, order == "desc")


class Cursor(msgspec.Struct, frozen=True):
    """Where a scan goes on: behind `after`, in the snapshots of `revisions` (by shard, in token order)."""

    keys: KeyRange
    after: bytes
    revisions: tuple[int, ...]

    def sealed(self) -> str:
        keys = self.keys
        return api.seal(
            "cursor", [keys.start, keys.end, keys.is_descending, self.after, list(self.revisions)]
        )

    @staticmethod
    def unsealed(text: str, shard_count: int) -> Cursor:
        """Raises InvalidArgument for anything that is not a cursor of this cluster."""
        match api.unseal("cursor", text):
            case [bytes(start), bytes() | None as end, bool(descending), bytes(after), [*revisions]]:
                is_range = end is None or start < end
                if is_range and len(revisions) == shard_count and all(map(_is_revision, revisions)):
                    return Cursor(KeyRange(start, end, descending), after, tuple(revisions))
        raise InvalidArgument("the cursor is not one this service gave out", parameter="cursor")


def _is_revision(candidate: Any) -> bool:
    return type(candidate) is int and 0 <= candidate <= api.INT64_MAX


class _ShardPages:
    """One shard's part of a scan: a buffer of items, and whether more lie behind them."""

    __slots__ = ("has_more", "index", "items", "last", "revision", "shard")

    def __init__(self, index: int, shard: ShardId, revision: int | None, after: bytes | None) -> None:
        self.index = index
        self.shard = shard
        self.revision = revision
        self.last = after
        self.items: list[Any] = []
        """Items still to be merged, reversed, so that the next one is popped from the end."""
        self.has_more = True


class Scan:
    """One scan in progress: yields items in key order, a shard's page at a time."""

    def __init__(
        self,
        context: Context,
        keys: KeyRange,
        cursor: Cursor | None,
        *,
        keys_only: bool,
        consistency: str,
        max_staleness_s: float | None,
        deadline: float,
    ) -> None:
        self._context = context
        self._keys = keys
        self._keys_only = keys_only
        self._consistency = consistency
        self._max_staleness_s = max_staleness_s
        self.deadline = deadline
        self.staleness_s: float | None = None
        shards = context.router.shards()
        revisions: Sequence[int | None] = [None] * len(shards) if cursor is None else cursor.revisions
        after = None if cursor is None else cursor.after
        self._parts = [
            _ShardPages(index, shard, revision, after)
            for index, (shard, revision) in enumerate(zip(shards, revisions, strict=True))
        ]
        self._last = after

    async def page(self, items_max: int, bytes_max: int) -> tuple[list[list[Any]], bool]:
        """The next items in key order, and whether more may follow."""
        count = len(self._parts)
        # Keys are spread by hash: two standard deviations above the mean seldom run dry.
        mean = items_max // count
        share = min(items_max, mean + 2 * math.isqrt(mean) + _SLACK_ITEMS)
        share_bytes = min(bytes_max, 2 * bytes_max // count + _SLACK_BYTES)
        dry = [part for part in self._parts if not part.items and part.has_more]
        await self._refill(dry, share, share_bytes)
        found: list[list[Any]] = []
        sign = self._keys.is_descending
        heap = [_Head(part.items[-1][0], sign, part) for part in self._parts if part.items]
        heapq.heapify(heap)
        size = 0
        while heap and len(found) < items_max and (size < bytes_max or not found):
            part = heap[0].part
            item = part.items.pop()
            found.append(item)
            size += len(item[0]) + len(item[1] or b"")
            if not part.items and part.has_more:
                await self._refill([part], share, share_bytes)
            if part.items:
                heapq.heapreplace(heap, _Head(part.items[-1][0], sign, part))
            else:
                heapq.heappop(heap)
        if found:
            self._last = found[-1][0]
        return found, any(part.items or part.has_more for part in self._parts)

    async def _refill(self, parts: list[_ShardPages], items_max: int, bytes_max: int) -> None:
        """Fetch the next page of each part, all at once."""
        await gather([self._fetch(part, items_max, bytes_max) for part in parts])

    def _fetch(self, part: _ShardPages, items_max: int, bytes_max: int) -> Promise[None]:
        options: dict[str, Any] = {"limit": items_max, "bytes": bytes_max}
        if part.revision is not None:
            options["revision"] = part.revision
        if part.last is not None:
            options["after"] = part.last
        if self._keys.is_descending:
            options["reverse"] = True
        if self._keys_only:
            options["keys_only"] = True
        done: Promise[None] = Promise()

        def arrived(answer: ReadAnswer | None, error: BaseException | None) -> None:
            if answer is None:
                assert error is not None
                done.fail(error)
                return
            items, part.has_more, part.revision, last = answer.value
            part.items = items[::-1]
            part.last = last if last is not None else part.last
            if answer.staleness_s is not None:
                self.staleness_s = max(self.staleness_s or 0.0, answer.staleness_s)
            done.resolve(None)

        self._context.router.read_then(
            part.shard,
            ("scan", self._keys.start, self._keys.end, options),
            self._consistency,
            self.deadline,
            arrived,
            self._max_staleness_s,
        )
        return done

    def revisions(self) -> tuple[int, ...]:
        return tuple(part.revision or 0 for part in self._parts)

    def cursor(self) -> Cursor:
        assert self._last is not None, "a cursor needs a page before it"
        return Cursor(self._keys, self._last, self.revisions())

    def position(self) -> str:
        return position_of(self.revisions())


class _Head:
    """A shard's next key in the merge. Keys are unique over shards, so ties cannot happen."""

    __slots__ = ("is_descending", "key", "part")

    def __init__(self, key: bytes, is_descending: bool, part: _ShardPages) -> None:
        self.key = key
        self.is_descending = is_descending
        self.part = part

    def __lt__(self, other: _Head) -> bool:
        return self.key > other.key if self.is_descending else self.key < other.key


def position_of(revisions: Sequence[int]) -> str:
    """The watch position of a snapshot: what happened up to these revisions has been seen."""
    return positions.seal_all([positions.behind(revision) for revision in revisions])


# --- handlers ------------------------------------------------------------------------------------


def scan(context: Context, request: Request, query: api.Query) -> None:
    consistency, max_staleness_s = consistency_of(query)
    assert consistency in CONSISTENCIES
    cursor_text = api.text_of(query, "cursor")
    keys = range_of(query, api.choice_of(query, "order", ("asc", "desc"), "asc"))
    cursor = None
    if cursor_text is not None:
        cursor = Cursor.unsealed(cursor_text, len(context.router.shards()))
        names_range = any(name in query for name in ("prefix", "start", "end", "order"))
        if names_range and cursor.keys != keys:
            raise InvalidArgument("the cursor belongs to a scan of another range", parameter="cursor")
        keys = cursor.keys
    limit = api.integer_of(query, "limit", 1, api.INT64_MAX)
    reader = Scan(
        context,
        keys,
        cursor,
        keys_only=api.flag_of(query, "keys_only"),
        consistency=consistency,
        max_staleness_s=max_staleness_s,
        deadline=context.deadline(request),
    )
    if api.flag_of(query, "count_only"):
        if cursor is not None:
            raise InvalidArgument("count_only counts the whole range: it takes no cursor", parameter="cursor")
        work = _answer_count(context, request, keys, consistency, max_staleness_s)
    elif "application/x-ndjson" in (request.headers.get("Accept") or ""):
        work = _stream(context, request, reader, limit)
    else:
        work = _answer_page(context, request, reader, limit)
    _answering(context, request, spawn(work))


def _answering(context: Context, request: Request, work: Promise[None]) -> None:
    """Turn a failed piece of work into the request's answer."""

    def finished(promise: Promise[None]) -> None:
        if promise.error is None:
            return
        if request.is_answered:
            log.error("stream of request %s broke off", request.id.decode(), exc_info=promise.error)
        else:
            context.fail(request, promise.error)

    work.on_done(finished)


async def _answer_page(context: Context, request: Request, reader: Scan, limit: int | None) -> None:
    limits = context.limits
    items_max = min(limit or limits.scan_page_items, limits.scan_page_items)
    items, has_more = await reader.page(items_max, limits.scan_page_bytes)
    is_msgpack = api.wants_msgpack(request.headers)
    content = {
        "items": [item_fields(item[1:], is_msgpack, item[0]) for item in items],
        "next": reader.cursor().sealed() if has_more else None,
        "count": len(items),
        "pos": reader.position(),
    }
    context.respond_content(request, 200, content, _head(context, request, reader.staleness_s))


def _head(context: Context, request: Request, staleness_s: float | None) -> bytes:
    head = context.head(request)
    return head if staleness_s is None else head + b"KV-Staleness: %.3f\r\n" % staleness_s


async def _answer_count(
    context: Context, request: Request, keys: KeyRange, consistency: str, max_staleness_s: float | None
) -> None:
    deadline = context.deadline(request)
    counts = await count_all(context, keys, consistency, max_staleness_s, deadline)
    content: dict[str, Any] = {
        "items": [],
        "next": None,
        "count": sum(count for count, _ in counts),
        "pos": position_of([revision for _, revision in counts]),
    }
    context.respond_content(request, 200, content, context.head(request))


async def count_all(
    context: Context, keys: KeyRange, consistency: str, max_staleness_s: float | None, deadline: float
) -> list[tuple[int, int]]:
    """(keys, revision) of each shard, in token order."""

    async def count(shard: ShardId) -> tuple[int, int]:
        total, options = 0, dict[str, Any]()
        while True:
            query = ("count", keys.start, keys.end, options)
            answer = await context.router.read(shard, query, consistency, deadline, max_staleness_s)
            found, has_more, revision, last = answer.value
            total += found
            if not has_more:
                return total, revision
            options = {"after": last, "revision": revision}

    return await gather([spawn(count(shard)) for shard in context.router.shards()])


async def _stream(context: Context, request: Request, reader: Scan, limit: int | None) -> None:
    """NDJSON: a line per item, and a last line that says that nothing was cut. The deadline is each
    page's own: a stream takes as long as its reader wants."""
    page_s = reader.deadline - request.started_s
    page_max = min(_STREAM_PAGE_ITEMS, context.limits.scan_page_items)
    bytes_max = context.limits.scan_page_bytes
    items, has_more = await reader.page(min(limit or page_max, page_max), bytes_max)
    stream = request.respond_stream(Response(200, NDJSON + _head(context, request, reader.staleness_s)))
    count = len(items)
    try:
        while True:
            lines = [_item_line(item) for item in items]
            if lines and not stream.write(b"".join(lines)):
                await _drained(stream)
            left = page_max if limit is None else limit - count
            if not stream.is_open or not has_more or left == 0:
                break
            reader.deadline = context.now() + page_s
            items, has_more = await reader.page(min(left, page_max), bytes_max)
            count += len(items)
        following = reader.cursor().sealed() if has_more else None
        end = {"type": "end", "count": count, "next": following, "pos": reader.position()}
        stream.write(_encode_line(end) + b"\n")
    except KvError as error:
        stream.write(_encode_line({**api.problem_document(error), "type": "error"}) + b"\n")
    finally:
        stream.end()
    context.metrics.observe_request(request.route, request.method, 200, context.now() - request.started_s)


def _item_line(item: list[Any]) -> bytes:
    return _encode_line({"type": "item", **item_fields(item[1:], False, item[0])}) + b"\n"


def _drained(stream: BodyStream) -> Promise[None]:
    promise: Promise[None] = Promise()
    stream.on_drain(lambda: promise.resolve(None))
    return promise


# --- range deletes -------------------------------------------------------------------------------


def delete_range(context: Context, request: Request, query: api.Query) -> None:
    if not any(name in query for name in ("prefix", "start", "end")):
        raise InvalidArgument("name the keys to delete: prefix, or start and end; prefix= means all keys")
    confirm = api.text_of(query, "confirm")
    if confirm is not None and confirm != "*":
        api.integer(confirm, "query parameter 'confirm' (the count of keys, or *)", 0, api.INT64_MAX)
    _answering(context, request, spawn(_delete_range(context, request, range_of(query), confirm)))


async def _delete_range(context: Context, request: Request, keys: KeyRange, confirm: str | None) -> None:
    identity = context.identity(request)
    deadline = context.deadline(request)
    writable = [KeyRange(start, end) for start, end in writable_parts(keys.start, keys.end)]
    if not writable:
        check_writable(keys.start, "every key of the range")
    if confirm != "*":
        total = 0
        for piece in writable:
            counts = await count_all(context, piece, "linearizable", None, deadline)
            total += sum(count for count, _ in counts)
        if confirm is None or int(confirm) != total:
            raise ConfirmRequired(
                f"this would delete {total} keys: repeat it with confirm={total} or confirm=*", count=total
            )
    shards = context.router.shards()
    parts = [spawn(_delete_in(context, shard, writable, identity, deadline)) for shard in shards]
    settled: Promise[None] = Promise()
    waiting = len(parts)

    def one_settled(_part: Promise[tuple[int, bool]]) -> None:
        nonlocal waiting
        waiting -= 1
        if waiting == 0:
            settled.resolve(None)

    for part in parts:
        part.on_done(one_settled)
    await settled
    errors = [part.error for part in parts if part.error is not None]
    outcomes = [part.result() for part in parts if part.error is None]
    deleted = sum(count for count, _ in outcomes)
    if errors:
        raise _worst(errors, deleted, anything_done=bool(outcomes))
    head = context.head(request)
    if all(replayed for _, replayed in outcomes):
        head += b"Idempotency-Replayed: true\r\n"
    context.respond_content(request, 200, {"deleted": deleted}, head)


def _worst(errors: list[BaseException], deleted: int, *, anything_done: bool) -> BaseException:
    """What the whole request failed with. A part that happened makes it a matter of outcome."""
    ours = next((error for error in errors if not isinstance(error, KvError)), None)
    if ours is not None:
        return ours
    if not anything_done and not any(isinstance(error, OutcomeUnknown) for error in errors):
        return errors[0]
    detail = f"{len(errors)} shards did not confirm; {deleted} keys are known to be deleted: {errors[0]}"
    return OutcomeUnknown(detail, deleted=deleted)


async def _delete_in(
    context: Context,
    shard: ShardId,
    ranges: list[KeyRange],
    identity: commands.Identity | None,
    deadline: float,
) -> tuple[int, bool]:
    """Delete the ranges in one shard, in commands of bounded work. Returns (keys deleted, all replayed)."""
    deleted, all_replayed = 0, True
    for index in range(_DELETE_PASSES_MAX):
        first_index = index * len(ranges)
        whose = None if identity is None else msgspec.structs.replace(identity, first_index=first_index)
        command = commands.encode(whose, [commands.delete_range(keys.start, keys.end) for keys in ranges])
        try:
            answer: Answer = await context.router.write(shard, command, identity is not None, deadline)
        except OutcomeUnknown:
            raise
        except KvError as error:
            if deleted:
                raise OutcomeUnknown(f"shard {shard} was done in part: {error}", deleted=deleted) from error
            raise
        all_replayed = all_replayed and answer.result.replayed
        has_more = False
        for result in answer.result.results:
            refusal = error_of(result)
            if refusal is not None:
                raise refusal
            deleted += result[2]
            has_more = has_more or result[3]
        if not has_more:
            return deleted, all_replayed
    raise OutcomeUnknown(f"shard {shard} holds more keys than one request deletes", deleted=deleted)
