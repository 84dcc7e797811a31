"""All metrics of a node, by name. Counting is an attribute's `+=`; the text is made when it is asked for.

prometheus_client's own counters take a lock and a float at each increment. Here the hot path touches
plain ints, and gauges are computed by callbacks at the scrape. Names and units follow Prometheus'
conventions: base units, `_total`, `_seconds`, `_bytes`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

CONTENT_TYPE = b"Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"

REQUEST_BOUNDS_S = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 5, 10)
DISK_BOUNDS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)


class Number:
    """One labelled counter or gauge: read and write `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """Counts of observations up to each bound, the last one without bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)


Cell = TypeVar("Cell", bound=Number | Histogram)


class Family(Generic[Cell]):
    """A metric and its labelled cells. Callers on hot paths keep the cell, not the labels."""

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str], make: Callable[[], Cell], kind: str
    ) -> None:
        self.name = name
        self.help = help_text
        self.label_names = tuple(labels)
        self.kind = kind
        self.cells: dict[tuple[str, ...], Cell] = {}
        self._make = make

    def of(self, *labels: str) -> Cell:
        """The cell of these label values, made on first use."""
        assert len(labels) == len(self.label_names), f"{self.name} has labels {self.label_names}"
        cell = self.cells.get(labels)
        if cell is None:
            cell = self.cells[labels] = self._make()
        return cell

    def export(self) -> Metric:
        if self.kind == "histogram":
            return self._export_histogram()
        kind = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        metric: Metric = kind(self.name.removesuffix("_total"), self.help, labels=self.label_names)
        if self.kind == "gauge":
            metric = GaugeMetricFamily(self.name, self.help, labels=self.label_names)
        for labels, cell in self.cells.items():
            assert isinstance(cell, Number)
            metric.add_metric(labels, cell.value)  # type: ignore[attr-defined]
        return metric

    def _export_histogram(self) -> Metric:
        metric = HistogramMetricFamily(self.name, self.help, labels=self.label_names)
        for labels, cell in self.cells.items():
            assert isinstance(cell, Histogram)
            buckets: list[tuple[str, float]] = []
            running = 0
            for bound, count in zip((*map(str, map(float, cell.bounds)), "+Inf"), cell.counts, strict=True):
                running += count
                buckets.append((bound, running))
            metric.add_metric(labels, buckets, cell.total)
        return metric


class _RequestCell:
    __slots__ = ("histogram", "requests")

    def __init__(self, histogram: Histogram, requests: Number) -> None:
        self.histogram = histogram
        self.requests = requests


class NodeMetrics:
    """The node's families. Parts of the node set what is theirs; `on_scrape` callbacks fill gauges."""

    def __init__(self, version: str = "0", node: str = "") -> None:
        self._families: list[Family[Number] | Family[Histogram]] = []
        self._scrapers: list[Callable[[], None]] = []
        self._request_cells: dict[tuple[str, str, int], _RequestCell] = {}
        self._add_api()
        self._add_watches()
        self._add_raft()
        self._add_disk()
        self._add_process()
        self.build_info.of(version, node).value = 1

    def _add_api(self) -> None:
        self.http_request_duration_seconds = self._histogram(
            "kv_http_request_duration_seconds",
            "Seconds from a complete request to its answer.",
            REQUEST_BOUNDS_S,
            ("method", "route", "code"),
        )
        self.requests = self._counter(
            "kv_requests_total",
            "Operations by kind and status; those inside batches count too.",
            ("op", "code"),
        )
        self.lock_waits = self._gauge("kv_lock_waits", "Requests for locks and elections that wait here.")
        self.http_connections = self._gauge("kv_http_connections", "Open client connections.")
        self.http_connections_dropped = self._counter(
            "kv_http_connections_dropped_total", "Client connections closed by a deadline or a cap."
        )
        self.http_refused = self._counter(
            "kv_http_refused_total", "Requests that could not be read: malformed, too large or too slow."
        )

    def _add_watches(self) -> None:
        self.watchers = self._gauge("kv_watch_watchers", "Open watches.")
        self.watchers_behind = self._gauge(
            "kv_watch_behind", "Places in shards where a watch reads the log because it is not up to date."
        )
        self.watch_lag_revisions = self._gauge(
            "kv_watch_lag_revisions",
            "Revisions applied here that feeds have not told yet, the worst shard's.",
        )
        self.watch_events = self._counter("kv_watch_events_total", "Changes told, once for each watch.")
        self.watch_pauses = self._counter(
            "kv_watch_pauses_total", "Times that a watch left its feeds because its reader was slow."
        )
        self.watch_compacted = self._counter(
            "kv_watch_compacted_total", "Watches that ended because their history was gone."
        )
        self.waiting_reads = self._gauge("kv_waiting_reads", "Long polls and other reads that wait.")

    def _add_raft(self) -> None:
        shard = ("shard",)
        self.raft_has_leader = self._gauge(
            "kv_raft_has_leader", "1 if the shard's leader is known here.", shard
        )
        self.raft_is_leader = self._gauge("kv_raft_is_leader", "1 if this node leads the shard.", shard)
        self.raft_term = self._gauge("kv_raft_term", "Raft term of the local replica.", shard)
        self.raft_leader_changes = self._counter("kv_raft_leader_changes_total", "Leader changes seen.")
        self.raft_proposals_committed = self._counter(
            "kv_raft_proposals_committed_total", "Commands committed."
        )
        self.raft_proposals_applied = self._counter("kv_raft_proposals_applied_total", "Entries applied.")
        self.raft_proposals_failed = self._counter(
            "kv_raft_proposals_failed_total", "Commands whose entry was replaced or whose leader was deposed."
        )
        self.raft_proposals_pending = self._gauge("kv_raft_proposals_pending", "Commands waiting here.")
        self.raft_replication_lag_entries = self._gauge(
            "kv_raft_replication_lag_entries",
            "Entries a peer is behind its leader on this node.",
            ("shard", "peer"),
        )
        self.commit_duration_seconds = self._histogram(
            "kv_commit_duration_seconds", "Seconds from proposal to commit.", REQUEST_BOUNDS_S
        )
        self.apply_duration_seconds = self._histogram(
            "kv_apply_duration_seconds", "Seconds to apply one batch of entries.", DISK_BOUNDS_S
        )
        self.peer_round_trip_seconds = self._histogram(
            "kv_peer_round_trip_seconds", "Seconds from a beat to its answer.", DISK_BOUNDS_S, ("peer",)
        )
        self.peer_frames_dropped = self._counter(
            "kv_peer_frames_dropped_total", "Frames dropped because a link was down or full.", ("peer",)
        )
        self.txn_intents = self._gauge(
            "kv_txn_intents", "Transactions prepared on the local replica and not decided.", shard
        )
        self.txn_oldest_intent_seconds = self._gauge(
            "kv_txn_oldest_intent_seconds", "Age of the oldest of them; 0: there is none.", shard
        )
        self.txn_held_requests = self._gauge(
            "kv_txn_held_requests", "Requests that wait here for transactions to be decided.", shard
        )
        self.txn_recovered = self._counter(
            "kv_txn_recovered_total", "Transactions that this node ended in their coordinator's place."
        )
        self.quarantined = self._gauge(
            "kv_quarantined_replicas", "Replicas here that are out of every quorum."
        )

    def _add_disk(self) -> None:
        self.wal_fsync_duration_seconds = self._histogram(
            "kv_wal_fsync_duration_seconds", "Seconds of one write and sync of the log.", DISK_BOUNDS_S
        )
        self.wal_fsyncs = self._counter("kv_wal_fsyncs_total", "Syncs of the log.")
        self.wal_bytes = self._counter("kv_wal_written_bytes_total", "Bytes written to the log.")
        self.wal_segments = self._gauge("kv_wal_segments", "Segment files of the log.")
        self.storage_size_bytes = self._gauge("kv_storage_size_bytes", "Bytes of a tablet.", ("shard",))
        self.keys = self._gauge("kv_keys", "Keys of the local replica.", ("shard",))
        self.disk_free_bytes = self._gauge("kv_disk_free_bytes", "Free bytes where the data directory is.")

    def _add_process(self) -> None:
        self.event_loop_lag_seconds = self._gauge(
            "kv_event_loop_lag_seconds", "Longest delay of a timer since the last scrape."
        )
        self.gc_pause_seconds = self._counter(
            "kv_gc_pause_seconds_total", "Seconds spent collecting garbage."
        )
        self.build_info = self._gauge("kv_build_info", "Always 1.", ("version", "node"))

    def _counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Family[Number]:
        return self._keep(Family(name, help_text, labels, Number, "counter"))

    def _gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Family[Number]:
        return self._keep(Family(name, help_text, labels, Number, "gauge"))

    def _keep(self, family: Family[Number]) -> Family[Number]:
        self._families.append(family)
        if not family.label_names:
            family.of()
        return family

    def _histogram(
        self, name: str, help_text: str, bounds: Sequence[float], labels: Sequence[str] = ()
    ) -> Family[Histogram]:
        family = Family(name, help_text, labels, lambda: Histogram(bounds), "histogram")
        self._families.append(family)
        if not labels:
            family.of()
        return family

    # --- counting ---------------------------------------------------------------------------------

    def observe_request(self, op: str, method: str, status: int, seconds: float) -> None:
        """One answered request. `op` is the route's name in the table of routes."""
        cell = self._request_cells.get((op, method, status))
        if cell is None:
            code = str(status)
            cell = _RequestCell(
                self.http_request_duration_seconds.of(method, op, code), self.requests.of(op, code)
            )
            self._request_cells[op, method, status] = cell
        cell.requests.value += 1
        cell.histogram.observe(seconds)

    # --- the scrape -------------------------------------------------------------------------------

    def on_scrape(self, fill: Callable[[], None]) -> None:
        """Call `fill` before each export, to set gauges and copy counters kept elsewhere."""
        self._scrapers.append(fill)

    def collect(self) -> Iterable[Metric]:
        """prometheus_client's Collector protocol."""
        for fill in self._scrapers:
            fill()
        return [family.export() for family in self._families]

    def exposition(self) -> bytes:
        """The text format, complete."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)
