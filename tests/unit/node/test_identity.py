"""What a data directory is, and every way in which it is refused."""

from pathlib import Path
from random import Random

import google_crc32c
import pytest
from msgspec.structs import replace

from kvstore.errors import Corrupt, Fatal
from kvstore.files import OsFiles
from kvstore.node.identity import (
    FILE,
    VERSION,
    DataDirectory,
    DirectoryRefused,
    Identity,
    decode_identity,
    encode_identity,
)
from kvstore.types import NodeId, ReplicaId, ShardId
from kvstore.wire.boot_messages import EMPTY, MEMBER, REMOVED, Ballot, Directory, Proposal, ShardPlan
from kvstore.wire.peer import NodeAddress
from tests.support.sim_files import SimFiles

N1, N2 = NodeId("n1"), NodeId("n2")
PROPOSAL = Proposal(
    Ballot(1, b"n" * 16),
    b"c" * 16,
    b"hash",
    (ShardPlan(ShardId(0), (ReplicaId("n1/1"),)),),
    (Directory(N1, b"d" * 16),),
)


def opened(path: Path, cluster: str = "demo", node: NodeId = N1) -> DataDirectory:
    return DataDirectory.open(OsFiles(), str(path), cluster, node)


def test_a_new_directory_is_made_and_gets_an_id_that_stays(tmp_path: Path) -> None:
    directory = opened(tmp_path / "deep" / "data")
    first = directory.identity
    assert (first.stage, first.cluster, first.node, len(first.directory)) == (EMPTY, "demo", N1, 16)
    directory.release()
    assert opened(tmp_path / "deep" / "data").identity == first
    assert opened(tmp_path / "other").identity.directory != first.directory


def test_what_was_saved_is_what_is_opened(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    identity = replace(directory.identity, stage=MEMBER, promised=Ballot(1, b"n" * 16), accepted=PROPOSAL)
    directory.save(identity)
    directory.save_addresses((NodeAddress(N2, 3, "a:1", "a:2"),))
    directory.release()
    again = opened(tmp_path).identity
    assert again == replace(identity, addresses=(NodeAddress(N2, 3, "a:1", "a:2"),))
    assert again.is_member
    assert again.cluster_id == b"c" * 16
    assert "member, cluster 'demo', node n1" in again.describe()


def test_only_a_member_has_a_cluster_id() -> None:
    proposed = Identity(VERSION, "demo", N1, b"d" * 16, stage=1, accepted=PROPOSAL)
    assert proposed.cluster_id is None


@pytest.mark.parametrize(
    ("cluster", "node", "complaint"),
    [
        ("other", N1, "belongs to cluster 'demo', but cluster.yaml names 'other'"),
        ("demo", N2, "belongs to node n1, but this process is node n2"),
    ],
)
def test_a_directory_of_another_cluster_or_node_is_refused_and_both_are_named(
    tmp_path: Path, cluster: str, node: NodeId, complaint: str
) -> None:
    opened(tmp_path).release()
    with pytest.raises(DirectoryRefused, match=complaint):
        opened(tmp_path, cluster, node)
    opened(tmp_path).release()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    held = opened(tmp_path)
    with pytest.raises(DirectoryRefused, match="in use by another process"):
        opened(tmp_path)
    held.release()
    opened(tmp_path).release()


def test_pitfall_20_a_directory_with_a_log_but_no_identity_is_not_taken_for_an_empty_one(
    tmp_path: Path,
) -> None:
    directory = opened(tmp_path)
    (tmp_path / "wal").mkdir()
    directory.release()
    (tmp_path / FILE).unlink()
    with pytest.raises(DirectoryRefused, match=r"not empty \(wal\)"):
        opened(tmp_path)


def test_a_first_write_that_was_torn_leaves_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / (FILE + ".tmp")).write_bytes(b"KVI")
    (tmp_path / "lost+found").mkdir()
    assert opened(tmp_path).identity.stage == EMPTY


def test_what_a_killed_process_wrote_outlives_a_power_cut_of_the_next_one() -> None:
    """Seed 1737: killed before its first sync of the directory, started again, made its log, lost power.
    The directory held a log and no identity, and no start took it again."""
    files = SimFiles()
    files.fail("sync_dir", path_part="/data")
    with pytest.raises(OSError, match="/data"):
        DataDirectory.open(files, "/data", "demo", N1)
    files.kill()
    made = DataDirectory.open(files, "/data", "demo", N1).identity
    for seed in range(20):
        twin = files.copy()
        twin.crash(Random(seed))
        assert DataDirectory.open(twin, "/data", "demo", N1).identity == made


def test_a_removed_node_stays_removed_and_is_told_how_to_come_back(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    directory.mark_removed()
    assert directory.identity.stage == REMOVED
    directory.release()
    with pytest.raises(DirectoryRefused, match="--join"):
        opened(tmp_path)


def test_every_flipped_byte_and_every_truncation_is_seen() -> None:
    content = encode_identity(Identity(VERSION, "demo", N1, b"d" * 16, accepted=PROPOSAL))
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 0x40
        with pytest.raises(Corrupt):
            decode_identity(bytes(flipped), "identity")
        with pytest.raises(Corrupt):
            decode_identity(content[:position], "identity")


def test_a_directory_of_a_newer_version_is_refused_as_such() -> None:
    newer = encode_identity(Identity(VERSION + 1, "demo", N1, b"d" * 16))
    with pytest.raises(DirectoryRefused, match=f"has format {VERSION + 1}"):
        decode_identity(newer, "identity")


def test_a_good_checksum_over_something_else_is_corrupt() -> None:
    for body in (b"\x93\x01\x02\x03", b"\x01", b"\x90", b"\x80", b"\xc1"):
        content = b"KVID" + google_crc32c.value(body).to_bytes(4, "big") + body
        with pytest.raises(Corrupt, match="is not an identity"):
            decode_identity(content, "identity")


def test_refusals_stop_the_node() -> None:
    assert issubclass(DirectoryRefused, Fatal)
