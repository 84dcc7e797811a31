"""The runtime of a real node: asyncio's loop, CLOCK_BOOTTIME, one worker thread per lane.

A thread hop costs about 40 us, so callers batch what they hand over, and completions that gather
while the loop is busy come back in one wake-up. Each lane publishes since when its present piece of
work has been running: a disk that hangs blocks the thread, not the loop, and the loop can see it
(pitfall 22). Workers are daemon threads, because a thread inside a hung fdatasync cannot be stopped
and must not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from random import Random
from typing import Any

from kvstore.node.runtime import Timer

Work = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]

# CLOCK_BOOTTIME counts suspends; where the platform lacks it, monotonic is the nearest.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds since boot, suspends included."""
    return time.clock_gettime(_CLOCK)


class Worker:
    """One thread that runs pieces of work in order."""

    def __init__(self, lane: str, deliver: Callable[[Done, Any, BaseException | None], None]) -> None:
        self._deliver = deliver
        self._queue: SimpleQueue[tuple[Work, Done] | None] = SimpleQueue()
        self.running_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"kv-{lane}", daemon=True)
        self._thread.start()

    def put(self, work: Work, done: Done) -> None:
        self._queue.put((work, done))

    def stop(self) -> None:
        """Let the thread end after what is queued."""
        self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            work, done = job
            self.running_since = boottime()
            try:
                result, error = work(), None
            except BaseException as raised:  # noqa: BLE001 - the caller on the loop decides about it
                result, error = None, raised
            self.running_since = None
            self._deliver(done, result, error)
            # Held over the wait for the next job, these would keep a whole batch alive.
            del job, work, done, result, error


class AioRuntime:
    """`Runtime` on the running event loop. Create it on the loop, `stop` it at the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, *, seed: int | None = None) -> None:
        self._loop = loop or asyncio.get_running_loop()
        self.dice = Random(seed)
        self._workers: dict[str, Worker] = {}
        self._completions: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._wake_lock = threading.Lock()
        self._is_wake_scheduled = False
        self._is_stopped = False

    def now(self) -> float:
        return time.clock_gettime(_CLOCK)

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self._loop.call_soon(callback, *args)

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> Timer:
        return self._loop.call_later(delay_s, callback, *args)

    def in_thread(self, work: Work, done: Done, *, lane: str) -> None:
        """Run `work` on the thread of `lane`, then `done(result, error)` on the loop.

        After `stop` new work is dropped, and neither is called.
        """
        if self._is_stopped:
            return
        worker = self._workers.get(lane)
        if worker is None:
            worker = self._workers[lane] = Worker(lane, self._complete)
        worker.put(work, done)

    def oldest_running(self, lane: str) -> float | None:
        """When (`now()`) the lane's present work began; None: the lane is idle or not known."""
        worker = self._workers.get(lane)
        return worker.running_since if worker is not None else None

    def stop(self, timeout_s: float = 5.0) -> list[str]:
        """Finish what is queued and end the threads. Blocks at most about `timeout_s` in all; returns
        the lanes whose thread hangs. Completions of work that ended here are still delivered."""
        self._is_stopped = True
        for worker in self._workers.values():
            worker.stop()
        deadline = boottime() + timeout_s
        hung = [
            lane for lane, worker in self._workers.items() if not worker.join(max(0.0, deadline - boottime()))
        ]
        self._deliver_all()
        return hung

    def _complete(self, done: Done, result: Any, error: BaseException | None) -> None:
        self._completions.append((done, result, error))
        with self._wake_lock:
            if self._is_wake_scheduled:
                return
            self._is_wake_scheduled = True
        try:
            self._loop.call_soon_threadsafe(self._deliver_all)
        except RuntimeError:
            # The loop is closed: nobody is left to be told.
            self._completions.clear()

    def _deliver_all(self) -> None:
        with self._wake_lock:
            self._is_wake_scheduled = False
        while self._completions:
            done, result, error = self._completions.popleft()
            try:
                done(result, error)
            except Exception as failure:  # noqa: BLE001 - one bad callback must not eat the others' answers
                self._loop.call_exception_handler(
                    {"message": "completion of threaded work failed", "exception": failure}
                )
