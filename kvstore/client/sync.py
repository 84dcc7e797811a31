"""The blocking client, on http.client. Threads may share it; it needs no event loop and starts fast."""

from __future__ import annotations

import http.client
import os
import random
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from kvstore.client import operations
from kvstore.client.batch import Batch, Part, divide
from kvstore.client.exchange import Event, Failure, Fault, Reply, Request, Send, Sleep
from kvstore.client.plan import Call, Core, Plan, execute, prepare
from kvstore.client.results import DeleteResult, IncrResult, Item, PutResult
from kvstore.client.routes import Routes
from kvstore.client.session import Sessions
from kvstore.errors import KvError, Unavailable

T = TypeVar("T")

CONNECT_S_MAX = 1.0
IDLE_CONNECTIONS_MAX = 8
"""Kept per node; more may be in use at a time."""
IDLE_S_MAX = 60.0
"""A connection idle for longer is not used again: the server closes them after 75 s."""
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
        self._pool = _Pool()
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
        self._pool = _Pool()
        self._lock = threading.Lock()
        self._process = os.getpid()


def _mint() -> str:
    return os.urandom(16).hex()


def _event(reply: Reply | None = None, failure: Failure | None = None) -> Event:
    return Event(time.monotonic(), random.random(), reply, failure)


class _Connection(http.client.HTTPConnection):
    idle_since = 0.0


class _Pool:
    """Kept-alive connections per node. One that failed or was left in the middle is never kept."""

    def __init__(self) -> None:
        self._idle: dict[str, list[_Connection]] = {}
        self._lock = threading.Lock()
        self.is_closed = False

    def close(self) -> None:
        with self._lock:
            self.is_closed = True
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def exchange(self, send: Send) -> Reply | Failure:
        deadline = time.monotonic() + send.timeout_s
        if self.is_closed:
            return Failure(Fault.NOT_SENT, "the client is closed")
        while True:
            connection = self._take(send.address)
            is_reused = connection is not None
            if connection is None:
                try:
                    connection = _connect(send.address, min(CONNECT_S_MAX, send.timeout_s))
                except OSError as error:
                    return Failure(Fault.NOT_SENT, _told(error))
            try:
                reply = _exchange(connection, send.request, deadline)
            except TimeoutError:
                connection.close()
                return Failure(Fault.TIMED_OUT, f"after {send.timeout_s:.3g} s")
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if is_reused and isinstance(error, ConnectionError):
                    # Most likely closed by the server while it was idle. Every request may be repeated.
                    continue
                return Failure(Fault.LOST, _told(error))
            except BaseException:
                connection.close()
                raise
            break
        self._give_back(send.address, connection)
        return reply

    def _take(self, address: str) -> _Connection | None:
        oldest = time.monotonic() - IDLE_S_MAX
        while True:
            with self._lock:
                idle = self._idle.get(address)
                connection = idle.pop() if idle else None
            if connection is None:
                return None
            if connection.idle_since >= oldest and not _is_readable(connection):
                return connection
            connection.close()

    def _give_back(self, address: str, connection: _Connection) -> None:
        if connection.sock is None:
            return
        connection.idle_since = time.monotonic()
        with self._lock:
            idle = self._idle.setdefault(address, [])
            if not self.is_closed and len(idle) < IDLE_CONNECTIONS_MAX:
                idle.append(connection)
                return
        connection.close()


def _connect(address: str, timeout_s: float) -> _Connection:
    host, _, port = address.rpartition(":")
    connection = _Connection(host.strip("[]"), int(port), timeout=timeout_s)
    connection.connect()
    return connection


def _is_readable(connection: _Connection) -> bool:
    """An idle connection with something to read was closed by the server, or is out of step."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _exchange(connection: _Connection, request: Request, deadline: float) -> Reply:
    _allow(connection, deadline)
    connection.putrequest(request.method, request.target, skip_accept_encoding=True)
    for name, value in request.headers.items():
        connection.putheader(name, value)
    if request.body or request.method in ("PUT", "POST"):
        connection.putheader("Content-Length", str(len(request.body)))
    connection.endheaders(request.body or None)
    response = connection.getresponse()
    pieces = []
    while not response.isclosed():
        _allow(connection, deadline)
        piece = response.read1(1 << 20)
        if not piece:
            break
        pieces.append(piece)
    body = b"".join(pieces)
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    response.close()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, headers, body)


def _allow(connection: _Connection, deadline: float) -> None:
    """Let the next socket call wait until the deadline. The socket is gone once the answer is complete."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    if connection.sock is not None:
        connection.sock.settimeout(left_s)


def _told(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    text = getattr(error, "strerror", None) or str(error)
    return str(text) or type(error).__name__
