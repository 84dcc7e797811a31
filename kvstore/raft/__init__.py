"""Raft, as a function of its inputs."""

from kvstore.raft.core import Core
from kvstore.raft.membership import Change
from kvstore.raft.refusals import NotLeader, ProposalDropped
from kvstore.raft.restored import NO_SNAPSHOT, Restored
from kvstore.raft.role import Role
from kvstore.raft.settings import RaftSettings

__all__ = [
    "NO_SNAPSHOT",
    "Change",
    "Core",
    "NotLeader",
    "ProposalDropped",
    "RaftSettings",
    "Restored",
    "Role",
]
