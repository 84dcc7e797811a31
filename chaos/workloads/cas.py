"""Read, then write if nobody else has: lost updates show at once."""

from chaos.callers import Caller
from chaos.workloads.base import Workload


class Cas(Workload):
    """Read, then write if nobody else has written: lost updates show at once."""

    name = "cas"

    async def step(self, caller: Caller) -> None:
        key = self.keys.draw(caller)
        seen = await caller.get(key)
        if seen.outcome != "ok":
            return
        if seen.result is None:
            await caller.put(key, self.keys.value(), if_absent=True)
        else:
            await caller.put(key, self.keys.value(), if_revision=seen.result["revision"])
