"""The client API's encodings: what they accept, what they refuse, and that nothing else ever escapes."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvstore.errors import BY_CODE, InvalidArgument, MethodNotAllowed, NoLeader, Overloaded, TooLarge
from kvstore.wire import api

ANY_TEXT = st.text(max_size=40)
RAW_TEXT = st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape"))


def header(name: str, value: str) -> dict[str, str]:
    return {name: value}


# --- percent-encoding ----------------------------------------------------------------------------


@given(st.binary(max_size=60))
def test_percent_encoding_is_undone_exactly(raw: bytes) -> None:
    assert api.percent_decoded(quote_from_bytes(raw, safe=""), "it") == raw
    assert api.percent_decoded("".join(f"%{byte:02x}" for byte in raw), "it") == raw


@given(RAW_TEXT | ANY_TEXT.filter(str.isascii))
@example("%")
@example("a%4")
@example("%%%")
def test_percent_decoding_raises_nothing_but_invalid_argument(text: str) -> None:
    try:
        decoded = api.percent_decoded(text, "it")
    except InvalidArgument:
        assert "%" in text
    else:
        assert len(decoded) <= len(text.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a?b=c?d", "/a", "b=c?d"),
        ("/a", "/a", ""),
        ("/a?", "/a", ""),
        ("http://h:1/a/b?c", "/a/b", "c"),
        ("http://h", "/", ""),
        ("/http://h/a", "/http://h/a", ""),
    ],
)
def test_target_is_split_into_path_and_query(target: str, path: str, query: str) -> None:
    assert api.split_target(target) == (path, query)


@given(RAW_TEXT)
def test_splitting_a_target_raises_nothing_but_invalid_argument(target: str) -> None:
    try:
        path, _ = api.split_target(target)
    except InvalidArgument:
        return
    assert path.startswith("/")


def test_key_of_a_path_is_bounded() -> None:
    assert api.path_key("%00" * 4, 4) == b"\0\0\0\0"
    with pytest.raises(TooLarge) as caught:
        api.path_key("a" * 5, 4)
    assert caught.value.fields == {"limit": "key_bytes_max", "max": 4, "size": 5}
    with pytest.raises(InvalidArgument):
        api.path_key("", 4)


# --- queries -------------------------------------------------------------------------------------


def test_query_values_are_bytes_and_plus_is_a_space() -> None:
    assert api.parse_query("a=%FF+%2B&b&c=", {"a", "b", "c"}) == {"a": b"\xff +", "b": b"", "c": b""}


@pytest.mark.parametrize("query", ["d=1", "a=1&a=2", "%61=1&a=2", "=1", "a=%"])
def test_query_that_is_unknown_doubled_or_broken_is_refused(query: str) -> None:
    with pytest.raises(InvalidArgument):
        api.parse_query(query, {"a", "b"})


@given(RAW_TEXT)
def test_query_parsing_raises_nothing_but_invalid_argument(text: str) -> None:
    try:
        parsed = api.parse_query(text, {"a", "b"})
        for name in ("a", "b"):
            api.flag_of(parsed, name)
            api.text_of(parsed, name)
            api.integer_of(parsed, name, 0, 10)
            api.choice_of(parsed, name, ("x", "y"), "x")
    except InvalidArgument:
        pass


@pytest.mark.parametrize(
    "text", ["", "-", "+1", " 1", "1 ", "1_0", "1.0", "0x1", "١", "²", "1e3", "--1", "9" * 20]
)
def test_integer_is_plain_decimal(text: str) -> None:
    with pytest.raises(InvalidArgument):
        api.integer(text, "it", -(2**63), 2**63 - 1)


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_integer_of_64_bits_is_read(number: int) -> None:
    assert api.integer(str(number), "it", api.INT64_MIN, api.INT64_MAX) == number


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("750ms", 750),
        ("30s", 30_000),
        ("1m", 60_000),
        ("2h", 7_200_000),
        ("5", 5000),
        ("0.5", 500),
        ("1.5m", 90_000),
    ],
)
def test_durations_are_read(text: str, ms: int) -> None:
    assert api.duration_ms(text, "it", 0, 10**9) == ms


def test_duration_is_never_rounded_to_nothing() -> None:
    assert api.duration_ms("0.0001s", "it", 0, 1000) == 1


@given(ANY_TEXT)
def test_duration_raises_nothing_but_invalid_argument(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert 1 <= api.duration_ms(text, "it", 1, 1000) <= 1000


# --- headers -------------------------------------------------------------------------------------


@given(st.sampled_from(["KV-Timeout", "KV-Epoch", "Content-Type", "KV-Request-Id", "Accept"]), RAW_TEXT)
def test_headers_raise_nothing_but_errors_of_ours(name: str, value: str) -> None:
    headers = header(name, value)
    for read in (
        lambda: api.timeout_s(headers, 5.0),
        lambda: api.epoch_of(headers),
        lambda: api.content_type_of(headers, 20),
        lambda: api.request_id_of(headers),
        lambda: api.wants_msgpack(headers),
    ):
        with contextlib.suppress(InvalidArgument, TooLarge):
            read()


@given(RAW_TEXT)
@example('"1", W/"2"')
def test_conditions_raise_nothing_but_invalid_argument(value: str) -> None:
    for read in (api.revision_of_if_match, api.require_absent, lambda text: api.etags(text, "it")):
        with contextlib.suppress(InvalidArgument):
            read(value)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("KV-Session", "KV-Sequence", "KV-Acked-Below", "KV-Since", "Idempotency-Key"),
            RAW_TEXT | st.just("1"),
        ),
    )
)
def test_identity_raises_nothing_but_invalid_argument(headers: dict[str, str]) -> None:
    try:
        found = api.identity_of(headers, "PUT", "/x", b"")
    except InvalidArgument:
        return
    if found is not None:
        assert 1 <= len(found.session) <= 65
        assert 0 <= found.acked_below <= found.sequence


def test_identity_of_a_key_covers_its_scope_and_its_body() -> None:
    def identity(key: str = "k", method: str = "PUT", target: str = "/x", body: bytes = b"1") -> api.Identity:
        found = api.identity_of(header("Idempotency-Key", key), method, target, body)
        assert found is not None
        return found

    assert identity() == identity(key='"k"')
    assert identity().session != identity(key="k2").session
    assert identity().session != identity(method="POST").session
    assert identity().session != identity(target="/y").session
    assert identity().session == identity(body=b"2").session
    assert identity().body_hash != identity(body=b"2").body_hash


def test_hexadecimal_session_is_stored_in_its_bytes() -> None:
    found = api.identity_of({"KV-Session": "0f" * 16, "KV-Sequence": "7"}, "PUT", "/x", b"")
    assert found == api.Identity(b"x" + b"\x0f" * 16, 7)


@pytest.mark.parametrize(
    ("tags", "revision", "weakly", "matches"),
    [
        ('"7"', 7, False, True),
        ('"7"', 8, False, False),
        ('W/"7"', 7, False, False),
        ('W/"7"', 7, True, True),
        ('"1", "7"', 7, False, True),
        ("*", 7, False, True),
        ('"07"', 7, False, False),
    ],
)
def test_tags_are_compared_as_the_standard_says(
    tags: str, revision: int, weakly: bool, matches: bool
) -> None:
    assert api.matches_etag(tags, revision, "it", weakly=weakly) is matches


# --- sealed strings ------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=8)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(PLAIN, max_size=5))
def test_what_is_sealed_can_be_unsealed(content: list[Any]) -> None:
    sealed = api.seal("cursor", content)
    assert sealed.isascii()
    assert not set(sealed) & set("+/=&?% ")
    assert api.unseal("cursor", sealed) == content
    with pytest.raises(InvalidArgument):
        api.unseal("pos", sealed)


@given(st.text(max_size=60) | st.text("ABCDEFGHabcdefgh0123-_", max_size=60))
def test_unsealing_raises_nothing_but_invalid_argument(text: str) -> None:
    with pytest.raises(InvalidArgument):
        api.unseal("cursor", text)


@given(st.data())
def test_changed_seal_is_noticed(data: st.DataObject) -> None:
    sealed = api.seal("cursor", [b"some key", None, [1, 2, 3]])
    position = data.draw(st.integers(0, len(sealed) - 1))
    letter = data.draw(st.sampled_from("ABCXYZabcxyz0189-_"))
    changed = sealed[:position] + letter + sealed[position + 1 :]
    if changed == sealed:
        return
    with pytest.raises(InvalidArgument):
        api.unseal("cursor", changed)


# --- problems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_has_its_document(code: str) -> None:
    kind = BY_CODE[code]
    status, head, body = api.problem(kind("because", shard=3))
    document = json.loads(body)
    assert b"Content-Type: application/problem+json\r\n" in head
    assert document == {
        "type": f"urn:kvstore:problem:{code}",
        "title": kind.title,
        "status": status,
        "detail": "because",
        "code": code,
        "retryable": kind.retryable,
        "shard": 3,
    }


def test_retry_after_is_whole_seconds_and_never_zero() -> None:
    assert b"Retry-After: 1\r\n" in api.problem(NoLeader("x"))[1]
    assert b"Retry-After: 3\r\n" in api.problem(Overloaded("x", retry_after=2.1))[1]
    assert b"Retry-After" not in api.problem(InvalidArgument("x"))[1]


def test_allow_is_a_header_of_its_own() -> None:
    assert b"Allow: GET, PUT\r\n" in api.problem(MethodNotAllowed("x", allow="GET, PUT"))[1]


@given(st.dictionaries(st.text(max_size=8), PLAIN | RAW_TEXT | st.floats(), max_size=4), RAW_TEXT)
def test_fields_of_an_error_never_break_its_document(fields: dict[str, Any], detail: str) -> None:
    error = InvalidArgument(detail)
    error.fields = fields
    document = json.loads(api.problem(error)[2])
    assert document["code"] == "invalid-argument"
    assert document["status"] == 400
