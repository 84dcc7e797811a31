"""Reads, writes, deletes and conditional writes of single keys."""

from chaos.callers import Caller
from chaos.workloads.base import Workload


class Register(Workload):
    """Reads, writes, deletes and conditional writes of single keys."""

    name = "register"

    async def step(self, caller: Caller) -> None:
        key, draw = self.keys.draw(caller), caller.dice.random()
        if draw < 0.45:
            await caller.get(key)
        elif draw < 0.85:
            await caller.put(key, self.keys.value())
        elif draw < 0.92:
            await caller.delete(key)
        else:
            await caller.put(key, self.keys.value(), if_absent=True)
