"""Reads that wait until a quorum has confirmed that this leader still leads (thesis 6.4).

A read may be served at index i if i was the commit index after the read arrived, and a majority still
followed this (shard, term) after that. One round confirms all reads that came before it was issued; an
answer to a later round confirms the earlier ones too.

Reads stay parked until the leader has committed an entry of its own term: before that its commit index
may lie below what an earlier leader has acknowledged.
"""

from collections import deque

from kvstore.types import LogIndex


class WaitingReads:
    __slots__ = ("_issued", "parked")

    def __init__(self) -> None:
        self.parked: list[int] = []
        """Contexts of reads that no round was issued for yet."""
        self._issued: deque[tuple[int, LogIndex, list[int]]] = deque()
        """(round, read index, contexts), rounds ascending."""

    def __bool__(self) -> bool:
        return bool(self.parked or self._issued)

    def issue(self, round_number: int, index: LogIndex) -> None:
        """All parked reads now wait for `round_number` and will be served at `index`."""
        assert not self._issued or self._issued[-1][0] < round_number, "rounds must grow"
        self._issued.append((round_number, index, self.parked))
        self.parked = []

    def confirm(self, round_number: int) -> list[tuple[int, LogIndex]]:
        """Return (context, index) of every read whose round is at most the confirmed one."""
        issued = self._issued
        confirmed: list[tuple[int, LogIndex]] = []
        while issued and issued[0][0] <= round_number:
            _, index, contexts = issued.popleft()
            confirmed.extend((context, index) for context in contexts)
        return confirmed

    def lose(self) -> list[int]:
        """Leadership is gone: return the contexts of all waiting reads, and forget them."""
        lost = [context for _, _, contexts in self._issued for context in contexts]
        lost.extend(self.parked)
        self._issued.clear()
        self.parked = []
        return lost
