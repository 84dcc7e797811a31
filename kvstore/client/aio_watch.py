"""Watches of the asyncio client."""

# ruff: noqa: ASYNC109 - how long a caller waits for a change is part of the interface.

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType

from kvstore.client.aio_driver import Driver, event
from kvstore.client.aio_http import Stream
from kvstore.client.changes import Change, Progress, elected
from kvstore.client.exchange import Event, Failure, Fault, Open, Receive, Send, Sleep
from kvstore.client.results import Leader
from kvstore.client.watching import Emit, Terms, Watched, WatchPlan, follow
from kvstore.errors import Unavailable


class Watch(AsyncIterator[Change]):
    """Changes as they happen: `async for change in kv.watch(...)`. It begins with the first change that is
    asked for; `async with kv.watch(...) as changes:` begins it at once and ends it with the block.

    It goes on over failures of nodes and connections without loss or repetition (`docs/client.md`).
    Cancelling a wait loses nothing: ask again.
    """

    def __init__(
        self, driver: Driver, what: Watched, terms: Terms, *, timeout_s: float | None, has_progress: bool
    ) -> None:
        self._driver = driver
        self._what, self._terms = what, terms
        self._timeout_s = timeout_s
        self._has_progress = has_progress
        self._plan: WatchPlan | None = None
        self._is_over = False
        self._effect: Send | Sleep | Open | Receive | Emit | None = None
        self._until = 0.0
        self._stream: Stream | None = None
        self._ready: deque[Change] = deque()
        self._is_begun = False
        self.pos: str | None = terms.from_pos
        """Position of what was handed out last: `from_` of a watch that goes on from here. None before the
        watch has begun."""

    async def __aenter__(self) -> Watch:
        await self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._stream is not None:
            self._stream.close()

    async def begin(self) -> None:
        """Wait until the watch has begun: from then on no change is missed. Raises Unavailable."""
        while not self._is_begun and not self._ready:
            if self._is_over:
                raise Unavailable("the watch is closed")
            await self._advance()
        self._drop_progress()

    def close(self) -> None:
        """End the watch. Iterating ends."""
        self._is_over = True
        self._close_stream()
        if self._plan is not None:
            self._plan.close()
        self._ready.clear()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Change:
        change = await self.next(self._timeout_s)
        if change is None:
            raise StopAsyncIteration
        return change

    async def next(self, timeout: float | None = None) -> Change | None:
        """Return the next change; None if the watch was closed, or none came within `timeout` seconds.

        Raises:
            Compacted: the history behind the position is gone, and `resync=False`.
            Unavailable: nobody could be reached in time.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    self._drop_progress()
                    if self._ready:
                        break
                    if self._is_over:
                        return None
                    await self._advance()
        except TimeoutError:
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

    async def _advance(self) -> None:
        """Carry out one effect. One that was cancelled is carried out again."""
        if self._driver.connections.is_closed:
            self.close()
            raise Unavailable("the client is closed")
        if self._plan is None:
            self._plan = follow(self._driver.core, self._what, self._terms, event())
            self._step(None)
        assert self._effect is not None
        self._step(await self._carry_out(self._effect))

    def _step(self, happened: Event | None) -> None:
        assert self._plan is not None
        try:
            self._effect = next(self._plan) if happened is None else self._plan.send(happened)
        except BaseException:
            self._is_over = True
            self._close_stream()
            raise
        if isinstance(self._effect, Receive | Sleep):
            seconds = self._effect.timeout_s if isinstance(self._effect, Receive) else self._effect.seconds
            self._until = asyncio.get_running_loop().time() + seconds
        elif isinstance(self._effect, Emit):
            self._ready.extend(self._effect.changes)

    async def _carry_out(self, effect: Send | Sleep | Open | Receive | Emit) -> Event:
        left_s = max(0.0, self._until - asyncio.get_running_loop().time())
        match effect:
            case Emit():
                return event()
            case Sleep():
                self._close_stream()
                await asyncio.sleep(left_s)
                return event()
            case Receive():
                if self._stream is None:
                    return event(Failure(Fault.LOST, "closed"))
                outcome = await self._stream.receive(left_s)
                if not isinstance(outcome, bytes):
                    self._close_stream()
                return event(outcome)
            case Open():
                self._close_stream()
                reply, self._stream = await self._driver.connections.open(effect)
                return event(reply)
            case _:
                self._close_stream()
                return await self._driver.carry_out(effect)

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


class Observed(AsyncIterator[Leader | None]):
    """Who is elected, now and after every change; None while nobody is."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def __aenter__(self) -> Observed:
        await self._watch.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watch.close()

    def __aiter__(self) -> Observed:
        return self

    async def __anext__(self) -> Leader | None:
        return elected(await self._watch.__anext__())

    def close(self) -> None:
        self._watch.close()
