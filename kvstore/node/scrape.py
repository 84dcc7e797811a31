"""Fills the node's gauges and counters at each scrape, from numbers that its parts keep anyway."""

from __future__ import annotations

from collections.abc import Callable

from kvstore.node.http_server import HttpServer
from kvstore.node.metrics import NodeMetrics
from kvstore.node.node import Node
from kvstore.node.peer_links import PeerLinks
from kvstore.node.replica import Replica
from kvstore.types import node_of


def scraper(metrics: NodeMetrics, node: Node, links: PeerLinks, http: HttpServer) -> Callable[[], None]:
    """The callback for `NodeMetrics.on_scrape`."""

    def fill() -> None:
        metrics.http_connections.of().value = http.connection_count
        metrics.http_connections_dropped.of().value = http.dropped
        metrics.http_refused.of().value = http.refused
        metrics.wal_fsyncs.of().value = node.wal.sync_count
        metrics.wal_bytes.of().value = node.wal.bytes_written
        metrics.wal_segments.of().value = node.wal.segment_count
        metrics.txn_recovered.of().value = node.recovery.finished
        metrics.quarantined.of().value = len(node.host.damaged)
        metrics.disk_free_bytes.of().value = node.keeper.free_bytes or 0
        metrics.raft_leader_changes.of().value = node.role_changes
        metrics.peer_frames_dropped.of("all").value = links.counters.frames_dropped
        metrics.raft_proposals_pending.of().value = sum(
            len(replica.queue) + len(replica.in_flight) for replica in node.host.replicas.values()
        )
        metrics.raft_proposals_applied.of().value = sum(
            replica.machine.applied for replica in node.host.replicas.values()
        )
        _fill_watches(metrics, node)
        for replica in node.host.replicas.values():
            _fill_replica(metrics, replica)

    return fill


def _fill_watches(metrics: NodeMetrics, node: Node) -> None:
    watches = node.watches
    feeds = watches.feeds.values()
    metrics.watchers.of().value = len(watches.watchers)
    metrics.watchers_behind.of().value = sum(feed.behind_count for feed in feeds)
    metrics.watch_lag_revisions.of().value = max((feed.lag for feed in feeds), default=0)
    metrics.watch_events.of().value = watches.event_count
    metrics.watch_pauses.of().value = watches.paused_count
    metrics.watch_compacted.of().value = watches.compacted_count
    metrics.waiting_reads.of().value = node.router.wait_count


def _fill_replica(metrics: NodeMetrics, replica: Replica) -> None:
    shard, core = str(replica.shard), replica.core
    metrics.raft_has_leader.of(shard).value = core.leader is not None
    metrics.raft_is_leader.of(shard).value = core.is_leader
    metrics.raft_term.of(shard).value = core.term
    intents = replica.machine.intents
    metrics.txn_intents.of(shard).value = intents.prepared_count
    metrics.txn_oldest_intent_seconds.of(shard).value = intents.oldest_s(replica.known_clock_ms)
    metrics.txn_held_requests.of(shard).value = len(replica.held)
    metrics.keys.of(shard).value = replica.machine.key_count
    metrics.storage_size_bytes.of(shard).value = replica.machine.byte_count()
    for peer, progress in core.progress.items():
        if peer != replica.me:
            lag = core.last_index - progress.match
            metrics.raft_replication_lag_entries.of(shard, node_of(peer)).value = lag
