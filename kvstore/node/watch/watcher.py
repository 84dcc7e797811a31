"""One watch: a stream to its reader, and its place in the log of each shard it looks at.

The stream's own buffer is the only one. Once it is full the watch leaves all feeds, remembers where it
stood, and goes on from the log when the reader has caught up: a slow reader costs the shard nothing
but reads of its log, and misses nothing unless the log itself has been compacted meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstore.node.requests import BodyStream
from kvstore.node.watch.interests import Interest
from kvstore.node.watch.lines import Event, Style
from kvstore.node.watch.positions import At, before, seal_all, seal_one
from kvstore.types import ShardId

if TYPE_CHECKING:
    from kvstore.node.watch.feed import Feed, Run
    from kvstore.node.watch.hub import Watches


class Part:
    """A watch's place in one shard."""

    __slots__ = ("at", "feed", "is_live", "run", "watcher")

    def __init__(self, watcher: Watcher, feed: Feed, at: At) -> None:
        self.watcher = watcher
        self.feed = feed
        self.at = at
        """Nothing before this is ever told (again); behind it, `position` knows better."""
        self.is_live = False
        self.run: Run | None = None
        """The run through the log that it follows, None while it waits for one or is paused."""

    @property
    def position(self) -> At:
        """Where it stands: whatever it wanted of what its run has passed, it has been given."""
        run = self.run
        return self.at if run is None or run.at < self.at else run.at

    def follow(self, run: Run) -> None:
        assert self.run is None, "a part follows one run"
        self.run = run
        run.interests.add(self)

    def be_live(self) -> None:
        """It follows the live run and stands where that does: its position needs no more thought."""
        self.is_live = True
        self.watcher.parts_not_live -= 1

    def unfollow(self) -> None:
        run = self.run
        if run is not None:
            self.at = self.position
            self.run = None
            run.interests.remove(self)
            if self.is_live:
                self.is_live = False
                self.watcher.parts_not_live += 1


class Watcher:
    __slots__ = (
        "_batch",
        "_watches",
        "bucket",
        "interest",
        "is_closed",
        "is_paused",
        "is_single",
        "parts",
        "parts_not_live",
        "stream",
        "style",
    )

    def __init__(
        self, watches: Watches, interest: Interest, style: Style, stream: BodyStream, is_single: bool
    ) -> None:
        self._watches = watches
        self.interest = interest
        self.style = style
        self.stream = stream
        self.is_single = is_single
        """Looks at one shard only, and its positions name only that one."""
        self.parts: dict[ShardId, Part] = {}
        """In token order."""
        self.parts_not_live = 0
        self.bucket = 0
        self.is_paused = False
        self.is_closed = False
        self._batch: list[bytes] = []

    @property
    def wants_prev(self) -> bool:
        return self.style.wants_prev

    def add(self, feed: Feed, at: At) -> None:
        self.parts[feed.shard] = Part(self, feed, at)
        feed.user_count += 1
        self.parts_not_live += 1

    def begin(self) -> None:
        """Say where the watch begins, and join the feeds there."""
        self._write(self.style.line("start", self.position()))
        if not (self.is_paused or self.is_closed):
            self._join()

    # ---- telling ---------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """Put an event into the next piece of the stream."""
        style = self.style
        if self.is_single:
            line = style.of_shard(event)
        elif self.parts_not_live:
            line = style.event(event, self.position())
        else:
            line = self._watches.shared_line(style, event)
        self._batch.append(line)
        self._watches.touched[self] = None

    def flush(self) -> None:
        batch, self._batch = self._batch, []
        if not self.is_closed and batch:
            self._write(batch[0] if len(batch) == 1 else b"".join(batch))

    def position(self) -> str:
        if self.is_single:
            [(shard, part)] = self.parts.items()
            return seal_one(shard, part.position)
        return seal_all([part.position for part in self.parts.values()])

    def tell_progress(self, line: bytes) -> None:
        self.flush()
        if not (self.is_paused or self.is_closed):
            self._write(line)

    def _write(self, piece: bytes) -> None:
        if self.stream.write(piece):
            return
        if not self.stream.is_open:
            self.close()
        elif not self.is_paused:
            self._pause()

    # ---- pausing ---------------------------------------------------------------------------------

    def _pause(self) -> None:
        self.is_paused = True
        self._watches.paused_count += 1
        for part in self.parts.values():
            part.feed.leave(part)
        self.stream.on_drain(self._go_on)

    def _go_on(self) -> None:
        if self.is_closed:
            return
        if not self.stream.is_open:
            self.close()
            return
        self.is_paused = False
        self._join()

    def _join(self) -> None:
        for part in self.parts.values():
            part.feed.join(part)

    # ---- ending ----------------------------------------------------------------------------------

    def compacted(self, part: Part, oldest: int) -> None:
        """The log no longer holds what comes next: say so, and where it goes on."""
        part.unfollow()
        part.at = before(oldest)
        self._watches.compacted_count += 1
        self.flush()
        position = self.position()
        self.end(
            self.style.line("compacted", position, shard=part.feed.shard, compacted=oldest),
            self.style.line("end", position),
        )

    def end(self, *lines: bytes) -> None:
        if self.is_closed:
            return
        self.stream.write(b"".join(lines))
        self.stream.end()
        self.close()

    def fail(self, problem: dict[str, Any]) -> None:
        self.flush()
        if not self.is_closed:
            self.end(self.style.line("error", self.position(), **problem))

    def close(self) -> None:
        """The reader has gone, or was told everything."""
        if self.is_closed:
            return
        self.is_closed = True
        for part in self.parts.values():
            part.feed.leave(part)
            part.feed.user_count -= 1
        self._watches.forget(self)
