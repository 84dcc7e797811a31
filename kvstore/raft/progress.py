"""What a leader knows of one member of its group, and how much it may send to it.

    PROBE      where the logs part is unknown: one AppendRequest at a time, then wait
    REPLICATE  the logs match up to `match`: send ahead, within a window of messages and bytes
    SNAPSHOT   the entries it needs are cut off: wait until it has installed a snapshot

A leader starts every member in PROBE. An accepted append leads to REPLICATE, a refused one back to PROBE.
The leader's own progress has `match` = its synced index; its own unsynced entries never count.
"""

from collections import deque
from enum import Enum

from kvstore.raft.messages import SnapshotMeta
from kvstore.types import LogIndex, ReplicaId


class ProgressState(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    __slots__ = (
        "commit_sent",
        "inflight",
        "inflight_bytes",
        "is_active",
        "is_poked",
        "is_probe_sent",
        "match",
        "next",
        "offer_ticks",
        "replica",
        "round",
        "round_floor",
        "silent_ticks",
        "snapshot",
        "state",
    )

    def __init__(self, replica: ReplicaId, next_index: int) -> None:
        self.replica = replica
        self.state = ProgressState.PROBE
        self.match = LogIndex(0)
        """Highest index known to be equal and synced there."""
        self.next = next_index
        """First index to send next."""
        self.is_probe_sent = False
        self.is_poked = False
        """Send an append even without entries: the answer tells whether something was lost."""
        self.is_active = True
        """Heard since the last check of the quorum; a new member gets one period of grace."""
        self.round = 0
        """Highest confirmation round it has answered in this term."""
        self.round_floor = 0
        """Answers to older rounds are ignored: they are from before its quarantine."""
        self.commit_sent = 0
        """Commit index it will know if nothing sent was lost."""
        self.inflight: deque[tuple[int, int]] = deque()
        """(last index, bytes) of each unanswered AppendRequest with entries."""
        self.inflight_bytes = 0
        self.snapshot: SnapshotMeta | None = None
        """The snapshot on offer; None in SNAPSHOT state until the host has made one."""
        self.offer_ticks = 0
        """Ticks since the snapshot was last asked for or offered."""
        self.silent_ticks = 0

    def _leave_state(self) -> None:
        self.is_probe_sent = self.is_poked = False
        self.inflight.clear()
        self.inflight_bytes = 0
        self.snapshot = None
        self.offer_ticks = 0

    def become_probe(self, next_index: int) -> None:
        self._leave_state()
        self.state = ProgressState.PROBE
        self.next = max(next_index, self.match + 1)
        self.commit_sent = min(self.commit_sent, self.match)

    def become_replicate(self) -> None:
        self._leave_state()
        self.state = ProgressState.REPLICATE
        self.next = self.match + 1

    def become_snapshot(self) -> None:
        self._leave_state()
        self.state = ProgressState.SNAPSHOT

    def sent(self, last_index: int, bytes_count: int) -> None:
        """Note an optimistic append; REPLICATE only."""
        self.next = last_index + 1
        self.inflight.append((last_index, bytes_count))
        self.inflight_bytes += bytes_count

    def acknowledged(self, index: LogIndex) -> None:
        """Advance `match` and free the window up to `index`."""
        self.match = index
        if self.next <= index:
            self.next = index + 1
        inflight = self.inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]

    def forget(self, last_index: int, round_floor: int) -> None:
        """Its disk is not what it was: nothing it ever acknowledged counts any more."""
        self.match = LogIndex(0)
        self.become_probe(last_index + 1)
        self.round = 0
        self.round_floor = round_floor
        self.is_active = False
