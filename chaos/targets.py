"""Clusters of real node processes that can be broken: on loopback, in a directory of their own.

`LocalCluster` starts `python -m kvstore.node` for each node, and stops, kills, pauses, restarts and wipes
them. It knows nothing of the server but its command line, its configuration file and its HTTP API. Every
process it starts dies with the one that started it.
"""

import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import yaml

PORTS = range(20_000, 32_000)
"""Below the range that the kernel hands to outgoing connections, so that a node that is down for a while
finds its port free when it comes back."""

PROJECT = Path(__file__).resolve().parent.parent

Settings = Mapping[str, Any]


class TargetError(Exception):
    """The cluster did not do what was asked of it in time; the message names the node and its log."""


class LocalCluster:
    """Some nodes on this machine. Use as a context manager: leaving it kills what still runs.

    `settings` are sections of cluster.yaml (`{"timeouts": {...}}`), `environment` holds variables for
    every node; `node_environment` and `prefix` (a command to run the node under) those of single nodes.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        shards: int = 16,
        settings: Settings | None = None,
        environment: Mapping[str, str] | None = None,
        hosts: Sequence[str] | None = None,
    ) -> None:
        self.directory = directory
        self.names = [f"n{number + 1}" for number in range(nodes)]
        self.shards = shards
        self.environment = dict(environment or {})
        self.node_environment: dict[str, dict[str, str]] = {name: {} for name in self.names}
        self.prefix: dict[str, list[str]] = {name: [] for name in self.names}
        self.enter_command: dict[str, list[str]] = {name: [] for name in self.names}
        """A command that replaces itself by the node, such as nsenter."""
        self.data = {name: directory / name / "data" for name in self.names}
        """Where each node keeps its data; may be moved before the first start."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, IO[bytes]] = {}
        self._paused: set[str] = set()
        addresses = list(hosts or ["127.0.0.1"] * nodes)
        ports = _free_ports(2 * nodes)
        self.client = {name: f"{addresses[i]}:{ports[2 * i]}" for i, name in enumerate(self.names)}
        self.peer = {name: f"{addresses[i]}:{ports[2 * i + 1]}" for i, name in enumerate(self.names)}
        directory.mkdir(parents=True, exist_ok=True)
        self.config = directory / "cluster.yaml"
        self.config.write_text(yaml.safe_dump(self._document(settings or {}), sort_keys=False))

    def _document(self, settings: Settings) -> dict[str, Any]:
        seeds = [
            {"id": name, "client": self.client[name], "peer": self.peer[name], "host": f"host-{name}"}
            for name in self.names
        ]
        return {
            "cluster": "target",
            "replication": min(3, len(self.names)),
            "shards": self.shards,
            "nodes": seeds,
            **settings,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for name in list(self._processes):
            self.kill(name)
        for log in self._logs.values():
            log.close()

    # ---- processes -------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start nodes (all that do not run if none is named). Returns at once: see `wait_until_served`.

        Must be called on the main thread: the kernel ties the child's life to the thread that forked it.
        """
        for name in names or [name for name in self.names if not self.is_running(name)]:
            assert not self.is_running(name), f"{name} runs already"
            place = self.directory / name
            place.mkdir(parents=True, exist_ok=True)
            if name not in self._logs:
                self._logs[name] = (place / "log").open("ab")
            self._processes[name] = subprocess.Popen(
                self.command(name),
                cwd=place,
                env=self._variables(name),
                stdout=self._logs[name],
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            )

    def command(self, name: str) -> list[str]:
        own = [sys.executable, "-m", "kvstore.node", "--config", str(self.config), "--node", name]
        return [*self.prefix[name], *self.enter_command[name], *own, "--data", str(self.data[name])]

    def _variables(self, name: str) -> dict[str, str]:
        paths = [str(PROJECT), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        return {**os.environ, **own, **self.environment, **self.node_environment[name]}

    def stop(self, name: str, timeout_s: float = 30.0) -> int:
        """Ask a node to stop (SIGTERM) and wait. Gives its exit code."""
        process = self._processes.pop(name)
        self._signal(name, process, signal.SIGCONT)
        self._signal(name, process, signal.SIGTERM)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._kill(name, process)
            raise TargetError(
                f"{name} did not stop within {timeout_s} s; see {self.log_path(name)}"
            ) from None

    def kill(self, name: str) -> None:
        """SIGKILL, without a chance to write anything."""
        self._kill(name, self._processes.pop(name))

    def _kill(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self._paused.discard(name)
        below = _children(process.pid) if self.prefix[name] else []
        self._signal(name, process, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}/exe").exists() for pid in below) and time.monotonic() < deadline:
            time.sleep(0.005)

    def pause(self, name: str) -> None:
        """SIGSTOP: the process stands still, its connections stay open."""
        self._paused.add(name)
        self._signal(name, self._processes[name], signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._paused.discard(name)
        self._signal(name, self._processes[name], signal.SIGCONT)

    def restart(self, name: str) -> None:
        """Kill if it runs, start again on the same data."""
        if name in self._processes:
            self.kill(name)
        self.start(name)

    def wipe(self, name: str) -> None:
        """Remove the data of a node that does not run."""
        assert not self.is_running(name), f"{name} runs"
        shutil.rmtree(self.data[name], ignore_errors=True)

    def wait_for_exit(self, name: str, timeout_s: float = 30.0) -> int:
        """Wait for a node that is expected to end by itself. Gives its exit code."""
        try:
            code = self._processes[name].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TargetError(f"{name} still runs after {timeout_s} s; see {self.log_path(name)}") from None
        del self._processes[name]
        return code

    def _signal(self, name: str, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Signal the node itself, also where it runs under a prefix such as strace."""
        for pid in [*_children(process.pid), process.pid] if self.prefix[name] else [process.pid]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def is_running(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def is_paused(self, name: str) -> bool:
        return name in self._paused

    def running(self) -> list[str]:
        return [name for name in self.names if self.is_running(name)]

    def pid(self, name: str) -> int:
        process = self._processes[name]
        return (_children(process.pid) or [process.pid])[-1] if self.prefix[name] else process.pid

    def log_path(self, name: str) -> Path:
        return self.directory / name / "log"

    def log(self, name: str) -> str:
        path = self.log_path(name)
        return path.read_text(errors="replace") if path.exists() else ""

    # ---- what the cluster says of itself ---------------------------------------------------------

    def url(self, name: str, target: str = "") -> str:
        return f"http://{self.client[name]}{target}"

    def get(self, name: str, target: str, timeout_s: float = 2.0) -> Any:
        """GET a JSON document from one node. Raises OSError where there is no good answer."""
        with urllib.request.urlopen(self.url(name, target), timeout=timeout_s) as reply:
            return json.load(reply)

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
            self._complain_about_dead()
            if time.monotonic() > deadline:
                raise TargetError(f"{complaint} after {timeout_s} s\n{self.last_words()}")
            time.sleep(pause_s)

    def _complain_about_dead(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise TargetError(f"{name} ended with {process.returncode}\n{self.last_words()}")

    def last_words(self, lines: int = 15) -> str:
        """The end of every node's log, for error messages."""
        return "\n".join(
            f"--- {name} ({self.log_path(name)})\n" + "\n".join(self.log(name).splitlines()[-lines:])
            for name in self.names
        )


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise TargetError("no free ports")


def _children(pid: int) -> list[int]:
    """Direct children and theirs, the oldest first."""
    found: list[int] = []
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return found
    for child in map(int, text.split()):
        found += [child, *_children(child)]
    return found


def _die_with_parent() -> None:
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
