"""The protocol of a workload: set up, clients, final reads, check.

A new one is a file in this folder with one subclass of `Workload`; `python -m chaos run --workload NAME`
then knows it. Nothing else needs to be told.

What it asks goes through a `Caller`, which records every operation in the history: `get`, `put` and the like,
or `call` for any other request. Operations of the kinds in `chaos.atoms.KINDS` are judged by linearizability,
which implies that nothing acknowledged is lost and nothing applied twice; the final reads make it bite. All
other kinds are judged by the workload's own `check` alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from chaos.callers import Caller
from chaos.history import Operation
from chaos.workloads.keys import Keys

FinalRead = Callable[[Caller], Awaitable[object]]

IsOver = Callable[[], bool]

READER_PAUSE_S = 0.005


class Workload:
    """Base. One instance serves all clients of a run, on one event loop."""

    name = ""
    """As `--workload` names it."""

    def __init__(self, width: int = 32, uses_max: int = 250) -> None:
        self.keys = Keys(self.name, width, uses_max)

    async def set_up(self, caller: Caller) -> None:
        """Before all clients, on a whole cluster: accounts to move money between, and the like."""

    async def client(self, caller: Caller, is_over: IsOver, think_s: float) -> None:
        """One client, from its first operation to its last; must end soon after `is_over()`.

        Replace it where a client is more than a loop of steps, such as one that watches."""
        while not is_over():
            await self.step(caller)
            await asyncio.sleep(caller.dice.uniform(0, 2 * think_s))

    async def reading_client(self, caller: Caller, is_over: IsOver, think_s: float) -> None:
        """A client that does nothing but read, at one node, and does not wait long (one for each node)."""
        while not is_over():
            await self.read(caller)
            await asyncio.sleep(max(READER_PAUSE_S, caller.dice.uniform(0, 2 * think_s)))

    async def step(self, caller: Caller) -> None:
        """One round of one client."""
        raise NotImplementedError

    async def read(self, caller: Caller) -> None:
        """One round of a reading client."""
        await caller.get(self.keys.draw(caller))

    def final_reads(self) -> list[FinalRead]:
        """After all has healed and every client has ended: whatever shows what was lost or done twice.

        Each is one operation at least; one that gets no answer makes the run inconclusive."""
        return [reader(key) for key in self.keys.all()]

    def check(self, history: Sequence[Operation]) -> list[str]:
        """What is wrong, in words, beyond what linearizability of single operations can tell. Must rest on
        `history` alone (operations in order of invocation), so that a stored one can be judged again."""
        return []

    def doubts(self, history: Sequence[Operation]) -> list[str]:
        """What keeps the run from proving anything: it is inconclusive then, not wrong."""
        return []


def reader(key: str) -> FinalRead:
    """A final read of one key."""
    return lambda caller: caller.get(key)
