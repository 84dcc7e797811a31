"""A bank: money moved between accounts of shards that different nodes lead, and audits of all accounts."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from chaos.callers import Caller
from chaos.exchange import Lost, NotSent, Reply
from chaos.history import Operation
from chaos.ledger import check_bank, doubts_of_bank
from chaos.workloads.base import FinalRead, Workload

OPENING = 100
ACCOUNTS_PER_SHARD = 2
TRIES = 600
"""Keys tried in search of accounts for every shard."""
SPREADS = 3
REST_S = 10.0
"""So long after everything was healed a transaction may still be prepared."""
ROUTES_S = 0.5
"""How old the knowledge of who leads what may be."""
JSON = {"Content-Type": "application/json"}


class Bank(Workload):
    """Transfers over shards. The sum is the same in every snapshot, which spans all shards."""

    name = "bank"

    def __init__(self) -> None:
        super().__init__()
        self._shards: dict[str, int] = {}
        """Accounts and where they lie."""
        self._leaders: dict[int, str | None] = {}
        self._asked_at = -1.0
        self._clients: set[int] = set()

    async def set_up(self, caller: Caller) -> None:
        shards = (await self._ask(caller, "/v1/routes"))["shards"]
        missing = {int(shard["id"]): ACCOUNTS_PER_SHARD for shard in shards}
        for number in range(TRIES):
            if not any(missing.values()):
                break
            key = f"account-{number}"
            shard = int((await self._ask(caller, f"/v1/keys/{key}/explain"))["shard"])
            if missing.get(shard):
                missing[shard] -= 1
                self._shards[key] = shard
        accounts = dict.fromkeys(self._shards, OPENING)
        # Client 0 has an identity: the accounts are surely opened once.
        ops = [{"op": "put", "key": key, "value": str(balance)} for key, balance in accounts.items()]
        opened = await self._txn(caller, "open", {"accounts": accounts}, ops, OPENING)
        assert opened.outcome == "ok", f"the accounts could not be opened: {opened.error}"
        for _ in range(SPREADS):
            self._asked_at = -ROUTES_S
            await self._learn_leaders(caller)

    async def step(self, caller: Caller) -> None:
        if caller.dice.random() < 0.15:
            await self._snapshot(caller)
        else:
            await self._transfer(caller)

    async def read(self, caller: Caller) -> None:
        await self._snapshot(caller)
        await asyncio.sleep(caller.dice.uniform(0, 0.2))

    def final_reads(self) -> list[FinalRead]:
        return [self._rest, self._snapshot, *(_receipt_reader(number) for number in sorted(self._clients))]

    def check(self, history: Sequence[Operation]) -> list[str]:
        return check_bank(history)

    def doubts(self, history: Sequence[Operation]) -> list[str]:
        return doubts_of_bank(history)

    # ---- operations ------------------------------------------------------------------------------

    async def _transfer(self, caller: Caller) -> Operation:
        self._clients.add(caller.number)
        await self._learn_leaders(caller)
        source, target = self._pair(caller)
        amount, receipt = caller.dice.randint(1, 5), _receipt(caller.number)
        leaders = [self._leaders.get(self._shards[key]) or "nobody" for key in (source, target)]
        argument = {"deltas": {source: -amount, target: amount}, "receipt": receipt, "leaders": leaders}
        ops = [
            {"op": "incr", "key": key, "by": by}
            for key, by in ((source, -amount), (target, amount), (receipt, 1))
        ]
        return await self._txn(caller, "transfer", argument, ops)

    def _pair(self, caller: Caller) -> tuple[str, str]:
        """Accounts whose shards have different leaders, as far as is known."""
        accounts = list(self._shards)
        source = target = accounts[0]
        for _ in range(50):
            source, target = caller.dice.sample(accounts, 2)
            if self._leaders.get(self._shards[source]) != self._leaders.get(self._shards[target]):
                break
        return source, target

    async def _snapshot(self, caller: Caller) -> Operation:
        accounts = list(self._shards)
        ops = [{"op": "get", "key": key} for key in accounts]
        return await self._txn(caller, "snapshot", {"accounts": accounts}, ops, is_write=False)

    async def _rest(self, caller: Caller) -> Operation:
        """Look until nothing is prepared any more on the node that is asked, for as long as that may take."""
        until = asyncio.get_running_loop().time() + REST_S
        while True:
            seen = await caller.call("rest", "", None, "GET", "/metrics", _intents, is_write=False)
            is_at_rest = seen.result is not None and not seen.result["intents"]
            if is_at_rest or asyncio.get_running_loop().time() >= until:
                return seen
            await asyncio.sleep(0.5)

    @staticmethod
    async def _txn(
        caller: Caller,
        kind: str,
        argument: dict[str, Any],
        ops: list[dict[str, Any]],
        put_value: int = 0,
        *,
        is_write: bool = True,
    ) -> Operation:
        def told(reply: Reply) -> dict[str, Any]:
            results = json.loads(reply.body)["results"]
            return {
                "items": {
                    op["key"]: [int(result.get("value", put_value)), result["revision"]]
                    for op, result in zip(ops, results, strict=True)
                    if result["status"] != 404
                }
            }

        body = json.dumps({"then": ops}).encode()
        return await caller.call(
            kind, "", argument, "POST", "/v1/txn", told, headers=JSON, body=body, is_write=is_write
        )

    # ---- who leads what --------------------------------------------------------------------------

    async def _learn_leaders(self, caller: Caller) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._asked_at + ROUTES_S:
            return
        self._asked_at = now
        try:
            shards = (await self._ask(caller, "/v1/routes"))["shards"]
            self._leaders = {int(shard["id"]): shard["leader"] for shard in shards}
            await self._spread(caller)
        except (Lost, NotSent, KeyError):
            return

    async def _spread(self, caller: Caller) -> None:
        """Nodes that come back lead nothing: hand them some of what another leads."""
        nodes = (await self._ask(caller, "/v1/nodes"))["nodes"]
        led = {node["id"]: 0 for node in nodes if node["up"]}
        for leader in self._leaders.values():
            if leader in led:
                led[leader] += 1
        most, least = max(led, key=led.__getitem__), min(led, key=led.__getitem__)
        own = [shard for shard, leader in self._leaders.items() if leader == most]
        for shard in own[: (led[most] - led[least]) // 2]:
            body = json.dumps({"to": least}).encode()
            await self._ask(caller, f"/v1/shards/{shard}/transfer", "POST", body)
            self._leaders[shard] = least

    @staticmethod
    async def _ask(caller: Caller, target: str, method: str = "GET", body: bytes = b"") -> dict[str, Any]:
        connection = caller.connect()
        try:
            reply = await connection.request(method, target, JSON if body else {}, body, 2.0)
        finally:
            connection.close()
        told: dict[str, Any] = json.loads(reply.body)
        return told


def _intents(reply: Reply) -> dict[str, int]:
    """Transactions that the node's replicas hold prepared; each of them has them all, wherever it leads."""
    lines = reply.body.decode().splitlines()
    return {
        "intents": sum(int(float(line.split()[-1])) for line in lines if line.startswith("kv_txn_intents{"))
    }


def _receipt(number: int) -> str:
    return f"receipt-{number}"


def _receipt_reader(number: int) -> FinalRead:
    key = _receipt(number)

    def told(reply: Reply) -> dict[str, Any]:
        if reply.status == 404:
            return {"items": {}}
        return {"items": {key: [int(reply.body), int(reply.headers["kv-revision"])]}}

    return lambda caller: caller.call(
        "receipt", key, None, "GET", f"/v1/kv/{quote(key, safe='')}", told, is_write=False
    )
