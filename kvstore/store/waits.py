"""Queries that may wait: what they wait for, and whether an answer is what they waited for.

A waiting read is asked again after each apply that wrote one of its topics. A topic is the key of a record
in the tablet (`keys`), so that whatever ops do there wakes who waits for it, and no op has to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kvstore.store import keys


class Wait(NamedTuple):
    topics: Callable[[list[Any]], tuple[bytes, ...]]
    """Record keys whose writing may have changed the answer, of the query."""
    is_met: Callable[[list[Any], Any], bool]
    """Whether the answer, second, is worth giving before the wait is over."""


def _key_topics(query: list[Any]) -> tuple[bytes, ...]:
    return (b"h" + query[1],)


def _is_other_revision(query: list[Any], item: list[Any] | None) -> bool:
    known: int | None = query[2]
    if known is None:
        return item is None
    return known != (0 if item is None else item[1])


def _has_changes(query: list[Any], answer: list[Any]) -> bool:
    return bool(answer[1] > query[1])


def _claim_topics(query: list[Any]) -> tuple[bytes, ...]:
    return (keys.claim_mark(query[1], query[2]),)


def _is_not_waiting(query: list[Any], answer: list[Any] | None) -> bool:
    return answer is None or answer[0] > 0


WAITS: Final[dict[str, Wait]] = {
    "wait": Wait(_key_topics, _is_other_revision),
    "claim": Wait(_claim_topics, _is_not_waiting),
    # Every apply writes the counters: cheaper than knowing who wants which change.
    "changes": Wait(lambda query: (keys.META,), _has_changes),
}
"""By name of the query."""
