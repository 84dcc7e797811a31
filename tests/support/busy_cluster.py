"""A cluster under the load of many clients, for tests that break it and then ask what became of the writes.

Every write is identified and repeated until its deadline, as the API promises that it happens once. The
judgement is linearizability of everything that was answered, final reads of all keys included: it implies
that no acknowledged write is lost and none is applied twice.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chaos.callers import Caller
from chaos.exchange import Connection, Lost, NotSent
from chaos.explain import core_of, explanation
from chaos.history import History
from chaos.linearizability import check
from chaos.targets import LocalCluster
from chaos.workloads import WORKLOADS

WRITES = frozenset({"put", "delete", "incr", "cas"})


class BusyCluster:
    """The load. `acknowledged` counts writes that were answered well so far."""

    def __init__(self, cluster: LocalCluster, clients: int, workload: str, timeout_s: float) -> None:
        self.cluster = cluster
        self.history = History()
        self._workload = WORKLOADS[workload]()
        self._timeout_s = timeout_s
        self.callers = [self._caller(number) for number in range(clients)]
        self._is_over = False
        self._shard_keys: dict[int, str] = {}

    def _caller(self, number: int) -> Caller:
        return Caller(number, self.cluster.client, self.history, timeout_s=self._timeout_s)

    @property
    def acknowledged(self) -> int:
        operations = self.history.operations
        return sum(item.outcome == "ok" and item.kind in WRITES for item in operations)

    @property
    def unknown_share(self) -> float:
        writes = [item for item in self.history.operations if item.kind in WRITES]
        return sum(item.outcome == "unknown" for item in writes) / max(1, len(writes))

    async def run_client(self, caller: Caller) -> None:
        await self._workload.client(caller, lambda: self._is_over, think_s=0.0)

    def finish(self) -> None:
        """End the load after the operations under way."""
        self._is_over = True

    async def read_everything(self) -> None:
        reads = self._workload.final_reads()
        for start in range(0, len(reads), len(self.callers)):
            chunk = reads[start : start + len(self.callers)]
            await asyncio.gather(*(read(caller) for read, caller in zip(chunk, self.callers, strict=False)))

    def close(self) -> None:
        for caller in self.callers:
            caller.close()

    async def acknowledge(self, count: int, within_s: float = 120.0) -> None:
        """Wait until `count` more writes have been acknowledged."""
        target = self.acknowledged + count
        async with asyncio.timeout(within_s):
            while self.acknowledged < target:
                await asyncio.sleep(0.02)

    async def leader_of_busy_shard(self) -> tuple[str, int]:
        """A node that leads, and one of the shards that it leads."""
        leaders = await asyncio.to_thread(self.cluster.leaders)
        led = Counter(leader for leader in leaders.values() if leader)
        ((node, _),) = led.most_common(1)
        return node, min(shard for shard, leader in leaders.items() if leader == node)

    async def seconds_until_written(self, shard: int, within_s: float = 60.0) -> float:
        """How long it takes from now until some node accepts a write to `shard`."""
        key = self._shard_keys[shard]
        begun = asyncio.get_running_loop().time()
        async with asyncio.timeout(within_s):
            while True:
                for name in self.cluster.running():
                    if not self.cluster.is_paused(name) and await _accepts(self.cluster.client[name], key):
                        return asyncio.get_running_loop().time() - begun
                await asyncio.sleep(0.01)

    async def learn_keys(self) -> None:
        """Find a key of each shard; must be called while the cluster is whole."""
        node, number = self.cluster.running()[0], 0
        while len(self._shard_keys) < self.cluster.shards:
            key = f"probe-{number}"
            told = await asyncio.to_thread(self.cluster.get, node, f"/v1/keys/{key}/explain")
            self._shard_keys.setdefault(told["shard"], key)
            number += 1

    def contradictions(self) -> list[str]:
        """What cannot be true, in words; empty if every answer can be explained."""
        verdict = check(self.history.operations)
        assert not verdict.undecided, f"could not decide {verdict.undecided}"
        found = [explanation(core_of(violation)) for violation in verdict.violations]
        for caller in self.callers:
            found += [f"{count} x {answer}" for answer, count in caller.unexpected.items()]
        return found


async def _accepts(address: str, key: str) -> bool:
    connection = Connection(address)
    try:
        reply = await connection.request("PUT", f"/v1/kv/{key}", {"KV-Timeout": "400ms"}, b"probe", 0.5)
    except (NotSent, Lost):
        return False
    finally:
        connection.close()
    return reply.status in (200, 201)


@asynccontextmanager
async def busy(
    cluster: LocalCluster, clients: int = 32, workload: str = "mixed", timeout_s: float = 10.0
) -> AsyncIterator[BusyCluster]:
    """Load on `cluster` while inside; on leaving it ends, and all keys are read."""
    load = BusyCluster(cluster, clients, workload, timeout_s)
    await load.learn_keys()
    try:
        async with asyncio.TaskGroup() as tasks:
            for caller in load.callers:
                tasks.create_task(load.run_client(caller))
            yield load
            load.finish()
        await load.read_everything()
    finally:
        load.close()
