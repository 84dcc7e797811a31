"""What it does to writes when very many keys are due in one second, by hand:

    python -m tests.bench.expiry_load [--keys 50000] [--rate 1000] [--one-shard]

Writes keys that all end at the same moment, puts other keys at a steady rate, and reports the puts' times
before that moment, while the keys go, and how long it takes until all have gone. Puts are sent when they
are due, whatever became of those before.
"""

import argparse
import asyncio
import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp

from chaos.targets import LocalCluster

BATCH = 500
BASELINE_S = 8.0
LEAD_S = 5.0
GONE_S_MAX = 60.0
LINES = 96
VALUE = b"v" * 100


class Figures(NamedTuple):
    baseline_p99_s: float
    beside_p99_s: float
    gone_s: float
    failed: int


class Line(asyncio.Protocol):
    """One connection, for one put at a time: as little work as possible, so that the nodes are measured."""

    def __init__(self, free: "asyncio.Queue[Line]") -> None:
        self._free = free
        self._read = b""
        self._done: Callable[[int], None] = lambda status: None
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._free.put_nowait(self)

    def put(self, number: int, done: Callable[[int], None]) -> None:
        assert self._transport is not None, "not connected"
        self._done = done
        head = b"PUT /v1/kv/beside-%d HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (number % 5000, len(VALUE)) + VALUE)

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]):
            self._read = b""
            self._done(int(head[9:12]))
            self._free.put_nowait(self)


class Puts:
    """Puts at a steady rate, until it is stopped."""

    def __init__(self, hosts: Sequence[str], rate: float) -> None:
        self._hosts = hosts
        self._rate = rate
        self.is_over = False
        self.took: list[tuple[float, float]] = []
        """When each was due, and how long until its answer."""
        self.failed = 0

    async def run(self) -> None:
        loop, free = asyncio.get_running_loop(), asyncio.Queue[Line]()
        for number in range(LINES):
            host, _, port = self._hosts[number % len(self._hosts)].rpartition(":")
            await loop.create_connection(lambda: Line(free), host, int(port))
        number = 0
        due_at = time.monotonic()
        while not self.is_over:
            line = await free.get()
            line.put(number, functools.partial(self._done, due_at))
            number += 1
            due_at += 1 / self._rate
            delay_s = due_at - time.monotonic()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
        for _ in range(LINES):
            await free.get()

    def _done(self, due_at: float, status: int) -> None:
        self.failed += status not in (200, 201)
        self.took.append((due_at, time.monotonic() - due_at))

    def p99_s(self, since: float, until: float) -> float:
        """Infinite if hardly any was answered: the nodes are far behind."""
        times = [s for at, s in self.took if since <= at < until]
        return statistics.quantiles(times, n=100)[98] if len(times) > 1 else math.inf


async def measure(hosts: Sequence[str], keys: int, rate: float, *, is_one_shard: bool = False) -> Figures:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        puts = Puts(hosts, rate)
        due_at = time.monotonic() + 20 + keys / 2_500
        await _write(http, hosts, keys, due_at, "{due}" if is_one_shard else "")
        putting = asyncio.create_task(puts.run())
        await asyncio.sleep(max(LEAD_S, due_at - BASELINE_S - time.monotonic()))
        begun = time.monotonic()
        await asyncio.sleep(max(BASELINE_S / 2, due_at - time.monotonic()))
        ended = time.monotonic()
        gone_at = await _wait_until_gone(http, hosts[0])
        over = time.monotonic()
        puts.is_over = True
        await putting
    gone_s = gone_at - due_at
    return Figures(puts.p99_s(begun, ended), puts.p99_s(ended, over), gone_s, puts.failed)


async def _write(
    http: aiohttp.ClientSession, hosts: Sequence[str], keys: int, due_at: float, tag: str
) -> None:
    for first in range(0, keys, BATCH):
        ttl = f"{int((due_at - time.monotonic()) * 1000)}ms"
        ops = [
            {"op": "put", "key": f"due-{tag}{number}", "value": "v" * 50, "ttl": ttl}
            for number in range(first, min(first + BATCH, keys))
        ]
        body = json.dumps({"ops": ops})
        async with http.post(f"http://{hosts[first // BATCH % len(hosts)]}/v1/batch", data=body) as reply:
            assert reply.status == 200, await reply.text()
            results = (await reply.json())["results"]
        assert all(result["status"] in (200, 201) for result in results), results[:2]
    assert time.monotonic() < due_at - BASELINE_S, "the keys were written too slowly"


async def _wait_until_gone(http: aiohttp.ClientSession, host: str) -> float:
    until = time.monotonic() + GONE_S_MAX
    while time.monotonic() < until:
        async with http.get(f"http://{host}/v1/kv?prefix=due-&limit=1&keys_only=1") as reply:
            if reply.status == 200 and not (await reply.json())["items"]:
                return time.monotonic()
        await asyncio.sleep(0.5)
    return math.inf


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.expiry_load")
    parser.add_argument("--keys", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=1_000)
    parser.add_argument("--one-shard", action="store_true", help="all keys that are due lie on one shard")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as place,
        LocalCluster(Path(place)) as cluster,
    ):
        cluster.start()
        cluster.wait_until_served(60)
        hosts = list(cluster.client.values())
        found = asyncio.run(measure(hosts, options.keys, options.rate, is_one_shard=options.one_shard))
    print(f"puts before: p99 {1000 * found.baseline_p99_s:.1f} ms")
    print(f"puts beside: p99 {1000 * found.beside_p99_s:.1f} ms, {found.failed} failed")
    print(f"{options.keys} keys were gone after {found.gone_s:.1f} s")


if __name__ == "__main__":
    main()
