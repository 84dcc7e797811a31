"""Drives plans on asyncio: sends, waits and hands back what came of it."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import suppress
from typing import Any, TypeVar

from kvstore.client.aio_http import Connections
from kvstore.client.exchange import Event, Failure, Reply, Send, Sleep
from kvstore.client.farewell import BACKGROUND_S_MAX, farewell
from kvstore.client.plan import Call, Core, Plan, execute
from kvstore.client.routes import Routes
from kvstore.client.session import Sessions
from kvstore.errors import KvError, Unavailable

T = TypeVar("T")


class Driver:
    """What an `AsyncClient` shares with its watches, claims and transactions."""

    def __init__(
        self, endpoints: tuple[str, ...], timeout_s: float, *, is_routing: bool, is_patient: bool
    ) -> None:
        self.timeout_s = timeout_s
        """Deadline of a call that does not name its own."""
        self.core = Core(Routes(endpoints), Sessions(_mint), is_routing=is_routing, is_patient=is_patient)
        self.connections = Connections()
        self._background = set[asyncio.Task[None]]()

    async def close(self) -> None:
        """Say goodbye and close all connections, when what is done in the background has had its time."""
        try:
            if self._background:
                await asyncio.wait(self._background, timeout=BACKGROUND_S_MAX)
            if not self.connections.is_closed:
                await self.drive(farewell(self.core))
        finally:
            await self.connections.close()

    def limit(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else timeout_s

    async def call(self, call: Call[T], timeout_s: float | None) -> T:
        return await self.drive(execute(self.core, call, self.limit(timeout_s), event()))

    def in_background(self, plan: Plan[Any]) -> asyncio.Task[None]:
        """Carry a plan out that nobody depends on. Its failure is nobody's either."""
        task = asyncio.get_running_loop().create_task(self._try(plan), name="kvstore-background")
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _try(self, plan: Plan[Any]) -> None:
        with suppress(KvError):
            await self.drive(plan)

    async def drive(self, plan: Plan[T]) -> T:
        if self.connections.is_closed:
            plan.close()
            raise Unavailable("the client is closed")
        try:
            effect = next(plan)
            while True:
                effect = plan.send(await self.carry_out(effect))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            plan.close()

    async def carry_out(self, effect: Send | Sleep) -> Event:
        if isinstance(effect, Sleep):
            await asyncio.sleep(effect.seconds)
            return event()
        return event(await self.connections.exchange(effect))


def event(outcome: Reply | Failure | bytes | None = None) -> Event:
    """What came of an effect, with the present time and fresh dice."""
    now, dice = asyncio.get_running_loop().time(), random.random()
    if outcome is None:
        return Event(now, dice)
    if isinstance(outcome, Reply):
        return Event(now, dice, reply=outcome)
    return (
        Event(now, dice, chunk=outcome) if isinstance(outcome, bytes) else Event(now, dice, failure=outcome)
    )


def _mint() -> str:
    return os.urandom(16).hex()
