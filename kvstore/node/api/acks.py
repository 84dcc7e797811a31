"""A batch without operations: a client that ends says which answers it has, so that their records can go."""

from __future__ import annotations

from kvstore.errors import InvalidArgument
from kvstore.node.api.context import Context
from kvstore.node.calls import Answer
from kvstore.node.requests import Request
from kvstore.store import commands
from kvstore.types import ShardId


def acknowledge(
    context: Context, request: Request, identity: commands.Identity | None, shards: list[int]
) -> None:
    """Tell `shards` which sequences of the session are acknowledged, and answer without waiting for them.

    Raises: InvalidArgument.
    """
    if identity is None or identity.body_hash is not None:
        raise InvalidArgument("$.shards is for what KV-Session and KV-Acked-Below acknowledge")
    known = context.router.shards()
    strange = [shard for shard in shards if shard not in known]
    if strange:
        raise InvalidArgument(f"$.shards names {strange[0]}; shards are 0 to {len(known) - 1}")
    command = commands.encode(identity, ())
    deadline = context.deadline(request)
    for shard in dict.fromkeys(map(ShardId, shards)):
        context.router.write_then(shard, command, True, deadline, _told)
    context.respond_content(request, 200, {"results": []})


def _told(answer: Answer | None, error: BaseException | None) -> None:
    """Where it failed, the records stay until the session's lifetime is over."""
