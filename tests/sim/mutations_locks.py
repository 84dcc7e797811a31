"""Bugs in lock queues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from kvstore.store.lock_queue import Queue
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
