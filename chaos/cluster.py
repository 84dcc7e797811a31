"""What a cluster is to those who break it: nodes that can be started, stopped, killed, frozen and asked.

`targets.py` has processes on this machine, `network.py` the same on a network that can be broken, and
`compose.py` containers.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class TargetError(Exception):
    """The cluster did not do what was asked of it in time; the message shows the ends of the logs."""


class ToolError(OSError):
    """A tool of the test could not do its part: says nothing of the cluster."""


class Cluster:
    """Base. `client` holds the address of each node for clients; `directory` is for logs and records."""

    def __init__(self, directory: Path, names: Sequence[str], client: dict[str, str], shards: int) -> None:
        self.directory = directory
        self.names = list(names)
        self.client = client
        self.shards = shards
        self.paused: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything that was started."""
        raise NotImplementedError

    # ---- nodes -----------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start nodes (all that do not run if none is named). Returns at once: see `wait_until_served`."""
        raise NotImplementedError

    def stop(self, name: str, timeout_s: float = 30.0) -> int:
        """Ask a node to stop (SIGTERM) and wait. Gives its exit code."""
        raise NotImplementedError

    def kill(self, name: str) -> None:
        """SIGKILL, without a chance to write anything."""
        raise NotImplementedError

    def pause(self, name: str) -> None:
        """Make the node stand still; its connections stay open."""
        raise NotImplementedError

    def resume(self, name: str) -> None:
        raise NotImplementedError

    def stands_still(self, name: str) -> str:
        """What the system says of a paused node; empty if it runs."""
        raise NotImplementedError

    def is_running(self, name: str) -> bool:
        raise NotImplementedError

    def pid(self, name: str) -> int:
        """Process id of a running node: another one after each start."""
        raise NotImplementedError

    def log(self, name: str) -> str:
        raise NotImplementedError

    def is_paused(self, name: str) -> bool:
        return name in self.paused

    def running(self) -> list[str]:
        return [name for name in self.names if self.is_running(name)]

    def restart(self, name: str) -> None:
        """Kill if it runs, start again on the same data."""
        if self.is_running(name):
            self.kill(name)
        self.start(name)

    # ---- what the cluster says of itself ---------------------------------------------------------

    def url(self, name: str, target: str = "") -> str:
        return f"http://{self.client[name]}{target}"

    def get(self, name: str, target: str, timeout_s: float = 2.0) -> Any:
        """GET a JSON document from one node. Raises OSError where there is no good answer."""
        with urllib.request.urlopen(self.url(name, target), timeout=timeout_s) as reply:
            return json.load(reply)

    def is_serving(self, name: str) -> bool:
        """Whether the node answers at all."""
        try:
            self.get(name, "/livez")
        except OSError:
            return False
        return True

    def metrics(self, name: str) -> dict[str, float]:
        """The node's Prometheus metrics, summed over their labels."""
        with urllib.request.urlopen(self.url(name, "/metrics"), timeout=2.0) as reply:
            text = reply.read().decode()
        sums: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name_and_labels, _, value = line.rpartition(" ")
                metric = name_and_labels.partition("{")[0]
                sums[metric] = sums.get(metric, 0.0) + float(value)
        return sums

    def leaders(self, asked: str | None = None) -> dict[int, str | None]:
        """The leader of each shard, as the first node that answers knows it."""
        for name in [asked] if asked else self.running():
            if self.is_paused(name):
                continue
            try:
                rows = self.get(name, "/v1/shards")["shards"]
            except OSError:
                continue
            return {row["id"]: row["leader"] for row in rows if row["id"] < self.shards}
        return {}

    def leader_of(self, shard: int) -> str | None:
        return self.leaders().get(shard)

    def leader_of_key(self, key: str) -> str | None:
        for name in self.running():
            try:
                leader: str | None = self.get(name, f"/v1/keys/{key}/explain")["leader"]
            except OSError:
                continue
            return leader
        return None

    def wait_until_served(self, timeout_s: float = 30.0, names: Sequence[str] | None = None) -> float:
        """Wait until every shard has a leader in the eyes of each of `names` (all running ones).

        Gives the seconds that it took."""
        asked = list(names or self.running())
        begun = time.monotonic()

        def is_served() -> bool:
            known = [self.leaders(name) for name in asked]
            return all(len(leaders) == self.shards and all(leaders.values()) for leaders in known)

        self.wait_until(is_served, timeout_s, f"not all shards have a leader in the eyes of {asked}")
        return time.monotonic() - begun

    def wait_until(
        self, holds: Callable[[], bool], timeout_s: float, complaint: str, pause_s: float = 0.05
    ) -> None:
        """Ask again until `holds()`; its OSErrors count as no. A node that exits meanwhile ends the wait."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if holds():
                    return
            except OSError:
                pass
            self.complain_about_dead()
            if time.monotonic() > deadline:
                raise TargetError(f"{complaint} after {timeout_s} s\n{self.last_words()}")
            time.sleep(pause_s)

    def complain_about_dead(self) -> None:
        """Raise TargetError if a node that should run has ended."""

    def last_words(self, lines: int = 15) -> str:
        """The end of every node's log, for error messages."""
        return "\n".join(
            f"--- {name}\n" + "\n".join(self.log(name).splitlines()[-lines:]) for name in self.names
        )
