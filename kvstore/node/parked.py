"""Reads that wait at one replica for something to be applied.

They were confirmed like any other read, but their answer is not yet what the caller waits for. The replica
asks them again when one of their topics was written, and answers with what is there once their wait is over.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from typing import Any

from kvstore.node.calls import Call
from kvstore.store.waits import WAITS

_STALE_ENDS = 64


class ParkedReads:
    """Calls by topic, and by when their wait is over. A call that was answered meanwhile stays until then
    or until one of its topics is written; whoever takes calls out must expect that."""

    __slots__ = ("_by_topic", "_count", "_ends", "_topics")

    def __init__(self) -> None:
        self._topics: dict[Call, tuple[bytes, ...]] = {}
        self._by_topic: dict[bytes, dict[Call, None]] = {}
        self._ends: list[tuple[float, int, Call]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._topics)

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._topics))

    def park(self, call: Call, answer: Any) -> bool:
        """Keep the call, if `answer` is not what it waits for."""
        wait = WAITS[call.payload[0]]
        if wait.is_met(call.payload, answer):
            return False
        assert call.wait_until is not None, "a read that does not wait"
        topics = self._topics[call] = wait.topics(call.payload)
        for topic in topics:
            self._by_topic.setdefault(topic, {})[call] = None
        self._count += 1
        heapq.heappush(self._ends, (call.wait_until, self._count, call))
        if len(self._ends) > 2 * len(self._topics) + _STALE_ENDS:
            self._ends = [end for end in self._ends if end[2] in self._topics]
            heapq.heapify(self._ends)
        return True

    def written(self, records: Mapping[bytes, bytes | None]) -> list[Call]:
        """Take out whoever waits for one of these records."""
        touched = self._by_topic.keys() & records.keys()
        calls = [call for topic in sorted(touched) for call in self._by_topic[topic]]
        return [call for call in calls if self._take(call)]

    def over(self, now: float) -> list[Call]:
        """Take out whoever has waited long enough."""
        calls = []
        while self._ends and self._ends[0][0] <= now:
            call = heapq.heappop(self._ends)[2]
            if self._take(call):
                calls.append(call)
        return calls

    def take_all(self) -> list[Call]:
        calls = list(self._topics)
        self._topics, self._by_topic, self._ends = {}, {}, []
        return calls

    def drop(self, call: Call) -> None:
        """Nobody waits for this one any more."""
        self._take(call)

    def _take(self, call: Call) -> bool:
        topics = self._topics.pop(call, None)
        if topics is None:
            return False
        for topic in topics:
            waiting = self._by_topic[topic]
            del waiting[call]
            if not waiting:
                del self._by_topic[topic]
        return True
