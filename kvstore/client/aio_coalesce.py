"""How calls of the asyncio client wait for each other (`coalesce`)."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from kvstore.client import coalesce
from kvstore.client.aio_driver import Driver
from kvstore.client.coalesce import HOLD_S, Group, Lane, MakeOperation, Member, Place
from kvstore.client.op import Operation
from kvstore.client.plan import Call
from kvstore.errors import KvError

T = TypeVar("T")


class _TimedGroup(Group):
    def __init__(self, now: float, timer: asyncio.TimerHandle) -> None:
        super().__init__(now)
        self.timer = timer


class Coalescer:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lanes: dict[Place, Lane[_TimedGroup]] = {}
        self._tasks = set[asyncio.Task[None]]()

    async def call(self, call: Call[T], operation: MakeOperation, timeout_s: float | None) -> T:
        limit_s = self._driver.limit(timeout_s)
        place = coalesce.place_of(self._driver.core, call, limit_s)
        if place is None:
            return await self._driver.call(call, limit_s)
        lane = self._lanes.get(place)
        if lane is not None:
            result: T = await self._join(place, lane, call, operation())
            return result
        lane = self._lanes[place] = Lane()
        try:
            return await self._driver.call(call, limit_s)
        finally:
            self._answered(place, lane)

    def _join(
        self, place: Place, lane: Lane[_TimedGroup], call: Call[Any], operation: Operation[Any]
    ) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Any] = loop.create_future()

        def settle(outcome: Any) -> None:
            if waiter.done():
                return
            if isinstance(outcome, BaseException):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)

        if lane.group is None:
            lane.group = _TimedGroup(loop.time(), loop.call_later(HOLD_S, self._leave, place, lane))
        lane.group.add(Member(call, operation, settle, waiter.done))
        if lane.group.is_full:
            self._leave(place, lane)
        return waiter

    def _answered(self, place: Place, lane: Lane[_TimedGroup]) -> None:
        lane.busy_count -= 1
        if lane.group is not None:
            self._leave(place, lane)
        elif not lane.busy_count:
            self._lanes.pop(place, None)

    def _leave(self, place: Place, lane: Lane[_TimedGroup]) -> None:
        group = lane.take()
        assert group is not None, "nobody has gathered"
        group.timer.cancel()
        task = asyncio.get_running_loop().create_task(self._carry(place, lane, group), name="kvstore-calls")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, place: Place, lane: Lane[_TimedGroup], group: Group) -> None:
        members = [member for member in group.members if not member.is_gone()]
        left_s = max(0.0, group.began_at + place.limit_s - asyncio.get_running_loop().time())
        try:
            if len(members) > 1:
                await self._carry_together(members, left_s)
            else:
                await self._carry_each(members, left_s)
        except BaseException:
            coalesce.fail_all(members, coalesce.stopped(place.kind))
            raise
        finally:
            self._answered(place, lane)

    async def _carry_together(self, members: list[Member], left_s: float) -> None:
        try:
            outcomes = await self._driver.call(coalesce.request_of(members), left_s)
        except KvError as error:
            if coalesce.must_part(error):
                await self._carry_each(members, left_s)
            else:
                coalesce.fail_all(members, error)
        else:
            coalesce.settle_all(members, outcomes)

    async def _carry_each(self, members: list[Member], left_s: float) -> None:
        outcomes = await asyncio.gather(
            *(self._driver.call(member.call, left_s) for member in members), return_exceptions=True
        )
        coalesce.settle_all(members, outcomes)
