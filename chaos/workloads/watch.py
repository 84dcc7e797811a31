"""Watches of everything that is written, cut off and taken up again elsewhere."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from chaos.callers import Caller
from chaos.exchange import Lost, NotSent
from chaos.history import Operation
from chaos.streams import GAP, check_watches
from chaos.workloads.base import FinalRead, IsOver, Workload

WATCHERS_EVERY = 3
"""Each so-manieth client watches, the others write."""
OPEN_S = 8.0
SILENCE_S = 25.0
CATCH_UP_S = 30.0
QUIET_S = 2.0
"""Who has caught up is told nothing more for so long."""


class Watch(Workload):
    """Puts and deletes, and watchers that miss, repeat and reorder none of them."""

    name = "watch"

    def __init__(self) -> None:
        super().__init__()
        self._watchers: dict[int, _Watcher] = {}

    async def client(self, caller: Caller, is_over: IsOver, think_s: float) -> None:
        if caller.number % WATCHERS_EVERY:
            await super().client(caller, is_over, think_s)
            return
        watcher = self._watchers[caller.number] = _Watcher(f"{self.name}-")
        while not is_over():
            await watcher.read(caller, caller.dice.uniform(0.0, 8.0), is_over)
            await asyncio.sleep(caller.dice.uniform(0.0, 0.3))

    async def step(self, caller: Caller) -> None:
        key, draw = self.keys.draw(caller), caller.dice.random()
        if draw < 0.75:
            await caller.put(key, self.keys.value())
        elif draw < 0.9:
            await caller.delete(key)
        else:
            await caller.get(key)

    def final_reads(self) -> list[FinalRead]:
        return [*super().final_reads(), *(self._catch_up(number) for number in self._watchers)]

    def _catch_up(self, number: int) -> FinalRead:
        async def read(caller: Caller) -> None:
            watcher = self._watchers[number]
            held = await caller.scan(watcher.prefix, self.keys.all())
            if held.outcome == "ok":
                items = held.result["items"]
                await watcher.finish(caller, number, {key: item["revision"] for key, item in items.items()})

        return read

    def check(self, history: Sequence[Operation]) -> list[str]:
        return check_watches(history)


class _Watcher:
    """Where one watcher stands, over all its streams."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.position: str | None = None
        self._last: dict[str, int] = {}
        self._told_at = 0.0
        self._is_live = False

    async def read(self, caller: Caller, patience_s: float, is_over: IsOver) -> None:
        """One stream, until it ends or `patience_s` have passed."""
        operation = caller.begin("watch", self.prefix, {"from": self.position})
        loop = asyncio.get_running_loop()
        result: dict[str, Any] = {"events": [], "begun": None}
        until = loop.time() + patience_s
        await self._stream(caller, result, lambda: is_over() or loop.time() > until)
        caller.complete(operation, "ok", result)

    async def finish(self, caller: Caller, number: int, held: dict[str, int]) -> None:
        """Go on until everything has been told that is held in the end."""
        operation = caller.begin("watch", self.prefix, {"from": self.position, "is_final": True}, number)
        loop = asyncio.get_running_loop()
        result: dict[str, Any] = {"events": [], "begun": None, "held": held}
        until = loop.time() + CATCH_UP_S
        self._told_at = loop.time()

        def is_done() -> bool:
            has_all = all(self._last.get(key, revision) >= revision for key, revision in held.items())
            is_quiet = self._is_live and loop.time() - self._told_at > QUIET_S
            return loop.time() > until or (has_all and is_quiet)

        while not is_done():
            await self._stream(caller, result, is_done)
        caller.complete(operation, "ok" if loop.time() <= until else "unknown", result)

    async def _stream(self, caller: Caller, result: dict[str, Any], is_over: IsOver) -> None:
        node = caller.choose_node()
        connection = caller.connect(node)
        target = f"/v1/watch?prefix={quote(self.prefix)}"
        if self.position is not None:
            target += f"&from={self.position}"
        heard_at = asyncio.get_running_loop().time()
        self._is_live = False
        try:
            async for line in connection.lines(target, OPEN_S, 0.5):
                if line is not None:
                    heard_at = asyncio.get_running_loop().time()
                    self._take(json.loads(line), result)
                if is_over() or asyncio.get_running_loop().time() - heard_at > SILENCE_S:
                    return
        except (NotSent, Lost):
            await asyncio.sleep(0.05)
        finally:
            connection.close()

    def _take(self, line: dict[str, Any], result: dict[str, Any]) -> None:
        kind = line["type"]
        self._is_live, self._told_at = True, asyncio.get_running_loop().time()
        if kind == "start" and self.position is None:
            result["begun"] = asyncio.get_running_loop().time()
        elif kind == "compacted":
            result["events"].append([GAP])
        elif kind in ("put", "delete", "expire"):
            told = [line.get(name) for name in ("key", "value", "revision", "version", "create_revision")]
            result["events"].append([kind, *told])
            self._last[line["key"]] = line["revision"]
        self.position = line.get("pos", self.position)
