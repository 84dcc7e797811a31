"""The lock queue against a model of plain lists: the same answers, also to ops that come late or twice."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.store import commands, lock_commands, lock_queue
from kvstore.store.commands import Op
from tests.support.tablets import Tablet, make_engines

NAME = b"_locks/jobs"
STEPS = ["new", "new", "new", "again", "wait", "expire", "expire"]
CLAIMS = [letter * 16 for letter in (b"a", b"b", b"c", b"d")]


class Waiter(msgspec.Struct):
    claim: bytes
    not_after: int
    attempts: set[int]
    ttl: int
    due: int
    order: int
    fence: int = 0
    is_taken: bool = False


class Past(msgspec.Struct):
    """What is remembered of a claim without an entry."""

    void: int
    over: int
    due: int


class Model:
    def __init__(self, clock: int) -> None:
        self.clock = clock
        self.queue: list[Waiter] = []
        self.past: dict[bytes, Past] = {}
        self.revision = 0
        self.fences: list[int] = []

    def of(self, claim: bytes) -> Waiter | None:
        return next((waiter for waiter in self.queue if waiter.claim == claim), None)

    def fence(self) -> int:
        return self.queue[0].fence if self.queue else 0

    def grant(self) -> None:
        """The first holds from now on."""
        self.revision += 1
        self.queue[0].fence = self.revision
        self.fences.append(self.revision)

    def stand(self, waiter: Waiter) -> list[Any]:
        if waiter is not self.queue[0]:
            return [0, False, self.fence(), waiter.due - self.clock]
        if not waiter.is_taken:
            waiter.is_taken, waiter.due = True, self.clock + waiter.ttl
        return [0, True, waiter.fence, waiter.due - self.clock]

    def forget(self, waiter: Waiter, over: int) -> None:
        self.queue.remove(waiter)
        if waiter.is_taken:
            due = max(self.clock, waiter.not_after) + lock_queue.OVER_MS
            self.past[waiter.claim] = Past(waiter.not_after, over, due)
        elif waiter.not_after >= self.clock:
            self.past[waiter.claim] = Past(waiter.not_after, 0, waiter.not_after + 1)

    def end(self, waiter: Waiter, over: int) -> None:
        was_holder = waiter is self.queue[0]
        self.forget(waiter, over)
        if not was_holder:
            return
        while self.queue and self.queue[0].due <= self.clock:
            self.forget(self.queue[0], lock_queue.EXPIRED)
        if self.queue:
            self.grant()
            self.queue[0].due = self.clock + min(self.queue[0].ttl, lock_queue.PICKUP_MS)
        else:
            self.revision += 1

    def enter(self, op: Op) -> list[Any]:
        _, _, claim, attempt, ttl, wait, not_after, _ = op
        in_time = self.clock <= not_after <= self.clock + wait + lock_queue.AHEAD_MS_MAX
        waiter, past = self.of(claim), self.past.get(claim)
        if waiter is not None:
            if ttl != waiter.ttl:
                return [5]
            if attempt not in waiter.attempts:
                if not in_time or not_after <= waiter.not_after:
                    return [10, waiter.not_after]
                waiter.not_after, waiter.is_taken = not_after, False
                waiter.attempts.add(attempt)
                if not waiter.fence:
                    waiter.due = self.clock + wait + lock_queue.LATE_MS
            return self.stand(waiter)
        if past is not None and past.over:
            return [9]
        void = past.void if past is not None else 0
        if not in_time or (past is not None and not_after <= void):
            return [10, void]
        if self.queue and not wait:
            self.past[claim] = Past(not_after, 0, not_after + 1)
            return [0, False, self.fence(), 0]
        self.past.pop(claim, None)
        due = self.clock + wait + lock_queue.LATE_MS
        order = self.queue[-1].order + 1 if self.queue else 1
        waiter = Waiter(claim, not_after, {attempt}, ttl, due, order)
        self.queue.append(waiter)
        if len(self.queue) == 1:
            self.grant()
        return self.stand(waiter)

    def leave(self, op: Op) -> list[Any]:
        _, _, claim, attempt, not_after, keeps_grant = op
        waiter, past = self.of(claim), self.past.get(claim)
        if waiter is not None:
            if not_after is not None:
                waiter.not_after = max(waiter.not_after, not_after)
                if keeps_grant and waiter is self.queue[0]:
                    waiter.attempts.add(attempt)
                    return [*self.stand(waiter), False]
                waiter.attempts.discard(attempt)
                if waiter.attempts:
                    return [0, False, self.fence(), 0, False]
            self.end(waiter, lock_queue.RELEASED)
            return [0, False, self.fence(), 0, True]
        if not_after is not None and not_after >= self.clock and not_after > (past.void if past else 0):
            over = past.over if past is not None else 0
            self.past[claim] = Past(not_after, over, max(not_after + 1, past.due if past else 0))
        return [0, False, self.fence(), 0, past is not None and past.over == lock_queue.RELEASED]

    def renew(self, op: Op) -> list[Any]:
        waiter = self.of(op[2])
        if waiter is None or waiter is not self.queue[0]:
            return [9]
        waiter.is_taken, waiter.due = True, self.clock + waiter.ttl
        return self.stand(waiter)

    def run(self, op: Op) -> list[Any]:
        return {24: self.enter, 25: self.leave, 26: self.renew}[op[0]](op)

    def expire(self) -> None:
        due = sorted((waiter.due, waiter.order) for waiter in self.queue if waiter.due <= self.clock)
        gone = [claim for claim, past in self.past.items() if past.due <= self.clock]
        for when, order in due:
            for waiter in list(self.queue):
                if (waiter.due, waiter.order) == (when, order):
                    self.end(waiter, lock_queue.EXPIRED)
        for claim in gone:
            del self.past[claim]


def _ops(clock: int) -> st.SearchStrategy[Op]:
    claims = st.sampled_from(CLAIMS)
    attempts = st.integers(1, 2)
    ahead = st.sampled_from((-1, 0, 1, 4_000, 9_000, 15_000, 66_000, 90_000))
    not_after = ahead.map(lambda ms: max(0, clock + ms))
    ttl = st.sampled_from((2_000, 30_000))
    wait = st.sampled_from((0, 0, 1_000, 5_000, 30_000))
    return st.one_of(
        st.builds(
            lambda claim, attempt, ttl, wait, until: lock_commands.enter(
                NAME, claim, attempt, ttl_ms=ttl, wait_ms=wait, not_after_ms=until
            ),
            claims,
            attempts,
            ttl,
            wait,
            not_after,
        ),
        st.builds(
            lambda claim, attempt, until, keeps: lock_commands.give_up(
                NAME, claim, attempt, not_after_ms=until, keeps_grant=keeps
            ),
            claims,
            attempts,
            not_after,
            st.booleans(),
        ),
        claims.map(lambda claim: lock_commands.release(NAME, claim)),
        claims.map(lambda claim: lock_commands.renew(NAME, claim)),
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_ops_are_answered_as_the_model_answers_them(data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        tablet = Tablet(make_engines("memory"), str(Path(directory) / "t"))
        model = Model(tablet.clock_ms)
        said: list[Op] = []
        for _ in range(data.draw(st.integers(5, 30), "steps")):
            kind = data.draw(st.sampled_from(STEPS), "kind")
            if kind in ("wait", "expire"):
                tablet.clock_ms += data.draw(st.sampled_from((1, 500, 2_000, 6_000, 35_000)), "ms")
                model.clock = tablet.clock_ms
                if kind == "expire":
                    tablet.run(commands.expire(1, 1000))
                    model.expire()
            else:
                is_new = kind == "new" or not said
                op = data.draw(_ops(tablet.clock_ms) if is_new else st.sampled_from(said), "op")
                said.append(op)
                assert tablet.run(op)[0] == model.run(op)
            _compare(tablet, model)
        tablet.machine.close()


def _compare(tablet: Tablet, model: Model) -> None:
    found = tablet.machine.query(["holder", NAME])
    if not model.queue:
        assert found is None
        assert tablet.get(NAME) is None
    else:
        first = model.queue[0]
        assert found == [b"", first.fence, first.due, len(model.queue) - 1]
        assert tablet.get(NAME)[1] == first.fence
    for claim in CLAIMS:
        waiter = model.of(claim)
        assert tablet.machine.query(["claim", NAME, claim]) == (None if waiter is None else [waiter.fence])
    assert model.fences == sorted(set(model.fences))
    kinds = [key[9] for key, _ in tablet.pairs() if key[:1] == b"d"]
    assert sorted(kinds) == [5] * len(model.queue) + [6] * len(model.past)
