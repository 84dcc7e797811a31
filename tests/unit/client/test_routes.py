"""Which node to ask."""

import pytest

from kvstore.client.codec import Garbled
from kvstore.client.routes import (
    CLOCK_AGE_S_MAX,
    FETCH_GAP_S_MIN,
    ROUTES_AGE_S_MAX,
    SHUN_S_MAX,
    SHUN_S_MIN,
    Routes,
    address_of,
)
from kvstore.errors import InvalidArgument
from kvstore.placement import ShardMap
from tests.support.client_script import ENDPOINTS, routes_document


def known() -> Routes:
    routes = Routes(ENDPOINTS)
    routes.learn(routes_document(["n1", "n2", "n3", None]), 0.0)
    return routes


@pytest.mark.parametrize("endpoint", ["h:7401", "http://h:7401", " http://h:7401/ "])
def test_endpoints_are_understood_as_users_write_them(endpoint: str) -> None:
    assert address_of(endpoint) == "h:7401"


@pytest.mark.parametrize("endpoint", ["h", ":7401", "h:", "h:x", "h:0", "h:70000", "https://h:1", ""])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidArgument, match="endpoint"):
        address_of(endpoint)


def test_no_endpoint_at_all_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at least one"):
        Routes([])


def test_the_shard_of_a_key_is_the_one_the_cluster_computes() -> None:
    routes, shard_map = known(), ShardMap(4)
    for number in range(200):
        key = f"key{number}".encode()
        assert routes.shard_of(key) == shard_map.shard_of(key)


def test_keys_with_one_hash_tag_have_one_shard() -> None:
    routes = known()
    assert len({routes.shard_of(f"{name}/{{user}}".encode()) for name in "abcdefgh"}) == 1


def test_the_leader_is_asked_first_and_every_node_is_named_once() -> None:
    routes = known()
    for shard, address in enumerate(ENDPOINTS):
        order = routes.order(shard, 0.0)
        assert order[0] == address
        assert sorted(order) == sorted(ENDPOINTS)


def test_requests_without_a_leader_are_spread_over_all_nodes() -> None:
    routes = known()
    assert {routes.order(3, 0.0)[0] for _ in range(3)} == set(ENDPOINTS)


def test_a_node_that_failed_is_asked_last_even_if_it_leads() -> None:
    routes = known()
    routes.note_failure(ENDPOINTS[0], 0.0)
    assert routes.order(0, 0.1)[-1] == ENDPOINTS[0]
    assert routes.order(0, SHUN_S_MIN + 0.1)[0] == ENDPOINTS[0]


def test_a_node_that_keeps_failing_is_shunned_longer_up_to_a_bound() -> None:
    routes, now = known(), 0.0
    for _ in range(20):
        routes.note_failure(ENDPOINTS[0], now)
    assert routes.order(0, SHUN_S_MAX - 0.1)[0] != ENDPOINTS[0]
    assert routes.order(0, SHUN_S_MAX + 0.1)[0] == ENDPOINTS[0]


def test_an_answer_clears_a_nodes_record() -> None:
    routes = known()
    routes.note_failure(ENDPOINTS[0], 0.0)
    routes.note_answer(ENDPOINTS[0])
    assert routes.order(0, 0.0)[0] == ENDPOINTS[0]


def test_routes_are_fetched_when_missing_old_or_doubted_and_not_too_often() -> None:
    routes = Routes(ENDPOINTS)
    assert routes.is_fetch_due(0.0)
    assert not routes.is_fetch_due(FETCH_GAP_S_MIN / 2), "somebody is at it"
    routes.learn(routes_document(), 1.0)
    assert not routes.is_fetch_due(2.0)
    routes.doubt()
    assert routes.is_fetch_due(2.0)
    routes.learn(routes_document(), 2.1)
    assert not routes.is_fetch_due(2.0 + ROUTES_AGE_S_MAX)
    assert routes.is_fetch_due(2.2 + ROUTES_AGE_S_MAX)


def test_seeds_stay_in_the_list_when_nodes_announce_other_addresses() -> None:
    routes = Routes(["localhost:7401"])
    routes.learn(routes_document(), 0.0)
    assert routes.addresses == (*ENDPOINTS, "localhost:7401")


@pytest.mark.parametrize(
    "change",
    [
        {"shards": None},
        {"shards": []},
        {"nodes": [{"id": "n1"}]},
        {"nodes": [{"id": "n1", "client": "nowhere"}]},
        {"shards": [{"id": 0, "start": "zz"}]},
        {"shards": [{"id": 0, "start": "8000000000000000"}]},
    ],
)
def test_routes_that_make_no_sense_change_nothing(change: dict[str, object]) -> None:
    routes = known()
    with pytest.raises(Garbled):
        routes.learn(routes_document() | change, 1.0)
    assert routes.leader_of(1) == ENDPOINTS[1]


def test_a_clock_is_believed_while_it_is_fresh_and_never_goes_back() -> None:
    routes = known()
    assert routes.clock_of(0, 1.0) == 1000
    routes.learn_clock(0, 900, 2.0)
    assert routes.clock_of(0, 2.0) == 1000
    routes.learn_clock(0, 1500, 3.0)
    assert routes.clock_of(0, 3.0 + CLOCK_AGE_S_MAX) == 1500
    assert routes.clock_of(0, 3.1 + CLOCK_AGE_S_MAX) is None


def test_a_forgotten_leader_is_not_asked_first() -> None:
    routes = known()
    routes.forget_leader(0)
    assert routes.leader_of(0) is None
    assert routes.is_fetch_due(1.0)
