"""txn, watch, lease, lock, elect, against a fake cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.client import Client
from tests.support.fake_cluster import Answer, Drop, FakeCluster, Seen
from tests.unit.cli.conftest import Run

ROOT = Path(__file__).parents[3]
SHOW_FENCE = "echo $KVCTL_LOCK$KVCTL_ELECTION $KVCTL_FENCE"


def start(cluster: FakeCluster, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "kvstore.cli", "--endpoints", ",".join(cluster.endpoints), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


# txn


def test_a_transaction_takes_the_branch_of_its_compares(run: Run) -> None:
    taken = run("txn", "--if", "job absent", "--then", "put job me", "--then", "get job", "--else", "get job")
    assert (taken.exit_code, taken.stdout) == (0, "me\n")
    late = run("txn", "--if", "job absent", "--then", "put job you", "--else", "get job")
    assert (late.exit_code, late.stdout) == (4, "me\n")


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        ("a.value == x y", True), ("a.value = x y", True), ("a.value != x y", False), ("a.revision==1", True),
        ("a.version >= 2", False), ("a.version<2", True), ("a.create_revision > 0", True), ("a exists", True),
        ("a absent", False), ("a.b.value == 1", False), ("nope.revision == 0", True),
    ],
)  # fmt: skip
def test_every_form_of_a_compare_is_understood(run: Run, compare: str, holds: bool) -> None:
    run("put", "a", "x y")
    assert run("txn", "--if", compare, "--then", "incr n").exit_code == (0 if holds else 4)


def test_operations_of_a_transaction_take_quotes_options_and_numbers(run: Run, cluster: FakeCluster) -> None:
    done = run("txn", "--then", "put 'a b' 'x y' --ttl 30s", "--then", "incr n -5", "--then", "del a",
               "-o", "json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["succeeded"] is True
    assert [row["op"] for row in content["results"]] == ["put", "incr", "delete"]
    assert content["results"][1]["value"] == -5
    assert sum(content["revisions"].values()) >= 2
    assert cluster.keys[b"a b"].value == b"x y"


def test_a_transaction_may_come_as_a_document(run: Run, tmp_path: Path) -> None:
    then = [{"op": "put", "key": "a", "value_b64": "/w=="}, {"op": "get", "key": "a"}]
    document = {"if": [{"key": "a", "revision": {"eq": 0}}], "then": then}
    done = run("txn", "-", stdin=json.dumps(document).encode())
    assert (done.exit_code, done.stdout_bytes) == (0, b"\xff\n")
    (tmp_path / "t.json").write_text(json.dumps(document))
    assert run("txn", f"@{tmp_path / 't.json'}").exit_code == 4
    table = run("txn", "--then", "get a", "-o", "table")
    assert "OP" in table.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--if", "a"], ["--if", "a.revision == x"], ["--then", "put a"], ["--then", "frob a"], [],
        ["--then", "put a 1 --what 2"], ["--then", "put a 'b"], ["--then", "incr a b"],
        ["-", "--then", "get a"],
    ],
)  # fmt: skip
def test_a_transaction_that_is_not_understood_is_wrong_usage(
    run: Run, cluster: FakeCluster, arguments: list[str]
) -> None:
    assert run("txn", *arguments).exit_code == 2
    assert not cluster.seen


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"[]",
        b'{"iff":[]}',
        b'{"then":[{"op":"frob","key":"a"}]}',
        b'{"if":[{"key":"a","size":{"eq":1}}]}',
        b'{"then":[{"op":"put","key":"a"}]}',
    ],
)
def test_a_document_that_is_not_understood_is_wrong_usage(run: Run, document: bytes) -> None:
    assert run("txn", "-", stdin=document).exit_code == 2


# watch


def changes(cluster: FakeCluster) -> None:
    with Client(*cluster.endpoints) as kv:
        kv.put("w/a", "1")
        kv.put("w/b", b"\xff")
        kv.delete("w/a")
        kv.put("other", "x")


def test_changes_are_printed_from_a_position_on(run: Run, cluster: FakeCluster) -> None:
    changes(cluster)
    seen = run("watch", "--prefix", "w/", "--from", "p0", "-n", "3", "--prev", "-o", "jsonl")
    assert seen.exit_code == 0, seen.stderr
    rows = [json.loads(line) for line in seen.stdout.splitlines()]
    assert [(row["type"], row["key"]) for row in rows] == [("put", "w/a"), ("put", "w/b"), ("delete", "w/a")]
    assert rows[1]["value_b64"] == "/w=="
    assert rows[2]["prev"] == {"value": "1"}
    rest = run("watch", "--prefix", "w/", "--from", rows[1]["pos"], "--idle", "0.2s", "-o", "raw")
    assert (rest.exit_code, rest.stdout) == (0, "")
    assert run("watch", "w/b", "--from", "p0", "-n", "1", "-o", "raw").stdout_bytes == b"\xff\n"
    assert "delete" in run("watch", "--prefix", "w/", "--from", "p0", "-n", "3").stdout


def test_a_snapshot_is_printed_first(run: Run, cluster: FakeCluster) -> None:
    changes(cluster)
    seen = run("watch", "--prefix", "w/", "--snapshot", "-n", "1", "-o", "jsonl")
    first, item = (json.loads(line) for line in seen.stdout.splitlines())
    assert (first["type"], first["count"]) == ("resynced", 1)
    assert (item["type"], item["key"]) == ("item", "w/b")


def test_a_command_runs_for_each_change(run: Run, cluster: FakeCluster, tmp_path: Path) -> None:
    changes(cluster)
    command = f'echo "$KVCTL_EVENT $KVCTL_KEY $KVCTL_REVISION $(cat | wc -c)" >> {tmp_path / "seen"}'
    done = run("watch", "--prefix", "w/", "--from", "p0", "-n", "3", "--exec", command)
    assert (done.exit_code, done.stdout) == (0, "")
    lines = [line.split() for line in (tmp_path / "seen").read_text().splitlines()]
    assert [(line[0], line[1], line[3]) for line in lines] == [
        ("put", "w/a", "1"), ("put", "w/b", "1"), ("delete", "w/a", "0")]  # fmt: skip


def test_a_command_that_fails_ends_the_watch_and_says_where_to_go_on(run: Run, cluster: FakeCluster) -> None:
    changes(cluster)
    done = run("watch", "--prefix", "w/", "--from", "p0", "--exec", "exit 9")
    assert done.exit_code == 9
    assert "--from p1" in done.stderr


def test_a_watch_needs_to_know_what_and_a_form_that_flows(run: Run, cluster: FakeCluster) -> None:
    for wrong in ([], ["k", "--prefix", "p"], ["k", "-o", "json"], ["k", "--from", "p0", "--snapshot"]):
        assert run("watch", *wrong).exit_code == 2
    assert not cluster.seen


# lease


def test_a_lease_is_made_shown_renewed_and_ended(run: Run, cluster: FakeCluster) -> None:
    made = run("lease", "grant", "30s", "--id", "mine").stdout.strip()
    assert made == "mine"
    assert run("put", "a", "1", "--lease", "mine").exit_code == 0
    shown = json.loads(run("lease", "get", "mine", "-o", "json").stdout)
    assert shown["keys"] == [{"key": "a"}]
    assert 29_000 < shown["remaining_ms"] <= 30_000 == shown["ttl_ms"]
    assert run("lease", "get", "mine", "-o", "raw").stdout == "a\n"
    assert run("lease", "keepalive", "mine", "--once", "-o", "jsonl").exit_code == 0
    assert run("lease", "ls", "-o", "raw").stdout == "mine\n"
    assert "REMAINING MS" in run("lease", "ls").stdout
    assert run("lease", "revoke", "mine").exit_code == 0
    assert run("get", "a").exit_code == 3
    for command in (["get"], ["revoke"], ["keepalive"]):
        assert run("lease", *command, "mine").exit_code == 3


def test_a_lease_is_kept_until_it_is_gone(run: Run, cluster: FakeCluster) -> None:
    with Client(*cluster.endpoints) as kv:
        lease = kv.grant(2.0)
        ended = threading.Thread(target=lambda: (until(lambda: renewals(cluster) > 1), kv.revoke(lease.id)))
        ended.start()
        assert run("lease", "keepalive", lease.id).exit_code == 3
        ended.join()


def renewals(cluster: FakeCluster) -> int:
    return len([seen for seen in cluster.requests("PUT", "/v1/") if seen.target.endswith("/keepalive")])


def test_a_key_with_a_ttl_goes_by_itself(run: Run, cluster: FakeCluster) -> None:
    run("put", "a", "1", "--ttl", "2s")
    assert 0 < json.loads(run("get", "a", "-o", "json").stdout)["ttl_ms"] <= 2000
    until(lambda: run("get", "a").exit_code == 3)


# lock and elect


def test_a_command_runs_with_the_fence_while_the_lock_is_held(cluster: FakeCluster) -> None:
    fences = []
    for _ in range(2):
        done = start(cluster, "lock", "jobs", "--ttl", "5s", "--", "sh", "-c", SHOW_FENCE)
        out, complaint = done.communicate(timeout=30)
        assert (done.returncode, complaint) == (0, b"")
        name, fence = out.split()
        assert name == b"jobs"
        fences.append(int(fence))
    assert fences[0] < fences[1]
    assert not cluster.coordination.queues["locks/jobs"], "given back"


def test_a_lock_that_is_not_taken_exits_4_and_the_commands_own_code_is_kept(cluster: FakeCluster) -> None:
    with Client(*cluster.endpoints) as kv, kv.lock("jobs"):
        refused = start(cluster, "lock", "jobs", "--wait", "0", "--", "touch", "/nowhere/at/all")
        assert refused.wait(30) == 4
    assert start(cluster, "lock", "jobs", "--", "sh", "-c", "exit 9").wait(30) == 9
    assert start(cluster, "lock", "jobs", "--", "/no/such/command").wait(30) == 1
    assert not cluster.coordination.queues["locks/jobs"]


def test_a_command_is_ended_when_its_lock_is_lost(cluster: FakeCluster) -> None:
    process = start(cluster, "lock", "jobs", "--ttl", "1s", "--", "sh", "-c", "echo ready; exec sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    def refuse(seen: Seen) -> Answer | None:
        raise Drop

    cluster.before = refuse
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"lock jobs was lost" in complaint


def test_a_stubborn_command_is_killed_after_its_grace(cluster: FakeCluster) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    process = start(cluster, "lock", "jobs", "--ttl", "1s", "--grace", "0.2s", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    cluster.coordination.queues["locks/jobs"].clear()
    assert process.wait(30) == 1


def test_signals_are_handed_on_to_the_command_and_the_lock_is_given_back(cluster: FakeCluster) -> None:
    script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    process = start(cluster, "lock", "jobs", "--", "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 7
    assert not cluster.coordination.queues["locks/jobs"]


def test_without_a_command_the_lock_is_held_until_interrupted(cluster: FakeCluster) -> None:
    process = start(cluster, "lock", "jobs", "-o", "jsonl")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["fence"] >= 1
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not cluster.coordination.queues["locks/jobs"]


def test_one_leads_and_others_can_see_who(run: Run, cluster: FakeCluster) -> None:
    assert run("elect", "svc").exit_code == 3
    with Client(*cluster.endpoints) as kv, kv.elect("svc", "me"):
        assert run("elect", "svc").stdout == "me\n"
        shown = json.loads(run("elect", "svc", "-o", "json").stdout)
        assert shown["value"] == "me"
        assert run("elect", "svc", "--observe", "--timeout", "0.3s").stdout == "me\n"
        assert start(cluster, "elect", "svc", "you", "--wait", "0", "--", "true").wait(30) == 4
    led = start(cluster, "elect", "svc", "you", "--", "sh", "-c", SHOW_FENCE)
    out, _ = led.communicate(timeout=30)
    assert out.startswith(b"svc ")
    assert run("elect", "svc", "me", "--observe").exit_code == 2
