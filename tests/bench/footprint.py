"""What a cluster costs when it holds a million keys and when it rests, by hand:

    python -m tests.bench.footprint [--keys 1000000] [--shards 64] [--directory /var/tmp]

Loads keys whose key and value are 100 bytes together, leaves one live session in each shard, then
reports for an idle cluster the processor time per node, and for a node restarted after `kill -9` the
seconds from its start until it has answered a linearizable read of every shard, and its resident memory.
"""

import argparse
import tempfile
import time
from pathlib import Path

from chaos.targets import LocalCluster
from kvstore.client import Client
from kvstore.placement import ShardMap
from tests.bench.processes import cpu_s, rss_mib

IDLE_S = 20
BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.footprint")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as place,
        LocalCluster(Path(place), shards=options.shards) as cluster,
    ):
        cluster.start()
        cluster.wait_until_served(60)
        probes = _probe_keys(options.shards)
        _load(cluster, options.keys, probes)
        _report_idle(cluster)
        _report_restart(cluster, probes)


def _probe_keys(shards: int) -> list[str]:
    """One key of each shard."""
    shard_map, found = ShardMap(shards), {}
    number = 0
    while len(found) < shards:
        key = f"probe-{number}"
        found.setdefault(shard_map.shard_of(key.encode()), key)
        number += 1
    return [found[shard] for shard in sorted(found)]


def _load(cluster: LocalCluster, keys: int, probes: list[str]) -> None:
    started = time.monotonic()
    with Client(*cluster.client.values(), timeout=30.0) as kv:
        for first in range(0, keys, BATCH):
            with kv.batch() as batch:
                for number in range(first, min(first + BATCH, keys)):
                    batch.put(f"key-{number:012d}", b"v" * 84)
        for key in probes:
            kv.put(key, b"live session")
    print(f"loaded {keys} keys in {time.monotonic() - started:.0f} s")


def _report_idle(cluster: LocalCluster) -> None:
    time.sleep(5)
    before = {name: cpu_s(cluster.pid(name)) for name in cluster.names}
    time.sleep(IDLE_S)
    for name in cluster.names:
        share = (cpu_s(cluster.pid(name)) - before[name]) / IDLE_S
        print(f"idle {name}: {100 * share:.2f} % of a core, {rss_mib(cluster.pid(name)):.0f} MiB resident")


def _report_restart(cluster: LocalCluster, probes: list[str]) -> None:
    name = cluster.names[0]
    cluster.kill(name)
    started = time.monotonic()
    cluster.start(name)
    pending = list(probes)
    with Client(cluster.client[name], timeout=10.0, direct=False) as kv:
        while pending and time.monotonic() - started < 60:
            try:
                kv.get(pending[-1], timeout=0.5)
                pending.pop()
            except Exception:  # noqa: BLE001 - not up yet: ask again
                time.sleep(0.05)
    print(f"restart {name}: every shard read after {time.monotonic() - started:.2f} s, {len(pending)} failed")
    time.sleep(5)
    print(f"restart {name}: {rss_mib(cluster.pid(name)):.0f} MiB resident")


if __name__ == "__main__":
    main()
