"""The load behind `bench`: one connection is one protocol object with one request in flight.

It stands on aiohttp's response parser without its client, which would cost several times the request: a
load generator that is slower than the server measures itself. Requests carry no identity, and nothing is
retried: an error is an error. Time is not the loop's own: uvloop's goes in steps of a millisecond.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, cast

import aiohttp
import msgpack
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser

from kvstore.cli.failures import Failure
from kvstore.cli.histogram import Histogram
from kvstore.cli.workload import Load, Measured
from kvstore.client import codec
from kvstore.client.aio import AsyncClient
from kvstore.client.routes import Routes, address_of
from kvstore.client.sync import Client
from kvstore.errors import InvalidArgument

KEY_FORMAT = "bench/%09d"
TIMER_STEP_S = 0.002
"""uvloop's timers may come so much early."""
PRELOAD_COUNT = 500
RECONNECT_S = 0.1
STRAGGLER_S = 1.0
"""After the last request was sent, answers are waited for the timeout and this much longer."""


def run(endpoints: list[str], load: Load) -> Measured:
    """Put the load on the cluster. Raises KvError if the keys cannot be written first."""
    try:
        addresses = [address_of(each) for each in endpoints]
    except InvalidArgument as error:
        raise Failure(str(error), 2) from error
    if load.operation in ("get", "mixed"):
        _preload(endpoints, load)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_measure(addresses, load))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _preload(endpoints: list[str], load: Load) -> None:
    value = random.Random(load.seed).randbytes(load.value_bytes)
    with Client(*endpoints, timeout=max(10.0, load.timeout_s)) as client:
        for first in range(0, load.key_count, PRELOAD_COUNT):
            with client.batch() as batch:
                for number in range(first, min(first + PRELOAD_COUNT, load.key_count)):
                    batch.put(KEY_FORMAT % number, value)


async def _measure(addresses: list[str], load: Load) -> Measured:
    by_address = await _keys_by_address(addresses, load) if load.is_direct else {}
    targets = list(by_address) or addresses
    tally = _Tally(load)
    dice = random.Random(load.seed)
    connections = []
    for number in range(load.connections):
        address = targets[number % len(targets)]
        numbers = by_address.get(address, range(load.key_count))
        requests = _requests(address, load, random.Random(dice.random()), numbers)
        connections.append(_Connection(address, requests, tally))
    await asyncio.gather(*(connection.open() for connection in connections))
    tally.begin(monotonic())
    for connection in connections:
        connection.send_next()
    await _until_done(tally, load)
    seconds = (tally.ended_at or monotonic()) - tally.begun_at
    for connection in connections:
        connection.close()
    return Measured(tally.latencies, seconds, tally.operations, tally.errors)


async def _until_done(tally: _Tally, load: Load) -> None:
    if load.duration_s is not None:
        await asyncio.sleep(load.duration_s + TIMER_STEP_S)
        tally.stop(monotonic())
        return
    last_seen, idle_since = -1, monotonic()
    while not tally.is_complete:
        await asyncio.sleep(0.01)
        now = monotonic()
        if tally.answered != last_seen:
            last_seen, idle_since = tally.answered, now
        if now - idle_since > load.timeout_s + STRAGGLER_S:
            break
    tally.stop(tally.last_at or monotonic())


async def _keys_by_address(addresses: list[str], load: Load) -> dict[str, list[int]]:
    """Which keys each node leads, so that each connection asks its own node for its own keys."""
    routes = Routes(addresses)
    async with AsyncClient(*addresses, timeout=load.timeout_s) as client:
        routes.learn(await client.fetch("GET", "/v1/routes"), 0.0)
    found: dict[str, list[int]] = {}
    for number in range(load.key_count):
        shard = routes.shard_of((KEY_FORMAT % number).encode())
        leader = None if shard is None else routes.leader_of(shard)
        found.setdefault(leader or addresses[0], []).append(number)
    return found


def _requests(
    address: str, load: Load, dice: random.Random, numbers: range | list[int]
) -> Iterator[tuple[bytes, int]]:
    """Yield (request, number of operations in it) for ever."""
    value = dice.randbytes(load.value_bytes)
    timeout = codec.milliseconds(load.timeout_s)
    tail = f" HTTP/1.1\r\nHost: {address}\r\nKV-Timeout: {timeout}\r\n"
    put_tail = f"{tail}Content-Length: {len(value)}\r\n\r\n".encode() + value
    get_tail = f"{tail}\r\n".encode()
    is_put = load.operation == "put"
    while True:
        if load.operation == "batch":
            ops = [
                {"op": "put", "key": (KEY_FORMAT % dice.choice(numbers)).encode(), "value": value}
                for _ in range(load.batch_count)
            ]
            body = msgpack.packb({"ops": ops})
            kind = f"Content-Type: {codec.MSGPACK}\r\nAccept: {codec.MSGPACK}\r\n"
            head = f"POST /v1/batch{tail}{kind}Content-Length: {len(body)}\r\n\r\n"
            yield head.encode() + body, load.batch_count
            continue
        path = codec.key_path((KEY_FORMAT % dice.choice(numbers)).encode()).encode()
        if is_put or (load.operation == "mixed" and dice.random() < 0.5):
            yield b"PUT " + path + put_tail, 1
        else:
            yield b"GET " + path + get_tail, 1


class _Tally:
    """What all connections have done together."""

    def __init__(self, load: Load) -> None:
        self.latencies = Histogram()
        self.operations = 0
        self.errors: dict[str, int] = {}
        self.answered = 0
        self.begun_at = 0.0
        self.ended_at: float | None = None
        self.last_at: float | None = None
        self._left = load.request_count
        self._open = 0

    def begin(self, now: float) -> None:
        self.begun_at = now

    def stop(self, now: float) -> None:
        if self.ended_at is None:
            self.ended_at = now

    @property
    def is_complete(self) -> bool:
        return self._left == 0 and self._open == 0

    def take(self) -> bool:
        """True if another request may be sent."""
        if self.ended_at is not None or self._left == 0:
            return False
        if self._left is not None:
            self._left -= 1
        self._open += 1
        return True

    def answer(self, seconds: float, now: float, operations: int, error: str | None) -> None:
        self._open -= 1
        self.answered += 1
        if self.ended_at is not None:
            return
        self.last_at = now
        if error is None:
            self.latencies.add(int(seconds * 1_000_000))
            self.operations += operations
        else:
            self.errors[error] = self.errors.get(error, 0) + 1


class _Connection(asyncio.Protocol):
    def __init__(self, address: str, requests: Iterator[tuple[bytes, int]], tally: _Tally) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._requests = requests
        self._tally = tally
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._payload: aiohttp.StreamReader | None = None
        self._status = 0
        self._sent_at: float | None = None
        self._operations = 0
        self._is_closed = False
        self._openings: set[asyncio.Future[Any]] = set()

    async def open(self) -> None:
        try:
            await self._loop.create_connection(lambda: self, self._host.strip("[]"), self._port)
        except OSError:
            if self._tally.take():
                self._tally.answer(0.0, monotonic(), 0, "refused")
            self._reopen_later()

    def _reopen_later(self) -> None:
        if not self._is_closed and self._tally.ended_at is None:
            self._loop.call_later(RECONNECT_S, self._reopen)

    def _reopen(self) -> None:
        if self._is_closed or self._tally.ended_at is not None:
            return

        async def again() -> None:
            await self.open()
            self.send_next()

        # Held until done: the loop itself keeps only weak references to tasks.
        task = self._loop.create_task(again())
        self._openings.add(task)
        task.add_done_callback(self._openings.discard)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        base = BaseProtocol(self._loop)
        base.connection_made(transport)
        self._parser = HttpResponseParser(
            base, self._loop, 1 << 20, max_line_size=1 << 16, max_field_size=1 << 16, auto_decompress=False
        )

    def send_next(self) -> None:
        if self._transport is None or self._sent_at is not None or not self._tally.take():
            return
        request, self._operations = next(self._requests)
        self._sent_at = monotonic()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            messages, _, _ = self._parser.feed_data(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, the server did not speak HTTP
            self._end(type(error).__name__)
            self.close()
            return
        for message, payload in messages:
            self._status, self._payload = message.code, payload
        if self._payload is not None and self._payload.is_eof():
            self._payload = None
            self._end(None if self._status < 300 else f"HTTP {self._status}")
            self.send_next()

    def _end(self, error: str | None) -> None:
        if self._sent_at is not None:
            now = monotonic()
            self._tally.answer(now - self._sent_at, now, self._operations, error)
            self._sent_at = None

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._end("connection lost")
        self._reopen_later()

    def close(self) -> None:
        self._is_closed = True
        if self._transport is not None:
            self._transport.close()
