"""A trace of a simulated cluster, replayed from its lines alone (docs/trace.md)."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import pytest

from kvstore.node.trace import Trace
from kvstore.types import ShardId
from tests.sim.cluster import SimCluster
from tests.sim.world import World

SHARD = ShardId(0)

Line = dict[str, Any]

EVENTS = {
    "init",
    "restart",
    "become_follower",
    "become_candidate",
    "become_leader",
    "send",
    "receive",
    "append",
    "commit",
    "install_snapshot",
    "apply_conf_change",
}


class Replayed:
    """What one replica must look like by the lines read so far."""

    def __init__(self) -> None:
        self.seq = 0
        self.term = 0
        self.term_sent = 0
        """Highest own term that left in a message: it is on disk."""
        self.last_index = 0
        self.terms: dict[int, int] = {}
        """Term of each entry that is known."""

    def restore(self, line: Line) -> None:
        assert line["seq"] == 1
        self.terms = {}
        self.last_index = line["last_index"]
        starts = [*line["log"], [self.last_index + 1, 0]]
        for (first, term), (end, _) in zip(starts, starts[1:], strict=False):
            self.terms |= dict.fromkeys(range(first, end), term)

    def append(self, entries: list[Line]) -> None:
        first = entries[0]["index"]
        assert first <= self.last_index + 1, "a gap in the log"
        for index in range(first, self.last_index + 1):
            self.terms.pop(index, None)
        self.terms |= {entry["index"]: entry["term"] for entry in entries}
        self.last_index = entries[-1]["index"]

    def install(self, line: Line) -> None:
        self.terms = {line["snapshot"]["index"]: line["snapshot"]["term"]}
        self.last_index = line["snapshot"]["index"]


class Replay:
    def __init__(self) -> None:
        self.replicas: dict[tuple[int, str], Replayed] = {}
        self.sent: set[str] = set()
        self.leaders: dict[tuple[int, int], str] = {}
        self.votes: dict[tuple[int, str, int], str] = {}
        self.committed: dict[tuple[int, int], int] = {}
        self.events: Counter[str] = Counter()

    def read(self, line: Line) -> None:
        event = line["event"]
        self.events[event] += 1
        assert line["replica"].split("/")[0] == line["node"]
        replica = self.replicas.setdefault((line["shard"], line["replica"]), Replayed())
        if event in ("init", "restart"):
            replica.restore(line)
            assert line["term"] >= replica.term_sent, "a term that was shown to others is forgotten"
        else:
            assert line["seq"] == replica.seq + 1
            assert line["term"] >= replica.term
        if event == "append":
            replica.append(line["entries"])
        elif event == "install_snapshot":
            replica.install(line)
        replica.seq, replica.term = line["seq"], line["term"]
        assert line["last_index"] == replica.last_index
        assert line["commit"] <= replica.last_index
        check = getattr(self, f"_{event}", None)
        if check is not None:
            check(line, replica)

    def _become_leader(self, line: Line, replica: Replayed) -> None:
        leader = self.leaders.setdefault((line["shard"], line["term"]), line["replica"])
        assert leader == line["replica"]

    def _commit(self, line: Line, replica: Replayed) -> None:
        term = replica.terms[line["commit"]]
        assert self.committed.setdefault((line["shard"], line["commit"]), term) == term

    def _send(self, line: Line, replica: Replayed) -> None:
        message = line["message"]
        assert message["source"] == line["replica"]
        self.sent.add(_key(line))
        if message.get("is_pre_vote"):
            return
        replica.term_sent = max(replica.term_sent, message["term"])
        if message.get("is_granted"):
            voted = (line["shard"], line["replica"], message["term"])
            assert self.votes.setdefault(voted, message["target"]) == message["target"]

    def _receive(self, line: Line, replica: Replayed) -> None:
        assert line["message"]["target"] == line["replica"]
        assert _key(line) in self.sent


def _key(line: Line) -> str:
    return json.dumps([line["shard"], line["message"]], sort_keys=True)


def run(raft_trace: io.BytesIO | None) -> World:
    """Two terms by power loss and one by a cut, with writes in between."""
    world = World(3)
    world.trace = []
    cluster = SimCluster(world, shards=2)
    if raft_trace is not None:
        cluster.observe = lambda name: Trace(name, raft_trace).of
    cluster.start_all()
    assert world.run_while(lambda: not cluster.has_all_leaders(), 20.0)
    for is_cut in (False, True, False):
        write(cluster)
        leader = cluster.leader_of(SHARD)
        assert leader is not None
        others = [name for name in cluster.config.node_ids() if name != leader.name]
        if is_cut:
            cluster.network.cut |= {(leader.name, other) for other in others}
        else:
            cluster.kill(leader.name, power_loss=True)
        write(cluster)
        world.run_until(world.now + 5.0)
        write(cluster)
        cluster.network.cut.clear()
        if not is_cut:
            cluster.start(leader.name)
        world.run_until(world.now + 3.0)
    return world


def write(cluster: SimCluster) -> None:
    """Some writes at every node, whatever becomes of them."""
    for name in list(cluster.processes):
        for number in range(10):
            cluster.request(name, "PUT", f"/v1/kv/{name}-{number}", {}, b"v", lambda response: None)
    cluster.world.run_until(cluster.world.now + 0.5)


def lines_of(file: io.BytesIO) -> list[Line]:
    return [json.loads(text) for text in file.getvalue().splitlines()]


def test_a_trace_replays_to_one_history() -> None:
    file = io.BytesIO()
    run(file)
    replay = Replay()
    for number, line in enumerate(lines_of(file), start=1):
        try:
            replay.read(line)
        except AssertionError as error:
            raise AssertionError(f"line {number}: {line}") from error
    never = {"install_snapshot", "apply_conf_change"}
    assert set(replay.events) == EVENTS - never
    assert len([term for shard, term in replay.leaders if shard == SHARD]) >= 4


def test_tracing_changes_nothing_that_happens() -> None:
    plain, traced = run(None), run(io.BytesIO())
    assert plain.digest == traced.digest
    assert plain.events_run == traced.events_run


def test_the_replay_notices_a_missing_line() -> None:
    file = io.BytesIO()
    run(file)
    lines = lines_of(file)
    missing = next(number for number, line in enumerate(lines) if line["event"] == "append")
    replay = Replay()
    for line in lines[:missing]:
        replay.read(line)
    behind = (line for line in lines[missing + 1 :] if line["replica"] == lines[missing]["replica"])
    following = next(line for line in behind if line["shard"] == lines[missing]["shard"])
    with pytest.raises(AssertionError):
        replay.read(following)
