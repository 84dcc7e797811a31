"""Virtual time, one heap of events, seeded dice: the world that a simulated cluster lives in.

Nothing here knows what a node is. A `SimRuntime` belongs to one process life: when the process is
killed, everything it scheduled dies with it.
"""

from __future__ import annotations

import heapq
from binascii import crc32
from collections.abc import Callable
from random import Random
from typing import Any

from tests.support.sim_files import Crashed


class Event:
    __slots__ = ("args", "callback", "is_cancelled")

    def __init__(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class World:
    """Time and order of everything. Ties are broken by the order of scheduling, so a seed replays."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = Random(seed)
        self.now = 0.0
        self.events_run = 0
        self._heap: list[tuple[float, int, Event]] = []
        self._number = 0
        self.after_event: Callable[[], None] = lambda: None
        self.on_crash: Callable[[], None] | None = None
        """Told when a process died in the midst of what it did; None: the caller of `run_until` is."""
        self.trace: list[str] | None = None
        self.digest = 0
        """Of everything that was said on the network and to clients, while there is a trace."""

    def at(self, when: float, callback: Callable[..., None], *args: Any) -> Event:
        self._number += 1
        event = Event(callback, args)
        heapq.heappush(self._heap, (max(when, self.now), self._number, event))
        return event

    def after(self, delay_s: float, callback: Callable[..., None], *args: Any) -> Event:
        return self.at(self.now + delay_s, callback, *args)

    def note(self, text: str) -> None:
        """Add a line to the trace. Its digest tells two runs apart at the first line behind a difference."""
        if self.trace is not None:
            self.trace.append(f"{self.now:.6f} {self.digest:08x} {text}")

    def stir(self, said: bytes) -> None:
        """Let `said`, and that it is said now, count in the digest."""
        if self.trace is not None:
            self.digest = crc32(said, crc32(b"%a" % self.now, self.digest))

    def run_until(self, end: float) -> None:
        while self._heap and self._heap[0][0] <= end:
            self._step()
        self.now = max(self.now, end)

    def run_while(self, condition: Callable[[], bool], limit_s: float, every_s: float = 0.0) -> bool:
        """Run until `condition` is false; False when `limit_s` passed first. It is looked at after each
        event, or once in `every_s`."""
        end = self.now + limit_s
        while condition():
            if not self._heap or self._heap[0][0] > end:
                self.now = end
                return not condition()
            self._step()
            if every_s:
                self.run_until(min(self.now + every_s, end))
        return True

    def _step(self) -> None:
        when, _number, event = heapq.heappop(self._heap)
        if event.is_cancelled:
            return
        self.now = max(self.now, when)
        self.events_run += 1
        try:
            event.callback(*event.args)
        except Crashed:
            if self.on_crash is None:
                raise
            self.on_crash()
        self.after_event()


class DiskTimes:
    """How long the work of each lane takes, in seconds; faults make it slow or hang."""

    def __init__(self) -> None:
        self.low, self.high = 0.0001, 0.002
        self.hung_until = 0.0
        self.hung_lane: str | None = None
        """The one lane that hangs; None: all do."""

    def sample(self, dice: Random, now: float, lane: str) -> float:
        hangs = self.hung_lane in (None, lane)
        return (max(0.0, self.hung_until - now) if hangs else 0.0) + dice.uniform(self.low, self.high)


class SimRuntime:
    """`Runtime` of one process life. Its clock may start anywhere and run a little fast or slow."""

    def __init__(self, world: World, name: str, dice: Random, disk: DiskTimes, rate: float = 1.0) -> None:
        self.world = world
        self.name = name
        self.dice = dice
        self.disk = disk
        self.rate = rate
        self.offset = 0.0
        self.is_alive = True
        self.paused_until = 0.0
        """The loop takes no turn before this."""
        self.busy_until = 0.0
        """The present turn takes until then, in world time: a call that blocks the loop."""
        self._is_in_thread = False
        self._lane_free_at: dict[str, float] = {}
        self.on_run: Callable[[], None] = lambda: None
        self.in_progress: list[tuple[str, Callable[[], Any]]] = []

    def now(self) -> float:
        return max(self.world.now, self.busy_until) * self.rate + self.offset

    def block(self, lane: str) -> None:
        """The code that runs works on the disk; on the loop that keeps everything else waiting."""
        if not self._is_in_thread:
            start = max(self.world.now, self.busy_until)
            self.busy_until = start + self.disk.sample(self.dice, start, lane)
            self.paused_until = max(self.paused_until, self.busy_until)

    def when_done(self, callback: Callable[..., Any], *args: Any) -> Any:
        """Call back now, or if the present turn takes longer, at its end."""
        if self.busy_until <= self.world.now:
            return callback(*args)
        self.world.at(self.busy_until, self._if_alive, callback, args)
        return True

    def _if_alive(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self.is_alive:
            callback(*args)

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self.world.after(0.00001, self._run, callback, args)

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> Event:
        return self.world.after(delay_s / self.rate, self._run, callback, args)

    def _run(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.is_alive:
            return
        if self.world.now < self.paused_until:
            # SIGSTOP: timers are late, in order, all at once when it ends.
            self.world.at(self.paused_until, self._run, callback, args)
            return
        self.on_run()
        callback(*args)

    def in_thread(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None], *, lane: str
    ) -> None:
        start = max(self.world.now, self._lane_free_at.get(lane, 0.0))
        end = start + self.disk.sample(self.dice, start, lane)
        self._lane_free_at[lane] = end
        job = (lane, work)
        self.in_progress.append(job)
        self.world.at(end, self._finish, job, done)

    def _finish(
        self, job: tuple[str, Callable[[], Any]], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        if not self.is_alive:
            return
        self.in_progress.remove(job)
        self._is_in_thread = True
        try:
            result, error = job[1](), None
        except Exception as raised:  # noqa: BLE001 - the node decides what an error means
            result, error = None, raised
        finally:
            self._is_in_thread = False
        self._run(done, (result, error))

    def oldest_running(self, lane: str) -> float | None:
        return None

    def stop(self) -> None:
        self.is_alive = False
