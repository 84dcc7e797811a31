"""Chains of moves between nodes: an augmenting path, found breadth first.

Where no replica can go straight from a node that has too many to one that has too few, a chain of moves
through others may do it: a's shard to b, another of b's to c. Every node between keeps its count.
"""

from collections.abc import Callable, Iterable

import msgspec

from kvstore.types import NodeId, ShardId


class Move(msgspec.Struct, frozen=True):
    shard: ShardId
    source: NodeId
    target: NodeId


def shortest_chain(
    start: NodeId,
    is_goal: Callable[[NodeId], bool],
    steps_from: Callable[[NodeId], Iterable[tuple[ShardId, NodeId]]],
) -> list[Move] | None:
    """Return the moves of a shortest chain from `start` to a goal, or None if there is no chain.

    `steps_from(node)` yields the shards that can leave the node and where to. A shard moves at most once
    in a chain, so that each step is as possible at its turn as it was before the first.
    """
    came_by: dict[NodeId, Move | None] = {start: None}
    frontier = [start]
    while frontier:
        reached = []
        for node in frontier:
            moved = {move.shard for move in _chain_to(node, came_by)}
            for shard, target in steps_from(node):
                if target in came_by or shard in moved:
                    continue
                came_by[target] = Move(shard, node, target)
                if is_goal(target):
                    return _chain_to(target, came_by)
                reached.append(target)
        frontier = reached
    return None


def _chain_to(node: NodeId, came_by: dict[NodeId, Move | None]) -> list[Move]:
    chain = []
    move = came_by[node]
    while move is not None:
        chain.append(move)
        move = came_by[move.source]
    return chain[::-1]
