"""The nouns of `docs/glossary.md` as types. No behaviour beyond naming and parsing lives here."""

from typing import NewType

NodeId = NewType("NodeId", str)
ShardId = NewType("ShardId", int)
Token = NewType("Token", int)
"""64-bit unsigned hash of a key's hash tag."""

Incarnation = NewType("Incarnation", int)
"""Counts the copies of one shard that one node has ever held; 1 is the first."""

ReplicaId = NewType("ReplicaId", str)
"""A member of a Raft group: `"<node>/<incarnation>"`, never used again once destroyed."""

Term = NewType("Term", int)
LogIndex = NewType("LogIndex", int)
Revision = NewType("Revision", int)
ClockMs = NewType("ClockMs", int)
"""The shard clock: milliseconds, monotone across leaders, unrelated to wall time."""

META_SHARD = ShardId(0xFFFF)
"""The shard that stores the cluster's own state. Data shards are 0 .. shards-1."""


def replica_id(node: NodeId, incarnation: Incarnation) -> ReplicaId:
    return ReplicaId(f"{node}/{incarnation}")


def node_of(replica: ReplicaId) -> NodeId:
    return NodeId(replica.rpartition("/")[0])


def incarnation_of(replica: ReplicaId) -> Incarnation:
    return Incarnation(int(replica.rpartition("/")[2]))
