"""One peer message of each kind, in the order of their tags. Append only: the bytes of each are golden."""

from kvstore.raft.messages import (
    AppendReply,
    AppendRequest,
    Configuration,
    Entry,
    Heartbeat,
    HeartbeatReply,
    SnapshotMeta,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId, Term
from kvstore.wire import peer
from kvstore.wire.boot_messages import PROPOSED, Ballot, BootState, Directory, Proposal, ShardPlan
from kvstore.wire.snapshot_messages import (
    SnapshotChunk,
    SnapshotChunkRequest,
    SnapshotFile,
    SnapshotGone,
    SnapshotManifest,
    SnapshotManifestRequest,
)

A, B = ReplicaId("n1/1"), ReplicaId("n2/3")
N1, N2 = NodeId("n1"), NodeId("n2")
SHARD, TERM, INDEX = ShardId(7), Term(5), LogIndex(300)
ID = bytes(range(16))
META = SnapshotMeta(INDEX, TERM, Configuration((A, B), (A,), (B,), ()))
ENTRY = Entry(LogIndex(301), TERM, 0, b"\x92\x01\x90")
BALLOT = Ballot(2, b"n" * 16)
PROPOSAL = Proposal(BALLOT, ID, b"hash", (ShardPlan(SHARD, (A, B)),), (Directory(N1, ID), Directory(N2, ID)))
ADDRESS = peer.NodeAddress(N1, 4, "10.0.0.1:7501", "10.0.0.1:7401")

RAFT = (
    VoteRequest(A, B, TERM, INDEX, Term(4), True, False, 90_000, LogIndex(298), Term(4)),
    VoteReply(A, B, TERM, True, False, 90_000, LogIndex(298), Term(4)),
    AppendRequest(A, B, TERM, INDEX, Term(4), LogIndex(299), 12, (ENTRY,)),
    AppendReply(A, B, TERM, INDEX, True, LogIndex(250), Term(3), 12),
    Heartbeat(A, B, TERM, INDEX, 13),
    HeartbeatReply(A, B, TERM, 13),
    SnapshotOffer(A, B, TERM, INDEX, META),
    TimeoutNow(A, B, TERM),
)

SAMPLES: list[peer.PeerMessage] = [
    peer.Hello(1, "demo", ID, N1, 77, 1, b"hash", ADDRESS),
    peer.Beat(3, 1000, ((SHARD, A, TERM),), ((SHARD, 90_000),), (TERM,)),
    peer.BeatReply(3, 1000, (SHARD,), True),
    peer.RaftMessages(SHARD, RAFT),
    peer.ForwardWrite(9, SHARD, b"\x91\xc0", True, 5000),
    peer.ForwardRead(10, SHARD, b"\x93", "linearizable", 750),
    peer.ForwardWait(11, SHARD, b"\x93", 4000, 9000),
    peer.ForwardReply(9, "conflict", {"detail": "x", "retry_after": 1}, b""),
    peer.IndexRequest(11, SHARD),
    peer.IndexReply(11, INDEX, None),
    peer.AddressBook((ADDRESS,)),
    peer.QuarantineNotice(SHARD, B),
    BootState(N1, ID, PROPOSED, {"shards": "16"}, BALLOT, PROPOSAL, False),
    SnapshotManifestRequest(SHARD, INDEX, TERM),
    SnapshotManifest(SHARD, ID, META, 65_536, (SnapshotFile("000012.sst", 70_000, (1, 0xFFFFFFFF)),)),
    SnapshotChunkRequest(SHARD, ID, 0, 1),
    SnapshotChunk(SHARD, ID, 0, 1, b"content"),
    SnapshotGone(SHARD, INDEX, TERM, b""),
    peer.Refusal("node n9 is not known to this node"),
    peer.StatusRequest(12),
    peer.StatusReply(
        12,
        (peer.LedShard(SHARD, TERM, A, (A, B), (), ((B, INDEX),), INDEX, 41),),
        ((SHARD, B),),
        ((SHARD, A),),
    ),
    peer.TransferRequest(13, SHARD, N2),
    peer.RebuildRequest(14, SHARD, A),
    peer.RebuildReply(14, None, "overloaded", "another change of members is under way"),
    peer.CreateReplica(SHARD, B),
    peer.CreateRefused(SHARD, B),
    peer.DestroyReplica(SHARD, A),
]
