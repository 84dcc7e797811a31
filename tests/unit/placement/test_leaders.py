from collections import Counter
from math import ceil, floor

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.placement.leaders import spread_leaders
from kvstore.types import NodeId, ShardId

NODES = [NodeId(f"n{number}") for number in range(6)]
HOLDERS = st.lists(
    st.lists(st.sampled_from(NODES), min_size=3, max_size=3, unique=True), min_size=1, max_size=40
).map(lambda rows: {ShardId(number): row for number, row in enumerate(rows)})


@settings(max_examples=150, deadline=None)
@given(HOLDERS, st.data())
def test_a_node_leads_its_share_rounded_up_or_down(
    holders: dict[ShardId, list[NodeId]], data: st.DataObject
) -> None:
    current = {shard: data.draw(st.sampled_from(NODES)) for shard in holders}
    leaders = spread_leaders(holders, current)
    loads = Counter(node for nodes in holders.values() for node in nodes)
    led = Counter(leaders.values())
    for node, load in loads.items():
        share = load * len(holders) / loads.total()
        assert floor(share + 1e-9) <= led[node] <= ceil(share - 1e-9)
    assert all(leaders[shard] in nodes for shard, nodes in holders.items())


@settings(max_examples=50, deadline=None)
@given(HOLDERS)
def test_leaders_that_are_spread_stay(holders: dict[ShardId, list[NodeId]]) -> None:
    leaders = spread_leaders(holders, {})
    assert spread_leaders(holders, leaders) == leaders


def test_leaders_move_only_as_many_as_must() -> None:
    holders = {ShardId(number): NODES[:3] for number in range(9)}
    current = {ShardId(number): NODES[0] for number in range(9)}
    leaders = spread_leaders(holders, current)
    assert Counter(leaders.values()) == {NODES[0]: 3, NODES[1]: 3, NODES[2]: 3}
