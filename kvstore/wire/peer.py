"""Frames between nodes: CRC32C (4 bytes, big endian), then a MessagePack array of peer messages.

Every message is a tagged array `[tag, field, ...]`. Tags and the order of fields are the wire format
(`docs/wire.md`): new fields go to the end with a default, a tag is never used again. A frame that is
damaged or malformed is refused here, whole, with `PeerProtocolError`: behind this border every value
has its declared type and bound.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import google_crc32c
import msgspec
from msgspec import Meta

from kvstore.raft.messages import Message
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId, Term
from kvstore.wire.boot_messages import BootState, Id16
from kvstore.wire.snapshot_messages import (
    SnapshotChunk,
    SnapshotChunkRequest,
    SnapshotGone,
    SnapshotManifest,
    SnapshotManifestRequest,
)

PROTOCOL: Final = 1
"""Raised when frames change in a way that older nodes cannot read."""

FRAME_BYTES_MAX: Final = 16 << 20

Text = Annotated[str, Meta(max_length=1024)]
Name = Annotated[NodeId, Meta(min_length=1, max_length=128)]
Code = Annotated[str, Meta(max_length=64)]
RequestId = Annotated[int, Meta(ge=0)]


class PeerProtocolError(Exception):
    """A peer sent bytes that are no frame of ours. The link they came over must be closed."""


class NodeAddress(msgspec.Struct, frozen=True, array_like=True):
    """Where a node says it can be reached. The highest `version` wins; only the node itself raises it."""

    node: Name
    version: Annotated[int, Meta(ge=0)]
    peer: Text
    client: Text


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """First message in both directions of a link."""

    protocol: int
    cluster: Text
    cluster_id: Id16 | None
    """None while the sender is not a member."""
    node: Name
    epoch: int
    """Random per process: a restart is another epoch."""
    lane: int
    config_hash: bytes
    address: NodeAddress


class Beat(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Heartbeat of a node for the quiet shards that it leads."""

    version: int
    """Of the set of (shard, term) that the sender leads; counts from 1 in each process."""
    seq: int
    led: tuple[tuple[ShardId, ReplicaId, Term], ...] | None
    """The whole set of `version`; None: the receiver has said that it knows it."""
    clocks: tuple[tuple[ShardId, int], ...]
    """Clocks (ms) of shards that the sender leads, also of quiet ones."""
    terms: tuple[Term, ...] = ()
    """The sender's term in each of these shards."""


class BeatReply(msgspec.Struct, frozen=True, array_like=True, tag=3):
    version: int
    seq: int
    disagree: tuple[ShardId, ...]
    """Shards whose replica here does not follow what the set says: the leader must wake them."""
    needs_set: bool


class RaftMessages(msgspec.Struct, frozen=True, array_like=True, tag=4):
    shard: ShardId
    messages: tuple[Message, ...]


class ForwardWrite(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A command for the leader of `shard`; never forwarded again (hop limit 1)."""

    id: RequestId
    shard: ShardId
    command: bytes
    identified: bool
    timeout_ms: Annotated[int, Meta(ge=0)]


class ForwardRead(msgspec.Struct, frozen=True, array_like=True, tag=6):
    id: RequestId
    shard: ShardId
    query: bytes
    consistency: Annotated[str, Meta(max_length=32)]
    timeout_ms: Annotated[int, Meta(ge=0)]


class ForwardReply(msgspec.Struct, frozen=True, array_like=True, tag=7):
    id: RequestId
    error: Code | None
    """A code of `errors.BY_CODE`; then `payload` is empty."""
    fields: dict[str, Any]
    """Facts of the error, its `detail` among them."""
    payload: bytes


class IndexRequest(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """A follower asks for an index at which a linearizable read may be served."""

    id: RequestId
    shard: ShardId


class IndexReply(msgspec.Struct, frozen=True, array_like=True, tag=9):
    id: RequestId
    index: LogIndex
    error: Code | None


class AddressBook(msgspec.Struct, frozen=True, array_like=True, tag=10):
    addresses: tuple[NodeAddress, ...]


class QuarantineNotice(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The sender's replica is damaged: forget what it ever acknowledged."""

    shard: ShardId
    replica: ReplicaId


class StatusRequest(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """Which shards does the receiver lead, and how are their replicas?"""

    id: RequestId


class LedShard(msgspec.Struct, frozen=True, array_like=True):
    """One shard as its leader knows it."""

    shard: ShardId
    term: Term
    leader: ReplicaId
    voters: tuple[ReplicaId, ...]
    learners: tuple[ReplicaId, ...]
    matches: tuple[tuple[ReplicaId, LogIndex], ...]
    applied: LogIndex
    keys: int


class StatusReply(msgspec.Struct, frozen=True, array_like=True, tag=20):
    id: RequestId
    led: tuple[LedShard, ...]
    damaged: tuple[tuple[ShardId, ReplicaId], ...]
    """The sender's quarantined replicas."""
    hosted: tuple[tuple[ShardId, ReplicaId], ...] | None = None
    """The sender's living replicas; None while it does not host any yet."""


class TransferRequest(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Hand the leadership of `shard` to `to`; answered with a ForwardReply."""

    id: RequestId
    shard: ShardId
    to: Name


class RebuildRequest(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """Replace a lost or damaged replica of a shard that the receiver leads by a new incarnation on the same
    node; asking twice is asking once. Answered with a RebuildReply."""

    id: RequestId
    shard: ShardId
    lost: ReplicaId


class RebuildReply(msgspec.Struct, frozen=True, array_like=True, tag=23):
    id: RequestId
    replica: ReplicaId | None
    """The incarnation that comes in its place; None: refused."""
    error: Code | None
    """A code of `errors.BY_CODE`."""
    detail: Text


class CreateReplica(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """The shard's leader has made `replica`, of the receiving node, a learner: host it, empty."""

    shard: ShardId
    replica: ReplicaId


class CreateRefused(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """The sender never made `replica`: a healthy one of the shard lives there."""

    shard: ShardId
    replica: ReplicaId


class DestroyReplica(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """A configuration without `replica`, but with a later incarnation of its node, was committed."""

    shard: ShardId
    replica: ReplicaId


class ForwardWait(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """A read that may wait for its answer (`store.waits`); answered with a ForwardReply."""

    id: RequestId
    shard: ShardId
    query: bytes
    wait_ms: Annotated[int, Meta(ge=0)]
    """How long before it is answered with what is there."""
    timeout_ms: Annotated[int, Meta(ge=0)]


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Why a Hello was not accepted; the link is closed after it."""

    reason: Text


PeerMessage = (
    Hello
    | Beat
    | BeatReply
    | RaftMessages
    | ForwardWrite
    | ForwardRead
    | ForwardReply
    | IndexRequest
    | IndexReply
    | AddressBook
    | QuarantineNotice
    | BootState
    | SnapshotManifestRequest
    | SnapshotManifest
    | SnapshotChunkRequest
    | SnapshotChunk
    | SnapshotGone
    | Refusal
    | StatusRequest
    | StatusReply
    | TransferRequest
    | RebuildRequest
    | RebuildReply
    | CreateReplica
    | CreateRefused
    | DestroyReplica
    | ForwardWait
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[PeerMessage]).decode
_crc: Callable[[bytes], int] = google_crc32c.value


def encode(messages: Sequence[PeerMessage]) -> bytes:
    """Build one frame.

    Raises:
        PeerProtocolError: the frame would be larger than FRAME_BYTES_MAX; nothing was sent.
    """
    body = _encode(messages)
    if len(body) > FRAME_BYTES_MAX - 4:
        raise PeerProtocolError(f"frame of {len(body) + 4} bytes exceeds {FRAME_BYTES_MAX}")
    return _crc(body).to_bytes(4, "big") + body


def decode(frame: bytes) -> list[PeerMessage]:
    """Check and open one frame.

    Raises:
        PeerProtocolError: too short, too long, damaged, or not an array of known messages.
    """
    if not 5 <= len(frame) <= FRAME_BYTES_MAX:
        raise PeerProtocolError(f"frame of {len(frame)} bytes, expected 5 to {FRAME_BYTES_MAX}")
    body = frame[4:]
    if _crc(body) != int.from_bytes(frame[:4], "big"):
        raise PeerProtocolError("checksum of the frame does not match")
    try:
        return _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerProtocolError(f"malformed frame: {error}") from error
