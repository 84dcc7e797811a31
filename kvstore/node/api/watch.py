"""`GET /v1/watch`: where a watch begins, and the stream that it is told to."""

from __future__ import annotations

from typing import Final

from kvstore.errors import InvalidArgument, RevisionInFuture
from kvstore.node.api.context import Context
from kvstore.node.flow import gather, spawn
from kvstore.node.requests import Request, Response
from kvstore.node.watch import Interest, positions
from kvstore.node.watch.lines import LINE, SSE, STYLES, Style
from kvstore.node.watch.positions import At
from kvstore.placement import hash_tag
from kvstore.types import ShardId
from kvstore.wire import api

_STREAM: Final = b"Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
_MEDIA: Final = (b"Content-Type: application/x-ndjson\r\n", b"Content-Type: text/event-stream\r\n")


def watch(context: Context, request: Request, query: api.Query) -> None:
    interest = _interest_of(context, query)
    wants_events = "text/event-stream" in (request.headers.get("Accept") or "")
    style = STYLES[SSE if wants_events else LINE, api.flag_of(query, "prev")]
    shards = _shards_of(context, interest)
    if len(shards) == 1:
        request.shard = shards[0]
    # A browser that reconnects repeats the target and adds what it saw last.
    position = request.headers.get("Last-Event-ID") or api.text_of(query, "from")
    starts = None
    if position is not None:
        starts = positions.unseal(position, context.router.shards(), shards)
    context.watches.check_room()
    if request.method == "HEAD":
        context.respond(request, Response(200, _head(context, request, style)))
        return
    work = spawn(_begin(context, request, interest, style, shards, starts))
    work.on_done(lambda done: None if done.error is None else context.fail(request, done.error))


def _interest_of(context: Context, query: api.Query) -> Interest:
    key, prefix = query.get("key"), query.get("prefix", b"")
    if key is None:
        return Interest(None, prefix)
    if "prefix" in query:
        raise InvalidArgument("give either key or prefix, not both", parameter="prefix")
    if not key:
        raise InvalidArgument("the key is empty", parameter="key")
    if len(key) > context.key_bytes_max:
        raise api.too_large("the key", "key_bytes_max", context.key_bytes_max, len(key))
    return Interest(key)


def _shards_of(context: Context, interest: Interest) -> list[ShardId]:
    """The shards in which such keys can be. A prefix that holds a whole hash tag decides the shard."""
    if interest.key is not None:
        return [context.shard_of(interest.key)]
    if hash_tag(interest.prefix) != interest.prefix:
        return [context.shard_of(interest.prefix)]
    return list(context.router.shards())


async def _begin(
    context: Context,
    request: Request,
    interest: Interest,
    style: Style,
    shards: list[ShardId],
    starts: dict[ShardId, At] | None,
) -> None:
    """Every shard confirms first what is newest: a watch without a position begins behind it, and none is
    given a position that nobody has reached."""
    deadline = context.deadline(request)
    answers = await gather(
        [context.router.read(shard, ("revision",), "linearizable", deadline) for shard in shards]
    )
    newest = {shard: answer.value[0] for shard, answer in zip(shards, answers, strict=True)}
    if starts is None:
        starts = {shard: positions.behind(revision) for shard, revision in newest.items()}
    for shard, at in starts.items():
        if at > positions.behind(newest[shard]):
            raise RevisionInFuture(
                f"the position is ahead of shard {shard}, which is at revision {newest[shard]}",
                shard=shard,
                revision=newest[shard],
            )
    context.watches.check_room()
    stream = request.respond_stream(Response(200, _head(context, request, style)))
    context.metrics.observe_request(request.route, request.method, 200, context.now() - request.started_s)
    watcher = context.watches.open(interest, style, starts, newest, stream)
    request.on_gone = watcher.close


def _head(context: Context, request: Request, style: Style) -> bytes:
    return _MEDIA[style.format] + _STREAM + context.head(request)
