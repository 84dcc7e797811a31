"""Leases, locks and offices of the blocking client, renewed by a thread while their block runs."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType

from kvstore.client import claims
from kvstore.client.claims import Claim, Claimed, ClaimTerms, Granted, Queue, Taking
from kvstore.client.clock import claim_s
from kvstore.client.sync_driver import Driver, event
from kvstore.errors import KvError

STOP_S = 0.2


class Renewals:
    """Keeps one claim, in a daemon thread that ends with its owner's block."""

    def __init__(self, driver: Driver, claim: Claim, lost: threading.Event) -> None:
        self._driver, self._claim, self._lost = driver, claim, lost
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="kvstore-renewals", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._driver.drive(self._claim.keep(self._driver.core), self._stopped)
        except KvError as error:
            if not self._stopped.is_set():
                self._claim.end(error)
        if self._claim.why_lost is not None:
            self._lost.set()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            # It may be waiting for an answer. What it still brings changes nothing.
            self._thread.join(STOP_S)
            self._thread = None


class Lease:
    """A lease: keys that are put with `lease=lease.id` go when it ends. Made by `kv.grant(ttl)`.

        with kv.grant(10) as lease:      # renewed while the block runs, revoked at its end
            kv.put("workers/7", "here", lease=lease.id)

    Outside of a block nothing renews it but `keep_alive`. Leaving a block whose lease was lost raises
    LeaseNotFound.
    """

    def __init__(self, driver: Driver, granted: Granted, claim: Claim) -> None:
        self.id = granted.id
        self.ttl = granted.ttl_s
        """Seconds that a renewal lasts."""
        self.lost = threading.Event()
        """Set, while the block runs, when the lease has ended or cannot be known to last."""
        self._driver = driver
        self._claim = claim
        self._renewals = Renewals(driver, claim, self.lost)

    @property
    def remaining(self) -> float:
        """Seconds for which it surely lasts, by this machine's clock."""
        return self._claim.remaining_s

    def keep_alive(self, *, timeout: float | None = None) -> float:
        """Renew, and return for how long it surely lasts. Raises LeaseNotFound."""
        limit_s = self._driver.limit(timeout)
        return self._driver.drive(self._claim.renew(self._driver.core, limit_s, event()))

    def revoke(self, *, timeout: float | None = None) -> bool:
        """End it and delete its keys. False if it had ended before."""
        self._claim.end()
        return self._driver.call(claims.revoke(self.id), timeout)

    def __enter__(self) -> Lease:
        self._renewals.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._renewals.stop()
        is_lost = self._claim.is_lost
        if is_lost:
            self.lost.set()
        _give_back(self._driver, self._claim, claims.revoke(self.id))
        if is_lost and error is None:
            raise claims.lost(self._claim, self.id, "lease")


class Held:
    """A lock or an office that is held: what `with kv.lock(...)` and `kv.elect(...)` give."""

    def __init__(self, driver: Driver, queue: Queue, claimed: Claimed, claim: Claim, name: str) -> None:
        self.fence = claimed.fence
        """Greater than that of every earlier holder. What the lock protects should refuse lower ones."""
        self.token = claimed.token
        self.lost = threading.Event()
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

    def __enter__(self) -> Held:
        self._renewals.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._renewals.stop()
        is_lost = self._claim.is_lost
        if is_lost:
            self.lost.set()
        _give_back(self._driver, self._claim, self._queue.release(self.token))
        if is_lost and error is None:
            raise claims.lost(self._claim, self._name, self._queue.what)


def acquire(driver: Driver, queue: Queue, terms: ClaimTerms, name: str) -> Held:
    taking = Taking(driver.core, queue, terms, claim_s)
    try:
        claimed, claim = driver.drive(taking.acquire(event()))
    except BaseException:
        if taking.is_open:
            driver.in_background(taking.give_up(event()))
        raise
    return Held(driver, queue, claimed, claim, name)


def grant(driver: Driver, ttl: float, lease: str | None, timeout_s: float | None) -> Lease:
    sent_at = claim_s()
    granted = driver.call(claims.grant(ttl, lease), timeout_s)
    return Lease(driver, granted, claims.lease_claim(granted, sent_at, claim_s))


def _give_back(driver: Driver, claim: Claim, release: claims.Release) -> None:
    """What cannot be given back runs out by itself."""
    claim.end(claim.why_lost)
    with suppress(KvError):
        driver.call(release, min(claims.RELEASE_S_MAX, driver.timeout_s))
