"""Latencies as a histogram of bounded size and bounded error, after HdrHistogram's idea: buckets that are
linear within each power of two."""

from __future__ import annotations

from collections.abc import Iterator

_SUB_BITS = 6
_SUB_COUNT = 1 << _SUB_BITS
"""Buckets per power of two: a value is off by at most 1/64 of itself."""


class Histogram:
    """Counts whole microseconds. Memory grows with the logarithm of the largest value only."""

    __slots__ = ("_counts", "count", "largest", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.largest = 0

    def add(self, value: int) -> None:
        at = _bucket(value)
        self._counts[at] = self._counts.get(at, 0) + 1
        self.count += 1
        self.total += value
        if value > self.largest:
            self.largest = value

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> int:
        """Return a value that `percent` of all are at or below; 0 when there is none."""
        wanted = self.count * percent / 100
        seen = 0
        for at in sorted(self._counts):
            seen += self._counts[at]
            if seen >= wanted:
                return min(_top(at), self.largest)
        return 0

    def doublings(self) -> Iterator[tuple[int, int, int]]:
        """Yield (low, high, count) for each power of two between the smallest and the largest value."""
        by_power: dict[int, int] = {}
        for at, count in self._counts.items():
            power = _top(at).bit_length()
            by_power[power] = by_power.get(power, 0) + count
        if by_power:
            for power in range(min(by_power), max(by_power) + 1):
                yield (1 << power) >> 1, (1 << power) - 1, by_power.get(power, 0)


def _bucket(value: int) -> int:
    shift = max(0, value.bit_length() - _SUB_BITS - 1)
    return (shift << _SUB_BITS) + (value >> shift)


def _top(bucket: int) -> int:
    """The largest value that falls into a bucket."""
    if bucket < 2 * _SUB_COUNT:
        return bucket
    shift = (bucket >> _SUB_BITS) - 1
    return ((bucket - (shift << _SUB_BITS) + 1) << shift) - 1
