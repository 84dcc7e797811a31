"""A line of JSON for every Raft event, when `KVSTORE_RAFT_TRACE` names a file (docs/trace.md).

Off by default, and then free: no core has an observer. When on, an event costs one line and one write, and
nothing is kept in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import IO, Any

import msgspec

from kvstore.raft.messages import Message
from kvstore.types import NodeId, ShardId

Observer = Callable[[str, dict[str, Any]], None]
Observe = Callable[[ShardId], Observer | None]

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode


class Trace:
    """Appends the events of one node to `sink`, which writes at once and tells how many bytes it took.

    When a line cannot be written whole (the disk is full, say) the trace ends there, and the node goes on.
    """

    def __init__(self, node: NodeId, sink: IO[bytes]) -> None:
        self._node = node
        self._sink = sink
        self._is_broken = False

    def of(self, shard: ShardId) -> Observer:
        """Observe one life of one replica. `seq` counts from 1, so that a reader sees what is missing."""
        seq = 0

        def observe(event: str, fields: dict[str, Any]) -> None:
            nonlocal seq
            seq += 1
            line = {"node": self._node, "shard": shard, "seq": seq, "event": event}
            self._write(_encode(line | {name: _plain(value) for name, value in fields.items()}) + b"\n")

        return observe

    def _write(self, line: bytes) -> None:
        if self._is_broken:
            return
        try:
            written = self._sink.write(line)
        except OSError as error:
            self._stop(repr(error))
        else:
            if written != len(line):
                self._stop(f"{written} of {len(line)} bytes written")

    def _stop(self, reason: str) -> None:
        self._is_broken = True
        log.error("the Raft trace ends here: %s", reason)


def open_trace(path: str | None, node: NodeId) -> Observe:
    """Observers that append to `path`, or none at all.

    Raises:
        OSError: the file cannot be opened for appending.
    """
    if not path:
        return lambda shard: None
    sink = open(path, "ab+", buffering=0)  # noqa: SIM115 - written until the process ends
    if sink.tell() > 0:
        sink.seek(-1, 2)
        if sink.read(1) != b"\n":
            # A crash cut the last line off: what follows must not be joined to it.
            sink.write(b"\n")
    return Trace(node, sink).of


def _plain(value: Any) -> Any:
    """Structs as maps, messages with their type; entries without payloads, which are the users' data."""
    if isinstance(value, msgspec.Struct):
        fields = {name: _plain(getattr(value, name)) for name in value.__struct_fields__ if name != "payload"}
        return {"type": type(value).__name__, **fields} if isinstance(value, Message) else fields
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value
