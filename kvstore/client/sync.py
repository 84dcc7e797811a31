"""The blocking client, on http.client. Threads may share it; it needs no event loop and starts fast."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from kvstore.client import operations
from kvstore.client.batch import Batch, Part, divide
from kvstore.client.exchange import Event, Failure, Reply, Send, Sleep
from kvstore.client.plan import Call, Core, Plan, execute, prepare
from kvstore.client.results import DeleteResult, IncrResult, Item, PutResult
from kvstore.client.routes import Routes
from kvstore.client.session import Sessions
from kvstore.client.sync_http import Pool
from kvstore.errors import KvError, Unavailable

T = TypeVar("T")

THREADS_MAX = 16
"""Shards of one batch that are asked at the same time."""


class Client:
    """A blocking client of a cluster. Each call ends by `timeout` seconds: with its result, with a
    `NotApplied` error, or, for a write whose fate is not known, with `OutcomeUnknown`.

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
        self._timeout_s = timeout
        self._endpoints = endpoints
        self._core = Core(Routes(endpoints), Sessions(_mint), is_routing=direct, is_patient=patient)
        self._pool = Pool()
        self._lock = threading.Lock()
        """Held while a plan thinks, never while it waits: plans share the routes and sessions."""
        self._process = os.getpid()

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
        self._pool.close()

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
        call = operations.put(
            key,
            value,
            ttl=ttl,
            lease=lease,
            if_revision=if_revision,
            if_absent=if_absent,
            prev=prev,
            content_type=content_type,
        )
        return self._call(call, timeout)

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
        return self._call(call, timeout)

    def delete(
        self,
        key: str | bytes,
        *,
        if_revision: int | None = None,
        prev: bool = False,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete a key; `deleted` is 0 if it didn't exist. Raises like `put`."""
        return self._call(operations.delete(key, if_revision=if_revision, prev=prev), timeout)

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
        return self._call(operations.incr(key, by, min=min, max=max), timeout)

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
    ) -> Iterator[Item]:
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
        return self._scan(keys, limit, timeout)

    def _scan(self, keys: operations.Range, limit: int | None, timeout: float | None) -> Iterator[Item]:
        cursor, left = None, limit
        while left is None or left > 0:
            wanted = operations.PAGE_ITEMS if left is None else min(left, operations.PAGE_ITEMS)
            page = self._call(operations.scan_page(keys, cursor, wanted), timeout)
            yield from page.items
            cursor = page.next
            left = None if left is None else left - len(page.items)
            if cursor is None:
                return

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
        return self._call(
            operations.count(operations.key_range(prefix, start, end, consistency=consistency)), timeout
        )

    def delete_range(self, prefix: str | bytes, *, timeout: float | None = None) -> int:
        """Delete all keys with the prefix ("" for every key) and return how many there were."""
        return self._call(operations.delete_range(prefix), timeout)

    @contextmanager
    def batch(self, *, check: bool = True, timeout: float | None = None) -> Iterator[Batch]:
        """Send many independent operations at once, when the block ends.

        Each method of the batch returns a `Pending`, whose `result()` can be asked for afterwards.

        Args:
            check: raise the gravest error of an operation at the end of the block, so that none goes
                unnoticed. False leaves them to each operation's `result()`.
        """
        batch = Batch()
        yield batch
        self._send(batch, self._timeout_s if timeout is None else timeout)
        if check:
            batch.settle()

    def _send(self, batch: Batch, timeout_s: float) -> None:
        if not batch.operations:
            return
        deadline = time.monotonic() + timeout_s
        self._notice_fork()
        self._drive(prepare(self._core, timeout_s, _event()))
        chains = divide(batch.operations, self._core.routes)
        if len(chains) == 1:
            self._send_chain(chains[0], deadline)
            return
        from concurrent.futures import ThreadPoolExecutor  # only large batches pay for it

        with ThreadPoolExecutor(min(THREADS_MAX, len(chains)), "kvstore-batch") as threads:
            list(threads.map(lambda chain: self._send_chain(chain, deadline), chains))

    def _send_chain(self, chain: list[Part], deadline: float) -> None:
        for part in chain:
            try:
                part.deliver(self._call(part.call(), max(0.0, deadline - time.monotonic())))
            except KvError as error:
                part.fail(error)

    # The cluster.

    def fetch(self, method: str, target: str, body: Any = None, *, timeout: float | None = None) -> Any:
        """Ask for a document of the API (`/v1/cluster`, `/v1/shards`, …) and return it decoded."""
        return self._call(operations.fetch(method, target, body), timeout)

    def explain(self, key: str | bytes, *, timeout: float | None = None) -> Any:
        """Where a key lives: token, shard, leader, replicas."""
        return self._call(operations.explain(key), timeout)

    # Driving plans.

    def _call(self, call: Call[T], timeout: float | None) -> T:
        self._notice_fork()
        return self._drive(
            execute(self._core, call, self._timeout_s if timeout is None else timeout, _event())
        )

    def _drive(self, plan: Plan[T]) -> T:
        if self._pool.is_closed:
            plan.close()
            raise Unavailable("the client is closed")
        event: Event | None = None
        try:
            while True:
                try:
                    with self._lock:
                        effect = plan.send(event) if event is not None else next(plan)
                except StopIteration as end:
                    result: T = end.value
                    return result
                event = self._carry_out(effect)
        finally:
            with self._lock:
                plan.close()

    def _carry_out(self, effect: Send | Sleep) -> Event:
        if isinstance(effect, Sleep):
            time.sleep(effect.seconds)
            return _event()
        outcome = self._pool.exchange(effect)
        return _event(reply=outcome) if isinstance(outcome, Reply) else _event(failure=outcome)

    def _notice_fork(self) -> None:
        """A forked child must use neither its parent's connections nor its session: two processes with
        one session would take each other's writes for retries of their own."""
        if self._process == os.getpid():
            return
        self._core = Core(
            Routes(self._endpoints),
            Sessions(_mint),
            is_routing=self._core.is_routing,
            is_patient=self._core.is_patient,
        )
        self._pool = Pool()
        self._lock = threading.Lock()
        self._process = os.getpid()


def _mint() -> str:
    return os.urandom(16).hex()


def _event(reply: Reply | None = None, failure: Failure | None = None) -> Event:
    return Event(time.monotonic(), random.random(), reply, failure)
