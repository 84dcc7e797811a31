"""What the calls of both clients return. Plain values: nothing here refers back to a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from kvstore.errors import KvError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """A key and what it held at one moment."""

    key: bytes
    value: bytes
    revision: int
    """Shard revision of the last write of the key: what `if_revision` compares."""
    create_revision: int
    version: int
    """Writes since the key was created, starting at 1."""
    lease: str | None = None
    ttl_s: float | None = None
    """Seconds left when the answer was made."""
    content_type: str | None = None
    staleness_s: float | None = None
    """Age bound of a read with `consistency="stale"`."""

    @property
    def text(self) -> str:
        """The value as UTF-8. Raises UnicodeDecodeError for other bytes."""
        return self.value.decode()


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """What the store knows about a lease."""

    id: str
    ttl_s: float
    """What was granted: a renewal lasts so long."""
    remaining_s: float
    keys: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Leader:
    """Who holds an office."""

    value: bytes
    """What the leader was elected with."""
    fence: int
    """Grows with every change of leader."""

    @property
    def text(self) -> str:
        return self.value.decode()


@dataclass(frozen=True, slots=True)
class PutResult:
    revision: int
    version: int
    created: bool
    prev: Item | None = None
    """What the key held before, where `prev=True` asked for it and it existed."""
    replayed: bool = False
    """An earlier attempt of this very call had already been applied."""


@dataclass(frozen=True, slots=True)
class DeleteResult:
    deleted: int
    """Number of keys that existed and are gone."""
    revision: int | None
    prev: Item | None = None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class IncrResult:
    value: int
    revision: int
    replayed: bool = False


class Pending(Generic[T]):
    """The place of one operation's result in a batch. It is filled when the batch block ends."""

    __slots__ = ("_outcome",)

    def __init__(self) -> None:
        self._outcome: tuple[T] | KvError | None = None

    @property
    def is_done(self) -> bool:
        return self._outcome is not None

    @property
    def error(self) -> KvError | None:
        """Why this operation failed, or None."""
        return self._outcome if isinstance(self._outcome, KvError) else None

    def result(self) -> T:
        """Return the operation's own result, or raise its own error.

        Raises:
            RuntimeError: the batch block has not ended, or ended by an exception before it was sent.
        """
        if self._outcome is None:
            raise RuntimeError("the batch has not been sent: leave its `with` block first")
        if isinstance(self._outcome, KvError):
            raise self._outcome
        return self._outcome[0]

    def resolve(self, value: T) -> None:
        self._outcome = (value,)

    def fail(self, error: KvError) -> None:
        self._outcome = error
