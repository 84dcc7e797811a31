"""shard rebuild: one request, then looking until the new replica votes."""

import json

from tests.support.fake_cluster import Answer, FakeCluster, Seen, problem
from tests.unit.cli.conftest import Run

STARTED = {"shard": 1, "node": "n1", "replica": "n1/2", "role": "learner"}


def rows(*roles: tuple[str, str]) -> Answer:
    return Answer(200, {"id": 1, "replicas": [{"node": node, "role": role} for node, role in roles]})


def test_a_rebuild_waits_until_the_new_replica_votes(run: Run, cluster: FakeCluster) -> None:
    seen_rows = [
        rows(("n1", "quarantined"), ("n1", "learner"), ("n2", "leader")),
        rows(("n1", "learner"), ("n2", "leader")),
        rows(("n1", "follower"), ("n2", "leader")),
    ]
    asked: list[bytes] = []

    def answer(seen: Seen) -> Answer | None:
        if seen.method == "POST":
            assert seen.target == "/v1/shards/1/rebuild"
            asked.append(seen.body)
            return Answer(202, STARTED)
        return seen_rows.pop(0)

    cluster.before = answer
    done = run("shard", "rebuild", "1", "n1", "-o", "json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == STARTED | {"role": "follower"}
    assert [json.loads(body) for body in asked] == [{"node": "n1"}]
    assert seen_rows == []


def test_a_rebuild_that_takes_longer_exits_6_and_says_that_it_goes_on(run: Run, cluster: FakeCluster) -> None:
    def answer(seen: Seen) -> Answer | None:
        return (
            Answer(202, STARTED) if seen.method == "POST" else rows(("n1", "quarantined"), ("n1", "learner"))
        )

    cluster.before = answer
    late = run("shard", "rebuild", "1", "n1", "--timeout", "300ms")
    assert late.exit_code == 6
    assert "still learner after 0.3 s" in late.stderr
    assert "goes on by itself" in late.stderr


def test_a_rebuild_need_not_be_waited_for(run: Run, cluster: FakeCluster) -> None:
    cluster.before = lambda seen: Answer(202, STARTED)
    done = run("shard", "rebuild", "meta", "n1", "--no-wait", "-o", "json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["role"] == "learner"


def test_a_refused_rebuild_says_why(run: Run, cluster: FakeCluster) -> None:
    detail = "n1 holds a healthy replica of shard 1: n1/1"
    cluster.before = lambda seen: problem(400, "invalid-argument", detail=detail)
    refused = run("shard", "rebuild", "1", "n1")
    assert refused.exit_code == 2
    assert detail in refused.stderr


def test_the_help_shows_the_one_command(run: Run) -> None:
    shown = run("shard", "rebuild", "--help").stdout
    assert "kvctl shard rebuild 3 n1" in shown
    assert "rebuild" in run("shard", "--help").stdout
