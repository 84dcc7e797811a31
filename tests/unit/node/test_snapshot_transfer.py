"""Sender and receiver of snapshots over a network that loses, repeats, reorders and damages frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest

from kvstore.files import OsFiles
from kvstore.node.runtime import Lane
from kvstore.node.snapshot_receiver import SnapshotReceiver
from kvstore.node.snapshot_sender import SnapshotSender
from kvstore.node.snapshots import SnapshotSettings
from kvstore.raft.messages import Configuration, SnapshotMeta
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId, Term
from kvstore.wire.peer import PeerMessage, decode, encode
from kvstore.wire.snapshot_messages import (
    SnapshotChunk,
    SnapshotChunkRequest,
    SnapshotFile,
    SnapshotGone,
    SnapshotManifest,
    SnapshotManifestRequest,
)
from tests.support.fake_runtime import FakeRuntime

LEADER, OTHER, FOLLOWER = NodeId("n1"), NodeId("n2"), NodeId("n3")
SHARD = ShardId(7)
VOTERS = Configuration(voters=(ReplicaId("n1/1"), ReplicaId("n3/1")))
SMALL = SnapshotSettings(chunk_bytes=1000, window_chunks=4, bytes_per_s=1 << 30)


def meta_at(index: int, term: int = 3) -> SnapshotMeta:
    return SnapshotMeta(LogIndex(index), Term(term), VOTERS)


class Wire:
    """Carries frames between the nodes; `fate` decides the delays of each (none: lost)."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime = runtime
        self.nodes: dict[NodeId, Callable[[NodeId, PeerMessage], None]] = {}
        self.fate: Callable[[PeerMessage], list[float]] = lambda message: [0.001]
        self.sent: list[tuple[NodeId, NodeId, PeerMessage]] = []

    def transport_of(self, source: NodeId) -> End:
        return End(self, source)

    def carry(self, source: NodeId, target: NodeId, frame: bytes) -> None:
        for message in decode(frame):
            self.sent.append((source, target, message))
            for delay_s in self.fate(message):
                self.runtime.call_later(delay_s, self._arrive, source, target, message)

    def _arrive(self, source: NodeId, target: NodeId, message: PeerMessage) -> None:
        if target in self.nodes:
            self.nodes[target](source, message)


class End:
    def __init__(self, wire: Wire, me: NodeId) -> None:
        self._wire = wire
        self._me = me

    def send(self, node: NodeId, lane: Lane, frame: bytes) -> bool:
        assert lane is Lane.SNAPSHOT
        self._wire.carry(self._me, node, frame)
        return True

    def is_connected(self, node: NodeId) -> bool:
        return True


class Transfer:
    """Two possible senders and one receiver."""

    def __init__(self, tmp_path: Path, settings: SnapshotSettings = SMALL) -> None:
        self.runtime = FakeRuntime()
        self.files = OsFiles()
        self.root = tmp_path
        self.wire = Wire(self.runtime)
        self.missing: list[tuple[ShardId, NodeId]] = []
        self.completed: list[tuple[ShardId, SnapshotMeta, str]] = []
        self.failed: list[str] = []
        self.senders = {node: self._sender(node, settings) for node in (LEADER, OTHER)}
        self.sender = self.senders[LEADER]
        self.receiver = SnapshotReceiver(
            self.runtime,
            self.wire.transport_of(FOLLOWER),
            self.files,
            settings,
            on_complete=lambda *arguments: self.completed.append(arguments),
            on_failed=lambda shard, reason: self.failed.append(reason),
        )
        self.wire.nodes[FOLLOWER] = self._to_receiver
        self.target = str(tmp_path / "tablets" / "7-1-aa")

    def _sender(self, node: NodeId, settings: SnapshotSettings) -> SnapshotSender:
        sender = SnapshotSender(
            self.runtime,
            self.wire.transport_of(node),
            self.files,
            settings,
            on_missing=lambda *arguments: self.missing.append(arguments),
        )

        def receive(source: NodeId, message: PeerMessage) -> None:
            match message:
                case SnapshotManifestRequest():
                    sender.on_manifest_request(source, message)
                case SnapshotChunkRequest():
                    sender.on_chunk_request(source, message)
                case _:
                    raise AssertionError(message)

        self.wire.nodes[node] = receive
        return sender

    def _to_receiver(self, source: NodeId, message: PeerMessage) -> None:
        match message:
            case SnapshotManifest():
                self.receiver.on_manifest(source, message)
            case SnapshotChunk():
                self.receiver.on_chunk(source, message)
            case SnapshotGone():
                self.receiver.on_gone(source, message)
            case _:
                raise AssertionError(message)

    def checkpoint(self, name: str, contents: dict[str, bytes]) -> str:
        directory = self.root / "snapshots" / name
        directory.mkdir(parents=True)
        for file, content in contents.items():
            (directory / file).write_bytes(content)
        return str(directory)

    def offer(self, index: int, contents: dict[str, bytes], node: NodeId = LEADER) -> str:
        directory = self.checkpoint(f"{node}-{index}", contents)
        assert self.senders[node].offer(SHARD, meta_at(index), directory)
        return directory

    def fetch(self, index: int, node: NodeId = LEADER) -> None:
        self.receiver.fetch(SHARD, node, meta_at(index), self.target)

    def held(self, directory: str | None = None) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(directory or self.target).iterdir()}

    def requests(self) -> list[SnapshotChunkRequest]:
        return [message for _, _, message in self.wire.sent if isinstance(message, SnapshotChunkRequest)]


def contents_of(seed: int, *sizes: int) -> dict[str, bytes]:
    dice = Random(seed)
    return {f"{number:06}.sst": dice.randbytes(size) for number, size in enumerate(sizes)}


@pytest.fixture
def transfer(tmp_path: Path) -> Transfer:
    return Transfer(tmp_path)


def test_a_checkpoint_arrives_byte_for_byte_with_its_meta(transfer: Transfer) -> None:
    contents = contents_of(1, 0, 1, 999, 1000, 1001, 25_000)
    transfer.offer(40, contents)
    transfer.fetch(40)
    transfer.runtime.run(5)
    assert transfer.completed == [(SHARD, meta_at(40), transfer.target)]
    assert transfer.held() == contents
    assert transfer.failed == []
    assert transfer.receiver.progress(SHARD) is None


def test_an_empty_checkpoint_is_complete_at_once(transfer: Transfer) -> None:
    transfer.offer(40, {})
    transfer.fetch(40)
    transfer.runtime.run(1)
    assert transfer.held() == {}
    assert len(transfer.completed) == 1


def test_no_more_chunks_are_on_the_way_than_the_window_allows(transfer: Transfer) -> None:
    in_flight = 0
    most = 0

    def fate(message: PeerMessage) -> list[float]:
        nonlocal in_flight, most
        in_flight += isinstance(message, SnapshotChunkRequest)
        in_flight -= isinstance(message, SnapshotChunk)
        most = max(most, in_flight)
        return [0.001]

    transfer.wire.fate = fate
    transfer.offer(40, contents_of(1, 50_000))
    transfer.fetch(40)
    transfer.runtime.run(5)
    assert transfer.completed
    assert most == 4


@pytest.mark.parametrize("seed", range(12))
def test_pitfall_18_a_lossy_repeating_reordering_wire_only_costs_time(tmp_path: Path, seed: int) -> None:
    transfer = Transfer(tmp_path)
    dice = Random(seed)

    def fate(message: PeerMessage) -> list[float]:
        copies = dice.choices((0, 1, 2), (30, 60, 10))[0]
        return [dice.uniform(0.0, 0.3) for _ in range(copies)]

    transfer.wire.fate = fate
    contents = contents_of(seed, 12_345, 0, 777)
    transfer.offer(40, contents)
    transfer.fetch(40)
    transfer.runtime.run(110)
    assert transfer.held() == contents
    assert len(transfer.completed) == 1


def test_a_transfer_goes_on_where_it_was_after_the_link_was_down(transfer: Transfer) -> None:
    contents = contents_of(1, 40_000)
    transfer.offer(40, contents)
    transfer.fetch(40)
    delivered = 0

    def until_half(message: PeerMessage) -> list[float]:
        nonlocal delivered
        delivered += isinstance(message, SnapshotChunk)
        return [0.001] if delivered <= 20 else []

    transfer.wire.fate = until_half
    transfer.runtime.run(10)
    assert not transfer.completed
    progress = transfer.receiver.progress(SHARD)
    assert progress is not None
    assert (progress.bytes_done, progress.bytes_total) == (20_000, 40_000)
    before = len(transfer.requests())
    transfer.wire.fate = lambda message: [0.001]
    transfer.runtime.run(10)
    assert transfer.held() == contents
    assert len(transfer.requests()) - before <= 24


def test_a_damaged_chunk_is_fetched_again(transfer: Transfer) -> None:
    contents = contents_of(1, 5_000)
    damaged: list[SnapshotChunk] = []
    to_receiver = transfer.wire.nodes[FOLLOWER]

    def damage_once(source: NodeId, message: PeerMessage) -> None:
        if isinstance(message, SnapshotChunk) and message.chunk == 2 and not damaged:
            damaged.append(message)
            rotten = b"\0" + message.content[1:]
            message = SnapshotChunk(message.shard, message.snapshot, message.file, message.chunk, rotten)
        to_receiver(source, message)

    transfer.wire.nodes[FOLLOWER] = damage_once
    transfer.offer(40, contents)
    transfer.fetch(40)
    transfer.runtime.run(5)
    assert damaged
    assert transfer.held() == contents


def test_a_file_that_rots_on_the_senders_disk_never_becomes_a_replica(transfer: Transfer) -> None:
    directory = transfer.offer(40, contents_of(1, 5_000))
    transfer.runtime.run(0.5)
    (Path(directory) / "000000.sst").write_bytes(contents_of(2, 5_000)["000000.sst"])
    transfer.fetch(40)
    transfer.runtime.run(20)
    assert not transfer.completed
    assert "damaged chunks" in transfer.failed[0]
    assert not Path(transfer.target).exists()


def test_a_repeated_offer_does_not_start_the_transfer_again(transfer: Transfer) -> None:
    transfer.offer(40, contents_of(1, 30_000))
    while not transfer.completed:
        transfer.fetch(40)
        transfer.runtime.run(0.0015)
    assert len(transfer.requests()) == 30


def test_when_the_sender_has_a_newer_snapshot_only_what_changed_is_fetched_again(transfer: Transfer) -> None:
    old = contents_of(1, 20_000, 20_000)
    transfer.offer(40, old)
    transfer.fetch(40)
    transfer.wire.fate = lambda message: [0.001] if len(transfer.requests()) <= 28 else []
    transfer.runtime.run(3)
    assert not transfer.completed
    new = {"000000.sst": old["000000.sst"], "000009.sst": contents_of(3, 7_000)["000000.sst"]}
    transfer.offer(60, new)
    transfer.wire.fate = lambda message: [0.001]
    before = len(transfer.requests())
    transfer.runtime.run(3)
    assert transfer.receiver.progress(SHARD) is not None
    assert transfer.missing == []
    transfer.fetch(60)
    transfer.runtime.run(5)
    assert transfer.completed == [(SHARD, meta_at(60), transfer.target)]
    assert transfer.held() == new
    answered = [request for request in transfer.requests()[before:] if request.file == 1]
    assert {request.chunk for request in transfer.requests()[before:] if request.file == 0} <= {20, 21}
    assert len(answered) >= 7


def test_a_new_leaders_snapshot_takes_over_from_a_dead_senders(transfer: Transfer) -> None:
    transfer.offer(40, contents_of(1, 30_000))
    transfer.fetch(40)
    transfer.runtime.run(0.01)
    del transfer.wire.nodes[LEADER]
    contents = contents_of(2, 9_000)
    transfer.offer(38, contents, OTHER)
    transfer.fetch(38, OTHER)
    transfer.runtime.run(5)
    assert transfer.completed == [(SHARD, meta_at(38), transfer.target)]
    assert transfer.held() == contents


def test_an_older_offer_of_the_same_node_that_comes_late_changes_nothing(transfer: Transfer) -> None:
    contents = contents_of(1, 9_000)
    transfer.offer(60, contents)
    transfer.fetch(60)
    transfer.fetch(40)
    transfer.runtime.run(5)
    assert transfer.completed == [(SHARD, meta_at(60), transfer.target)]


def test_back_and_forth_between_two_offers_ends_with_the_last_one(transfer: Transfer) -> None:
    one, two = contents_of(1, 9_000), contents_of(2, 9_000)
    transfer.offer(40, one)
    transfer.offer(40, two, OTHER)
    for node in (LEADER, OTHER, LEADER, OTHER, LEADER):
        transfer.fetch(40, node)
        transfer.runtime.run(0.004)
    transfer.runtime.run(5)
    assert len(transfer.completed) == 1
    assert transfer.held() == one


def test_asking_for_a_snapshot_that_is_not_kept_tells_the_host_and_waits_for_the_next_offer(
    transfer: Transfer,
) -> None:
    transfer.fetch(40)
    transfer.runtime.run(1)
    assert transfer.missing == [(SHARD, FOLLOWER)]
    contents = contents_of(1, 3_000)
    transfer.offer(45, contents)
    transfer.fetch(45)
    transfer.runtime.run(2)
    assert transfer.completed == [(SHARD, meta_at(45), transfer.target)]
    assert transfer.held() == contents


def test_a_fetch_without_progress_is_given_up_and_leaves_nothing(transfer: Transfer) -> None:
    transfer.offer(40, contents_of(1, 30_000))
    transfer.fetch(40)
    transfer.runtime.run(0.004)
    transfer.wire.fate = lambda message: []
    transfer.runtime.run(40)
    assert transfer.failed == ["no progress for 30 s"]
    assert not Path(transfer.target).exists()
    transfer.runtime.run(200)
    assert transfer.runtime.pending_count == 0


def test_a_cancelled_fetch_removes_its_directory_even_at_the_last_step(tmp_path: Path) -> None:
    for steps in range(0, 60, 3):
        transfer = Transfer(tmp_path / str(steps))
        transfer.offer(40, contents_of(1, 5_000))
        transfer.fetch(40)
        transfer.runtime.run(0.0005 * steps)
        done_before = bool(transfer.completed)
        transfer.receiver.cancel(SHARD)
        transfer.runtime.run(3)
        assert len(transfer.completed) == int(done_before)
        assert Path(transfer.target).exists() == done_before


def test_a_full_disk_fails_the_fetch_with_its_reason(
    transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer.files, "free_bytes", lambda path: 1000)
    transfer.offer(40, contents_of(1, 30_000))
    transfer.fetch(40)
    transfer.runtime.run(2)
    assert "do not fit on the disk" in transfer.failed[0]
    assert not transfer.completed


def test_pitfall_17_a_failure_at_any_step_of_the_disk_hands_nothing_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("mkdirs", "create", "open", "sync_dir"):
        for nth in range(1, 4):
            transfer = Transfer(tmp_path / f"{call}-{nth}")
            transfer.offer(40, contents_of(1, 2_500, 10))
            transfer.runtime.run(0.5)
            real, seen = getattr(transfer.files, call), 0

            def fail(
                *arguments: object,
                real: Callable[..., object] = real,
                nth: int = nth,
                target: str = transfer.target,
            ) -> object:
                nonlocal seen
                if target in str(arguments[0]) or str(arguments[0]).endswith("tablets"):
                    seen += 1
                    if seen == nth:
                        raise OSError(5, "Input/output error")
                return real(*arguments)

            monkeypatch.setattr(transfer.files, call, fail)
            transfer.fetch(40)
            transfer.runtime.run(5)
            assert bool(transfer.completed) == (seen < nth)
            assert bool(transfer.failed) == (seen >= nth)
            assert Path(transfer.target).exists() == (seen < nth)


def test_pitfall_36_only_the_directory_named_by_the_host_is_touched(transfer: Transfer) -> None:
    live = transfer.root / "tablets" / "7-1-live"
    live.mkdir(parents=True)
    (live / "CURRENT").write_bytes(b"alive")
    transfer.offer(40, contents_of(1, 3_000) | {"CURRENT": b"snapshot"})
    transfer.fetch(40)
    transfer.runtime.run(2)
    assert (live / "CURRENT").read_bytes() == b"alive"
    assert transfer.held()["CURRENT"] == b"snapshot"
    assert sorted(path.name for path in (transfer.root / "tablets").iterdir()) == ["7-1-aa", "7-1-live"]


def test_pitfall_36_a_directory_that_exists_is_neither_filled_nor_removed(transfer: Transfer) -> None:
    live = Path(transfer.target)
    live.mkdir(parents=True)
    (live / "CURRENT").write_bytes(b"alive")
    transfer.offer(40, contents_of(1, 3_000))
    transfer.fetch(40)
    transfer.runtime.run(2)
    assert transfer.held() == {"CURRENT": b"alive"}
    assert "only ever fetched into a new directory" in transfer.failed[0]
    transfer.fetch(40)
    transfer.receiver.cancel(SHARD)
    transfer.runtime.run(2)
    assert transfer.held() == {"CURRENT": b"alive"}


def test_a_manifest_with_a_path_in_it_is_refused(transfer: Transfer) -> None:
    transfer.fetch(40)
    evil = SnapshotManifest(SHARD, b"s" * 16, meta_at(40), 1000, (SnapshotFile("../../x", 0, ()),))
    transfer.wire.carry(LEADER, FOLLOWER, encode([evil]))
    transfer.runtime.run(0.01)
    assert "not the name of a file" in transfer.failed[0]


def test_requests_outside_the_manifest_get_gone(transfer: Transfer) -> None:
    transfer.offer(40, contents_of(1, 3_000))
    transfer.runtime.run(1)
    transfer.wire.carry(FOLLOWER, LEADER, encode([SnapshotManifestRequest(SHARD, LogIndex(40), Term(3))]))
    transfer.runtime.run(1)
    (manifest,) = [message for _, _, message in transfer.wire.sent if isinstance(message, SnapshotManifest)]
    for file, chunk in ((1, 0), (0, 3), (5, 0)):
        request = SnapshotChunkRequest(SHARD, manifest.snapshot, file, chunk)
        transfer.wire.carry(FOLLOWER, LEADER, encode([request]))
    transfer.runtime.run(1)
    answers = [message for source, _, message in transfer.wire.sent if source == LEADER]
    assert [type(answer) for answer in answers[1:]] == [SnapshotGone] * 3


def test_the_pace_bounds_the_bytes_per_second(tmp_path: Path) -> None:
    settings = SnapshotSettings(chunk_bytes=1000, window_chunks=8, bytes_per_s=10_000)
    transfer = Transfer(tmp_path, settings)
    transfer.offer(40, contents_of(1, 50_000))
    transfer.fetch(40)
    transfer.runtime.run(2)
    progress = transfer.receiver.progress(SHARD)
    assert progress is not None
    assert 15_000 <= progress.bytes_done <= 23_000
    transfer.runtime.run(5)
    assert transfer.completed


def test_two_fetches_share_the_pace_and_both_arrive(tmp_path: Path) -> None:
    settings = SnapshotSettings(chunk_bytes=1000, window_chunks=4, bytes_per_s=20_000)
    transfer = Transfer(tmp_path, settings)
    for shard in (ShardId(1), ShardId(2)):
        directory = transfer.checkpoint(str(shard), contents_of(shard, 20_000))
        transfer.sender.offer(shard, meta_at(9), directory)
        transfer.receiver.fetch(shard, LEADER, meta_at(9), str(tmp_path / "tablets" / str(shard)))
    transfer.runtime.run(1)
    assert not transfer.completed
    transfer.runtime.run(3)
    assert {shard for shard, _, _ in transfer.completed} == {1, 2}


SLOW = SnapshotSettings(chunk_bytes=1000, window_chunks=4, bytes_per_s=100, keep_s=4.0)
"""A chunk takes longer than an unused snapshot is kept."""


def test_a_receiver_that_waits_for_its_pace_still_wants_the_snapshot(tmp_path: Path) -> None:
    """Seed 1489: a follower whose rate allowed a chunk every 2.6 s never got a snapshot that was kept for
    2 s, and when another node failed its shard stood still."""
    transfer = Transfer(tmp_path, SLOW)
    transfer.offer(40, contents_of(1, 3_500))
    transfer.fetch(40)
    transfer.runtime.run(45)
    assert transfer.completed


def test_waiting_for_the_pace_is_no_stall(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, msgspec.structs.replace(SLOW, bytes_per_s=25))
    transfer.offer(40, contents_of(1, 2_500))
    transfer.fetch(40)
    transfer.runtime.run(130)
    assert transfer.completed
    assert not transfer.failed


def test_a_dead_sender_is_given_up_however_slow_the_pace(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, SLOW)
    transfer.offer(40, contents_of(1, 9_500))
    transfer.fetch(40)
    transfer.runtime.run(15)
    del transfer.wire.nodes[LEADER]
    transfer.runtime.run(200)
    assert transfer.failed


def test_a_sender_that_waits_for_its_pace_keeps_what_was_asked_for(tmp_path: Path) -> None:
    transfer = Transfer(tmp_path, msgspec.structs.replace(SLOW, bytes_per_s=1 << 30))
    transfer.sender = transfer.senders[LEADER] = transfer._sender(LEADER, SLOW)
    transfer.offer(40, contents_of(1, 3_500))
    transfer.fetch(40)
    transfer.runtime.run(45)
    assert transfer.completed


def test_unused_checkpoints_are_dropped_and_pin_the_log_no_longer(transfer: Transfer) -> None:
    directory = transfer.offer(40, contents_of(1, 3_000))
    assert transfer.sender.pins() == {SHARD: 40}
    assert transfer.sender.kept(SHARD) == meta_at(40)
    transfer.runtime.run(100)
    assert transfer.sender.pins() == {SHARD: 40}
    transfer.runtime.run(100)
    assert transfer.sender.pins() == {}
    assert not Path(directory).exists()
    assert transfer.runtime.pending_count == 0


def test_checkpoints_in_use_are_bounded_in_number_and_a_refused_one_is_removed(tmp_path: Path) -> None:
    settings = SnapshotSettings(kept_max=2)
    transfer = Transfer(tmp_path, settings)
    kept = [transfer.checkpoint(str(shard), {"a": b"x"}) for shard in range(4)]
    assert [transfer.sender.offer(ShardId(shard), meta_at(1), kept[shard]) for shard in range(3)] == [
        True,
        True,
        False,
    ]
    assert not transfer.sender.has_room
    transfer.runtime.run(0.1)
    assert [Path(directory).exists() for directory in kept] == [True, True, False, True]
    transfer.runtime.run(40)
    assert transfer.sender.has_room
    assert transfer.sender.offer(ShardId(3), meta_at(1), kept[3])
    transfer.runtime.run(0.1)
    assert [Path(directory).exists() for directory in kept] == [False, True, False, True]


def test_a_newer_checkpoint_of_a_shard_replaces_the_older(transfer: Transfer) -> None:
    old = transfer.offer(40, {"a": b"x"})
    new = transfer.offer(50, {"a": b"y"})
    transfer.runtime.run(0.1)
    assert not Path(old).exists()
    assert Path(new).exists()
    transfer.sender.close()
    transfer.runtime.run(0.1)
    assert not Path(new).exists()


def test_a_checkpoint_that_cannot_be_read_is_withdrawn(transfer: Transfer) -> None:
    directory = transfer.checkpoint("odd", {"a": b"x"})
    (Path(directory) / "b").mkdir()
    transfer.sender.offer(SHARD, meta_at(40), directory)
    transfer.fetch(40)
    transfer.runtime.run(1)
    assert transfer.sender.kept(SHARD) is None
    assert not transfer.completed
