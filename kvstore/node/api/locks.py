"""Locks and elections: a request enters a queue (`store.lock_queue`), waits here for its turn, and leaves.

Nobody may come to hold a name without knowing it (pitfall 44). So whatever ends a request without a grant
also withdraws its entry: the wait is over, the caller has gone, the outcome of entering is unknown. What
the withdrawal can not reach, because this node or the shard is down, ends by the entry's deadlines.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, NamedTuple

from kvstore.errors import InvalidArgument, KeyNotFound, KvError, Locked, LockLost, NotApplied, Unavailable
from kvstore.node.api import reserved
from kvstore.node.api.context import Context
from kvstore.node.api.kv import consistency_of
from kvstore.node.calls import Answer, ReadAnswer
from kvstore.node.flow import Promise, spawn
from kvstore.node.requests import Request
from kvstore.store import commands, lock_commands
from kvstore.store.commands import Op
from kvstore.store.results import OK, REFUSED, error_of
from kvstore.types import ShardId
from kvstore.wire import api, bodies

ANSWER_S: Final = 5.0
"""What a request's deadline leaves beyond its wait."""
WITHDRAWAL_S: Final = 10.0
"""How long this node tries to withdraw an entry after its request has ended."""
AHEAD_MS: Final = 10_000
"""How long after its wait an ENTER may still be applied, on a slow cluster."""
_BUILDS_MAX: Final = 5


class Terms(NamedTuple):
    ttl_ms: int
    wait_ms: int
    value: bytes


# ---- the routes ----------------------------------------------------------------------------------


def lock(context: Context, request: Request, name: str, query: api.Query) -> None:
    key = _key_of(context, request, reserved.LOCKS, name)
    body = bodies.claim_body(request.headers, request.body)
    wait_ms = 0 if body.wait is None else _wait_ms(body.wait)
    _take(context, request, key, Terms(_ttl_ms(body.ttl), wait_ms, _value(body, b"")))


def campaign(context: Context, request: Request, name: str, query: api.Query) -> None:
    """Without `wait` it is as long as the request may take."""
    key = _key_of(context, request, reserved.ELECTIONS, name)
    body = bodies.claim_body(request.headers, request.body)
    if body.wait is None:
        timeout_s = api.timeout_s(request.headers, context.deadline_s)
        wait_ms = int(min(timeout_s - min(1.0, timeout_s / 2), lock_commands.WAIT_MS_MAX / 1000) * 1000)
    else:
        wait_ms = _wait_ms(body.wait)
    _take(context, request, key, Terms(_ttl_ms(body.ttl), wait_ms, _value(body, None)))


def lock_holder(context: Context, request: Request, name: str, query: api.Query) -> None:
    _ask_holder(context, request, _key_of(context, request, reserved.LOCKS, name), query)


def election(context: Context, request: Request, name: str, query: api.Query) -> None:
    _ask_holder(context, request, _key_of(context, request, reserved.ELECTIONS, name), query)


def lock_keepalive(context: Context, request: Request, name: str, token: str, query: api.Query) -> None:
    key = _key_of(context, request, reserved.LOCKS, name)
    _hold(context, request, lock_commands.renew(key, _claim_of(token)), _renewed)


def election_keepalive(context: Context, request: Request, name: str, token: str, query: api.Query) -> None:
    key = _key_of(context, request, reserved.ELECTIONS, name)
    _hold(context, request, lock_commands.renew(key, _claim_of(token)), _renewed)


def unlock(context: Context, request: Request, name: str, token: str, query: api.Query) -> None:
    key = _key_of(context, request, reserved.LOCKS, name)
    _hold(context, request, lock_commands.release(key, _claim_of(token)), _released)


def resign(context: Context, request: Request, name: str, token: str, query: api.Query) -> None:
    key = _key_of(context, request, reserved.ELECTIONS, name)
    _hold(context, request, lock_commands.release(key, _claim_of(token)), _released)


# ---- what a request says -------------------------------------------------------------------------


def _key_of(context: Context, request: Request, prefix: bytes, name: str) -> bytes:
    key = prefix + api.path_key(name, context.key_bytes_max)
    api.check_key(key, context.key_bytes_max, "the key of this name")
    request.shard = context.shard_of(key)
    return key


def _claim_of(token: str) -> bytes:
    """Raises: LockLost for what was never given out."""
    try:
        claim = bytes.fromhex(token)
    except ValueError:
        claim = b""
    if len(claim) != lock_commands.CLAIM_BYTES_MIN:
        raise LockLost("this is not a token that was given out")
    return claim


def _ttl_ms(ttl: Any) -> int:
    if ttl is None:
        raise InvalidArgument('the body needs "ttl", how long to hold without a keepalive, like "10s"')
    return api.duration_ms(str(ttl), "$.ttl", lock_commands.TTL_MS_MIN, lock_commands.TTL_MS_MAX)


def _wait_ms(wait: Any) -> int:
    return api.duration_ms(str(wait), "$.wait", 0, lock_commands.WAIT_MS_MAX)


def _value(body: bodies.ClaimBody, default: bytes | None) -> bytes:
    if default is not None and body.value is None and body.value_b64 is None:
        return default
    value = bodies.bytes_of(body.value, body.value_b64, "value", "$")
    if len(value) > lock_commands.VALUE_BYTES_MAX:
        raise api.too_large("$.value", "lock_value_bytes_max", lock_commands.VALUE_BYTES_MAX, len(value))
    return value


# ---- taking --------------------------------------------------------------------------------------


def _take(context: Context, request: Request, key: bytes, terms: Terms) -> None:
    assert request.shard is not None
    claim = _claim_for(context, request, key)
    if context.is_elsewhere(request, request.shard, redirect=False):
        return
    taking = Taking(context, request, request.shard, key, terms, claim)
    outcome = spawn(taking.run())
    outcome.on_done(partial(_taken, context, request, claim))


def _claim_for(context: Context, request: Request, key: bytes) -> bytes:
    """The same for all repetitions of a request, if it says that it may be repeated."""
    identity = api.identity_of(request.headers, request.method, request.target, request.body)
    if identity is None:
        return context.fresh_bytes(lock_commands.CLAIM_BYTES_MIN)
    return api.digest(
        lock_commands.CLAIM_BYTES_MIN, b"claim", identity.session, b"%d" % identity.sequence, key
    )


def _taken(context: Context, request: Request, claim: bytes, outcome: Promise[list[Any]]) -> None:
    request.on_gone = request.on_end_of_input = None
    if outcome.error is not None:
        context.fail(request, outcome.error)
        return
    _, _, fence, left_ms, *_ = outcome.result()
    head = b"KV-Revision: %d\r\n%b" % (fence, context.head(request))
    content = {"token": claim.hex(), "fence": fence, "ttl_ms": left_ms}
    context.respond_content(request, 200, content, head)


class Taking:
    """One attempt of one request to come to hold a name."""

    def __init__(
        self, context: Context, request: Request, shard: ShardId, key: bytes, terms: Terms, claim: bytes
    ) -> None:
        self._context = context
        self._router = context.router
        self._request = request
        self._shard = shard
        self._key = key
        self._terms = terms
        self._claim = claim
        self._attempt = int.from_bytes(context.fresh_bytes(6), "big")
        self._not_after_ms = 0
        wait_s = terms.wait_ms / 1000
        timeout_s = api.timeout_s(request.headers, wait_s + ANSWER_S)
        # A shorter deadline of the caller's own must leave time to withdraw.
        wait_s = min(wait_s, max(timeout_s - ANSWER_S, timeout_s / 2))
        self._wait_until = request.started_s + wait_s
        self._deadline = request.started_s + timeout_s
        self._is_gone = False
        self._is_waiting: Promise[None] | None = None
        request.on_gone = request.on_end_of_input = self._gone

    async def run(self) -> list[Any]:
        """The holder's result. Raises: Locked, LockLost, or why it can not be told."""
        has_entered = False
        try:
            result = await self._enter()
            has_entered = True
            if not result[1] and result[3] > 0:
                result = await self._wait()
        except KvError as error:
            if has_entered or not isinstance(error, NotApplied):
                self._withdraw()
            raise
        if result[1] and self._is_gone:
            self._withdraw()
            raise Locked("the caller has gone: what was granted is given back")
        if not result[1]:
            raise Locked(f"held with fence {result[2]}", fence=result[2])
        return result

    async def _enter(self) -> list[Any]:
        """Enter, or find the entry of an earlier attempt and what became of it."""
        floor_ms, clock_ms = 0, self._context.router.clock_of(self._shard) or 0
        for _ in range(_BUILDS_MAX):
            self._not_after_ms = max(clock_ms + self._terms.wait_ms + AHEAD_MS, floor_ms + 1)
            op = self._enter_op()
            answer: Answer = await self._write(op, self._deadline)
            result: list[Any] = answer.result.results[0]
            if result[0] != REFUSED:
                return _checked(result)
            floor_ms, clock_ms = result[1], answer.clock_ms
        raise Unavailable("the shard's clock is not known well enough to enter the queue", retry_after=1)

    def _enter_op(self) -> Op:
        terms = self._terms
        return lock_commands.enter(
            self._key,
            self._claim,
            self._attempt,
            ttl_ms=terms.ttl_ms,
            wait_ms=terms.wait_ms,
            not_after_ms=self._not_after_ms,
            value=terms.value,
        )

    async def _wait(self) -> list[Any]:
        """Until it holds, or the wait is over, or the caller gone; then take what was granted, or leave."""
        failure: KvError | None = None
        fence: int | None = 0
        if not self._is_gone:
            try:
                fence = await self._turn()
            except KvError as error:
                failure = error
        if self._is_gone:
            raise Locked("the caller has gone")
        if fence is None:
            raise Locked("its place in the queue has ended")
        if fence:
            answer: Answer = await self._write(self._enter_op(), self._deadline)
            if answer.result.results[0][0] == REFUSED:
                raise Locked("its place in the queue has ended")
        else:
            answer = await self._write(self._give_up_op(keeps_grant=True), self._deadline)
        result: list[Any] = _checked(answer.result.results[0])
        if failure is not None and not result[1]:
            raise failure
        return result

    async def _turn(self) -> int | None:
        """The fence once it holds; 0: the wait is over; None: there is no entry any more."""
        waiting: Promise[None] = Promise()
        found: list[int | None] = [0]

        def done(answer: ReadAnswer | None, error: BaseException | None) -> None:
            if answer is None:
                assert error is not None
                waiting.fail(error)
                return
            found[0] = None if answer.value is None else answer.value[0]
            waiting.resolve(None)

        query = ("claim", self._key, self._claim)
        call = self._router.wait_then(self._shard, query, self._wait_until, self._deadline, done)
        self._is_waiting = waiting
        self._context.metrics.lock_waits.of().value += 1
        try:
            await waiting
        finally:
            self._is_waiting = None
            self._context.metrics.lock_waits.of().value -= 1
            if self._is_gone and call is not None:
                self._router.cancel(call)
        return found[0]

    def _gone(self) -> None:
        """Nobody is there any more to hear of a grant."""
        self._is_gone = True
        if self._is_waiting is not None:
            self._is_waiting.resolve(None)

    def _give_up_op(self, *, keeps_grant: bool) -> Op:
        return lock_commands.give_up(
            self._key, self._claim, self._attempt, not_after_ms=self._not_after_ms, keeps_grant=keeps_grant
        )

    def _withdraw(self) -> None:
        """Whatever became of the entry, it must go; nobody waits for that."""
        deadline = self._context.now() + WITHDRAWAL_S
        self._write(self._give_up_op(keeps_grant=False), deadline)

    def _write(self, op: Op, deadline: float) -> Promise[Answer]:
        return self._router.write(self._shard, commands.encode(None, (op,)), True, deadline)


def _checked(result: list[Any]) -> list[Any]:
    error = error_of(result) if result[0] != OK else None
    if error is not None:
        raise error
    return result


# ---- holding -------------------------------------------------------------------------------------


def _hold(context: Context, request: Request, op: Op, content_of: Any) -> None:
    shard = request.shard
    assert shard is not None
    if context.is_elsewhere(request, shard, redirect=False):
        return

    def done(answer: Answer | None, error: BaseException | None) -> None:
        if answer is None:
            assert error is not None
            context.fail(request, error)
            return
        try:
            content = content_of(_checked(answer.result.results[0]))
        except KvError as refusal:
            context.fail(request, refusal)
            return
        context.respond_content(request, 200, content, context.head(request, answer.clock_ms))

    context.router.write_then(shard, commands.encode(None, (op,)), True, context.deadline(request), done)


def _renewed(result: list[Any]) -> dict[str, Any]:
    return {"fence": result[2], "ttl_ms": result[3]}


def _released(result: list[Any]) -> dict[str, Any]:
    if not result[4]:
        raise LockLost("nobody holds or waits by this token: its time ran out")
    return {"released": True}


# ---- looking -------------------------------------------------------------------------------------


def _ask_holder(context: Context, request: Request, key: bytes, query: api.Query) -> None:
    shard = request.shard
    assert shard is not None
    consistency, max_staleness_s = consistency_of(query)
    if context.is_elsewhere(request, shard, redirect=False):
        return

    def done(answer: ReadAnswer | None, error: BaseException | None) -> None:
        if answer is not None and answer.value is None:
            error = KeyNotFound("nobody holds it")
        if answer is None or error is not None:
            assert error is not None
            context.fail(request, error)
            return
        value, fence, due_ms, waiting = answer.value
        head = b"KV-Revision: %d\r\n%b" % (fence, context.head(request, answer.clock_ms))
        if answer.staleness_s is not None:
            head += b"KV-Staleness: %.3f\r\n" % answer.staleness_s
        content: dict[str, Any] = {"fence": fence, "ttl_ms": max(0, due_ms - answer.clock_ms)}
        content["waiting"] = waiting
        if api.wants_msgpack(request.headers):
            content["value"] = value
        else:
            bodies.named_bytes("value", value, content)
        context.respond_content(request, 200, content, head)

    deadline = context.deadline(request)
    context.router.read_then(shard, ("holder", key), consistency, deadline, done, max_staleness_s)
