"""Ends a process whose loop is stuck in a log write: a small sync may run on the loop itself.

While the loop is stuck the node is silent, so its peers elect others; nothing is acknowledged. But a
process that never comes back should make room for a restart (pitfall 22).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from kvstore.node.patience import Patience

log = logging.getLogger(__name__)


def watch_log(busy_s: Callable[[], float], limit_s: float, period_s: float = 1.0) -> None:
    """Start a daemon thread that exits the process, code 1, once `busy_s()` passes `limit_s`."""

    never = threading.Event()
    patience = Patience(limit_s, period_s)

    def watch() -> None:
        # Not time.sleep: it fails where libfaketime moves the wall clock (tests do).
        while not never.wait(period_s):
            seconds = busy_s()
            if patience.is_over(seconds):
                log.critical("the disk has not finished a log write for %.0f s: this process exits", seconds)
                os._exit(1)

    threading.Thread(target=watch, name="kv-watchdog", daemon=True).start()
