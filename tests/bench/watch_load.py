"""Many watchers on one node: how late each event arrives, whether all do, and what it costs.

    python -m tests.bench.watch_load --watchers 10000 --rate 1000 --seconds 20
    python -m tests.bench.watch_load --address 127.0.0.1:7401        # a node that runs already

Every watcher is a connection of its own and watches one key. The events go to the keys of a tenth of them,
in turn. `--share N` has N watchers on each key, so that each event is told N times. A value holds its number
and when it was sent; readers and writer are one process, so that the clock is one.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chaos.targets import LocalCluster

MARK = b'"value":"'
BATCH = b"POST /v1/batch HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Watch(asyncio.Protocol):
    """One connection that asks for a watch and reads its lines."""

    def __init__(self, load: Load, key: str) -> None:
        self.load = load
        self.key = key
        self.rest = b""
        self.started = False
        self.seen: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        request = f"GET /v1/watch?key={self.key} HTTP/1.1\r\nHost: bench\r\n\r\n"
        transport.write(request.encode())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self.started:
            self.rest += data
            if b'"type":"start"' in self.rest:
                self.started, self.rest = True, b""
                self.load.started += 1
            return
        self.load.bytes += len(data)
        if b'"type":"progress"' in data:
            self.load.progress += data.count(b'"type":"progress"')
        data = self.rest + data
        at = data.find(MARK)
        while at >= 0:
            end = data.find(b'"', at + len(MARK))
            if end < 0:
                break
            number, _, sent = data[at + len(MARK) : end].partition(b" ")
            self.seen.append(int(number))
            self.load.latencies.append(now - float(sent))
            data = data[end:]
            at = data.find(MARK)
        self.rest = data[-200:] if at >= 0 else data[-len(MARK) :]

    def connection_lost(self, error: BaseException | None) -> None:
        self.load.lost += 1


class Load:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.started = self.lost = self.progress = self.bytes = 0
        self.latencies: list[float] = []
        self.watches: dict[str, list[Watch]] = {}
        self.sent: dict[str, list[int]] = {}

    async def connect(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        options = self.options
        keys = options.watchers // options.share
        gate = asyncio.Semaphore(100)

        async def one(number: int) -> None:
            key = f"w{number % keys}"
            async with gate:
                _, watch = await loop.create_connection(lambda: Watch(self, key), host, port)
                self.watches.setdefault(key, []).append(watch)
                while not watch.started:
                    await asyncio.sleep(0.002)

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(options.watchers)))
        print(f"{options.watchers} watches opened in {time.perf_counter() - began:.1f} s", flush=True)

    async def write(self, host: str, port: int) -> float:
        """Puts at the rate, in batches of one tick; returns the seconds that it took."""
        options = self.options
        keys = list(self.watches)[: max(1, len(self.watches) // 10)]
        per_event = options.share
        reader, writer = await asyncio.open_connection(host, port)
        number, began = 0, time.perf_counter()
        total = int(options.rate * options.seconds / per_event)
        while number < total:
            due = min(total, int((time.perf_counter() - began) * options.rate / per_event) + 1)
            if due <= number:
                await asyncio.sleep(0.002)
                continue
            ops = []
            for one in range(number, min(due, number + 500)):
                key = keys[one % len(keys)]
                self.sent.setdefault(key, []).append(one)
                ops.append({"op": "put", "key": key, "value": f"{one} {time.perf_counter():.6f}"})
            number += len(ops)
            body = json.dumps({"ops": ops}).encode()
            writer.write(BATCH % len(body) + body)
            await _answer(reader)
        writer.close()
        return time.perf_counter() - began

    def missing(self) -> tuple[int, int]:
        """(events that should have arrived, watches whose events differ from what was sent)."""
        wanted = wrong = 0
        for key, watches in self.watches.items():
            sent = self.sent.get(key, [])
            wanted += len(sent) * len(watches)
            wrong += sum(watch.seen != sent for watch in watches)
        return wanted, wrong


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    lines = head.lower().split(b"\r\n")
    length = next(int(line[15:]) for line in lines if line.startswith(b"content-length"))
    return await reader.readexactly(length)


def _cpu_s(pid: int | None) -> float:
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _memory_mib(pid: int | None) -> float:
    if pid is None:
        return 0.0
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


async def measure(options: argparse.Namespace, address: str, pid: int | None) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    load = Load(options)
    before_mib = _memory_mib(pid)
    connected_at = _cpu_s(pid)
    await load.connect(host, int(port))
    opened_cpu_s = _cpu_s(pid) - connected_at
    memory_mib = _memory_mib(pid)
    await asyncio.sleep(1.0)
    idle_at, idle_since = _cpu_s(pid), time.perf_counter()
    await asyncio.sleep(options.idle)
    idle = (_cpu_s(pid) - idle_at) / (time.perf_counter() - idle_since)
    gc.collect()
    gc.freeze()
    busy_at = _cpu_s(pid)
    elapsed_s = await load.write(host, int(port))
    deadline = time.perf_counter() + options.grace
    while load.missing()[1] and time.perf_counter() < deadline:
        await asyncio.sleep(0.2)
    busy = _cpu_s(pid) - busy_at
    wanted, wrong = load.missing()
    latencies = sorted(load.latencies)
    arrived = len(latencies)

    def at(share: float) -> float:
        return round(latencies[min(arrived - 1, int(arrived * share))] * 1000, 1) if arrived else -1.0

    return {
        "watchers": options.watchers,
        "events_told": arrived,
        "events_wanted": wanted,
        "watches_not_exact": wrong,
        "connections_lost": load.lost,
        "progress_lines": load.progress,
        "told_per_s": round(arrived / elapsed_s),
        "p50_ms": at(0.5),
        "p99_ms": at(0.99),
        "max_ms": at(1.0),
        "server_cpu_us_per_event": round(busy / max(1, arrived) * 1e6, 1),
        "server_cpu_idle_percent": round(idle * 100, 1),
        "server_cpu_ms_per_open": round(opened_cpu_s / options.watchers * 1000, 2),
        "server_kib_per_watch": round((memory_mib - before_mib) * 1024 / options.watchers, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.watch_load", description=__doc__)
    parser.add_argument("--watchers", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=1000.0, help="events told per second, all together")
    parser.add_argument("--share", type=int, default=1, help="watchers of each key")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--idle", type=float, default=12.0, help="seconds without events before")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds for stragglers")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--address", help="client address of a node; without it a cluster is started")
    options = parser.parse_args()
    wanted = options.watchers + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    if options.address:
        print(json.dumps(asyncio.run(measure(options, options.address, None)), indent=1))
        return 0
    with (
        tempfile.TemporaryDirectory() as directory,
        LocalCluster(Path(directory), nodes=options.nodes) as cluster,
    ):
        cluster.start()
        cluster.wait_until_served(60.0)
        name = cluster.names[0]
        result = asyncio.run(measure(options, cluster.client[name], cluster.pid(name)))
    print(json.dumps(result, indent=1))
    return int(result["watches_not_exact"] > 0)


if __name__ == "__main__":
    sys.exit(main())
