"""The clock by which claims are judged: it goes on while the machine sleeps, and nobody sets it."""

from __future__ import annotations

import time

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)
"""Linux only. Elsewhere a machine that slept may believe for a while that it still holds what it lost."""


def claim_s() -> float:
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)
