"""What many renewed leases cost each node, by hand:

    python -m tests.bench.lease_load [--leases 100000] [--ttl 60] [--every 20] [--body 500] [--seconds 40]

Grants the leases, renews each of them every so many seconds in requests of `--body` ids, and reports the
processor time of each node as a share of a core and per renewal, and how long the requests took.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from chaos.targets import LocalCluster
from tests.bench.processes import cpu_s

GRANTS_AT_ONCE = 64


async def grant(
    http: aiohttp.ClientSession, hosts: Sequence[str], ids: list[str], count: int, ttl_s: float
) -> None:
    """Grant so many leases, and put each into `ids`."""
    left = iter(range(count))

    async def some() -> None:
        for number in left:
            body = {"ttl": f"{ttl_s}s", "id": f"lease-{number:06d}"}
            status = 0
            # 412: an earlier try, whose answer did not come.
            while status not in (201, 412):
                async with http.post(f"http://{hosts[number % len(hosts)]}/v1/leases", json=body) as reply:
                    status = reply.status
                assert status in (201, 412, 503, 504), status
            ids.append(body["id"])

    await asyncio.gather(*(some() for _ in range(GRANTS_AT_ONCE)))


class Renewals:
    """Renews all ids that there are, evenly spread over `every_s`, until it is stopped."""

    def __init__(
        self, http: aiohttp.ClientSession, hosts: Sequence[str], ids: Sequence[str], every_s: float, body: int
    ) -> None:
        self._http = http
        self._hosts = hosts
        self._ids = ids
        self._every_s = every_s
        self._body = body
        self.is_over = False
        self.took: list[float] = []
        self.renewed = 0
        self.lost = 0

    async def run(self) -> None:
        at, turn, tasks = 0, 0, set()
        due_at = time.monotonic()
        while not self.is_over:
            if self._ids:
                at = 0 if at >= len(self._ids) else at
                task = asyncio.create_task(
                    self._one(self._ids[at : at + self._body], self._hosts[turn % len(self._hosts)])
                )
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                at, turn = at + self._body, turn + 1
            due_at += self._every_s * self._body / max(len(self._ids), self._body)
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        await asyncio.gather(*tasks)

    async def _one(self, part: Sequence[str], host: str) -> None:
        sent = time.monotonic()
        async with self._http.post(f"http://{host}/v1/leases/keepalive", json={"leases": part}) as reply:
            results = (await reply.json())["results"]
        self.took.append(time.monotonic() - sent)
        self.renewed += len(results)
        self.lost += sum(result["status"] != 200 for result in results)


async def run(cluster: LocalCluster, options: argparse.Namespace) -> None:
    hosts = list(cluster.client.values())
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http:
        ids: list[str] = []
        renewals = Renewals(http, hosts, ids, options.every, options.body)
        renewing = asyncio.create_task(renewals.run())
        begun = time.monotonic()
        await grant(http, hosts, ids, options.leases, options.ttl)
        print(f"granted {len(ids)} in {time.monotonic() - begun:.1f} s", flush=True)
        await asyncio.sleep(5.0)
        renewals.took, renewals.renewed, renewals.lost = [], 0, 0
        before = {name: cpu_s(cluster.pid(name)) for name in cluster.names}
        begun = time.monotonic()
        await asyncio.sleep(options.seconds)
        elapsed = time.monotonic() - begun
        used = {name: cpu_s(cluster.pid(name)) - before[name] for name in cluster.names}
        renewed = renewals.renewed
        renewals.is_over = True
        await renewing
    for name in cluster.names:
        share = 100 * used[name] / elapsed
        print(f"{name}: {share:.1f} % of a core, {1e6 * used[name] / renewed:.1f} us per renewal")
    cuts = statistics.quantiles(renewals.took, n=100)
    print(f"{renewed} renewals in {elapsed:.1f} s, in requests of {options.body}, {renewals.lost} lost:")
    print(f"p50 {cuts[49]:.3f} s, p99 {cuts[98]:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lease_load")
    parser.add_argument("--leases", type=int, default=100_000)
    parser.add_argument("--ttl", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=20.0)
    parser.add_argument("--body", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as place,
        LocalCluster(Path(place)) as cluster,
    ):
        cluster.start()
        cluster.wait_until_served(60)
        asyncio.run(run(cluster, options))


if __name__ == "__main__":
    main()
