"""Lists grown by compare-and-set."""

from chaos.callers import Caller
from chaos.workloads.base import Workload


class Append(Workload):
    """Lists in one value, grown by compare-and-set until it succeeds: every element stays, in order."""

    name = "append"

    def __init__(self, width: int = 16, uses_max: int = 60) -> None:
        super().__init__(width, uses_max)

    async def step(self, caller: Caller) -> None:
        key, element = self.keys.draw(caller), self.keys.value()
        for _ in range(20):
            seen = await caller.get(key)
            if seen.outcome != "ok":
                return
            if seen.result is None:
                written = await caller.put(key, element, if_absent=True)
            else:
                longer = f"{seen.result['value']} {element}"
                written = await caller.put(key, longer, if_revision=seen.result["revision"])
            if written.outcome != "conflict":
                return
