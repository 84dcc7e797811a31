"""cluster status, node ls, shard ls, shard transfer, explain."""

import json

from tests.support.fake_cluster import Answer, FakeCluster, Seen
from tests.unit.cli.conftest import Run


def test_the_status_is_facts_for_people_and_a_document_for_programs(run: Run) -> None:
    shown = run("cluster", "status").stdout
    assert "name                   fake\n" in shown
    assert "shards without leader  -\n" in shown
    assert json.loads(run("cluster", "status", "-o", "json").stdout)["health"] == "ok"


def test_nodes_are_listed(run: Run, cluster: FakeCluster) -> None:
    lines = run("node", "ls").stdout.splitlines()
    assert lines[0].split()[:2] == ["ID", "CLIENT"]
    assert [line.split()[1] for line in lines[1:]] == cluster.endpoints
    assert [node["id"] for node in json.loads(run("node", "ls", "-o", "json").stdout)["nodes"]] == [
        "n1",
        "n2",
        "n3",
    ]


def test_shards_are_listed_with_their_leaders_marked(run: Run) -> None:
    lines = run("shard", "ls").stdout.splitlines()
    assert len(lines) == 5
    assert "n1*" in lines[1]
    assert len(run("shard", "ls", "--leader", "n1", "-o", "jsonl").stdout.splitlines()) == 2


def test_a_transfer_waits_until_the_target_leads(run: Run, cluster: FakeCluster) -> None:
    done = run("shard", "transfer", "1", "--to", "n3", "-o", "json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"shard": 1, "leader": "n3", "requested": "n3"}
    assert cluster.leaders[1] == "n3"


def test_a_transfer_that_does_not_happen_exits_6_and_names_the_leader(run: Run, cluster: FakeCluster) -> None:
    def accept(seen: Seen) -> Answer | None:
        return Answer(202, {}) if seen.method == "POST" else None

    cluster.before = accept
    late = run("shard", "transfer", "1", "--to", "n3", "--timeout", "500ms")
    assert late.exit_code == 6
    assert "still led by n2" in late.stderr


def test_a_key_is_explained(run: Run, cluster: FakeCluster) -> None:
    shown = json.loads(run("explain", "user/1", "-o", "json").stdout)
    assert shown["shard"] == cluster.map.shard_of(b"user/1")
    assert "leader" in run("explain", "user/1").stdout


def test_an_answer_of_another_shape_is_a_failure_and_no_traceback(run: Run, cluster: FakeCluster) -> None:
    cluster.before = lambda seen: Answer(200, ["odd"])
    for command in (("cluster", "status"), ("node", "ls"), ("shard", "ls"), ("explain", "a")):
        failed = run(*command)
        assert failed.exit_code == 1
        assert "expected" in failed.stderr
