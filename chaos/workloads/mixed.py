"""What a busy application does: all kinds of operations over all shards."""

from chaos.callers import Caller, Piece
from chaos.workloads.base import FinalRead, Workload, reader
from chaos.workloads.keys import Keys


class Mixed(Workload):
    """Put, incr, compare-and-set and batches over all shards: what a busy application does."""

    name = "mixed"

    def __init__(self, width: int = 48, uses_max: int = 250) -> None:
        super().__init__(width, uses_max)
        self._counters = Keys("mixed-n", 16, uses_max)

    async def step(self, caller: Caller) -> None:
        draw = caller.dice.random()
        if draw < 0.3:
            await caller.put(self.keys.draw(caller), self.keys.value())
        elif draw < 0.45:
            await caller.incr(self._counters.draw(caller))
        elif draw < 0.6:
            await self._swap(caller)
        elif draw < 0.7:
            await caller.get(self.keys.draw(caller))
        elif draw < 0.75:
            await caller.delete(self.keys.draw(caller))
        else:
            await caller.batch(self._pieces(caller))

    async def _swap(self, caller: Caller) -> None:
        key = self.keys.draw(caller)
        seen = await caller.get(key)
        if seen.outcome == "ok" and seen.result:
            await caller.put(key, self.keys.value(), if_revision=seen.result["revision"])

    def _pieces(self, caller: Caller) -> list[Piece]:
        # Each key once: the operations of a batch are independent, and all have the same interval.
        puts = {self.keys.draw(caller) for _ in range(6)}
        counts = {self._counters.draw(caller) for _ in range(2)}
        pieces: list[Piece] = [("put", key, {"value": self.keys.value()}) for key in sorted(puts)]
        pieces += [("incr", key, {"by": 1}) for key in sorted(counts)]
        return [*pieces, ("get", self.keys.draw(caller), None)] if caller.dice.random() < 0.5 else pieces

    def final_reads(self) -> list[FinalRead]:
        return [reader(key) for key in (*self.keys.all(), *self._counters.all())]
