"""Accounts in a scripted cluster, each in a shard of its own, whose sum no transfer may change."""

from __future__ import annotations

from typing import Any

import msgspec

from kvstore.node.requests import Response
from kvstore.types import NodeId, ShardId
from tests.sim.script import N1, N2, N3, Pending, Script

OPENING = 100
JSON = {"Content-Type": "application/json"}
_decode = msgspec.json.decode


def incr(key: str, by: int) -> dict[str, Any]:
    return {"op": "incr", "key": key, "by": by}


def get(key: str) -> dict[str, Any]:
    return {"op": "get", "key": key}


def put(key: str, value: str) -> dict[str, Any]:
    return {"op": "put", "key": key, "value": value}


class Bank:
    """Three nodes, each of which leads a shard with an account in it."""

    def __init__(self, seed: int = 2) -> None:
        script = self.script = Script(seed=seed, shards=4)
        script.start()
        for shard, name in enumerate((N1, N2, N3)):
            script.lead(name, shard)
        self.accounts = [self.key_in(shard) for shard in range(3)]
        for account in self.accounts:
            assert script.put(N1, account, str(OPENING)).status == 201

    def key_in(self, shard: int, prefix: str = "account-") -> str:
        shard_of = self.script.process(N1).node.router.shard_of
        keys = (f"{prefix}{number}" for number in range(999))
        return next(key for key in keys if shard_of(key.encode()) == shard)

    # ---- asking ----------------------------------------------------------------------------------

    def send(
        self, at: NodeId, then: list[dict[str, Any]], compares: list[Any] | None = None, **headers: str
    ) -> Pending:
        body = msgspec.json.encode({"if": compares or [], "then": then})
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.script.send(at, "POST", "/v1/txn", body, JSON | named)

    def ask(
        self, at: NodeId, then: list[dict[str, Any]], compares: list[Any] | None = None, **headers: str
    ) -> Response:
        pending = self.send(at, then, compares, **headers)
        self.script.run_until(lambda: pending.is_done, 12.0, "the transaction is answered")
        assert pending.response is not None, f"{at} is down"
        return pending.response

    def transfer(self, at: NodeId, source: int = 0, target: int = 1, **headers: str) -> Pending:
        """Move one from an account to another."""
        return self.send(at, [incr(self.accounts[source], -1), incr(self.accounts[target], 1)], **headers)

    def balances(self, at: NodeId = N1) -> list[int]:
        """All accounts at one moment."""
        response = self.ask(at, [get(account) for account in self.accounts])
        assert response.status == 200, response
        return [int(result["value"]) for result in _decode(response.body)["results"]]

    # ---- looking inside --------------------------------------------------------------------------

    def open_intents(self) -> list[str]:
        """What replicas hold or have to bring to an end."""
        found = []
        for name, process in self.script.cluster.processes.items():
            for replica in process.replicas():
                intents = replica.machine.intents
                if intents.locks or intents.pending:
                    held = sorted(intents.locks)
                    found.append(f"{name} shard {replica.shard}: {held} {len(intents.pending)} open")
        return found

    def is_held(self, account: int) -> bool:
        """Whether the leader of the account's shard has it locked."""
        process = self.script.cluster.leader_of(ShardId(account))
        assert process is not None, f"shard {account} has no leader"
        locks = process.node.host.replicas[ShardId(account)].machine.intents.locks
        return self.accounts[account].encode() in locks

    def wait_until_held(self, *accounts: int) -> None:
        self.script.run_until(
            lambda: all(self.is_held(account) for account in accounts), 2.0, "the accounts are held"
        )

    def settle(self, seconds: float = 10.0) -> None:
        """All that was broken is whole again: so long after it nothing may be left of any transaction."""
        self.script.run(seconds)
        assert self.open_intents() == []
        self.script.check()
