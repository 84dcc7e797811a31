"""The wish: which nodes hold which shard. A pure function of the members and of the map as it is.

In falling order of force:

1. a node holds a shard once;
2. a host holds a shard once, when there are at least `replication` hosts;
3. no node holds more than 1.25 times its fair share (by weight, rounded up), and none less than its
   fair share rounded down;
4. a replica stays where it is: only what the rules above ask for moves, so that a node added to n
   others receives about 1/(n+1) of the replicas and nothing else moves;
5. the zones (and below rule 2's condition the hosts) of a shard's replicas differ;
6. the ring's order from the shard's token decides among what is left.

A move that rules 1 to 3 ask for prefers to repair zones, but bad zones alone move nothing. The order of
a shard's nodes means one thing: the first is the preferred leader.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from math import ceil, floor

from kvstore.placement.hashing import ShardMap
from kvstore.placement.leaders import spread_leaders
from kvstore.placement.paths import Move, shortest_chain
from kvstore.placement.ring import Member, Ring
from kvstore.placement.shares import fair_shares, host_rule_binds
from kvstore.types import META_SHARD, NodeId, ShardId

LOAD_FACTOR_MAX = Fraction(5, 4)
Placement = dict[ShardId, tuple[NodeId, ...]]
_Offer = tuple[bool, tuple[int, int], int, ShardId]


def place(
    shard_map: ShardMap,
    members: Sequence[Member],
    *,
    replication: int,
    virtual_nodes: int,
    current: Mapping[ShardId, Sequence[NodeId]] | None = None,
) -> Placement:
    """Return the nodes of every data shard and of the meta shard, each shard's preferred leader first.

    `current` is the map to start from; nodes in it that are no members are gone. With fewer members than
    `replication` every member holds every shard. The same input gives the same placement on every node.
    """
    assert members, "nobody to place on"
    present = current or {}
    draft = _Draft(shard_map, members, replication, virtual_nodes)
    for shard in draft.holders:
        draft.keep(shard, present.get(shard, ()))
    for shard in draft.holders:
        draft.fill(shard)
    draft.lift()
    draft.relieve()
    firsts = {shard: nodes[0] for shard, nodes in present.items() if nodes}
    leaders = spread_leaders(draft.holders, firsts)
    return {
        shard: (leaders[shard], *(node for node in nodes if node != leaders[shard]))
        for shard, nodes in draft.holders.items()
    }


class _Draft:
    """A placement in the making. Every change keeps rules 1 and 2."""

    def __init__(
        self, shard_map: ShardMap, members: Sequence[Member], replication: int, virtual_nodes: int
    ) -> None:
        self.members = {member.node: member for member in sorted(members, key=lambda each: each.node)}
        assert len(self.members) == len(members), "node ids are unique"
        self.count = min(replication, len(members))
        self.is_host_bound = host_rule_binds(members, replication)
        shards = (*shard_map.shards, META_SHARD)
        self.holders: dict[ShardId, list[NodeId]] = {shard: [] for shard in shards}
        self.held: dict[NodeId, set[ShardId]] = {node: set() for node in self.members}
        share = fair_shares(members, len(shards), self.count)
        self.share = {node: float(share[node]) for node in share}
        self.fewest = {node: floor(share[node]) for node in self.members}
        self.usual = {node: ceil(share[node]) for node in self.members}
        self.most = {node: min(len(shards), ceil(share[node] * LOAD_FACTOR_MAX)) for node in self.members}
        ring = Ring(self.members.values(), virtual_nodes)
        self.rank = {
            shard: {node: rank for rank, node in enumerate(ring.walk(shard_map.start_of(shard)))}
            for shard in shards
        }

    def keep(self, shard: ShardId, nodes: Sequence[NodeId]) -> None:
        for node in nodes:
            if node in self.members and len(self.holders[shard]) < self.count and self.allows(shard, node):
                self._add(shard, node)

    def fill(self, shard: ShardId) -> None:
        while len(self.holders[shard]) < self.count:
            self._add(shard, min(self._candidates(shard), key=lambda node: self._cost(shard, node)))

    def lift(self) -> None:
        """Bring every node up to its minimum: what a new node receives."""
        for node in sorted(self.members, key=lambda each: (self._fullness(each), each)):
            offers = self._offers_to(node)
            while len(self.held[node]) < self.fewest[node]:
                givers = sorted(
                    (each for each in self.members if len(self.held[each]) > self.fewest[each]),
                    key=lambda each: (-self._fullness(each), each),
                )
                if self._take_offer(node, givers, offers):
                    continue
                if not any(self._shift(giver, {node}) for giver in givers):
                    break
                offers = self._offers_to(node)

    def relieve(self) -> None:
        """Bring every node down to its maximum, as far as hosts allow."""
        for node in self.members:
            while len(self.held[node]) > self.most[node]:
                below_usual = {each for each in self.held if len(self.held[each]) < self.usual[each]}
                below_most = {each for each in self.held if len(self.held[each]) < self.most[each]}
                if not (self._shift(node, below_usual) or self._shift(node, below_most)):
                    break

    def allows(self, shard: ShardId, node: NodeId, leaving: NodeId | None = None) -> bool:
        """May `node` take the shard, once `leaving` has given it up?"""
        if node in self.holders[shard]:
            return False
        if not self.is_host_bound:
            return True
        host = self.members[node].host
        return all(self.members[each].host != host for each in self.holders[shard] if each != leaving)

    def _candidates(self, shard: ShardId) -> list[NodeId]:
        return [node for node in self.members if self.allows(shard, node)]

    def _cost(self, shard: ShardId, node: NodeId) -> tuple[bool, tuple[int, int], int, int]:
        load = len(self.held[node])
        fill_level = (load >= self.fewest[node]) + (load >= self.usual[node])
        return load >= self.most[node], self._crowding(shard, node, None), fill_level, self.rank[shard][node]

    def _crowding(self, shard: ShardId, node: NodeId, leaving: NodeId | None) -> tuple[int, int]:
        """Other replicas of the shard on the node's host, and in its zone."""
        me = self.members[node]
        others = [self.members[each] for each in self.holders[shard] if each not in (node, leaving)]
        return sum(each.host == me.host for each in others), sum(each.zone == me.zone for each in others)

    def _does_crowd(self, shard: ShardId, source: NodeId, target: NodeId) -> bool:
        return self._crowding(shard, target, source) > self._crowding(shard, source, None)

    def _offers_to(self, target: NodeId) -> dict[NodeId, list[_Offer]]:
        """What each node could give, best last: what crowds nothing, then what the ring sends here."""
        offers = {}
        for source in self.members:
            possible = [
                (
                    self._does_crowd(shard, source, target),
                    self._crowding(shard, target, source),
                    self.rank[shard][target],
                    shard,
                )
                for shard in self.held[source]
                if self.allows(shard, target, source)
            ]
            offers[source] = sorted(possible, reverse=True)
        return offers

    def _take_offer(
        self, target: NodeId, givers: Sequence[NodeId], offers: dict[NodeId, list[_Offer]]
    ) -> bool:
        """Move one shard straight to the target, if one can be moved."""
        for may_crowd in (False, True):
            for giver in givers:
                left = offers[giver]
                while left and not self.allows(left[-1][3], target, giver):
                    left.pop()
                if left and (may_crowd or not left[-1][0]):
                    self._move(Move(left.pop()[3], giver, target))
                    return True
        return False

    def _shift(self, source: NodeId, goals: set[NodeId]) -> bool:
        """Pass one replica's worth of load from `source` to a goal, over others if need be."""
        for may_crowd in (False, True):
            chain = shortest_chain(source, goals.__contains__, partial(self._steps_from, may_crowd=may_crowd))
            if chain is not None:
                for move in chain:
                    self._move(move)
                return True
        return False

    def _steps_from(self, node: NodeId, *, may_crowd: bool) -> Iterator[tuple[ShardId, NodeId]]:
        for shard in sorted(self.held[node]):
            for target in self.rank[shard]:
                if self.allows(shard, target, node) and (
                    may_crowd or not self._does_crowd(shard, node, target)
                ):
                    yield shard, target

    def _fullness(self, node: NodeId) -> float:
        return len(self.held[node]) / self.share[node]

    def _add(self, shard: ShardId, node: NodeId) -> None:
        self.holders[shard].append(node)
        self.held[node].add(shard)

    def _move(self, move: Move) -> None:
        assert self.allows(move.shard, move.target, move.source), "a chain keeps the rules at every step"
        nodes = self.holders[move.shard]
        nodes[nodes.index(move.source)] = move.target
        self.held[move.source].discard(move.shard)
        self.held[move.target].add(move.shard)
