"""What both ends of a snapshot transfer share."""

import pytest

from kvstore.node.snapshots import Pace, chunk_count, chunk_length, manifest_fault, total_bytes
from kvstore.raft.messages import Configuration, SnapshotMeta
from kvstore.types import LogIndex, ShardId, Term
from kvstore.wire.snapshot_messages import SnapshotFile, SnapshotManifest

META = SnapshotMeta(LogIndex(5), Term(1), Configuration())


def manifest_of(*files: SnapshotFile) -> SnapshotManifest:
    return SnapshotManifest(ShardId(0), b"s" * 16, META, 10, files)


def test_chunks_cover_a_file_and_the_last_is_what_is_left() -> None:
    manifest = manifest_of(SnapshotFile("a", 25, (1, 2, 3)), SnapshotFile("b", 0, ()))
    assert [chunk_count(count, 10) for count in (0, 1, 10, 11)] == [0, 1, 1, 2]
    assert [chunk_length(manifest, manifest.files[0], chunk) for chunk in range(3)] == [10, 10, 5]
    assert total_bytes(manifest) == 25
    assert manifest_fault(manifest) is None


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../x", "/etc/passwd", "a\\b", "a\0b"])
def test_a_name_that_could_leave_the_directory_is_refused(name: str) -> None:
    assert "not the name of a file" in str(manifest_fault(manifest_of(SnapshotFile(name, 0, ()))))


def test_a_manifest_that_does_not_add_up_is_refused() -> None:
    twice = manifest_of(SnapshotFile("a", 0, ()), SnapshotFile("a", 0, ()))
    assert "twice" in str(manifest_fault(twice))
    short = manifest_of(SnapshotFile("a", 11, (1,)))
    assert "1 checksums for 11 bytes" in str(manifest_fault(short))


def test_pace_lets_a_burst_pass_and_then_the_rate() -> None:
    pace = Pace(1000, burst_s=0.1)
    now, taken = 50.0, 0
    while now < 52.0:
        if (delay := pace.delay(now)) > 0:
            now += delay
        else:
            pace.take(now, 50)
            taken += 50
    assert 2000 <= taken <= 2000 + 2 * 100 + 50


def test_pace_does_not_save_up_while_idle() -> None:
    pace = Pace(1000, burst_s=0.1)
    pace.take(0.0, 50)
    taken = 0
    while pace.delay(1000.0) == 0:
        pace.take(1000.0, 50)
        taken += 50
    assert taken <= 150
