"""Which replica of each shard should lead, so that leaders are spread as replicas are."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import ceil, floor

from kvstore.placement.paths import shortest_chain
from kvstore.types import NodeId, ShardId


def spread_leaders(
    holders: Mapping[ShardId, Sequence[NodeId]], current: Mapping[ShardId, NodeId]
) -> dict[ShardId, NodeId]:
    """Choose one holder per shard. A node that holds x of all replicas leads x of all shards, rounded up
    or down; such a choice always exists. `current` leaders stay as far as that allows."""
    loads = Counter(node for nodes in holders.values() for node in nodes)
    share = {node: Fraction(load * len(holders), loads.total()) for node, load in loads.items()}
    led: dict[NodeId, set[ShardId]] = {node: set() for node in sorted(loads)}
    leaders: dict[ShardId, NodeId] = {}

    def lead(shard: ShardId, node: NodeId) -> None:
        if shard in leaders:
            led[leaders[shard]].discard(shard)
        leaders[shard] = node
        led[node].add(shard)

    for shard, nodes in holders.items():
        if current.get(shard) in nodes:
            lead(shard, current[shard])
    for shard, nodes in holders.items():
        if shard not in leaders:
            lead(shard, min(nodes, key=lambda node: (len(led[node]) / share[node], nodes.index(node))))

    def steps_from(node: NodeId) -> Iterator[tuple[ShardId, NodeId]]:
        for shard in sorted(led[node]):
            for other in holders[shard]:
                yield shard, other

    def settle(start: NodeId, goals: set[NodeId]) -> bool:
        chain = shortest_chain(start, goals.__contains__, steps_from)
        for move in chain or ():
            lead(move.shard, move.target)
        return chain is not None

    def pass_on(start: NodeId) -> bool:
        fewest_first = {node for node in led if len(led[node]) < floor(share[node])}
        return settle(start, fewest_first) or settle(
            start, {node for node in led if len(led[node]) < ceil(share[node])}
        )

    for node in led:
        while len(led[node]) > ceil(share[node]) and pass_on(node):
            pass
    for node in led:
        while len(led[node]) < floor(share[node]):
            givers = sorted((each for each in led if len(led[each]) > floor(share[each])), key=str)
            if not any(settle(giver, {node}) for giver in givers):
                break
    return leaders
