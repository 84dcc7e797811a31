"""Bugs in lock queues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from kvstore.store import apply, commands, lock_commands
from kvstore.store.lock_queue import Queue
from kvstore.store.results import Result
from tests.sim.plant import planted


@planted(44, "a lock lasts half as long as its holder was told")
def lock_ends_early() -> Iterator[None]:
    set_due = Queue.set_due

    def early(queue: Queue, order: int, entry: Any, due_ms: int) -> None:
        clock_ms = queue.draft.clock_ms
        set_due(queue, order, entry, clock_ms + max(1, (due_ms - clock_ms) // 2))

    with patch.object(Queue, "set_due", early):
        yield


@planted(44, "the fence is the order in the queue, which begins anew when nobody waits")
def fence_begins_anew() -> Iterator[None]:
    stand = Queue.stand

    def by_order(queue: Queue, order: int, entry: Any) -> Any:
        result = stand(queue, order, entry)
        return [*result[:2], order, *result[3:]] if result[1] else result

    with patch.object(Queue, "stand", by_order):
        yield


@planted(44, "who gives up withdraws what another attempt was granted, if that one's not-after is lower")
def low_attempt_loses_its_claim() -> Iterator[None]:
    leave = apply.APPLY[lock_commands.LEAVE]

    def withdraw(draft: Any, op: commands.Op) -> Result:
        _, name, claim, _attempt, not_after_ms, keeps_grant = op
        _mark, entry = Queue(draft, name).claimed(claim)
        is_later = entry is not None and not_after_ms is not None and not_after_ms > entry.not_after_ms
        if is_later and not keeps_grant:
            op = lock_commands.release(name, claim)
        return leave(draft, op)

    with patch.dict(apply.APPLY, {lock_commands.LEAVE: withdraw}):
        yield
