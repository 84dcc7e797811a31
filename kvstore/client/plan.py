"""How one call is carried out: where it goes, when it goes again, and what its failure means.

A plan is a generator of effects (`Send`, `Sleep`) that ends with the call's result or error. It does no
I/O, reads no clock and throws no dice: all of these arrive in the `Event` that answers an effect. Both
clients are short drivers of the same plans, and tests drive them by hand.

The rules, for a call with a deadline:

1. The shard's leader is asked first, then the other nodes; nodes that failed lately come last.
2. A request that surely was not sent goes elsewhere at once. One that may have been sent is repeated as
   well, because repeating is harmless: reads change nothing, and writes carry an identity that makes all
   attempts one write (session, sequence; see `session.py`).
3. `no-leader`, `overloaded` and their like are waited out with full jitter until the deadline.
4. At the deadline a write that may have been applied ends as `OutcomeUnknown`, and so does one that is
   refused after an attempt whose fate is unknown. Everything else says what was tried at which node.

An attempt has a time limit of its own that grows, so that a frozen node costs one attempt, not the call.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, NoReturn, Protocol, TypeVar

from kvstore.client import codec
from kvstore.client.codec import Garbled
from kvstore.client.exchange import Event, Failure, Fault, Reply, Request, Send, Sleep
from kvstore.client.routes import Routes
from kvstore.client.session import Sessions, Ticket
from kvstore.errors import (
    Conflict,
    InvalidArgument,
    KvError,
    Locked,
    LockLost,
    NotANumber,
    NotReady,
    OutcomeUnknown,
    OutOfRange,
    Overloaded,
    Unavailable,
    WrongRoute,
)

T = TypeVar("T")
Plan = Generator[Send | Sleep, Event, T]

BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 1.0
ATTEMPT_S_MIN = 1.0
"""Time limit of the first two attempts; doubles with each one after that ran out of time. Must be well
above a busy node's worst answer: an attempt given up too early is work done twice."""
LAST_ATTEMPT_S_MIN = 0.01
"""With less time left no further attempt is made."""
ANSWER_SHARE = 0.9
"""Part of an attempt's time that the server may use, so that its own verdict arrives before ours."""
WAIT_ANSWER_S = 5.0
"""What the deadline of a request that waits must have beyond the wait, for the server to wait that long."""
CONTACT_S_MIN = 0.9
"""A request that waits, and fails only after so long, had come to a node that was there."""
REFRESH_S_MAX = 1.0
WRONG_ROUTES_MAX = 3
"""After that many 421 in one call the epoch is left out, and whoever is asked proxies."""
RESTARTS_MAX = 2

_IS_RESULT = (Conflict, NotANumber, OutOfRange, Locked, LockLost)
"""Refusals that are a write's recorded result: they hold even if an earlier attempt's fate is unknown."""


class Kind(Enum):
    READ = "read"
    WRITE = "write"
    """Gets an identity."""
    REPEATABLE = "repeatable"
    """Changes something that is the same when done twice; has no identity."""


class Parts(Protocol[T]):
    """For a call of many parts (a batch), some of which may be settled by one attempt, some by the next."""

    def merge(self, earlier: T | None, later: T) -> T:
        """Combine what two attempts found; what is settled stays."""
        ...

    def unsettled(self, result: T) -> KvError | None:
        """Return an error that is worth another attempt, or None."""
        ...

    def is_refused(self, result: T) -> bool:
        """True if no write in it was applied, because the store cannot date the identity."""
        ...

    def abandon(self, result: T, *, is_unknown: bool) -> T:
        """The deadline has come. `is_unknown`: parts without an answer may have been applied."""
        ...


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One operation, before anything is known about nodes and attempts."""

    kind: Kind
    method: str
    target: str
    decode: Callable[[Reply], T]
    """Makes the result of a success, or of a status in `expected`. Raises Garbled, or a KvError."""
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    key: bytes | None = None
    """A key of the shard that is asked; None: any node will do."""
    other_keys: tuple[bytes, ...] = ()
    """Keys of other shards that take part."""
    is_anywhere: bool = False
    """Any replica may answer (stale reads): the load is spread."""
    is_long: bool = False
    """May take seconds: an attempt gets half the time that is left."""
    parts: Parts[T] | None = None
    absent: tuple[str, ...] = ()
    """Codes of a 404 that is an answer, to be decoded. Any other 404 is an error."""
    wait_s: float = 0.0
    """The server may hold the answer back for so long, in all attempts together."""
    waiting: Callable[[float], tuple[str, bytes]] | None = None
    """Makes target and body anew for what is left of the wait, in seconds."""
    told_identity: Callable[[Ticket], None] | None = None
    """Is told each identity that it goes under."""


class Core:
    """What the calls of one client share. A driver of many threads must not advance two plans at once."""

    __slots__ = ("is_patient", "is_routing", "routes", "sessions")

    def __init__(
        self, routes: Routes, sessions: Sessions, *, is_routing: bool = True, is_patient: bool = True
    ) -> None:
        self.routes = routes
        self.sessions = sessions
        self.is_routing = is_routing
        """False: never fetch routes; any node proxies. For clients of one or two calls."""
        self.is_patient = is_patient
        """False: give up as soon as every endpoint has refused the connection twice."""


def execute(core: Core, call: Call[T], timeout_s: float, start: Event) -> Plan[T]:
    """Carry out `call` before `start.now + timeout_s`. The plan must be closed if it is abandoned."""
    return (yield from _Execution(core, call, timeout_s, start).run())


def prepare(core: Core, timeout_s: float, start: Event) -> Plan[None]:
    """Fetch the routes if they are due, for a caller that wants to divide its work by shard."""
    if core.is_routing and core.routes.is_fetch_due(start.now):
        yield from _fetch_routes(core.routes, start.now + timeout_s, start)


class _Fetched(NamedTuple):
    event: Event
    """The last one: when it is now."""
    tried: dict[str, str]
    """What went wrong, by node."""


def _fetch_routes(routes: Routes, deadline: float, start: Event) -> Plan[_Fetched]:
    """Ask two nodes at most. A failure is no error: any node can be asked without routes."""
    event, tried = start, dict[str, str]()
    for address in routes.order(None, event.now)[:2]:
        limit_s = min(REFRESH_S_MAX, (deadline - event.now) / 4)
        if limit_s < LAST_ATTEMPT_S_MIN:
            break
        event = yield Send(address, Request("GET", "/v1/routes", {}, b""), limit_s)
        if event.reply is None:
            routes.note_failure(address, event.now)
            if event.failure is not None:
                tried[address] = told(event.failure)
            continue
        try:
            if event.reply.status == 200:
                routes.learn(codec.document(event.reply), event.now)
                routes.note_answer(address)
                break
        except Garbled as error:
            tried[address] = f"routes: {error}"
    return _Fetched(event, tried)


class _Execution(Generic[T]):
    """The state of one call over its attempts."""

    def __init__(self, core: Core, call: Call[T], timeout_s: float, start: Event) -> None:
        self.core = core
        self.routes = core.routes
        self.call = call
        self.timeout_s = timeout_s
        self.now = start.now
        self.dice = start.dice
        self.deadline = start.now + timeout_s
        self.wait_until = start.now + call.wait_s
        self.contact_at = start.now
        """When a node was last known to work on this."""
        self.timeout_count = 0
        self.round_count = 0
        self.refusal_count = 0
        self.wrong_route_count = 0
        self.restart_count = 0
        self.avoid: set[str] = set()
        """Nodes that this round has asked already."""
        self.tried: dict[str, str] = {}
        """What came of the last attempt at each node, for the error."""
        self.last_error: KvError | None = None
        self.is_maybe_applied = False
        self.partial: T | None = None
        self.shard: int | None = None
        self.ticket: Ticket | None = None
        self.since: int | None = None
        """Shard clock known when the identity was begun, the same in all its attempts."""
        self.has_new_clock = False
        """The last answer told the shard's clock."""

    def run(self) -> Plan[T]:
        call = self.call
        try:
            while True:
                if self.core.is_routing and call.key is not None and self.routes.is_fetch_due(self.now):
                    yield from self.fetch_routes()
                self.shard = self.routes.shard_of(call.key) if call.key is not None else None
                if call.kind is Kind.WRITE and self.ticket is None:
                    self.begin_identity()
                address = self.next_address()
                is_direct = self.shard is not None and address == self.routes.leader_of(self.shard)
                attempt_s = self.attempt_s()
                event = yield Send(address, self.request(is_direct, attempt_s), attempt_s)
                if event.reply is not None or event.now - self.now > CONTACT_S_MIN:
                    self.contact_at = event.now
                self.now, self.dice = event.now, event.dice
                try:
                    return self.settle(address, event)
                except _Again as again:
                    wait_s = again.wait_s
                yield from self.prepare_next(wait_s)
                if self.partial is not None and self.is_over():
                    assert call.parts is not None
                    return call.parts.abandon(self.partial, is_unknown=self.is_maybe_applied)
                self.give_up_if_over()
        finally:
            if self.ticket is not None:
                self.ticket.finish()

    # Before an attempt.

    def fetch_routes(self) -> Plan[None]:
        told = yield from _fetch_routes(self.routes, self.deadline, Event(self.now, self.dice))
        self.now, self.dice = told.event.now, told.event.dice
        for address, what in told.tried.items():
            self.tried.setdefault(address, what)

    def begin_identity(self) -> None:
        self.ticket = self.core.sessions.begin()
        if self.call.told_identity is not None:
            self.call.told_identity(self.ticket)
        if self.shard is not None:
            self.since = self.routes.clock_of(self.shard, self.now)
        if self.since is not None and self.call.other_keys:
            # One date for several clocks: by the latest of them no shard takes the write for an old one.
            clocks = [self.routes.clock_of(shard, self.now) for shard in self.other_shards()]
            known = [clock for clock in clocks if clock is not None]
            self.since = max(self.since, *known) if known and len(known) == len(clocks) else None

    def other_shards(self) -> set[int]:
        found = (self.routes.shard_of(key) for key in self.call.other_keys)
        return {shard for shard in found if shard is not None}

    def next_address(self) -> str:
        shard = None if self.call.is_anywhere else self.shard
        if shard is not None and not self.avoid:
            leader = self.routes.leader_of(shard)
            if leader is not None and not self.routes.is_shunned(leader, self.now):
                return leader
        ranked = self.routes.order(shard, self.now)
        return next((address for address in ranked if address not in self.avoid), ranked[0])

    def attempt_s(self) -> float:
        remaining_s = max(LAST_ATTEMPT_S_MIN, self.deadline - self.now)
        if self.call.is_long:
            return min(remaining_s, max(ATTEMPT_S_MIN, remaining_s / 2))
        doublings = min(max(0, self.timeout_count - 1), 10)
        return min(remaining_s, self.wait_left_s() + ATTEMPT_S_MIN * (1 << doublings))

    def wait_left_s(self) -> float:
        return max(0.0, self.wait_until - self.now) if self.call.wait_s else 0.0

    def request(self, is_direct: bool, attempt_s: float) -> Request:
        target, body = self.call.target, self.call.body
        headers = dict(self.call.headers)
        headers["KV-Timeout"] = codec.milliseconds(attempt_s * ANSWER_SHARE)
        if self.call.wait_s:
            headers["KV-Timeout"] = codec.milliseconds(self.wait_left_s() + WAIT_ANSWER_S)
            if self.call.waiting is not None:
                target, body = self.call.waiting(self.wait_left_s())
        if is_direct and self.routes.epoch is not None and self.wrong_route_count < WRONG_ROUTES_MAX:
            headers["KV-Epoch"] = self.routes.epoch
        if self.ticket is not None:
            headers["KV-Session"] = self.ticket.session
            headers["KV-Sequence"] = str(self.ticket.sequence)
            headers["KV-Acked-Below"] = str(self.ticket.acked_below)
            if self.since is not None:
                headers["KV-Since"] = str(self.since)
        return Request(self.call.method, target, headers, body)

    # After an attempt.

    def settle(self, address: str, event: Event) -> T:
        """Return the result, raise the call's error, or raise _Again with the pause before the next."""
        reply = event.reply
        if reply is None:
            assert event.failure is not None
            self.note_failure(address, event.failure)
            raise _Again(None)
        self.routes.note_answer(address)
        self.refusal_count = 0
        self.learn_from(reply.headers)
        if self.ticket is not None and self.has_new_clock and reply.status < 500:
            self.ticket.note_answer(address, int(reply.headers["kv-shard"]))
        if reply.status >= 400 and not self.is_absence(reply):
            error = codec.problem(reply, is_write=self.call.kind is Kind.WRITE)
            return self.on_error(address, error)
        try:
            result = self.call.decode(reply)
        except Garbled as garbled:
            self.note_failure(address, Failure(Fault.GARBLED, str(garbled)))
            raise _Again(None) from garbled
        return self.on_result(address, result)

    def is_absence(self, reply: Reply) -> bool:
        """Where a call asks what is there, that it is absent is an answer."""
        absent = self.call.absent
        return reply.status == 404 and bool(absent) and codec.problem(reply, is_write=False).code in absent

    def on_result(self, address: str, result: T) -> T:
        parts = self.call.parts
        if parts is None:
            return result
        merged = self.partial = parts.merge(self.partial, result)
        error = parts.unsettled(merged)
        if error is None:
            return merged
        if isinstance(error, OutcomeUnknown):
            if self.may_start_anew() and parts.is_refused(merged):
                self.partial = None
                self.start_anew()
            self.is_maybe_applied = True
        self.tried[address] = error.code
        raise _Again(self.backoff_s())

    def on_error(self, address: str, error: KvError) -> T:
        self.tried[address] = error.code if error.code != "internal" else str(error)
        if isinstance(error, WrongRoute):
            self.on_wrong_route(error)
            raise _Again(0.0 if self.wrong_route_count < WRONG_ROUTES_MAX else self.backoff_s())
        if isinstance(error, OutcomeUnknown):
            self.on_unknown(error)
        elif not error.retryable:
            if self.is_maybe_applied and not isinstance(error, _IS_RESULT):
                raise OutcomeUnknown(
                    f"an earlier attempt may have been applied; a later one was refused: {error}",
                    tried=self.told(),
                ) from error
            raise error
        self.last_error = error
        if isinstance(error, NotReady):
            self.avoid.add(address)
            self.routes.note_failure(address, self.now)
            raise _Again(None)
        if isinstance(error, Unavailable) and self.shard is not None:
            self.routes.forget_leader(self.shard)
        raise _Again(self.pause_s(error))

    def on_unknown(self, error: OutcomeUnknown) -> None:
        """The node does not know what became of the write; asking again with the same identity tells.

        A store that has no record of the session and cannot tell a first attempt from a late one says so
        (`session-unknown`). Where no earlier attempt of ours can have been applied, this one surely was
        not either, and the write starts anew under an identity that is dated by the answer's clock.
        """
        if is_session_unknown(error):
            if not self.may_start_anew():
                raise error
            self.start_anew()
        self.is_maybe_applied = True

    def may_start_anew(self) -> bool:
        return not self.is_maybe_applied and self.ticket is not None and self.restart_count < RESTARTS_MAX

    def start_anew(self) -> NoReturn:
        assert self.ticket is not None
        self.ticket.finish()
        self.ticket = self.since = None
        self.restart_count += 1
        if self.shard is not None and not self.has_new_clock:
            self.routes.forget_clock(self.shard)
        for shard in self.other_shards():
            self.routes.forget_clock(shard)
        raise _Again(0.0)

    def on_wrong_route(self, error: WrongRoute) -> None:
        """Take over the route in the answer; the same node may be asked again under the new one."""
        self.wrong_route_count += 1
        shard, leader, address = (error.fields.get(name, "") for name in ("shard", "leader", "address"))
        try:
            self.routes.learn_leader(int(shard), str(leader), str(address))
        except (TypeError, ValueError, InvalidArgument):
            self.routes.doubt()

    def learn_from(self, headers: Mapping[str, str]) -> None:
        shard, clock = headers.get("kv-shard", ""), headers.get("kv-clock", "")
        self.has_new_clock = shard.isascii() and shard.isdigit() and clock.isascii() and clock.isdigit()
        if self.has_new_clock:
            self.routes.learn_clock(int(shard), int(clock), self.now)

    def note_failure(self, address: str, failure: Failure) -> None:
        self.tried[address] = told(failure)
        self.avoid.add(address)
        if failure.fault is Fault.NOT_SENT:
            self.refusal_count += 1
        else:
            self.refusal_count = 0
            self.timeout_count += failure.fault is Fault.TIMED_OUT
            if self.call.kind is Kind.WRITE:
                self.is_maybe_applied = True
        self.routes.note_failure(address, self.now)

    # Between attempts.

    def prepare_next(self, wait_s: float | None) -> Plan[None]:
        """Pause as asked. None: go to the next node at once, or pause if all were asked this round."""
        if wait_s is None:
            if not self.avoid.issuperset(self.routes.addresses):
                return
            if not self.core.is_patient and self.refusal_count >= 2 * len(self.routes.addresses):
                self.deadline = self.now
                return
            wait_s = self.backoff_s()
        self.avoid.clear()
        if wait_s > 0:
            # A pause never eats the last attempt.
            wait_s = min(wait_s, (self.deadline - self.now) / 2)
            if wait_s >= LAST_ATTEMPT_S_MIN / 2:
                event = yield Sleep(wait_s)
                self.now, self.dice = event.now, event.dice

    def backoff_s(self) -> float:
        """Full jitter: any pause from nothing to a bound that doubles, so that clients spread out."""
        bound_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * (1 << min(self.round_count, 10)))
        self.round_count += 1
        return self.dice * bound_s

    def pause_s(self, error: KvError) -> float:
        """An overloaded shard says how long to stay away; a missing leader is worth asking for sooner."""
        retry_after_s = error.fields.get("retry_after")
        if isinstance(error, Overloaded) and isinstance(retry_after_s, int | float):
            return float(retry_after_s) * (0.5 + self.dice)
        return self.backoff_s()

    # The end.

    def is_over(self) -> bool:
        if self.deadline - self.now < LAST_ATTEMPT_S_MIN:
            return True
        # A long wait is no reason to knock for as long at doors that nobody opens.
        return self.call.wait_s > 0 and self.now - self.contact_at > self.timeout_s - self.call.wait_s

    def give_up_if_over(self) -> None:
        if not self.is_over():
            return
        tried = "; ".join(f"{address}: {what}" for address, what in self.tried.items())
        after = f"within {self.timeout_s:g} s" if self.core.is_patient else "at any endpoint"
        if self.is_maybe_applied:
            raise self.final(OutcomeUnknown(f"the write may have happened: no verdict {after} ({tried})"))
        if self.last_error is not None:
            last = self.last_error
            raise self.final(type(last)(f"{last.detail} ({tried})", **last.fields), last.request_id)
        raise self.final(Unavailable(f"no answer {after} ({tried})"))

    def final(self, error: KvError, request_id: str | None = None) -> KvError:
        error.fields["tried"] = self.told()
        error.request_id = request_id
        return error

    def told(self) -> list[tuple[str, str]]:
        return list(self.tried.items())


def is_session_unknown(error: object) -> bool:
    return isinstance(error, OutcomeUnknown) and error.fields.get("reason") == "session-unknown"


class _Again(Exception):
    """Another attempt is due, after `wait_s`; None: at the next node, without a pause."""

    def __init__(self, wait_s: float | None) -> None:
        super().__init__()
        self.wait_s = wait_s


def told(failure: Failure) -> str:
    return f"{failure.fault.value}: {failure.detail}" if failure.detail else failure.fault.value
