"""The seam between a node and its world: clock, timers, dice, threads, peers.

Production runs on asyncio (`aio_runtime.py`); the simulator supplies virtual time, seeded dice and a
network made of a heap. Nothing else in `node/`, but for the HTTP server and the peer links, may know
which of the two it is on.
"""

from collections.abc import Callable
from enum import IntEnum
from random import Random
from typing import Any, Protocol

from kvstore.types import NodeId


class Timer(Protocol):
    def cancel(self) -> None: ...


class Lane(IntEnum):
    """Links to one peer, apart so that bulk data never delays a heartbeat."""

    CONTROL = 0
    """Beats, votes, acknowledgements, read confirmations."""
    APPEND = 1
    """Log entries and proxied operations."""
    SNAPSHOT = 2


class Runtime(Protocol):
    dice: Random

    def now(self) -> float:
        """Seconds on CLOCK_BOOTTIME: never goes back, counts suspends."""
        ...

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None: ...

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> Timer: ...

    def in_thread(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None], *, lane: str
    ) -> None:
        """Run blocking `work` off the loop, then `done(result, error)` on it. Calls with the same
        `lane` name ("wal", "store", "files") run one after another, in order."""
        ...


class Transport(Protocol):
    """Frames to and from other nodes; may lose, delay, repeat and reorder them between reconnects."""

    def send(self, node: NodeId, lane: Lane, frame: bytes) -> bool:
        """Queue one frame. False: dropped, because the link is down or its outbox is full."""
        ...

    def is_connected(self, node: NodeId) -> bool: ...
