"""Watches lose nothing, repeat nothing and never go back: schedules on whole clusters.

Each schedule runs twice: as it ships, and with its guard taken away. It must fail then, or it proves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kvstore.config import History
from kvstore.errors import Compacted
from kvstore.node.api import ranges
from kvstore.node.api import watch as watch_api
from kvstore.node.keeper import KeeperSettings
from kvstore.node.requests import Request, Response
from kvstore.node.router import Router
from kvstore.node.watch import positions
from kvstore.node.watch.feed import Feed, Run
from kvstore.node.watch.lines import Event
from kvstore.node.watch.watcher import Watcher
from kvstore.raft.messages import AppendRequest
from kvstore.store import queries
from kvstore.types import NodeId
from tests.sim.guards import Remove
from tests.sim.script import N1, N2, N3, Script

KINDS = ("put", "delete", "expire")


class Stream:
    """The caller's end of a watch, `room` pieces wide."""

    def __init__(
        self, script: Script, at: NodeId, query: str = "", room: int = 1_000_000, *, waits: bool = True
    ) -> None:
        self.room = room
        self.is_open = True
        self.is_ended = False
        self.status = 0
        self.pieces: list[bytes] = []
        self._on_drain: Callable[[], None] | None = None
        process = script.process(at)
        self._runtime = process.runtime
        self.request = script.cluster.open(process, "GET", "/v1/watch" + query, {}, self)
        if waits:
            script.run_until(lambda: self.status != 0, 7.0, "the watch is answered")
            assert self.status == 200, b"".join(self.pieces)

    def answer(self, request: Request, response: Response) -> None:
        self.status = response.status
        self.pieces.append(response.body)

    def open_stream(self, request: Request, response: Response) -> Stream:
        self.status = response.status
        return self

    def write(self, piece: bytes) -> bool:
        self.pieces.append(piece)
        self.room -= 1
        return self.room > 0

    def on_drain(self, callback: Callable[[], None]) -> None:
        self._on_drain = callback

    def end(self) -> None:
        self.is_ended = True

    def drain(self, room: int = 1_000_000) -> None:
        self.room = room
        callback, self._on_drain = self._on_drain, None
        if callback is not None:
            self._runtime.call_soon(callback)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in b"".join(self.pieces).splitlines()]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["type"] in KINDS]

    @property
    def values(self) -> list[str | None]:
        return [event.get("value") for event in self.events]

    @property
    def types(self) -> list[str]:
        return [line["type"] for line in self.lines]


def started(history: int = 100_000, nodes: int = 3) -> Script:
    script = Script(
        nodes=nodes,
        edit=lambda config: msgspec.structs.replace(config, history=History(revisions=history, minutes=10.0)),
    )
    script.cluster.keeper = KeeperSettings(
        memory_log_bytes_max=2_000, unflushed_bytes_max=1_000, flush_after_s=0.5, segments_max=1
    )
    script.start()
    script.lead(N1)
    script.run(1.0)
    return script


def put_all(script: Script, *values: str, at: NodeId = N1, key: str = "a") -> None:
    for value in values:
        assert script.put(at, key, value).status in (200, 201)
    script.run(0.2)


def numbers(start: int, end: int) -> list[str]:
    return [str(number) for number in range(start, end)]


# --- 24: history goes while somebody is slow


def history_goes_while_a_reader_is_slow() -> None:
    script = started(history=10)
    slow = Stream(script, N2, "?key=a", room=3)
    put_all(script, *numbers(0, 40))
    assert slow.values == ["0", "1"], "its stream had said stop"
    slow.drain()
    script.run(1.0)
    assert slow.types == ["start", "put", "put", "compacted", "end"], "events were lost without a word"
    goes_on = Stream(script, N3, f"?key=a&from={slow.lines[-1]['pos']}")
    script.run(0.5)
    assert goes_on.values == numbers(29, 40), "from the oldest revision that is kept, all that follow"
    script.check()


def _go_on_behind_the_gap(patch: pytest.MonkeyPatch) -> None:
    """What is compacted is passed over."""

    def skip(feed: Feed, run: Run, oldest: int) -> None:
        run.at = positions.before(oldest)

    patch.setattr(Feed, "_skip_to", skip)


def _read_what_is_left(patch: pytest.MonkeyPatch) -> None:
    """The change log begins where it begins, whatever was asked for."""
    changes = queries._changes

    def read(engine: Any, meta: Any, revision: int, options: Any) -> Any:
        try:
            return changes(engine, meta, revision, options)
        except Compacted:
            return changes(engine, meta, meta.compacted, options)

    patch.setitem(queries._QUERIES, "changes", read)


# --- 24: a snapshot takes the place of the history


def a_snapshot_takes_the_place_of_the_history() -> None:
    script = started(history=10)
    put_all(script, "0")
    stream = Stream(script, N3, "?key=a")
    script.part(N3)
    put_all(script, *numbers(1, 200))
    script.run(2.0)
    script.mend()
    script.run_until(
        lambda: script.replica(N3).machine.revision == script.replica(N1).machine.revision,
        20.0,
        "the follower has caught up",
    )
    script.run(1.0)
    assert script.process(N3).node.snapshots.installed, "it took no snapshot"
    assert stream.types == ["start", "compacted", "end"]
    script.check()


# --- 24: back in time


def a_watch_begins_at_a_node_that_is_behind() -> None:
    script = started()
    put_all(script, "0")
    script.sift(lambda source, target, message: target != N3 or not isinstance(message, AppendRequest))
    put_all(script, "1", "2")
    assert script.replica(N3).machine.revision == 1
    script.world.after(0.4, script.mend)
    stream = Stream(script, N3)
    put_all(script, "3")
    script.run(0.5)
    assert stream.values == ["3"], "it began before what had long happened"
    script.check()


def _begin_with_what_is_known_here(patch: pytest.MonkeyPatch) -> None:
    """No index is confirmed before a watch begins."""
    read = Router.read

    def stale(router: Router, shard: Any, query: Any, consistency: str, deadline: float) -> Any:
        return read(router, shard, query, "stale" if query == ("revision",) else consistency, deadline)

    patch.setattr(Router, "read", stale)


def readers_of_different_age_share_a_replay() -> None:
    script = started()
    begin = Stream(script, N1, "")
    put_all(script, *numbers(0, 6))
    ages = [0, 3, 5, 1]
    streams = [Stream(script, N2, f"?from={begin.lines[age]['pos']}", waits=False) for age in ages]
    script.run(2.0)
    put_all(script, "6")
    assert [stream.values for stream in streams] == [numbers(age, 7) for age in ages]
    script.check()


def _tell_all_that_is_read(patch: pytest.MonkeyPatch) -> None:
    """A part is told what its run reads, wherever it stood itself."""
    tell = Feed._tell

    def everything(feed: Feed, run: Run, events: list[Any]) -> None:
        for part in run.interests.parts:
            part.at = 0
        tell(feed, run, events)

    patch.setattr(Feed, "_tell", everything)


# --- 24: several changes of one revision


def a_watch_is_cut_amid_the_changes_of_one_revision() -> None:
    script = started()
    stream = Stream(script, N1, "")
    for number in range(6):
        put_all(script, "v", key=f"k{number}")
    script.ask(N1, "DELETE", "/v1/kv?prefix=k&confirm=*")
    script.run(0.2)
    deletes = [event for event in stream.events if event["type"] == "delete"]
    assert len({event["revision"] for event in deletes}) == 1
    for seen in range(1, 7):
        rest = Stream(script, N2, f"?from={deletes[seen - 1]['pos']}")
        script.run(0.3)
        told = [event["key"] for event in deletes[:seen]] + [event["key"] for event in rest.events]
        assert told == [f"k{number}" for number in range(6)]
    script.check()


def _stand_behind_the_revision(patch: pytest.MonkeyPatch) -> None:
    """The position of a change is that behind its whole revision."""
    init = Event.__init__

    def make(event: Event, *args: Any) -> None:
        init(event, *args[:-1], positions.behind(event_revision(args)))

    def event_revision(args: tuple[Any, ...]) -> int:
        revision = args[1]
        assert isinstance(revision, int)
        return revision

    patch.setattr(Event, "__init__", make)


def _stand_before_the_revision(patch: pytest.MonkeyPatch) -> None:
    """A position names revisions only, and a revision that is not over is not seen."""
    patch.setattr(positions, "_packed", lambda at: positions.revision_of(at) - 1)


# --- 24: a slow reader


def a_reader_stops_and_reads_again() -> None:
    script = started()
    slow = Stream(script, N2, "", room=3)
    put_all(script, *numbers(0, 30))
    assert len(slow.events) < 30
    slow.drain(2)
    put_all(script, *numbers(30, 40))
    slow.drain()
    script.run(1.0)
    assert slow.values == numbers(0, 40)
    script.check()


def _drop_what_does_not_fit(patch: pytest.MonkeyPatch) -> None:
    """A watch whose reader is slow stays with the feeds, and what does not fit is dropped."""
    write = Watcher._write

    def pause(watcher: Watcher) -> None:
        watcher.is_paused = True
        watcher.stream.on_drain(lambda: setattr(watcher, "is_paused", False))

    def write_if_it_fits(watcher: Watcher, piece: bytes) -> None:
        if not watcher.is_paused:
            write(watcher, piece)

    patch.setattr(Watcher, "_pause", pause)
    patch.setattr(Watcher, "_write", write_if_it_fits)


# --- 46: list, then watch


def something_happens_between_the_list_and_the_watch() -> None:
    script = started()
    put_all(script, "listed")
    put_all(script, "listed", key="b")
    pages = [json.loads(script.ask(N1, "GET", "/v1/kv?limit=1").body)]
    put_all(script, "between the pages")
    pages.append(json.loads(script.ask(N2, "GET", f"/v1/kv?limit=1&cursor={pages[0]['next']}").body))
    put_all(script, "between", key="b")
    assert [page["items"][0]["value"] for page in pages] == ["listed", "listed"]
    assert pages[0]["pos"] == pages[1]["pos"]
    streams = [
        Stream(script, node, f"?{query}from={pages[1]['pos']}")
        for node in (N1, N2, N3)
        for query in ("", "prefix=b&", "key=b&")
    ]
    put_all(script, "after", key="b")
    for stream in streams:
        assert [value for value in stream.values if value != "between the pages"] == ["between", "after"]
    assert streams[0].values == ["between the pages", "between", "after"]
    script.check()


def _name_what_is_newest(patch: pytest.MonkeyPatch) -> None:
    """A list's position is where its shards are when it is answered, not where the list was taken."""
    cursor = ranges.Scan.page

    async def page(scan: Any, items_max: int, bytes_max: int) -> Any:
        found = await cursor(scan, items_max, bytes_max)
        answers = [
            await scan._context.router.read(part.shard, ("revision",), "linearizable", scan.deadline)
            for part in scan._parts
        ]
        scan.position = lambda: ranges.position_of([answer.value[0] for answer in answers])
        return found

    patch.setattr(ranges.Scan, "page", page)


def _begin_now(patch: pytest.MonkeyPatch) -> None:
    """A watch begins with what is newest, wherever it was asked to."""
    begin = watch_api._begin

    def start(context: Any, request: Any, interest: Any, style: Any, shards: Any, starts: Any) -> Any:
        return begin(context, request, interest, style, shards, None)

    patch.setattr(watch_api, "_begin", start)


def _begin_a_little_earlier(patch: pytest.MonkeyPatch) -> None:
    """To be sure that nothing is lost, the revision of the list is told again."""
    unpacked = positions._unpacked
    patch.setattr(positions, "_unpacked", lambda packed: max(0, unpacked(packed) - positions.before(1)))


SCHEDULES: dict[str, tuple[int, Callable[[], None], tuple[Remove, ...]]] = {
    "history goes": (24, history_goes_while_a_reader_is_slow, (_go_on_behind_the_gap, _read_what_is_left)),
    "a snapshot": (
        24,
        a_snapshot_takes_the_place_of_the_history,
        (_go_on_behind_the_gap, _read_what_is_left),
    ),
    "a node that is behind": (24, a_watch_begins_at_a_node_that_is_behind, (_begin_with_what_is_known_here,)),
    "readers share": (24, readers_of_different_age_share_a_replay, (_tell_all_that_is_read,)),
    "one revision": (
        24,
        a_watch_is_cut_amid_the_changes_of_one_revision,
        (_stand_behind_the_revision, _stand_before_the_revision),
    ),
    "a slow reader": (24, a_reader_stops_and_reads_again, (_drop_what_does_not_fit,)),
    "list, then watch": (
        46,
        something_happens_between_the_list_and_the_watch,
        (_name_what_is_newest, _begin_now, _begin_a_little_earlier),
    ),
}


def _named(number: int) -> list[str]:
    return [name for name, (pitfall, _, _) in SCHEDULES.items() if pitfall == number]


@pytest.mark.parametrize("name", _named(24))
def test_pitfall_24_a_watch_is_told_every_change_once(name: str) -> None:
    SCHEDULES[name][1]()


@pytest.mark.parametrize("name", _named(46))
def test_pitfall_46_list_then_watch_shows_what_lies_between_once(name: str) -> None:
    SCHEDULES[name][1]()


@pytest.mark.parametrize(
    ("name", "remove"), [(name, remove) for name, (_, _, guards) in SCHEDULES.items() for remove in guards]
)
def test_pitfalls_24_and_46_show_without_each_guard(
    name: str, remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch)
    with pytest.raises(AssertionError):
        SCHEDULES[name][1]()
