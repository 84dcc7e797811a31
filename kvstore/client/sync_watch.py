"""Watches of the blocking client."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from kvstore.client.changes import Change, Progress, elected
from kvstore.client.exchange import Event, Failure, Fault, Open, Receive, Send, Sleep
from kvstore.client.results import Leader
from kvstore.client.sync_driver import Driver, event
from kvstore.client.sync_http import Stream
from kvstore.client.watching import Emit, Terms, Watched, WatchPlan, follow
from kvstore.errors import Unavailable


class _OutOfTime(Exception):
    """The caller waits no longer. The effect is carried on by the next call."""


class Watch(Iterator[Change]):
    """Changes as they happen: `for change in kv.watch(...)`. It begins with the first change that is asked
    for; `with kv.watch(...) as changes:` begins it at once and ends it with the block.

    It goes on over failures of nodes and connections without loss or repetition (`docs/client.md`). One
    thread iterates; any thread may `close()` it.
    """

    def __init__(
        self, driver: Driver, what: Watched, terms: Terms, *, timeout_s: float | None, has_progress: bool
    ) -> None:
        self._driver = driver
        self._what, self._terms = what, terms
        self._timeout_s = timeout_s
        self._has_progress = has_progress
        self._plan: WatchPlan | None = None
        self._closed = threading.Event()
        self._effect: Send | Sleep | Open | Receive | Emit | None = None
        self._until = 0.0
        self._stream: Stream | None = None
        self._ready: deque[Change] = deque()
        self._is_begun = False
        self.pos: str | None = terms.from_pos
        """Position of what was handed out last: `from_` of a watch that goes on from here. None before the
        watch has begun."""

    def __enter__(self) -> Watch:
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._close_stream()

    def begin(self) -> None:
        """Wait until the watch has begun: from then on no change is missed. Raises Unavailable."""
        while not self._is_begun and not self._ready:
            if self._closed.is_set():
                raise Unavailable("the watch is closed")
            self._advance(math.inf)
        self._drop_progress()

    def close(self) -> None:
        """End the watch. Iterating ends, in whichever thread it goes on."""
        self._closed.set()
        self._close_stream()

    def __iter__(self) -> Watch:
        return self

    def __next__(self) -> Change:
        change = self.next(self._timeout_s)
        if change is None:
            raise StopIteration
        return change

    def next(self, timeout: float | None = None) -> Change | None:
        """Return the next change; None if the watch was closed, or none came within `timeout` seconds.

        Raises:
            Compacted: the history behind the position is gone, and `resync=False`.
            Unavailable: nobody could be reached in time.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self._drop_progress()
            if self._closed.is_set():
                return None
            if self._ready:
                break
            try:
                self._advance(deadline)
            except _OutOfTime:
                return None
        change = self._ready.popleft()
        self.pos = change.pos
        return change

    def _drop_progress(self) -> None:
        while self._ready and isinstance(self._ready[0], Progress):
            self._is_begun = True
            self.pos = self._ready[0].pos
            if self._has_progress:
                return
            self._ready.popleft()

    def _advance(self, deadline: float) -> None:
        """Carry out one effect. Raises _OutOfTime when the caller's deadline comes first."""
        if self._driver.pool.is_closed:
            self.close()
            raise Unavailable("the client is closed")
        if self._plan is None:
            self._plan = follow(self._driver.core, self._what, self._terms, event())
        if self._effect is None:
            self._step(None)
        assert self._effect is not None
        self._step(self._carry_out(self._effect, deadline))

    def _step(self, happened: Event | None) -> None:
        assert self._plan is not None
        try:
            with self._driver.lock:
                self._effect = next(self._plan) if happened is None else self._plan.send(happened)
        except BaseException:
            self.close()
            raise
        if isinstance(self._effect, Receive | Sleep):
            seconds = self._effect.timeout_s if isinstance(self._effect, Receive) else self._effect.seconds
            self._until = time.monotonic() + seconds
        elif isinstance(self._effect, Emit):
            self._ready.extend(self._effect.changes)

    def _carry_out(self, effect: Send | Sleep | Open | Receive | Emit, deadline: float) -> Event:
        match effect:
            case Emit():
                return event()
            case Sleep():
                self._close_stream()
                self._closed.wait(max(0.0, min(self._until, deadline) - time.monotonic()))
                return self._unless_over(deadline, event())
            case Receive():
                return self._receive(deadline)
            case Open():
                self._close_stream()
                reply, self._stream = self._driver.pool.open(effect)
                if self._closed.is_set():
                    self._close_stream()
                return event(reply)
            case _:
                self._close_stream()
                return self._driver.carry_out(effect)

    def _receive(self, deadline: float) -> Event:
        stream = self._stream
        if stream is None:
            return event(Failure(Fault.LOST, "closed"))
        outcome = stream.receive(max(0.0, min(self._until, deadline) - time.monotonic()))
        if isinstance(outcome, Failure):
            if outcome.fault is Fault.TIMED_OUT:
                self._unless_over(deadline, event())
            self._close_stream()
        return event(outcome)

    def _unless_over(self, deadline: float, happened: Event) -> Event:
        if deadline < self._until and time.monotonic() >= deadline - 0.001:
            raise _OutOfTime
        return happened

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


class Observed(Iterator[Leader | None]):
    """Who is elected, now and after every change; None while nobody is."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __enter__(self) -> Observed:
        self._watch.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.close()

    def __iter__(self) -> Observed:
        return self

    def __next__(self) -> Leader | None:
        return elected(self._watch.__next__())

    def close(self) -> None:
        self._watch.close()
