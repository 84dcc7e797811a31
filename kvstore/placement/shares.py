"""How many replicas each node should hold: exact arithmetic, so that every node computes the same."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

from kvstore.placement.ring import Member
from kvstore.types import NodeId

Who = TypeVar("Who", str, NodeId)


def fair_shares(members: Sequence[Member], shard_count: int, replication: int) -> dict[NodeId, Fraction]:
    """Split `shard_count x replication` replicas by weight, where no node holds a shard twice and, if the
    host rule binds, no host does. What a capped one cannot take goes to the others by weight."""
    total = Fraction(shard_count * replication)
    limit = Fraction(shard_count)
    weights = {member.node: Fraction(member.weight) for member in members}
    if not host_rule_binds(members, replication):
        return _split(total, weights, limit)
    shares: dict[NodeId, Fraction] = {}
    hosts: dict[str, dict[NodeId, Fraction]] = {}
    for member in members:
        hosts.setdefault(member.host, {})[member.node] = weights[member.node]
    by_host = _split(total, {host: sum(nodes.values(), Fraction(0)) for host, nodes in hosts.items()}, limit)
    for host, share in by_host.items():
        shares |= _split(share, hosts[host], limit)
    return shares


def host_rule_binds(members: Sequence[Member], replication: int) -> bool:
    """With fewer hosts than replicas the rule cannot be kept, and two replicas may share a host."""
    return len({member.host for member in members}) >= replication


def _split(total: Fraction, weights: Mapping[Who, Fraction], limit: Fraction) -> dict[Who, Fraction]:
    shares: dict[Who, Fraction] = {}
    open_ = dict(weights)
    while open_:
        per_weight = (total - sum(shares.values())) / sum(open_.values())
        full = [who for who, weight in open_.items() if weight * per_weight >= limit]
        if not full:
            return shares | {who: weight * per_weight for who, weight in open_.items()}
        for who in full:
            shares[who] = limit
            del open_[who]
    return shares
