"""Single keys: every line of the contract about PUT, GET, HEAD, DELETE and POST on /v1/kv/{key}."""

from __future__ import annotations

from random import Random

import pytest

from kvstore.config import Limits
from kvstore.errors import NoLeader, OutcomeUnknown, Overloaded, ReadTimeout
from kvstore.types import NodeId
from tests.support.api_node import ApiNode


@pytest.fixture
def node() -> ApiNode:
    return ApiNode()


# --- put and get ---------------------------------------------------------------------------------


def test_put_creates_then_replaces(node: ApiNode) -> None:
    created = node.put("a", "1")
    assert (created.status, created.content) == (201, {"revision": 1, "version": 1, "created": True})
    assert created.headers["ETag"] == '"1"'
    replaced = node.put("a", "2")
    assert (replaced.status, replaced.content) == (200, {"revision": 2, "version": 2, "created": False})
    assert replaced.headers["KV-Revision"] == "2"


def test_get_gives_the_value_back_with_its_type_and_revisions(node: ApiNode) -> None:
    node.put("a", "0")
    node.put("a", "{}", content_type="application/json; charset=utf-8")
    reply = node.ask("GET", "/v1/kv/a")
    assert (reply.status, reply.body) == (200, b"{}")
    assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
    assert reply.headers["ETag"] == '"2"'
    assert (reply.headers["KV-Revision"], reply.headers["KV-Version"]) == ("2", "2")
    assert reply.headers["KV-Create-Revision"] == "1"
    assert "KV-Lease" not in reply.headers
    assert "KV-TTL" not in reply.headers


def test_value_without_a_type_is_octets(node: ApiNode) -> None:
    node.put("a")
    assert node.ask("GET", "/v1/kv/a").headers["Content-Type"] == "application/octet-stream"


def test_every_answer_names_shard_request_and_clock(node: ApiNode) -> None:
    shard = str(node.router.shard_of(b"a"))
    for reply in (node.put("a"), node.ask("GET", "/v1/kv/a"), node.ask("DELETE", "/v1/kv/a")):
        assert reply.headers["KV-Shard"] == shard
        assert reply.headers["KV-Request-Id"]
        assert reply.headers["KV-Clock"] == "1000"
    absent = node.ask("GET", "/v1/kv/a")
    assert absent.headers["KV-Shard"] == shard
    assert absent.headers["KV-Clock"] == "1000"


def test_absent_key_is_404(node: ApiNode) -> None:
    document = node.problem(node.ask("GET", "/v1/kv/nothing"), 404, "key-not-found")
    assert document["retryable"] is False


def test_head_is_answered_like_get(node: ApiNode) -> None:
    node.put("a", "12345")
    reply = node.ask("HEAD", "/v1/kv/a")
    assert (reply.status, reply.headers["ETag"]) == (200, '"1"')
    assert node.ask("HEAD", "/v1/kv/b").status == 404


def test_read_at_a_revision_shows_history(node: ApiNode) -> None:
    for value in ("1", "2", "3"):
        node.put("a", value)
    assert node.ask("GET", "/v1/kv/a?revision=2").body == b"2"
    node.problem(node.ask("GET", "/v1/kv/a?revision=9"), 400, "revision-in-future")
    assert node.ask("GET", "/v1/kv/a?revision=0").status == 404


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("a%2Fb", b"a/b"),
        ("a/b", b"a/b"),
        ("%FF%00", b"\xff\x00"),
        ("a+b", b"a+b"),
        ("..", b".."),
        ("../x//y/", b"../x//y/"),
        ("%252F", b"%2F"),
        ("%C3%A4", "ä".encode()),
        ("%3f%23", b"?#"),
    ],
)
def test_key_is_the_percent_decoded_bytes_of_the_path(node: ApiNode, target: str, key: bytes) -> None:
    node.put(target, "here")
    _, shard, (_, ops) = node.router.calls[-1]
    assert ops[0][1] == key
    assert shard == node.router.shard_of(key)
    assert node.value(target) == b"here"


@pytest.mark.parametrize("target", ["%", "%2", "a%zz", "%%41", "%+1", "%u0041"])
def test_bad_percent_encoding_is_refused(node: ApiNode, target: str) -> None:
    document = node.problem(node.put(target), 400, "invalid-argument")
    assert "hexadecimal" in document["detail"]


def test_empty_key_is_refused(node: ApiNode) -> None:
    for method in ("GET", "PUT", "DELETE", "POST"):
        node.problem(
            node.ask(method, "/v1/kv/?op=incr" if method == "POST" else "/v1/kv/"), 400, "invalid-argument"
        )


def test_key_and_value_have_limits_that_the_answer_names() -> None:
    node = ApiNode(limits=Limits(key_bytes_max=4, value_bytes_max=5))
    assert node.put("%C3%A4%C3%A4", "12345").status == 201
    document = node.problem(node.put("12345"), 413, "too-large")
    assert (document["limit"], document["max"], document["size"]) == ("key_bytes_max", 4, 5)
    document = node.problem(node.put("a", "123456"), 413, "too-large")
    assert (document["limit"], document["max"], document["size"]) == ("value_bytes_max", 5, 6)


def test_content_type_is_bounded_and_must_be_one(node: ApiNode) -> None:
    node.problem(node.put("a", content_type="text/" + "x" * 300), 413, "too-large")
    for bad in ("nonsense", "text/plain; a=\x7f", "text/pl ain", "text/plain, text/html"):
        node.problem(node.put("a", content_type=bad), 400, "invalid-argument")


def test_stored_page_cannot_run_in_this_origin(node: ApiNode) -> None:
    node.put("a", "<script>", content_type="text/html")
    assert node.ask("GET", "/v1/kv/a").headers["Content-Security-Policy"] == "sandbox"


def test_prev_gives_back_what_was_replaced(node: ApiNode) -> None:
    assert "prev" not in node.put("a?prev=1", "1").content
    prev = node.put("a?prev=1", "2").content["prev"]
    assert (prev["value"], prev["revision"], prev["version"]) == ("1", 1, 1)
    prev = node.ask("DELETE", "/v1/kv/a?prev=true").content["prev"]
    assert prev["value"] == "2"


def test_prev_that_is_not_text_is_base64(node: ApiNode) -> None:
    node.ask("PUT", "/v1/kv/a", b"\xff")
    assert node.ask("DELETE", "/v1/kv/a?prev=1").content["prev"]["value_b64"] == "/w=="


def test_answers_to_writes_can_be_msgpack(node: ApiNode) -> None:
    node.ask("PUT", "/v1/kv/a", b"\xff")
    reply = node.put("a?prev=1", "2", accept="application/msgpack")
    assert reply.headers["Content-Type"] == "application/msgpack"
    assert reply.content["prev"]["value"] == b"\xff"


# --- conditions ----------------------------------------------------------------------------------


def test_if_match_writes_only_over_that_revision(node: ApiNode) -> None:
    node.put("a", "1")
    assert node.put("a", "2", if_match='"1"').status == 200
    document = node.problem(node.put("a", "3", if_match='"1"'), 412, "precondition-failed")
    assert document["current_revision"] == 2
    assert node.value("a") == b"2"
    node.problem(node.ask("DELETE", "/v1/kv/a", if_match='"1"'), 412, "precondition-failed")
    assert node.ask("DELETE", "/v1/kv/a", if_match='"2"').status == 200


def test_if_match_star_wants_any_revision(node: ApiNode) -> None:
    document = node.problem(node.put("a", "1", if_match="*"), 412, "precondition-failed")
    assert document["current_revision"] == 0
    node.put("a", "1")
    assert node.put("a", "2", if_match="*").status == 200


def test_if_none_match_star_creates_only(node: ApiNode) -> None:
    assert node.put("a", "1", if_none_match="*").status == 201
    document = node.problem(node.put("a", "2", if_none_match="*"), 412, "precondition-failed")
    assert document["current_revision"] == 1


@pytest.mark.parametrize(
    "conditions",
    [
        {"if_match": "7"},
        {"if_match": '"7'},
        {"if_match": '"seven"'},
        {"if_match": 'W/"7"'},
        {"if_match": '"7", "8"'},
        {"if_match": '"99999999999999999999"'},
        {"if_match": '""'},
        {"if_none_match": '"7"'},
        {"if_match": '"7"', "if_none_match": "*"},
    ],
)
def test_condition_that_makes_no_sense_on_a_write_is_refused(
    node: ApiNode, conditions: dict[str, str]
) -> None:
    node.problem(node.put("a", "1", **conditions), 400, "invalid-argument")
    assert node.value("a") is None


@pytest.mark.parametrize("tags", ['"1"', 'W/"1"', '"0", "1"', "*"])
def test_if_none_match_of_a_read_is_304_when_the_caller_has_it(node: ApiNode, tags: str) -> None:
    node.put("a", "1")
    reply = node.ask("GET", "/v1/kv/a", if_none_match=tags)
    assert (reply.status, reply.body) == (304, b"")
    assert reply.headers["ETag"] == '"1"'
    assert reply.headers["KV-Revision"] == "1"


def test_if_none_match_of_a_read_gives_the_value_when_it_is_newer(node: ApiNode) -> None:
    node.put("a", "1")
    assert node.ask("GET", "/v1/kv/a", if_none_match='"2", W/"3"').status == 200
    node.problem(node.ask("GET", "/v1/kv/a", if_none_match="nonsense"), 400, "invalid-argument")


def test_if_match_of_a_read_is_412_when_it_is_another(node: ApiNode) -> None:
    node.problem(node.ask("GET", "/v1/kv/a", if_match='"1"'), 412, "precondition-failed")
    node.put("a", "1")
    assert node.ask("GET", "/v1/kv/a", if_match='"1"').status == 200
    node.problem(node.ask("GET", "/v1/kv/a", if_match='"2"'), 412, "precondition-failed")


# --- delete and incr -----------------------------------------------------------------------------


def test_delete_says_how_many_and_when(node: ApiNode) -> None:
    node.put("a")
    reply = node.ask("DELETE", "/v1/kv/a")
    assert (reply.status, reply.content) == (200, {"deleted": 1, "revision": 2})
    assert reply.headers["KV-Revision"] == "2"
    assert node.ask("DELETE", "/v1/kv/a").content["deleted"] == 0


def test_incr_adds_within_bounds(node: ApiNode) -> None:
    reply = node.ask_json("POST", "/v1/kv/a?op=incr", {"by": 5, "min": None, "max": 6})
    assert (reply.status, reply.content) == (200, {"value": 5, "revision": 1})
    node.problem(node.ask_json("POST", "/v1/kv/a?op=incr", {"by": 5, "max": 6}), 409, "out-of-range")
    assert node.ask("POST", "/v1/kv/a?op=incr").content["value"] == 6
    assert node.ask_msgpack("POST", "/v1/kv/a?op=incr", {"by": -6}).content["value"] == 0
    assert node.value("a") == b"0"


def test_incr_of_what_is_no_number_is_409(node: ApiNode) -> None:
    node.put("a", "ten")
    node.problem(node.ask("POST", "/v1/kv/a?op=incr"), 409, "not-a-number")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"nul",
        b'{"by":"1"}',
        b'{"by":1.5}',
        b'{"by":true}',
        b'{"by":NaN}',
        b'{"by":null}',
        b'{"more":1}',
        b'{"by":' + b"9" * 5000 + b"}",
        b'{"by":9223372036854775808}',
        b'{"min":2,"max":1}',
        b'{"by":1}{',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_malformed_incr_is_400(node: ApiNode, body: bytes) -> None:
    node.problem(node.ask("POST", "/v1/kv/a?op=incr", body), 400, "invalid-argument")
    assert node.value("a") is None


def test_incr_body_of_another_type_is_415(node: ApiNode) -> None:
    node.problem(
        node.ask("POST", "/v1/kv/a?op=incr", b"{}", content_type="text/xml"), 415, "unsupported-media-type"
    )


def test_post_names_its_operation(node: ApiNode) -> None:
    node.problem(node.ask("POST", "/v1/kv/a"), 400, "invalid-argument")
    node.problem(node.ask("POST", "/v1/kv/a?op=append"), 400, "invalid-argument")


def test_page_of_another_origin_cannot_post(node: ApiNode) -> None:
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example", "Host": "127.0.0.1:7401"},
    ):
        node.problem(node.ask("POST", "/v1/kv/a?op=incr", b"", headers), 403, "denied")
    own = {"Origin": "http://127.0.0.1:7401", "Host": "127.0.0.1:7401", "Sec-Fetch-Site": "same-origin"}
    assert node.ask("POST", "/v1/kv/a?op=incr", b"", own).status == 200


# --- parameters ----------------------------------------------------------------------------------


def test_unknown_parameter_is_refused_by_name(node: ApiNode) -> None:
    for method, target in (("GET", "a?consistancy=stale"), ("PUT", "a?revision=1"), ("DELETE", "a?%66oo=1")):
        document = node.problem(node.ask(method, f"/v1/kv/{target}"), 400, "invalid-argument")
        assert document["parameter"] in ("consistancy", "revision", "foo")
        assert document["parameter"] in document["detail"]


def test_parameter_given_twice_is_refused(node: ApiNode) -> None:
    node.problem(node.ask("GET", "/v1/kv/a?revision=1&revision=2"), 400, "invalid-argument")


@pytest.mark.parametrize(
    "query",
    [
        "revision=x",
        "revision=-1",
        "revision=",
        "revision=1_0",
        "revision=%D9%A1",
        "revision=" + "9" * 5000,
        "revision=%FF",
        "consistency=strong",
        "consistency=",
        "max_staleness=1s",
        "consistency=stale&max_staleness=soon",
        "redirect=perhaps",
        "revision=%zz",
        "%zz=1",
    ],
)
def test_parameter_with_a_bad_value_is_400(node: ApiNode, query: str) -> None:
    node.problem(node.ask("GET", f"/v1/kv/a?{query}"), 400, "invalid-argument")


def test_a_ttl_is_counted_from_the_shard_clock_and_told_as_what_is_left(node: ApiNode) -> None:
    node.router.clock_ms = 5_000
    assert node.ask("PUT", "/v1/kv/a?ttl=30s", b"1").status == 201
    assert node.ask("GET", "/v1/kv/a").headers["KV-TTL"] == "30.000"
    node.router.clock_ms = 16_500
    node.put("b-moves-the-clock{a}")
    assert node.ask("GET", "/v1/kv/a").headers["KV-TTL"] == "18.500"
    node.router.clock_ms = 99_000
    node.put("b-moves-the-clock{a}")
    overdue = node.ask("GET", "/v1/kv/a")
    assert (overdue.status, overdue.headers["KV-TTL"]) == (200, "0.000"), "it is there until it is removed"
    node.put("a")
    assert "KV-TTL" not in node.ask("GET", "/v1/kv/a").headers


@pytest.mark.parametrize("ttl", ["", "0", "99ms", "-1s", "1d", "1e3", "30 s", "99999999h", "soon", "%FF"])
def test_a_bad_ttl_is_400_and_writes_nothing(node: ApiNode, ttl: str) -> None:
    document = node.problem(node.ask("PUT", f"/v1/kv/a?ttl={ttl}", b"1"), 400, "invalid-argument")
    assert "ttl" in document["detail"]
    assert not node.router.calls


def test_consistency_reaches_the_router_and_staleness_the_caller(node: ApiNode) -> None:
    node.put("a")
    for consistency in ("linearizable", "lease", "stale"):
        node.ask("GET", f"/v1/kv/a?consistency={consistency}")
        assert node.router.calls[-1][0] == consistency
    node.router.staleness_s = 0.25
    reply = node.ask("GET", "/v1/kv/a?consistency=stale&max_staleness=2s")
    assert reply.headers["KV-Staleness"] == "0.250"


# --- deadlines and failures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, 5.0), ("750ms", 0.75), ("2s", 2.0), ("1m", 60.0), ("1.5", 1.5)]
)
def test_deadline_is_the_callers(node: ApiNode, value: str | None, seconds: float) -> None:
    headers = {} if value is None else {"kv_timeout": value}
    node.put("a", "1", **headers)
    node.ask("GET", "/v1/kv/a", **headers)
    assert node.router.deadlines == [100.0 + seconds] * 2


@pytest.mark.parametrize("value", ["soon", "-1s", "0", "1d", "1e3s", "", "9" * 400, "2h", "١s"])
def test_bad_timeout_is_400(node: ApiNode, value: str) -> None:
    node.problem(node.put("a", "1", kv_timeout=value), 400, "invalid-argument")


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (NoLeader("none", retry_after=1), 503, "1"),
        (Overloaded("full", retry_after=0.2), 429, "1"),
        (OutcomeUnknown("who knows"), 504, None),
        (ReadTimeout("late"), 504, None),
    ],
)
def test_failures_of_the_shard_are_told_with_their_code(
    node: ApiNode, error: NoLeader, status: int, retry_after: str | None
) -> None:
    node.router.fail = dict.fromkeys(node.router.shards(), error)
    reply = node.put("a")
    document = node.problem(reply, status, error.code)
    assert document["retryable"] is error.retryable
    assert reply.headers.get("Retry-After") == retry_after
    assert "KV-Shard" in reply.headers


def test_fault_of_ours_is_told_without_its_traceback(node: ApiNode, caplog: pytest.LogCaptureFixture) -> None:
    node.router.fail = dict.fromkeys(node.router.shards(), ZeroDivisionError("secret"))  # type: ignore[arg-type]
    reply = node.ask("GET", "/v1/kv/a")
    assert (reply.status, reply.content["code"]) == (500, "internal")
    assert b"secret" not in reply.body
    node.problem(node.put("a"), 504, "outcome-unknown")
    assert "secret" in caplog.text


# --- request ids ---------------------------------------------------------------------------------


def test_request_id_is_the_callers_if_it_is_sane(node: ApiNode) -> None:
    assert node.put("a", kv_request_id="job-7/retry:1").headers["KV-Request-Id"] == "job-7/retry:1"
    for bad in ("x" * 200, "a b", "a\x1b[31m", "ä", ""):
        assert node.put("a", kv_request_id=bad).headers["KV-Request-Id"] != bad


def test_request_ids_of_ours_differ(node: ApiNode) -> None:
    assert len({node.put("a").headers["KV-Request-Id"] for _ in range(100)}) == 100


# --- routing -------------------------------------------------------------------------------------


def elsewhere(node: ApiNode, key: bytes) -> int:
    shard = node.router.shard_of(key)
    node.view.leaders[shard] = NodeId("n2")
    return shard


def test_old_epoch_at_a_node_that_does_not_lead_gets_the_new_route(node: ApiNode) -> None:
    shard = elsewhere(node, b"a")
    for reply in (node.put("a", kv_epoch="4"), node.ask("GET", "/v1/kv/a", kv_epoch="4")):
        document = node.problem(reply, 421, "wrong-route")
        assert (document["shard"], document["leader"], document["address"], document["epoch"]) == (
            shard,
            "n2",
            "10.0.0.2:7401",
            5,
        )
        assert document["retryable"] is True
    assert not node.router.calls


def test_old_epoch_is_no_matter_at_the_leader_or_without_one(node: ApiNode) -> None:
    assert node.put("a", kv_epoch="4").status == 201
    node.view.leaders[node.router.shard_of(b"a")] = None
    assert node.put("a", kv_epoch="4").status == 200


def test_current_epoch_is_proxied(node: ApiNode) -> None:
    elsewhere(node, b"a")
    assert node.put("a", kv_epoch="5").status == 201
    node.problem(node.put("a", kv_epoch="new"), 400, "invalid-argument")


def test_redirect_is_given_to_those_who_ask(node: ApiNode) -> None:
    elsewhere(node, b"a/b")
    for method in ("PUT", "GET", "DELETE"):
        reply = node.ask(method, "/v1/kv/a%2Fb?redirect=1")
        assert reply.status == 307
        assert reply.headers["Location"] == "http://10.0.0.2:7401/v1/kv/a%2Fb?redirect=1"
    assert not node.router.calls
    assert node.put("a%2Fb?redirect=0").status == 201


def test_redirect_at_the_leader_is_an_answer(node: ApiNode) -> None:
    assert node.put("a?redirect=1").status == 201


# --- identity ------------------------------------------------------------------------------------


def test_repeated_write_of_a_session_is_answered_from_its_record(node: ApiNode) -> None:
    first = node.ask("POST", "/v1/kv/a?op=incr", kv_session="s1", kv_sequence="1")
    again = node.ask("POST", "/v1/kv/a?op=incr", kv_session="s1", kv_sequence="1")
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert first.content == again.content
    assert node.value("a") == b"1"
    assert node.ask("POST", "/v1/kv/a?op=incr", kv_session="s1", kv_sequence="2").content["value"] == 2


def test_pitfall_23_writes_repeated_after_lost_answers_apply_once(node: ApiNode) -> None:
    """Requests and answers are lost at random; the client repeats until it hears."""
    dice = Random(23)
    for sequence in range(1, 200):
        identity = {"kv_session": "s1", "kv_sequence": str(sequence), "kv_acked_below": str(sequence)}
        while True:
            is_lost = dice.random() < 0.3
            if is_lost:
                continue
            reply = node.ask("POST", "/v1/kv/a?op=incr", **identity)
            is_heard = dice.random() < 0.5
            if is_heard:
                break
        assert reply.content["value"] == sequence
    assert node.value("a") == b"199"


def test_refusal_is_replayed_too(node: ApiNode) -> None:
    node.put("a", "1")
    headers = {"kv_session": "s1", "kv_sequence": "1", "if_match": '"9"'}
    node.problem(node.put("a", "2", **headers), 412, "precondition-failed")
    node.put("a", "3")
    again = node.put("a", "2", **headers)
    assert node.problem(again, 412, "precondition-failed")["current_revision"] == 1
    assert again.headers["Idempotency-Replayed"] == "true"


def test_acknowledged_sequence_is_outcome_unknown(node: ApiNode) -> None:
    node.put("a", "1", kv_session="s1", kv_sequence="1")
    node.put("a", "2", kv_session="s1", kv_sequence="2", kv_acked_below="2")
    document = node.problem(node.put("a", "1", kv_session="s1", kv_sequence="1"), 504, "outcome-unknown")
    assert document["reason"] == "session-unknown"
    assert node.value("a") == b"2"


def test_late_retry_without_a_record_is_outcome_unknown(node: ApiNode) -> None:
    node.router.clock_ms = 1_000_000
    reply = node.put("a", "1", kv_session="s1", kv_sequence="1", kv_since="5")
    node.problem(reply, 504, "outcome-unknown")
    assert reply.headers["KV-Clock"] == "1000000"
    assert node.value("a") is None
    assert node.put("a", "1", kv_session="s1", kv_sequence="2", kv_since="1000000").status == 201


def test_idempotency_key_makes_a_write_happen_once(node: ApiNode) -> None:
    first = node.ask("POST", "/v1/kv/a?op=incr", idempotency_key='"k1"')
    again = node.ask("POST", "/v1/kv/a?op=incr", idempotency_key='"k1"')
    assert (first.content["value"], again.content["value"]) == (1, 1)
    assert again.headers["Idempotency-Replayed"] == "true"


def test_idempotency_key_with_another_body_is_422(node: ApiNode) -> None:
    node.put("a", "1", idempotency_key='"k1"')
    node.problem(node.put("a", "2", idempotency_key='"k1"'), 422, "idempotency-mismatch")
    assert node.value("a") == b"1"


def test_idempotency_key_belongs_to_method_and_target(node: ApiNode) -> None:
    assert node.put("a", "1", idempotency_key='"k1"').status == 201
    assert node.put("b", "2", idempotency_key='"k1"').status == 201
    assert node.ask("DELETE", "/v1/kv/a", idempotency_key='"k1"').content["deleted"] == 1


def test_session_names_cannot_be_made_to_collide(node: ApiNode) -> None:
    names = ["00" * 16, "0" * 32 + "0", "\x78"]
    for name in names:
        node.put("a", "1", kv_session=name, kv_sequence="0")
    sessions = {call[2][0].session for call in node.router.calls}
    assert len(sessions) == len(names)


def test_session_is_charged_to_its_callers_address(node: ApiNode) -> None:
    node.put("a", "1", kv_session="s1", kv_sequence="1")
    assert node.router.calls[-1][2][0].principal == b"10.9.9.9"


@pytest.mark.parametrize(
    "headers",
    [
        {"kv_session": "s1"},
        {"kv_sequence": "1"},
        {"kv_acked_below": "1"},
        {"kv_session": "s1", "kv_sequence": "-1"},
        {"kv_session": "s1", "kv_sequence": "x"},
        {"kv_session": "s1", "kv_sequence": "9" * 30},
        {"kv_session": "a b", "kv_sequence": "1"},
        {"kv_session": "", "kv_sequence": "1"},
        {"kv_session": "s" * 65, "kv_sequence": "1"},
        {"kv_session": "s1", "kv_sequence": "1", "kv_acked_below": "2"},
        {"kv_session": "s1", "kv_sequence": "1", "kv_since": "now"},
        {"kv_session": "s1", "kv_sequence": "1", "idempotency_key": '"k"'},
        {"idempotency_key": ""},
        {"idempotency_key": '""'},
        {"idempotency_key": '"a"b"'},
        {"idempotency_key": '"' + "k" * 300 + '"'},
    ],
)
def test_malformed_identity_is_400(node: ApiNode, headers: dict[str, str]) -> None:
    node.problem(node.put("a", "1", **headers), 400, "invalid-argument")
    assert node.value("a") is None
