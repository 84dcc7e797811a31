"""How a call goes over its attempts, driven by hand."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.client import operations
from kvstore.client.exchange import Event, Fault
from kvstore.client.plan import (
    ATTEMPT_S_MIN,
    BACKOFF_S_MAX,
    BACKOFF_S_MIN,
    WRONG_ROUTES_MAX,
    Core,
    execute,
    prepare,
)
from kvstore.client.results import PutResult
from kvstore.errors import (
    Conflict,
    Denied,
    DiskFull,
    KvError,
    NoLeader,
    NotApplied,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    ReadTimeout,
    Unavailable,
)
from tests.support.client_script import ENDPOINTS, SHARDS, Script, known_core, plain_core, routes_document

WRITTEN = {"revision": 7, "version": 1, "created": True}
VALUE_HEADERS = {"kv_revision": "7", "kv_version": "1", "kv_create_revision": "7"}


def put(core: Core | None = None, timeout_s: float = 5.0, **keywords: Any) -> Script:
    return Script(core or known_core(), operations.put("key", b"v", **keywords), timeout_s)


def get(core: Core | None = None, timeout_s: float = 5.0) -> Script:
    return Script(core or known_core(), operations.get("key"), timeout_s)


# Where it goes.


def test_the_first_call_fetches_the_routes_and_then_asks_the_leader() -> None:
    script = put(plain_core())
    assert script.send.request.target == "/v1/routes"
    script.reply(200, routes_document(["n3"] * SHARDS))
    assert script.send.address == ENDPOINTS[2]
    assert script.header["KV-Epoch"] == "9"
    script.reply(200, WRITTEN)
    assert script.result == PutResult(7, 1, True)


def test_a_call_goes_on_without_routes_when_no_node_has_them() -> None:
    script = put(plain_core())
    script.problem(503, "not-ready")
    script.reply(404, b"nothing here")
    assert script.send.request.method == "PUT"
    assert "KV-Epoch" not in script.header


def test_an_unrouted_client_asks_any_node_and_never_for_routes() -> None:
    script = put(plain_core(is_routing=False))
    assert script.send.request.method == "PUT"
    script.problem(503, "no-leader")
    script.wake()
    assert script.send.request.method == "PUT"


def test_a_refused_connection_goes_to_the_next_node_at_once() -> None:
    script = put()
    asked = [script.send.address]
    for _ in range(2):
        script.fail(Fault.NOT_SENT)
        if script.send.request.target == "/v1/routes":
            script.reply(200, routes_document())
        asked.append(script.send.address)
    assert sorted(asked) == sorted(ENDPOINTS)
    assert not script.slept


def test_all_nodes_refusing_is_waited_out_with_pauses() -> None:
    script = put(plain_core(is_routing=False))
    for _ in range(3):
        script.fail(Fault.NOT_SENT)
    script.wake()
    script.reply(200, WRITTEN)
    assert script.result.revision == 7


def test_an_impatient_client_gives_up_when_every_endpoint_has_refused_twice() -> None:
    script = put(plain_core(is_routing=False, is_patient=False))
    for _ in range(3):
        script.fail(Fault.NOT_SENT)
    script.wake()
    script.fail(Fault.NOT_SENT)
    script.fail(Fault.NOT_SENT)
    with pytest.raises(Unavailable, match="at any endpoint") as caught:
        script.fail(Fault.NOT_SENT)
    assert {address for address, _ in caught.value.fields["tried"]} == set(ENDPOINTS)
    assert script.now < 1.0


def test_a_wrong_route_is_taken_over_and_followed_at_once() -> None:
    core = known_core()
    script = put(core)
    script.problem(421, "wrong-route", shard=script_shard(core), leader="n2", address=ENDPOINTS[1])
    assert script.send.address == ENDPOINTS[1]
    assert not script.slept
    script.reply(200, WRITTEN)
    assert put(core).send.address == ENDPOINTS[1]


def test_nodes_that_point_at_each_other_are_asked_to_proxy_in_the_end() -> None:
    core = known_core()
    script, shard = put(core), script_shard(core)
    for round_number in range(WRONG_ROUTES_MAX):
        assert "KV-Epoch" in script.header
        leader = 1 + (round_number + 1) % 2
        script.problem(421, "wrong-route", shard=shard, leader=f"n{leader}", address=ENDPOINTS[leader - 1])
        if script.is_sleeping:
            script.wake()
    assert "KV-Epoch" not in script.header


def test_a_wrong_route_without_a_leader_fetches_the_routes_anew() -> None:
    core = known_core()
    core.routes.is_fetch_due(0.0)
    script = put(core)
    script.problem(421, "wrong-route", after_s=1.0)
    assert script.send.request.target == "/v1/routes"


def test_stale_reads_are_spread_over_all_replicas() -> None:
    core = known_core()
    asked = set()
    for _ in range(3):
        script = Script(core, operations.get("key", consistency="stale"))
        asked.add(script.send.address)
        assert "consistency=stale" in script.send.request.target
    assert asked == set(ENDPOINTS)


# Identity.


def test_all_attempts_of_a_write_carry_one_identity() -> None:
    script = put()
    names = ("KV-Session", "KV-Sequence", "KV-Since")
    first = {name: script.header[name] for name in names}
    assert first == {"KV-Session": "session0", "KV-Sequence": "1", "KV-Since": "1000"}
    script.fail(Fault.LOST)
    while script.send.request.target == "/v1/routes":
        script.reply(200, routes_document(clock_ms=2000))
    assert {name: script.header[name] for name in names} == first
    script.problem(503, "no-leader")
    script.wake()
    assert {name: script.header[name] for name in names} == first


def test_two_writes_have_two_sequences_and_a_finished_one_is_acknowledged() -> None:
    core = known_core()
    first, second = put(core), put(core)
    assert (first.header["KV-Sequence"], second.header["KV-Sequence"]) == ("1", "2")
    assert second.header["KV-Acked-Below"] == "1"
    first.reply(200, WRITTEN)
    assert put(core).header["KV-Acked-Below"] == "2"


def test_a_retry_carries_what_was_acknowledged_meanwhile() -> None:
    core = known_core()
    first, second = put(core), put(core)
    first.reply(200, WRITTEN)
    second.problem(503, "no-leader")
    second.wake()
    while second.send.request.target == "/v1/routes":
        second.reply(200, routes_document())
    assert (second.header["KV-Sequence"], second.header["KV-Acked-Below"]) == ("2", "2")


def test_an_abandoned_write_is_acknowledged() -> None:
    core = known_core()
    script = put(core)
    script.abandon()
    assert put(core).header["KV-Acked-Below"] == "2"


def test_reads_carry_no_identity() -> None:
    assert not {"KV-Session", "KV-Sequence", "KV-Since"} & set(get().header)


def test_the_clock_of_an_answer_dates_the_next_write() -> None:
    core = known_core()
    put(core).reply(200, WRITTEN, kv_shard=str(script_shard(core)), kv_clock="5000")
    assert put(core).header["KV-Since"] == "5000"


def test_a_clock_that_is_too_old_is_not_sent() -> None:
    core = known_core()
    core.routes.is_fetch_due(90.0)
    plan = execute(core, operations.put("key", b"v"), 5.0, Event(90.0, 0.5))
    effect = next(plan)
    assert "KV-Since" not in effect.request.headers  # type: ignore[union-attr]


def test_a_write_the_store_cannot_date_starts_anew_if_it_was_never_sent_before() -> None:
    core = known_core()
    script = put(core)
    headers = {"kv_shard": str(script_shard(core)), "kv_clock": "900000"}
    script.problem(504, "outcome-unknown", reason="session-unknown", headers=headers)
    assert script.header["KV-Sequence"] == "2"
    assert script.header["KV-Since"] == "900000"
    script.reply(200, WRITTEN)
    assert script.result.revision == 7


def test_a_write_the_store_cannot_date_has_an_unknown_outcome_if_it_may_have_been_applied() -> None:
    script = put()
    script.fail(Fault.LOST)
    while script.send.request.target == "/v1/routes":
        script.reply(200, routes_document())
    with pytest.raises(OutcomeUnknown):
        script.problem(504, "outcome-unknown", reason="session-unknown")


# What a failure means.


def test_a_refusal_is_raised_at_once_with_its_facts() -> None:
    script = put(if_revision=3)
    with pytest.raises(Conflict) as caught:
        script.problem(412, "precondition-failed", current_revision=5, headers={"kv_request_id": "r9"})
    assert caught.value.fields["current_revision"] == 5
    assert caught.value.request_id == "r9"
    assert caught.value.code == "precondition-failed"


def test_a_write_nobody_answered_has_an_unknown_outcome_at_the_deadline() -> None:
    script = put(timeout_s=2.0)
    with pytest.raises(OutcomeUnknown) as caught:
        exhaust(script, lambda: script.time_out())
    assert script.now <= 2.0
    assert set(dict(caught.value.fields["tried"])) == set(ENDPOINTS)


def test_a_read_nobody_answered_is_unavailable_at_the_deadline() -> None:
    script = get(timeout_s=2.0)
    with pytest.raises(Unavailable):
        exhaust(script, lambda: script.time_out())
    assert script.now <= 2.0


def test_a_write_that_surely_was_not_proposed_did_not_happen() -> None:
    script = put(timeout_s=1.0)
    with pytest.raises(NoLeader) as caught:
        exhaust(script, lambda: script.problem(503, "no-leader"))
    assert isinstance(caught.value, NotApplied)
    assert "no-leader" in str(caught.value)


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.TIMED_OUT, Fault.GARBLED])
def test_one_attempt_of_unknown_fate_makes_the_whole_write_unknown(fault: Fault) -> None:
    script = put(timeout_s=1.0)
    script.fail(fault)
    with pytest.raises(OutcomeUnknown):
        exhaust(script, lambda: script.problem(503, "no-leader"))


def test_an_unknown_outcome_is_asked_again_with_the_same_identity() -> None:
    script = put()
    script.problem(504, "outcome-unknown")
    script.wake()
    assert (script.header["KV-Session"], script.header["KV-Sequence"]) == ("session0", "1")
    script.reply(200, WRITTEN, idempotency_replayed="true")
    assert script.result.replayed


@pytest.mark.parametrize(("status", "code"), [(401, "unauthenticated"), (403, "denied"), (507, "disk-full")])
def test_a_refusal_after_an_attempt_of_unknown_fate_leaves_it_unknown(status: int, code: str) -> None:
    script = put()
    script.fail(Fault.LOST)
    while script.send.request.target == "/v1/routes":
        script.reply(200, routes_document())
    with pytest.raises(OutcomeUnknown) as caught:
        script.problem(status, code)
    assert isinstance(caught.value.__cause__, Denied | DiskFull | NotApplied)


def test_a_recorded_result_is_believed_after_an_attempt_of_unknown_fate() -> None:
    script = put(if_revision=3)
    script.fail(Fault.LOST)
    while script.send.request.target == "/v1/routes":
        script.reply(200, routes_document())
    with pytest.raises(Conflict):
        script.problem(412, "precondition-failed", current_revision=5)


def test_an_error_without_a_code_is_unknown_for_a_write_and_retried_for_a_read() -> None:
    script = put(timeout_s=0.5)
    with pytest.raises(OutcomeUnknown):
        exhaust(script, lambda: script.reply(502, b"<html>bad gateway"))
    reading = get()
    reading.reply(500, {"code": "internal", "detail": "oops"})
    reading.wake()
    while reading.send.request.target == "/v1/routes":
        reading.reply(200, routes_document())
    reading.reply(200, b"v", **VALUE_HEADERS)
    assert reading.result.value == b"v"


def test_a_read_that_timed_out_at_the_server_is_tried_again() -> None:
    script = get(timeout_s=0.3)
    with pytest.raises(ReadTimeout):
        exhaust(script, lambda: script.problem(504, "timeout"))


def test_an_absent_key_is_an_answer_and_an_absent_route_an_error() -> None:
    script = get()
    script.problem(404, "key-not-found")
    assert script.is_over
    assert script.result is None
    with pytest.raises(NotFound):
        get().problem(404, "not-found")


def test_an_answer_that_makes_no_sense_counts_as_lost() -> None:
    script = put(timeout_s=1.0)
    script.reply(200, b"{half")
    assert script.send.address != ENDPOINTS[0]
    with pytest.raises(OutcomeUnknown):
        exhaust(script, lambda: script.reply(200, {"revision": "x"}))


# Time.


def test_the_server_is_given_less_time_than_the_caller_has() -> None:
    script = put(timeout_s=0.8)
    assert script.send.timeout_s == pytest.approx(0.8)
    assert script.header["KV-Timeout"] == "720ms"


def test_a_frozen_node_costs_one_attempt_and_not_the_call() -> None:
    script = put(timeout_s=10.0)
    assert script.send.timeout_s == ATTEMPT_S_MIN
    script.time_out()
    while script.send.request.target == "/v1/routes":
        script.reply(200, routes_document())
    assert script.send.address != ENDPOINTS[0]


def test_attempts_grow_until_the_deadline() -> None:
    script = put(plain_core(is_routing=False), timeout_s=20.0)
    limits = []

    def time_out() -> None:
        limits.append(script.send.timeout_s)
        script.time_out()

    with pytest.raises(OutcomeUnknown):
        exhaust(script, time_out)
    assert limits[:5] == [1.0, 1.0, 2.0, 4.0, 8.0]
    assert script.now <= 20.0


def test_an_attempt_of_a_long_call_gets_half_the_time_that_is_left() -> None:
    script = Script(known_core(), operations.count(operations.key_range("p", None, None)), 30.0)
    assert script.send.timeout_s == 15.0
    script.time_out()
    assert script.send.timeout_s == 7.5


def test_an_absent_document_is_an_error_even_if_it_calls_itself_a_key() -> None:
    script = Script(known_core(), operations.fetch("GET", "/v1/shards/99"))
    with pytest.raises(NotFound):
        script.problem(404, "key-not-found")


def test_an_overloaded_shard_is_left_alone_as_long_as_it_asks() -> None:
    script = put(timeout_s=10.0)
    script.problem(429, "overloaded", headers={"retry_after": "1"})
    assert script.sleep_s == pytest.approx(1.0)
    with pytest.raises(Overloaded):
        exhaust(script, lambda: script.problem(429, "overloaded", headers={"retry_after": "1"}))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=12))
def test_pauses_have_full_jitter_within_a_bound_that_doubles(dices: list[float]) -> None:
    script = put(plain_core(is_routing=False), timeout_s=1000.0)
    bound_s = BACKOFF_S_MIN
    for dice in dices:
        script.dice = dice
        script.problem(503, "no-leader", headers={"retry_after": "1"})
        pause_s = script.sleep_s if script.is_sleeping else 0.0
        assert pause_s == pytest.approx(dice * min(bound_s, BACKOFF_S_MAX), abs=0.01)
        bound_s *= 2
        if script.is_sleeping:
            script.wake()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["refused", "lost", "slow", "503", "429", "504", "421", "ok?"]), max_size=40),
    st.floats(0, 0.999),
    st.floats(0.05, 5.0),
)
def test_no_run_of_faults_outlives_the_deadline_or_lies_about_the_outcome(
    faults: list[str], dice: float, timeout_s: float
) -> None:
    """A write ends as NotApplied only if no attempt can have been applied."""
    script = put(plain_core(is_routing=False), timeout_s=timeout_s)
    script.dice = dice
    may_have_happened = False
    following = iter(faults * 100 + ["slow"] * 1000) if faults else iter(["slow"] * 1000)
    try:
        while not script.is_over:
            if script.is_sleeping:
                script.wake()
                continue
            match next(following):
                case "refused":
                    script.fail(Fault.NOT_SENT, 0.01)
                case "lost":
                    may_have_happened = True
                    script.fail(Fault.LOST, 0.01)
                case "slow":
                    may_have_happened = True
                    script.time_out()
                case "504":
                    may_have_happened = True
                    script.problem(504, "outcome-unknown", 0.01)
                case "503":
                    script.problem(503, "no-leader", 0.01)
                case "429":
                    script.problem(429, "overloaded", 0.01)
                case "421":
                    script.problem(421, "wrong-route", 0.01)
                case _:
                    script.reply(200, WRITTEN)
    except KvError as error:
        ended_unknown = isinstance(error, OutcomeUnknown)
    else:
        ended_unknown = may_have_happened
    assert ended_unknown == may_have_happened
    assert script.now <= timeout_s + 0.02


def test_preparing_fetches_the_routes_once() -> None:
    core = plain_core()
    plan = prepare(core, 5.0, Event(0.0, 0.5))
    assert next(plan).request.target == "/v1/routes"  # type: ignore[union-attr]
    plan.close()
    assert not list(prepare(core, 5.0, Event(0.01, 0.5)))


def script_shard(core: Core) -> int:
    shard = core.routes.shard_of(b"key")
    assert shard is not None
    return shard


def exhaust(script: Script, answer: Any) -> None:
    """Answer every request alike, until the call ends."""
    while True:
        if script.is_sleeping:
            script.wake()
        elif script.send.request.target == "/v1/routes":
            script.fail(Fault.NOT_SENT)
        else:
            answer()
