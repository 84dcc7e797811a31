"""The asyncio runtime: order per lane, errors to `done`, hung work in sight."""

import asyncio
import threading
import time

from kvstore.node.aio_runtime import AioRuntime, boottime


async def finished(condition: "asyncio.Event") -> None:
    async with asyncio.timeout(30):
        await condition.wait()


async def test_work_of_one_lane_runs_in_order_off_the_loop_and_is_answered_on_it() -> None:
    runtime = AioRuntime(seed=1)
    loop_thread = threading.get_ident()
    ran_on: list[int] = []
    answers: list[tuple[int, int]] = []
    all_done = asyncio.Event()

    def work(number: int) -> int:
        ran_on.append(threading.get_ident())
        return number

    def done(number: object, error: BaseException | None) -> None:
        assert error is None
        assert isinstance(number, int)
        answers.append((number, threading.get_ident()))
        if len(answers) == 100:
            all_done.set()

    for number in range(100):
        runtime.in_thread(lambda number=number: work(number), done, lane="wal")  # type: ignore[misc]
    await finished(all_done)
    assert answers == [(number, loop_thread) for number in range(100)]
    assert set(ran_on) == {ran_on[0]}
    assert ran_on[0] != loop_thread
    assert runtime.stop() == []


async def test_an_error_of_the_work_is_given_to_done() -> None:
    runtime = AioRuntime()
    errors: list[BaseException | None] = []
    seen = asyncio.Event()

    def work() -> None:
        raise OSError("disk on fire")

    def done(result: object, error: BaseException | None) -> None:
        errors.append(error)
        seen.set()

    runtime.in_thread(work, done, lane="wal")
    await finished(seen)
    assert isinstance(errors[0], OSError)
    runtime.stop()


async def test_a_lane_that_hangs_shows_since_when_and_does_not_hold_up_another() -> None:
    runtime = AioRuntime()
    release, hung, other = threading.Event(), asyncio.Event(), asyncio.Event()
    before = runtime.now()
    runtime.in_thread(lambda: release.wait(5), lambda *_: hung.set(), lane="wal")
    runtime.in_thread(lambda: None, lambda *_: other.set(), lane="files")
    await finished(other)
    async with asyncio.timeout(30):
        while runtime.oldest_running("wal") is None:
            await asyncio.sleep(0)
    since = runtime.oldest_running("wal")
    assert since is not None
    assert before <= since <= runtime.now()
    assert runtime.oldest_running("files") is None
    assert runtime.oldest_running("never used") is None
    assert not hung.is_set()
    assert runtime.stop(timeout_s=0.01) == ["wal"]
    release.set()
    await finished(hung)
    assert runtime.oldest_running("wal") is None


async def test_stop_finishes_what_is_queued_and_delivers_it() -> None:
    runtime = AioRuntime()
    answers: list[object] = []
    for number in range(10):
        runtime.in_thread(lambda number=number: number, lambda result, _: answers.append(result), lane="a")  # type: ignore[misc]
    assert runtime.stop() == []
    assert answers == list(range(10))
    runtime.in_thread(lambda: 11, lambda result, _: answers.append(result), lane="a")
    await asyncio.sleep(0)
    assert answers == list(range(10))


async def test_completions_that_gather_come_back_in_one_wake_up() -> None:
    runtime = AioRuntime()
    loop = asyncio.get_running_loop()
    wakes = 0
    original = loop.call_soon_threadsafe

    def counting(*args: object) -> object:
        nonlocal wakes
        wakes += 1
        return original(*args)  # type: ignore[arg-type]

    loop.call_soon_threadsafe = counting  # type: ignore[method-assign, assignment]
    answers: list[object] = []
    for _ in range(50):
        runtime.in_thread(lambda: None, lambda *_: answers.append(1), lane="wal")
    threads = [worker for worker in threading.enumerate() if worker.name == "kv-wal"]
    assert len(threads) == 1
    runtime.stop()
    assert len(answers) == 50
    assert wakes == 1


async def test_one_failing_callback_does_not_eat_the_answers_of_others() -> None:
    runtime = AioRuntime()
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: faults.append(context["exception"])
    )
    answers: list[object] = []

    def broken(result: object, error: BaseException | None) -> None:
        raise AssertionError("our own mistake")

    runtime.in_thread(lambda: 1, broken, lane="a")
    runtime.in_thread(lambda: 2, lambda result, _: answers.append(result), lane="a")
    runtime.stop()
    assert answers == [2]
    assert len(faults) == 1


async def test_timers_fire_and_can_be_cancelled() -> None:
    runtime = AioRuntime()
    fired: list[str] = []
    done = asyncio.Event()
    runtime.call_later(0.001, fired.append, "cancelled").cancel()
    runtime.call_soon(fired.append, "soon")
    runtime.call_later(0.005, done.set)
    await finished(done)
    assert fired == ["soon"]


def test_now_is_the_boot_clock_that_counts_suspends() -> None:
    assert abs(boottime() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1.0
