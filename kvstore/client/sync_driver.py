"""Drives plans by blocking: sends, waits and hands back what came of it."""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import suppress
from typing import Any, TypeVar

from kvstore.client.exchange import Event, Failure, Reply, Send, Sleep
from kvstore.client.farewell import BACKGROUND_S_MAX, farewell
from kvstore.client.plan import Call, Core, Plan, execute
from kvstore.client.routes import Routes
from kvstore.client.session import Sessions
from kvstore.client.sync_http import Pool
from kvstore.errors import KvError, Unavailable

T = TypeVar("T")


class Driver:
    """What a `Client` shares with its watches, claims and transactions. Threads may share it."""

    def __init__(
        self, endpoints: tuple[str, ...], timeout_s: float, *, is_routing: bool, is_patient: bool
    ) -> None:
        self.timeout_s = timeout_s
        """Deadline of a call that does not name its own."""
        self._endpoints = endpoints
        self._is_routing, self._is_patient = is_routing, is_patient
        self._begin()

    def _begin(self) -> None:
        self.core = Core(
            Routes(self._endpoints), Sessions(_mint), is_routing=self._is_routing, is_patient=self._is_patient
        )
        self.pool = Pool()
        self.lock = threading.Lock()
        """Held while a plan thinks, never while it waits: plans share the routes and sessions."""
        self._background: list[threading.Thread] = []
        self._process = os.getpid()

    def notice_fork(self) -> None:
        """A forked child must use neither its parent's connections nor its session: two processes with
        one session would take each other's writes for retries of their own."""
        if self._process != os.getpid():
            self._begin()

    def close(self) -> None:
        """Say goodbye and close all connections, when what is done in the background has had its time."""
        until = time.monotonic() + BACKGROUND_S_MAX
        for thread in self._background:
            thread.join(max(0.0, until - time.monotonic()))
        # Neither a forked child's to say, nor to be said twice.
        if self._process == os.getpid() and not self.pool.is_closed:
            self.drive(farewell(self.core))
        self.pool.close()

    def limit(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else timeout_s

    def call(self, call: Call[T], timeout_s: float | None) -> T:
        self.notice_fork()
        return self.drive(execute(self.core, call, self.limit(timeout_s), event()))

    def in_background(self, plan: Plan[Any]) -> None:
        """Carry a plan out that nobody depends on. Its failure is nobody's either."""

        def carry_out() -> None:
            with suppress(KvError):
                self.drive(plan)

        self._background = [thread for thread in self._background if thread.is_alive()]
        self._background.append(threading.Thread(target=carry_out, name="kvstore-background", daemon=True))
        self._background[-1].start()

    def drive(self, plan: Plan[T], interrupt: threading.Event | None = None) -> T:
        """Carry the plan out. `interrupt` ends its next pause, and the plan, with Unavailable."""
        if self.pool.is_closed:
            plan.close()
            raise Unavailable("the client is closed")
        happened: Event | None = None
        try:
            while True:
                try:
                    with self.lock:
                        effect = plan.send(happened) if happened is not None else next(plan)
                except StopIteration as end:
                    result: T = end.value
                    return result
                happened = self.carry_out(effect, interrupt)
        finally:
            with self.lock:
                plan.close()

    def carry_out(self, effect: Send | Sleep, interrupt: threading.Event | None = None) -> Event:
        if isinstance(effect, Sleep):
            if interrupt is None:
                time.sleep(effect.seconds)
            elif interrupt.wait(effect.seconds):
                raise Unavailable("interrupted")
            return event()
        return event(self.pool.exchange(effect))


def event(outcome: Reply | Failure | bytes | None = None) -> Event:
    """What came of an effect, with the present time and fresh dice."""
    now, dice = time.monotonic(), random.random()
    if outcome is None:
        return Event(now, dice)
    if isinstance(outcome, Reply):
        return Event(now, dice, reply=outcome)
    return (
        Event(now, dice, chunk=outcome) if isinstance(outcome, bytes) else Event(now, dice, failure=outcome)
    )


def _mint() -> str:
    return os.urandom(16).hex()
