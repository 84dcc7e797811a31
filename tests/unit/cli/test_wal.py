"""wal dump, on a log written here."""

import json
from pathlib import Path

import pytest

from kvstore.files import OsFiles
from kvstore.raft.messages import NORMAL, Configuration, Entry
from kvstore.types import Incarnation, LogIndex, ReplicaId, ShardId, Term
from kvstore.wal.record import Entries, ShardCreated
from kvstore.wal.wal import Wal, WalSettings
from tests.unit.cli.conftest import Run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A node's data directory whose log has entries of two shards."""
    log, _ = Wal.open(OsFiles(), str(tmp_path / "wal"), WalSettings(segment_bytes=1 << 20), b"c/n1")
    voters = Configuration((ReplicaId("n1/1"),))
    log.append([ShardCreated(ShardId(shard), Incarnation(1), f"t{shard}", voters) for shard in (3, 4)])
    for index in (1, 2):
        entries = (Entry(LogIndex(index), Term(1), NORMAL, b"payload"),)
        log.append([Entries(ShardId(shard), Incarnation(1), entries) for shard in (3, 4)])
    log.close()
    return tmp_path


def test_the_log_of_a_data_directory_is_printed(run: Run, data: Path) -> None:
    shown = run("wal", "dump", str(data))
    assert shown.exit_code == 0, shown.stderr
    assert "segment  " in shown.stdout
    assert shown.stdout.count("  entries  shard=3") == 2
    assert run("wal", "dump", str(data / "wal")).stdout == shown.stdout


def test_programs_get_a_line_per_row_of_one_shard(run: Run, data: Path) -> None:
    shown = run("wal", "dump", str(data), "--shard", "4", "-o", "jsonl").stdout
    rows = [json.loads(line) for line in shown.splitlines()]
    assert [row["first"] for row in rows if "first" in row] == [1, 2]
    assert {row["shard"] for row in rows} == {4}


def test_damage_exits_7_and_is_shown(run: Run, data: Path) -> None:
    segment = next(file for file in (data / "wal").iterdir() if b"payload" in file.read_bytes())
    content = bytearray(segment.read_bytes())
    content[content.index(b"payload")] ^= 1
    segment.write_bytes(content)
    shown = run("wal", "dump", str(data))
    assert shown.exit_code == 7
    assert "damaged" in shown.stderr


def test_a_directory_without_a_log_is_a_failure(run: Run, tmp_path: Path) -> None:
    assert run("wal", "dump", str(tmp_path)).exit_code == 1
    assert run("wal", "dump", str(tmp_path / "nowhere")).exit_code == 2
