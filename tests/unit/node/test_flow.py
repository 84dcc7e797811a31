"""Promises and the coroutines that wait for them, without an event loop."""

from __future__ import annotations

import pytest

from kvstore.node.flow import Promise, gather, spawn


def test_the_first_settlement_wins() -> None:
    promise: Promise[int] = Promise()
    promise.resolve(1)
    promise.resolve(2)
    promise.fail(ValueError())
    assert promise.result() == 1
    assert promise.error is None


def test_callbacks_run_once_in_order_also_when_added_late() -> None:
    promise: Promise[str] = Promise()
    heard: list[str] = []
    promise.on_done(lambda settled: heard.append("a" + settled.result()))
    promise.on_done(lambda settled: heard.append("b" + settled.result()))
    assert heard == []
    promise.resolve("!")
    promise.on_done(lambda settled: heard.append("c" + settled.result()))
    assert heard == ["a!", "b!", "c!"]


def test_a_result_is_not_there_before_it_is_settled() -> None:
    with pytest.raises(AssertionError, match="unresolved"):
        Promise[int]().result()


def test_a_coroutine_runs_to_its_first_wait_and_on_from_there_in_the_call_that_settles_it() -> None:
    promise: Promise[int] = Promise()
    steps: list[str] = []

    async def work() -> int:
        steps.append("begun")
        value = await promise
        steps.append("resumed")
        return value + 1

    outcome = spawn(work())
    assert steps == ["begun"]
    promise.resolve(41)
    assert steps == ["begun", "resumed"]
    assert outcome.result() == 42


def test_a_settled_promise_is_no_wait() -> None:
    promise: Promise[int] = Promise()
    promise.resolve(7)

    async def work() -> int:
        return await promise

    assert spawn(work()).result() == 7


def test_errors_reach_the_coroutine_and_those_it_lets_pass_its_outcome() -> None:
    first: Promise[int] = Promise()
    second: Promise[int] = Promise()

    async def work() -> int:
        with pytest.raises(KeyError):
            await first
        return await second

    outcome = spawn(work())
    first.fail(KeyError("a"))
    assert not outcome.is_done
    error = ValueError("b")
    second.fail(error)
    assert outcome.error is error
    with pytest.raises(ValueError, match="b"):
        outcome.result()


def test_coroutines_wait_for_each_other() -> None:
    innermost: Promise[int] = Promise()

    async def inner() -> int:
        return await innermost * 2

    async def outer() -> int:
        return await spawn(inner()) + await inner()

    outcome = spawn(outer())
    innermost.resolve(5)
    assert outcome.result() == 20


def test_gather_keeps_the_order_of_asking_and_waits_for_all() -> None:
    promises: list[Promise[int]] = [Promise(), Promise(), Promise()]
    outcome = gather(promises)
    promises[2].resolve(3)
    promises[0].resolve(1)
    assert not outcome.is_done
    promises[1].resolve(2)
    assert outcome.result() == [1, 2, 3]


def test_gather_fails_with_the_first_error_at_once() -> None:
    promises: list[Promise[int]] = [Promise(), Promise()]
    outcome = gather(promises)
    promises[1].fail(OSError("disk"))
    promises[0].resolve(1)
    with pytest.raises(OSError, match="disk"):
        outcome.result()


def test_gather_of_nothing_is_done() -> None:
    assert gather([]).result() == []
