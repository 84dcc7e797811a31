"""Increments: each answer tells how many came before it."""

from chaos.callers import Caller
from chaos.workloads.base import Workload


class Counter(Workload):
    """Increments: each answer tells how many came before it."""

    name = "counter"

    def __init__(self, width: int = 16, uses_max: int = 250) -> None:
        super().__init__(width, uses_max)

    async def step(self, caller: Caller) -> None:
        key = self.keys.draw(caller)
        if caller.dice.random() < 0.8:
            await caller.incr(key, caller.dice.choice([1, 1, 2, 5]))
        else:
            await caller.get(key)
