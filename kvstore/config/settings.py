"""Every setting of a node: type, bounds, default, unit and reason."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from kvstore.config.errors import ConfigError
from kvstore.types import META_SHARD, NodeId

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

Count = Annotated[int, Meta(ge=1, le=1 << 31)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 50)]
Millis = Annotated[int, Meta(ge=1, le=3_600_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400 * 30)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Address = Annotated[str, Meta(max_length=300)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields carry their unit last in the name and their reason as description (`describe_settings`)."""


class NodeConfig(Section, frozen=True):
    """One seed node. `client` and `peer` are the addresses that others use to reach it."""

    id: Name
    client: Address
    peer: Address
    resp: Address | None = None
    host: Annotated[str, Meta(max_length=255)] = ""
    """Machine the node runs on; no two replicas of a shard share one where that can be helped."""
    zone: Annotated[str, Meta(max_length=255)] = ""
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    bind: str | None = None
    """IP address to listen on where it differs from the announced one, for both listeners."""


class Limits(Section, frozen=True):
    key_bytes_max: Annotated[
        int, Meta(ge=1, le=16 * KIB, description="bytes; a key travels in a request line and in every index")
    ] = 4 * KIB
    value_bytes_max: Annotated[
        int,
        Meta(ge=1, le=15 * MIB, description="bytes; a value is held whole in memory and is one log entry"),
    ] = MIB
    content_type_bytes_max: Annotated[Count, Meta(description="bytes; stored with each value")] = 256
    batch_ops_max: Annotated[Count, Meta(description="operations in one batch request")] = 10_000
    batch_bytes_max: Annotated[
        int,
        Meta(ge=1, le=15 * MIB, description="bytes of a batch request's body; fits one 16 MiB peer frame"),
    ] = 8 * MIB
    header_bytes_max: Annotated[
        int,
        Meta(ge=KIB, le=MIB, description="bytes of a request's head; a key grows threefold percent-encoded"),
    ] = 32 * KIB
    ttl_ms_min: Annotated[
        int, Meta(ge=1, le=3_600_000, description="milliseconds; shortest time to live of a key or lease")
    ] = 100
    ttl_ms_max: Annotated[
        int, Meta(ge=1000, le=1 << 50, description="milliseconds; longest time to live of a key or lease")
    ] = 315_360_000_000
    connections_max: Annotated[
        Count, Meta(description="client connections; at the cap the slowest unfinished request goes first")
    ] = 16_384
    connections_per_address_max: Annotated[
        Count, Meta(description="client connections from one address, so that one caller leaves room")
    ] = 14_336
    shard_queue_ops_max: Annotated[
        Count, Meta(description="commands a shard holds before it answers 429; bounds the wait of the last")
    ] = 20_000
    shard_queue_bytes_max: Annotated[
        Bytes, Meta(description="bytes a shard holds before it answers 429; must take one whole batch")
    ] = 32 * MIB
    entry_commands_max: Annotated[
        Count, Meta(description="commands in one log entry; bounds how long one apply holds the loop")
    ] = 1000
    entry_bytes_max: Annotated[
        Bytes, Meta(description="bytes of one log entry; one larger command travels alone")
    ] = 128 * KIB
    txn_bytes_max: Annotated[Bytes, Meta(description="bytes of a transaction's body")] = MIB
    txn_ops_max: Annotated[
        Count, Meta(description="compares and operations of one transaction; bounds what it locks")
    ] = 1024
    txn_shards_max: Annotated[
        int, Meta(ge=1, le=64, description="shards that one transaction may span; each adds a vote")
    ] = 64
    scan_page_items: Annotated[Count, Meta(description="items of one scan answer; more by cursor")] = 1000
    scan_page_bytes: Annotated[Bytes, Meta(description="bytes of keys and values of one scan answer")] = MIB
    watchers_max: Annotated[Count, Meta(description="open watches on this node before it answers 429")] = (
        12_000
    )
    waiting_reads_max: Annotated[
        Count, Meta(description="long polls and other waiting reads on this node before it answers 429")
    ] = 10_000
    peer_outbox_bytes_max: Annotated[
        Bytes, Meta(description="bytes waiting for one peer; past it frames are dropped, Raft sends again")
    ] = 32 * MIB


class Timeouts(Section, frozen=True):
    request_s: Annotated[Seconds, Meta(description="seconds; deadline of a request without KV-Timeout")] = 5.0
    tick_ms: Annotated[
        int, Meta(ge=5, le=1000, description="milliseconds; the grain of every Raft timeout")
    ] = 50
    heartbeat_ms: Annotated[Millis, Meta(description="milliseconds between a leader's heartbeats")] = 100
    election_ms_min: Annotated[
        Millis,
        Meta(description="milliseconds without a leader before anyone campaigns; the same on all nodes"),
    ] = 1000
    election_ms_max: Annotated[
        Millis, Meta(description="milliseconds; drawn between min and max, so that votes rarely split")
    ] = 2000
    lease_ms: Annotated[
        Millis, Meta(description="milliseconds a leader may answer lease reads alone; below election_ms_min")
    ] = 700
    header_s: Annotated[Seconds, Meta(description="seconds for the whole head of a request")] = 10.0
    body_s: Annotated[Seconds, Meta(description="seconds for the whole body, however it trickles")] = 30.0
    idle_s: Annotated[Seconds, Meta(description="seconds a connection may rest between requests")] = 75.0
    stop_s: Annotated[Seconds, Meta(description="seconds that running requests get at a clean stop")] = 10.0
    disk_stall_ms: Annotated[
        Millis, Meta(description="milliseconds of one unfinished log write before /readyz says 503")
    ] = 1000
    disk_dead_s: Annotated[
        Seconds, Meta(description="seconds of one unfinished log write before this node exits")
    ] = 30.0


class History(Section, frozen=True):
    revisions: Annotated[
        int, Meta(ge=0, le=1 << 40, description="revisions per shard whose old versions stay readable")
    ] = 100_000
    minutes: Annotated[
        float,
        Meta(ge=0, le=525_600, description="minutes of the shard clock that old versions stay readable"),
    ] = 10.0


class Sessions(Section, frozen=True):
    lifetime_s: Annotated[
        Seconds, Meta(description="seconds that the result of an identified write is kept for its retries")
    ] = 600.0
    window: Annotated[Count, Meta(description="sequence numbers of one session that may be open")] = 1024
    bytes_max: Annotated[
        Bytes, Meta(description="bytes of kept results per shard; past it new sessions get 429")
    ] = 64 * MIB


class Storage(Section, frozen=True):
    engine: Annotated[
        Literal["rocksdb", "memory"], Meta(description="memory: for tests and throw-away clusters")
    ] = "rocksdb"
    wal_segment_bytes: Annotated[
        int, Meta(ge=64 * KIB, le=GIB, description="bytes of one file of the log, preallocated")
    ] = 64 * MIB
    inline_sync_ms: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="milliseconds; while log syncs are faster, a small one runs on the loop; 0 never",
        ),
    ] = 1.0
    block_cache_bytes: Annotated[Bytes, Meta(description="bytes of read cache for all tablets")] = 64 * MIB
    write_buffer_bytes: Annotated[
        Bytes, Meta(description="bytes of unflushed writes for all tablets; more makes restarts slower")
    ] = 64 * MIB
    free_bytes_min: Annotated[
        int, Meta(ge=0, le=1 << 50, description="bytes of free disk; below it writes that grow get 507")
    ] = 256 * MIB
    reserve_bytes: Annotated[
        int, Meta(ge=MIB, le=GIB, description="bytes the log keeps aside to tidy up when the disk is full")
    ] = 8 * MIB


class Snapshot(Section, frozen=True):
    bytes_per_s: Annotated[
        Bytes, Meta(description="bytes a second that one node sends, so that requests keep their share")
    ] = 64 * MIB
    chunk_bytes: Annotated[
        int, Meta(ge=KIB, le=8 * MIB, description="bytes of one piece; a lost one is sent again")
    ] = 256 * KIB
    keep_s: Annotated[Seconds, Meta(description="seconds an unused snapshot waits for its receiver")] = 120.0


class Config(Section, frozen=True):
    cluster: Name
    nodes: tuple[NodeConfig, ...]
    replication: Annotated[int, Meta(ge=1, le=9, description="replicas per shard, odd")] = 3
    shards: Annotated[int, Meta(ge=1, le=4096, description="power of two, fixed at the first boot")] = 16
    virtual_nodes: Annotated[
        int, Meta(ge=1, le=4096, description="points on the ring per unit of weight; more spread more evenly")
    ] = 64
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    history: History = History()
    sessions: Sessions = Sessions()
    storage: Storage = Storage()
    snapshot: Snapshot = Snapshot()
    tls: Any = None
    """Part of the contract, not of this version: refused when set."""
    auth: Any = None
    file: str = "cluster.yaml"
    """Where it came from, for messages; not a setting."""

    def node(self, node: str) -> NodeConfig:
        """Raises `ConfigError` that names the known ids."""
        for each in self.nodes:
            if each.id == node:
                return each
        known = ", ".join(each.id for each in self.nodes)
        raise ConfigError(self.file, "nodes", f"expected a node with id {node!r}, found {known}")

    def node_ids(self) -> tuple[NodeId, ...]:
        return tuple(NodeId(each.id) for each in self.nodes)

    def warnings(self) -> list[str]:
        """What works but is probably not meant, one sentence each."""
        found = []
        hosts = {each.host for each in self.nodes}
        if len(hosts) < self.replication:
            found.append(
                f"{self.file}: nodes: {len(hosts)} host(s) for replication {self.replication}: losing one "
                "machine can lose a quorum; set `host` where nodes run on machines of their own"
            )
        found += [
            f"{self.file}: nodes[{number}].resp: this version does not serve RESP; nothing listens there"
            for number, each in enumerate(self.nodes)
            if each.resp is not None
        ]
        return found


assert META_SHARD > 4096, "a data shard must never have the meta shard's number"

SECTIONS: dict[str, type[Section]] = {
    "limits": Limits,
    "timeouts": Timeouts,
    "history": History,
    "sessions": Sessions,
    "storage": Storage,
    "snapshot": Snapshot,
}
SINGLE_VALUES = ("cluster", "replication", "shards", "virtual_nodes")


def describe_settings() -> Iterator[tuple[str, Any, str]]:
    """Path, default and description (unit first) of every setting of the sections."""
    for section, struct in SECTIONS.items():
        hints = get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            texts = [each.description for each in hints[field.name].__metadata__ if each.description]
            yield f"{section}.{field.name}", field.default, texts[-1]
