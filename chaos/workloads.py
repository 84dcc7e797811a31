"""What the clients do while the cluster is being broken. Each workload is judged by linearizability alone,
which implies that nothing acknowledged is lost and nothing applied twice; the final reads make it bite.

Keys rotate: a key is used for some hundred operations and then left, so that the checker's groups stay
small and old keys remain as witnesses for the final reads.
"""

import itertools
from collections.abc import Awaitable, Callable, Sequence

from chaos.callers import Caller, Piece
from chaos.history import Operation


class Keys:
    """Hands out keys of a moving window. Names end in a generation, so that none is used again."""

    def __init__(self, name: str, width: int, uses_max: int) -> None:
        self._name = name
        self._uses_max = uses_max
        self._fresh = itertools.count()
        self._window = [next(self._fresh) for _ in range(width)]
        self._uses = dict.fromkeys(self._window, 0)
        self._values = itertools.count(1)

    def draw(self, caller: Caller) -> str:
        place = caller.dice.randrange(len(self._window))
        number = self._window[place]
        self._uses[number] += 1
        if self._uses[number] >= self._uses_max:
            self._window[place] = next(self._fresh)
            self._uses[self._window[place]] = 0
        return self.name_of(number)

    def name_of(self, number: int) -> str:
        return f"{self._name}-{number}"

    def all(self) -> list[str]:
        return [self.name_of(number) for number in self._uses]

    def value(self) -> str:
        """Never the same twice: a value then names its writer."""
        return f"v{next(self._values)}"


class Workload:
    """Base: `step` is one round of one client; `final_reads` runs after everything has healed."""

    name = ""

    def __init__(self, width: int = 32, uses_max: int = 250) -> None:
        self.keys = Keys(self.name, width, uses_max)

    async def step(self, caller: Caller) -> None:
        raise NotImplementedError

    async def read(self, caller: Caller) -> None:
        """One read, by a client that does nothing else."""
        await caller.get(self.keys.draw(caller))

    def final_reads(self) -> list[Callable[[Caller], Awaitable[object]]]:
        return [_reader(key) for key in self.keys.all()]


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

    def final_reads(self) -> list[Callable[[Caller], Awaitable[object]]]:
        return [_reader(key) for key in (*self.keys.all(), *self._counters.all())]


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

    def final_reads(self) -> list[Callable[[Caller], Awaitable[object]]]:
        return [_scanner(f"{{{group}}}.", self._members(group)) for group in self.keys.all()]


WORKLOADS: dict[str, type[Workload]] = {
    kind.name: kind for kind in (Register, Cas, Counter, Append, Mixed, Scan)
}


def _reader(key: str) -> Callable[[Caller], Awaitable[Operation]]:
    return lambda caller: caller.get(key)


def _scanner(prefix: str, keys: Sequence[str]) -> Callable[[Caller], Awaitable[Operation]]:
    return lambda caller: caller.scan(prefix, keys)
