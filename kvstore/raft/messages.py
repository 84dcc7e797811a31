"""What enters and leaves a Raft core: entries, configurations, peer messages, and `Ready`.

All are frozen and array-like, so that msgspec can put them on the wire and validate them on arrival.
Times are counts of ticks; nothing here knows a clock, a socket or a disk.
"""

import msgspec

from kvstore.types import LogIndex, ReplicaId, Term

NORMAL = 0
"""An entry whose payload the state machine applies."""
EMPTY = 1
"""A new leader's first entry (Raft 8): lets it commit what older terms left behind."""
CONFIGURATION = 2
"""An entry whose payload is an encoded `Configuration`, in force once applied."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Holds no containers, hence `gc=False`: a node keeps a million of these."""

    index: LogIndex
    term: Term
    kind: int
    payload: bytes


class HardState(msgspec.Struct, frozen=True, array_like=True):
    """What must survive a crash besides the log. `commit` is a lower bound that spares recovery a wait:
    it may be older than what was committed, never newer than the log written with it."""

    term: Term = Term(0)
    vote: ReplicaId | None = None
    commit: LogIndex = LogIndex(0)


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """Who votes. While `outgoing` is not empty the group is in a joint configuration (thesis 4.3):
    elections and commits need a majority of `voters` and one of `outgoing`. All tuples are sorted.
    """

    voters: tuple[ReplicaId, ...] = ()
    outgoing: tuple[ReplicaId, ...] = ()
    learners: tuple[ReplicaId, ...] = ()
    learners_next: tuple[ReplicaId, ...] = ()
    """Voters of `outgoing` that become learners when the joint configuration is left."""

    @property
    def is_joint(self) -> bool:
        return bool(self.outgoing)

    def members(self) -> tuple[ReplicaId, ...]:
        return tuple(sorted({*self.voters, *self.outgoing, *self.learners, *self.learners_next}))


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """The state a snapshot stands for: everything up to (`index`, `term`), and who votes there."""

    index: LogIndex
    term: Term
    configuration: Configuration


class VoteRequest(msgspec.Struct, frozen=True, array_like=True, tag=1):
    source: ReplicaId
    target: ReplicaId
    term: Term
    """The term to be elected in; a pre-vote asks about `term` without entering it."""
    last_index: LogIndex
    last_term: Term
    is_pre_vote: bool
    is_transfer: bool
    """The leader asked for this election (TimeoutNow): voters need not wait for its silence."""
    clock_ms: int = 0
    """The shard clock as the sender knows it."""
    commit: LogIndex = LogIndex(0)
    commit_term: Term = Term(0)
    """The sender's last committed entry. Whoever holds that entry learns that it is committed, and so
    perhaps that another configuration decides this election."""
    clock_term: Term = Term(0)
    """The term of the leader whose clock `clock_ms` goes by."""


class VoteReply(msgspec.Struct, frozen=True, array_like=True, tag=2):
    source: ReplicaId
    target: ReplicaId
    term: Term
    is_granted: bool
    is_pre_vote: bool
    clock_ms: int = 0
    commit: LogIndex = LogIndex(0)
    commit_term: Term = Term(0)
    clock_term: Term = Term(0)
    """As in `VoteRequest`."""


class AppendRequest(msgspec.Struct, frozen=True, array_like=True, tag=3):
    source: ReplicaId
    target: ReplicaId
    term: Term
    prev_index: LogIndex
    prev_term: Term
    commit: LogIndex
    round: int
    """Confirmation round, see `Heartbeat.round`."""
    entries: tuple[Entry, ...]


class AppendReply(msgspec.Struct, frozen=True, array_like=True, tag=4):
    source: ReplicaId
    target: ReplicaId
    term: Term
    index: LogIndex
    """Accepted: highest index known to match and synced. Rejected: the `prev_index` that failed."""
    is_rejected: bool
    hint_index: LogIndex
    hint_term: Term
    """Rejected: the leader should next probe at or below `hint_index`, whose term here is `hint_term`."""
    round: int


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=5):
    source: ReplicaId
    target: ReplicaId
    term: Term
    commit: LogIndex
    round: int
    """Counts confirmation rounds of this leader's term. An answer that carries round r proves that
    the follower still followed (shard, term) after r was issued (thesis 6.4). Rounds start at 1 in each
    term; 0 only tells the commit index and wants no answer."""
    is_behind: bool = False
    """More is committed than the target has acknowledged; `commit` names only the latter. Being level with
    it does not make the target fresh."""


class HeartbeatReply(msgspec.Struct, frozen=True, array_like=True, tag=6):
    source: ReplicaId
    target: ReplicaId
    term: Term
    round: int


class SnapshotOffer(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The target needs entries the leader no longer has. Its host fetches the snapshot and calls
    `Core.install`; the leader repeats the offer while it hears nothing."""

    source: ReplicaId
    target: ReplicaId
    term: Term
    commit: LogIndex
    snapshot: SnapshotMeta


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Leadership transfer (thesis 3.10): campaign at once."""

    source: ReplicaId
    target: ReplicaId
    term: Term


Message = (
    VoteRequest
    | VoteReply
    | AppendRequest
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | SnapshotOffer
    | TimeoutNow
)


class Ready(msgspec.Struct, frozen=True):
    """Everything the host must now do for one replica. The durability order is in the shape:

    1. send `messages_now`, in any relation to the disk;
    2. write, as one atomic batch: `installed`, `truncate_after`, `entries`, `hard_state`; sync it;
       then call `Core.persisted(number)` and send `messages_after_sync`. Without anything to write
       (`has_writes`), the messages wait for the writes of all earlier Readys of this replica only;
    3. apply `committed` in order, then call `Core.applied(index)`;
    4. answer `reads` once the given index is applied, fail `reads_lost`.

    Steps 2 of successive Readys must complete in order. Step 3 never waits for step 2 of the same
    Ready: `committed` is already limited to what this replica has synced.
    """

    number: int
    hard_state: HardState | None
    installed: SnapshotMeta | None
    """A snapshot that `Core.install` accepted: the log now starts after it."""
    truncate_after: LogIndex | None
    """Stored entries above this index conflict and are void here; written before `entries`. Another replica
    may keep and commit them: what became of a proposal is known once its index is applied."""
    entries: tuple[Entry, ...]
    messages_now: tuple[Message, ...]
    """No promise inside: AppendRequest, Heartbeat, SnapshotOffer, TimeoutNow."""
    messages_after_sync: tuple[Message, ...]
    """Promises: VoteRequest, VoteReply, AppendReply, HeartbeatReply."""
    committed: tuple[Entry, ...]
    reads: tuple[tuple[int, LogIndex], ...]
    """(context, index): serve the read once `index` is applied; leadership was confirmed."""
    reads_lost: tuple[int, ...]
    """Contexts whose confirmation will never come: this replica no longer leads that term."""
    snapshots_wanted: tuple[ReplicaId, ...]
    """Peers that need a snapshot: make one and call `Core.offer_snapshot(target, meta)`."""

    @property
    def has_writes(self) -> bool:
        """Something of this Ready must reach the disk; only then is `Core.persisted` needed."""
        return bool(
            self.entries
            or self.hard_state is not None
            or self.installed is not None
            or self.truncate_after is not None
        )

    @property
    def must_sync(self) -> bool:
        return bool(
            self.entries
            or self.messages_after_sync
            or self.hard_state
            or self.installed
            or self.truncate_after is not None
        )
