"""Leases, locks and offices: requests for them, and the plan that keeps them.

All three are claims that end unless they are renewed. The store judges by its own clock; a client judges
for itself, on the safe side: a claim surely holds for its TTL from the moment at which the last successful
renewal (or the claim itself) was *sent*, and no longer. A program that was stopped meanwhile finds the time
gone when it goes on. Against work that is under way at that moment only the fence helps: the resource that
is protected must refuse a fence lower than one it has seen.

Pure: times and clocks are arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote

from kvstore.client import codec
from kvstore.client.codec import Garbled
from kvstore.client.exchange import Event, Reply, Sleep
from kvstore.client.operations import JSON_BODY
from kvstore.client.plan import Call, Core, Kind, Plan, execute
from kvstore.client.results import Leader, LeaseInfo
from kvstore.client.session import Ticket
from kvstore.errors import InvalidArgument, KvError, LeaseNotFound, Locked, LockLost, NotApplied, NotFound

TTL_S_DEFAULT = 10.0
RENEWALS_PER_TTL = 3
"""A claim is renewed when a third of its time has passed: two renewals may fail."""
RENEWAL_S_MIN = 0.02
WAIT_S_MAX = 300.0
"""How long one request waits in a queue. Who waits for longer asks again, at the queue's end."""
WAIT_SLACK_S = 0.5
AGAIN_S = 0.2
RELEASE_S_MAX = 2.0
"""How long giving back may take. What cannot be given back runs out by itself."""


def _segment(name: str | bytes, what: str) -> str:
    encoded = codec.value_bytes(name)
    if not encoded:
        raise InvalidArgument(f"{what} must have at least one byte")
    if not encoded.strip(b"."):
        return "%2E" * len(encoded)
    return quote(encoded, safe="")


def _check_ttl(ttl: float) -> float:
    if not ttl > 0:
        raise InvalidArgument(f"ttl {ttl!r}: expected seconds, above 0")
    return ttl


def _ttl_of(reply: Reply) -> float:
    """How long the answer says that the claim now lasts."""
    return codec.integer(codec.document(reply), "ttl_ms") / 1000


# Leases.

Release = Call[bool]


class Granted(NamedTuple):
    id: str
    ttl_s: float


def grant(ttl: float, lease: str | None) -> Call[Granted]:
    body: dict[str, Any] = {"ttl": codec.milliseconds(_check_ttl(ttl))}
    if lease is not None:
        body["id"] = lease
    return Call(Kind.WRITE, "POST", "/v1/leases", _granted, json.dumps(body).encode(), (JSON_BODY,))


def _granted(reply: Reply) -> Granted:
    fields = codec.document(reply)
    lease = fields.get("lease")
    if not isinstance(lease, str):
        raise Garbled("a grant without a lease")
    return Granted(lease, codec.integer(fields, "ttl_ms") / 1000)


def keep_lease(lease: str) -> Call[float]:
    """Renew; the result is how long it now lasts. Raises LeaseNotFound."""
    target = f"/v1/leases/{_segment(lease, 'a lease')}/keepalive"
    return Call(Kind.REPEATABLE, "PUT", target, _ttl_of)


def lease_info(lease: str) -> Call[LeaseInfo]:
    target = f"/v1/leases/{_segment(lease, 'a lease')}"
    return Call(Kind.READ, "GET", target, lambda reply: _lease_info(codec.document(reply)))


def _lease_info(fields: Any) -> LeaseInfo:
    if not isinstance(fields, dict) or not isinstance(fields.get("lease"), str):
        raise Garbled("expected a lease")
    ttl_s = codec.integer(fields, "ttl_ms") / 1000
    remaining_ms = fields.get("remaining_ms")
    return LeaseInfo(
        fields["lease"],
        ttl_s,
        remaining_ms / 1000 if isinstance(remaining_ms, int) else ttl_s,
        tuple(_key(each) for each in fields.get("keys") or ()),
    )


def _key(found: Any) -> bytes:
    """A key in a list: text, or an object with `key` or `key_b64`."""
    return codec.octets(found if isinstance(found, dict) else {"key": found}, "key")


class LeasePage(NamedTuple):
    leases: list[LeaseInfo]
    next: str | None


def list_leases(cursor: str | None) -> Call[LeasePage]:
    return Call(Kind.READ, "GET", codec.query("/v1/leases", cursor=cursor), _leases)


def _leases(reply: Reply) -> LeasePage:
    fields = codec.document(reply)
    found, cursor = fields.get("leases"), fields.get("next")
    if not isinstance(found, list):
        raise Garbled("expected leases")
    return LeasePage([_lease_info(each) for each in found], cursor if isinstance(cursor, str) else None)


def revoke(lease: str) -> Call[bool]:
    """End a lease and delete its keys. The result is False if there was none.

    It has an identity, or an attempt that is late could end the next lease of the same id."""
    return Call(
        Kind.WRITE,
        "DELETE",
        f"/v1/leases/{_segment(lease, 'a lease')}",
        lambda reply: reply.status != 404,
        absent=("lease-not-found",),
    )


# Locks and elections: one queue, two names.


class Claimed(NamedTuple):
    token: str
    fence: int


class Queue(NamedTuple):
    """A lock or an office, by name."""

    path: str
    key: bytes
    """Shows the holder, and decides where the queue lies."""
    value: bytes | None
    """What the office is held with; None for a lock."""
    what: str

    @classmethod
    def lock(cls, name: str | bytes) -> Queue:
        path = f"/v1/locks/{_segment(name, 'the name of a lock')}"
        return cls(path, b"_locks/" + codec.value_bytes(name), None, "lock")

    @classmethod
    def election(cls, name: str | bytes, value: str | bytes = b"") -> Queue:
        path = f"/v1/elections/{_segment(name, 'the name of an election')}"
        return cls(path, b"_elections/" + codec.value_bytes(name), codec.value_bytes(value), "office")

    def claim(
        self, ttl: float, wait_s: float, told_identity: Callable[[Ticket], None] | None = None
    ) -> Call[Claimed]:
        """Queue up for at most `wait_s`. Raises Locked."""
        _check_ttl(ttl)

        fields: dict[str, Any] = {"ttl": codec.milliseconds(ttl)}
        if self.value is not None:
            fields |= _json_bytes("value", self.value)

        def waiting(left_s: float) -> tuple[str, bytes]:
            wait = codec.milliseconds(left_s) if left_s > 0 else "0ms"
            return self.path, json.dumps(fields | {"wait": wait}).encode()

        return Call(
            Kind.WRITE,
            "POST",
            self.path,
            _claimed,
            waiting(wait_s)[1],
            (JSON_BODY,),
            key=self.key,
            wait_s=wait_s,
            waiting=waiting,
            told_identity=told_identity,
        )

    def ask_again(self, ttl: float, ticket: Ticket) -> Call[Claimed]:
        """What became of a claim that went under this ticket, without waiting any longer. Raises Locked or
        LockLost if it holds nothing."""
        call = self.claim(ttl, 0.0)
        identity = (("KV-Session", ticket.session), ("KV-Sequence", str(ticket.sequence)))
        return Call(
            Kind.REPEATABLE,
            call.method,
            call.target,
            _claimed,
            call.body,
            (*call.headers, *identity),
            key=self.key,
        )

    def keep(self, token: str) -> Call[float]:
        """Renew; the result is how long it now lasts. Raises LockLost."""
        target = f"{self.path}/{_segment(token, 'a token')}/keepalive"
        return Call(Kind.REPEATABLE, "PUT", target, _ttl_of, key=self.key)

    def release(self, token: str) -> Call[bool]:
        """Give it back. The result is False if it was not held any more."""
        return Call(
            Kind.REPEATABLE,
            "DELETE",
            f"{self.path}/{_segment(token, 'a token')}",
            lambda reply: reply.status != 404,
            key=self.key,
            absent=("lock-lost",),
        )

    def leader(self) -> Call[Leader | None]:
        return Call(Kind.READ, "GET", self.path, _leader, key=self.key, absent=("key-not-found",))


def _json_bytes(name: str, value: bytes) -> dict[str, str]:
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        from base64 import b64encode

        return {f"{name}_b64": b64encode(value).decode()}


def _claimed(reply: Reply) -> Claimed:
    fields = codec.document(reply)
    if not isinstance(fields.get("token"), str):
        raise Garbled("a claim without a token")
    return Claimed(fields["token"], codec.integer(fields, "fence"))


def _leader(reply: Reply) -> Leader | None:
    if reply.status == 404:
        return None
    fields = codec.document(reply)
    if fields.get("fence") is None:
        return None
    return Leader(codec.octets(fields, "value"), codec.integer(fields, "fence"))


# Keeping.


class ClaimTerms(NamedTuple):
    ttl_s: float
    wait_s: float
    """How long to queue; infinite: until it is granted."""
    timeout_s: float
    """How long the cluster may take beyond that."""


class Taking:
    """The way to a claim, and back if nobody comes to hold it: whatever ends `acquire` without a result (a
    failure, or that its caller was cancelled), `give_up` gives back what may have been granted meanwhile."""

    def __init__(self, core: Core, queue: Queue, terms: ClaimTerms, clock: Callable[[], float]) -> None:
        self._core = core
        self._queue = queue
        self._terms = terms
        self._clock = clock
        self._ticket: Ticket | None = None
        """Of a claim that was sent and whose answer is not known."""
        self._token: str | None = None
        """Of a claim that was granted, and that nobody holds yet."""

    @property
    def is_open(self) -> bool:
        """Something may be granted, to nobody."""
        return self._token is not None or self._ticket is not None

    def acquire(self, start: Event) -> Plan[tuple[Claimed, Claim]]:
        """Queue up until the claim is granted. Raises Locked when `wait_s` has passed."""
        terms, clock = self._terms, self._clock
        event, began_at = start, clock()
        while True:
            sent_at = clock()
            left_s = max(0.0, terms.wait_s - (sent_at - began_at))
            wait_s = min(left_s, WAIT_S_MAX)
            try:
                claimed = yield from self._ask(wait_s, event)
                claim = Claim(self._queue.keep(claimed.token), terms.ttl_s, sent_at, clock)
                if clock() - sent_at > terms.ttl_s / (2 * RENEWALS_PER_TTL):
                    # Granted some time after it was sent. From when it holds is known by a renewal only.
                    event = yield Sleep(0.0)
                    yield from claim.renew(self._core, min(terms.timeout_s, terms.ttl_s), event)
                self._token = None
                return claimed, claim
            except (Locked, LockLost):
                self._token = None
                if clock() - began_at >= terms.wait_s - WAIT_SLACK_S:
                    raise
            event = yield Sleep(AGAIN_S * (0.5 + event.dice))

    def _ask(self, wait_s: float, event: Event) -> Plan[Claimed]:
        call = self._queue.claim(self._terms.ttl_s, wait_s, self._told_identity)
        try:
            claimed = yield from execute(self._core, call, wait_s + self._terms.timeout_s, event)
        except NotApplied:
            self._ticket = None
            raise
        self._ticket, self._token = None, claimed.token
        return claimed

    def _told_identity(self, ticket: Ticket) -> None:
        self._ticket = ticket

    def give_up(self, start: Event) -> Plan[None]:
        """Raises what comes in its way; what cannot be given back runs out by itself."""
        event, token, ticket = start, self._token, self._ticket
        if token is None and ticket is not None:
            call = self._queue.ask_again(self._terms.ttl_s, ticket)
            token = (yield from execute(self._core, call, RELEASE_S_MAX, event)).token
            event = yield Sleep(0.0)
        if token is not None:
            yield from execute(self._core, self._queue.release(token), RELEASE_S_MAX, event)


class Claim:
    """One claim that is held, and until when. `clock` is the caller's, in seconds; it must go on while the
    machine sleeps."""

    __slots__ = ("_clock", "_is_over", "_renewal", "_sent_at", "_until", "ttl_s", "why_lost")

    def __init__(
        self, renewal: Call[float], ttl_s: float, sent_at: float, clock: Callable[[], float]
    ) -> None:
        self._renewal = renewal
        self._clock = clock
        self._sent_at = sent_at
        self._until = sent_at + ttl_s
        self._is_over = False
        self.ttl_s = ttl_s
        self.why_lost: KvError | None = None

    @property
    def remaining_s(self) -> float:
        """For so long it surely still holds."""
        return 0.0 if self._is_over else max(0.0, self._until - self._clock())

    @property
    def is_lost(self) -> bool:
        """It has ended, or cannot be known to last, and nobody gave it back."""
        return self.why_lost is not None or (not self._is_over and self.remaining_s <= 0)

    def end(self, why: KvError | None = None) -> None:
        """It was given back, or it is lost: nothing renews it any more."""
        self._is_over = True
        self.why_lost = why

    def renewed(self, sent_at: float, ttl_s: float) -> None:
        self._sent_at = sent_at
        self._until = max(self._until, sent_at + ttl_s)

    def renew(self, core: Core, timeout_s: float, start: Event) -> Plan[float]:
        """Renew once; the result is how long it surely lasts. Raises when it is lost, or cannot tell."""
        sent_at = self._clock()
        try:
            ttl_s = yield from execute(core, self._renewal, timeout_s, start)
        except NotFound as error:
            self.end(error)
            raise
        if not self._is_over:
            self.renewed(sent_at, ttl_s)
        return self.remaining_s

    def keep(self, core: Core) -> Plan[None]:
        """Renew again and again. Ends when the claim has ended: `why_lost` says why, None if it was given
        back."""
        while not self._is_over:
            due_s = self._sent_at + self.ttl_s / RENEWALS_PER_TTL - self._clock()
            event = yield Sleep(max(RENEWAL_S_MIN, min(due_s, self.remaining_s)))
            while not self._is_over:
                left_s = self.remaining_s
                if left_s <= 0:
                    self.end(LockLost("it could not be renewed in time"))
                    return
                try:
                    # Not all that is left: a claim counts from when its renewal began to be sent.
                    limit_s = min(left_s, max(RENEWAL_S_MIN, self.ttl_s / RENEWALS_PER_TTL))
                    yield from self.renew(core, limit_s, event)
                    break
                except NotFound:
                    return
                except KvError:
                    # Whatever it is: as long as there is time left, the next renewal may succeed.
                    event = yield Sleep(max(RENEWAL_S_MIN, min(self.ttl_s / 20, self.remaining_s)))


def lease_claim(granted: Granted, sent_at: float, clock: Callable[[], float]) -> Claim:
    return Claim(keep_lease(granted.id), granted.ttl_s, sent_at, clock)


def lost(claim: Claim, name: str, what: str) -> KvError:
    """The error that tells that a claim was lost."""
    reason = claim.why_lost.detail if claim.why_lost is not None else "its time ran out"
    kind = LeaseNotFound if what == "lease" else LockLost
    return kind(f"{what} {name!r} was lost: {reason}")
