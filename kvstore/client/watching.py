"""How a watch is carried on: a plan that never ends by itself.

It opens a stream at some node, from the last position it has handed on, and opens another wherever that one
ends: nodes die, connections are cut, and a stream without a last line is not complete (`plan.py` says what a
plan is). What the consumer sees is one series of changes without loss or repetition, because the position of
a change names what has been seen in every shard. Where the history behind the position is gone, the plan
lists what is watched and goes on from the list's position, which it tells with a `Resynced`.

The first stream must be there in time, as any call; after that the plan goes on for ever, or until nobody
has been reached for `outage_s`.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from kvstore.client import codec, operations
from kvstore.client.changes import Change, Delete, Expire, Progress, Put, Resynced
from kvstore.client.codec import Garbled
from kvstore.client.exchange import Event, Open, Receive, Request, Send, Sleep
from kvstore.client.plan import (
    ANSWER_SHARE,
    BACKOFF_S_MAX,
    BACKOFF_S_MIN,
    Call,
    Core,
    Plan,
    execute,
    prepare,
    told,
)
from kvstore.client.results import Item
from kvstore.errors import Compacted, InvalidArgument, KvError, OutcomeUnknown, Unavailable

OPEN_S_MAX = 3.0
"""Time limit for a node to begin the stream."""
SILENCE_S_MAX = 20.0
"""A stream says something every 10 s, if its node hears the leaders of all that is watched. One that does not
is of no use, whatever its connection says."""
SOUND_S_MIN = 1.0
"""A stream that has lasted so long was worth opening, even if it has brought nothing."""
LINE_BYTES_MAX = 16 << 20


class Emit(NamedTuple):
    """Effect: hand these to the consumer, in this order."""

    changes: tuple[Change, ...]


T = TypeVar("T")
WatchPlan = Generator[Send | Sleep | Open | Receive | Emit, Event, None]


class Watched(NamedTuple):
    """What is watched, and how."""

    key: bytes | None = None
    prefix: bytes | None = None
    is_with_prev: bool = False

    @property
    def range(self) -> operations.Range:
        """The keys of it, for a listing."""
        if self.key is not None:
            return operations.Range(start=self.key, end=self.key + b"\0")
        return operations.Range(prefix=self.prefix)


def watched(
    key: str | bytes | None, prefix: str | bytes | None, *, prev: bool, from_: str | None, snapshot: bool
) -> Watched:
    """Check and encode the arguments of a watch. Raises InvalidArgument."""
    if (key is None) == (prefix is None):
        raise InvalidArgument('watch either a key or a prefix (prefix="" is every key)')
    if from_ is not None and snapshot:
        raise InvalidArgument("a watch begins either with a snapshot or from a position")
    encoded = None if key is None else codec.key_bytes(key)
    return Watched(encoded, codec.value_bytes(prefix) if prefix else None, prev)


class Terms(NamedTuple):
    """The wishes of the consumer."""

    timeout_s: float
    """Deadline of the first stream, and of each page of a listing."""
    from_pos: str | None = None
    """Go on after this position; None: from now."""
    has_snapshot: bool = False
    """Begin with a Resynced."""
    may_resync: bool = True
    """False: raise Compacted instead."""
    outage_s: float | None = None
    """Raise Unavailable when nobody could be reached for so long; None: never."""


def follow(core: Core, what: Watched, terms: Terms, start: Event) -> WatchPlan:
    """Emit the changes of `what`. The first thing it emits is a Progress, or a Resynced: from then on
    nothing is missed. Raises a KvError when it cannot go on."""
    return (yield from _Follower(core, what, terms, start).run())


class _Follower:
    def __init__(self, core: Core, what: Watched, terms: Terms, start: Event) -> None:
        self.core = core
        self.routes = core.routes
        self.what = what
        self.terms = terms
        self.now, self.dice = start.now, start.dice
        self.pos = terms.from_pos
        self.is_begun = False
        """Something was emitted: the consumer relies on us."""
        self.must_list = terms.has_snapshot
        self.must_learn = True
        self.contact_at = start.now
        """When a node last said something useful."""
        self.opened_at = start.now
        self.round_count = 0
        self.avoid: set[str] = set()
        self.tried: dict[str, str] = {}
        self.last_error: KvError | None = None

    def run(self) -> WatchPlan:
        while True:
            try:
                if self.must_list:
                    yield from self.resync()
                else:
                    yield from self.stream()
            except Compacted:
                if not self.terms.may_resync:
                    raise
                self.must_list = True
                # A listing that is overtaken by compaction is begun anew, but not in a tight loop.
                yield from self.pause()

    def step(self, event: Event) -> Event:
        self.now, self.dice = event.now, event.dice
        return event

    def execute(self, call: Call[T]) -> Plan[T]:
        limit_s = self.terms.timeout_s
        return self.forward(execute(self.core, call, limit_s, Event(self.now, self.dice)))

    def forward(self, plan: Plan[T]) -> Plan[T]:
        """Carry out another plan as a part of this one, and learn from it what time it is."""
        try:
            effect = next(plan)
            while True:
                effect = plan.send(self.step((yield effect)))
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            plan.close()

    # Listing.

    def resync(self) -> WatchPlan:
        """List what is watched; the watch goes on from the position of the list."""
        items: list[Item] = []
        cursor = pos = None
        while True:
            call = operations.scan_page(self.what.range, cursor, operations.PAGE_ITEMS)
            try:
                page = yield from self.execute(call)
            except Compacted:
                raise
            except KvError as error:
                yield from self.on_error(error, "listing")
                return
            if page.pos is None:
                raise Unavailable("the listing has no position to watch from")
            pos = page.pos if pos is None else pos
            items += page.items
            cursor = page.next
            if cursor is None:
                break
        self.on_contact()
        self.pos, self.must_list, self.is_begun = pos, False, True
        yield Emit((Resynced(tuple(items), pos),))

    # Streaming.

    def stream(self) -> WatchPlan:
        """Open a stream and pass on what it brings, until it ends."""
        if self.must_learn:
            # Which nodes there are is all that matters here: any of them serves any watch.
            self.must_learn = False
            yield from self.forward(prepare(self.core, OPEN_S_MAX, Event(self.now, self.dice)))
        address = self.next_address()
        limit_s = max(0.01, min(OPEN_S_MAX, self.left_s()))
        event = self.step((yield Open(address, self.request(limit_s), limit_s)))
        if event.failure is not None:
            self.on_silence(address, told(event.failure))
            yield from self.next_round()
            return
        assert event.reply is not None
        self.routes.note_answer(address)
        if event.reply.status != 200:
            error = codec.problem(event.reply, is_write=False)
            if isinstance(error, Compacted):
                raise error
            self.tried[address] = error.code
            yield from self.on_error(error, address)
            return
        self.opened_at = self.now
        yield from self.read(address)

    def request(self, limit_s: float) -> Request:
        what = self.what
        target = codec.query(
            "/v1/watch",
            key=what.key,
            prefix=what.prefix,
            prev=1 if what.is_with_prev else None,
            **{"from": self.pos},
        )
        headers = {
            "Accept": "application/x-ndjson",
            "KV-Timeout": codec.milliseconds(limit_s * ANSWER_SHARE),
        }
        return Request("GET", target, headers, b"")

    def read(self, address: str) -> WatchPlan:
        rest, limit_s = b"", max(0.01, min(OPEN_S_MAX, self.left_s()))
        while True:
            event = self.step((yield Receive(limit_s)))
            if event.failure is not None:
                self.on_silence(address, told(event.failure))
                yield from self.next_round()
                return
            if not event.chunk:
                yield from self.on_cut(address)
                return
            *lines, rest = (rest + event.chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                raise Unavailable(f"{address}: a line of more than {LINE_BYTES_MAX} bytes")
            try:
                end = yield from self.take(lines)
            except Garbled as error:
                self.on_silence(address, str(error))
                yield from self.next_round()
                return
            if end is not None:
                yield from self.on_end(address, end)
                return
            limit_s = SILENCE_S_MAX

    def take(self, lines: list[bytes]) -> Generator[Emit, Event, dict[str, Any] | None]:
        """Pass on the changes in some lines. Return the line that ends the stream, or None."""
        changes: list[Change] = []
        end = None
        for line in lines:
            if not line:
                continue
            fields = _fields(line)
            if fields.get("type") in ("end", "error", "compacted"):
                end = fields
                break
            change = _change(fields)
            if change is not None:
                changes.append(change)
        if changes:
            # A node that begins streams only to end them is not what we look for.
            has_lasted = self.now - self.opened_at > SOUND_S_MIN
            self.on_contact(is_sound=has_lasted or any(not isinstance(each, Progress) for each in changes))
            self.pos, self.is_begun = changes[-1].pos, True
            # An Emit is answered by an event too: time has passed meanwhile.
            self.step((yield Emit(tuple(changes))))
        return end

    def on_end(self, address: str, fields: dict[str, Any]) -> WatchPlan:
        if fields["type"] == "compacted":
            raise Compacted("the history behind the position is gone")
        if fields["type"] == "error":
            error = codec.from_fields(fields, int(fields.get("status") or 500), is_write=False)
            if isinstance(error, Compacted):
                raise error
            self.tried[address] = error.code
            yield from self.on_error(error, address)
            return
        yield from self.on_cut(address)

    def on_cut(self, address: str) -> WatchPlan:
        """The node closed the stream, most likely because it stops: go on at another at once."""
        self.tried[address] = "stream ended"
        self.avoid.add(address)
        yield from self.next_round()

    # Where to, and when.

    def next_address(self) -> str:
        ranked = self.routes.order(None, self.now)
        return next((address for address in ranked if address not in self.avoid), ranked[0])

    def on_contact(self, *, is_sound: bool = True) -> None:
        self.contact_at = self.now
        self.tried.clear()
        if is_sound:
            self.round_count = 0
            self.avoid.clear()

    def on_silence(self, address: str, what: str) -> None:
        self.tried[address] = what
        self.avoid.add(address)
        self.routes.note_failure(address, self.now)

    def on_error(self, error: KvError, where: str) -> WatchPlan:
        """A refusal: worth another try, or the end of the watch."""
        if not error.retryable and not isinstance(error, OutcomeUnknown | Unavailable):
            raise error
        self.last_error = error
        self.avoid.add(where)
        yield from self.pause()

    def next_round(self) -> WatchPlan:
        """Go to the next node at once, or pause if all were asked."""
        if self.avoid.issuperset(self.routes.addresses):
            self.must_learn = True
            yield from self.pause()
        else:
            self.give_up_if_over()

    def pause(self) -> WatchPlan:
        self.give_up_if_over()
        bound_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * (1 << min(self.round_count, 10)))
        self.round_count += 1
        self.avoid.clear()
        wait_s = min(self.dice * bound_s, max(0.0, self.left_s()))
        self.step((yield Sleep(wait_s)))

    def left_s(self) -> float:
        """Seconds until we give up."""
        limit_s = self.terms.outage_s if self.is_begun else self.terms.timeout_s
        return float("inf") if limit_s is None else self.contact_at + limit_s - self.now

    def give_up_if_over(self) -> None:
        if self.left_s() > 0.01:
            return
        tried = "; ".join(f"{address}: {what}" for address, what in self.tried.items())
        error: KvError = Unavailable(f"no stream of changes ({tried})")
        if self.last_error is not None and not self.tried:
            error = self.last_error
        error.fields["tried"] = list(self.tried.items())
        raise error


def _fields(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise Garbled(f"a line that is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Garbled("a line that is not an object")
    return found


def _change(fields: dict[str, Any]) -> Change | None:
    """The change in a line; None for a type that a later version may have added."""
    pos, kind = fields.get("pos"), fields.get("type")
    if kind not in ("start", "progress", "put", "delete", "expire"):
        return None
    if not isinstance(pos, str):
        raise Garbled(f"{kind} without a position")
    if kind in ("start", "progress"):
        return Progress(pos)
    key, revision = codec.octets(fields, "key"), codec.integer(fields, "revision")
    found = fields.get("prev")
    prev = codec.item(found, key) if isinstance(found, dict) else None
    if kind == "put":
        return Put(key, codec.octets(fields, "value"), revision, pos, prev)
    return Delete(key, revision, pos, prev) if kind == "delete" else Expire(key, revision, pos, prev)
