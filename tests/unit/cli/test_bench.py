"""bench: the figures, the checks, the load."""

import json

import pytest

from kvstore.cli.load import KEY_FORMAT
from tests.support.fake_cluster import FakeCluster, problem
from tests.unit.cli.conftest import Run

QUICK = ("-c", "4", "-n", "60", "--keys", "20")


@pytest.mark.parametrize("operation", ["put", "get", "mixed", "batch"])
def test_every_operation_is_measured(run: Run, cluster: FakeCluster, operation: str) -> None:
    done = run("bench", operation, *QUICK, "--batch", "5", "-o", "json")
    assert done.exit_code == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["requests"] == 60
    assert figures["operations"] == (300 if operation == "batch" else 60)
    assert figures["errors"] == 0
    latency = figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert sum(row["count"] for row in figures["histogram_us"]) == 60
    assert {key[: len("bench/")] for key in cluster.keys} == {b"bench/"}


def test_values_have_the_size_asked_for(run: Run, cluster: FakeCluster) -> None:
    run("bench", "put", *QUICK, "--value-bytes", "100")
    assert {len(stored.value) for stored in cluster.keys.values()} == {100}


def test_direct_load_goes_to_each_keys_leader(run: Run, cluster: FakeCluster) -> None:
    assert run("bench", "put", *QUICK, "--direct").exit_code == 0
    for seen in cluster.requests("PUT"):
        key = seen.target.removeprefix("/v1/kv/").replace("%2F", "/").encode()
        assert seen.node == cluster.leaders[cluster.map.shard_of(key)]


def test_reading_writes_the_keys_first(run: Run, cluster: FakeCluster) -> None:
    assert run("bench", "get", *QUICK).exit_code == 0
    assert sorted(cluster.keys) == [(KEY_FORMAT % number).encode() for number in range(20)]


def test_a_check_that_fails_exits_7_behind_the_figures(run: Run) -> None:
    done = run("bench", "put", *QUICK, "--check", "p99<1us", "--check", "errors<1", "-o", "json")
    assert done.exit_code == 7
    assert "p99<1us" in done.stderr
    assert "errors<1" not in done.stderr
    assert json.loads(done.stdout)["requests"] == 60


def test_checks_that_hold_exit_0(run: Run) -> None:
    checks = (
        "--check",
        "p99<20s",
        "--check",
        "throughput>1",
        "--check",
        "errors<=0",
        "--check",
        "max >= 1us",
    )
    assert run("bench", "put", *QUICK, *checks).exit_code == 0


@pytest.mark.parametrize("check", ["p98<1ms", "p99", "p99<1", "throughput<1ms", "p99=1ms", "p99<1.2.3ms", ""])
def test_a_check_that_is_none_is_wrong_usage(run: Run, check: str) -> None:
    assert run("bench", "put", *QUICK, "--check", check).exit_code == 2


def test_errors_are_counted_by_kind_and_never_as_latency(run: Run, cluster: FakeCluster) -> None:
    count = iter(range(1000))
    cluster.before = lambda seen: problem(503, "no-leader") if next(count) % 2 else None
    figures = json.loads(run("bench", "put", *QUICK, "-o", "json").stdout)
    assert figures["errors_by_kind"] == {"HTTP 503": 30}
    assert figures["requests"] == 30


def test_no_answer_at_all_exits_6(run: Run, cluster: FakeCluster) -> None:
    for server in cluster.servers:
        server.stop()
    done = run("bench", "put", "-c", "2", "-d", "200ms")
    assert done.exit_code == 6
    assert "refused=" in done.stdout


def test_a_duration_ends_the_load(run: Run) -> None:
    figures = json.loads(run("bench", "put", "-c", "2", "-d", "300ms", "--keys", "5", "-o", "json").stdout)
    assert 0.3 <= figures["seconds"] < 1.0
    assert figures["requests"] > 0


def test_people_see_bars(run: Run) -> None:
    shown = run("bench", "put", *QUICK).stdout
    assert "p99" in shown
    assert "###" in shown


def test_a_duration_and_a_count_exclude_each_other(run: Run) -> None:
    assert run("bench", "-n", "1", "-d", "1s").exit_code == 2
