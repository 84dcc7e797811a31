"""Messages that carry a checkpoint to a follower. The follower pulls; see `node/snapshots.py`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from kvstore.raft.messages import SnapshotMeta
from kvstore.types import LogIndex, ShardId, Term

FILE_COUNT_MAX = 65_536
CHUNK_BYTES_MAX = 8 << 20

Id16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
Crc = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]


class SnapshotFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a checkpoint. A directory is flat, so a name never contains a separator."""

    name: Name
    bytes: Annotated[int, Meta(ge=0)]
    chunk_crcs: tuple[Crc, ...]
    """CRC32C of each chunk in order; all chunks but the last have the manifest's `chunk_bytes`."""


class SnapshotManifestRequest(msgspec.Struct, frozen=True, array_like=True, tag=13):
    shard: ShardId
    index: LogIndex
    term: Term


class SnapshotManifest(msgspec.Struct, frozen=True, array_like=True, tag=14):
    shard: ShardId
    snapshot: Id16
    meta: SnapshotMeta
    chunk_bytes: Annotated[int, Meta(ge=1, le=CHUNK_BYTES_MAX)]
    files: Annotated[tuple[SnapshotFile, ...], Meta(max_length=FILE_COUNT_MAX)]


class SnapshotChunkRequest(msgspec.Struct, frozen=True, array_like=True, tag=15):
    shard: ShardId
    snapshot: Id16
    file: Annotated[int, Meta(ge=0, lt=FILE_COUNT_MAX)]
    chunk: Annotated[int, Meta(ge=0)]


class SnapshotChunk(msgspec.Struct, frozen=True, array_like=True, tag=16):
    shard: ShardId
    snapshot: Id16
    file: Annotated[int, Meta(ge=0, lt=FILE_COUNT_MAX)]
    chunk: Annotated[int, Meta(ge=0)]
    content: Annotated[bytes, Meta(max_length=CHUNK_BYTES_MAX)]


class SnapshotGone(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """The sender no longer has what was asked for; wait for the leader's next offer."""

    shard: ShardId
    index: LogIndex
    term: Term
    """Of the snapshot that is gone, as the request named it; 0, 0 when it was named by its id."""
    snapshot: bytes
