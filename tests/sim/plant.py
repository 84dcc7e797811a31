"""The list that planted bugs are entered in, see `mutations.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    name: str
    pitfall: int
    claim: str
    plant: Callable[[], Any]
    """Makes the context manager in which the bug is there."""


MUTATIONS: dict[str, Mutation] = {}


def planted(pitfall: int, claim: str) -> Callable[[Callable[[], Iterator[None]]], None]:
    def register(plant: Callable[[], Iterator[None]]) -> None:
        name = plant.__name__
        MUTATIONS[name] = Mutation(name, pitfall, claim, contextmanager(plant))

    return register
