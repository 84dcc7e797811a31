"""Clusters of real node processes that can be broken: on loopback, in a directory of their own.

`LocalCluster` starts `python -m kvstore.node` for each node, and stops, kills, pauses, restarts and wipes
them. It knows nothing of the server but its command line, its configuration file and its HTTP API. Every
process it starts dies with the one that started it.
"""

import ctypes
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from chaos.cluster import Cluster, TargetError

PORTS = range(20_000, 32_000)
"""Below the range that the kernel hands to outgoing connections, so that a node that is down for a while
finds its port free when it comes back."""

PROJECT = Path(__file__).resolve().parent.parent

MUTANTS = Path(__file__).resolve().parent / "mutants"

Settings = Mapping[str, Any]


class LocalCluster(Cluster):
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
        names = [f"n{number + 1}" for number in range(nodes)]
        addresses = list(hosts or ["127.0.0.1"] * nodes)
        ports = free_ports(2 * nodes)
        client = {name: f"{addresses[i]}:{ports[2 * i]}" for i, name in enumerate(names)}
        super().__init__(directory, names, client, shards)
        self.peer = {name: f"{addresses[i]}:{ports[2 * i + 1]}" for i, name in enumerate(names)}
        self.environment = dict(environment or {})
        self.python_path = [PROJECT]
        self.node_environment: dict[str, dict[str, str]] = {name: {} for name in self.names}
        self.prefix: dict[str, list[str]] = {name: [] for name in self.names}
        self.enter_command: dict[str, list[str]] = {name: [] for name in self.names}
        """A command that replaces itself by the node, such as nsenter."""
        self.data = {name: directory / name / "data" for name in self.names}
        """Where each node keeps its data; may be moved before the first start."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, IO[bytes]] = {}
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
        paths = [*map(str, self.python_path), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        given = {**os.environ, **own, **self.environment, **self.node_environment[name]}
        # Installed programs have their bytecode: without it every restart would compile everything again.
        given.pop("PYTHONDONTWRITEBYTECODE", None)
        return given

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
        self.paused.discard(name)
        below = _children(process.pid) if self.prefix[name] else []
        self._signal(name, process, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while any(map(_lives, below)) and time.monotonic() < deadline:
            time.sleep(0.005)

    def pause(self, name: str) -> None:
        """SIGSTOP: the process stands still, its connections stay open."""
        self.paused.add(name)
        self._signal(name, self._processes[name], signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.paused.discard(name)
        self._signal(name, self._processes[name], signal.SIGCONT)

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

    def complain_about_dead(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise TargetError(f"{name} ended with {process.returncode}\n{self.last_words()}")

    def stands_still(self, name: str) -> str:
        state = re.search(r"State:\s+(.*)", Path(f"/proc/{self.pid(name)}/status").read_text())
        return f"process state {state[1]}" if state and state[1].startswith("T") else ""

    def pid(self, name: str) -> int:
        process = self._processes[name]
        return (_children(process.pid) or [process.pid])[-1] if self.prefix[name] else process.pid

    def log_path(self, name: str) -> Path:
        return self.directory / name / "log"

    def log(self, name: str) -> str:
        path = self.log_path(name)
        return path.read_text(errors="replace") if path.exists() else ""


def plant(cluster: LocalCluster, mutant: str) -> None:
    """Give every node that starts from now on a known bug (`chaos/mutants`)."""
    cluster.environment["KVSTORE_MUTANT"] = mutant
    cluster.python_path = [PROJECT, MUTANTS]


def free_ports(count: int) -> list[int]:
    """Ports that are free now and that no outgoing connection will take."""
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


def _lives(pid: int) -> bool:
    """Whether any thread of the process is left, and with it its open files."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


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
