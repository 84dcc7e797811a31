"""The plan of a watch: where it goes on, when it gives up, and that nothing is lost or repeated."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.client import Compacted, Delete, Expire, InvalidArgument, Progress, Put, Resynced, Unavailable
from kvstore.client.exchange import Fault, Open, Receive, Send, Sleep
from kvstore.client.watching import OPEN_S_MAX, SILENCE_S_MAX, Terms, Watched, watched
from tests.support.client_script import ENDPOINTS, WatchScript, known_core, plain_core, routes_document

PREFIX = Watched(prefix=b"cfg/")
TERMS = Terms(timeout_s=5.0)


def begun(what: Watched = PREFIX, terms: Terms = TERMS) -> WatchScript:
    script = WatchScript(known_core(), what, terms)
    script.begin({"type": "start", "pos": "p0"})
    return script


def put(number: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "put",
        "key": f"cfg/{number}",
        "value": "v",
        "revision": number,
        "pos": f"p{number}",
        **more,
    }


def test_a_watch_begins_where_its_caller_says() -> None:
    script = WatchScript(known_core(), PREFIX, Terms(5.0, from_pos="here & now"))
    assert script.open.request.target == "/v1/watch?prefix=cfg%2F&from=here%20%26%20now"
    assert script.open.request.headers["Accept"] == "application/x-ndjson"
    script = WatchScript(known_core(), Watched(key=b"a/b", is_with_prev=True), TERMS)
    assert script.open.request.target == "/v1/watch?key=a%2Fb&prev=1"


def test_every_kind_of_change_reads_as_its_class() -> None:
    script = begun()
    script.lines(
        {"type": "put", "key": "a", "value_b64": "/w==", "revision": 1, "pos": "p1"},
        {"type": "delete", "key_b64": "/w==", "revision": 2, "pos": "p2",
         "prev": {"value": "old", "revision": 1}},
        {"type": "expire", "key": "c", "revision": 3, "pos": "p3"},
        {"type": "progress", "pos": "p9"},
        {"type": "of a later version", "what": 1},
    )  # fmt: skip
    start, put_, delete, expire, progress = script.emitted
    assert (start, progress) == (Progress("p0"), Progress("p9"))
    assert put_ == Put(b"a", b"\xff", 1, "p1")
    assert isinstance(delete, Delete)
    assert delete.key == b"\xff"
    assert delete.prev is not None
    assert delete.prev.value == b"old"
    assert expire == Expire(b"c", 3, "p3")


def test_lines_may_come_in_any_pieces() -> None:
    script = begun()
    for byte in json.dumps(put(1)).encode() + b"\n" + json.dumps(put(2)).encode():
        script.chunk(bytes([byte]))
    assert [change.pos for change in script.emitted] == ["p0", "p1"]
    script.chunk(b"\n")
    assert [change.pos for change in script.emitted] == ["p0", "p1", "p2"]


def test_a_stream_that_is_cut_goes_on_at_another_node_from_the_last_position_handed_on() -> None:
    script = begun()
    first = script.emitted[:]
    assert first == [Progress("p0")]
    script.lines(put(1), put(2))
    script.chunk(b'{"type":"put","key":"cfg/3","va')  # a line that is cut is no line
    script.cut()
    assert isinstance(script.effect, Open)
    assert script.open.request.target.endswith("from=p2")
    script.begin({"type": "start", "pos": "p2"}, put(3))
    assert [change.pos for change in script.emitted] == ["p0", "p1", "p2", "p2", "p3"]


def test_a_dead_node_is_left_for_another_at_once() -> None:
    script = begun()
    first = script.now
    script.lines(put(1))
    script.fail(Fault.LOST)
    addresses = set()
    for _ in range(2):
        addresses.add(script.open.address)
        script.fail(Fault.NOT_SENT)
    assert len(addresses) == 2
    assert script.now - first < 0.1, "no pause before every node was asked"


def test_a_silent_stream_is_taken_for_dead() -> None:
    script = begun()
    assert isinstance(script.effect, Receive)
    assert script.effect.timeout_s == SILENCE_S_MAX
    script.fall_silent()
    assert script.open.request.target.endswith("from=p0")


def test_a_node_that_accepts_and_says_nothing_costs_little() -> None:
    script = WatchScript(known_core(), PREFIX, TERMS)
    address = script.open.address
    script.begin()
    assert isinstance(script.effect, Receive)
    assert script.effect.timeout_s <= OPEN_S_MAX
    script.fall_silent()
    assert script.open.address != address


def test_a_watch_that_cannot_begin_fails_at_its_deadline() -> None:
    script = WatchScript(known_core(), PREFIX, Terms(2.0))
    with pytest.raises(Unavailable) as caught:
        _let_fail(script)
    assert script.now == pytest.approx(2.0, abs=0.6)
    assert {address for address, _ in caught.value.fields["tried"]} == set(ENDPOINTS)


def test_a_watch_that_has_begun_goes_on_for_ever() -> None:
    script = begun()
    script.fail(Fault.LOST)
    for _ in range(400):
        _step_failing(script)
    assert script.now > 30.0
    while not isinstance(script.effect, Open):
        _step_failing(script)
    script.begin({"type": "start", "pos": "p0"}, put(1))
    assert script.emitted[-1] == Put(b"cfg/1", b"v", 1, "p1")


def test_an_outage_may_be_limited() -> None:
    script = begun(terms=Terms(5.0, outage_s=3.0))
    script.lines(put(1))
    script.now = 100.0
    script.lines(put(2))
    script.fail(Fault.LOST)
    with pytest.raises(Unavailable):
        _let_fail(script)
    assert script.now == pytest.approx(103.0, abs=1.0)


def test_where_history_is_gone_the_watch_lists_and_goes_on_from_the_list() -> None:
    script = begun()
    script.lines(put(1), {"type": "compacted"})
    script.wake()
    assert script.send.request.target == "/v1/kv?prefix=cfg%2F&limit=500"
    item = {"key": "cfg/1", "value": "w", "revision": 7, "create_revision": 1, "version": 2}
    script.reply(200, {"items": [item], "next": "more", "pos": "p7"})
    assert "cursor=more" in script.send.request.target
    script.reply(200, {"items": [item | {"key": "cfg/2"}], "next": None, "pos": "p7"})
    resynced = script.emitted[-1]
    assert isinstance(resynced, Resynced)
    assert [found.key for found in resynced.items] == [b"cfg/1", b"cfg/2"]
    assert resynced.pos == "p7"
    assert script.open.request.target.endswith("from=p7")


def test_a_refusal_with_410_resyncs_too_and_can_be_raised_instead() -> None:
    script = WatchScript(known_core(), PREFIX, Terms(5.0, from_pos="old"))
    script.reply(410, {"code": "compacted", "status": 410, "detail": "gone"})
    script.wake()
    assert script.send.request.target.startswith("/v1/kv?prefix=")
    script = WatchScript(known_core(), PREFIX, Terms(5.0, from_pos="old", may_resync=False))
    with pytest.raises(Compacted):
        script.reply(410, {"code": "compacted", "status": 410, "detail": "gone"})


def test_a_snapshot_comes_first_where_it_is_asked_for() -> None:
    script = WatchScript(known_core(), Watched(key=b"k"), Terms(5.0, has_snapshot=True))
    assert script.send.request.target == "/v1/kv?start=k&end=k%00&limit=500"
    script.reply(200, {"items": [], "next": None, "pos": "p3"})
    assert script.emitted == [Resynced((), "p3")]
    assert script.open.request.target == "/v1/watch?key=k&from=p3"


def test_a_listing_that_is_overtaken_by_compaction_begins_anew() -> None:
    script = WatchScript(known_core(), PREFIX, Terms(5.0, has_snapshot=True))
    script.reply(200, {"items": [], "next": "more", "pos": "p1"})
    script.reply(410, {"code": "compacted", "status": 410, "detail": "gone"})
    script.wake()
    assert "cursor" not in script.send.request.target
    script.reply(200, {"items": [], "next": None, "pos": "p8"})
    assert script.emitted == [Resynced((), "p8")]


def test_the_callers_mistakes_end_the_watch() -> None:
    script = WatchScript(known_core(), PREFIX, Terms(5.0, from_pos="nonsense"))
    with pytest.raises(InvalidArgument):
        script.reply(400, {"code": "invalid-argument", "status": 400, "detail": "no position"})
    for wrong in ({"key": None, "prefix": None}, {"key": "a", "prefix": "b"}):
        with pytest.raises(InvalidArgument):
            watched(**wrong, prev=False, from_=None, snapshot=False)
    with pytest.raises(InvalidArgument):
        watched("a", None, prev=False, from_="p", snapshot=True)


def test_too_many_watches_are_waited_out() -> None:
    script = WatchScript(known_core(), PREFIX, TERMS)
    script.reply(429, {"code": "overloaded", "status": 429, "detail": "watches"})
    assert isinstance(script.effect, Sleep)
    script.wake()
    script.begin({"type": "start", "pos": "p0"})
    assert script.emitted == [Progress("p0")]


def test_an_error_in_the_stream_is_waited_out_if_it_may_pass() -> None:
    script = begun()
    script.lines({"type": "error", "code": "no-leader", "status": 503, "detail": "x"})
    script.wake()
    assert isinstance(script.effect, Open)
    script.begin({"type": "start", "pos": "p0"})
    with pytest.raises(InvalidArgument):
        script.lines({"type": "error", "code": "invalid-argument", "status": 400, "detail": "x"})


def test_nodes_that_begin_streams_only_to_end_them_are_not_asked_in_a_tight_loop() -> None:
    script = WatchScript(known_core(), PREFIX, TERMS)
    pause_count = 0
    for _ in range(60):
        if isinstance(script.effect, Open):
            script.begin({"type": "start", "pos": "p0"}, {"type": "end"})
        elif isinstance(script.effect, Send):
            script.fail(Fault.NOT_SENT)
        else:
            script.wake()
            pause_count += 1
    assert pause_count >= 10
    assert script.now > 3.0


def test_a_garbled_stream_is_dropped_and_opened_anew() -> None:
    script = begun()
    script.chunk(b"nonsense\n")
    assert script.open.request.target.endswith("from=p0")
    script.begin({"type": "start", "pos": "p0"}, {"type": "put", "key": "a", "value": "b", "revision": 1})
    assert isinstance(script.effect, Open), "a change without a position cannot be handed on"


def test_the_nodes_are_learnt_before_the_first_stream() -> None:
    script = WatchScript(plain_core(), PREFIX, TERMS)
    assert script.send.request.target == "/v1/routes"
    script.reply(200, routes_document())
    assert isinstance(script.effect, Open)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_no_run_of_cuts_loses_or_repeats_a_change(seed: int) -> None:
    dice = random.Random(seed)
    script = WatchScript(known_core(), PREFIX, Terms(5.0, from_pos="p0"))
    history = [put(number) for number in range(1, 30)]
    for _ in range(400):
        if script.emitted and script.emitted[-1].pos == "p29":
            break
        effect = script.effect
        if isinstance(effect, Open):
            if dice.random() < 0.3:
                script.fail(dice.choice([Fault.NOT_SENT, Fault.LOST, Fault.TIMED_OUT]))
                continue
            at = int(effect.request.target.rpartition("from=p")[2])
            script.begin({"type": "start", "pos": f"p{at}"})
        elif isinstance(effect, Receive):
            text = b"".join(json.dumps(line).encode() + b"\n" for line in history[at:])
            script.chunk(text if dice.random() < 0.3 else text[: dice.randrange(1, len(text) + 1)])
            if isinstance(script.effect, Receive):
                script.fail(Fault.LOST) if dice.random() < 0.5 else script.cut()
        elif isinstance(effect, Send):
            script.fail(Fault.NOT_SENT)
        else:
            script.wake()
    changes = [change for change in script.emitted if isinstance(change, Put)]
    assert [change.revision for change in changes] == list(range(1, 30))


def _let_fail(script: WatchScript) -> None:
    for _ in range(1000):
        _step_failing(script)
    pytest.fail("it never gave up")


def _step_failing(script: WatchScript) -> None:
    if isinstance(script.effect, Sleep):
        script.wake()
    else:
        assert isinstance(script.effect, Open | Send)
        script.fail(Fault.NOT_SENT, 0.05)
