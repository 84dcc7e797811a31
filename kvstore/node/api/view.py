"""What the API may ask about the cluster. The node implements it; the tests have a small one of their own.

Answers are structs that go out as they are, so their field names are part of the contract.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from kvstore.node.flow import Promise
from kvstore.types import NodeId, ReplicaId, ShardId


class ReplicaRow(msgspec.Struct, frozen=True):
    node: NodeId
    role: str
    """leader, follower, candidate, learner or quarantined, as far as this node knows."""
    match: int | None = None
    """Highest log index known to be synced there; only the leader knows it."""


class ShardRow(msgspec.Struct, frozen=True):
    """`start` and `end` are the first and last token, 16 hex digits each; empty for the meta shard."""

    id: ShardId
    start: str
    end: str
    leader: NodeId | None
    term: int
    replicas: list[ReplicaRow]
    applied: int | None = None
    keys: int | None = None


class RebuildRow(msgspec.Struct, frozen=True):
    shard: ShardId
    node: NodeId
    replica: ReplicaId
    """The incarnation that comes in place of what was lost."""
    role: str
    """learner: it is being copied to; follower: it votes."""


class NodeRow(msgspec.Struct, frozen=True):
    id: NodeId
    client: str
    peer: str
    host: str
    zone: str
    weight: float
    up: bool
    """Heard by the answering node within the election timeout."""


class RouteRow(msgspec.Struct, frozen=True):
    id: ShardId
    start: str
    end: str
    leader: NodeId | None
    replicas: list[NodeId]
    clock_ms: int | None = None


class RouteNode(msgspec.Struct, frozen=True):
    id: NodeId
    client: str


class Routes(msgspec.Struct, frozen=True):
    """`epoch` changes whenever anything a client routes by may have changed."""

    epoch: int
    shards: list[RouteRow]
    nodes: list[RouteNode]


class ClusterRow(msgspec.Struct, frozen=True):
    name: str
    id: str | None
    meta_leader: NodeId | None
    health: str
    """ok; degraded: everything is served but something is down; unavailable: a shard has no leader."""
    shards_without_leader: list[ShardId]
    shards: int
    nodes: int
    nodes_down: list[NodeId]
    replication: int
    node: NodeId
    """The one that answers."""


class Check(msgspec.Struct, frozen=True):
    """One named condition of being alive or ready."""

    name: str
    is_ok: bool
    detail: str = ""


class ClusterView(Protocol):
    """The answering node's knowledge. Nothing here blocks; promises may ask other nodes."""

    me: NodeId

    def epoch(self) -> int: ...

    def leader_of(self, shard: ShardId) -> NodeId | None:
        """The node that leads the shard as far as this one knows."""
        ...

    def client_address(self, node: NodeId) -> str | None: ...

    def routes(self) -> Routes: ...

    def nodes(self) -> list[NodeRow]: ...

    def cluster(self) -> Promise[ClusterRow]: ...

    def shard_rows(self) -> Promise[list[ShardRow]]:
        """All shards, the meta shard last."""
        ...

    def liveness(self) -> list[Check]: ...

    def readiness(self) -> list[Check]: ...

    def transfer(self, shard: ShardId, to: NodeId, deadline: float) -> Promise[None]:
        """Make `to` lead the shard. Fails with NotFound, InvalidArgument (not a replica), NoLeader..."""
        ...

    def rebuild(self, shard: ShardId, node: NodeId, deadline: float) -> Promise[RebuildRow]:
        """Replace the lost replica on `node` by a new one; resolved once that is sure to come.

        Fails with NotFound, InvalidArgument (no home, or healthy), Unavailable, NoLeader, OutcomeUnknown."""
        ...

    def facts(self) -> dict[str, Any]:
        """What /v1/info says about this node beyond versions and limits: engine, start, data directory."""
        ...
