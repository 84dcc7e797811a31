"""Numbers that decide what an entry does to a tablet, and are therefore part of its replicated state.

A node's own configuration must never steer apply: two replicas with different files would diverge. So a
tablet starts with these defaults, keeps its numbers in its own records, and changes them only by a LIMITS
op in the log. A leader whose configuration differs proposes one (`Machine.limits_to_propose`).
"""

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class StoreLimits(msgspec.Struct, frozen=True, array_like=True):
    """Fields are only ever added at the end: they are stored by position."""

    history_revisions: Count = 100_000
    """Old versions stay readable for this many revisions, and never longer than `history_ms`."""
    history_ms: Count = 600_000
    session_lifetime_ms: Count = 600_000
    """How long the result of an identified write is kept, unless its client acknowledges it."""
    session_window: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1024
    """Sequences of one session that may be open; what is older than the newest by more is forgotten."""
    sessions_bytes_max: Count = 64 << 20
    """Bytes of kept results in a tablet; past it no new session is taken."""
    session_share_bytes_max: Count = 16 << 20
    """The same for the sessions of one principal."""
    result_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=1 << 30)] = 16 << 10
    """A result above this is kept without the previous values in it."""
