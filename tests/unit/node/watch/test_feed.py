"""Feeds over real replicas: live, behind, ahead, slow, from afar; nothing lost, repeated or reordered."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from kvstore.node.watch import Interest, Watches
from kvstore.node.watch.lines import LINE, STYLES
from kvstore.node.watch.positions import behind, unseal
from kvstore.node.watch.watcher import Watcher
from kvstore.store import StoreLimits, commands
from kvstore.types import NodeId, ShardId
from kvstore.wire import peer
from tests.support.host_group import N1, N2, N3, SHARD, HostGroup

N4 = NodeId("n4")
EVERYTHING = Interest(None, b"")


class Reader:
    """A caller's end of a stream: takes `room` pieces, then says stop until `drain`."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.room = room
        self.is_open = True
        self.is_ended = False
        self.pieces: list[bytes] = []
        self._on_drain: Any = None

    def write(self, piece: bytes) -> bool:
        assert not self.is_ended
        if not self.is_open:
            return False
        self.pieces.append(piece)
        self.room -= 1
        return self.room > 0

    def on_drain(self, callback: Any) -> None:
        self._on_drain = callback

    def end(self) -> None:
        self.is_ended = True

    def drain(self, room: int) -> None:
        self.room = room
        callback, self._on_drain = self._on_drain, None
        if callback is not None:
            callback()

    @property
    def lines(self) -> list[Any]:
        return [msgspec.json.decode(line) for line in b"".join(self.pieces).splitlines()]

    @property
    def events(self) -> list[tuple[int, str, str | None]]:
        """(revision, key, value) of every change."""
        kinds = ("put", "delete", "expire")
        return [
            (line["revision"], line["key"], line.get("value")) for line in self.lines if line["type"] in kinds
        ]


class Watching:
    def __init__(self, group: HostGroup, name: NodeId) -> None:
        node = group[name]
        self.group = group
        self.node = node
        self.watches = Watches(node.router, node.host.on_applied, node.runtime, 1000)  # type: ignore[arg-type]

    def open(
        self, interest: Interest = EVERYTHING, revision: int | None = None, room: int = 1_000_000, **more: Any
    ) -> tuple[Watcher, Reader]:
        """A watch from behind `revision`, by default from now."""
        reader = Reader(room)
        leader = self.group.leader()
        assert leader is not None
        newest = leader.replica().machine.revision
        at = behind(newest if revision is None else revision)
        style = STYLES[LINE, more.get("prev", False)]
        return self.watches.open(interest, style, {SHARD: at}, {SHARD: newest}, reader), reader


@pytest.fixture
def group() -> HostGroup:
    group = HostGroup()
    group.lead(N1)
    return group


def put(group: HostGroup, key: str, value: str = "v") -> None:
    group.write(N1, commands.put(key.encode(), value.encode())).wait()


def put_all(group: HostGroup, keys: str) -> None:
    for key in keys:
        put(group, key)
    group.run(0.1)


@pytest.mark.parametrize("name", [N1, N2])
def test_what_is_applied_here_is_told(group: HostGroup, name: NodeId) -> None:
    put_all(group, "a")
    _, reader = Watching(group, name).open()
    put_all(group, "bcb")
    assert [(revision, key) for revision, key, _ in reader.events] == [(2, "b"), (3, "c"), (4, "b")]


def test_a_watch_from_the_past_reads_the_log_and_then_goes_live(group: HostGroup) -> None:
    put_all(group, "abc")
    watching = Watching(group, N2)
    watcher, reader = watching.open(revision=1)
    group.run(0.1)
    assert [key for _, key, _ in reader.events] == ["b", "c"]
    assert watcher.parts_not_live == 0
    put_all(group, "d")
    assert [revision for revision, _, _ in reader.events] == [2, 3, 4]


def test_a_watch_ahead_of_this_replica_is_told_nothing_it_has_seen(group: HostGroup) -> None:
    put_all(group, "ab")
    group.part(N2)
    put_all(group, "cd")
    watching = Watching(group, N2)
    watcher, reader = watching.open(revision=3)
    assert watcher.parts_not_live == 1
    group.network.cut.clear()
    group.run(3.0)
    assert [key for _, key, _ in reader.events] == ["d"]
    assert watcher.parts_not_live == 0


def test_watches_behind_share_one_reading_of_the_log(group: HostGroup) -> None:
    put_all(group, "abcdef")
    watching = Watching(group, N1)
    watching.open()
    readers = [watching.open(revision=revision)[1] for revision in (0, 4, 2, 5)]
    reads = []
    machine, query = group[N1].replica().machine, group[N1].replica().machine.query
    machine.query = lambda asked: reads.append(asked) or query(asked)  # type: ignore[method-assign,func-returns-value]
    group.run(0.2)
    assert ["".join(key for _, key, _ in reader.events) for reader in readers] == [
        "abcdef",
        "ef",
        "cdef",
        "f",
    ]
    assert len([asked for asked in reads if asked[1] <= 6]) == 1


def test_a_slow_reader_is_fed_from_the_log_once_it_reads_again(group: HostGroup) -> None:
    watching = Watching(group, N1)
    watcher, slow = watching.open(room=2)
    _, quick = watching.open()
    put_all(group, "abcd")
    assert [key for _, key, _ in slow.events] == ["a"], "the stream said stop behind it"
    assert watcher.is_paused
    assert [key for _, key, _ in quick.events] == ["a", "b", "c", "d"]
    slow.drain(1)
    group.run(0.1)
    assert [key for _, key, _ in slow.events] == ["a", "b", "c", "d"]
    assert watcher.is_paused
    put_all(group, "e")
    slow.drain(100)
    put_all(group, "f")
    assert [key for _, key, _ in slow.events] == list("abcdef")
    assert watcher.parts_not_live == 0
    assert watching.watches.paused_count == 2


def test_pitfall_24_a_slow_reader_that_history_has_left_is_told_so(group: HostGroup) -> None:
    group.write(N1, commands.set_limits(StoreLimits(history_revisions=3))).wait()
    watching = Watching(group, N1)
    _, slow = watching.open(room=2)
    put_all(group, "abcdefghij")
    slow.drain(100)
    group.run(0.1)
    types = [line["type"] for line in slow.lines]
    assert types == ["start", "put", "compacted", "end"]
    assert slow.is_ended
    oldest = group[N1].replica().machine.compacted
    assert slow.lines[2]["compacted"] == oldest
    _, again = watching.open(revision=oldest - 1)
    group.run(0.1)
    assert [revision for revision, _, _ in again.events] == list(range(oldest, 11))


def test_pitfall_24_who_is_further_along_is_not_told_of_others_lost_history(group: HostGroup) -> None:
    group.write(N1, commands.set_limits(StoreLimits(history_revisions=3))).wait()
    put_all(group, "abcdefghij")
    watching = Watching(group, N1)
    _, late = watching.open(revision=2)
    _, early = watching.open(revision=8)
    group.run(0.1)
    assert [line["type"] for line in late.lines] == ["start", "compacted", "end"]
    assert [line["type"] for line in early.lines] == ["start", "put", "put"]


def test_pitfall_24_an_installed_snapshot_without_their_history_is_told_to_watches(group: HostGroup) -> None:
    group.write(N1, commands.set_limits(StoreLimits(history_revisions=3))).wait()
    put_all(group, "a")
    watching = Watching(group, N2)
    watcher, reader = watching.open()
    group.part(N2)
    put_all(group, "bcdefghij")
    _, ahead = watching.open(revision=9)
    replica, machine = group[N2].replica(), group[N1].replica().machine
    assert machine.compacted > replica.machine.revision + 1
    replica.replace_machine(machine, "copy", machine.snapshot_meta())
    group[N2].host.mark_dirty(replica)
    group.run(0.1)
    assert [line["type"] for line in reader.lines] == ["start", "compacted", "end"]
    assert watcher.is_closed
    assert [key for _, key, _ in ahead.events] == ["j"]


def test_an_installed_snapshot_that_holds_the_history_is_not_noticed(group: HostGroup) -> None:
    put_all(group, "a")
    watching = Watching(group, N2)
    _, reader = watching.open()
    group.part(N2)
    put_all(group, "bcd")
    replica, machine = group[N2].replica(), group[N1].replica().machine
    replica.replace_machine(machine, "copy", machine.snapshot_meta())
    group[N2].host.mark_dirty(replica)
    group.run(0.1)
    assert [key for _, key, _ in reader.events] == ["b", "c", "d"]


def test_a_position_is_never_behind_what_was_told(group: HostGroup) -> None:
    watching = Watching(group, N1)
    _, reader = watching.open()
    put_all(group, "ab")
    group.write(N1, commands.delete_range(b"", None)).wait()
    group.run(0.1)
    for line in reader.lines[1:3]:
        assert unseal(line["pos"], [SHARD], [SHARD]) == {SHARD: behind(line["revision"])}
    first, last = reader.lines[3:]
    assert unseal(last["pos"], [SHARD], [SHARD]) == {SHARD: behind(3)}
    assert behind(2) < unseal(first["pos"], [SHARD], [SHARD])[SHARD] < behind(3)


def test_watches_that_close_leave_no_feed(group: HostGroup) -> None:
    watching = Watching(group, N1)
    watchers = [watching.open()[0], watching.open(Interest(b"a"))[0]]
    group.run(0.5)
    assert group[N1].host.on_applied
    for watcher in watchers:
        watcher.close()
    group.run(0.5)
    assert not watching.watches.feeds
    assert not group[N1].host.on_applied


def test_a_caller_that_went_before_the_first_line_is_not_fed(group: HostGroup) -> None:
    watching = Watching(group, N1)
    _, reader = watching.open(room=10)
    reader.is_open = False
    gone = Reader()
    gone.is_open = False
    watcher = watching.watches.open(EVERYTHING, STYLES[LINE, False], {SHARD: behind(0)}, {SHARD: 0}, gone)
    assert watcher.is_closed
    put_all(group, "ab")
    group.run(0.5)
    assert not watching.watches.feeds, "both were found gone"


def test_a_paused_watch_keeps_its_feed(group: HostGroup) -> None:
    watching = Watching(group, N1)
    _, reader = watching.open(room=1)
    group.run(1.0)
    put_all(group, "a")
    reader.drain(10)
    group.run(0.1)
    assert [key for _, key, _ in reader.events] == ["a"]


class TestFromAfar:
    @pytest.fixture
    def group(self) -> HostGroup:
        group = HostGroup(nodes=4, homes=3)
        group.lead(N1)
        return group

    def test_a_node_without_a_replica_is_fed_by_one_that_has(self, group: HostGroup) -> None:
        put_all(group, "ab")
        watching = Watching(group, N4)
        _, live = watching.open()
        _, past = watching.open(revision=0)
        put_all(group, "cd")
        assert [key for _, key, _ in live.events] == ["c", "d"]
        assert [key for _, key, _ in past.events] == ["a", "b", "c", "d"]
        group.run(12.0)
        put_all(group, "e")
        assert [key for _, key, _ in live.events] == ["c", "d", "e"]

    def test_only_what_is_watched_travels(self, group: HostGroup) -> None:
        watching = Watching(group, N4)
        _, reader = watching.open(Interest(b"b"))
        group.run(0.1)
        replies = group.watch(peer.ForwardReply, N1)
        put(group, "a", "large" * 1000)
        put_all(group, "b")
        assert [key for _, key, _ in reader.events] == ["b"]
        assert all(len(reply.payload) < 1000 for reply in replies)

    def test_who_comes_while_a_narrower_read_is_out_misses_nothing(self, group: HostGroup) -> None:
        watching = Watching(group, N4)
        _, one = watching.open(Interest(b"a"))
        group.run(0.5)
        _, other = watching.open(Interest(b"b"), prev=True)
        put_all(group, "ba")
        assert [key for _, key, _ in one.events] == ["a"]
        assert [key for _, key, _ in other.events] == ["b"]

    def test_it_goes_on_through_a_change_of_leaders(self, group: HostGroup) -> None:
        watching = Watching(group, N4)
        _, reader = watching.open()
        put_all(group, "a")
        group[N1].stop()
        group.run_until(lambda: group.leader() not in (None, group[N1]))
        leader = group.leader()
        assert leader is not None
        for key in (b"b", b"c"):
            group.write(leader.name, commands.put(key, b"")).wait()
        group.run(7.0)
        assert [key for _, key, _ in reader.events] == ["a", "b", "c"]

    def test_history_gone_over_there_is_told_here(self, group: HostGroup) -> None:
        group.write(N1, commands.set_limits(StoreLimits(history_revisions=2))).wait()
        put_all(group, "abcdefgh")
        watching = Watching(group, N4)
        _, reader = watching.open(revision=1)
        group.run(0.5)
        assert [line["type"] for line in reader.lines] == ["start", "compacted", "end"]


@pytest.mark.parametrize("seed", range(6))
def test_every_reader_sees_the_history_of_what_it_watches(seed: int) -> None:
    """Many readers, slow ones and such that come back, over changes and moving leaders."""
    dice = Random(seed)
    group = HostGroup(nodes=4, homes=3)
    group.lead(N1)
    name = dice.choice([N1, N2, N4])
    watching = Watching(group, name)
    interests = [EVERYTHING, Interest(b"a"), Interest(None, b"b"), Interest(b"b1")]
    watched: list[tuple[Interest, int, Reader, Watcher]] = []
    keys = [b"a", b"a1", b"b", b"b1", b"c"]
    for _ in range(60):
        draw = dice.random()
        if draw < 0.6:
            group.write(N3, commands.put(dice.choice(keys), dice.randbytes(3).hex().encode())).wait()
        elif draw < 0.7:
            group.write(N3, commands.delete_range(b"a", dice.choice((b"b", None)))).wait()
        elif draw < 0.85:
            leader = group.leader()
            assert leader is not None
            since = dice.randint(0, leader.replica().machine.revision)
            interest = dice.choice(interests)
            watcher, reader = watching.open(interest, since, room=dice.choice((2, 5, 1_000_000)))
            watched.append((interest, since, reader, watcher))
        elif watched:
            dice.choice(watched)[2].drain(dice.choice((1, 3, 50)))
        if dice.random() < 0.5:
            group.run(dice.uniform(0, 0.05))
    for _ in range(3):
        for _, _, reader, _ in watched:
            reader.drain(1_000_000)
        group.run(6.0)
    machine = group[N1].replica().machine
    changes = machine.query(["changes", 1, {}])[0]
    assert watched
    for interest, since, reader, watcher in watched:
        wanted = [
            (change[0], change[2].decode(), change[3] and change[3][0].decode())
            for change in changes
            if change[0] > since
            and (change[2] == interest.key if interest.key else change[2].startswith(interest.prefix))
        ]
        assert reader.events == wanted
        assert watcher.parts_not_live == 0
        assert unseal(watcher.position(), [SHARD], [SHARD]) == {ShardId(0): behind(machine.revision)}
