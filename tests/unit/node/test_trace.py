import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvstore.node.trace import Observe, Trace, open_trace
from kvstore.raft import NO_SNAPSHOT, Core, Restored
from kvstore.raft.messages import NORMAL, AppendRequest, Configuration, Entry, HardState
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId, Term
from tests.support.raft_group import QUICK

N1 = NodeId("n1")
ME = ReplicaId("n1/1")
LEADER = ReplicaId("n2/1")
VOTERS = Configuration(voters=(ME, LEADER, ReplicaId("n3/1")))
STATE = {"replica", "term", "vote", "commit", "last_index", "role", "configuration"}


def make_core(observe: Observe, shard: int = 0, log: Sequence[Entry] = (), term: int = 0) -> Core:
    restored = Restored(HardState(Term(term)), tuple(log), NO_SNAPSHOT, LogIndex(0), VOTERS)
    return Core(ME, QUICK, restored, lambda low, _high: low, observe(ShardId(shard)))


def entry(index: int, term: int, payload: bytes = b"secret") -> Entry:
    return Entry(LogIndex(index), Term(term), NORMAL, payload)


def append(term: int, *entries: Entry, commit: int = 0) -> AppendRequest:
    return AppendRequest(LEADER, ME, Term(term), LogIndex(0), Term(0), LogIndex(commit), 1, entries)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_without_a_file_no_core_is_observed(tmp_path: Path) -> None:
    for off in (None, ""):
        assert open_trace(off, N1)(ShardId(0)) is None


def test_each_event_is_one_line_with_the_state_after_it(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    core = make_core(open_trace(str(path), N1), shard=3)
    core.step(append(2, entry(1, 1), entry(2, 2), commit=1))
    lines = lines_of(path)
    assert [line["event"] for line in lines] == ["init", "receive", "become_follower", "append", "commit"]
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        assert (line["node"], line["shard"], line["replica"]) == ("n1", 3, "n1/1")
        assert set(line) >= STATE
    _, received, followed, appended, committed = lines
    assert (received["term"], followed["term"], followed["role"]) == (0, 2, "follower")
    assert (appended["last_index"], appended["commit"]) == (2, 0)
    assert (committed["last_index"], committed["commit"]) == (2, 1)


def test_messages_carry_their_type_and_fields_but_no_payload(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    make_core(open_trace(str(path), N1)).step(append(1, entry(1, 1)))
    received = lines_of(path)[1]["message"]
    assert received == {
        "type": "AppendRequest",
        "source": "n2/1",
        "target": "n1/1",
        "term": 1,
        "prev_index": 0,
        "prev_term": 0,
        "commit": 0,
        "round": 1,
        "entries": [{"index": 1, "term": 1, "kind": NORMAL}],
    }
    assert b"secret" not in path.read_bytes()


def test_shards_are_numbered_each_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    observe = open_trace(str(path), N1)
    cores = [make_core(observe, shard) for shard in (0, 1)]
    for term in (1, 2):
        for core in cores:
            core.step(append(term))
    lines = lines_of(path)
    for shard in (0, 1):
        sequence = [line["seq"] for line in lines if line["shard"] == shard]
        assert sequence == list(range(1, len(sequence) + 1))
        assert len(sequence) == 5


def test_restart_appends_and_tells_the_log_it_found(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    make_core(open_trace(str(path), N1)).step(append(2, entry(1, 1), entry(2, 1), entry(3, 2)))
    make_core(open_trace(str(path), N1), log=[entry(1, 1), entry(2, 1), entry(3, 2)], term=2)
    lines = lines_of(path)
    assert lines[0]["event"] == "init"
    assert lines[0]["log"] == [[0, 0]]
    restart = lines[-1]
    assert (restart["event"], restart["seq"], restart["term"], restart["last_index"]) == ("restart", 1, 2, 3)
    assert restart["log"] == [[0, 0], [1, 1], [3, 2]]


def test_a_line_that_a_crash_cut_off_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b'{"node":"n1","sha')
    make_core(open_trace(str(path), N1))
    torn, first = path.read_bytes().splitlines()
    assert torn == b'{"node":"n1","sha'
    assert json.loads(first)["event"] == "init"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_ends_the_trace_and_not_the_node(caplog: pytest.LogCaptureFixture) -> None:
    core = make_core(open_trace("/dev/full", N1))
    core.step(append(1, entry(1, 1)))
    assert core.last_index == 1
    assert len([record for record in caplog.records if "trace ends" in record.message]) == 1


def test_nothing_follows_a_line_that_was_written_in_part() -> None:
    class Short(io.BytesIO):
        def write(self, line: Any) -> int:
            return super().write(line[:5])

    sink = Short()
    core = make_core(Trace(N1, sink).of)
    core.step(append(1))
    assert sink.getvalue() == b'{"nod'
