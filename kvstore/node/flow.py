"""Promises and a driver for coroutines that wait on them, with no event loop underneath.

Request handlers run unchanged on asyncio and in the deterministic simulator: a handler awaits
promises, and whoever resolves a promise resumes the handler in the same call. There is no queue,
no task object and no scheduling order of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Promise(Generic[T]):
    """A value or an error that arrives once. Later resolutions are ignored: the first one wins, so a
    deadline and an answer may race without the loser having to know."""

    __slots__ = ("_callbacks", "_error", "_value", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Promise[T]], None]] = []

    def resolve(self, value: T) -> None:
        self._settle(value, None)

    def fail(self, error: BaseException) -> None:
        self._settle(None, error)

    def _settle(self, value: T | None, error: BaseException | None) -> None:
        if self.is_done:
            return
        self.is_done, self._value, self._error = True, value, error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def on_done(self, callback: Callable[[Promise[T]], None]) -> None:
        if self.is_done:
            callback(self)
        else:
            self._callbacks.append(callback)

    @property
    def error(self) -> BaseException | None:
        return self._error

    def result(self) -> T:
        """Return the value or raise the error; must be done."""
        assert self.is_done, "result of an unresolved promise"
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def __await__(self) -> Generator[Promise[T], None, T]:
        if not self.is_done:
            yield self
        return self.result()


def spawn(coroutine: Coroutine[Any, Any, T]) -> Promise[T]:
    """Run a coroutine until it waits, and on from there whenever its promise settles."""
    outcome: Promise[T] = Promise()

    def resume(_settled: Promise[Any] | None) -> None:
        try:
            waiting_for = coroutine.send(None)
        except StopIteration as stop:
            outcome.resolve(stop.value)
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits the outcome
            outcome.fail(error)
        else:
            waiting_for.on_done(resume)

    resume(None)
    return outcome


def gather(promises: Iterable[Promise[T]]) -> Promise[list[T]]:
    """All values in order, or the first error once it is known."""
    waiting = list(promises)
    outcome: Promise[list[T]] = Promise()
    open_count = len(waiting)

    def settled(promise: Promise[T]) -> None:
        nonlocal open_count
        open_count -= 1
        if promise.error is not None:
            outcome.fail(promise.error)
        elif open_count == 0 and not outcome.is_done:
            outcome.resolve([each.result() for each in waiting])

    if not waiting:
        outcome.resolve([])
    for promise in waiting:
        promise.on_done(settled)
    return outcome
