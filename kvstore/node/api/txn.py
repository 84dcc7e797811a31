"""Transactions: compare, then do one of two lists of operations, all or nothing, over any shards.

Unlike in a batch, operations have no conditions and no failures of their own: compares go into `if`, and an
operation that cannot be done (an incr out of its bounds) fails the whole request with nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from kvstore.errors import InvalidArgument, TooLarge
from kvstore.node.api.context import Context
from kvstore.node.api.items import delete_fields, item_fields, put_fields
from kvstore.node.api.kv import ttl_ms_of
from kvstore.node.api.leases import lease_id_of
from kvstore.node.api.reserved import check_writable
from kvstore.node.flow import Promise, spawn
from kvstore.node.requests import Request
from kvstore.node.transactions import Done, Plan
from kvstore.store import commands, txn_commands
from kvstore.wire import api, bodies
from kvstore.wire.txn_bodies import Test, txn_body


def txn(context: Context, request: Request, query: api.Query) -> None:
    limits = context.limits
    if len(request.body) > limits.txn_bytes_max:
        raise api.too_large("the body", "txn_bytes_max", limits.txn_bytes_max, len(request.body))
    body = txn_body(request.headers, request.body)
    count = len(body.tests) + len(body.then) + len(body.otherwise)
    if count > limits.txn_ops_max:
        raise TooLarge(
            f"the transaction has {count} compares and operations, txn_ops_max is {limits.txn_ops_max}",
            limit="txn_ops_max",
            max=limits.txn_ops_max,
            size=count,
        )
    maker = _Maker(context)
    for number, test in enumerate(body.tests):
        maker.add_test(test, f"$.if[{number}]")
    for branch, ops, name in ((True, body.then, "then"), (False, body.otherwise, "else")):
        maker.add_branch(branch, ops, name)
    plan = maker.plan
    if not plan.parts:
        raise InvalidArgument("the transaction names no key: give compares or operations")
    if len(plan.parts) > limits.txn_shards_max:
        raise TooLarge(
            f"the keys lie in {len(plan.parts)} shards, txn_shards_max is {limits.txn_shards_max}",
            limit="txn_shards_max",
            max=limits.txn_shards_max,
            size=len(plan.parts),
        )
    identity = context.identity(request)
    if len(plan.parts) == 1:
        request.shard = next(iter(plan.parts))
        if context.is_elsewhere(request, request.shard, redirect=False):
            return
    work = spawn(context.transactions.run(plan, identity, context.deadline(request)))
    work.on_done(lambda promise: _answer(context, request, maker, promise))


class _Maker:
    """Turns a checked body into ops, and remembers what each was for its answer."""

    def __init__(self, context: Context) -> None:
        self.plan = Plan()
        self.ops: dict[bool, list[tuple[int, bytes]]] = {True: [], False: []}
        """Code and key of each op, by branch."""
        self._context = context

    def add_test(self, test: Test, where: str) -> None:
        api.check_key(test.key, self._context.key_bytes_max, f"{where}.key")
        compare = [
            test.key,
            txn_commands.FIELDS[test.field],
            txn_commands.OPERATORS[test.operator],
            test.operand,
        ]
        self.plan.add_compare(self._context.shard_of(test.key), compare)

    def add_branch(self, branch: bool, ops: list[bodies.BatchOp], name: str) -> None:
        written: dict[bytes, int] = {}
        for number, op in enumerate(ops):
            where = f"$.{name}[{number}]"
            key = bodies.bytes_of(op.key, op.key_b64, "key", where)
            api.check_key(key, self._context.key_bytes_max, f"{where}.key")
            packed = _PACKERS[type(op)](self._context, op, key, where)
            if packed[0] != txn_commands.GET:
                check_writable(key, f"{where}.key")
                if key in written:
                    raise InvalidArgument(
                        f"{where} writes a key that $.{name}[{written[key]}] writes too; "
                        "a branch writes each key once"
                    )
                written[key] = number
            self.plan.add_op(self._context.shard_of(key), branch, packed)
            self.ops[branch].append((packed[0], key))


def _pack_put(context: Context, op: Any, key: bytes, where: str) -> list[Any]:
    value = bodies.bytes_of(op.value, op.value_b64, "value", where)
    if len(value) > context.limits.value_bytes_max:
        raise api.too_large(f"{where}.value", "value_bytes_max", context.limits.value_bytes_max, len(value))
    _refuse_condition(op.if_revision is not None or op.if_absent, where)
    if op.content_type is not None:
        limit = context.limits.content_type_bytes_max
        api.check_content_type(op.content_type, limit, f"{where}.content_type")
    ttl_ms = None if op.ttl is None else ttl_ms_of(context, str(op.ttl), f"{where}.ttl")
    lease = None if op.lease is None else lease_id_of(op.lease, f"{where}.lease")
    return commands.put(key, value, content_type=op.content_type, prev=op.prev, ttl_ms=ttl_ms, lease=lease)


def _pack_get(context: Context, op: Any, key: bytes, where: str) -> list[Any]:
    if op.revision is not None:
        raise InvalidArgument(f"{where}.revision: a transaction reads the present, not the past")
    return [txn_commands.GET, key]


def _pack_delete(context: Context, op: Any, key: bytes, where: str) -> list[Any]:
    _refuse_condition(op.if_revision is not None, where)
    return commands.delete(key, prev=op.prev)


def _pack_incr(context: Context, op: Any, key: bytes, where: str) -> list[Any]:
    bodies.check_incr(op.by, op.min, op.max, where)
    return commands.incr(key, op.by, op.min, op.max)


def _refuse_condition(is_given: bool, where: str) -> None:
    if is_given:
        raise InvalidArgument(f"{where} has a condition of its own; conditions of a transaction go into $.if")


_PACKERS: Final[dict[type, Callable[[Context, Any, bytes, str], list[Any]]]] = {
    bodies.JsonPut: _pack_put,
    bodies.PackedPut: _pack_put,
    bodies.JsonGet: _pack_get,
    bodies.PackedGet: _pack_get,
    bodies.JsonDelete: _pack_delete,
    bodies.PackedDelete: _pack_delete,
    bodies.JsonIncr: _pack_incr,
    bodies.PackedIncr: _pack_incr,
}


def _answer(context: Context, request: Request, maker: _Maker, work: Promise[Done]) -> None:
    if work.error is not None:
        context.fail(request, work.error)
        return
    done = work.result()
    is_msgpack = api.wants_msgpack(request.headers)
    results = [
        _fields(code, key, result, is_msgpack)
        for (code, key), result in zip(maker.ops[done.succeeded], done.results, strict=True)
    ]
    content: dict[str, Any] = {"succeeded": done.succeeded, "results": results}
    head = b""
    if len(done.revisions) == 1:
        content["revision"] = next(iter(done.revisions.values()))
        head = b"KV-Revision: %d\r\n" % content["revision"]
    else:
        head = b"KV-Clock: %d\r\n" % done.clock_ms
    content["revisions"] = {str(shard): revision for shard, revision in done.revisions.items()}
    head += context.head(request, done.clock_ms)
    if done.replayed:
        head += b"Idempotency-Replayed: true\r\n"
    context.respond_content(request, 200, content, head)


def _fields(code: int, key: bytes, result: list[Any], is_msgpack: bool) -> dict[str, Any]:
    """What the same operation of a batch answers."""
    if code == txn_commands.GET:
        item = result[1]
        return {"status": 404} if item is None else {"status": 200, **item_fields(item, is_msgpack, key)}
    if code == commands.PUT:
        return {"status": 201 if result[3] else 200, **put_fields(result, is_msgpack)}
    if code == commands.DELETE:
        return {"status": 200, **delete_fields(result, is_msgpack)}
    return {"status": 200, "value": result[2], "revision": result[1]}
