"""What the cluster looks like from here: nodes, shards, routes, where a key lives; leadership transfer."""

from __future__ import annotations

from typing import Any

from kvstore.errors import NotFound
from kvstore.node.api.context import Context
from kvstore.node.api.view import RebuildRow, ShardRow
from kvstore.node.flow import Promise
from kvstore.node.requests import Request
from kvstore.placement import hash_tag, token_of
from kvstore.types import META_SHARD, NodeId, ShardId
from kvstore.wire import api, bodies


def _answer_with(context: Context, request: Request, promise: Promise[Any], shape: Any) -> None:
    """Answer with `shape(value)` once the value is known."""

    def settled(known: Promise[Any]) -> None:
        if known.error is not None:
            context.fail(request, known.error)
            return
        try:
            content = shape(known.result())
        except NotFound as error:
            context.fail(request, error)
            return
        context.respond_content(request, 200, content, context.head(request))

    promise.on_done(settled)


def cluster(context: Context, request: Request, query: api.Query) -> None:
    _answer_with(context, request, context.view.cluster(), lambda row: row)


def nodes(context: Context, request: Request, query: api.Query) -> None:
    context.respond_content(request, 200, {"nodes": context.view.nodes()}, context.head(request))


def shards(context: Context, request: Request, query: api.Query) -> None:
    def with_tokens(rows: list[ShardRow]) -> Any:
        return {"shards": [row for row in rows if row.id != META_SHARD]}

    _answer_with(context, request, context.view.shard_rows(), with_tokens)


def shard(context: Context, request: Request, number: str, query: api.Query) -> None:
    wanted = _shard_of(context, number)

    def only(rows: list[Any]) -> Any:
        for row in rows:
            if row.id == wanted:
                return row
        raise NotFound(f"this node knows nothing of shard {wanted}")

    _answer_with(context, request, context.view.shard_rows(), only)


def _shard_of(context: Context, number: str) -> ShardId:
    text = api.percent_decoded(number, "the shard").decode("utf-8", "replace")
    if text == "meta":
        return META_SHARD
    if text.isascii() and text.isdigit() and len(text) <= 5:
        found = ShardId(int(text))
        if found == META_SHARD or found in context.router.shards():
            return found
    raise NotFound(f"there is no shard {text[:40]!r}; shards are 0 to {len(context.router.shards()) - 1}")


def transfer(context: Context, request: Request, number: str, query: api.Query) -> None:
    """Answer 200 once the leadership has moved, 202 if that is still going on."""
    which = request.shard = _shard_of(context, number)
    to = NodeId(bodies.transfer_body(request.headers, request.body).to)
    view = context.view

    def settled(known: Promise[None]) -> None:
        if known.error is not None:
            context.fail(request, known.error)
            return
        leader = view.leader_of(which)
        status = 200 if leader == to else 202
        content = {"shard": which, "to": to, "leader": leader}
        context.respond_content(request, status, content, context.head(request))

    view.transfer(which, to, context.deadline(request)).on_done(settled)


def rebuild(context: Context, request: Request, number: str, query: api.Query) -> None:
    """Answer 202 once the new incarnation is sure to come, 200 if it votes already."""
    which = request.shard = _shard_of(context, number)
    node = NodeId(bodies.rebuild_body(request.headers, request.body).node)

    def settled(known: Promise[RebuildRow]) -> None:
        if known.error is not None:
            context.fail(request, known.error)
            return
        row = known.result()
        status = 202 if row.role == "learner" else 200
        context.respond_content(request, status, row, context.head(request))

    context.view.rebuild(which, node, context.deadline(request)).on_done(settled)


def routes(context: Context, request: Request, query: api.Query) -> None:
    context.respond_content(request, 200, context.view.routes(), context.head(request))


def explain(context: Context, request: Request, encoded_key: str, query: api.Query) -> None:
    key = api.path_key(encoded_key, context.key_bytes_max)
    which = request.shard = context.shard_of(key)
    known = context.view.routes()
    addresses = {node.id: node.client for node in known.nodes}
    content: dict[str, Any] = {}
    bodies.named_bytes("key", key, content)
    bodies.named_bytes("hash_tag", hash_tag(key), content)
    content |= {"token": f"{token_of(key):016x}", "shard": which, "epoch": known.epoch}
    for row in known.shards:
        if row.id == which:
            content |= {
                "start": row.start,
                "end": row.end,
                "leader": row.leader,
                "address": None if row.leader is None else addresses.get(row.leader),
                "replicas": [{"node": node, "address": addresses.get(node)} for node in row.replicas],
            }
    context.respond_content(request, 200, content, context.head(request))
