"""Drives a plan by hand: each effect is looked at, then answered."""

from __future__ import annotations

import json
from typing import Any

from kvstore.client.changes import Change
from kvstore.client.exchange import Event, Failure, Fault, Open, Receive, Reply, Send, Sleep
from kvstore.client.plan import Call, Core, execute
from kvstore.client.routes import Routes
from kvstore.client.session import Sessions
from kvstore.client.watching import Emit, Terms, Watched, follow
from kvstore.placement import ShardMap

ENDPOINTS = ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
SHARDS = 4


def routes_document(leaders: list[str | None] | None = None, clock_ms: int | None = 1000) -> dict[str, Any]:
    """Four shards; by default n1 leads all."""
    shard_map = ShardMap(SHARDS)
    found = leaders if leaders is not None else ["n1"] * SHARDS
    return {
        "epoch": 9,
        "shards": [
            {
                "id": shard,
                "start": shard_map.range_of(shard)[0],
                "end": shard_map.range_of(shard)[1],
                "leader": found[shard],
                "clock_ms": clock_ms,
            }
            for shard in shard_map.shards
        ],
        "nodes": [{"id": f"n{number + 1}", "client": address} for number, address in enumerate(ENDPOINTS)],
    }


def known_core(**keywords: Any) -> Core:
    """A core whose routes are known and fresh at time 0."""
    core = plain_core(**keywords)
    core.routes.is_fetch_due(0.0)
    core.routes.learn(routes_document(), 0.0)
    return core


def plain_core(**keywords: Any) -> Core:
    names = iter(f"session{number}" for number in range(100))
    return Core(Routes(ENDPOINTS), Sessions(lambda: next(names)), **keywords)


class Script:
    def __init__(self, core: Core, call: Call[Any], timeout_s: float = 5.0) -> None:
        self.now = 0.0
        self.dice = 0.5
        self.result: Any = None
        self.is_over = False
        self.slept: list[float] = []
        self._plan = execute(core, call, timeout_s, Event(0.0, 0.5))
        self._effect: Send | Sleep | None = None
        self._step(None)

    @property
    def send(self) -> Send:
        assert isinstance(self._effect, Send), f"expected a request, not {self._effect}"
        return self._effect

    @property
    def header(self) -> dict[str, str]:
        return self.send.request.headers

    @property
    def sleep_s(self) -> float:
        assert isinstance(self._effect, Sleep), f"expected a pause, not {self._effect}"
        return self._effect.seconds

    @property
    def is_sleeping(self) -> bool:
        return isinstance(self._effect, Sleep)

    def reply(self, status: int, content: Any = None, after_s: float = 0.001, **headers: str) -> None:
        kind = "application/problem+json" if status >= 400 else "application/json"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        assert isinstance(self._effect, Send)
        self.now += after_s
        self._step(Event(self.now, self.dice, reply=Reply(status, {"content-type": kind, **named}, body)))

    def problem(self, status: int, code: str, after_s: float = 0.001, **fields: Any) -> None:
        headers = fields.pop("headers", {})
        self.reply(status, {"code": code, "status": status, "detail": code, **fields}, after_s, **headers)

    def fail(self, fault: Fault, after_s: float = 0.001) -> None:
        assert isinstance(self._effect, Send)
        self.now += after_s
        self._step(Event(self.now, self.dice, failure=Failure(fault, "scripted")))

    def time_out(self) -> None:
        self.fail(Fault.TIMED_OUT, self.send.timeout_s)

    def wake(self) -> None:
        self.now += self.sleep_s
        self.slept.append(self.sleep_s)
        self._step(Event(self.now, self.dice))

    def abandon(self) -> None:
        self._plan.close()

    def _step(self, event: Event | None) -> None:
        self._effect = None
        try:
            self._effect = next(self._plan) if event is None else self._plan.send(event)
        except StopIteration as end:
            self.result, self.is_over = end.value, True


class WatchScript:
    """Drives the plan of a watch by hand. What it emits is collected; the other effects are answered."""

    def __init__(self, core: Core, what: Watched, terms: Terms, *, dice: float = 0.5) -> None:
        self.now = 0.0
        self.dice = dice
        self.emitted: list[Change] = []
        self._plan = follow(core, what, terms, Event(0.0, dice))
        self._effect: Send | Sleep | Open | Receive | Emit | None = None
        self._step(None)

    @property
    def effect(self) -> Send | Sleep | Open | Receive | Emit | None:
        return self._effect

    @property
    def open(self) -> Open:
        assert isinstance(self._effect, Open), f"expected a stream to be opened, not {self._effect}"
        return self._effect

    @property
    def send(self) -> Send:
        assert isinstance(self._effect, Send), f"expected a request, not {self._effect}"
        return self._effect

    @property
    def is_receiving(self) -> bool:
        return isinstance(self._effect, Receive)

    def begin(self, *lines: dict[str, Any]) -> None:
        """The node begins the stream; some lines come at once."""
        assert isinstance(self._effect, Open), f"expected a stream to be opened, not {self._effect}"
        self._answer(reply=Reply(200, {}, b""))
        if lines:
            self.lines(*lines)

    def lines(self, *lines: dict[str, Any]) -> None:
        self.chunk(b"".join(json.dumps(line).encode() + b"\n" for line in lines))

    def chunk(self, chunk: bytes) -> None:
        assert isinstance(self._effect, Receive), f"expected a wait for the stream, not {self._effect}"
        self._answer(chunk=chunk)

    def cut(self) -> None:
        """The stream ends without a last line."""
        self.chunk(b"")

    def reply(self, status: int, content: Any) -> None:
        assert isinstance(self._effect, Open | Send), f"expected a request, not {self._effect}"
        kind = "application/problem+json" if status >= 400 else "application/json"
        self._answer(reply=Reply(status, {"content-type": kind}, json.dumps(content).encode()))

    def fail(self, fault: Fault, after_s: float = 0.001) -> None:
        assert isinstance(self._effect, Open | Receive | Send), f"expected a request, not {self._effect}"
        self._answer(after_s, failure=Failure(fault, "scripted"))

    def fall_silent(self) -> None:
        assert isinstance(self._effect, Receive), f"expected a wait for the stream, not {self._effect}"
        self.fail(Fault.TIMED_OUT, self._effect.timeout_s)

    def wake(self) -> float:
        assert isinstance(self._effect, Sleep), f"expected a pause, not {self._effect}"
        seconds = self._effect.seconds
        self._answer(seconds)
        return seconds

    def _answer(self, after_s: float = 0.001, **happened: Any) -> None:
        self.now += after_s
        self._step(Event(self.now, self.dice, **happened))

    def _step(self, event: Event | None) -> None:
        self._effect = None
        self._effect = next(self._plan) if event is None else self._plan.send(event)
        while isinstance(self._effect, Emit):
            self.emitted += self._effect.changes
            self._effect = self._plan.send(Event(self.now, self.dice))
