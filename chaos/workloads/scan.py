"""Scans over keys of one shard while they are written."""

from collections.abc import Awaitable, Callable, Sequence

from chaos.callers import Caller
from chaos.history import Operation
from chaos.workloads.base import FinalRead, Workload


class Scan(Workload):
    """Writes of keys that share a hash tag, and scans over them: a scan sees one moment of a shard."""

    name = "scan"

    def __init__(self, width: int = 12, uses_max: int = 150) -> None:
        super().__init__(width, uses_max)

    async def step(self, caller: Caller) -> None:
        group = self.keys.draw(caller)
        members = self._members(group)
        if caller.dice.random() < 0.7:
            await caller.put(caller.dice.choice(members), self.keys.value())
        else:
            await caller.scan(f"{{{group}}}.", members)

    async def read(self, caller: Caller) -> None:
        group = self.keys.draw(caller)
        await caller.scan(f"{{{group}}}.", self._members(group))

    @staticmethod
    def _members(group: str) -> list[str]:
        return [f"{{{group}}}.{letter}" for letter in "abcd"]

    def final_reads(self) -> list[FinalRead]:
        return [_scanner(f"{{{group}}}.", self._members(group)) for group in self.keys.all()]


def _scanner(prefix: str, keys: Sequence[str]) -> Callable[[Caller], Awaitable[Operation]]:
    return lambda caller: caller.scan(prefix, keys)
