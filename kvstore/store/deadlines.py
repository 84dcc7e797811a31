"""What is due when, in the shard clock: one index for everything that ends by time.

A deadline is an empty record under `d`, due clock, kind, subject. Whoever sets one removes it again when
its subject goes or gets another; what a deadline does when it comes is decided in `expiry`. The kinds are
disk format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvstore.store import keys
from kvstore.store.engine import Engine

if TYPE_CHECKING:
    from kvstore.store.draft import Draft

KEY: Final = 1
"""Subject: the key. It is removed."""
LEASE: Final = 2
"""Subject: the lease's id. It ends."""
LEASE_MARK: Final = 3
"""Subject: the rest of an end mark's record key. The mark is removed."""
TXN_MARK: Final = 4
"""Subject: the id of a transaction that is over. What the tablet remembers of it is removed."""
LOCK_ENTRY: Final = 5
"""Subject: length of the lock's name, name, order. The entry leaves its queue."""
LOCK_MARK: Final = 6
"""Subject: length of the lock's name, name, claim. The mark is removed."""
TXN_GROUP: Final = 7
"""Subject: the first id of a group of transactions that are over. What is remembered of them is removed."""


def record_key(due_ms: int, kind: int, subject: bytes) -> bytes:
    return b"d%b%c%b" % (keys.number(due_ms), kind, subject)


def parts(key: bytes) -> tuple[int, int, bytes]:
    """Due clock (ms), kind and subject."""
    return int.from_bytes(key[1:9], "big"), key[9], key[10:]


def set_deadline(draft: Draft, due_ms: int, kind: int, subject: bytes) -> None:
    draft.writes[record_key(due_ms, kind, subject)] = b""
    draft.deadlines.note(due_ms)


def remove_deadline(draft: Draft, due_ms: int, kind: int, subject: bytes) -> None:
    draft.writes[record_key(due_ms, kind, subject)] = None


class Deadlines:
    """A lower bound of the first deadline, so that a leader need not look while nothing can be due.

    It decides when to look and where to begin, never what is due: one that is too low costs a longer look."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.next_ms: int | None = None
        self.reset()

    def reset(self) -> None:
        """Take the bound from the tablet."""
        self.next_ms = None
        for key, _ in self._engine.scan(keys.DEADLINE, keys.DEADLINE_END):
            self.next_ms = parts(key)[0]
            break

    @property
    def start(self) -> bytes:
        """No deadline lies before this record key."""
        return keys.DEADLINE_END if self.next_ms is None else b"d" + keys.number(self.next_ms)

    def note(self, due_ms: int) -> None:
        if self.next_ms is None or due_ms < self.next_ms:
            self.next_ms = due_ms

    def looked(self, next_ms: int | None) -> None:
        """The first deadline that is left after a look at all that were due."""
        self.next_ms = next_ms
