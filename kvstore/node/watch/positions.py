"""Where a watch stands, in one shard and over all.

In a shard it stands before one change: an `At` is the change's revision and its number within that
revision, as one integer that sorts. A position goes out as an opaque string. That of a scan or of a watch
over all shards names each shard's, in token order; that of a watch of one shard names only that one.
In both, what is named is the last revision seen whole, as `r`, or as `[r, n]` with n changes of the next
one seen too: several changes of one revision are never repeated by a resume, and none is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kvstore.errors import InvalidArgument
from kvstore.types import ShardId
from kvstore.wire import api

At = int
PLACE_BITS: Final = 24
"""More changes of one revision than any op may make."""
_PLACE_MAX: Final = (1 << PLACE_BITS) - 1


def behind(revision: int) -> At:
    """Behind everything of this revision and before."""
    return (revision + 1) << PLACE_BITS


def before(revision: int, place: int = 0) -> At:
    return revision << PLACE_BITS | place


def revision_of(at: At) -> int:
    """The revision of the change at `at`: the first one not seen whole."""
    return at >> PLACE_BITS


def seal_all(ats: Sequence[At]) -> str:
    """Position over all shards, in token order."""
    return api.seal("pos", [_packed(at) for at in ats])


def seal_one(shard: ShardId, at: At) -> str:
    return api.seal("pos", [{shard: _packed(at)}])


def unseal(text: str, shards: Sequence[ShardId], wanted: Sequence[ShardId]) -> dict[ShardId, At]:
    """Where to go on in each of the `wanted` shards.

    Raises: InvalidArgument if this is no position of this cluster, or does not name all of them.
    """
    content = api.unseal("pos", text)
    named: Mapping[Any, Any]
    if len(content) == 1 and isinstance(content[0], dict):
        named = content[0]
    elif len(content) == len(shards):
        named = dict(zip(shards, content, strict=True))
    else:
        raise InvalidArgument("the position is not one of this cluster", parameter="from")
    missing = [shard for shard in wanted if shard not in named]
    if missing:
        raise InvalidArgument(
            "the position is that of a narrower watch: it does not say where to go on in all shards",
            parameter="from",
        )
    return {shard: _unpacked(named[shard]) for shard in wanted}


def _packed(at: At) -> int | list[int]:
    revision, place = at >> PLACE_BITS, at & _PLACE_MAX
    return [revision - 1, place] if place else revision - 1


def _unpacked(packed: Any) -> At:
    match packed:
        case int(revision) if 0 <= revision <= api.INT64_MAX:
            return behind(revision)
        case [int(revision), int(place)] if 0 <= revision <= api.INT64_MAX and 0 < place <= _PLACE_MAX:
            return before(revision + 1, place)
    raise InvalidArgument("the position is not one this service gave out", parameter="from")
