"""Which request each operation is."""

import json

import pytest

from kvstore.client import operations
from kvstore.client.exchange import Reply
from kvstore.client.plan import Kind
from kvstore.errors import InvalidArgument


def test_conditions_travel_as_http_preconditions() -> None:
    assert ("If-Match", '"7"') in operations.put("k", "v", if_revision=7).headers
    assert ("If-None-Match", "*") in operations.put("k", "v", if_absent=True).headers
    assert ("If-Match", '"7"') in operations.delete("k", if_revision=7).headers
    assert ("If-Match", '"0"') in operations.put("k", "v", if_revision=0).headers


def test_contradictory_conditions_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        operations.put("k", "v", if_revision=1, if_absent=True)


def test_parameters_appear_only_when_they_matter() -> None:
    assert operations.put("k", "v").target == "/v1/kv/k"
    assert operations.get("k").target == "/v1/kv/k"
    assert operations.put("k", "v", ttl=30, prev=True).target == "/v1/kv/k?ttl=30000ms&prev=1"
    stale = operations.get("k", consistency="stale", max_staleness_s=2.0)
    assert stale.target == "/v1/kv/k?consistency=stale&max_staleness=2000ms"


@pytest.mark.parametrize(("consistency", "bound_s"), [("eventual", None), ("linearizable", 1.0)])
def test_a_consistency_that_is_none_is_refused(consistency: str, bound_s: float | None) -> None:
    with pytest.raises(InvalidArgument):
        operations.get("k", consistency=consistency, max_staleness_s=bound_s)


def test_an_increment_says_by_how_much_and_within_what() -> None:
    call = operations.incr("n", -3, min=0)
    assert call.target == "/v1/kv/n?op=incr"
    assert json.loads(call.body) == {"by": -3, "min": 0, "max": None}
    assert call.kind is Kind.WRITE


def test_a_scan_names_its_range_and_cursor() -> None:
    keys = operations.key_range("p/", None, None, reverse=True, keys_only=True)
    call = operations.scan_page(keys, "c1", 10)
    assert call.target == "/v1/kv?prefix=p%2F&limit=10&cursor=c1&keys_only=1&order=desc"


def test_a_prefix_and_bounds_exclude_each_other() -> None:
    with pytest.raises(InvalidArgument):
        operations.key_range("p", "a", None)


def test_an_empty_prefix_is_every_key() -> None:
    assert operations.scan_page(operations.key_range("", None, None), None, 5).target == "/v1/kv?limit=5"
    assert operations.delete_range("").target == "/v1/kv?prefix=&confirm=*".replace("*", "%2A")


def test_the_replaced_item_is_given_back_with_its_key() -> None:
    call = operations.put("k", "v", prev=True)
    body = {"revision": 8, "version": 2, "created": False,
            "prev": {"value_b64": "/w==", "revision": 7, "create_revision": 7, "version": 1}}  # fmt: skip
    result = call.decode(Reply(200, {"content-type": "application/json"}, json.dumps(body).encode()))
    assert result.prev is not None
    assert (result.prev.key, result.prev.value, result.prev.revision) == (b"k", b"\xff", 7)


def test_explaining_a_key_keeps_its_bytes() -> None:
    assert operations.explain("a/b").target == "/v1/keys/a%2Fb/explain"
