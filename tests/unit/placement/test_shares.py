from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.placement.ring import Member
from kvstore.placement.shares import fair_shares, host_rule_binds
from kvstore.types import NodeId


def member(node: str, host: str, weight: float = 1.0) -> Member:
    return Member(NodeId(node), host, weight=weight)


def test_equal_nodes_share_equally() -> None:
    shares = fair_shares([member(f"n{n}", f"h{n}") for n in range(4)], 17, 3)
    assert set(shares.values()) == {Fraction(51, 4)}


def test_a_heavier_node_takes_more() -> None:
    shares = fair_shares([member("a", "h1", 2), *(member(f"n{n}", f"h{n}") for n in range(2, 8))], 16, 3)
    assert shares[NodeId("a")] == 2 * shares[NodeId("n2")]


def test_a_node_never_gets_a_shard_twice_however_heavy() -> None:
    shares = fair_shares(
        [member("a", "h1", 100), member("b", "h2"), member("c", "h3"), member("d", "h4")], 16, 3
    )
    assert shares[NodeId("a")] == 16
    assert shares[NodeId("b")] == Fraction(32, 3)


def test_nodes_of_one_host_share_what_the_host_may_hold() -> None:
    shares = fair_shares([member("a", "h1"), member("b", "h1"), member("c", "h2"), member("d", "h3")], 16, 3)
    assert shares == {"a": 8, "b": 8, "c": 16, "d": 16}


def test_with_too_few_hosts_the_host_limit_is_dropped() -> None:
    crowd = [member("a", "h1"), member("b", "h1"), member("c", "h1")]
    assert not host_rule_binds(crowd, 3)
    assert set(fair_shares(crowd, 16, 3).values()) == {16}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.25, 1.0, 1.5, 8.0])), min_size=3, max_size=12),
    st.sampled_from([1, 3]),
)
def test_shares_are_exact_and_within_every_limit(nodes: list[tuple[int, float]], replication: int) -> None:
    members = [member(f"n{n}", f"h{host}", weight) for n, (host, weight) in enumerate(nodes)]
    shares = fair_shares(members, 17, replication)
    assert sum(shares.values()) == 17 * replication
    assert all(0 < share <= 17 for share in shares.values())
    if host_rule_binds(members, replication):
        for host in {each.host for each in members}:
            assert sum(shares[each.node] for each in members if each.host == host) <= 17
