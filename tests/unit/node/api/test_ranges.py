"""Scans, counts and range deletes over all shards."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.config import Limits
from kvstore.errors import NoLeader, OutcomeUnknown
from kvstore.node.api.ranges import Cursor, KeyRange, end_of_prefix
from kvstore.wire import api
from tests.support.api_node import ApiNode


def filled(count: int = 100, **sections: Any) -> ApiNode:
    node = ApiNode(**sections)
    for number in range(count):
        node.put(f"k{number:03}", f"v{number}")
    return node


def keys_of(content: Any) -> list[str]:
    return [item["key"] for item in content["items"]]


def pages(node: ApiNode, target: str) -> list[Any]:
    """All pages of a scan; the cursor carries everything but the limit."""
    found = [node.ask("GET", target).content]
    while found[-1]["next"] is not None:
        limit = target.partition("limit=")[2].partition("&")[0] or "1000"
        found.append(node.ask("GET", f"/v1/kv?limit={limit}&cursor={found[-1]['next']}").content)
    return found


# --- scans ---------------------------------------------------------------------------------------


def test_scan_merges_the_shards_in_key_order() -> None:
    node = filled()
    content = node.ask("GET", "/v1/kv").content
    assert keys_of(content) == [f"k{number:03}" for number in range(100)]
    assert (content["count"], content["next"]) == (100, None)
    item = content["items"][7]
    assert item == {
        "key": "k007",
        "value": "v7",
        "revision": item["revision"],
        "create_revision": item["revision"],
        "version": 1,
        "lease": None,
    }


@pytest.mark.parametrize("limit", [1, 7, 50, 99, 100, 101])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_by_cursor_are_the_whole_scan(limit: int, order: str) -> None:
    node = filled()
    found = pages(node, f"/v1/kv?limit={limit}&order={order}")
    keys = [key for page in found for key in keys_of(page)]
    assert keys == sorted((f"k{number:03}" for number in range(100)), reverse=order == "desc")
    assert all(page["count"] <= limit for page in found)


def test_all_pages_show_one_snapshot_and_one_position() -> None:
    node = filled(40)
    first = node.ask("GET", "/v1/kv?limit=5").content
    for number in range(40):
        node.put(f"k{number:03}", "newer")
    node.put("k0005", "new key")
    node.ask("DELETE", "/v1/kv/k020")
    rest = node.ask("GET", f"/v1/kv?cursor={first['next']}").content
    assert keys_of(rest) == [f"k{number:03}" for number in range(5, 40)]
    assert {item["value"] for item in rest["items"]} == {f"v{number}" for number in range(5, 40)}
    assert rest["pos"] == first["pos"]
    assert node.ask("GET", "/v1/kv").content["pos"] != first["pos"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("prefix=k00", [f"k00{n}" for n in range(10)]),
        ("prefix=k005", ["k005"]),
        ("prefix=x", []),
        ("start=k095", [f"k{n:03}" for n in range(95, 100)]),
        ("end=k003", ["k000", "k001", "k002"]),
        ("start=k003&end=k005", ["k003", "k004"]),
        ("start=k005&end=k003", []),
        ("prefix=k00&start=k008", ["k008", "k009"]),
        ("prefix=k00&end=k002", ["k000", "k001"]),
        ("prefix=k00&start=k500", []),
        ("prefix=&end=", [f"k{n:03}" for n in range(100)]),
    ],
)
def test_range_is_what_prefix_start_and_end_have_in_common(query: str, expected: list[str]) -> None:
    content = filled().ask("GET", f"/v1/kv?{query}").content
    assert keys_of(content) == expected
    assert content["pos"]


def test_keys_and_values_that_are_not_text_come_as_base64() -> None:
    node = ApiNode()
    node.ask("PUT", "/v1/kv/%FF%FE", b"\x80")
    assert (
        node.ask("GET", "/v1/kv").content["items"][0].items()
        >= {"key_b64": "//4=", "value_b64": "gA=="}.items()
    )
    packed = node.ask("GET", "/v1/kv", accept="application/msgpack").content
    assert (packed["items"][0]["key"], packed["items"][0]["value"]) == (b"\xff\xfe", b"\x80")
    assert node.ask("GET", "/v1/kv?prefix=%FF").content["count"] == 1


def test_keys_only_leaves_out_the_values() -> None:
    item = filled(1).ask("GET", "/v1/kv?keys_only=1").content["items"][0]
    assert "value" not in item
    assert (item["key"], item["version"]) == ("k000", 1)


def test_count_only_counts() -> None:
    node = filled()
    content = node.ask("GET", "/v1/kv?count_only=1&prefix=k01").content
    assert (content["count"], content["items"], content["next"]) == (10, [], None)
    assert node.ask("GET", "/v1/kv?count_only=1").content["count"] == 100


def test_page_is_bounded_by_items_and_by_bytes() -> None:
    node = filled(limits=Limits(scan_page_items=20))
    assert node.ask("GET", "/v1/kv?limit=1000000").content["count"] == 20
    node = filled(limits=Limits(scan_page_bytes=100))
    found = pages(node, "/v1/kv")
    assert [key for page in found for key in keys_of(page)] == [f"k{number:03}" for number in range(100)]
    assert max(page["count"] for page in found) <= 20


def test_consistency_and_staleness_hold_for_scans() -> None:
    node = filled(3)
    node.router.staleness_s = 1.5
    reply = node.ask("GET", "/v1/kv?consistency=stale&max_staleness=2s")
    assert reply.headers["KV-Staleness"] == "1.500"
    assert {call[0] for call in node.router.calls[-4:]} == {"stale"}


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=x",
        "order=up",
        "keys_only=maybe",
        "cursor=",
        "cursor=nonsense",
        "cursor=%FF",
        "cursor=AAAA",
        "revision=3",
        "prefix=%G1",
        "count_only=1&cursor=x",
    ],
)
def test_malformed_scan_is_400(query: str) -> None:
    node = filled(1)
    node.problem(node.ask("GET", f"/v1/kv?{query}"), 400, "invalid-argument")


def test_cursor_that_was_tampered_with_is_400() -> None:
    node = filled(10)
    cursor = node.ask("GET", "/v1/kv?limit=2").content["next"]
    for position in range(0, len(cursor), 3):
        changed = cursor[:position] + ("A" if cursor[position] != "A" else "B") + cursor[position + 1 :]
        node.problem(node.ask("GET", f"/v1/kv?cursor={changed}"), 400, "invalid-argument")
    for cut in (cursor[:-1], cursor[1:], cursor + "A"):
        node.problem(node.ask("GET", f"/v1/kv?cursor={cut}"), 400, "invalid-argument")


@pytest.mark.parametrize(
    "content",
    [
        [],
        [1, 2, 3, 4, 5],
        [b"a", None, False, b"a", [0, 0, 0]],
        [b"a", None, False, b"a", [0, 0, 0, -1]],
        [b"a", None, False, b"a", [0, 0, 0, True]],
        [b"a", None, False, b"a", [0, 0, 0, 1 << 63]],
        [b"b", b"a", False, b"a", [0, 0, 0, 0]],
        [b"a", None, 0, b"a", [0, 0, 0, 0]],
        [b"a", None, False, "a", [0, 0, 0, 0]],
    ],
)
def test_cursor_that_is_sealed_but_senseless_is_400(content: list[Any]) -> None:
    node = filled(1)
    node.problem(node.ask("GET", f"/v1/kv?cursor={api.seal('cursor', content)}"), 400, "invalid-argument")


def test_cursor_of_another_scan_or_kind_is_400() -> None:
    node = filled(10)
    content = node.ask("GET", "/v1/kv?limit=2&prefix=k").content
    node.problem(node.ask("GET", f"/v1/kv?prefix=x&cursor={content['next']}"), 400, "invalid-argument")
    node.problem(node.ask("GET", f"/v1/kv?cursor={content['pos']}"), 400, "invalid-argument")
    assert node.ask("GET", f"/v1/kv?prefix=k&cursor={content['next']}").status == 200


def test_cursor_below_the_compaction_point_is_410() -> None:
    node = filled(8)
    cursor = api.seal("cursor", [b"", None, False, b"k", [1, 1, 1, 1]])
    for machine in node.router.machines.values():
        machine.query = _compacted  # type: ignore[method-assign]
    node.problem(node.ask("GET", f"/v1/kv?cursor={cursor}"), 410, "compacted")


def _compacted(query: list[Any]) -> Any:
    from kvstore.errors import Compacted

    raise Compacted("gone", compacted=5)


def test_scan_fails_as_a_whole_when_a_shard_does() -> None:
    node = filled(10)
    node.router.fail[node.router.shards()[2]] = NoLeader("no leader")
    node.problem(node.ask("GET", "/v1/kv"), 503, "no-leader")


# --- streams -------------------------------------------------------------------------------------


def test_stream_has_a_line_per_item_and_an_end() -> None:
    node = filled(1200)
    reply = node.ask("GET", "/v1/kv", accept="application/x-ndjson")
    assert reply.headers["Content-Type"] == "application/x-ndjson"
    lines = reply.lines
    assert [line["key"] for line in lines[:-1]] == sorted(f"k{number:03}" for number in range(1200))
    assert {line["type"] for line in lines[:-1]} == {"item"}
    assert lines[-1] == {
        "type": "end",
        "count": 1200,
        "next": None,
        "pos": node.ask("GET", "/v1/kv").content["pos"],
    }
    assert reply.stream is not None
    assert reply.stream.is_ended


def test_stream_with_a_limit_ends_with_a_cursor() -> None:
    node = filled()
    lines = node.ask("GET", "/v1/kv?limit=30&order=desc", accept="application/x-ndjson").lines
    assert (len(lines), lines[-1]["count"]) == (31, 30)
    rest = node.ask("GET", f"/v1/kv?cursor={lines[-1]['next']}").content
    assert keys_of(rest)[0] == "k069"


def test_empty_stream_has_only_its_end() -> None:
    lines = ApiNode().ask("GET", "/v1/kv", accept="application/x-ndjson").lines
    assert [line["type"] for line in lines] == ["end"]


def test_pitfall_46_stream_that_breaks_cannot_be_taken_for_complete() -> None:
    node = filled(1200)
    node.router.held = []
    reply = node.ask("GET", "/v1/kv", accept="application/x-ndjson")
    first_page, node.router.held = node.router.held, []
    for go in first_page:
        go()
    node.router.fail = dict.fromkeys(node.router.shards(), NoLeader("lost"))
    while node.router.held:
        node.router.held.pop()()
    last = reply.lines[-1]
    assert (last["type"], last["code"], last["retryable"]) == ("error", "no-leader", True)
    assert reply.stream is not None
    assert reply.stream.is_ended


def test_stream_waits_for_its_reader_and_stops_without_one() -> None:
    node = filled(1200)
    node.router.held = []
    reply = node.ask("GET", "/v1/kv", accept="application/x-ndjson")
    pending, node.router.held = node.router.held, []
    for go in pending[:-1]:
        go()
    assert not reply.is_there
    pending[-1]()
    stream = reply.stream
    assert stream is not None
    stream.room = 0
    while node.router.held:
        node.router.held.pop()()
    assert stream.waiting is not None, "the stream must wait for its reader"
    count = len(stream.pieces)
    stream.is_open = False
    stream.waiting()
    assert stream.is_ended
    assert not node.router.held, "nothing more may be read for nobody"
    assert len(stream.pieces) <= count + 1


def test_stream_that_cannot_start_is_an_ordinary_problem() -> None:
    node = filled(3)
    node.router.fail = dict.fromkeys(node.router.shards(), NoLeader("none"))
    node.problem(node.ask("GET", "/v1/kv", accept="application/x-ndjson"), 503, "no-leader")


# --- range deletes -------------------------------------------------------------------------------


def test_range_delete_asks_for_confirmation_with_the_count() -> None:
    node = filled()
    for query in ("prefix=k01", "prefix=k01&confirm=9"):
        document = node.problem(node.ask("DELETE", f"/v1/kv?{query}"), 400, "confirm-required")
        assert document["count"] == 10
    assert node.ask("GET", "/v1/kv?count_only=1").content["count"] == 100


@pytest.mark.parametrize("confirm", ["*", "10"])
def test_confirmed_range_delete_deletes_that_range(confirm: str) -> None:
    node = filled()
    reply = node.ask("DELETE", f"/v1/kv?prefix=k01&confirm={quote(confirm)}")
    assert (reply.status, reply.content) == (200, {"deleted": 10})
    assert node.ask("GET", "/v1/kv?count_only=1").content["count"] == 90
    assert node.value("k009") == b"v9"
    assert node.value("k010") is None


def test_range_delete_by_bounds_and_of_everything() -> None:
    node = filled()
    assert node.ask("DELETE", "/v1/kv?start=k090&end=k095&confirm=*").content == {"deleted": 5}
    assert node.ask("DELETE", "/v1/kv?start=z&end=a&confirm=*").content == {"deleted": 0}
    assert node.ask("DELETE", "/v1/kv?prefix=&confirm=*").content == {"deleted": 95}


@pytest.mark.parametrize(
    "query", ["confirm=*", "", "prefix=k&confirm=yes", "prefix=k&confirm=-1", "prefix=k&limit=3"]
)
def test_unclear_range_delete_is_400(query: str) -> None:
    node = filled(5)
    node.problem(node.ask("DELETE", f"/v1/kv?{query}"), 400, "invalid-argument")
    assert node.ask("GET", "/v1/kv?count_only=1").content["count"] == 5


def test_repeated_range_delete_answers_what_the_first_one_did() -> None:
    node = filled(20)
    first = node.ask("DELETE", "/v1/kv?prefix=k&confirm=*", kv_session="s", kv_sequence="1")
    node.put("k999")
    again = node.ask("DELETE", "/v1/kv?prefix=k&confirm=*", kv_session="s", kv_sequence="1")
    assert first.content == again.content == {"deleted": 20}
    assert again.headers["Idempotency-Replayed"] == "true"
    assert node.value("k999") == b"v"


def test_range_delete_that_failed_everywhere_did_not_happen() -> None:
    node = filled(10)
    node.router.fail = dict.fromkeys(node.router.shards(), NoLeader("none"))
    node.problem(node.ask("DELETE", "/v1/kv?prefix=k&confirm=*"), 503, "no-leader")


def test_range_delete_that_failed_in_part_is_outcome_unknown() -> None:
    node = filled(100)
    node.router.fail[node.router.shards()[1]] = NoLeader("none")
    document = node.problem(node.ask("DELETE", "/v1/kv?prefix=k&confirm=*"), 504, "outcome-unknown")
    assert 0 < document["deleted"] < 100
    node.router.fail[node.router.shards()[1]] = OutcomeUnknown("who knows")
    node.problem(node.ask("DELETE", "/v1/kv?prefix=k&confirm=*"), 504, "outcome-unknown")


# --- pieces --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff", None), (b"\xff\xff", None), (b"a\xff\xfe", b"a\xff\xff")],
)
def test_end_of_a_prefix_is_the_next_key_behind_it(prefix: bytes, end: bytes | None) -> None:
    assert end_of_prefix(prefix) == end


@given(st.binary(min_size=1, max_size=5), st.binary(max_size=6))
def test_prefix_holds_exactly_the_keys_before_its_end(prefix: bytes, key: bytes) -> None:
    end = end_of_prefix(prefix)
    is_inside = key >= prefix and (end is None or key < end)
    assert is_inside == key.startswith(prefix)


@given(
    st.binary(max_size=20),
    st.none() | st.binary(min_size=21, max_size=21),
    st.booleans(),
    st.binary(max_size=20),
    st.lists(st.integers(0, api.INT64_MAX), min_size=4, max_size=4),
)
def test_cursor_survives_its_journey(
    start: bytes, end: bytes | None, descending: bool, after: bytes, revisions: list[int]
) -> None:
    if end is not None and end <= start:
        end = None
    cursor = Cursor(KeyRange(start, end, descending), after, tuple(revisions))
    assert Cursor.unsealed(cursor.sealed(), 4) == cursor


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.binary(min_size=1, max_size=3), st.binary(max_size=3), max_size=40),
    st.binary(max_size=2),
    st.integers(1, 8),
    st.booleans(),
)
def test_scan_equals_a_sorted_dict(
    pairs: dict[bytes, bytes], prefix: bytes, limit: int, is_descending: bool
) -> None:
    node = ApiNode()
    for key, value in pairs.items():
        node.ask("PUT", "/v1/kv/" + quote(key, safe=""), value)
    order = "desc" if is_descending else "asc"
    target = f"/v1/kv?prefix={quote(prefix, safe='')}&limit={limit}&order={order}"
    found: list[Any] = []
    while True:
        content = node.ask("GET", target, accept="application/msgpack").content
        found += [(item["key"], item["value"]) for item in content["items"]]
        if content["next"] is None:
            break
        target = f"/v1/kv?limit={limit}&cursor={content['next']}"
    expected = sorted((pair for pair in pairs.items() if pair[0].startswith(prefix)), reverse=is_descending)
    assert found == expected
