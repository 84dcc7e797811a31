"""The four roles of a replica (Raft 5.1, thesis 9.6)."""

from enum import Enum


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    """Asks whether it could win, without disturbing anybody's term (thesis 9.6)."""
    CANDIDATE = "candidate"
    LEADER = "leader"
