"""One shard's changes, for everybody on this node who watches it.

Two runs go through the shard's change log. The live one stands at its end: what is applied is read once and
told to all who are up to date. The replay starts where the hindmost of those stands who are not, picks up the
others on its way, and hands them over where the live run is. So the work is one reading of the log for all,
however many there are and however far apart, and nobody is ever given a change that it has seen: each
part knows where it stands, whichever run it follows.

A node with a replica reads its own copy after each apply. Another asks one that has, by a read that waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kvstore.errors import Compacted
from kvstore.node.watch.interests import Interests
from kvstore.node.watch.lines import Event
from kvstore.node.watch.positions import At, before, revision_of
from kvstore.node.watch.source import Arrived, Source
from kvstore.node.watch.watcher import Part
from kvstore.types import ShardId

if TYPE_CHECKING:
    from kvstore.node.watch.hub import Watches

SLICE_CHANGES: Final = 250
SLICE_BYTES: Final = 256 << 10
"""Bounds of what is read at once, and so of what a watch may have beyond its stream's buffer."""
RETRY_S: Final = 0.2


class Run:
    """A place in a shard's log that moves on, and who follows it. It stands between revisions."""

    __slots__ = ("asked", "at", "interests", "is_live")

    def __init__(self, at: At, is_live: bool) -> None:
        self.at = at
        self.is_live = is_live
        self.interests = Interests()
        self.asked: dict[str, Any] | None = None
        """Options of the slice that is on its way, if one is."""

    def options(self) -> dict[str, Any]:
        return {"limit": SLICE_CHANGES, "bytes": SLICE_BYTES, **self.interests.options()}


class Feed:
    """Made for its first part, dropped after its last."""

    def __init__(self, shard: ShardId, at: At, source: Source, watches: Watches) -> None:
        self.shard = shard
        self.live = Run(at, is_live=True)
        self.replay: Run | None = None
        self.is_closed = False
        self._source = source
        self._watches = watches
        self._ahead: dict[Part, None] = {}
        """Parts that follow the live run but have seen more, at another node."""
        self._behind: dict[Part, None] = {}
        """Parts that wait for the next replay."""
        self._is_waking = False
        self.user_count = 0
        """Parts that are not closed, paused ones too."""

    @property
    def behind_count(self) -> int:
        return len(self._behind) + (0 if self.replay is None else len(self.replay.interests))

    @property
    def lag(self) -> int:
        """Revisions that are applied here and not told yet."""
        newest = self._source.newest()
        return 0 if newest is None else max(0, newest + 1 - revision_of(self.live.at))

    @property
    def is_fresh(self) -> bool:
        """What is told here is hardly older than the shard."""
        return self._source.is_fresh

    def close(self) -> None:
        self.is_closed = True
        self._source.close()

    # ---- parts -----------------------------------------------------------------------------------

    def join(self, part: Part) -> None:
        if part.at >= self.live.at:
            part.follow(self.live)
            if part.at == self.live.at:
                part.be_live()
            else:
                self._ahead[part] = None
            self.wake()
        elif self.replay is not None and part.at >= self.replay.at:
            part.follow(self.replay)
        else:
            self._behind[part] = None
            self._watches.want_replay(self)

    def leave(self, part: Part) -> None:
        part.unfollow()
        self._ahead.pop(part, None)
        self._behind.pop(part, None)

    # ---- the live run ----------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may have been applied."""
        if not self._is_waking and not self.is_closed:
            self._is_waking = True
            self._watches.runtime.call_soon(self._run)

    def _run(self) -> None:
        self._is_waking = False
        if self.is_closed:
            return
        if self.replay is not None or self._behind:
            self._watches.want_replay(self)
        if self.live.asked is None and self.live.interests:
            self._read(self.live, self._live_arrived, wait=True)

    def _read(self, run: Run, arrived: Arrived, *, wait: bool) -> None:
        run.asked = run.options()
        self._source.read(revision_of(run.at), run.asked, arrived, wait=wait)

    def _live_arrived(self, answer: list[Any] | None, error: BaseException | None) -> None:
        live = self.live
        asked, live.asked = live.asked, None
        if self.is_closed:
            return
        if error is not None:
            self._failed(live, error)
        elif answer is not None:
            if asked == live.options():
                self._advance_live(*answer)
            # Else somebody came who wants more than was asked for: once more.
            self.wake()

    def _advance_live(self, events: list[Any], following: int) -> None:
        live = self.live
        self._tell(live, events)
        live.at = before(following)
        for part in [part for part in self._ahead if part.at <= live.at]:
            del self._ahead[part]
            part.be_live()
        self._watches.flush()

    def _failed(self, run: Run, error: BaseException) -> None:
        if isinstance(error, Compacted):
            self._skip_to(run, error.fields["compacted"])
            self.wake()
        else:
            self._watches.runtime.call_later(RETRY_S, self.wake)

    def _skip_to(self, run: Run, oldest: int) -> None:
        """What comes next in this run is gone: whoever wanted it must be told, nobody else."""
        at = before(oldest)
        run.at, stood_at = at, run.at
        for part in list(run.interests.parts):
            if max(part.at, stood_at) < at:
                part.watcher.compacted(part, oldest)

    # ---- the replay ------------------------------------------------------------------------------

    def step_replay(self) -> None:
        """Read the next slice for those who are behind."""
        replay = self.replay
        if self.is_closed or (replay is not None and replay.asked is not None):
            return
        if replay is not None and not replay.interests:
            replay = self.replay = None
        if replay is None:
            if not self._behind:
                return
            start = before(revision_of(min(part.at for part in self._behind)))
            replay = self.replay = Run(start, is_live=False)
            waiting, self._behind = self._behind, {}
            for part in waiting:
                part.follow(replay)
        self._read(replay, self._replay_arrived, wait=False)

    def _replay_arrived(self, answer: list[Any] | None, error: BaseException | None) -> None:
        replay = self.replay
        assert replay is not None, "one replay at a time"
        asked, replay.asked = replay.asked, None
        if self.is_closed:
            return
        if error is not None:
            self._failed(replay, error)
            return
        if answer is None:
            # This replica is further behind than the replay: the next apply wakes it.
            return
        if asked == replay.options():
            self._tell(replay, answer[0])
            replay.at = before(answer[1])
            self._watches.flush()
        if replay.at >= self.live.at or not replay.interests:
            self._end_replay(replay)
        if self.replay is not None or self._behind:
            self._watches.want_replay(self)

    def _end_replay(self, replay: Run) -> None:
        self.replay = None
        for part in list(replay.interests.parts):
            part.unfollow()
            self.join(part)

    # ---- telling ---------------------------------------------------------------------------------

    def _tell(self, run: Run, events: list[Any]) -> None:
        of = run.interests.of
        for revision, kind, key, item, prev, place, left in events:
            parts = of(key)
            if not parts:
                continue
            at = before(revision, place)
            event = Event(
                self.shard, revision, kind, key, item, prev, at, at + 1 if left else before(revision + 1)
            )
            told = 0
            for part in parts:
                if at >= part.at:
                    part.at = event.after
                    part.watcher.take(event)
                    told += 1
            self._watches.event_count += told
