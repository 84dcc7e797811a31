from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.placement.ring import Member, Ring
from kvstore.types import NodeId, Token

TOKENS = st.integers(0, (1 << 64) - 1).map(Token)


def members(count: int) -> list[Member]:
    return [Member(NodeId(f"n{number}"), f"h{number}") for number in range(count)]


@settings(max_examples=50, deadline=None)
@given(TOKENS, st.integers(1, 8))
def test_walk_meets_every_node_once(token: Token, count: int) -> None:
    order = list(Ring(members(count), 16).walk(token))
    assert sorted(order) == [member.node for member in members(count)]


@settings(max_examples=50, deadline=None)
@given(TOKENS, st.integers(2, 8))
def test_a_node_that_leaves_swaps_no_two_others(token: Token, count: int) -> None:
    everyone = list(Ring(members(count), 16).walk(token))
    without_last = list(Ring(members(count)[:-1], 16).walk(token))
    assert without_last == [node for node in everyone if node != f"n{count - 1}"]


@settings(max_examples=20, deadline=None)
@given(st.permutations(members(5)), TOKENS)
def test_order_of_the_members_does_not_matter(shuffled: list[Member], token: Token) -> None:
    assert list(Ring(shuffled, 16).walk(token)) == list(Ring(members(5), 16).walk(token))


def test_walk_goes_around_the_end_of_the_token_space() -> None:
    ring = Ring(members(3), 16)
    assert list(ring.walk(Token((1 << 64) - 1))) == list(ring.walk(Token(0)))


def test_weight_draws_its_share_of_tokens() -> None:
    heavy = [Member(NodeId("big"), "h1", weight=3.0), Member(NodeId("small"), "h2")]
    ring = Ring(heavy, 256)
    firsts = Counter(next(ring.walk(Token(number << 54))) for number in range(1024))
    assert 0.65 < firsts[NodeId("big")] / 1024 < 0.85


def test_the_lightest_node_still_has_a_point() -> None:
    ring = Ring([Member(NodeId("a"), "h1"), Member(NodeId("b"), "h2", weight=0.001)], 64)
    assert set(ring.walk(Token(0))) == {"a", "b"}
