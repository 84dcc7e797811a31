"""Leases as a node works with them: tying keys to them, renewing many at once, ending them.

A lease's home is the shard of the token of `_leases/ID`. To tie a key of another shard to it, that shard is
registered at home first; the put then names the grant and a not-after. Both rest on what was known before
home was asked: the not-after counts from a clock of the key's shard that was read before, so that it lies
at most `HORIZON_MS` behind the end of a grant that was alive then, however long this node sleeps between.

Renewals of one pass of the loop travel together, one query and at most one command for each shard, and
those that would move the deadline by little are answered with what is logged.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from kvstore.errors import KvError, NotApplied, Unavailable
from kvstore.node.calls import Answer, ReadAnswer
from kvstore.node.flow import Promise, gather, spawn
from kvstore.node.runtime import Runtime
from kvstore.store import commands, keys, lease_commands
from kvstore.store.leases import Lease
from kvstore.store.results import OK
from kvstore.types import ShardId

log = logging.getLogger(__name__)

PLACE: Final = b"_leases/"
"""What stands before a lease's id when its home is looked up. No key has this name."""
HORIZON_MS: Final = 10_000
KNOWN_S: Final = 2.0
"""How long what home said of a grant may be used again, unless it may end sooner: its not-after goes on
counting from then."""
PACE: Final = 0.9
"""How much slower than home's clock this node's may be."""
TICK_S: Final = 0.1
"""By how much the clock of an answer may be behind the one that home goes by."""
KNOWN_MAX: Final = 10_000
TIES_MAX: Final = 20
"""Refusals of one put: each one taught this node the clock or the grant, so that it hardly needs three."""
RENEWALS_PER_COMMAND: Final = 2_000
SLICE: Final = 100
"""Keys of a shard that whoever revokes deletes by itself; what is more goes at the drivers' pace."""
POLL_S: Final = 0.1


class LeaseRouter(Protocol):
    shard_of: Callable[[bytes], ShardId]

    def clock_of(self, shard: ShardId) -> int | None: ...

    def write(self, shard: ShardId, command: bytes, identified: bool, deadline: float) -> Promise[Answer]: ...

    def read(
        self,
        shard: ShardId,
        query: Sequence[object],
        consistency: str,
        deadline: float,
        max_staleness_s: float | None = None,
    ) -> Promise[ReadAnswer]: ...


class Renewed(NamedTuple):
    ttl_ms: int
    left_ms: int


class _Tie(NamedTuple):
    options: dict[str, Any]
    until: float


class _Part:
    """The ids of one keepalive request that live on one shard."""

    __slots__ = ("deadline", "done", "ids")

    def __init__(self, ids: list[bytes], deadline: float) -> None:
        self.ids = ids
        self.deadline = deadline
        self.done: Promise[list[Renewed | KvError | None]] = Promise()


class Leases:
    def __init__(self, router: LeaseRouter, runtime: Runtime) -> None:
        self._router = router
        self._runtime = runtime
        self._ties: OrderedDict[tuple[bytes, ShardId], _Tie] = OrderedDict()
        self._renewals: dict[ShardId, list[_Part]] = {}

    def home_of(self, lease_id: bytes) -> ShardId:
        return self._router.shard_of(PLACE + lease_id)

    # ---- ties ------------------------------------------------------------------------------------

    async def tie(
        self, lease_id: bytes, shard: ShardId, deadline: float, *, is_again: bool = False
    ) -> dict[str, Any]:
        """Options of a put that tie its key, which lives on `shard`, to the lease. `is_again`: a put with
        such options was refused.

        Raises: NotApplied, if home does not answer."""
        if self.home_of(lease_id) == shard:
            return {"lease": lease_id}
        known = self._ties.pop((lease_id, shard), None)
        now = self._runtime.now()
        if known is not None and known.until > now and not is_again:
            self._ties[lease_id, shard] = known
            return known.options
        try:
            options, left_s = await self._ask_home(lease_id, shard, deadline)
        except KvError as error:
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(f"the lease's home did not answer: {error}", retry_after=1) from error
        if options["lease_generation"]:
            # Or somebody could be told that it has ended, and then be let tie a key to it.
            self._ties[lease_id, shard] = _Tie(options, now + min(KNOWN_S, left_s * PACE))
            if len(self._ties) > KNOWN_MAX:
                self._ties.popitem(last=False)
        return options

    async def _ask_home(
        self, lease_id: bytes, shard: ShardId, deadline: float
    ) -> tuple[dict[str, Any], float]:
        """Options, and for how many seconds of home's clock the grant surely lives if nobody revokes it."""
        router, home = self._router, self.home_of(lease_id)
        clock_ms = router.clock_of(shard)
        if clock_ms is None:
            clock_ms = (await router.read(shard, ["clock"], "linearizable", deadline)).clock_ms
        answer = await router.read(home, ["lease", lease_id, shard], "linearizable", deadline)
        generation, left_s = 0, 0.0
        if answer.value is not None:
            generation, _, due_ms, is_registered = answer.value
            left_s = (due_ms - answer.clock_ms) / 1000 - TICK_S
            if not is_registered:
                op = lease_commands.attach(lease_id, generation, shard)
                written = await router.write(home, commands.encode(None, [op]), True, deadline)
                if written.result.results[0][0] != OK:
                    generation = 0
        until_ms = clock_ms + HORIZON_MS
        return {"lease": lease_id, "lease_generation": generation, "lease_until_ms": until_ms}, left_s

    # ---- renewals --------------------------------------------------------------------------------

    async def renew(self, lease_ids: Sequence[bytes], deadline: float) -> list[Renewed | KvError | None]:
        """For each lease how long it now lasts, None if there is none, or why that can't be told."""
        places: dict[ShardId, list[int]] = {}
        for index, lease_id in enumerate(lease_ids):
            places.setdefault(self.home_of(lease_id), []).append(index)
        parts = []
        for shard, indexes in places.items():
            part = _Part([lease_ids[index] for index in indexes], deadline)
            if not self._renewals:
                self._runtime.call_soon(self._send_renewals)
            self._renewals.setdefault(shard, []).append(part)
            parts.append(part.done)
        found: list[Renewed | KvError | None] = [None] * len(lease_ids)
        for indexes, answers in zip(places.values(), await gather(parts), strict=True):
            for index, answer in zip(indexes, answers, strict=True):
                found[index] = answer
        return found

    def _send_renewals(self) -> None:
        renewals, self._renewals = self._renewals, {}
        for shard, parts in renewals.items():
            spawn(self._renew_on(shard, parts))

    async def _renew_on(self, shard: ShardId, parts: list[_Part]) -> None:
        """Never fails: whoever waits is told instead."""
        wanted = list(dict.fromkeys(lease_id for part in parts for lease_id in part.ids))
        deadline = max(part.deadline for part in parts)
        known: dict[bytes, Renewed | KvError | None] = {}
        for first in range(0, len(wanted), RENEWALS_PER_COMMAND):
            some = wanted[first : first + RENEWALS_PER_COMMAND]
            try:
                await self._renew_some(shard, some, deadline, known)
            except KvError as error:
                known.update((lease_id, error) for lease_id in some if lease_id not in known)
        for part in parts:
            part.done.resolve([known[lease_id] for lease_id in part.ids])

    async def _renew_some(
        self,
        shard: ShardId,
        lease_ids: list[bytes],
        deadline: float,
        known: dict[bytes, Renewed | KvError | None],
    ) -> None:
        answer = await self._router.read(shard, ["leases", lease_ids], "linearizable", deadline)
        clock_ms = answer.clock_ms
        to_renew = []
        for lease_id, row in zip(lease_ids, answer.value, strict=True):
            if row is None:
                known[lease_id] = None
                continue
            lease = Lease(row[0], row[1], row[2], is_home_used=False, shard_count=0)
            if lease.is_worth_renewing(clock_ms):
                to_renew.append(lease_id)
            else:
                known[lease_id] = Renewed(lease.ttl_ms, lease.deadline_ms - clock_ms)
        if to_renew:
            command = commands.encode(None, [lease_commands.renew(to_renew)])
            written = await self._router.write(shard, command, True, deadline)
            rows = written.result.results[0][1]
            for lease_id, row in zip(to_renew, rows, strict=True):
                known[lease_id] = None if row is None else Renewed(*row)

    # ---- ends ------------------------------------------------------------------------------------

    async def finish(self, lease_id: bytes, generation: int, kind: int, deadline: float) -> list[ShardId]:
        """Have the keys of a grant deleted that has ended, and wait for it. Shards that have not done so
        by the deadline; what is left then is done all the same."""
        home = self.home_of(lease_id)
        shards = [ShardId(keys.HOME_SHARD)]
        try:
            shards = await self._open_shards(home, generation, deadline)
            grants = [[lease_id, generation, kind]]
            await gather([spawn(self._tell(home, shard, grants, deadline)) for shard in shards])
            while shards and self._runtime.now() + POLL_S < deadline:
                shards = await self._open_shards(home, generation, deadline)
                if shards:
                    await self._sleep(POLL_S)
        except NotApplied as error:
            log.info("the end of a lease is not known to be complete: %s", error)
        return [home if shard == keys.HOME_SHARD else shard for shard in shards]

    async def _open_shards(self, home: ShardId, generation: int, deadline: float) -> list[ShardId]:
        query = ["lease_shards", generation]
        shards: list[ShardId] = (await self._router.read(home, query, "linearizable", deadline)).value
        return shards

    async def _tell(self, home: ShardId, shard: ShardId, grants: list[list[Any]], deadline: float) -> None:
        """One slice; what it leaves, or its failure, is the drivers' business."""
        try:
            await tell_shard(self._router, home, shard, grants, SLICE, deadline)
        except KvError:
            return

    def _sleep(self, delay_s: float) -> Promise[None]:
        promise: Promise[None] = Promise()
        self._runtime.call_later(delay_s, promise.resolve, None)
        return promise


async def tell_shard(
    router: LeaseRouter, home: ShardId, shard: ShardId, grants: list[list[Any]], limit: int, deadline: float
) -> tuple[int, int]:
    """Tell a shard, as registered at `home`, that grants `[id, generation, kind]` have ended, and home which
    of them the shard has finished. How many keys went, and how many grants are finished there.

    Raises: KvError."""
    where = home if shard == keys.HOME_SHARD else shard
    command = commands.encode(None, [lease_commands.ended(grants, limit)])
    answer = await router.write(where, command, True, deadline)
    _, _, deleted, finished = answer.result.results[0]
    done = [[grant[1], int(shard)] for grant, is_done in zip(grants, finished, strict=True) if is_done]
    if done:
        command = commands.encode(None, [lease_commands.shard_done(done)])
        await router.write(home, command, True, deadline)
    return deleted, len(done)
