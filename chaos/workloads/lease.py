"""Leases and keys with a time to live: kept alive, left to die, revoked."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from chaos.callers import Caller
from chaos.exchange import Reply
from chaos.history import Operation
from chaos.lives import check_lives
from chaos.workloads.base import FinalRead, Workload

TTLS_S = (1.0, 3.0, 6.0)
GONE = frozenset({"lease-not-found", "precondition-failed"})
KEYS = 3
FINAL_S = 40.0
"""Beyond their time keys may live by an outage; a healed cluster has removed them by then."""


class Lease(Workload):
    """Leases with keys on any shards, and keys with a TTL. Nothing dies early or comes back, all ends."""

    name = "lease"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._left: list[str] = []

    def _fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}-{self._count}"

    async def step(self, caller: Caller) -> None:
        if caller.dice.random() < 0.4:
            await self._short_life(caller)
        else:
            await self._lease(caller, self._fresh("lease"))

    async def _short_life(self, caller: Caller) -> None:
        key = self._fresh("ttl")
        kept = await keep(caller, key, {"ttl_s": caller.dice.choice(TTLS_S)})
        self._left.append(key)
        while is_done(kept):
            await asyncio.sleep(caller.dice.uniform(0, 1.0))
            seen = await look(caller, key)
            if seen.outcome != "ok" or not seen.result["is_there"] or caller.dice.random() < 0.2:
                return

    async def _lease(self, caller: Caller, lease: str) -> None:
        dice = caller.dice
        granted = await grant(caller, lease, dice.choice(TTLS_S))
        if not is_done(granted):
            return
        own = [self._fresh("tied") for _ in range(KEYS)]
        self._left += own
        for key in own:
            if not is_done(await keep(caller, key, {"lease": lease})):
                return
        for _ in range(dice.choice((0, 2, 4))):
            await asyncio.sleep(dice.uniform(0, 0.8))
            if not is_done(await renew(caller, lease)):
                return
            await look(caller, dice.choice(own))
        if dice.random() < 0.5:
            await revoke(caller, lease)
            for key in own:
                await look(caller, key)
            if dice.random() < 0.5:
                # The same id at once: what was said of the first grant may still be on its way.
                await self._again(caller, lease, own[0])

    async def _again(self, caller: Caller, lease: str, key: str) -> None:
        if not is_done(await grant(caller, lease, TTLS_S[-1])):
            return
        if is_done(await keep(caller, key, {"lease": lease})):
            for _ in range(3):
                await asyncio.sleep(caller.dice.uniform(0, 0.5))
                await look(caller, key)

    async def read(self, caller: Caller) -> None:
        """Whatever others have left."""
        if self._left:
            await _ask_for(caller, caller.dice.choice(self._left))
        else:
            await asyncio.sleep(0.1)

    def final_reads(self) -> list[FinalRead]:
        return [_gone(key) for key in self._left[-200:]]

    def check(self, history: Sequence[Operation]) -> list[str]:
        return check_lives(history)


def is_done(operation: Operation) -> bool:
    return operation.outcome == "ok" and operation.result is not None


async def keep(caller: Caller, key: str, argument: dict[str, Any]) -> Operation:
    how = f"lease={argument['lease']}" if "lease" in argument else f"ttl={argument['ttl_s']}s"
    target = f"/v1/kv/{quote(key, safe='')}?{how}"
    return await caller.call("keep", key, argument, "PUT", target, _done, body=b"v", conflicts=GONE)


async def look(caller: Caller, key: str, *, is_final: bool = False) -> Operation:
    argument = {"is_final": True} if is_final else None
    target = f"/v1/kv/{quote(key, safe='')}"
    return await caller.call("look", key, argument, "GET", target, _seen, is_write=False)


async def _ask_for(caller: Caller, key: str) -> Operation:
    target = f"/v1/kv/{quote(key, safe='')}"
    return await caller.call("glance", key, None, "GET", target, _seen, is_write=False)


async def grant(caller: Caller, lease: str, ttl_s: float) -> Operation:
    body = json.dumps({"ttl": ttl_s, "id": lease}).encode()
    headers = {"Content-Type": "application/json"}
    return await caller.call(
        "grant",
        lease,
        {"ttl_s": ttl_s},
        "POST",
        "/v1/leases",
        _done,
        headers=headers,
        body=body,
        conflicts=GONE,
    )


async def renew(caller: Caller, lease: str) -> Operation:
    target = f"/v1/leases/{lease}/keepalive"
    return await caller.call("renew", lease, None, "PUT", target, _left, conflicts=GONE)


async def revoke(caller: Caller, lease: str) -> Operation:
    def is_complete(reply: Reply) -> dict[str, bool] | None:
        return {"is_complete": reply.status == 200} if reply.status in (200, 202) else None

    return await caller.call(
        "revoke", lease, None, "DELETE", f"/v1/leases/{lease}", is_complete, conflicts=GONE
    )


def _seen(reply: Reply) -> dict[str, bool]:
    return {"is_there": reply.status == 200}


def _done(reply: Reply) -> dict[str, bool] | None:
    """404: there is no such lease."""
    return {} if reply.status in (200, 201) else None


def _left(reply: Reply) -> dict[str, float] | None:
    if reply.status != 200:
        return None
    return {"left_s": json.loads(reply.body)["ttl_ms"] / 1000}


def _gone(key: str) -> FinalRead:
    """Waits until it is gone; the last look must not see it."""

    async def wait(caller: Caller) -> None:
        for _ in range(int(FINAL_S)):
            seen = await look(caller, key)
            if seen.outcome == "ok" and not seen.result["is_there"]:
                return
            await asyncio.sleep(1.0)
        await look(caller, key, is_final=True)

    return wait
