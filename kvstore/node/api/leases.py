"""Leases over HTTP: grant, renew, look, list, revoke; and puts of keys that are tied to one."""

from __future__ import annotations

import re
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final

from kvstore.errors import Conflict, InvalidArgument, KvError, LeaseNotFound, TooLarge, Unavailable
from kvstore.node.api.context import Context
from kvstore.node.api.items import failure_fields
from kvstore.node.calls import Answer, Done
from kvstore.node.flow import Promise, spawn
from kvstore.node.leases import TIES_MAX, Renewed
from kvstore.node.requests import Request
from kvstore.store import commands, keys, lease_commands
from kvstore.store.leases import REVOKED
from kvstore.store.results import PRECONDITION_FAILED, REFUSED, CommandResult, error_of
from kvstore.types import ShardId
from kvstore.wire import api, bodies

_ID = re.compile(r"[A-Za-z0-9._~:@-]{1,64}", re.ASCII)
FRESH_ID_BYTES: Final = 12
PAGE_MAX: Final = 10_000
PAGE: Final = 1_000


def lease_id_of(text: str, where: str) -> bytes:
    if not _ID.fullmatch(text):
        raise InvalidArgument(f"{where} must be 1 to 64 of the characters A-Z a-z 0-9 . _ ~ : @ -")
    return text.encode()


def _path_id(encoded: str) -> bytes:
    decoded = api.percent_decoded(encoded, "the lease's id").decode("utf-8", "replace")
    if not _ID.fullmatch(decoded):
        raise LeaseNotFound("no lease has such an id")
    return decoded.encode()


def _answer_later(context: Context, request: Request, work: Coroutine[Any, Any, None]) -> None:
    def done(outcome: Promise[None]) -> None:
        if outcome.error is not None:
            context.fail(request, outcome.error)

    spawn(work).on_done(done)


# ---- grants --------------------------------------------------------------------------------------


def grant(context: Context, request: Request, query: api.Query) -> None:
    body = bodies.grant_body(request.headers, request.body)
    if body.ttl is None:
        raise InvalidArgument(
            'the body needs "ttl", how long the lease lasts without a keepalive, like "10s"'
        )
    limits = context.limits
    ttl_ms = api.duration_ms(str(body.ttl), "$.ttl", limits.ttl_ms_min, limits.ttl_ms_max)
    identity = context.identity(request)
    if body.id is not None:
        lease_id = lease_id_of(body.id, "$.id")
        if body.id == "keepalive":
            raise InvalidArgument("$.id must not be 'keepalive', which is a route")
    elif identity is not None:
        # The same for all repetitions of a request.
        parts = (b"lease", identity.session, b"%d" % identity.sequence)
        lease_id = api.digest(FRESH_ID_BYTES, *parts).hex().encode()
    else:
        lease_id = context.fresh_bytes(FRESH_ID_BYTES).hex().encode()
    request.shard = context.leases.home_of(lease_id)
    context.router.write_then(
        request.shard,
        commands.encode(identity, [lease_commands.grant(lease_id, ttl_ms)]),
        identity is not None,
        context.deadline(request),
        partial(_granted, context, request, lease_id, ttl_ms),
    )


def _granted(
    context: Context,
    request: Request,
    lease_id: bytes,
    ttl_ms: int,
    answer: Answer | None,
    error: BaseException | None,
) -> None:
    if answer is not None:
        result = answer.result.results[0]
        if result[0] == PRECONDITION_FAILED:
            error = Conflict("a lease with this id lives", lease=lease_id.decode())
        else:
            error = error_of(result)
    if error is not None:
        context.fail(request, error)
        return
    assert answer is not None, "neither answer nor error"
    head = context.head(request, answer.clock_ms)
    if answer.result.replayed:
        head += b"Idempotency-Replayed: true\r\n"
    context.respond_content(request, 201, {"lease": lease_id.decode(), "ttl_ms": ttl_ms}, head)


# ---- renewals ------------------------------------------------------------------------------------


def keepalive(context: Context, request: Request, encoded_id: str, query: api.Query) -> None:
    lease_id = _path_id(encoded_id)
    request.shard = context.leases.home_of(lease_id)
    _answer_later(context, request, _keep_one(context, request, lease_id))


async def _keep_one(context: Context, request: Request, lease_id: bytes) -> None:
    [found] = await context.leases.renew([lease_id], context.deadline(request))
    if isinstance(found, KvError):
        raise found
    if found is None:
        raise LeaseNotFound("there is no such lease; it may have expired")
    context.respond_content(request, 200, _renewed_fields(lease_id, found), context.head(request))


def _renewed_fields(lease_id: bytes, found: Renewed) -> dict[str, Any]:
    return {"lease": lease_id.decode(), "ttl_ms": found.left_ms, "granted_ttl_ms": found.ttl_ms}


def keepalive_many(context: Context, request: Request, query: api.Query) -> None:
    lease_ids = bodies.keepalive_body(request.headers, request.body).leases
    most = context.limits.batch_ops_max
    if len(lease_ids) > most:
        detail = f"the body names {len(lease_ids)} leases, batch_ops_max is {most}"
        raise TooLarge(detail, limit="batch_ops_max", max=most, size=len(lease_ids))
    matches = _ID.fullmatch
    for position, lease_id in enumerate(lease_ids):
        if not matches(lease_id):
            lease_id_of(lease_id, f"$.leases[{position}]")
    _answer_later(context, request, _keep_many(context, request, lease_ids))


async def _keep_many(context: Context, request: Request, lease_ids: list[str]) -> None:
    wanted = [lease_id.encode() for lease_id in lease_ids]
    results: list[dict[str, Any]] = []
    for lease_id, found in zip(
        lease_ids, await context.leases.renew(wanted, context.deadline(request)), strict=True
    ):
        if type(found) is Renewed:
            left_ms, ttl_ms = found.left_ms, found.ttl_ms
            results.append({"status": 200, "lease": lease_id, "ttl_ms": left_ms, "granted_ttl_ms": ttl_ms})
        else:
            error = found if isinstance(found, KvError) else LeaseNotFound("there is no such lease")
            results.append({"lease": lease_id} | failure_fields(error))
    context.respond_content(request, 200, {"results": results}, context.head(request))


# ---- looking -------------------------------------------------------------------------------------


def get(context: Context, request: Request, encoded_id: str, query: api.Query) -> None:
    lease_id = _path_id(encoded_id)
    limit = api.integer_of(query, "limit", 0, PAGE_MAX)
    request.shard = context.leases.home_of(lease_id)
    _answer_later(context, request, _get(context, request, lease_id, PAGE if limit is None else limit))


async def _get(context: Context, request: Request, lease_id: bytes, limit: int) -> None:
    router, deadline = context.router, context.deadline(request)
    home = context.leases.home_of(lease_id)
    answer = await router.read(home, ["lease", lease_id, None], "linearizable", deadline)
    if answer.value is None:
        raise LeaseNotFound("there is no such lease; it may have expired")
    generation, ttl_ms, due_ms, _ = answer.value
    fields: dict[str, Any] = {
        "lease": lease_id.decode(),
        "ttl_ms": ttl_ms,
        "remaining_ms": max(0, due_ms - answer.clock_ms),
    }
    shards = (await router.read(home, ["lease_shards", generation], "linearizable", deadline)).value
    found: list[bytes] = []
    has_more = False
    for shard in shards if limit else ():
        where = home if shard == keys.HOME_SHARD else ShardId(shard)
        query = ["lease_keys", lease_id, generation, b"", limit - len(found) + 1]
        page, more = (await router.read(where, query, "linearizable", deadline)).value
        found += page
        has_more = more or len(found) > limit
        if has_more:
            break
    is_msgpack = api.wants_msgpack(request.headers)
    fields["keys"] = [_key_field(key, is_msgpack) for key in sorted(found[:limit])]
    fields["more"] = has_more
    context.respond_content(request, 200, fields, context.head(request, answer.clock_ms))


def _key_field(key: bytes, is_msgpack: bool) -> Any:
    """Text where the key is UTF-8, else an object with `key_b64`."""
    if is_msgpack:
        return key
    fields: dict[str, Any] = {}
    bodies.named_bytes("key", key, fields)
    return fields.get("key", fields)


def list_all(context: Context, request: Request, query: api.Query) -> None:
    limit = api.integer_of(query, "limit", 1, PAGE_MAX) or PAGE
    cursor = api.text_of(query, "cursor")
    place: list[Any] = [0, b""]
    if cursor is not None:
        place = api.unseal("leases", cursor)
        is_ours = len(place) == 2 and type(place[0]) is int and type(place[1]) is bytes
        if not is_ours or not 0 <= place[0] < len(context.router.shards()):
            raise InvalidArgument("the cursor is not one this service gave out")
    _answer_later(context, request, _list(context, request, limit, *place))


async def _list(context: Context, request: Request, limit: int, number: Any, after: Any) -> None:
    router, deadline = context.router, context.deadline(request)
    shards = router.shards()
    found: list[dict[str, Any]] = []
    next_cursor: str | None = None
    while number < len(shards):
        query = ["lease_list", after, limit - len(found)]
        answer = await router.read(shards[number], query, "linearizable", deadline)
        rows, more = answer.value
        found += [
            {"lease": lease_id.decode(), "ttl_ms": ttl_ms, "remaining_ms": max(0, due_ms - answer.clock_ms)}
            for lease_id, ttl_ms, due_ms in rows
        ]
        number, after = (number, rows[-1][0]) if more else (number + 1, b"")
        if len(found) >= limit and number < len(shards):
            next_cursor = api.seal("leases", [number, after])
            break
    context.respond_content(request, 200, {"leases": found, "next": next_cursor}, context.head(request))


# ---- ends ----------------------------------------------------------------------------------------


def revoke(context: Context, request: Request, encoded_id: str, query: api.Query) -> None:
    lease_id = _path_id(encoded_id)
    request.shard = context.leases.home_of(lease_id)
    _answer_later(context, request, _revoke(context, request, lease_id, context.identity(request)))


async def _revoke(
    context: Context, request: Request, lease_id: bytes, identity: commands.Identity | None
) -> None:
    """Names the grant that it found, so that however late it comes it ends no other (schedule 43)."""
    router, deadline = context.router, context.deadline(request)
    home = context.leases.home_of(lease_id)
    answer = await router.read(home, ["lease", lease_id, None], "linearizable", deadline)
    generation = 0 if answer.value is None else answer.value[0]
    if not generation and identity is None:
        raise LeaseNotFound("there is no such lease; it may have expired")
    # Without a grant the session may still know the answer of an earlier try.
    command = commands.encode(identity, [lease_commands.revoke(lease_id, generation)])
    written = await router.write(home, command, True, deadline)
    result = written.result.results[0]
    refusal = error_of(result)
    if refusal is not None:
        raise refusal
    pending = await context.leases.finish(lease_id, result[1], REVOKED, deadline)
    head = context.head(request, written.clock_ms)
    if written.result.replayed:
        head += b"Idempotency-Replayed: true\r\n"
    fields: dict[str, Any] = {"lease": lease_id.decode(), "revoked": True}
    if pending:
        fields["pending_shards"] = sorted(pending)
    context.respond_content(request, 202 if pending else 200, fields, head)


# ---- puts ----------------------------------------------------------------------------------------


async def write_tied(
    context: Context,
    shard: ShardId,
    ops: list[commands.Op],
    leases: dict[int, bytes],
    identity: commands.Identity | None,
    deadline: float,
) -> Answer:
    """Write one shard's part of a request in which ops, by their index in `ops`, tie their keys to leases.

    What is refused is built anew and sent again. A result may be an error: why one of the ops could not be.

    Raises: KvError, if nothing of it is known to have been written."""
    results: list[Any] = [None] * len(ops)
    todo = list(range(len(ops)))
    answer: Answer | None = None
    failure: KvError = Unavailable("the lease's grant or the shard's clock changes too fast", retry_after=1)
    for attempt in range(TIES_MAX):
        try:
            await _build(context, shard, ops, leases, todo, deadline, is_again=attempt > 0)
            # An identified command is sent whole: what was done is not done again, and answered.
            sent = todo if identity is None else list(range(len(ops)))
            command = commands.encode(identity, [ops[index] for index in sent])
            answer = await context.router.write(shard, command, identity is not None, deadline)
        except KvError as error:
            failure = error
            break
        for index, result in zip(sent, answer.result.results, strict=True):
            results[index] = result
        todo = [index for index in sent if results[index][0] == REFUSED]
        if not todo:
            break
    if answer is None or len(todo) == len(ops):
        raise failure
    for index in todo:
        results[index] = failure
    return Answer(shard, CommandResult(answer.result.replayed, results), answer.clock_ms)


async def _build(
    context: Context,
    shard: ShardId,
    ops: list[commands.Op],
    leases: dict[int, bytes],
    todo: list[int],
    deadline: float,
    *,
    is_again: bool,
) -> None:
    """Tell the ops what they need to know of their leases."""
    for lease_id in sorted({leases[index] for index in todo if index in leases}):
        options = await context.leases.tie(lease_id, shard, deadline, is_again=is_again)
        for index in todo:
            if leases.get(index) == lease_id:
                ops[index][3].update(options)


def write_tied_then(
    context: Context,
    shard: ShardId,
    ops: list[commands.Op],
    leases: dict[int, bytes],
    identity: commands.Identity | None,
    deadline: float,
    done: Done,
) -> None:
    """`write_tied` for callers with a callback."""

    def settled(outcome: Promise[Answer]) -> None:
        if outcome.error is None:
            done(outcome.result(), None)
        else:
            done(None, outcome.error)

    spawn(write_tied(context, shard, ops, leases, identity, deadline)).on_done(settled)
