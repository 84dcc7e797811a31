"""Leases, locks and offices: the plans that take and keep them, and until when they surely hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any

import pytest

from kvstore.client import LeaseNotFound, Locked, LockLost, Unavailable
from kvstore.client.claims import RELEASE_S_MAX, Claim, Claimed, ClaimTerms, Queue, Taking, keep_lease, revoke
from kvstore.client.exchange import Event, Failure, Fault, Reply, Request, Send, Sleep
from kvstore.client.plan import WAIT_ANSWER_S
from kvstore.errors import InvalidArgument, OutcomeUnknown
from tests.support.client_script import Script, known_core, plain_core


class Stage:
    """Drives a plan by hand against a clock that the test moves."""

    def __init__(self, make: Callable[[Stage], Generator[Any, Event, Any]]) -> None:
        self.now = 0.0
        self.result: Any = None
        self.is_over = False
        self.effect: Any = None
        self._plan = make(self)
        self._step(None)

    def clock(self) -> float:
        return self.now

    @property
    def request(self) -> Request:
        assert isinstance(self.effect, Send), f"expected a request, not {self.effect}"
        return self.effect.request

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.request.body)
        return found

    def reply(self, status: int, content: Any, after_s: float = 0.01, **headers: str) -> None:
        kind = "application/problem+json" if status >= 400 else "application/json"
        body = json.dumps(content).encode()
        self._answer(after_s, reply=Reply(status, {"content-type": kind, **headers}, body))

    def problem(self, status: int, code: str, after_s: float = 0.01) -> None:
        self.reply(status, {"code": code, "status": status, "detail": code}, after_s)

    def time_out(self) -> None:
        self._answer(self.effect.timeout_s, failure=Failure(Fault.TIMED_OUT, "scripted"))

    def fail(self) -> None:
        self._answer(0.01, failure=Failure(Fault.NOT_SENT, "scripted"))

    def wake(self, late_s: float = 0.0) -> float:
        assert isinstance(self.effect, Sleep), f"expected a pause, not {self.effect}"
        seconds = self.effect.seconds
        self._answer(seconds + late_s)
        return seconds

    def _answer(self, after_s: float, **happened: Any) -> None:
        self.now += after_s
        self._step(Event(self.now, 0.5, **happened))

    def _step(self, event: Event | None) -> None:
        self.effect = None
        try:
            self.effect = next(self._plan) if event is None else self._plan.send(event)
        except StopIteration as end:
            self.result, self.is_over = end.value, True


def keeping(ttl_s: float = 9.0) -> tuple[Stage, Claim]:
    made: list[Claim] = []

    def make(stage: Stage) -> Generator[Any, Event, Any]:
        made.append(Claim(keep_lease("L"), ttl_s, 0.0, stage.clock))
        return made[0].keep(plain_core(is_routing=False))

    return Stage(make), made[0]


def acquiring(ttl_s: float = 9.0, wait_s: float = 5.0, timeout_s: float = 5.0) -> Stage:
    return taking(ttl_s, wait_s, timeout_s)[0]


def taking(ttl_s: float = 9.0, wait_s: float = 5.0, timeout_s: float = 5.0) -> tuple[Stage, Taking]:
    made: list[Taking] = []

    def make(stage: Stage) -> Generator[Any, Event, tuple[Claimed, Claim]]:
        terms = ClaimTerms(ttl_s, wait_s, timeout_s)
        made.append(Taking(plain_core(is_routing=False), Queue.lock("jobs"), terms, stage.clock))
        return made[0].acquire(Event(0.0, 0.5))

    return Stage(make), made[0]


# Keeping.


def test_a_claim_is_renewed_every_third_of_its_ttl() -> None:
    stage, claim = keeping(9.0)
    for _ in range(5):
        assert stage.wake() == pytest.approx(3.0, abs=0.2)
        assert stage.request.method == "PUT"
        assert stage.request.target == "/v1/leases/L/keepalive"
        stage.reply(200, {"lease": "L", "ttl_ms": 9000}, after_s=0.1)
        assert claim.remaining_s == pytest.approx(8.9)


def test_a_claim_holds_from_when_the_renewal_was_sent_not_from_its_answer() -> None:
    stage, claim = keeping(9.0)
    stage.wake()
    sent_at = stage.now
    stage.reply(200, {"ttl_ms": 9000}, after_s=0.9)
    assert claim.remaining_s == pytest.approx(sent_at + 9.0 - stage.now)


def test_a_renewal_that_did_not_move_the_deadline_counts_for_what_is_left() -> None:
    stage, claim = keeping(9.0)
    stage.wake()
    stage.reply(200, {"ttl_ms": 7000})
    assert claim.remaining_s == pytest.approx(7.0, abs=0.05)


def test_a_claim_whose_renewals_fail_is_lost_when_its_time_is_over() -> None:
    stage, claim = keeping(9.0)
    while not stage.is_over:
        stage.wake() if isinstance(stage.effect, Sleep) else stage.time_out()
    assert stage.now == pytest.approx(9.0, abs=0.2)
    assert claim.is_lost
    assert claim.remaining_s == 0.0
    assert isinstance(claim.why_lost, LockLost)


def test_a_claim_survives_failures_that_end_in_time() -> None:
    stage, claim = keeping(9.0)
    stage.wake()
    while stage.now < 7.0:
        stage.wake() if isinstance(stage.effect, Sleep) else stage.time_out()
    if isinstance(stage.effect, Sleep):
        stage.wake()
    stage.reply(200, {"ttl_ms": 9000})
    assert claim.remaining_s > 7.0
    assert not claim.is_lost


def test_a_claim_that_the_store_does_not_know_is_lost_at_once() -> None:
    stage, claim = keeping()
    stage.wake()
    stage.problem(404, "lease-not-found")
    assert stage.is_over
    assert isinstance(claim.why_lost, LeaseNotFound)
    assert claim.remaining_s == 0.0


def test_a_process_that_was_stopped_longer_than_its_ttl_finds_the_claim_lost() -> None:
    stage, claim = keeping(9.0)
    stage.now += 30.0
    assert claim.remaining_s == 0.0, "before anything of ours has run"
    stage.wake()
    assert stage.is_over
    assert claim.is_lost


def test_a_claim_that_was_given_back_is_not_lost() -> None:
    stage, claim = keeping(9.0)
    claim.end()
    stage.wake()
    assert stage.is_over
    assert not claim.is_lost


# Taking.


def test_a_lock_is_asked_for_with_the_rest_of_its_wait() -> None:
    stage = acquiring(wait_s=20.0, timeout_s=5.0)
    assert stage.body == {"ttl": "9000ms", "wait": "20000ms"}
    assert stage.request.headers["KV-Timeout"] == f"{(20 + int(WAIT_ANSWER_S)) * 1000}ms"
    identity = stage.request.headers["KV-Session"], stage.request.headers["KV-Sequence"]
    stage._answer(8.0, failure=Failure(Fault.LOST, "scripted"))
    assert stage.body["wait"] == "12000ms"
    assert (stage.request.headers["KV-Session"], stage.request.headers["KV-Sequence"]) == identity
    stage.reply(200, {"token": "t", "fence": 7, "ttl_ms": 9000})
    claimed, _ = _renew_if_asked(stage)
    assert claimed == Claimed("t", 7)


def _renew_if_asked(stage: Stage) -> Any:
    while not stage.is_over:
        stage.wake() if isinstance(stage.effect, Sleep) else stage.reply(200, {"ttl_ms": 9000})
    return stage.result


def test_a_lock_that_is_granted_at_once_holds_from_when_it_was_asked_for() -> None:
    stage = acquiring()
    stage.reply(200, {"token": "t", "fence": 7, "ttl_ms": 9000}, after_s=0.2)
    _, claim = stage.result
    assert claim.remaining_s == pytest.approx(8.8)


def test_a_lock_that_was_waited_for_is_renewed_to_know_from_when_it_holds() -> None:
    stage = acquiring(ttl_s=9.0, wait_s=20.0)
    stage.reply(200, {"token": "t", "fence": 7, "ttl_ms": 9000}, after_s=15.0)
    stage.wake()
    assert stage.request.target == "/v1/locks/jobs/t/keepalive"
    stage.reply(200, {"fence": 7, "ttl_ms": 9000}, after_s=0.1)
    _, claim = stage.result
    assert claim.remaining_s == pytest.approx(8.9)


def test_a_lock_that_is_held_by_another_is_not_taken() -> None:
    stage = acquiring(wait_s=0.0)
    assert stage.body["wait"] == "0ms"
    with pytest.raises(Locked):
        stage.problem(409, "locked")


def test_who_is_sent_away_early_queues_again_until_the_wait_is_over() -> None:
    stage = acquiring(wait_s=20.0)
    stage.problem(409, "locked", after_s=6.0)
    assert stage.wake() < 1.0
    assert 13_000 < int(stage.body["wait"].removesuffix("ms")) < 14_000
    with pytest.raises(Locked):
        stage.problem(409, "locked", after_s=13.9)


def test_a_claim_nobody_answered_may_be_held() -> None:
    stage = acquiring(wait_s=0.0, timeout_s=2.0)
    with pytest.raises(OutcomeUnknown):
        _go_on(stage, stage.time_out)


def test_locked_is_a_verdict_even_after_an_attempt_of_unknown_fate() -> None:
    stage = acquiring(wait_s=0.0)
    stage.time_out()
    with pytest.raises(Locked):
        stage.problem(409, "locked")


def giving_up(way: Taking) -> Stage:
    return Stage(lambda _: way.give_up(Event(0.0, 0.5)))


def test_a_claim_that_nobody_came_to_hold_is_given_back() -> None:
    stage, way = taking(ttl_s=9.0, wait_s=20.0)
    stage.reply(200, {"token": "t", "fence": 7, "ttl_ms": 9000}, after_s=15.0)
    with pytest.raises(Unavailable):
        _go_on(stage, stage.fail)
    assert way.is_open, "it may be held, though the renewal has failed"
    back = giving_up(way)
    assert (back.request.method, back.request.target) == ("DELETE", "/v1/locks/jobs/t")
    back.reply(200, {"released": True})
    assert back.is_over


def test_a_claim_that_was_cancelled_is_asked_for_once_more_to_be_given_back() -> None:
    stage, way = taking(wait_s=20.0)
    asked = stage.request.headers
    stage._plan.close()
    assert way.is_open
    back = giving_up(way)
    assert back.body == {"ttl": "9000ms", "wait": "0ms"}
    for name in ("KV-Session", "KV-Sequence"):
        assert back.request.headers[name] == asked[name], "the same claim, whatever has become of it"
    assert back.effect.timeout_s <= RELEASE_S_MAX
    back.reply(200, {"token": "t", "fence": 7, "ttl_ms": 9000})
    back.wake()
    assert (back.request.method, back.request.target) == ("DELETE", "/v1/locks/jobs/t")
    back.problem(404, "lock-lost")
    assert back.is_over


def test_a_claim_of_unknown_fate_is_given_back_too_and_one_that_was_not_granted_is_not() -> None:
    stage, way = taking(wait_s=0.0, timeout_s=2.0)
    with pytest.raises(OutcomeUnknown):
        _go_on(stage, stage.time_out)
    assert way.is_open
    with pytest.raises(Locked):
        giving_up(way).problem(409, "locked")
    stage, way = taking(wait_s=0.0)
    with pytest.raises(Locked):
        stage.problem(409, "locked")
    assert not way.is_open
    stage, way = taking()
    stage.reply(200, {"token": "t", "fence": 7, "ttl_ms": 9000}, after_s=0.2)
    assert not way.is_open, "its holder gives it back"


def test_giving_back_twice_is_no_error() -> None:
    script = Script(known_core(), Queue.lock("a/b").release("t"))
    assert script.send.request.target == "/v1/locks/a%2Fb/t"
    script.problem(404, "lock-lost")
    assert script.result is False
    script = Script(known_core(), revoke("L"))
    script.reply(200, {"lease": "L"})
    assert script.result is True


def test_names_and_ttls_are_checked_before_anything_is_sent() -> None:
    for wrong in (lambda: Queue.lock(""), lambda: Queue.lock("a").claim(0.0, 1.0)):
        with pytest.raises(InvalidArgument):
            wrong()
    assert Queue.lock("..").path == "/v1/locks/%2E%2E"


def test_an_office_says_who_holds_it() -> None:
    queue = Queue.election("svc", b"\xff")
    script = Script(known_core(), queue.leader())
    script.reply(200, {"value_b64": "/w==", "fence": 3})
    assert (script.result.value, script.result.fence) == (b"\xff", 3)
    script = Script(known_core(), queue.leader())
    script.problem(404, "key-not-found")
    assert script.result is None
    assert json.loads(queue.claim(5.0, 1.0).body)["value_b64"] == "/w=="


def test_nobody_reachable_is_not_a_lock() -> None:
    stage = acquiring(wait_s=0.0, timeout_s=1.0)
    with pytest.raises(Unavailable):
        _go_on(stage, stage.fail)


def _go_on(stage: Stage, answer: Callable[[], None]) -> None:
    while True:
        stage.wake() if isinstance(stage.effect, Sleep) else answer()


def test_a_long_wait_does_not_knock_for_as_long_at_closed_doors() -> None:
    stage = acquiring(wait_s=100.0, timeout_s=3.0)
    with pytest.raises(Unavailable):
        _go_on(stage, stage.fail)
    assert stage.now < 5.0


def test_a_long_wait_survives_nodes_that_die_in_the_middle_of_it() -> None:
    stage = acquiring(wait_s=100.0, timeout_s=3.0)
    for _ in range(4):
        stage._answer(10.0, failure=Failure(Fault.LOST, "scripted"))
        stage.fail()
        while isinstance(stage.effect, Sleep):
            stage.wake()
    stage.reply(200, {"token": "t", "fence": 7, "ttl_ms": 9000})
    claimed, _ = _renew_if_asked(stage)
    assert claimed == Claimed("t", 7)
