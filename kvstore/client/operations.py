"""Every operation of the clients as a `Call`: which request it is, and how its answer reads.

Both clients build their calls here, so that they cannot differ in anything but how they wait.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any, NamedTuple

from kvstore.client import codec
from kvstore.client.exchange import Reply
from kvstore.client.plan import Call, Kind
from kvstore.client.results import DeleteResult, IncrResult, Item, PutResult
from kvstore.errors import InvalidArgument, ReadTimeout, RevisionInFuture

ACCEPT_MSGPACK = ("Accept", codec.MSGPACK)
JSON_BODY = ("Content-Type", "application/json")
CONSISTENCIES = ("linearizable", "lease", "stale")
_ABSENT = ("key-not-found",)
PAGE_ITEMS = 500
"""Items that one request of a scan asks for."""


class Page(NamedTuple):
    """One answer of a scan."""

    items: list[Item]
    next: str | None
    """Cursor of the page after this one; None at the end."""
    pos: str | None = None
    """Where a watch must begin to miss nothing that is newer than the scan."""


class Range(NamedTuple):
    """Which keys a scan covers: those with a prefix, or start <= key < end, within one consistency."""

    prefix: bytes | None = None
    start: bytes | None = None
    end: bytes | None = None
    is_descending: bool = False
    keys_only: bool = False
    consistency: str = "linearizable"
    max_staleness_s: float | None = None


def key_range(
    prefix: str | bytes | None,
    start: str | bytes | None,
    end: str | bytes | None,
    *,
    reverse: bool = False,
    keys_only: bool = False,
    consistency: str = "linearizable",
    max_staleness_s: float | None = None,
) -> Range:
    """Check and encode the arguments of a scan. Raises InvalidArgument."""
    if prefix is not None and (start is not None or end is not None):
        raise InvalidArgument("give either prefix, or start and end")
    check_consistency(consistency, max_staleness_s)
    return Range(_bound(prefix), _bound(start), _bound(end), reverse, keys_only, consistency, max_staleness_s)


def _bound(bound: str | bytes | None) -> bytes | None:
    return codec.value_bytes(bound) if bound else None


def check_consistency(consistency: str, max_staleness_s: float | None) -> None:
    if consistency not in CONSISTENCIES:
        raise InvalidArgument(f"consistency {consistency!r}: expected one of {', '.join(CONSISTENCIES)}")
    if max_staleness_s is not None and consistency != "stale":
        raise InvalidArgument('max_staleness is only for consistency="stale"')


def _read_parameters(consistency: str, max_staleness_s: float | None) -> dict[str, str | None]:
    return {
        "consistency": None if consistency == "linearizable" else consistency,
        "max_staleness": None if max_staleness_s is None else codec.milliseconds(max_staleness_s),
    }


# Single keys.


def put(
    key: str | bytes,
    value: str | bytes,
    *,
    ttl: float | None = None,
    lease: str | None = None,
    if_revision: int | None = None,
    if_absent: bool = False,
    prev: bool = False,
    content_type: str | None = None,
) -> Call[PutResult]:
    encoded = codec.key_bytes(key)
    headers = _conditions(if_revision, if_absent)
    if content_type is not None:
        headers.append(("Content-Type", content_type))
    if prev:
        headers.append(ACCEPT_MSGPACK)
    ttl_text = None if ttl is None else codec.milliseconds(ttl)
    return Call(
        Kind.WRITE,
        "PUT",
        codec.query(codec.key_path(encoded), ttl=ttl_text, lease=lease, prev=1 if prev else None),
        lambda reply: put_result(codec.document(reply), encoded, replayed=_is_replayed(reply)),
        body=codec.value_bytes(value),
        headers=tuple(headers),
        key=encoded,
    )


def put_result(fields: dict[str, Any], key: bytes, *, replayed: bool = False) -> PutResult:
    return PutResult(
        revision=codec.integer(fields, "revision"),
        version=codec.integer(fields, "version"),
        created=bool(fields.get("created")),
        prev=_prev(fields, key),
        replayed=replayed,
    )


def get(
    key: str | bytes,
    *,
    revision: int | None = None,
    consistency: str = "linearizable",
    max_staleness_s: float | None = None,
) -> Call[Item | None]:
    encoded = codec.key_bytes(key)
    check_consistency(consistency, max_staleness_s)
    if revision is not None and revision < 0:
        raise RevisionInFuture(f"revision {revision}: expected a number from 0 up")
    parameters = _read_parameters(consistency, max_staleness_s)
    return Call(
        Kind.READ,
        "GET",
        codec.query(codec.key_path(encoded), revision=revision, **parameters),
        lambda reply: None if reply.status == 404 else codec.item_from_headers(encoded, reply),
        key=encoded,
        is_anywhere=consistency == "stale",
        absent=_ABSENT,
    )


def wait_for(key: str | bytes, revision: int, wait_s: float) -> Call[Item | None]:
    """Read the key once its revision is another. Raises ReadTimeout when it stays as it is."""
    encoded = codec.key_bytes(key)

    def waiting(left_s: float) -> tuple[str, bytes]:
        return codec.query(codec.key_path(encoded), wait=codec.milliseconds(left_s)), b""

    def decode(reply: Reply) -> Item | None:
        if reply.status == 304:
            raise ReadTimeout(f"the key has not changed within {wait_s:g} s")
        return None if reply.status == 404 else codec.item_from_headers(encoded, reply)

    return Call(
        Kind.READ,
        "GET",
        waiting(wait_s)[0],
        decode,
        headers=(("If-None-Match", f'"{revision}"'),),
        key=encoded,
        absent=_ABSENT,
        wait_s=wait_s,
        waiting=waiting,
    )


def delete(key: str | bytes, *, if_revision: int | None = None, prev: bool = False) -> Call[DeleteResult]:
    encoded = codec.key_bytes(key)
    headers = _conditions(if_revision, False)
    if prev:
        headers.append(ACCEPT_MSGPACK)
    return Call(
        Kind.WRITE,
        "DELETE",
        codec.query(codec.key_path(encoded), prev=1 if prev else None),
        lambda reply: delete_result(codec.document(reply), encoded, replayed=_is_replayed(reply)),
        headers=tuple(headers),
        key=encoded,
    )


def delete_result(fields: dict[str, Any], key: bytes, *, replayed: bool = False) -> DeleteResult:
    revision = fields.get("revision")
    return DeleteResult(
        deleted=codec.integer(fields, "deleted"),
        revision=revision if isinstance(revision, int) else None,
        prev=_prev(fields, key),
        replayed=replayed,
    )


def incr(
    key: str | bytes, by: int = 1, *, min: int | None = None, max: int | None = None
) -> Call[IncrResult]:
    encoded = codec.key_bytes(key)
    return Call(
        Kind.WRITE,
        "POST",
        codec.query(codec.key_path(encoded), op="incr"),
        lambda reply: incr_result(codec.document(reply), replayed=_is_replayed(reply)),
        body=json.dumps({"by": by, "min": min, "max": max}).encode(),
        headers=(JSON_BODY,),
        key=encoded,
    )


def incr_result(fields: dict[str, Any], *, replayed: bool = False) -> IncrResult:
    return IncrResult(codec.integer(fields, "value"), codec.integer(fields, "revision"), replayed)


def _conditions(if_revision: int | None, if_absent: bool) -> list[tuple[str, str]]:
    if if_revision is not None and if_absent:
        raise InvalidArgument("give either if_revision or if_absent")
    if if_absent:
        return [("If-None-Match", "*")]
    return [] if if_revision is None else [("If-Match", f'"{if_revision}"')]


def _prev(fields: dict[str, Any], key: bytes) -> Item | None:
    found = fields.get("prev")
    return codec.item(found, key) if isinstance(found, dict) else None


def _is_replayed(reply: Reply) -> bool:
    return reply.headers.get("idempotency-replayed") == "true"


# Ranges.


def scan_page(keys: Range, cursor: str | None, limit: int) -> Call[Page]:
    return Call(
        Kind.READ,
        "GET",
        codec.query(
            "/v1/kv",
            prefix=keys.prefix,
            start=keys.start,
            end=keys.end,
            limit=limit,
            cursor=cursor,
            keys_only=1 if keys.keys_only else None,
            order="desc" if keys.is_descending else None,
            **_read_parameters(keys.consistency, keys.max_staleness_s),
        ),
        _page,
        headers=(ACCEPT_MSGPACK,),
        is_anywhere=keys.consistency == "stale",
    )


def _page(reply: Reply) -> Page:
    fields = codec.document(reply)
    items, cursor = fields.get("items"), fields.get("next")
    if not isinstance(items, list):
        raise codec.Garbled("a page without items")
    pos = fields.get("pos")
    return Page(
        [codec.item(each) for each in items],
        cursor if isinstance(cursor, str) else None,
        pos if isinstance(pos, str) else None,
    )


class Pages:
    """How far a scan has come."""

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self._is_over = False
        self.cursor: str | None = None
        self.pos: str | None = None
        self.ready: deque[Item] = deque()

    @property
    def next_count(self) -> int:
        """Items to ask for next; 0 at the end."""
        if self._is_over or self._left == 0:
            return 0
        return PAGE_ITEMS if self._left is None else min(self._left, PAGE_ITEMS)

    def take(self, page: Page) -> None:
        self.ready.extend(page.items)
        self.cursor = page.next
        self._is_over = page.next is None
        if self.pos is None:
            self.pos = page.pos
        if self._left is not None:
            self._left = max(0, self._left - len(page.items))


def count(keys: Range) -> Call[int]:
    return Call(
        Kind.READ,
        "GET",
        codec.query(
            "/v1/kv",
            prefix=keys.prefix,
            start=keys.start,
            end=keys.end,
            count_only=1,
            **_read_parameters(keys.consistency, keys.max_staleness_s),
        ),
        lambda reply: codec.integer(codec.document(reply), "count"),
        is_anywhere=keys.consistency == "stale",
        is_long=True,
    )


def delete_range(prefix: str | bytes) -> Call[int]:
    return Call(
        Kind.WRITE,
        "DELETE",
        codec.query("/v1/kv", prefix=codec.value_bytes(prefix), confirm="*"),
        lambda reply: codec.integer(codec.document(reply), "deleted"),
        is_long=True,
    )


# The cluster's own documents.


def fetch(method: str, target: str, body: Any = None) -> Call[Any]:
    """Any request whose answer is a document. A request that is not a GET must be repeatable."""
    return Call(
        Kind.READ if method == "GET" else Kind.REPEATABLE,
        method,
        target,
        codec.content,
        body=b"" if body is None else json.dumps(body).encode(),
        headers=() if body is None else (JSON_BODY,),
        is_long=method != "GET",
    )


def explain(key: str | bytes) -> Call[Any]:
    encoded = codec.key_bytes(key)
    return fetch("GET", codec.key_path(encoded).replace("/v1/kv/", "/v1/keys/", 1) + "/explain")
