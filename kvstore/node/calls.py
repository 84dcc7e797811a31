"""One caller waiting for one operation, from the request handler to the answer.

A call is answered exactly once: by its result, by an error, or by its deadline. What a deadline means
depends on how far the call came, so the call itself knows its stage.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec

from kvstore.errors import KvError, NoLeader, NotApplied, OutcomeUnknown, ReadTimeout
from kvstore.types import ShardId


class Answer(msgspec.Struct, frozen=True):
    """What became of a write: `result` is the command's `CommandResult`."""

    shard: ShardId
    result: Any
    clock_ms: int


class ReadAnswer(msgspec.Struct, frozen=True):
    """What a query found. `staleness_s` is the age bound of a stale read, else None."""

    shard: ShardId
    value: Any
    clock_ms: int
    staleness_s: float | None = None


Done = Callable[[Any, BaseException | None], None]


class Stage(IntEnum):
    WAITING = 0
    """Nothing was proposed anywhere: giving up is safe."""
    PROPOSED = 1
    """The command is in a log or on its way to a leader: it may happen even if we stop waiting."""


class Call:
    """An operation and whoever waits for it. `deadline` is absolute, in `Runtime.now()` seconds."""

    __slots__ = (
        "consistency",
        "deadline",
        "done",
        "identified",
        "is_doubtful",
        "is_forwarded",
        "payload",
        "shard",
        "stage",
        "wait_until",
    )

    def __init__(
        self,
        shard: ShardId,
        payload: Any,
        deadline: float,
        done: Done,
        *,
        consistency: str | None = None,
        identified: bool = False,
        is_forwarded: bool = False,
        wait_until: float | None = None,
    ) -> None:
        self.shard = shard
        self.payload = payload
        """A write: the encoded command. A read: the query."""
        self.deadline = deadline
        self.done: Done | None = done
        self.consistency = consistency
        """None marks a write."""
        self.identified = identified
        """The write carries a session or key: doing it again cannot apply it twice."""
        self.is_forwarded = is_forwarded
        """Came from another node: it may not travel on (hop limit 1)."""
        self.wait_until = wait_until
        """A read that may wait for its answer (`store.waits`): until then, absolute, before the deadline."""
        self.stage = Stage.WAITING
        self.is_doubtful = False
        """An earlier attempt may still take effect: from here on no error may claim that nothing did."""

    @property
    def is_write(self) -> bool:
        return self.consistency is None

    def finish(self, answer: Any) -> None:
        done = self.done
        if done is not None:
            self.done = None
            done(answer, None)

    def fail(self, error: BaseException) -> None:
        done = self.done
        if done is not None:
            self.done = None
            if self.is_doubtful and isinstance(error, NotApplied):
                error = OutcomeUnknown(
                    f"an earlier attempt may have taken effect; the last one ended so: {error}"
                )
            done(None, error)

    def expire(self) -> None:
        """Answer by the deadline: only a write that was proposed may have happened."""
        self.fail(self._deadline_error())

    def _deadline_error(self) -> KvError:
        if self.consistency is not None:
            return ReadTimeout(f"shard {self.shard} did not confirm the read before its deadline")
        if self.stage is Stage.PROPOSED or self.is_doubtful:
            return OutcomeUnknown(f"shard {self.shard} did not commit the write before its deadline")
        return NoLeader(
            f"shard {self.shard} had no reachable leader before the deadline; nothing was proposed",
            retry_after=1,
        )


def live(calls: list[Call], now: float) -> list[Call]:
    """Expire what is past its deadline and return what still waits."""
    waiting = []
    for call in calls:
        if call.done is None:
            continue
        if call.deadline <= now:
            call.expire()
        else:
            waiting.append(call)
    return waiting
