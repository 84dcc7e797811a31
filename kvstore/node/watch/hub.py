"""All watches of one node: their feeds, their progress lines, their bounds and their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from itertools import islice
from typing import Any, Final

from kvstore.errors import Overloaded, Unavailable
from kvstore.node.requests import BodyStream
from kvstore.node.runtime import Runtime
from kvstore.node.watch.feed import Feed
from kvstore.node.watch.interests import Interest
from kvstore.node.watch.lines import Event, Style
from kvstore.node.watch.positions import At, behind, seal_all
from kvstore.node.watch.source import Router, Source
from kvstore.node.watch.watcher import Watcher
from kvstore.types import ShardId
from kvstore.wire.api import problem_document

PROGRESS_S: Final = 10.0
BUCKETS: Final = 100
"""Progress lines of all watches are spread evenly over the period."""
FLUSHED_AT_ONCE: Final = 256
"""Watches that are written to in one turn of the loop: each costs a call of the kernel."""
REPLAY_STEPS: Final = 4
"""Slices of replays that are read in one turn of the loop."""


class Watches:
    """`on_applied` is the host's table of whom to tell that a shard's replica here has applied something."""

    def __init__(
        self,
        router: Router,
        on_applied: MutableMapping[ShardId, Callable[[], None]],
        runtime: Runtime,
        watchers_max: int,
    ) -> None:
        self.runtime = runtime
        self.watchers_max = watchers_max
        self.watchers: dict[Watcher, None] = {}
        self.feeds: dict[ShardId, Feed] = {}
        self.touched: dict[Watcher, None] = {}
        """Watches with events that are not written yet."""
        self.event_count = 0
        self.paused_count = 0
        self.compacted_count = 0
        self._router = router
        self._shards = router.shards
        self._on_applied = on_applied
        self._replays: dict[Feed, None] = {}
        self._is_replaying = False
        self._is_flushing = False
        self._buckets: list[dict[Watcher, None]] = [{} for _ in range(BUCKETS)]
        self._bucket = 0
        self._is_ticking = False
        self._is_stopped = False

    # ---- watches ---------------------------------------------------------------------------------

    def check_room(self) -> None:
        """Raises: Overloaded, Unavailable."""
        if self._is_stopped:
            raise Unavailable("this node stops: ask another", retry_after=0)
        if len(self.watchers) >= self.watchers_max:
            raise Overloaded(
                f"{len(self.watchers)} watches are open on this node", limit="watchers_max", retry_after=1
            )

    def open(
        self,
        interest: Interest,
        style: Style,
        starts: Mapping[ShardId, At],
        newest: Mapping[ShardId, int],
        stream: BodyStream,
    ) -> Watcher:
        """Begin a watch. `starts` says where in each shard that it looks at, one or all of them in token
        order; `newest` is a revision that each of those has reached."""
        shards = self._shards()
        watcher = Watcher(self, interest, style, stream, is_single=len(starts) < len(shards))
        self.watchers[watcher] = None
        # The bucket that comes last: the first progress line is due in a whole period.
        watcher.bucket = (self._bucket - 1) % BUCKETS
        self._buckets[watcher.bucket][watcher] = None
        for shard, at in starts.items():
            watcher.add(self._feed(shard, newest[shard]), at)
        watcher.begin()
        self._tick_on()
        return watcher

    def forget(self, watcher: Watcher) -> None:
        """A watch is closed."""
        self.watchers.pop(watcher, None)
        self.touched.pop(watcher, None)
        self._buckets[watcher.bucket].pop(watcher, None)

    def stop(self) -> None:
        """This node stops: its watchers must go on at another."""
        self._is_stopped = True
        problem = problem_document(Unavailable("this node stops: go on at another", retry_after=0))
        del problem["type"]
        for watcher in list(self.watchers):
            watcher.fail(problem)

    def _feed(self, shard: ShardId, newest: int) -> Feed:
        feed = self.feeds.get(shard)
        if feed is None:
            source = Source(shard, self._router, self.runtime)
            here = source.newest()
            feed = Feed(shard, behind(newest if here is None else here), source, self)
            self.feeds[shard] = feed
            self._on_applied[shard] = feed.wake
        return feed

    # ---- telling ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what watches have been given: if many have, some in this turn of the loop, others later."""
        if self._is_flushing:
            return
        some = list(islice(self.touched, FLUSHED_AT_ONCE))
        for watcher in some:
            del self.touched[watcher]
        for watcher in some:
            watcher.flush()
        if self.touched:
            self._is_flushing = True
            self.runtime.call_soon(self._flush_on)

    def _flush_on(self) -> None:
        self._is_flushing = False
        self.flush()

    def shared_line(self, style: Style, event: Event) -> bytes:
        """For watches over all shards that are up to date in each: they all stand where the feeds do."""
        line = event.lines.get((style, True))
        if line is None:
            feeds = self.feeds
            ats = [event.after if shard == event.shard else feeds[shard].live.at for shard in self._shards()]
            line = event.lines[style, True] = style.event(event, seal_all(ats))
        return line

    # ---- replays ---------------------------------------------------------------------------------

    def want_replay(self, feed: Feed) -> None:
        self._replays[feed] = None
        if not self._is_replaying:
            self._is_replaying = True
            self.runtime.call_soon(self._step_replays)

    def _step_replays(self) -> None:
        """A few slices in turn, then whoever else wants the loop."""
        self._is_replaying = False
        for feed in list(self._replays)[:REPLAY_STEPS]:
            del self._replays[feed]
            feed.step_replay()
        if self._replays and not self._is_replaying:
            self._is_replaying = True
            self.runtime.call_soon(self._step_replays)

    # ---- progress --------------------------------------------------------------------------------

    def _tick_on(self) -> None:
        if not self._is_ticking:
            self._is_ticking = True
            self.runtime.call_later(PROGRESS_S / BUCKETS, self._tick)

    def _tick(self) -> None:
        self._is_ticking = False
        if self._is_stopped:
            return
        self._bucket = (self._bucket + 1) % BUCKETS
        bucket = self._buckets[self._bucket]
        if bucket:
            self._tell_progress(list(bucket))
        for feed in list(self.feeds.values()):
            if not feed.user_count:
                self._drop(feed)
            else:
                # The replica here may have come or gone without having applied anything.
                feed.wake()
        if self.feeds:
            self._tick_on()

    def _drop(self, feed: Feed) -> None:
        feed.close()
        del self.feeds[feed.shard]
        self._replays.pop(feed, None)
        self._on_applied.pop(feed.shard, None)

    def _tell_progress(self, watchers: list[Watcher]) -> None:
        """No line while a shard's leader has not been heard for long: silence tells the reader to go on
        elsewhere."""
        stale = {shard for shard, feed in self.feeds.items() if not feed.is_fresh}
        lines: dict[Any, bytes] = {}
        for watcher in watchers:
            if stale and not stale.isdisjoint(watcher.parts):
                continue
            watcher.tell_progress(self._progress_line(watcher, lines))

    def _progress_line(self, watcher: Watcher, lines: dict[Any, bytes]) -> bytes:
        style = watcher.style
        if watcher.parts_not_live:
            return style.line("progress", watcher.position())
        if watcher.is_single:
            [shard] = watcher.parts
            name: Any = (style, shard)
        else:
            name = style
        line = lines.get(name)
        if line is None:
            line = lines[name] = style.line("progress", watcher.position())
        return line
