"""What a watch yields. Match on the class:

    async for change in kv.watch(prefix="cfg/"):
        match change:
            case Put(key, value):
                mirror[key] = value
            case Delete(key) | Expire(key):
                mirror.pop(key, None)
            case Resynced(items):
                mirror = {item.key: item.value for item in items}

Changes of one key come in their order, each once. Each has a position, from which another watch can go on.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.client.results import Item, Leader


@dataclass(frozen=True, slots=True)
class Put:
    """A key was written."""

    key: bytes
    value: bytes
    revision: int
    pos: str
    prev: Item | None = None
    """What it held before, where `prev=True` asked for it and it existed."""

    @property
    def text(self) -> str:
        return self.value.decode()


@dataclass(frozen=True, slots=True)
class Delete:
    """A key was deleted by someone."""

    key: bytes
    revision: int
    pos: str
    prev: Item | None = None


@dataclass(frozen=True, slots=True)
class Expire:
    """A key's time to live ran out, or its lease ended."""

    key: bytes
    revision: int
    pos: str
    prev: Item | None = None


@dataclass(frozen=True, slots=True)
class Resynced:
    """Everything that is watched, as it was at `pos`: keys that are not in it are gone. It comes first where
    a watch begins with a snapshot, and later where changes could not be followed without a gap, because
    their history had been compacted."""

    items: tuple[Item, ...]
    pos: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Nothing that is watched has changed up to `pos`."""

    pos: str


Change = Put | Delete | Expire | Resynced | Progress


def elected(change: Change) -> Leader | None:
    """Who holds an office after a change of its key."""
    match change:
        case Put(_, value, revision):
            return Leader(value, revision)
        case Resynced(items) if items:
            return Leader(items[0].value, items[0].revision)
        case _:
            return None
