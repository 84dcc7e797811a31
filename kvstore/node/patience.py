"""When a log write counts as stuck. Pure: who looks says how long it has been under way."""

from __future__ import annotations


class Patience:
    """Judges whether a write is stuck, looking once every `period_s`. Time in which this process was stopped
    or the machine slept doesn't count: a write is not stuck that nobody could finish."""

    def __init__(self, limit_s: float, period_s: float) -> None:
        self._limit_s = limit_s
        self._looks_needed = limit_s / period_s / 2
        self._looks = 0
        """At which a write was seen under way, one after the other."""

    def is_over(self, busy_s: float) -> bool:
        """`busy_s`: for how long the oldest write has been under way; 0: there is none."""
        self._looks = self._looks + 1 if busy_s > 0 else 0
        return busy_s > self._limit_s and self._looks >= self._looks_needed
