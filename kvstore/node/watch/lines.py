"""What a watch sends, as lines of JSON or as server-sent events.

Many watchers are told the same: a line is made once per event and style, and again only for watchers
whose position nobody shares.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kvstore.node.watch.positions import At, seal_one
from kvstore.types import ShardId
from kvstore.wire.bodies import named_bytes

_encode = msgspec.json.Encoder().encode

KINDS: Final = ("put", "delete", "expire")
"""By kind of `store.records`."""

LINE, SSE = 0, 1


class Event:
    """One change of one key."""

    __slots__ = ("after", "at", "bodies", "item", "key", "kind", "lines", "prev", "revision", "shard")

    def __init__(
        self,
        shard: ShardId,
        revision: int,
        kind: int,
        key: bytes,
        item: list[Any] | None,
        prev: list[Any] | None,
        at: At,
        after: At,
    ) -> None:
        self.shard = shard
        self.revision = revision
        self.kind = kind
        self.key = key
        self.item = item
        """The version written, None for a deletion."""
        self.prev = prev
        """What it replaced; known only if somebody asked for it."""
        self.at = at
        self.after = after
        """Where a watch goes on that has seen this."""
        self.bodies: list[bytes | None] = [None, None]
        """JSON without the position: without and with `prev`."""
        self.lines: dict[tuple[Style, bool], bytes] = {}

    def body(self, with_prev: bool) -> bytes:
        made = self.bodies[with_prev]
        if made is None:
            made = self.bodies[with_prev] = _encode(self._fields(with_prev))[:-1]
        return made

    def _fields(self, with_prev: bool) -> dict[str, Any]:
        fields: dict[str, Any] = {"type": KINDS[self.kind]}
        named_bytes("key", self.key, fields)
        if self.item is None:
            fields["revision"] = self.revision
        else:
            _add_item(fields, self.item)
        if with_prev:
            prev: dict[str, Any] | None = None
            if self.prev is not None:
                prev = {}
                _add_item(prev, self.prev)
            fields["prev"] = prev
        fields["shard"] = self.shard
        return fields


def _add_item(fields: dict[str, Any], item: list[Any]) -> None:
    value, revision, create_revision, version, content_type, lease, _deadline = item
    named_bytes("value", value, fields)
    fields["revision"] = revision
    fields["create_revision"] = create_revision
    fields["version"] = version
    if lease is not None:
        fields["lease"] = lease.decode() if isinstance(lease, bytes) else lease
    if content_type is not None:
        fields["content_type"] = content_type


class Style:
    """How a watcher is told: the format, and whether with what was replaced."""

    __slots__ = ("format", "wants_prev")

    def __init__(self, format_: int, wants_prev: bool) -> None:
        self.format = format_
        self.wants_prev = wants_prev

    def of_shard(self, event: Event) -> bytes:
        """For watchers of one shard: their position follows from the event."""
        line = event.lines.get((self, False))
        if line is None:
            line = self.event(event, seal_one(event.shard, event.after))
            event.lines[self, False] = line
        return line

    def event(self, event: Event, position: str) -> bytes:
        return self._framed(KINDS[event.kind], event.body(self.wants_prev), position)

    def line(self, kind: str, position: str | None = None, **fields: Any) -> bytes:
        """`start`, `progress`, `compacted`, `end` or `error`."""
        return self._framed(kind, _encode({"type": kind, **fields})[:-1], position)

    def _framed(self, kind: str, body: bytes, position: str | None) -> bytes:
        at = None if position is None else position.encode()
        whole = body + b"}" if at is None else b'%b,"pos":"%b"}' % (body, at)
        if self.format == LINE:
            return whole + b"\n"
        frame = b"event: %b\ndata: %b\n\n" % (kind.encode(), whole)
        return frame if at is None else b"id: %b\n%b" % (at, frame)


STYLES: Final = {
    (format_, wants_prev): Style(format_, wants_prev)
    for format_ in (LINE, SSE)
    for wants_prev in (False, True)
}
