"""Where a feed reads a shard's change log: the replica on this node, or over the link one that has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from kvstore.node.calls import Call, Done
from kvstore.node.replica import Replica
from kvstore.node.runtime import Runtime
from kvstore.types import ShardId

FRESH_S: Final = 15.0
"""Silence of a shard's leader after which what is known here may be old."""
WAIT_S: Final = 5.0
ANSWER_S: Final = 5.0

Arrived = Callable[[list[Any] | None, BaseException | None], None]
"""Takes `[events, next revision]`, or None if there is nothing yet, or an error."""


class Router(Protocol):
    def shards(self) -> Sequence[ShardId]: ...

    def local(self, shard: ShardId) -> Replica | None: ...

    def read_then(
        self, shard: ShardId, query: Sequence[object], consistency: str, deadline: float, done: Done
    ) -> None: ...

    def wait_then(
        self, shard: ShardId, query: Sequence[object], wait_until: float, deadline: float, done: Done
    ) -> Call | None: ...

    def cancel(self, call: Call) -> None: ...


class Source:
    def __init__(self, shard: ShardId, router: Router, runtime: Runtime) -> None:
        self.shard = shard
        self._router = router
        self._now = runtime.now
        self._heard_at = runtime.now()
        self._waiting: Call | None = None

    @property
    def is_fresh(self) -> bool:
        replica = self._router.local(self.shard)
        heard_at = self._heard_at if replica is None else replica.heard_at
        # A leader without a quorum soon is none.
        is_led_here = replica is not None and replica.led_term is not None
        return is_led_here or self._now() - heard_at < FRESH_S

    def newest(self) -> int | None:
        """The newest revision here, None without a replica."""
        replica = self._router.local(self.shard)
        return None if replica is None else replica.machine.revision

    def read(self, revision: int, options: dict[str, Any], arrived: Arrived, *, wait: bool) -> None:
        """The next slice from `revision` on. From the replica here, if there is one: at once, and
        with None if it has nothing yet. From another: later, with `wait` once there is something."""
        query = ["changes", revision, options]
        replica = self._router.local(self.shard)
        if replica is not None:
            if replica.machine.revision < revision:
                arrived(None, None)
                return
            replica.serve(Call(self.shard, query, math.inf, _unpacked(arrived), consistency="stale"))
            return
        now = self._now()
        done = _unpacked(lambda answer, error: self._heard(answer, error, arrived))
        if wait:
            self._waiting = self._router.wait_then(
                self.shard, query, now + WAIT_S, now + WAIT_S + ANSWER_S, done
            )
        else:
            self._router.read_then(self.shard, query, "linearizable", now + ANSWER_S, done)

    def _heard(self, answer: list[Any] | None, error: BaseException | None, arrived: Arrived) -> None:
        if error is None:
            self._heard_at = self._now()
        arrived(answer, error)

    def close(self) -> None:
        if self._waiting is not None:
            self._router.cancel(self._waiting)


def _unpacked(arrived: Arrived) -> Done:
    def done(answer: Any, error: BaseException | None) -> None:
        arrived(None if answer is None else answer.value, error)

    return done
