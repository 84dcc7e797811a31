"""A batch of nothing but puts without options: the general way of `batch`, with less work per operation.

It is what loads write in bulk, and at 80,000 puts/s a microsecond each is a twelfth of a core. Whatever is
unusual in the body (an option, another operation, something that must be refused) is left to `batch`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from kvstore.node.api.context import Context
from kvstore.node.api.items import failure_fields
from kvstore.node.calls import Answer
from kvstore.node.requests import Request
from kvstore.store import commands
from kvstore.store.results import OK, error_of
from kvstore.types import ShardId
from kvstore.wire import bodies

_UNDERSCORE = ord("_")
"""Keys that begin so may be reserved: `batch` knows."""


class _Done(msgspec.Struct, gc=False):
    """Result of a put, as `batch` and the single request give it."""

    status: int
    revision: int
    version: int
    created: bool


def plain_ops(context: Context, request: Request) -> list[commands.Op] | None:
    """The ops of a batch that `PutRun` can carry out, all of them valid; None: it needs `batch`."""
    puts = bodies.plain_puts(request.headers, request.body)
    limits = context.limits
    if puts is None or len(puts) > limits.batch_ops_max:
        return None
    key_bytes_max, value_bytes_max = context.key_bytes_max, limits.value_bytes_max
    ops = []
    for put in puts:
        key, value = put.key, put.value
        try:
            if type(key) is str:
                key = key.encode()
            if type(value) is str:
                value = value.encode()
        except UnicodeEncodeError:
            return None
        if (
            type(key) is not bytes
            or type(value) is not bytes
            or not 0 < len(key) <= key_bytes_max
            or key[0] == _UNDERSCORE
            or len(value) > value_bytes_max
        ):
            return None
        ops.append([commands.PUT, key, value])
    return ops


class PutRun:
    """Carries out `plain_ops` and answers the request. An identity must not have a body's hash."""

    __slots__ = ("all_replayed", "clock_ms", "context", "identity", "parts", "request", "results", "waiting")

    def __init__(
        self,
        context: Context,
        request: Request,
        identity: commands.Identity | None,
        ops: list[commands.Op],
    ) -> None:
        self.context = context
        self.request = request
        self.identity = identity
        self.parts: dict[ShardId, tuple[list[int], list[commands.Op]]] = {}
        """Positions in the request, and ops, by shard."""
        shards = context.router.shards()
        if len(shards) == 1:
            self.parts[shards[0]] = (list(range(len(ops))), ops)
        else:
            self._part(ops)
        self.results: list[Any] = [None] * len(ops)
        self.waiting = len(self.parts)
        self.all_replayed = True
        self.clock_ms = 0

    def _part(self, ops: list[commands.Op]) -> None:
        shard_of, parts = self.context.shard_of, self.parts
        for position, op in enumerate(ops):
            shard = shard_of(op[1])
            part = parts.get(shard)
            if part is None:
                part = parts[shard] = ([], [])
            part[0].append(position)
            part[1].append(op)

    def start(self) -> None:
        write, deadline = self.context.router.write_then, self.context.deadline(self.request)
        identity = self.identity
        for shard, (positions, ops) in list(self.parts.items()):
            done = partial(self.part_done, shard, positions)
            write(shard, commands.encode(identity, ops), identity is not None, deadline, done)

    def part_done(
        self, shard: ShardId, positions: list[int], answer: Answer | None, error: BaseException | None
    ) -> None:
        if answer is None:
            assert error is not None, "neither answer nor error"
            self.all_replayed = False
            del self.parts[shard]
            failed = failure_fields(error)
            self._count(failed["status"], len(positions))
            for position in positions:
                self.results[position] = failed
        else:
            self.clock_ms = answer.clock_ms
            self.all_replayed = self.all_replayed and answer.result.replayed
            self._take_results(positions, answer.result.results)
        self.waiting -= 1
        if self.waiting == 0:
            self.answer()

    def _take_results(self, positions: list[int], outcomes: list[Any]) -> None:
        results = self.results
        created_count = refused_count = 0
        for position, outcome in zip(positions, outcomes, strict=True):
            if outcome[0] == OK:
                _, revision, version, created, _ = outcome
                results[position] = _Done(201 if created else 200, revision, version, created)
                created_count += created
            else:
                refusal = error_of(outcome)
                assert refusal is not None, "an outcome that is neither OK nor an error"
                failed = results[position] = failure_fields(refusal)
                refused_count += 1
                self._count(failed["status"], 1)
        self._count(201, created_count)
        self._count(200, len(positions) - created_count - refused_count)

    def _count(self, status: int, count: int) -> None:
        if count:
            self.context.metrics.requests.of("put", str(status)).value += count

    def answer(self) -> None:
        context, request = self.context, self.request
        if len(self.parts) == 1:
            request.shard = next(iter(self.parts))
        head = context.head(request, self.clock_ms)
        if self.all_replayed:
            head += b"Idempotency-Replayed: true\r\n"
        context.respond_content(request, 200, {"results": self.results}, head)
