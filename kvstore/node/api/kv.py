"""One key: put, get, delete, incr. The hot path: one closure a request, headers formatted in one step."""

from __future__ import annotations

from functools import partial
from typing import Any

from kvstore.errors import Conflict, InvalidArgument, KeyNotFound
from kvstore.node.api import leases
from kvstore.node.api.context import CONSISTENCIES, Context
from kvstore.node.api.items import delete_fields, put_fields
from kvstore.node.api.reserved import check_writable
from kvstore.node.calls import Answer, ReadAnswer
from kvstore.node.requests import JSON, Request, Response
from kvstore.store import commands
from kvstore.store.results import error_of
from kvstore.wire import api, bodies

WAIT_MS_MAX = 300_000
WAIT_ANSWER_S = 5.0
"""What a long poll's deadline leaves for its answer."""

_UNDERSCORE = ord("_")
"""First byte of reserved keys."""

_OCTETS = "application/octet-stream"
_VALUE_HEADERS = b"Cache-Control: no-cache\r\nContent-Security-Policy: sandbox\r\n"
"""A stored value must never run as a page of this origin, whatever type it was given."""


def put(context: Context, request: Request, encoded_key: str, query: api.Query) -> None:
    key = _writable_key_of(context, request, encoded_key)
    value, headers = request.body, request.headers
    limits = context.limits
    if len(value) > limits.value_bytes_max:
        raise api.too_large("the value", "value_bytes_max", limits.value_bytes_max, len(value))
    options: dict[str, Any] = {}
    if query:
        lease = api.text_of(query, "lease")
        if lease is not None:
            options["lease"] = leases.lease_id_of(lease, "query parameter 'lease'")
        if api.flag_of(query, "prev"):
            options["prev"] = True
        ttl = api.text_of(query, "ttl")
        if ttl is not None:
            options["ttl_ms"] = ttl_ms_of(context, ttl, "query parameter 'ttl'")
    content_type = api.content_type_of(headers, limits.content_type_bytes_max)
    if content_type is not None and content_type != _OCTETS:
        options["content_type"] = content_type
    _add_conditions(headers, options, is_put=True)
    op: list[Any] = [commands.PUT, key, value, options] if options else [commands.PUT, key, value]
    _write(context, request, op, query, _put_answered)


def delete(context: Context, request: Request, encoded_key: str, query: api.Query) -> None:
    key = _writable_key_of(context, request, encoded_key)
    options: dict[str, Any] = {}
    if api.flag_of(query, "prev"):
        options["prev"] = True
    _add_conditions(request.headers, options, is_put=False)
    op: list[Any] = [commands.DELETE, key, options] if options else [commands.DELETE, key]
    _write(context, request, op, query, _delete_answered)


def post(context: Context, request: Request, encoded_key: str, query: api.Query) -> None:
    """`?op=incr` is the only operation on a key by POST."""
    if "op" not in query:
        raise InvalidArgument("query parameter 'op' is missing; known: incr", parameter="op")
    api.choice_of(query, "op", ("incr",), "incr")
    key = _writable_key_of(context, request, encoded_key)
    body = bodies.incr_body(request.headers, request.body)
    op = commands.incr(key, body.by, body.min, body.max)
    _write(context, request, op, query, _incr_answered)


def get(context: Context, request: Request, encoded_key: str, query: api.Query) -> None:
    key = _key_of(context, request, encoded_key)
    shard = request.shard
    assert shard is not None
    revision: int | None = None
    consistency = "linearizable"
    max_staleness_s: float | None = None
    if query:
        if "wait" in query:
            _long_poll(context, request, key, query)
            return
        revision = api.integer_of(query, "revision", 0, api.INT64_MAX)
        consistency, max_staleness_s = consistency_of(query)
    if context.is_elsewhere(request, shard, bool(query) and api.flag_of(query, "redirect")):
        return
    context.router.read_then(
        shard,
        ("get", key, revision),
        consistency,
        context.deadline(request),
        partial(_get_answered, context, request),
        max_staleness_s,
    )


def _long_poll(context: Context, request: Request, key: bytes, query: api.Query) -> None:
    """Hold the answer while it would tell the caller nothing new: while the key is as `If-None-Match`
    says. "0" is the revision of an absent key, `*` means any that exists."""
    for name in ("revision", "consistency", "max_staleness"):
        if name in query:
            raise InvalidArgument(f"wait and {name} exclude each other", parameter=name)
    known = api.revision_to_wait_on(request.headers)
    wait_s = api.duration_ms(query["wait"].decode(), "query parameter 'wait'", 0, WAIT_MS_MAX) / 1000
    timeout_s = api.timeout_s(request.headers, wait_s + WAIT_ANSWER_S)
    shard = request.shard
    assert shard is not None
    if context.is_elsewhere(request, shard, api.flag_of(query, "redirect")):
        return
    started_s = request.started_s
    # A shorter deadline of the caller's own must leave time for the answer.
    wait_s = min(wait_s, max(timeout_s - WAIT_ANSWER_S, timeout_s / 2))
    call = context.router.wait_then(
        shard,
        ("wait", key, known),
        started_s + wait_s,
        started_s + timeout_s,
        partial(_get_answered, context, request),
    )
    if call is not None:
        request.on_gone = partial(context.router.cancel, call)


def _key_of(context: Context, request: Request, encoded_key: str) -> bytes:
    key = api.path_key(encoded_key, context.key_bytes_max)
    request.shard = context.shard_of(key)
    return key


def _writable_key_of(context: Context, request: Request, encoded_key: str) -> bytes:
    key = _key_of(context, request, encoded_key)
    if key[0] == _UNDERSCORE:
        check_writable(key)
    return key


def consistency_of(query: api.Query) -> tuple[str, float | None]:
    """`?consistency=` and `&max_staleness=`, which only a stale read has."""
    consistency = api.choice_of(query, "consistency", CONSISTENCIES, "linearizable")
    bound = api.text_of(query, "max_staleness")
    if bound is None:
        return consistency, None
    if consistency != "stale":
        raise InvalidArgument("max_staleness is for consistency=stale", parameter="max_staleness")
    return consistency, api.duration_ms(bound, "query parameter 'max_staleness'", 0, 86_400_000) / 1000


def ttl_ms_of(context: Context, text: str, where: str) -> int:
    limits = context.limits
    return api.duration_ms(text, where, limits.ttl_ms_min, limits.ttl_ms_max)


def _add_conditions(headers: Any, options: dict[str, Any], *, is_put: bool) -> None:
    """If-Match and If-None-Match as options of the op."""
    if_match = headers.get("If-Match")
    if_none_match = headers.get("If-None-Match")
    if if_match is not None:
        if if_none_match is not None:
            raise InvalidArgument("give either If-Match or If-None-Match, not both")
        revision = api.revision_of_if_match(if_match)
        if revision is None:
            options["if_present"] = True
        else:
            options["if_revision"] = revision
    elif if_none_match is not None:
        if not is_put:
            raise InvalidArgument("If-None-Match has no meaning for a delete")
        api.require_absent(if_none_match)
        options["if_absent"] = True


def _write(context: Context, request: Request, op: list[Any], query: api.Query, answered: Any) -> None:
    identity = context.identity(request)
    shard = request.shard
    assert shard is not None
    if context.is_elsewhere(request, shard, bool(query) and api.flag_of(query, "redirect")):
        return
    done = partial(_written, context, request, answered)
    deadline = context.deadline(request)
    if op[0] == commands.PUT and len(op) == 4 and "lease" in op[3]:
        leases.write_tied_then(context, shard, [op], {0: op[3]["lease"]}, identity, deadline, done)
        return
    command = commands.encode(identity, (op,))
    context.router.write_then(shard, command, identity is not None, deadline, done)


def _written(
    context: Context,
    request: Request,
    answered: Any,
    answer: Answer | None,
    error: BaseException | None,
) -> None:
    if answer is None:
        assert error is not None
        context.fail(request, error)
        return
    result = answer.result.results[0]
    if result[0]:
        refusal = error_of(result)
        assert refusal is not None
        more_head = b"KV-Clock: %d\r\n" % answer.clock_ms
        if answer.result.replayed:
            more_head += b"Idempotency-Replayed: true\r\n"
        context.fail(request, refusal, more_head)
        return
    head = b"KV-Revision: %d\r\n%b" % (result[1], context.head(request, answer.clock_ms))
    if answer.result.replayed:
        head += b"Idempotency-Replayed: true\r\n"
    answered(context, request, result, head)


def _put_answered(context: Context, request: Request, result: list[Any], head: bytes) -> None:
    _, revision, version, created, prev = result
    status = 201 if created else 200
    head += b'ETag: "%d"\r\n' % revision
    if prev is None and not api.wants_msgpack(request.headers):
        body = b'{"revision":%d,"version":%d,"created":%b}' % (
            revision,
            version,
            b"true" if created else b"false",
        )
        context.respond(request, Response(status, JSON + head, body))
        return
    context.respond_content(request, status, put_fields(result, api.wants_msgpack(request.headers)), head)


def _delete_answered(context: Context, request: Request, result: list[Any], head: bytes) -> None:
    context.respond_content(request, 200, delete_fields(result, api.wants_msgpack(request.headers)), head)


def _incr_answered(context: Context, request: Request, result: list[Any], head: bytes) -> None:
    head += b'ETag: "%d"\r\n' % result[1]
    context.respond_content(request, 200, {"value": result[2], "revision": result[1]}, head)


def _get_answered(
    context: Context,
    request: Request,
    answer: ReadAnswer | None,
    error: BaseException | None,
) -> None:
    if answer is None:
        assert error is not None
        context.fail(request, error)
        return
    item = answer.value
    head = context.head(request, answer.clock_ms)
    if answer.staleness_s is not None:
        head += b"KV-Staleness: %.3f\r\n" % answer.staleness_s
    try:
        if item is None:
            _answer_absent(context, request, head)
        else:
            _answer_item(context, request, item, head, answer.clock_ms)
    except (InvalidArgument, Conflict) as refusal:
        context.fail(request, refusal)


def _answer_absent(context: Context, request: Request, head: bytes) -> None:
    if request.headers.get("If-Match") is not None:
        raise Conflict("the key does not exist", current_revision=0)
    error = KeyNotFound("the key does not exist")
    error.request_id = request.id.decode()
    status, problem_head, body = api.problem(error)
    context.respond(request, Response(status, problem_head + head, body))


def _answer_item(context: Context, request: Request, item: list[Any], head: bytes, clock_ms: int) -> None:
    value, revision, create_revision, version, content_type, lease, deadline_ms = item
    headers = request.headers
    head = b'ETag: "%d"\r\nKV-Revision: %d\r\nKV-Version: %d\r\nKV-Create-Revision: %d\r\n%b%b' % (
        revision,
        revision,
        version,
        create_revision,
        head,
        _VALUE_HEADERS,
    )
    if lease is not None:
        head += b"KV-Lease: %b\r\n" % (lease if isinstance(lease, bytes) else str(lease).encode())
    if deadline_ms is not None:
        head += b"KV-TTL: %.3f\r\n" % (max(0, deadline_ms - clock_ms) / 1000)
    if_match = headers.get("If-Match")
    if if_match is not None and not api.matches_etag(if_match, revision, "If-Match", weakly=False):
        raise Conflict(f"the key's revision is {revision}", current_revision=revision)
    if_none_match = headers.get("If-None-Match")
    if if_none_match is not None and api.matches_etag(if_none_match, revision, "If-None-Match", weakly=True):
        context.respond(request, Response(304, head))
        return
    media = content_type.encode() if content_type is not None else b"application/octet-stream"
    context.respond(request, Response(200, b"Content-Type: %b\r\n%b" % (media, head), value))
