"""Locks: taken, waited for, kept, given back or left lying."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from chaos.callers import Caller
from chaos.exchange import Reply
from chaos.history import Operation
from chaos.holds import check_locks
from chaos.workloads.base import FinalRead, Workload

TTL_S = 3.0
NAMES = 6
LOCKED = frozenset({"locked"})
FINAL_TRIES = 15


class Lock(Workload):
    """A few locks that many want. Fences grow, holders never overlap, and nobody loses a lock early."""

    name = "lock"

    def __init__(self) -> None:
        super().__init__()
        self._names = [f"lock-{number}" for number in range(NAMES)]

    async def step(self, caller: Caller) -> None:
        name, draw = caller.dice.choice(self._names), caller.dice.random()
        wait_s = caller.dice.choice((0.0, 0.0, 0.3, 1.5))
        taken = await acquire(caller, name, wait_s)
        if taken.outcome != "ok" or taken.result is None:
            return
        token = taken.result["token"]
        for _ in range(caller.dice.choice((0, 0, 1, 3))):
            kept = await keep(caller, name, token)
            if kept.outcome == "ok" and not kept.result["is_held"]:
                return
            await asyncio.sleep(caller.dice.uniform(0, 0.1))
        if draw < 0.9:
            await release(caller, name, token)

    async def read(self, caller: Caller) -> None:
        await look(caller, caller.dice.choice(self._names))

    def final_reads(self) -> list[FinalRead]:
        return [_taker(name) for name in self._names]

    def check(self, history: Sequence[Operation]) -> list[str]:
        return check_locks(history)


async def acquire(caller: Caller, name: str, wait_s: float, *, is_final: bool = False) -> Operation:
    argument: dict[str, Any] = {"ttl_s": TTL_S, "wait_s": wait_s}
    if is_final:
        argument["is_final"] = True
    body = json.dumps({"ttl": TTL_S, "wait": wait_s}).encode()
    return await caller.call(
        "acquire",
        name,
        argument,
        "POST",
        _path(name),
        _grant,
        headers={"Content-Type": "application/json"},
        body=body,
        conflicts=LOCKED | {"lock-lost"},
    )


async def keep(caller: Caller, name: str, token: str) -> Operation:
    return await caller.call(
        "keepalive",
        name,
        {"token": token},
        "PUT",
        f"{_path(name)}/{token}/keepalive",
        lambda reply: {"is_held": reply.status == 200},
    )


async def release(caller: Caller, name: str, token: str) -> Operation:
    return await caller.call(
        "release",
        name,
        {"token": token},
        "DELETE",
        f"{_path(name)}/{token}",
        lambda reply: {"is_released": reply.status == 200},
    )


async def look(caller: Caller, name: str) -> Operation:
    return await caller.call("holder", name, None, "GET", _path(name), _seen, is_write=False)


def _grant(reply: Reply) -> dict[str, Any] | None:
    if reply.status != 200:
        return None
    told = json.loads(reply.body)
    return {"token": told["token"], "fence": told["fence"]}


def _seen(reply: Reply) -> dict[str, Any] | None:
    return {"fence": json.loads(reply.body)["fence"]} if reply.status == 200 else None


def _path(name: str) -> str:
    return f"/v1/locks/{quote(name, safe='')}"


def _taker(name: str) -> FinalRead:
    """Whatever was left lying ends by itself: then it can be had again."""

    async def take(caller: Caller) -> None:
        for turn in range(FINAL_TRIES):
            taken = await acquire(caller, name, 1.5, is_final=turn == FINAL_TRIES - 1)
            if taken.outcome == "ok":
                return

    return take
