"""A line of JSON for every Raft event, when `KVSTORE_RAFT_TRACE` names a file (docs/trace.md).

Off by default, and then free: no core has an observer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

import msgspec

from kvstore.types import NodeId, ShardId

Observer = Callable[[str, dict[str, Any]], None]
Observe = Callable[[ShardId], Observer | None]

_encode = msgspec.json.Encoder().encode


class Trace:
    """Appends events of one node. `seq` has no gaps, so that a reader can tell a cut file."""

    def __init__(self, node: NodeId, sink: IO[bytes]) -> None:
        self._node = node
        self._sink = sink
        self._seq = 0

    def of(self, shard: ShardId) -> Observer:
        def observe(event: str, fields: dict[str, Any]) -> None:
            self._seq += 1
            line = {"node": self._node, "shard": shard, "seq": self._seq, "event": event}
            self._sink.write(_encode(line | {name: _plain(value) for name, value in fields.items()}) + b"\n")

        return observe


def open_trace(path: str | None, node: NodeId) -> Observe:
    """Observers that append to `path`, or none at all."""
    if not path:
        return lambda shard: None
    return Trace(node, open(path, "ab", buffering=0)).of


def _plain(value: Any) -> Any:
    """Messages as maps with their kind; entries without payloads, which are the users' data."""
    if isinstance(value, msgspec.Struct):
        fields = {name: _plain(getattr(value, name)) for name in value.__struct_fields__ if name != "payload"}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value
