"""How calls of threads that share a blocking client wait for each other (`coalesce`)."""

from __future__ import annotations

import threading
import time
from typing import Any, TypeVar

from kvstore.client import coalesce
from kvstore.client.coalesce import HOLD_S, Group, Lane, MakeOperation, Member, Place
from kvstore.client.op import Operation
from kvstore.client.plan import Call
from kvstore.client.sync_driver import Driver
from kvstore.errors import KvError

T = TypeVar("T")


class _Waiter:
    """Where a thread's result arrives."""

    __slots__ = ("_is_settled", "outcome")

    def __init__(self) -> None:
        self._is_settled = threading.Event()
        self.outcome: Any = None

    def is_over(self) -> bool:
        return self._is_settled.is_set()

    def settle(self, outcome: Any) -> None:
        if not self._is_settled.is_set():
            self.outcome = outcome
            self._is_settled.set()

    def result(self) -> Any:
        self._is_settled.wait()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class _LedGroup(Group):
    """The thread that came first waits until they may leave, and carries the calls of all."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.may_leave = threading.Event()


class Coalescer:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._begin()

    def _begin(self) -> None:
        self._core = self._driver.core
        self._lock = threading.Lock()
        self._lanes: dict[Place, Lane[_LedGroup]] = {}

    def call(self, call: Call[T], operation: MakeOperation, timeout_s: float | None) -> T:
        limit_s = self._driver.limit(timeout_s)
        self._driver.notice_fork()
        if self._core is not self._driver.core:
            # A child has nothing under way, whatever its parent had.
            self._begin()
        with self._driver.lock:
            place = coalesce.place_of(self._core, call, limit_s)
        if place is None:
            return self._driver.call(call, limit_s)
        with self._lock:
            lane = self._lanes.get(place)
            if lane is None:
                self._lanes[place] = mine = Lane[_LedGroup]()
        if lane is None:
            try:
                return self._driver.call(call, limit_s)
            finally:
                self._answered(place, mine)
        result: T = self._go_along(place, call, operation())
        return result

    def _go_along(self, place: Place, call: Call[Any], operation: Operation[Any]) -> Any:
        waiter = _Waiter()
        with self._lock:
            # It may have been left meanwhile: then there is nobody to wait for but the clock.
            lane = self._lanes.get(place)
            if lane is None:
                lane = self._lanes[place] = Lane()
                lane.busy_count = 0
            group, is_first = lane.group, lane.group is None
            if group is None:
                group = lane.group = _LedGroup(time.monotonic())
            group.add(Member(call, operation, waiter.settle, waiter.is_over))
            if group.is_full:
                self._let_leave(lane)
        if is_first:
            self._lead(place, lane, group)
        return waiter.result()

    @staticmethod
    def _let_leave(lane: Lane[_LedGroup]) -> None:
        group = lane.take()
        assert group is not None, "nobody has gathered"
        group.may_leave.set()

    def _lead(self, place: Place, lane: Lane[_LedGroup], group: _LedGroup) -> None:
        members = group.members
        try:
            group.may_leave.wait(HOLD_S)
            with self._lock:
                if lane.group is group:
                    self._let_leave(lane)
            left_s = max(0.0, group.began_at + place.limit_s - time.monotonic())
            self._carry(members, left_s)
        except BaseException:
            coalesce.fail_all(members, coalesce.stopped(place.kind))
            raise
        finally:
            with self._lock:
                if lane.group is group:
                    self._let_leave(lane)
            self._answered(place, lane)

    def _carry(self, members: list[Member], left_s: float) -> None:
        if len(members) > 1:
            try:
                coalesce.settle_all(members, self._driver.call(coalesce.request_of(members), left_s))
                return
            except KvError as error:
                if not coalesce.must_part(error):
                    coalesce.fail_all(members, error)
                    return
        for member in members:
            try:
                member.settle(self._driver.call(member.call, left_s))
            except KvError as error:
                member.settle(error)

    def _answered(self, place: Place, lane: Lane[_LedGroup]) -> None:
        with self._lock:
            lane.busy_count -= 1
            if lane.group is not None:
                self._let_leave(lane)
            elif not lane.busy_count:
                self._lanes.pop(place, None)
