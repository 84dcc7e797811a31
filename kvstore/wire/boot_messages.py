"""What the first-boot agreement says and keeps: ballots, proposals, and the one message of its protocol.

The same structs lie in the identity file (`node/identity.py`) and travel between nodes. A node only
ever says what it has already made durable, so a message is a copy of a state and may arrive late,
twice or never. The rules that use them are in `node/boot.py`.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from kvstore.types import NodeId, ReplicaId, ShardId

EMPTY = 0
"""Nothing is agreed. The node may have promised a ballot."""
PROPOSED = 1
"""Holds a proposal on disk, may not vote or serve."""
MEMBER = 2
"""The cluster exists, and this node is part of it."""
REMOVED = 3
"""Was a member once; the directory stays marked so that it is never taken for an empty one."""

STAGE_NAMES = ("empty", "proposed", "member", "removed")

Id16 = Annotated[bytes, Meta(min_length=16, max_length=16)]


class Ballot(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Orders attempts to agree. The nonce sets two lives of one coordinator apart."""

    round: Annotated[int, Meta(ge=0)] = 0
    nonce: Annotated[bytes, Meta(max_length=16)] = b""


class ShardPlan(msgspec.Struct, frozen=True, array_like=True):
    """The voters that a shard starts with, META_SHARD included."""

    shard: ShardId
    voters: tuple[ReplicaId, ...]


class Directory(msgspec.Struct, frozen=True, array_like=True):
    """Which data directory a seed had when it promised. A disk that was emptied has another id."""

    node: NodeId
    id: Id16


class Proposal(msgspec.Struct, frozen=True, array_like=True):
    """The cluster to be: accepted by every directory it names, or never a cluster at all."""

    ballot: Ballot
    cluster_id: Id16
    config_hash: bytes
    plan: tuple[ShardPlan, ...]
    directories: tuple[Directory, ...]

    def directory_of(self, node: NodeId) -> bytes | None:
        return next((each.id for each in self.directories if each.node == node), None)


class BootState(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """All that a node has made durable about the first boot."""

    node: NodeId
    directory: Id16
    stage: Annotated[int, Meta(ge=EMPTY, le=REMOVED)]
    facts: dict[str, str]
    """What cluster.yaml says, so that a difference can be told by name."""
    promised: Ballot
    accepted: Proposal | None
    knows_you: bool = False
    """From a member only: the cluster has a node of the addressee's id."""
