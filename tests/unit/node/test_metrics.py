"""Counting and its export."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from kvstore.node.metrics import NodeMetrics


def samples(metrics: NodeMetrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = metrics.exposition().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def test_counters_gauges_and_histograms_are_exported_with_their_names() -> None:
    metrics = NodeMetrics("1.2.3", "n1")
    metrics.wal_fsyncs.of().value += 3
    metrics.raft_is_leader.of("7").value = 1
    for seconds in (0.00005, 0.0003, 100.0):
        metrics.wal_fsync_duration_seconds.of().observe(seconds)
    found = samples(metrics)
    assert found["kv_wal_fsyncs_total", labels()] == 3
    assert found["kv_raft_is_leader", labels(shard="7")] == 1
    assert found["kv_build_info", labels(version="1.2.3", node="n1")] == 1
    assert found["kv_wal_fsync_duration_seconds_bucket", labels(le="0.0001")] == 1
    assert found["kv_wal_fsync_duration_seconds_bucket", labels(le="0.0005")] == 2
    assert found["kv_wal_fsync_duration_seconds_bucket", labels(le="5.0")] == 2
    assert found["kv_wal_fsync_duration_seconds_bucket", labels(le="+Inf")] == 3
    assert found["kv_wal_fsync_duration_seconds_count", labels()] == 3
    assert abs(found["kv_wal_fsync_duration_seconds_sum", labels()] - 100.00035) < 1e-9


def test_metrics_without_labels_are_there_before_anything_happens() -> None:
    found = samples(NodeMetrics())
    for name in ("kv_wal_fsyncs_total", "kv_raft_leader_changes_total", "kv_http_connections"):
        assert found[name, labels()] == 0


def test_gauges_are_filled_at_the_scrape() -> None:
    metrics = NodeMetrics()
    scrapes = 0

    def fill() -> None:
        nonlocal scrapes
        scrapes += 1
        metrics.http_connections.of().value = scrapes

    metrics.on_scrape(fill)
    assert samples(metrics)["kv_http_connections", labels()] == 1
    assert samples(metrics)["kv_http_connections", labels()] == 2


def test_value_on_a_bound_counts_into_its_bucket() -> None:
    metrics = NodeMetrics()
    metrics.wal_fsync_duration_seconds.of().observe(0.001)
    assert samples(metrics)["kv_wal_fsync_duration_seconds_bucket", labels(le="0.001")] == 1


def test_label_values_cannot_break_the_text() -> None:
    metrics = NodeMetrics()
    metrics.observe_request('op"\n', "GET", 200, 0.1)
    assert samples(metrics)["kv_requests_total", labels(op='op"\n', code="200")] == 1
