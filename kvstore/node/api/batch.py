"""Independent operations in one request, each with its own result.

Operations on one key keep their order; those on different keys have none. So a batch is cut into levels:
reads and writes of one key are never in one level, and a level runs at once, one command and one query
per shard, before the next one starts. A batch of only writes is a single level, as is one of only gets.

With an identity, every write is known by its index among the request's writes of its shard, so that a
repeated batch resumes where it stood. A batch with an Idempotency-Key first leaves the body's hash in
the key's own shard: a repetition with another body may meet only shards that never saw the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import msgspec

from kvstore.errors import InvalidArgument, TooLarge, Unsupported
from kvstore.node.api import leases
from kvstore.node.api.acks import acknowledge
from kvstore.node.api.context import Context
from kvstore.node.api.items import delete_fields, failure_fields, item_fields, put_fields
from kvstore.node.api.kv import ttl_ms_of
from kvstore.node.api.puts import PutRun, plain_ops
from kvstore.node.api.reserved import check_writable
from kvstore.node.calls import Answer, ReadAnswer
from kvstore.node.requests import Request
from kvstore.store import commands
from kvstore.store.results import error_of
from kvstore.types import ShardId
from kvstore.wire import api, bodies

GET = 0
"""A read among the op codes of `commands`."""

_BODY_MARK_INDEX = 1 << 40
"""Index of the op that carries a body's hash: above any op of a request."""


class _Level:
    """What runs at once, each part with the positions of its operations in the request."""

    __slots__ = ("history", "reads", "writes")

    def __init__(self) -> None:
        self.writes: dict[ShardId, tuple[list[int], list[list[Any]]]] = {}
        self.reads: dict[ShardId, tuple[list[int], list[bytes]]] = {}
        self.history: list[tuple[ShardId, int, bytes, int]] = []
        """Reads at a revision, one query each: shard, position, key, revision."""


class Plan:
    """A batch taken apart: what to run in which level, and what failed before it ran."""

    __slots__ = ("codes", "keys", "leases", "levels", "outcomes")

    def __init__(self, count: int) -> None:
        self.levels = [_Level()]
        self.codes: list[int] = [GET] * count
        self.keys: list[bytes] = [b""] * count
        self.leases: dict[int, bytes] = {}
        """Leases that puts tie their keys to, by position."""
        self.outcomes: list[Any] = [None] * count
        """Per operation: a store result (list), an item (list), None for an absent key, or an error."""


def plan_of(context: Context, ops: list[bodies.BatchOp]) -> Plan:
    """Cut a batch into levels.

    Raises: InvalidArgument for an operation that is not well formed. One that is too large or asks for
    what this version cannot do only fails itself.
    """
    plan = Plan(len(ops))
    codes, names, shard_of = plan.codes, plan.keys, context.shard_of
    kinds = {type(op) for op in ops}
    is_mixed = not kinds.isdisjoint(bodies.GETS) and not kinds.issubset(bodies.GETS)
    last: dict[bytes, tuple[int, bool]] = {}
    level, writes = plan.levels[0], plan.levels[0].writes
    for position, op in enumerate(ops):
        key = op.key
        if type(key) is not bytes or op.key_b64 is not None:
            key = bodies.bytes_of(key, op.key_b64, "key", f"$.ops[{position}]")
        names[position] = key
        code, pack = _PACKERS[type(op)]
        codes[position] = code
        try:
            api.check_key(key, context.key_bytes_max, f"$.ops[{position}].key")
            if code != GET:
                check_writable(key, f"$.ops[{position}].key")
            packed = pack(context, op, key, position)
            if code == commands.PUT and len(packed) == 4 and "lease" in packed[3]:
                plan.leases[position] = packed[3]["lease"]
        except (TooLarge, Unsupported) as error:
            plan.outcomes[position] = error
            continue
        shard = shard_of(key)
        if is_mixed:
            number, was_write = last.get(key, (0, code != GET))
            number += was_write != (code != GET)
            last[key] = (number, code != GET)
            while number >= len(plan.levels):
                plan.levels.append(_Level())
            level = plan.levels[number]
            writes = level.writes
        if code == GET:
            _add_read(level, shard, position, key, packed)
            continue
        part = writes.get(shard)
        if part is None:
            part = writes[shard] = ([], [])
        part[0].append(position)
        part[1].append(packed)
    return plan


def _add_read(level: _Level, shard: ShardId, position: int, key: bytes, revision: int | None) -> None:
    if revision is not None:
        level.history.append((shard, position, key, revision))
        return
    part = level.reads.get(shard)
    if part is None:
        part = level.reads[shard] = ([], [])
    part[0].append(position)
    part[1].append(key)


def _pack_put(context: Context, op: Any, key: bytes, position: int) -> list[Any]:
    value = op.value
    if type(value) is not bytes or op.value_b64 is not None:
        value = bodies.bytes_of(value, op.value_b64, "value", f"$.ops[{position}]")
    if len(value) > context.limits.value_bytes_max:
        where = f"$.ops[{position}].value"
        raise api.too_large(where, "value_bytes_max", context.limits.value_bytes_max, len(value))
    if (
        op.if_revision is None
        and op.content_type is None
        and op.ttl is None
        and op.lease is None
        and not op.if_absent
        and not op.prev
    ):
        return [commands.PUT, key, value]
    where = f"$.ops[{position}]"
    if op.content_type is not None:
        limit = context.limits.content_type_bytes_max
        api.check_content_type(op.content_type, limit, f"{where}.content_type")
    if op.if_revision is not None:
        bodies.check_revision(op.if_revision, f"{where}.if_revision")
        if op.if_absent:
            raise InvalidArgument(f"{where} gives both 'if_revision' and 'if_absent'; expected one of them")
    return commands.put(
        key,
        value,
        content_type=op.content_type,
        if_revision=op.if_revision,
        if_absent=op.if_absent,
        prev=op.prev,
        ttl_ms=None if op.ttl is None else ttl_ms_of(context, str(op.ttl), f"{where}.ttl"),
        lease=None if op.lease is None else leases.lease_id_of(op.lease, f"{where}.lease"),
    )


def _pack_delete(context: Context, op: Any, key: bytes, position: int) -> list[Any]:
    if op.if_revision is not None:
        bodies.check_revision(op.if_revision, f"$.ops[{position}].if_revision")
    return commands.delete(key, if_revision=op.if_revision, prev=op.prev)


def _pack_incr(context: Context, op: Any, key: bytes, position: int) -> list[Any]:
    bodies.check_incr(op.by, op.min, op.max, f"$.ops[{position}]")
    return commands.incr(key, op.by, op.min, op.max)


def _pack_get(context: Context, op: Any, key: bytes, position: int) -> int | None:
    """A read is only its revision."""
    if op.revision is None:
        return None
    return bodies.check_revision(op.revision, f"$.ops[{position}].revision")


_PACKERS: dict[type, tuple[int, Callable[[Context, Any, bytes, int], Any]]] = {
    bodies.JsonPut: (commands.PUT, _pack_put),
    bodies.PackedPut: (commands.PUT, _pack_put),
    bodies.JsonGet: (GET, _pack_get),
    bodies.PackedGet: (GET, _pack_get),
    bodies.JsonDelete: (commands.DELETE, _pack_delete),
    bodies.PackedDelete: (commands.DELETE, _pack_delete),
    bodies.JsonIncr: (commands.INCR, _pack_incr),
    bodies.PackedIncr: (commands.INCR, _pack_incr),
}


class _Run:
    """A batch in progress."""

    __slots__ = (
        "all_replayed",
        "clock_ms",
        "context",
        "deadline",
        "has_written",
        "identity",
        "next_level",
        "plan",
        "request",
        "shards",
        "waiting",
        "written",
    )

    def __init__(
        self, context: Context, request: Request, identity: commands.Identity | None, plan: Plan
    ) -> None:
        self.context = context
        self.request = request
        self.identity = identity
        self.plan = plan
        self.deadline = context.deadline(request)
        self.next_level = 0
        self.waiting = 0
        self.written: dict[ShardId, int] = {}
        """Writes of each shard in the levels before: the index of its next one in the request."""
        self.has_written = False
        self.all_replayed = True
        self.clock_ms = 0
        self.shards: set[ShardId] = set()

    def start(self) -> None:
        identity = self.identity
        if identity is not None and identity.body_hash is not None:
            self.mark_body(identity)
        else:
            self.run_levels()

    def mark_body(self, identity: commands.Identity) -> None:
        """Leave the body's hash where any repetition will meet it. The op itself does nothing."""
        whose = msgspec.structs.replace(identity, first_index=_BODY_MARK_INDEX)
        command = commands.encode(whose, (commands.delete_range(b"", b"\x00"),))
        home = self.context.shard_of(identity.session)
        self.context.router.write_then(home, command, True, self.deadline, self.body_marked)

    def body_marked(self, answer: Answer | None, error: BaseException | None) -> None:
        if answer is not None:
            error = error_of(answer.result.results[0])
        if error is not None:
            self.context.fail(self.request, error)
        else:
            self.run_levels()

    def run_levels(self) -> None:
        """Run levels until one has to wait; after the last one, answer."""
        levels = self.plan.levels
        while self.waiting == 0:
            if self.next_level == len(levels):
                self.answer()
                return
            level = levels[self.next_level]
            self.next_level += 1
            # One more than there are parts, so that parts done at once don't start the next level here.
            self.waiting = 1 + len(level.writes) + len(level.reads) + len(level.history)
            self.run(level)
            self.waiting -= 1

    def run(self, level: _Level) -> None:
        read, deadline = self.context.router.read_then, self.deadline
        for shard, (positions, ops) in level.writes.items():
            self.write(shard, positions, ops)
        for shard, (positions, keys) in level.reads.items():
            done = partial(self.read_done, shard, positions)
            read(shard, ("gets", keys), "linearizable", deadline, done)
        for shard, position, key, revision in level.history:
            done = partial(self.read_done, shard, position)
            read(shard, ("get", key, revision), "linearizable", deadline, done)

    def write(self, shard: ShardId, positions: list[int], ops: list[list[Any]]) -> None:
        identity = self.identity
        if identity is not None:
            first_index = self.written.get(shard, 0)
            self.written[shard] = first_index + len(ops)
            identity = msgspec.structs.replace(identity, first_index=first_index)
        self.has_written = True
        done = partial(self.write_done, shard, positions)
        ties = self.plan.leases
        tied = {index: ties[at] for index, at in enumerate(positions) if at in ties} if ties else None
        if tied:
            leases.write_tied_then(self.context, shard, ops, tied, identity, self.deadline, done)
            return
        command = commands.encode(identity, ops)
        self.context.router.write_then(shard, command, identity is not None, self.deadline, done)

    def write_done(
        self, shard: ShardId, positions: list[int], answer: Answer | None, error: BaseException | None
    ) -> None:
        outcomes = self.plan.outcomes
        if answer is None:
            self.all_replayed = False
            for position in positions:
                outcomes[position] = error
        else:
            self.shards.add(shard)
            self.clock_ms = answer.clock_ms
            self.all_replayed = self.all_replayed and answer.result.replayed
            for position, result in zip(positions, answer.result.results, strict=True):
                outcomes[position] = result
        self.part_done()

    def read_done(
        self,
        shard: ShardId,
        positions: list[int] | int,
        answer: ReadAnswer | None,
        error: BaseException | None,
    ) -> None:
        """`positions` is a list for a query of many keys, one number for a read at a revision."""
        where = [positions] if isinstance(positions, int) else positions
        if answer is None:
            items: list[Any] = [error] * len(where)
        else:
            self.shards.add(shard)
            self.clock_ms = answer.clock_ms
            items = [answer.value] if isinstance(positions, int) else answer.value
        for position, item in zip(where, items, strict=True):
            self.plan.outcomes[position] = item
        self.part_done()

    def part_done(self) -> None:
        self.waiting -= 1
        if self.waiting == 0:
            self.run_levels()

    def answer(self) -> None:
        context, request, plan = self.context, self.request, self.plan
        is_msgpack = api.wants_msgpack(request.headers)
        results = []
        counts: dict[tuple[int, int], int] = {}
        for position, (code, outcome) in enumerate(zip(plan.codes, plan.outcomes, strict=True)):
            if code == commands.PUT and type(outcome) is list and outcome[0] == 0 and outcome[4] is None:
                status = 201 if outcome[3] else 200
                fields = {
                    "status": status,
                    "revision": outcome[1],
                    "version": outcome[2],
                    "created": outcome[3],
                }
            else:
                fields = _fields(code, outcome, is_msgpack, plan.keys[position])
                status = fields["status"]
            results.append(fields)
            counts[code, status] = counts.get((code, status), 0) + 1
        for (code, status), count in counts.items():
            context.metrics.requests.of(_NAMES[code], str(status)).value += count
        if len(self.shards) == 1:
            request.shard = next(iter(self.shards))
        head = context.head(request, self.clock_ms)
        if self.has_written and self.all_replayed:
            head += b"Idempotency-Replayed: true\r\n"
        context.respond_content(request, 200, {"results": results}, head)


_NAMES = {commands.PUT: "put", GET: "get", commands.DELETE: "delete", commands.INCR: "incr"}


def _fields(code: int, outcome: Any, is_msgpack: bool, key: bytes) -> dict[str, Any]:
    """One operation's result, as the single request would have answered it, with its status."""
    if isinstance(outcome, BaseException):
        return failure_fields(outcome)
    if code == GET:
        if outcome is None:
            return {"status": 404}
        return {"status": 200, **item_fields(outcome, is_msgpack, key)}
    refusal = error_of(outcome)
    if refusal is not None:
        return failure_fields(refusal)
    if code == commands.PUT:
        return {"status": 201 if outcome[3] else 200, **put_fields(outcome, is_msgpack)}
    if code == commands.DELETE:
        return {"status": 200, **delete_fields(outcome, is_msgpack)}
    return {"status": 200, "value": outcome[2], "revision": outcome[1]}


def batch(context: Context, request: Request, query: api.Query) -> None:
    limits = context.limits
    if len(request.body) > limits.batch_bytes_max:
        raise api.too_large("the body", "batch_bytes_max", limits.batch_bytes_max, len(request.body))
    plain = plain_ops(context, request)
    if plain is not None:
        identity = context.identity(request)
        if identity is None or identity.body_hash is None:
            puts = PutRun(context, request, identity, plain)
            if not _is_elsewhere(context, request, puts.parts):
                puts.start()
            return
    ops, shards_acked = bodies.batch_body(request.headers, request.body)
    if len(ops) > limits.batch_ops_max:
        raise TooLarge(
            f"the batch has {len(ops)} operations, batch_ops_max is {limits.batch_ops_max}",
            limit="batch_ops_max",
            max=limits.batch_ops_max,
            size=len(ops),
        )
    identity = context.identity(request)
    if shards_acked is not None:
        acknowledge(context, request, identity, shards_acked)
        return
    plan = plan_of(context, ops)
    shards = {shard for level in plan.levels for part in (level.writes, level.reads) for shard in part}
    if not _is_elsewhere(context, request, shards):
        _Run(context, request, identity, plan).start()


def _is_elsewhere(context: Context, request: Request, shards: Collection[ShardId]) -> bool:
    """Whether another node has been named for all of the batch."""
    return len(shards) == 1 and context.is_elsewhere(request, next(iter(shards)), redirect=False)
