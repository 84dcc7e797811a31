"""A runtime with a clock that only `run` moves and threads that run in place, for tests of one part."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any


class FakeTimer:
    def __init__(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeRuntime:
    """Work for a thread runs when its turn in the queue of events comes, after everything before it."""

    def __init__(self, seed: int = 0) -> None:
        self.dice = Random(seed)
        self.time = 1000.0
        self._events: list[tuple[float, int, FakeTimer]] = []
        self._number = 0

    def now(self) -> float:
        return self.time

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self.call_later(0.0, callback, *args)

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> FakeTimer:
        timer = FakeTimer(callback, args)
        self._number += 1
        heapq.heappush(self._events, (self.time + delay_s, self._number, timer))
        return timer

    def in_thread(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None], *, lane: str
    ) -> None:
        def run() -> None:
            try:
                result, error = work(), None
            except Exception as raised:  # noqa: BLE001 - handed to `done`, as the real runtime does
                result, error = None, raised
            self.call_soon(done, result, error)

        self.call_soon(run)

    def run(self, seconds: float = 0.0) -> None:
        """Let `seconds` pass and everything that is due in them happen."""
        end = self.time + seconds
        while self._events and self._events[0][0] <= end:
            when, _number, timer = heapq.heappop(self._events)
            self.time = max(self.time, when)
            if not timer.is_cancelled:
                timer.callback(*timer.args)
        self.time = end

    @property
    def pending_count(self) -> int:
        return sum(not timer.is_cancelled for _when, _number, timer in self._events)
