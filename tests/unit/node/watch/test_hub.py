"""All watches of a node: progress spread over time, many written to in turns, an orderly end."""

from __future__ import annotations

import pytest

from kvstore.errors import Overloaded, Unavailable
from kvstore.node.watch import Interest
from kvstore.node.watch.hub import BUCKETS, FLUSHED_AT_ONCE, PROGRESS_S
from kvstore.store import commands
from tests.support.host_group import N1, HostGroup
from tests.unit.node.watch.test_feed import Watching, put_all


@pytest.fixture
def group() -> HostGroup:
    group = HostGroup()
    group.lead(N1)
    return group


def test_progress_lines_of_many_watches_are_spread_over_the_period(group: HostGroup) -> None:
    watching = Watching(group, N1)
    readers = []
    for _ in range(50):
        readers.append(watching.open()[1])
        group.run(PROGRESS_S / BUCKETS)
    told: list[int] = []
    for _ in range(BUCKETS):
        before = sum(len(reader.pieces) for reader in readers)
        group.run(PROGRESS_S / BUCKETS)
        told.append(sum(len(reader.pieces) for reader in readers) - before)
    assert sum(told) == 50
    assert max(told) <= 2


def test_more_watches_than_one_turn_takes_are_told_in_the_next(group: HostGroup) -> None:
    watching = Watching(group, N1)
    readers = [watching.open(Interest(b"a"))[1] for _ in range(FLUSHED_AT_ONCE + 40)]
    group.write(N1, commands.put(b"a", b"1")).wait()
    group.run_until(lambda: any(len(reader.pieces) > 1 for reader in readers))
    assert sum(len(reader.pieces) > 1 for reader in readers) == FLUSHED_AT_ONCE
    put_all(group, "aab")
    assert all([revision for revision, _, _ in reader.events] == [1, 2, 3] for reader in readers)


def test_a_stop_ends_all_streams_and_takes_no_more(group: HostGroup) -> None:
    watching = Watching(group, N1)
    _, reader = watching.open()
    _, slow = watching.open(room=1)
    put_all(group, "a")
    watching.watches.stop()
    assert [line["type"] for line in reader.lines] == ["start", "put", "error"]
    assert [line["type"] for line in slow.lines] == ["start", "error"]
    assert not watching.watches.watchers
    with pytest.raises(Unavailable):
        watching.watches.check_room()
    group.run(1.0)


def test_the_bound_counts_open_watches(group: HostGroup) -> None:
    watching = Watching(group, N1)
    watching.watches.watchers_max = 1
    watcher, _ = watching.open()
    with pytest.raises(Overloaded):
        watching.watches.check_room()
    watcher.close()
    watching.watches.check_room()
