"""The consistent-hash ring: which nodes come first for a token, and who they are.

Each node has `weight x virtual_nodes` points on a circle of tokens. From a shard's token the ring is
walked clockwise; the order in which nodes are met is that shard's order of preference. A node that
comes or goes only inserts itself into, or leaves, the orders: it never swaps two others.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

import msgspec

from kvstore.placement.hashing import token_of_name
from kvstore.types import NodeId, Token


class Member(msgspec.Struct, frozen=True):
    """A node that may hold replicas."""

    node: NodeId
    host: str
    """Machine; its nodes fail together."""
    zone: str = ""
    weight: float = 1.0


class Ring:
    def __init__(self, members: Iterable[Member], virtual_nodes: int) -> None:
        points = sorted(
            (token_of_name(f"{member.node}#{number}"), member.node)
            for member in members
            for number in range(max(1, round(member.weight * virtual_nodes)))
        )
        self._tokens = [token for token, _ in points]
        self._owners = [node for _, node in points]
        self._node_count = len(set(self._owners))

    def walk(self, token: Token) -> Iterator[NodeId]:
        """Yield every node once, in the order in which the ring meets them clockwise from `token`."""
        first = bisect_left(self._tokens, token)
        met: set[NodeId] = set()
        for at in (*range(first, len(self._owners)), *range(first)):
            node = self._owners[at]
            if node not in met:
                met.add(node)
                yield node
                if len(met) == self._node_count:
                    return
