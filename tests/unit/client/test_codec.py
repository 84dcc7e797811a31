"""Keys, bodies, items and problem documents."""

import json

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.client import codec
from kvstore.client.exchange import Reply
from kvstore.errors import BY_CODE, InvalidArgument, KvError, NotApplied, OutcomeUnknown, Unavailable
from kvstore.wire.api import path_key, split_target


def reply(content: object, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"content-type": "application/json"} | named, json.dumps(content).encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=40))
def test_every_key_arrives_at_the_server_as_it_was(key: bytes) -> None:
    path, query = split_target(codec.key_path(key))
    assert path_key(path.removeprefix("/v1/kv/"), 4096) == key
    assert query == ""
    assert path.isascii()


@pytest.mark.parametrize("key", [b".", b"..", b"a/../b", b"//", b"?x=1#y", b"%2F"])
def test_keys_that_look_like_paths_are_not_folded(key: bytes) -> None:
    path = codec.key_path(key).removeprefix("/v1/kv/")
    assert not set("/?#") & set(path)
    assert path.strip(".")


def test_text_and_bytes_name_the_same_key() -> None:
    assert codec.key_bytes("käse") == codec.key_bytes("käse".encode())


@pytest.mark.parametrize("key", ["", b""])
def test_an_empty_key_is_refused_before_anything_is_sent(key: str | bytes) -> None:
    with pytest.raises(InvalidArgument):
        codec.key_bytes(key)


def test_parameters_are_left_out_when_none_and_encoded_when_bytes() -> None:
    assert codec.query("/p", a=None) == "/p"
    assert codec.query("/p", a=b"\xff &", b=3, c="x/y") == "/p?a=%FF%20%26&b=3&c=x%2Fy"


@pytest.mark.parametrize(("seconds", "text"), [(1.5, "1500ms"), (0.0001, "1ms"), (30, "30000ms")])
def test_durations_are_whole_milliseconds_and_never_nothing(seconds: float, text: str) -> None:
    assert codec.milliseconds(seconds) == text


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_items_read_alike_from_json_and_msgpack(key: bytes, value: bytes) -> None:
    fields = {"key": key, "value": value, "revision": 3, "create_revision": 2, "version": 1, "lease": None}
    packed = Reply(200, {"content-type": codec.MSGPACK}, msgpack.packb(fields))
    plain: dict[str, object] = {"revision": 3, "create_revision": 2, "version": 1, "lease": None}
    for name, octets in (("key", key), ("value", value)):
        try:
            plain[name] = octets.decode()
        except UnicodeDecodeError:
            plain[f"{name}_b64"] = codec_base64(octets)
    assert codec.item(codec.document(packed)) == codec.item(codec.document(reply(plain)))


def codec_base64(octets: bytes) -> str:
    from base64 import b64encode

    return b64encode(octets).decode()


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"null"])
def test_a_body_that_is_no_object_is_garbled(body: bytes) -> None:
    for kind in ("application/json", codec.MSGPACK):
        with pytest.raises(codec.Garbled):
            codec.document(Reply(200, {"content-type": kind}, body))


def test_headers_of_a_value_become_an_item() -> None:
    found = codec.item_from_headers(
        b"k",
        Reply(
            200,
            {
                "kv-revision": "7",
                "kv-version": "2",
                "kv-create-revision": "5",
                "kv-ttl": "1500ms",
                "kv-staleness": "0.25s",
                "content-type": "text/plain",
            },
            b"v",
        ),
    )
    assert (found.revision, found.version, found.create_revision) == (7, 2, 5)
    assert (found.ttl_s, found.staleness_s, found.content_type) == (1.5, 0.25, "text/plain")


@pytest.mark.parametrize("revision", ["", "x", "-1", "１"])
def test_a_value_without_a_sane_revision_is_garbled(revision: str) -> None:
    headers = {"kv-revision": revision, "kv-version": "1", "kv-create-revision": "1"}
    with pytest.raises(codec.Garbled):
        codec.item_from_headers(b"k", Reply(200, headers, b""))


@pytest.mark.parametrize("code", sorted(set(BY_CODE) - {"internal"}))
def test_every_code_of_the_contract_becomes_its_own_class(code: str) -> None:
    kind = BY_CODE[code]
    error = codec.problem(
        reply({"code": code, "detail": "d", "current_revision": 4}, kind.http_status), is_write=True
    )
    assert type(error) is kind
    assert error.fields["current_revision"] == 4


@pytest.mark.parametrize(
    ("status", "is_write", "kind"),
    [
        (418, True, NotApplied),
        (500, True, OutcomeUnknown),
        (502, False, Unavailable),
        (599, True, OutcomeUnknown),
    ],
)
def test_a_code_we_do_not_know_is_judged_by_its_status(
    status: int, is_write: bool, kind: type[KvError]
) -> None:
    assert type(codec.problem(reply({"code": "novel"}, status), is_write=is_write)) is kind


def test_an_error_without_a_document_still_says_what_it_was() -> None:
    error = codec.problem(
        Reply(502, {"content-type": "text/html", "kv-request-id": "r1"}, b"<p>"), is_write=False
    )
    assert "502" in str(error)
    assert error.request_id == "r1"


def test_an_internal_error_of_the_server_may_have_applied_a_write() -> None:
    assert isinstance(codec.problem(reply({"code": "internal"}, 500), is_write=True), OutcomeUnknown)
