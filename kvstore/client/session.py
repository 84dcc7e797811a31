"""The identities of a client's writes: (session, sequence), so that a retried write happens once.

The store keeps the result of each identified write, and drops it once the client says that it will not
ask again: every write carries the lowest sequence that is still open (`KV-Acked-Below`). Sequences of one
session may be open concurrently inside a window; when one stuck write would hold the window, the client
goes on under a new session instead of waiting for it.

Pure: random session names are minted by the caller.
"""

from __future__ import annotations

from collections.abc import Callable

WINDOW = 1024
"""Open sequences of one session that the store promises to tell apart (`/v1/info`)."""


class Session:
    """One random name and its counters."""

    __slots__ = ("_finished", "acked_below", "answered_by", "name", "next_sequence", "shards")

    def __init__(self, name: str) -> None:
        self.name = name
        self.next_sequence = 1
        self.acked_below = 1
        """Every sequence below this one is finished: the client will never send it again."""
        self._finished: set[int] = set()
        self.shards: set[int] = set()
        """Shards that are known to keep results of it."""
        self.answered_by: str | None = None
        """Address of the node that gave the last answer of one of these."""

    @property
    def is_full(self) -> bool:
        return self.next_sequence - self.acked_below >= WINDOW

    @property
    def open_count(self) -> int:
        return self.next_sequence - self.acked_below - len(self._finished)

    def begin(self) -> Ticket:
        ticket = Ticket(self, self.next_sequence)
        self.next_sequence += 1
        return ticket

    def finish(self, sequence: int) -> None:
        self._finished.add(sequence)
        while self.acked_below in self._finished:
            self._finished.remove(self.acked_below)
            self.acked_below += 1


class Ticket:
    """The identity of one write, from its first attempt until nobody will send it again."""

    __slots__ = ("_session", "sequence")

    def __init__(self, session: Session, sequence: int) -> None:
        self._session = session
        self.sequence = sequence

    @property
    def session(self) -> str:
        return self._session.name

    @property
    def acked_below(self) -> int:
        """Read at each attempt: others may have finished meanwhile. Never passes this ticket."""
        return self._session.acked_below

    def note_answer(self, address: str, shard: int) -> None:
        """The shard has answered the write, and keeps what it said."""
        self._session.shards.add(shard)
        self._session.answered_by = address

    def finish(self) -> None:
        """Say that this write will not be sent again. Must be called exactly once."""
        self._session.finish(self.sequence)


class Sessions:
    """Hands out tickets; opens a new session when the window of the present one is full."""

    __slots__ = ("_current", "_mint")

    def __init__(self, mint: Callable[[], str]) -> None:
        self._mint = mint
        """Returns a fresh random 128-bit name in hex. Never the same twice, not even after a fork."""
        self._current: Session | None = None

    @property
    def current(self) -> Session | None:
        return self._current

    def begin(self) -> Ticket:
        if self._current is None or self._current.is_full:
            self._current = Session(self._mint())
        return self._current.begin()
