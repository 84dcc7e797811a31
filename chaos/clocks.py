"""Moves the wall clock of running nodes, by libfaketime. Their monotonic clocks go on as they are."""

import time
import urllib.request
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from chaos.targets import LocalCluster

PLACES = ("/usr/lib/*/faketime", "/usr/lib/faketime", "/usr/local/lib/faketime", "/usr/lib64/faketime")
NOTICED_S = 5.0
CACHE_S = 1
"""How long a node takes to look at its file again."""


class FakedClocks:
    """Gives each node of a cluster a wall clock that can be moved. To be made before the first start."""

    def __init__(self, cluster: LocalCluster) -> None:
        library = find_library()
        assert library is not None, "see can_fake_clocks"
        self._cluster = cluster
        self._files = {name: cluster.directory / f"{name}.clock" for name in cluster.names}
        for name, file in self._files.items():
            self.move(name, 0)
            cluster.node_environment[name] |= {
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(file),
                "FAKETIME_CACHE_DURATION": str(CACHE_S),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                # With it every timed wait of a thread returns at once, and a node does nothing but wait.
                "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            }

    def move(self, name: str, seconds: int) -> None:
        """Away from the true time by `seconds`."""
        self._files[name].write_text(f"{seconds:+d}")

    def is_moved(self, name: str, seconds: int) -> bool:
        """Wait until the node itself tells such a date. False if it does not in time."""
        deadline = time.monotonic() + NOTICED_S
        while time.monotonic() < deadline:
            if abs(self._told_s(name) - seconds) < 60:
                return True
            time.sleep(0.1)
        return False

    def _told_s(self, name: str) -> float:
        try:
            with urllib.request.urlopen(self._cluster.url(name, "/livez"), timeout=2.0) as reply:
                told = parsedate_to_datetime(reply.headers["Date"])
        except OSError:
            return float("inf")
        return (told - datetime.now(told.tzinfo)) / timedelta(seconds=1)


def find_library() -> Path | None:
    for place in PLACES:
        for path in Path("/").glob(f"{place.lstrip('/')}/libfaketime.so.1"):
            return path
    return None


def can_fake_clocks() -> str | None:
    """None if it works here, else what is missing."""
    return None if find_library() else "needs libfaketime"
