"""Transfers between accounts of different shards: how many a second one client does, and how many many do.

    python -m tests.bench.txn_load --clients 1,32 --seconds 5
    python -m tests.bench.txn_load --address 127.0.0.1:7401,127.0.0.1:7402    # nodes that run already

Each client moves money between two accounts of its own (disjoint: no two transfers meet), which lie in
different shards, by the node it is given in turn. `--hot N` has all clients share N accounts instead, so that
they collide. `--check R` fails unless the last count of clients reaches R times the rate of the first.

One client waits for the network and the disk, many for the processor: where that is shared with others, or
slow, the ratio says little, and the time that the nodes used for each transaction says more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from chaos.exchange import Connection
from chaos.targets import LocalCluster
from kvstore.placement import ShardMap
from tests.bench.processes import cpu_s

HEADERS = {"Content-Type": "application/json", "KV-Timeout": "10s"}


class Measured(NamedTuple):
    clients: int
    per_s: float
    p50_ms: float
    p99_ms: float
    conflicts: int
    cpu_ms: float
    """Of all nodes together, for each transaction; 0 where the nodes are not ours."""


def accounts(shard_map: ShardMap, client: int) -> list[str]:
    """Two keys of different shards."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < 2:
        key = f"bench/{client}/{number}"
        found.setdefault(shard_map.shard_of(key.encode()), key)
        number += 1
    return list(found.values())


async def _client(address: str, pairs: list[list[str]], end: float, times: list[float]) -> int:
    connection, conflicts, turn = Connection(address), 0, 0
    while time.monotonic() < end:
        source, target = pairs[turn % len(pairs)]
        turn += 1
        ops = [{"op": "incr", "key": source, "by": -1}, {"op": "incr", "key": target, "by": 1}]
        body = json.dumps({"then": ops}).encode()
        begun = time.monotonic()
        reply = await connection.request("POST", "/v1/txn", HEADERS, body, 12.0)
        if reply.status == 200:
            times.append(time.monotonic() - begun)
        elif reply.status == 409:
            conflicts += 1
        else:
            raise SystemExit(f"{reply.status} {reply.body.decode()}")
    connection.close()
    return conflicts


async def measure(
    addresses: list[str], clients: int, seconds: float, hot: int, shards: int, pids: list[int]
) -> Measured:
    shard_map = ShardMap(shards)
    used_s = sum(map(cpu_s, pids))
    end = time.monotonic() + seconds
    times: list[float] = []
    work = []
    for number in range(clients):
        pairs = [accounts(shard_map, number)]
        if hot:
            names = [f"hot/{each}" for each in range(hot)]
            pairs = [
                [names[(number + step) % hot], names[(number + 2 * step + 1) % hot]] for step in range(hot)
            ]
            pairs = [pair for pair in pairs if pair[0] != pair[1]]
        work.append(_client(addresses[number % len(addresses)], pairs, end, times))
    conflicts = sum(await asyncio.gather(*work))
    times.sort()
    return Measured(
        clients,
        len(times) / seconds,
        1000 * times[len(times) // 2],
        1000 * times[int(len(times) * 0.99)],
        conflicts,
        1000 * (sum(map(cpu_s, pids)) - used_s) / len(times),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.txn_load")
    parser.add_argument("--address", help="of nodes that run already, separated by commas")
    parser.add_argument("--clients", default="1,32", help="counts to measure, in this order")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--hot", type=int, default=0, help="accounts that all clients share")
    parser.add_argument("--check", type=float, default=0.0, help="least ratio of the last rate to the first")
    options = parser.parse_args()
    counts = [int(count) for count in options.clients.split(",")]
    if options.address:
        found = _measure_all(options.address.split(","), counts, options, [])
    else:
        with (
            tempfile.TemporaryDirectory(prefix="txn-load-") as directory,
            LocalCluster(Path(directory), shards=options.shards) as cluster,
        ):
            cluster.start()
            cluster.wait_until_served(60)
            pids = [cluster.pid(name) for name in cluster.names]
            found = _measure_all(list(cluster.client.values()), counts, options, pids)
    ratio = found[-1].per_s / found[0].per_s
    print(f"{found[-1].clients} clients do {ratio:.1f} times what {found[0].clients} does")
    return 0 if ratio >= options.check else 1


def _measure_all(
    addresses: list[str], counts: list[int], options: argparse.Namespace, pids: list[int]
) -> list[Measured]:
    found = []
    for count in counts:
        asyncio.run(measure(addresses, count, 1.0, options.hot, options.shards, pids))
        each = asyncio.run(measure(addresses, count, options.seconds, options.hot, options.shards, pids))
        found.append(each)
        print(
            f"{each.clients:4} clients {each.per_s:8.0f}/s  p50 {each.p50_ms:6.1f} ms  "
            f"p99 {each.p99_ms:6.1f} ms  "
            f"{each.conflicts} conflicts  {each.cpu_ms:.2f} ms of processor each",
            flush=True,
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
