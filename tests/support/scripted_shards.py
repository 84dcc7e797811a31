"""Shards that answer the ops of transactions as a test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvstore.errors import KvError, OutcomeUnknown
from kvstore.node.calls import Answer
from kvstore.node.flow import Promise
from kvstore.store import commands
from kvstore.store.results import OK, CommandResult
from kvstore.store.transactions import COMMITTED, NO, YES
from kvstore.store.txn_commands import DECIDE, PREPARE
from kvstore.types import ShardId
from tests.support.api_node import PaperRuntime

X, Y, Z = ShardId(0), ShardId(3), ShardId(7)
VOTE = [OK, YES, [True, None, None]]
CLOCK_MS = 5_000

Say = Callable[[ShardId, list[Any]], "list[Any] | KvError | None"]
"""What a shard answers to an op; None: nothing before the deadline."""


def results_of(shard: ShardId, branch: bool = True) -> list[Any]:
    return [OK, 100 + shard, [[OK, 100 + shard, 1, True, None]], branch]


class Shards:
    """A router whose shards say what they are told to; by default all goes well."""

    def __init__(self, runtime: PaperRuntime) -> None:
        self.runtime = runtime
        self.asked: list[tuple[ShardId, list[Any], float]] = []
        self.says: Say = lambda shard, op: None
        self.delay_s = 0.0
        """How long an answer takes."""
        self.is_silent: Callable[[ShardId, list[Any]], bool] = lambda shard, op: False

    def shard_of(self, key: bytes) -> ShardId:
        return X

    def clock_of(self, shard: ShardId) -> int | None:
        return CLOCK_MS + shard

    def write(self, shard: ShardId, command: bytes, identified: bool, deadline: float) -> Promise[Answer]:
        commands.check(command)
        _, (op,) = commands.decode(command)
        self.asked.append((shard, op, self.runtime.time_s))
        promise: Promise[Answer] = Promise()
        if self.is_silent(shard, op):
            late = OutcomeUnknown("late")
            self.runtime.call_later(deadline - self.runtime.time_s, promise.fail, late)
            return promise
        said = self.says(shard, op)
        if said is None:
            said = {
                PREPARE: VOTE,
                DECIDE: [OK, COMMITTED, results_of(shard)] if op[0] == DECIDE and op[2] else [OK, NO],
            }.get(op[0], [OK, 0])
        if isinstance(said, KvError):
            promise.fail(said)
        else:
            answer = Answer(shard, CommandResult(False, [said]), CLOCK_MS + shard)
            if self.delay_s:
                self.runtime.call_later(self.delay_s, promise.resolve, answer)
            else:
                promise.resolve(answer)
        return promise

    def ops(self, code: int) -> list[tuple[ShardId, list[Any]]]:
        return [(shard, op) for shard, op, _ in self.asked if op[0] == code]
