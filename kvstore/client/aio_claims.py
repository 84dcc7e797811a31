"""Leases, locks and offices of the asyncio client, renewed by a task while their block runs."""

from __future__ import annotations

import asyncio
from types import TracebackType

from kvstore.client import claims
from kvstore.client.aio_driver import Driver, event
from kvstore.client.claims import Claim, Claimed, ClaimTerms, Granted, Queue, Taking
from kvstore.client.clock import claim_s
from kvstore.client.plan import execute
from kvstore.errors import KvError


class Renewals:
    """Keeps one claim, in a task that ends with its owner's block."""

    def __init__(self, driver: Driver, claim: Claim, lost: asyncio.Event) -> None:
        self._driver, self._claim, self._lost = driver, claim, lost
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        # Not of a TaskGroup: that would wrap whatever the block raises. `stop` waits for it instead.
        self._task = asyncio.get_running_loop().create_task(self._run(), name="kvstore-renewals")

    async def _run(self) -> None:
        try:
            await self._driver.drive(self._claim.keep(self._driver.core))
        except KvError as error:
            self._claim.end(error)
        if self._claim.why_lost is not None:
            self._lost.set()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None


class Lease:
    """A lease: keys that are put with `lease=lease.id` go when it ends. Made by `kv.grant(ttl)`.

        async with await kv.grant(10) as lease:      # renewed while the block runs, revoked at its end
            await kv.put("workers/7", "here", lease=lease.id)

    Outside of a block nothing renews it but `keep_alive`. Leaving a block whose lease was lost raises
    LeaseNotFound.
    """

    def __init__(self, driver: Driver, granted: Granted, claim: Claim) -> None:
        self.id = granted.id
        self.ttl = granted.ttl_s
        """Seconds that a renewal lasts."""
        self.lost = asyncio.Event()
        """Set, while the block runs, when the lease has ended or cannot be known to last."""
        self._driver = driver
        self._claim = claim
        self._renewals = Renewals(driver, claim, self.lost)

    @property
    def remaining(self) -> float:
        """Seconds for which it surely lasts, by this machine's clock."""
        return self._claim.remaining_s

    async def keep_alive(self, *, timeout: float | None = None) -> float:  # noqa: ASYNC109 - as all calls
        """Renew, and return for how long it surely lasts. Raises LeaseNotFound."""
        limit_s = self._driver.limit(timeout)
        return await self._driver.drive(self._claim.renew(self._driver.core, limit_s, event()))

    async def revoke(self, *, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as all calls
        """End it and delete its keys. False if it had ended before."""
        self._claim.end()
        return await self._driver.call(claims.revoke(self.id), timeout)

    async def __aenter__(self) -> Lease:
        self._renewals.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._renewals.stop()
        is_lost = self._claim.is_lost
        if is_lost:
            self.lost.set()
        await _give_back(self._driver, self._claim, claims.revoke(self.id))
        if is_lost and error is None:
            raise claims.lost(self._claim, self.id, "lease")


class Held:
    """A lock or an office that is held: what `async with kv.lock(...)` and `kv.elect(...)` give."""

    def __init__(self, driver: Driver, queue: Queue, claimed: Claimed, claim: Claim, name: str) -> None:
        self.fence = claimed.fence
        """Greater than that of every earlier holder. What the lock protects should refuse lower ones."""
        self.token = claimed.token
        self.lost = asyncio.Event()
        """Set when it is held no more, or cannot be known to be: renewals failed for the whole TTL."""
        self._driver, self._queue, self._claim, self._name = driver, queue, claim, name
        self._renewals = Renewals(driver, claim, self.lost)

    @property
    def remaining(self) -> float:
        """Seconds for which it is surely held, by this machine's clock."""
        return self._claim.remaining_s

    @property
    def is_held(self) -> bool:
        """Whether it is surely held now. Up to date even where a stopped process has just gone on and
        `lost` could not be set yet."""
        return self._claim.remaining_s > 0

    def check(self) -> None:
        """Raise LockLost unless it is surely held now."""
        if not self.is_held:
            raise claims.lost(self._claim, self._name, self._queue.what)

    async def __aenter__(self) -> Held:
        self._renewals.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._renewals.stop()
        is_lost = self._claim.is_lost
        if is_lost:
            self.lost.set()
        await _give_back(self._driver, self._claim, self._queue.release(self.token))
        if is_lost and error is None:
            raise claims.lost(self._claim, self._name, self._queue.what)


async def acquire(driver: Driver, queue: Queue, terms: ClaimTerms, name: str) -> Held:
    taking = Taking(driver.core, queue, terms, claim_s)
    try:
        claimed, claim = await driver.drive(taking.acquire(event()))
    except BaseException:
        if taking.is_open:
            driver.in_background(taking.give_up(event()))
        raise
    return Held(driver, queue, claimed, claim, name)


async def grant(driver: Driver, ttl: float, lease: str | None, timeout_s: float | None) -> Lease:
    sent_at = claim_s()
    granted = await driver.call(claims.grant(ttl, lease), timeout_s)
    return Lease(driver, granted, claims.lease_claim(granted, sent_at, claim_s))


async def _give_back(driver: Driver, claim: Claim, release: claims.Release) -> None:
    """Goes on when whoever waits for it is cancelled. What cannot be given back runs out by itself."""
    claim.end(claim.why_lost)
    limit_s = min(claims.RELEASE_S_MAX, driver.timeout_s)
    await asyncio.shield(driver.in_background(execute(driver.core, release, limit_s, event())))
