"""Carries a transaction through the shards of its keys, on the node where the request arrived.

One shard: one op. Several: a prepare on each, and when all have voted yes, the decision on each
(`store.transactions` says what the ops do). Nothing is remembered here. If this node dies, the leaders of
the shards find the prepares and bring them to their end (`recovery`), and decide from the votes as this
does.

What must hold whatever is lost:
- A commit is sent only when all shards said yes, an abort only when one of them can not any more: it said
  no, or its prepare was surely never proposed. With a vote missing nobody knows, and nothing is decided here.
- Each try is a transaction of its own, with an id that no other has, and begins when the one before is dead.
- A request with an identity is found again by its session: a shard that has carried it out answers every
  later prepare with the result (pitfall 32).
- No two wait for each other. The first tries ask all shards at once and never wait. From the third on, shards
  are asked one after another in ascending order, and each may let the prepare wait: whoever waits holds keys
  of lower shards only, so a circle would need a shard that is lower than itself.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from kvstore.errors import KvError, NoLeader, NotApplied, OutcomeUnknown, TxnConflict, Unavailable
from kvstore.node.calls import Answer
from kvstore.node.flow import Promise, gather, spawn
from kvstore.node.leases import TIES_MAX
from kvstore.node.runtime import Runtime
from kvstore.store import commands, txn_commands
from kvstore.store.results import IDENTITY_MISMATCH, LOCKED, OK, REFUSED, error_of, is_of_txn
from kvstore.store.transactions import COMMITTED, EARLIER, UNDER_WAY, YES, Outcome, outcome_of
from kvstore.types import ShardId

NOT_AFTER_MS: Final = 10_000
"""How long, in the shard's clock, a prepare may be applied."""
IN_ORDER_FROM: Final = 3
"""The try from which on shards are asked one after another."""
BACK_OFF_S: Final = 0.004
BACK_OFF_MAX_S: Final = 0.15
FINISH_EVERY_S: Final = 1.0
"""Soon enough that nobody is reminded (`recovery`), late enough that one entry ends many."""
FINISH_DEADLINE_S: Final = 2.0
FINISH_MAX: Final = 1000
"""Transactions of one FINISH."""

RESEND_S: Final = 1.0
"""A prepare or decision without an answer is sent again after this, and then after twice as long, and so on:
more often than it is answered would only add to what keeps the shards busy."""
RESEND_PAUSE_S: Final = 0.05

BODY_MARK_INDEX: Final = 1 << 40
"""Index of the op that carries a body's hash: above any op of a request."""


class Writes(Protocol):
    """What this needs of the router."""

    shard_of: Callable[[bytes], ShardId]

    def write(self, shard: ShardId, command: bytes, identified: bool, deadline: float) -> Promise[Answer]: ...

    def clock_of(self, shard: ShardId) -> int | None: ...


class Ties(Protocol):
    """What this needs of leases."""

    def tie(
        self, lease_id: bytes, shard: ShardId, deadline: float, *, is_again: bool = False
    ) -> Coroutine[Any, Any, dict[str, Any]]: ...


class Part:
    """What of a transaction lies in one shard. `positions` are those of its ops in the two branches."""

    __slots__ = ("branches", "compares", "positions", "tied")

    def __init__(self) -> None:
        self.compares: list[txn_commands.Compare] = []
        self.branches: tuple[list[commands.Op], list[commands.Op]] = ([], [])
        """Else-ops and then-ops, so that `succeeded` is the index."""
        self.positions: tuple[list[int], list[int]] = ([], [])
        self.tied: dict[bytes, list[commands.Op]] = {}
        """Puts by the lease that they tie their keys to."""

    @property
    def parts(self) -> txn_commands.Parts:
        return (self.compares, self.branches[1], self.branches[0])

    @property
    def is_pure(self) -> bool:
        return all(op[0] == txn_commands.GET for branch in self.branches for op in branch)


class Plan:
    """A transaction, cut by shard; `counts` are the lengths of the else- and the then-branch."""

    __slots__ = ("counts", "parts")

    def __init__(self) -> None:
        self.parts: dict[ShardId, Part] = {}
        self.counts = [0, 0]

    def _part(self, shard: ShardId) -> Part:
        part = self.parts.get(shard)
        if part is None:
            part = self.parts[shard] = Part()
        return part

    def add_compare(self, shard: ShardId, compare: txn_commands.Compare) -> None:
        self._part(shard).compares.append(compare)

    def add_op(self, shard: ShardId, branch: bool, op: commands.Op) -> None:
        part = self._part(shard)
        part.branches[branch].append(op)
        part.positions[branch].append(self.counts[branch])
        self.counts[branch] += 1
        if op[0] == commands.PUT and len(op) > 3 and "lease" in op[3]:
            part.tied.setdefault(op[3]["lease"], []).append(op)

    @property
    def is_pure(self) -> bool:
        """It changes nothing, so doing it twice is harmless."""
        return all(part.is_pure for part in self.parts.values())


class Done(NamedTuple):
    """A transaction that was carried out. `results` are those of the branch's ops, in their order."""

    succeeded: bool
    results: list[Any]
    revisions: dict[ShardId, int]
    clock_ms: int
    """The lowest of its shards: from it on, whoever tries again counts the age of this one."""
    replayed: bool


class Dead(NamedTuple):
    """A try that came to nothing, and never will come to anything."""

    is_doubtful: bool
    """An earlier try of the same request was met: that one may have been, or be, carried out."""
    is_refused: bool = False
    """It came too late by a clock, or for a lease."""


class Vote(NamedTuple):
    """A shard's answer, or why there is none."""

    answer: Answer | None
    error: BaseException | None

    @property
    def result(self) -> list[Any]:
        assert self.answer is not None, "a vote that never came"
        result: list[Any] = self.answer.result.results[0]
        return result

    def says(self, state: int) -> bool:
        return self.answer is not None and self.result[0] == OK and self.result[1] == state

    @property
    def is_missing(self) -> bool:
        """It may have voted yes, or still do so."""
        return self.answer is None and not isinstance(self.error, NotApplied)


class Transactions:
    def __init__(self, router: Writes, runtime: Runtime, leases: Ties) -> None:
        self._router = router
        self._leases = leases
        self._now = runtime.now
        self._later = runtime.call_later
        self._dice = runtime.dice
        self._finished: dict[ShardId, list[bytes]] = {}
        self._is_finish_due = False

    async def run(self, plan: Plan, identity: commands.Identity | None, deadline: float) -> Done:
        """Carry out a plan, whole or not at all.

        Raises: TxnConflict, if other transactions held its keys until the deadline; NotANumber, OutOfRange,
        TooLarge, LeaseNotFound, if an op of the branch cannot be done; OutcomeUnknown, if it may have been
        committed or may still be; what the router raises, if nothing was proposed."""
        shards = sorted(plan.parts)
        if identity is not None and identity.body_hash is not None:
            await self._mark_body(identity, shards, deadline)
        if len(shards) == 1:
            return await self._in_one_shard(shards[0], plan, identity, deadline)
        attempt, is_doubtful, is_refused = 0, False, False
        while True:
            attempt += 1
            try:
                await self._tie(plan, deadline, is_again=is_refused)
            except NotApplied as error:
                if is_doubtful:
                    raise OutcomeUnknown(f"an earlier try may have been carried out; now: {error}") from error
                raise
            done = await self._try(plan, shards, identity, deadline, is_ordered=attempt >= IN_ORDER_FROM)
            if isinstance(done, Done):
                return done
            is_doubtful, is_refused = is_doubtful or done.is_doubtful, done.is_refused
            pause = self._dice.uniform(0.0, min(BACK_OFF_S * 2**attempt, BACK_OFF_MAX_S))
            if self._now() + pause >= deadline:
                if is_doubtful:
                    raise OutcomeUnknown("an earlier try of this request has not come to its end everywhere")
                raise TxnConflict(f"other transactions held its keys until the deadline, {attempt} tries")
            await self._sleep(pause)

    async def _mark_body(
        self, identity: commands.Identity, shards: Sequence[ShardId], deadline: float
    ) -> None:
        """Leave the body's hash where any repetition of the request will meet it, whatever its keys."""
        home = self._router.shard_of(identity.session)
        if list(shards) == [home]:
            return
        mark = commands.Identity(
            identity.session,
            identity.sequence,
            BODY_MARK_INDEX,
            identity.acked_below,
            identity.since_ms,
            identity.body_hash,
            identity.principal,
        )
        command = commands.encode(mark, (commands.delete_range(b"", b"\x00"),))
        answer = await self._router.write(home, command, True, deadline)
        refusal = error_of(answer.result.results[0])
        if refusal is not None:
            raise refusal

    async def _in_one_shard(
        self, shard: ShardId, plan: Plan, identity: commands.Identity | None, deadline: float
    ) -> Done:
        is_repeatable = identity is not None or plan.is_pure
        for attempt in range(TIES_MAX):
            await self._tie(plan, deadline, is_again=attempt > 0)
            command = commands.encode(identity, (txn_commands.txn(plan.parts[shard].parts),))
            answer = await self._router.write(shard, command, is_repeatable, deadline)
            result = answer.result.results[0]
            if result[0] != REFUSED:
                break
        else:
            raise Unavailable("a lease's grant or the shard's clock changes too fast", retry_after=1)
        refusal = error_of(result)
        if refusal is not None:
            raise refusal
        if not is_of_txn(result):
            raise error_of([IDENTITY_MISMATCH]) or AssertionError
        return self._done(plan, {shard: result}, [answer], replayed=answer.result.replayed)

    async def _tie(self, plan: Plan, deadline: float, *, is_again: bool) -> None:
        """Tell the puts what they need to know of their leases. `is_again`: what they knew was refused."""
        wanted = [(shard, lease_id) for shard, part in plan.parts.items() for lease_id in part.tied]
        ties = [
            spawn(self._leases.tie(lease_id, shard, deadline, is_again=is_again))
            for shard, lease_id in wanted
        ]
        for (shard, lease_id), options in zip(wanted, await gather(ties), strict=True):
            for op in plan.parts[shard].tied[lease_id]:
                op[3].update(options)

    # ---- one try over several shards -------------------------------------------------------------

    async def _try(
        self,
        plan: Plan,
        shards: Sequence[ShardId],
        identity: commands.Identity | None,
        deadline: float,
        *,
        is_ordered: bool,
    ) -> Done | Dead:
        txid = self._dice.randbytes(16)
        votes = await self._prepare(txid, plan, shards, identity, deadline, is_ordered=is_ordered)
        if any(vote.says(COMMITTED) for vote in votes.values()):
            # Whoever recovers has been quicker.
            branch = next(vote.result[2][3] for vote in votes.values() if vote.says(COMMITTED))
            return await self._commit(txid, plan, shards, branch, deadline)
        asked = list(votes)
        if len(asked) == len(shards) and all(vote.says(YES) for vote in votes.values()):
            outcome = outcome_of([votes[shard].result[2] for shard in shards])
            if outcome.commits:
                return await self._commit(txid, plan, shards, outcome.branch, deadline)
            await self._abort(txid, shards, deadline)
            raise _fault_error(plan, shards, outcome)
        if len(asked) == len(shards) and not any(_is_final(vote) for vote in votes.values()):
            raise OutcomeUnknown("not every shard has voted before the deadline; the others may still commit")
        await self._abort(txid, [shard for shard, vote in votes.items() if not _is_final(vote)], deadline)
        return self._earlier(plan, votes)

    async def _prepare(
        self,
        txid: bytes,
        plan: Plan,
        shards: Sequence[ShardId],
        identity: commands.Identity | None,
        deadline: float,
        *,
        is_ordered: bool,
    ) -> dict[ShardId, Vote]:
        """The votes of the shards that were asked: all, or when in order, up to the first no."""
        limits = [[shard, (self._router.clock_of(shard) or 0) + NOT_AFTER_MS] for shard in shards]
        whose = None
        if identity is not None:
            whose = [identity.session, identity.sequence, identity.acked_below]
            whose += [identity.since_ms, identity.body_hash, identity.principal]

        def ask(number: int, *, waits: bool) -> Promise[Vote]:
            shard, not_after_ms = limits[number]
            parts = plan.parts[ShardId(shard)].parts
            op = txn_commands.prepare(txid, not_after_ms, limits, parts, whose, waits=waits)
            command = commands.encode(None, (op,))
            if waits:
                return vote_of(self._router.write(ShardId(shard), command, True, deadline))
            return spawn(self._ask(ShardId(shard), command, deadline))

        if not is_ordered:
            asked = [ask(number, waits=False) for number in range(len(shards))]
            return dict(zip(shards, await gather(asked), strict=True))
        votes: dict[ShardId, Vote] = {}
        for number, shard in enumerate(shards):
            vote = votes[shard] = await ask(number, waits=True)
            # Where an earlier try is over, the others have its result too, or will.
            if not vote.says(YES) and not vote.says(EARLIER):
                break
        return votes

    async def _commit(
        self, txid: bytes, plan: Plan, shards: Sequence[ShardId], branch: bool, deadline: float
    ) -> Done:
        """It is decided, so from here on nothing else can come of it; who is not reached here is by
        `recovery`."""
        op = txn_commands.decide(txid, commit=True, branch=branch)
        votes = await self._tell(op, shards, deadline)
        if not all(vote.says(COMMITTED) for vote in votes):
            raise OutcomeUnknown("committed, but not every shard has answered before the deadline")
        self._finish(txid, shards)
        results = {shard: vote.result[2] for shard, vote in zip(shards, votes, strict=True)}
        if any(_lacks_values(result) for result in results.values()):
            raise OutcomeUnknown("committed, but what it has read was too large to be kept for a late answer")
        return self._done(plan, results, [vote.answer for vote in votes if vote.answer], replayed=False)

    async def _abort(self, txid: bytes, shards: Sequence[ShardId], deadline: float) -> None:
        """Let the keys go before the next try meets them."""
        await self._tell(txn_commands.decide(txid, commit=False), shards, deadline)

    async def _tell(self, op: commands.Op, shards: Sequence[ShardId], deadline: float) -> list[Vote]:
        command = commands.encode(None, (op,))
        return await gather([spawn(self._ask(shard, command, deadline)) for shard in shards])

    async def _ask(self, shard: ShardId, command: bytes, deadline: float) -> Vote:
        """Send a command again and again: its answer may get lost, and it may be applied any number of
        times."""
        is_doubtful, wait_s = False, RESEND_S
        while True:
            until = min(deadline, self._now() + wait_s)
            wait_s *= 2
            vote = await vote_of(self._router.write(shard, command, True, until))
            if vote.answer is not None:
                return vote
            is_doubtful = is_doubtful or vote.is_missing
            if until >= deadline or not (vote.is_missing or isinstance(vote.error, NoLeader)):
                return Vote(None, OutcomeUnknown(str(vote.error))) if is_doubtful else vote
            if self._now() < until:
                await self._sleep(RESEND_PAUSE_S)

    def _earlier(self, plan: Plan, votes: dict[ShardId, Vote]) -> Done | Dead:
        """What a dead try ends in: the result of an earlier one, the error it died of, or another try."""
        is_doubtful = any(vote.says(EARLIER) or vote.says(UNDER_WAY) for vote in votes.values())
        if all(vote.says(EARLIER) for vote in votes.values()) and len(votes) == len(plan.parts):
            results = {shard: vote.result[2] for shard, vote in votes.items()}
            return self._done(plan, results, [vote.answer for vote in votes.values() if vote.answer], True)
        for vote in () if is_doubtful else votes.values():
            if vote.answer is None:
                if isinstance(vote.error, NotApplied) and not isinstance(vote.error, TxnConflict):
                    raise vote.error
            elif vote.result[0] not in (OK, REFUSED, LOCKED):
                refusal = error_of(vote.result)
                assert refusal is not None, "a refusal without an error"
                raise refusal
        is_refused = any(vote.answer is not None and vote.result[0] == REFUSED for vote in votes.values())
        return Dead(is_doubtful, is_refused)

    @staticmethod
    def _done(plan: Plan, found: dict[ShardId, list[Any]], answers: Sequence[Answer], replayed: bool) -> Done:
        succeeded = bool(next(iter(found.values()))[3])
        results: list[Any] = [None] * plan.counts[succeeded]
        for shard, result in found.items():
            for position, each in zip(plan.parts[shard].positions[succeeded], result[2], strict=True):
                results[position] = each
        clock_ms = min(answer.clock_ms for answer in answers)
        revisions = {shard: found[shard][1] for shard in sorted(found)}
        return Done(succeeded, results, revisions, clock_ms, replayed)

    # ---- the end ---------------------------------------------------------------------------------

    def _finish(self, txid: bytes, shards: Iterable[ShardId]) -> None:
        """All shards have carried it out: their records may go. Nobody waits for this."""
        for shard in shards:
            self._finished.setdefault(shard, []).append(txid)
        if not self._is_finish_due:
            self._is_finish_due = True
            self._later(FINISH_EVERY_S, self._send_finished)

    def _send_finished(self) -> None:
        self._is_finish_due = False
        finished, self._finished = self._finished, {}
        deadline = self._now() + FINISH_DEADLINE_S
        for shard, txids in finished.items():
            for first in range(0, len(txids), FINISH_MAX):
                op = txn_commands.finish(txids[first : first + FINISH_MAX])
                self._router.write(shard, commands.encode(None, (op,)), True, deadline)

    def _sleep(self, delay_s: float) -> Promise[None]:
        promise: Promise[None] = Promise()
        self._later(delay_s, promise.resolve, None)
        return promise


def _is_final(vote: Vote) -> bool:
    """Whether the shard will never vote yes: it said so, or was never asked and never will be."""
    return not vote.is_missing and not vote.says(YES)


def _lacks_values(result: list[Any]) -> bool:
    return any(
        each[0] == OK and len(each) == 2 and each[1] is not None and each[1][0] is None for each in result[2]
    )


def _fault_error(plan: Plan, shards: Sequence[ShardId], outcome: Outcome) -> KvError:
    assert outcome.fault is not None, "aborted for no reason"
    position, (index, result) = outcome.fault
    error = error_of(result)
    assert error is not None, "a fault without an error"
    place = plan.parts[shards[position]].positions[outcome.branch][index]
    error.fields |= {"op": place, "succeeded": outcome.branch}
    return error


def vote_of(written: Promise[Answer]) -> Promise[Vote]:
    promise: Promise[Vote] = Promise()

    def settled(done: Promise[Answer]) -> None:
        answer = None if done.error is not None else done.result()
        promise.resolve(Vote(answer, done.error))

    written.on_done(settled)
    return promise
