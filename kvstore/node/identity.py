"""What a data directory is: whose, of which cluster, and how far into its first boot.

One small file, `identity`, written before anything else and only ever replaced in one durable step:
4 bytes `KVID`, CRC32C of the rest (big endian), MessagePack of `Identity` (`docs/data_on_disk.md`).
A directory says "empty" only while it holds nothing else: a node that lost this file but not its log
must not pass for a new one (pitfall 20).
"""

from __future__ import annotations

from typing import Annotated, Final

import google_crc32c
import msgspec
from msgspec import Meta

from kvstore.errors import Corrupt, Fatal
from kvstore.files import Files, Lock, Locked, join, read_atomic
from kvstore.types import NodeId
from kvstore.wire.boot_messages import EMPTY, MEMBER, REMOVED, STAGE_NAMES, Ballot, Id16, Proposal
from kvstore.wire.peer import NodeAddress

FILE: Final = "identity"
LOCK: Final = "lock"
MAGIC: Final = b"KVID"
VERSION: Final = 1

# What may lie in a directory that counts as new: our own lock, a torn first write, a mount point's.
_HARMLESS = {LOCK, FILE + ".tmp", "lost+found"}


class DirectoryRefused(Fatal):
    """This data directory is not this node's to use. The message says whose it is and what to do."""


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """The content of the file. Replaced as a whole with `msgspec.structs.replace`."""

    version: Annotated[int, Meta(ge=1)]
    cluster: str
    node: NodeId
    directory: Id16
    """Random, made with the directory: tells it from what lay at the same path before."""
    stage: Annotated[int, Meta(ge=EMPTY, le=REMOVED)] = EMPTY
    promised: Ballot = Ballot()
    accepted: Proposal | None = None
    """From PROPOSED on: the cluster id and the shards' first configurations."""
    addresses: tuple[NodeAddress, ...] = ()

    @property
    def is_member(self) -> bool:
        return self.stage == MEMBER

    @property
    def cluster_id(self) -> bytes | None:
        """The id of the cluster this node is a member of."""
        return self.accepted.cluster_id if self.stage == MEMBER and self.accepted else None

    def describe(self) -> str:
        known = f", cluster id {self.accepted.cluster_id.hex()}" if self.accepted else ""
        return f"{STAGE_NAMES[self.stage]}, cluster {self.cluster!r}, node {self.node}{known}"


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Identity)


def encode_identity(identity: Identity) -> bytes:
    body = _encoder.encode(identity)
    return MAGIC + int(google_crc32c.value(body)).to_bytes(4, "big") + body


def decode_identity(content: bytes, path: str) -> Identity:
    """Open the file's content.

    Raises:
        Corrupt: damaged. The file was replaced in one step, so no crash explains it.
        DirectoryRefused: written by a newer version.
    """
    body = content[8:]
    checksum = int.from_bytes(content[4:8], "big")
    if content[:4] != MAGIC or not body or int(google_crc32c.value(body)) != checksum:
        raise Corrupt(
            f"{path} is damaged, so this node no longer knows which cluster it belongs to. Restore the "
            "file from a backup, or empty the data directory and replace the node in its cluster"
        )
    try:
        version = msgspec.msgpack.decode(body)[0]
        if version != VERSION:
            raise DirectoryRefused(
                f"{path} has format {version}, this version of the program reads {VERSION}"
            )
        return _decoder.decode(body)
    except (msgspec.MsgspecError, TypeError, LookupError) as error:
        raise Corrupt(f"{path} has a good checksum but is not an identity: {error}") from error


class DataDirectory:
    """A locked data directory and its identity. All methods block."""

    def __init__(self, files: Files, path: str, identity: Identity, lock: Lock) -> None:
        self.path = path
        self.identity = identity
        self._files = files
        self._lock = lock

    @classmethod
    def open(cls, files: Files, path: str, cluster: str, node: NodeId) -> DataDirectory:
        """Lock the directory, make sure that it is ours, give an empty one its id.

        Raises:
            DirectoryRefused: in use, another cluster's or node's, removed, or not empty without identity.
            Corrupt: the identity file is damaged.
        """
        files.mkdirs(path)
        try:
            lock = files.lock(join(path, LOCK))
        except Locked as error:
            raise DirectoryRefused(f"data directory {path} is in use by another process") from error
        try:
            identity = cls._read(files, path, cluster, node)
        except BaseException:
            lock.release()
            raise
        return cls(files, path, identity, lock)

    @classmethod
    def _read(cls, files: Files, path: str, cluster: str, node: NodeId) -> Identity:
        file = join(path, FILE)
        if not files.exists(file):
            strange = [name for name in files.list(path) if name not in _HARMLESS]
            if strange:
                raise DirectoryRefused(
                    f"data directory {path} has no identity but is not empty ({', '.join(strange[:3])}): "
                    "it is not this program's, or its identity file was lost"
                )
            identity = Identity(VERSION, cluster, node, files.entropy(16))
            files.write_atomic(file, encode_identity(identity))
            return identity
        identity = decode_identity(read_atomic(files, file), file)
        if identity.cluster != cluster:
            raise DirectoryRefused(
                f"data directory {path} belongs to cluster {identity.cluster!r}, "
                f"but cluster.yaml names {cluster!r}"
            )
        if identity.node != node:
            raise DirectoryRefused(
                f"data directory {path} belongs to node {identity.node}, but this process is node {node}"
            )
        if identity.stage == REMOVED:
            raise DirectoryRefused(
                f"node {node} was removed from cluster {cluster!r}; data directory {path} keeps its mark. "
                "To come back, start with an empty directory and `--join`"
            )
        return identity

    def save(self, identity: Identity) -> None:
        """Make `identity` durable."""
        self._files.write_atomic(join(self.path, FILE), encode_identity(identity))
        self.identity = identity

    def save_addresses(self, addresses: tuple[NodeAddress, ...]) -> None:
        self.save(msgspec.structs.replace(self.identity, addresses=addresses))

    def mark_removed(self) -> None:
        """The cluster has removed this node: never again mistake the directory for an empty one."""
        self.save(msgspec.structs.replace(self.identity, stage=REMOVED))

    def release(self) -> None:
        self._lock.release()
