"""Raft events as lines of JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

from kvstore.node.trace import Trace, open_trace
from kvstore.raft.messages import NORMAL, AppendRequest, Entry
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId, Term

N1 = NodeId("n1")


def _append() -> AppendRequest:
    entry = Entry(LogIndex(4), Term(2), NORMAL, b"secret of a user")
    return AppendRequest(
        ReplicaId("n1/1"), ReplicaId("n2/1"), Term(2), LogIndex(3), Term(2), LogIndex(3), 1, (entry,)
    )


def test_without_a_path_no_core_has_an_observer() -> None:
    assert open_trace(None, N1)(ShardId(0)) is None
    assert open_trace("", N1)(ShardId(0)) is None


def test_lines_name_node_shard_and_event_and_count_without_gaps_over_all_shards() -> None:
    sink = io.BytesIO()
    trace = Trace(N1, sink)
    first, second = trace.of(ShardId(0)), trace.of(ShardId(7))
    first("become_leader", {"term": 3})
    second("receive", {"term": 1})
    first("append", {"term": 3})
    lines = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [(line["node"], line["shard"], line["seq"], line["event"], line["term"]) for line in lines] == [
        ("n1", 0, 1, "become_leader", 3),
        ("n1", 7, 2, "receive", 1),
        ("n1", 0, 3, "append", 3),
    ]


def test_messages_are_maps_with_their_kind_and_payloads_stay_out() -> None:
    sink = io.BytesIO()
    Trace(N1, sink).of(ShardId(0))("receive", {"message": _append(), "names": ("a", "b")})
    line = json.loads(sink.getvalue())
    assert line["message"]["type"] == "AppendRequest"
    assert line["message"]["prev_index"] == 3
    assert line["message"]["entries"] == [{"type": "Entry", "index": 4, "term": 2, "kind": NORMAL}]
    assert line["names"] == ["a", "b"]
    assert b"secret" not in sink.getvalue()


def test_a_traced_node_appends_to_its_file(tmp_path: Path) -> None:
    path = tmp_path / "raft.jsonl"
    for _life in range(2):
        observe = open_trace(str(path), N1)(ShardId(1))
        assert observe is not None
        observe("init", {})
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [1, 1]
