"""Single calls of one client that are made at the same time travel together, in one request per shard.

While a call to a shard is under way, those that come after it gather. They leave as a batch when it is
answered, or after `HOLD_S`, so that a slow answer holds up nobody; a call that finds nobody before it leaves
at once and alone. So a lone caller pays nothing, and many share the cost of requests without knowing of
each other: each has its own result, and gets it as soon as it is known, not when all of them are done.

Reads and writes gather apart, and so do calls of different deadlines: an outcome that is unknown, or a
deadline that has come, is one for all of a group.

What the two clients share. How they wait is in `aio_coalesce` and `sync_coalesce`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from kvstore.client.batch import BATCH_BYTES_MAX, Part
from kvstore.client.op import Operation
from kvstore.client.plan import Call, Core, Kind
from kvstore.errors import KvError, NotApplied, OutcomeUnknown, Unavailable

HOLD_S = 0.01
OPS_MAX = 128

MakeOperation = Callable[[], Operation[Any]]
"""The same call as an operation of a batch."""


class Place(NamedTuple):
    """Calls of one place may go together."""

    shard: int
    kind: Kind
    limit_s: float


def place_of(core: Core, call: Call[Any], limit_s: float) -> Place | None:
    """None: it goes alone, because nobody knows where."""
    if not core.is_routing or call.key is None:
        return None
    shard = core.routes.shard_of(call.key)
    return None if shard is None else Place(shard, call.kind, limit_s)


G = TypeVar("G", bound="Group")
Settle = Callable[[Any], None]
"""Takes a result or a KvError, once or several times; the first counts."""


class Member(NamedTuple):
    call: Call[Any]
    operation: Operation[Any]
    settle: Settle
    is_gone: Callable[[], bool]
    """Nobody waits for it any more."""


class Group:
    """Calls that wait to leave together."""

    def __init__(self, now: float) -> None:
        self.began_at = now
        self.members: list[Member] = []
        self._bytes_count = 0

    def add(self, member: Member) -> None:
        self.members.append(member)
        self._bytes_count += member.operation.bytes_count

    @property
    def is_full(self) -> bool:
        return len(self.members) >= OPS_MAX or self._bytes_count >= BATCH_BYTES_MAX


class Lane(Generic[G]):
    """What is under way from one place, and who gathers there meanwhile."""

    __slots__ = ("busy_count", "group")

    def __init__(self) -> None:
        self.busy_count = 1
        self.group: G | None = None

    def take(self) -> G | None:
        """Those who gathered leave."""
        group, self.group = self.group, None
        self.busy_count += group is not None
        return group


def request_of(members: list[Member]) -> Call[list[Any]]:
    """One request for all of them. Tells each what is settled while the rest is still tried."""

    def told(number: int, outcome: Any) -> None:
        members[number].settle(outcome)

    return Part([member.operation for member in members], is_routed=True, told=told).call()


def settle_all(members: list[Member], outcomes: list[Any]) -> None:
    for member, outcome in zip(members, outcomes, strict=True):
        member.settle(outcome)


def must_part(error: KvError) -> bool:
    """The request as a whole was refused for something that may be the fault of one: each tries alone."""
    return isinstance(error, NotApplied) and not error.retryable


def stopped(kind: Kind) -> KvError:
    """For those whose request was given up by who carried it."""
    what = "the client was stopped while the call was under way"
    return Unavailable(what) if kind is Kind.READ else OutcomeUnknown(what)


def fail_all(members: list[Member], error: KvError) -> None:
    """Each caller raises an error of its own: what one adds to it is not the others'."""
    for member in members:
        own = copy.copy(error)
        own.fields = dict(error.fields)
        member.settle(own)
