"""The blocking client, on http.client. Threads may share it; it needs no event loop and starts fast.

What a program of one call doesn't need is imported where it is used: a third of the time to start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from kvstore.client import codec, operations
from kvstore.client.plan import Call, prepare
from kvstore.client.results import DeleteResult, IncrResult, Item, Leader, LeaseInfo, PutResult
from kvstore.client.sync_driver import Driver, event
from kvstore.errors import KvError

if TYPE_CHECKING:
    from kvstore.client.batch import Batch, Part
    from kvstore.client.op import Operation
    from kvstore.client.sync_claims import Held, Lease
    from kvstore.client.sync_coalesce import Coalescer
    from kvstore.client.sync_txn import Transaction
    from kvstore.client.sync_watch import Observed, Watch
    from kvstore.client.transactions import Committed, Compare

T = TypeVar("T")

TTL_S_DEFAULT = 10.0
THREADS_MAX = 16
"""Shards of one batch that are asked at the same time."""


def _op() -> ModuleType:
    from kvstore.client import op

    return op


class Scan(Iterator[Item]):
    """Items in key order, fetched page by page."""

    def __init__(
        self, driver: Driver, keys: operations.Range, limit: int | None, timeout_s: float | None
    ) -> None:
        self._driver, self._keys, self._timeout_s = driver, keys, timeout_s
        self._pages = operations.Pages(limit)

    @property
    def pos(self) -> str | None:
        """Position of the snapshot, known once the first item or the end has come: a watch with
        `from_=scan.pos` yields what has changed since."""
        return self._pages.pos

    def __iter__(self) -> Scan:
        return self

    def __next__(self) -> Item:
        while not self._pages.ready:
            wanted = self._pages.next_count
            if wanted == 0:
                raise StopIteration
            call = operations.scan_page(self._keys, self._pages.cursor, wanted)
            self._pages.take(self._driver.call(call, self._timeout_s))
        return self._pages.ready.popleft()


class Client:
    """A blocking client of a cluster. Each call ends by `timeout` seconds: with its result, with a
    `NotApplied` error, or, for a write whose fate is not known, with `OutcomeUnknown`. Single calls of
    threads that are made while others are under way to the same shard go in one request.

    Args:
        endpoints: "host:port" of some nodes; the others are learnt from them.
        timeout: deadline of a call in seconds, where the call doesn't name its own.
        direct: ask shard leaders directly. False is for programs of a call or two: it saves fetching
            the routes, and whichever node is asked passes the request on.
        patient: go on until the deadline while every endpoint refuses connections.
    """

    def __init__(
        self, *endpoints: str, timeout: float = 5.0, direct: bool = True, patient: bool = True
    ) -> None:
        self._driver = Driver(endpoints, timeout, is_routing=direct, is_patient=patient)
        self._coalescer: Coalescer | None = None
        if direct:
            from kvstore.client.sync_coalesce import Coalescer

            self._coalescer = Coalescer(self._driver)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Calls in other threads fail."""
        self._driver.close()

    def _call(self, call: Call[T], operation: Callable[[], Operation[T]], timeout_s: float | None) -> T:
        if self._coalescer is None:
            return self._driver.call(call, timeout_s)
        return self._coalescer.call(call, operation, timeout_s)

    # Single keys.

    def put(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        ttl: float | None = None,
        lease: str | None = None,
        if_revision: int | None = None,
        if_absent: bool = False,
        prev: bool = False,
        content_type: str | None = None,
        timeout: float | None = None,
    ) -> PutResult:
        """Write a value.

        Args:
            ttl: seconds until the key expires.
            if_revision: write only if this is the key's revision (0: it must not exist).
            if_absent: write only if the key doesn't exist.
            prev: give back what the key held before.

        Raises:
            Conflict: the condition does not hold; `fields["current_revision"]` says what is there.
            OutcomeUnknown: the deadline came first; the value may have been written.
        """
        options: dict[str, Any] = {
            "ttl": ttl,
            "lease": lease,
            "if_revision": if_revision,
            "if_absent": if_absent,
            "prev": prev,
            "content_type": content_type,
        }
        call = operations.put(key, value, **options)
        return self._call(call, lambda: _op().put(key, value, **options), timeout)

    def get(
        self,
        key: str | bytes,
        *,
        revision: int | None = None,
        consistency: str = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Item | None:
        """Read a key; None if it doesn't exist.

        Args:
            revision: read the value as of this shard revision. Raises Compacted where it is gone.
            consistency: "linearizable", "lease" (leader's lease) or "stale" (any replica).
            max_staleness: seconds a stale answer may lag behind.
        """
        call = operations.get(key, revision=revision, consistency=consistency, max_staleness_s=max_staleness)
        if consistency != "linearizable":
            return self._driver.call(call, timeout)
        return self._call(call, lambda: _op().get(key, revision=revision), timeout)

    def delete(
        self,
        key: str | bytes,
        *,
        if_revision: int | None = None,
        prev: bool = False,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete a key; `deleted` is 0 if it didn't exist. Raises like `put`."""
        call = operations.delete(key, if_revision=if_revision, prev=prev)
        return self._call(call, lambda: _op().delete(key, if_revision=if_revision, prev=prev), timeout)

    def incr(
        self,
        key: str | bytes,
        by: int = 1,
        *,
        min: int | None = None,
        max: int | None = None,
        timeout: float | None = None,
    ) -> IncrResult:
        """Add to a decimal number; an absent key counts as 0.

        Raises:
            NotANumber: the key holds something else.
            OutOfRange: the sum would leave [min, max] or 64 bits; nothing is changed.
        """
        call = operations.incr(key, by, min=min, max=max)
        return self._call(call, lambda: _op().incr(key, by, min=min, max=max), timeout)

    # Many keys.

    def scan(
        self,
        *,
        prefix: str | bytes | None = None,
        start: str | bytes | None = None,
        end: str | bytes | None = None,
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
        consistency: str = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Scan:
        """Yield items in key order, from one snapshot per shard. `timeout` is for each page.

        Args:
            prefix: only keys that begin with it; or `start` <= key < `end`.
            limit: stop after so many items.
            keys_only: leave the values empty.
        """
        keys = operations.key_range(
            prefix,
            start,
            end,
            reverse=reverse,
            keys_only=keys_only,
            consistency=consistency,
            max_staleness_s=max_staleness,
        )
        return Scan(self._driver, keys, limit, timeout)

    def count(
        self,
        *,
        prefix: str | bytes | None = None,
        start: str | bytes | None = None,
        end: str | bytes | None = None,
        consistency: str = "linearizable",
        timeout: float | None = None,
    ) -> int:
        """Count the keys that `scan` would yield."""
        return self._driver.call(
            operations.count(operations.key_range(prefix, start, end, consistency=consistency)), timeout
        )

    def delete_range(self, prefix: str | bytes, *, timeout: float | None = None) -> int:
        """Delete all keys with the prefix ("" for every key) and return how many there were."""
        return self._driver.call(operations.delete_range(prefix), timeout)

    @contextmanager
    def batch(self, *, check: bool = True, timeout: float | None = None) -> Iterator[Batch]:
        """Send many independent operations at once, when the block ends.

        Each method of the batch returns a `Pending`, whose `result()` can be asked for afterwards.

        Args:
            check: raise the gravest error of an operation at the end of the block, so that none goes
                unnoticed. False leaves them to each operation's `result()`.
        """
        from kvstore.client.batch import Batch

        batch = Batch()
        yield batch
        self._send(batch, self._driver.limit(timeout))
        if check:
            batch.settle()

    def _send(self, batch: Batch, timeout_s: float) -> None:
        if not batch.operations:
            return
        from kvstore.client.batch import divide

        deadline = time.monotonic() + timeout_s
        self._driver.notice_fork()
        self._driver.drive(prepare(self._driver.core, timeout_s, event()))
        chains = divide(batch.operations, self._driver.core.routes)
        if len(chains) == 1:
            self._send_chain(chains[0], deadline)
            return
        from concurrent.futures import ThreadPoolExecutor  # only large batches pay for it

        with ThreadPoolExecutor(min(THREADS_MAX, len(chains)), "kvstore-batch") as threads:
            list(threads.map(lambda chain: self._send_chain(chain, deadline), chains))

    def _send_chain(self, chain: list[Part], deadline: float) -> None:
        for part in chain:
            try:
                part.deliver(self._driver.call(part.call(), max(0.0, deadline - time.monotonic())))
            except KvError as error:
                part.fail(error)

    # The cluster.

    def fetch(self, method: str, target: str, body: Any = None, *, timeout: float | None = None) -> Any:
        """Ask for a document of the API (`/v1/cluster`, `/v1/shards`, …) and return it decoded."""
        return self._driver.call(operations.fetch(method, target, body), timeout)

    def explain(self, key: str | bytes, *, timeout: float | None = None) -> Any:
        """Where a key lives: token, shard, leader, replicas."""
        return self._driver.call(operations.explain(key), timeout)

    # Changes.

    def watch(
        self,
        *,
        key: str | bytes | None = None,
        prefix: str | bytes | None = None,
        from_: str | None = None,
        snapshot: bool = False,
        prev: bool = False,
        progress: bool = False,
        resync: bool = True,
        timeout: float | None = None,
        outage: float | None = None,
    ) -> Watch:
        """Follow the changes of a key, or of all keys with a prefix ("" for every key).

        Args:
            from_: go on after this position: a change's or a scan's `pos`. Without it: from now.
            snapshot: begin with a Resynced that has everything that is there.
            prev: give back what each key held before.
            progress: yield Progress too, about every 10 s without changes.
            resync: where history is gone, yield a Resynced with everything that is there. False: raise
                Compacted.
            timeout: end the iteration after so many seconds without a change.
            outage: raise Unavailable after so many seconds without contact. None: go on for ever, once
                the watch has begun.
        """
        from kvstore.client.sync_watch import Watch
        from kvstore.client.watching import Terms, watched

        what = watched(key, prefix, prev=prev, from_=from_, snapshot=snapshot)
        terms = Terms(self._driver.timeout_s, from_, snapshot, resync, outage)
        return Watch(self._driver, what, terms, timeout_s=timeout, has_progress=progress)

    def wait_for(
        self, key: str | bytes, *, revision: int = 0, wait: float = 30.0, timeout: float | None = None
    ) -> Item | None:
        """Read the key as soon as its revision is not `revision` (0: as soon as it exists). None if it is
        gone. Raises ReadTimeout if nothing has changed within `wait` seconds."""
        return self._driver.call(operations.wait_for(key, revision, wait), wait + self._driver.limit(timeout))

    # Transactions.

    def commit(
        self,
        compares: Sequence[Compare],
        then: Sequence[Operation[Any]] = (),
        otherwise: Sequence[Operation[Any]] = (),
        *,
        timeout: float | None = None,
    ) -> Committed:
        """Do `then` if all compares hold, else `otherwise`; all of it at one moment, over all shards.

            kv.commit([when("a").absent()], then=[op.put("a", "1")], otherwise=[op.get("a")])

        Raises:
            TxnConflict: others held the keys until the deadline; nothing was done.
            NotANumber, OutOfRange, …: an operation could not be done, and therefore none was.
        """
        from kvstore.client import transactions

        return self._driver.call(transactions.commit(compares, then, otherwise), timeout)

    def txn(self, *, timeout: float | None = None) -> Transaction:
        """An optimistic transaction, committed when its block ends without an exception.

            with kv.txn() as t:
                item = t.get("stock")
                t.put("stock", str(int(item.value) - 1))

        The end of the block raises Conflict, and nothing is written, if something that was read has
        changed meanwhile; see `transact`. `timeout` is for the whole block.
        """
        from kvstore.client.sync_txn import Transaction

        return Transaction(self._driver, time.monotonic() + self._driver.limit(timeout))

    def transact(self, body: Callable[[Transaction], T], *, timeout: float | None = None) -> T:
        """Run `body` in a transaction and return its result. It is run again after each conflict, with
        growing pauses; it should do nothing but read and write through the transaction it is given.

        Raises:
            Conflict: the deadline has come, and every run has met a conflict.
        """
        from kvstore.client import sync_txn

        return sync_txn.transact(self._driver, body, timeout)

    def get_all(self, *keys: str | bytes, timeout: float | None = None) -> list[Item | None]:
        """Read several keys at one moment, over shards."""
        from kvstore.client import transactions

        if not keys:
            return []
        return self._driver.call(transactions.read_all([codec.key_bytes(key) for key in keys]), timeout)

    # Leases.

    def grant(self, ttl: float, id: str | None = None, *, timeout: float | None = None) -> Lease:
        """Make a lease that lasts `ttl` seconds unless it is renewed."""
        from kvstore.client import sync_claims

        return sync_claims.grant(self._driver, ttl, id, timeout)

    def lease_info(self, id: str, *, timeout: float | None = None) -> LeaseInfo:
        """What the store knows about a lease. Raises LeaseNotFound."""
        from kvstore.client import claims

        return self._driver.call(claims.lease_info(id), timeout)

    def leases(self, *, timeout: float | None = None) -> list[LeaseInfo]:
        """All leases, without their keys."""
        from kvstore.client import claims

        found, cursor = list[LeaseInfo](), None
        while True:
            page = self._driver.call(claims.list_leases(cursor), timeout)
            found += page.leases
            cursor = page.next
            if cursor is None:
                return found

    def keep_alive(self, id: str, *, timeout: float | None = None) -> float:
        """Renew a lease, and return for how many seconds it now lasts. Raises LeaseNotFound."""
        from kvstore.client import claims

        return self._driver.call(claims.keep_lease(id), timeout)

    def revoke(self, id: str, *, timeout: float | None = None) -> bool:
        """End a lease and delete its keys. False if there was none."""
        from kvstore.client import claims

        return self._driver.call(claims.revoke(id), timeout)

    # Locks and elections.

    @contextmanager
    def lock(
        self,
        name: str,
        *,
        ttl: float = TTL_S_DEFAULT,
        wait: float | None = None,
        timeout: float | None = None,
    ) -> Iterator[Held]:
        """Hold a lock while the block runs. Waiters get it in the order of their coming.

            with kv.lock("jobs", ttl=10) as held:
                store(result, fence=held.fence)          # refuse fences lower than one seen
                if held.lost.is_set(): ...

        Args:
            ttl: seconds after which others get it if this program dies. It is renewed every third of it.
            wait: seconds to queue; by default `timeout`. 0: take it now or not at all.

        Raises:
            Locked: it was not granted within `wait`.
            LockLost: at the end of the block, if it was not held all the time.
        """
        from kvstore.client import sync_claims
        from kvstore.client.claims import ClaimTerms, Queue

        limit_s = self._driver.limit(timeout)
        terms = ClaimTerms(ttl, limit_s if wait is None else wait, limit_s)
        with sync_claims.acquire(self._driver, Queue.lock(name), terms, name) as held:
            yield held

    @contextmanager
    def elect(
        self,
        name: str,
        value: str | bytes,
        *,
        ttl: float = TTL_S_DEFAULT,
        wait: float | None = None,
        timeout: float | None = None,
    ) -> Iterator[Held]:
        """Stand for election, and lead while the block runs. Others see `value` (`leader`, `observe`).

        Args: as for `lock`, but that it waits for ever unless `wait` is given.
        """
        from kvstore.client import sync_claims
        from kvstore.client.claims import ClaimTerms, Queue

        terms = ClaimTerms(ttl, math.inf if wait is None else wait, self._driver.limit(timeout))
        with sync_claims.acquire(self._driver, Queue.election(name, value), terms, name) as held:
            yield held

    def leader(self, name: str, *, timeout: float | None = None) -> Leader | None:
        """Who is elected; None if nobody is."""
        from kvstore.client.claims import Queue

        return self._driver.call(Queue.election(name).leader(), timeout)

    def observe(self, name: str, *, timeout: float | None = None) -> Observed:
        """Yield who is elected, now and after every change; None while nobody is."""
        from kvstore.client.claims import Queue
        from kvstore.client.sync_watch import Observed

        return Observed(self.watch(key=Queue.election(name).key, snapshot=True, timeout=timeout))
