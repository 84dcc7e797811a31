from collections.abc import Callable, Iterable

from kvstore.placement.paths import Move, shortest_chain
from kvstore.types import NodeId, ShardId

A, B, C, D = (NodeId(name) for name in "abcd")
S1, S2, S3 = (ShardId(number) for number in (1, 2, 3))


def steps(
    graph: dict[NodeId, list[tuple[ShardId, NodeId]]],
) -> Callable[[NodeId], Iterable[tuple[ShardId, NodeId]]]:
    return lambda node: graph.get(node, [])


def test_a_straight_move_is_preferred_to_a_chain() -> None:
    graph = {A: [(S1, B), (S2, C)], B: [(S3, C)]}
    assert shortest_chain(A, {C}.__contains__, steps(graph)) == [Move(S2, A, C)]


def test_a_chain_passes_the_load_on() -> None:
    graph = {A: [(S1, B)], B: [(S2, C)], C: [(S3, D)]}
    assert shortest_chain(A, {D}.__contains__, steps(graph)) == [
        Move(S1, A, B),
        Move(S2, B, C),
        Move(S3, C, D),
    ]


def test_a_shard_moves_at_most_once_in_a_chain() -> None:
    graph = {A: [(S1, B)], B: [(S1, C)]}
    assert shortest_chain(A, {C}.__contains__, steps(graph)) is None


def test_no_chain_is_found_where_the_goal_cannot_be_reached() -> None:
    graph = {A: [(S1, B)], B: [(S2, A)]}
    assert shortest_chain(A, {D}.__contains__, steps(graph)) is None
