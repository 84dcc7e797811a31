"""A call is answered once; what its deadline means depends on how far it came."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.errors import DiskFull, NoLeader, OutcomeUnknown, ReadTimeout
from kvstore.node.calls import Call, Stage, live
from kvstore.types import ShardId


class Caller:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, BaseException | None]] = []

    def __call__(self, answer: Any, error: BaseException | None) -> None:
        self.heard.append((answer, error))


def make_call(caller: Caller, deadline: float = 5.0, consistency: str | None = None) -> Call:
    return Call(ShardId(3), b"command", deadline, caller, consistency=consistency)


def test_only_the_first_answer_counts() -> None:
    caller = Caller()
    call = make_call(caller)
    call.finish("first")
    call.finish("second")
    call.fail(OutcomeUnknown())
    call.expire()
    assert caller.heard == [("first", None)]


def test_an_answer_given_from_within_the_callback_is_not_a_second_one() -> None:
    heard: list[str] = []

    def done(answer: str, error: BaseException | None) -> None:
        heard.append(answer)
        call.finish("again")

    call = Call(ShardId(0), b"", 1.0, done)
    call.finish("once")
    assert heard == ["once"]


@pytest.mark.parametrize(
    ("consistency", "stage", "error"),
    [
        (None, Stage.WAITING, NoLeader),
        (None, Stage.PROPOSED, OutcomeUnknown),
        ("linearizable", Stage.WAITING, ReadTimeout),
        ("lease", Stage.PROPOSED, ReadTimeout),
    ],
)
def test_only_a_proposed_write_is_unknown_after_its_deadline(
    consistency: str | None, stage: Stage, error: type[BaseException]
) -> None:
    caller = Caller()
    call = make_call(caller, consistency=consistency)
    call.stage = stage
    call.expire()
    [(answer, given)] = caller.heard
    assert answer is None
    assert type(given) is error
    assert "shard 3" in str(given)


def test_a_call_without_consistency_is_a_write() -> None:
    assert make_call(Caller()).is_write
    assert not make_call(Caller(), consistency="stale").is_write


def test_live_expires_what_is_late_drops_what_is_answered_and_keeps_the_order() -> None:
    callers = [Caller() for _ in range(4)]
    calls = [make_call(caller, deadline) for caller, deadline in zip(callers, (9, 2, 3, 1), strict=True)]
    calls[3].finish("before")
    assert live(calls, 2.0) == [calls[0], calls[2]]
    assert [len(caller.heard) for caller in callers] == [0, 1, 0, 1]
    assert isinstance(callers[1].heard[0][1], NoLeader)


def test_a_doubtful_write_is_never_called_undone() -> None:
    """An earlier attempt may still take effect, whatever became of the last one."""
    refused, expired, broken = Caller(), Caller(), Caller()
    for caller in (refused, expired, broken):
        call = make_call(caller)
        call.is_doubtful = True
        if caller is refused:
            call.fail(DiskFull("no space"))
        elif caller is expired:
            call.expire()
        else:
            call.fail(OutcomeUnknown("lost"))
    for caller in (refused, expired, broken):
        [(_answer, error)] = caller.heard
        assert isinstance(error, OutcomeUnknown)
    assert "no space" in str(refused.heard[0][1])


def test_a_doubtful_write_that_succeeds_has_succeeded() -> None:
    caller = Caller()
    call = make_call(caller)
    call.is_doubtful = True
    call.finish("result")
    assert caller.heard == [("result", None)]
