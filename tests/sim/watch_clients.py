"""Clients that watch: they read slowly, hang up, go on elsewhere, and in the end have seen every change.

What they should have seen is taken from the replicas' change logs while it is there. A watcher is judged by
the positions that it was given: between two of them it must have been told every change of what it watches,
once and in order, but for what it was told is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from kvstore.errors import Corrupt, KvError
from kvstore.node.requests import Request, Response
from kvstore.node.watch.positions import At, before, revision_of, unseal
from kvstore.types import ShardId
from tests.sim.caller import Caller, parse
from tests.sim.cluster import Process, SimCluster

POLL_S = 0.05
NOTICE_S = 0.7
"""How long it takes to notice that the other end is gone."""
SILENCE_S = 25.0
"""Without a line for so long a watcher goes on elsewhere: progress lines come every 10 s."""
DELAY_S = (0.0002, 0.003)

Change = tuple[At, str, str, str | None]
"""Where, type, key, value."""


class Truth:
    """Every change of every shard, as the replicas have applied them."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self.changes: dict[ShardId, list[Change]] = {}
        self.newest: dict[ShardId, int] = {}
        self.missed: list[str] = []
        self._is_started = False

    def start(self) -> None:
        if not self._is_started:
            self._is_started = True
            self._poll()

    def _poll(self) -> None:
        for process in self._cluster.processes.values():
            for replica in process.replicas():
                self._read(replica.shard, replica.machine)
        self._cluster.world.after(POLL_S, self._poll)

    def _read(self, shard: ShardId, machine: Any) -> None:
        while (known := self.newest.get(shard, 0)) < machine.revision:
            try:
                events, following = machine.query(["changes", known + 1, {}])
            except (KvError, Corrupt) as error:
                if known + 1 < machine.compacted:
                    self.missed.append(f"shard {shard}: {error}")
                return
            kept = self.changes.setdefault(shard, [])
            for revision, kind, key, item, _prev, place, _left in events:
                value = None if item is None else item[0].decode()
                name = ("put", "delete", "expire")[kind]
                kept.append((before(revision, place), name, key.decode(), value))
            self.newest[shard] = following - 1


class Link:
    """One connection that a watch is sent over: `Sink` and `BodyStream` of the node, and what reaches the
    client of it."""

    def __init__(self, client: WatchClient, process: Process, room: int) -> None:
        self._client = client
        self._process = process
        self.request: Request | None = None
        self.room = room
        self.is_open = True
        self._on_drain: Callable[[], None] | None = None
        client.world.after(NOTICE_S, self._look)

    # ---- the node's side -------------------------------------------------------------------------

    def answer(self, request: Request, response: Response) -> None:
        self._carry(lambda: self._client.answered(self, response.status))

    def open_stream(self, request: Request, response: Response) -> Link:
        return self

    def write(self, piece: bytes) -> bool:
        if not self.is_open:
            return False
        self.room -= 1
        self._carry(lambda: self._client.read(self, piece))
        return self.room > 0

    def on_drain(self, callback: Callable[[], None]) -> None:
        self._on_drain = callback

    def end(self) -> None:
        self._carry(lambda: self._client.ended(self))

    # ---- between ---------------------------------------------------------------------------------

    def _carry(self, deliver: Callable[[], None]) -> None:
        """In order, after what the node's present turn takes, and some time on the way."""

        def leave() -> None:
            client = self._client
            client.arrives_at = max(client.arrives_at, client.world.now + client.dice.uniform(*DELAY_S))
            client.world.at(client.arrives_at, self._arrive, deliver)

        self._process.runtime.when_done(leave)

    def _arrive(self, deliver: Callable[[], None]) -> None:
        if self.is_open:
            deliver()

    def _look(self) -> None:
        if not self.is_open:
            return
        if self._process.runtime.is_alive:
            self._client.world.after(NOTICE_S, self._look)
        else:
            self._client.ended(self)

    # ---- the client's side -----------------------------------------------------------------------

    def read_on(self, room: int) -> None:
        self.room = room
        callback, self._on_drain = self._on_drain, None
        if callback is not None and self._process.runtime.is_alive:
            self._process.runtime.call_soon(callback)

    def hang_up(self) -> None:
        self.is_open = False
        self._client.cluster.hang_up(self._process.name, self.request)


class WatchClient(Caller):
    """Watches a key, a prefix or everything, for as long as the run takes."""

    def __init__(self, cluster: SimCluster, number: int, dice: Random, truth: Truth) -> None:
        super().__init__(cluster, number, dice)
        self.truth = truth
        self.loyalty = 0.3
        self.arrives_at = 0.0
        self.target, self._is_wanted = dice.choice(
            (
                ("", lambda key: True),
                ("", lambda key: True),
                ("prefix=k", lambda key: key.startswith("k")),
                ("key=k0", lambda key: key == "k0"),
                ("key=count-a", lambda key: key == "count-a"),
            )
        )
        shards = [ShardId(number) for number in range(cluster.config.shards)]
        self._shards = shards
        key = self.target.removeprefix("key=") if self.target.startswith("key=") else None
        self._looks_at = shards if key is None else [cluster.shard_of(key)]
        self._begins_listed = dice.random() < 0.4
        self._position: str | None = None
        self._link: Link | None = None
        self._heard_at = 0.0
        self._wanted_from: dict[ShardId, At] = {}
        self._gaps: dict[ShardId, list[tuple[At, At]]] = {}
        self._seen: dict[ShardId, list[tuple[str, str, str | None]]] = {}
        self.wrong: list[str] = []

    def start(self) -> None:
        self.truth.start()
        super().start()

    # ---- opening ---------------------------------------------------------------------------------

    def ask_next(self) -> None:
        if self._begins_listed and self._position is None:
            self._list()
        else:
            self._open()

    def _list(self) -> None:
        def listed(response: Response | None) -> None:
            if response is not None and response.status == 200:
                self._stand_at(parse(response.body)["pos"])
            self.world.after(self.dice.uniform(0.05, 0.5), self.ask_next)

        if self.cluster.request(self.node(), "GET", "/v1/kv?limit=2", {}, b"", listed) is None:
            self.disappointed()

    def _open(self) -> None:
        process = self.cluster.processes.get(self.node())
        if process is None:
            self._again()
            return
        parts = [self.target] if self.target else []
        if self._position is not None:
            parts.append(f"from={self._position}")
        room = self.dice.choice((2, 10, 1_000_000, 1_000_000))
        if self.is_stopped:
            # At the end all has to be read in time.
            room = 1_000_000
        link = self._link = Link(self, process, room)
        self._heard_at = self.world.now
        target = "/v1/watch" + ("?" + "&".join(parts) if parts else "")
        link.request = self.cluster.open(process, "GET", target, {}, link)
        if room < 1_000_000:
            self.world.after(self.dice.uniform(0.1, 3.0), self._read_on, link)
        if self.dice.random() < 0.7:
            self.world.after(self.dice.uniform(0.0, 6.0), self._leave, link)
        self.world.after(SILENCE_S, self._listen, link)

    def _read_on(self, link: Link) -> None:
        if link is self._link:
            link.read_on(self.dice.choice((1, 5, 100)))
            self.world.after(self.dice.uniform(0.05, 0.6 if self.is_stopped else 2.0), self._read_on, link)

    def _leave(self, link: Link) -> None:
        if link is self._link and not self.is_stopped:
            link.hang_up()
            self.ended(link)

    def _listen(self, link: Link) -> None:
        if link is not self._link:
            return
        if self.world.now - self._heard_at > SILENCE_S:
            self.cluster.count("silent_watches")
            link.hang_up()
            self.ended(link)
        else:
            self.world.after(1.0, self._listen, link)

    def _again(self) -> None:
        self.disappointed()
        self.world.after(self.dice.uniform(0.01, 0.4), self.ask_next)

    # ---- what arrives ----------------------------------------------------------------------------

    def answered(self, link: Link, status: int) -> None:
        """No stream came of it."""
        if status not in (429, 503, 504):
            self.wrong.append(f"a watch was answered {status}")
        self.ended(link)

    def ended(self, link: Link) -> None:
        link.is_open = False
        if link is self._link:
            self._link = None
            self._again()

    def read(self, link: Link, piece: bytes) -> None:
        if link is not self._link:
            return
        self._heard_at = self.world.now
        self.world.stir(piece)
        for line in piece.splitlines():
            self._take(parse(line))

    def _take(self, line: dict[str, Any]) -> None:
        kind, position = line["type"], line.get("pos")
        if kind == "start":
            if self._position is None:
                self._stand_at(position)
            elif unseal(position, self._shards, self._looks_at) != self._stands_at():
                self.wrong.append(f"asked to go on from {self._position}, it began at {position}")
        elif kind == "compacted":
            self.cluster.states["watch told of compaction"] += 1
            self._note_gaps(position)
        elif kind not in ("progress", "end", "error"):
            self._note(kind, line)
        if position is not None:
            self._position = position

    def _note(self, kind: str, line: dict[str, Any]) -> None:
        seen = self._seen.setdefault(ShardId(line["shard"]), [])
        seen.append((kind, line["key"], line.get("value")))
        self.cluster.states["change watched"] += 1

    def _stands_at(self) -> dict[ShardId, At]:
        assert self._position is not None
        return unseal(self._position, self._shards, self._looks_at)

    def _stand_at(self, position: str) -> None:
        self._position = position
        self._wanted_from = self._stands_at()

    def _note_gaps(self, position: str) -> None:
        for shard, at in self._stands_at().items():
            goes_on = unseal(position, self._shards, self._looks_at)[shard]
            if goes_on > at:
                self._gaps.setdefault(shard, []).append((at, goes_on))

    # ---- the verdict -----------------------------------------------------------------------------

    def judge(self) -> list[str]:
        who = f"watch {self.number} of {self.target or 'everything'}"
        failures = [f"{who}: {wrong}" for wrong in self.wrong]
        if self.truth.missed:
            self.cluster.count("watches_not_judged")
        if self._position is None or self.truth.missed:
            return failures
        stands_at = self._stands_at()
        for shard in self._looks_at:
            newest = self.truth.newest.get(shard, 0)
            if revision_of(stands_at[shard]) <= newest and self._misses_any(shard, stands_at[shard]):
                failures.append(
                    f"{who}: shard {shard} is at {newest}, it was told no further than {stands_at}"
                )
            failures += [f"{who}: {wrong}" for wrong in self._compare(shard, stands_at[shard])]
        return failures

    def _misses_any(self, shard: ShardId, at: At) -> bool:
        return any(
            change[0] >= at and self._is_wanted(change[2]) for change in self.truth.changes.get(shard, ())
        )

    def _compare(self, shard: ShardId, until: At) -> list[str]:
        gaps = self._gaps.get(shard, ())
        wanted = [
            change
            for change in self.truth.changes.get(shard, ())
            if self._wanted_from[shard] <= change[0] < until
            and self._is_wanted(change[2])
            and not any(start <= change[0] < end for start, end in gaps)
        ]
        told = self._seen.get(shard, [])
        if told == [change[1:] for change in wanted]:
            return []
        first = next(
            (
                number
                for number, (one, other) in enumerate(zip(told, wanted, strict=False))
                if one != other[1:]
            ),
            min(len(told), len(wanted)),
        )
        return [
            f"shard {shard}: told {len(told)} changes of {len(wanted)}, "
            f"number {first} is {told[first : first + 1]} and not {wanted[first : first + 1]}"
        ]
