"""The numbers of one Raft group. All replicas of a cluster must run with the same tick settings."""

import msgspec

MIB = 1 << 20


class RaftSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times are ticks; the host ticks every core each 50 ms.

    Safety rests on one of them: a leader lease must be shorter than `election_ticks_min - 1` ticks,
    because a follower that just heard its leader may count a tick at once.
    """

    election_ticks_min: int = 20
    """No vote is granted for this long after a leader was heard, or after a start."""
    election_ticks_max: int = 40
    """Each follower campaigns after a random silence of min to max ticks."""
    heartbeat_ticks: int = 2
    append_bytes_max: int = MIB
    """Of one AppendRequest, unless a single entry is larger."""
    inflight_messages_max: int = 64
    """Unacknowledged AppendRequests with entries, per peer."""
    inflight_bytes_max: int = 4 * MIB
    """Soft bound of their bytes: the message that passes it is the last one."""
    uncommitted_bytes_max: int = 32 * MIB
    """Proposals are dropped above it; empty and configuration entries always pass."""
    entry_bytes_max: int = 8 * MIB
    """Of one proposed payload."""
    committed_bytes_max: int = 4 * MIB
    """Soft bound of what one Ready gives to apply, so that a replay does not stall the loop."""

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat_ticks < self.election_ticks_min <= self.election_ticks_max:
            raise ValueError("need 0 < heartbeat_ticks < election_ticks_min <= election_ticks_max")
