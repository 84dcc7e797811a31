"""The cluster of docker-compose.yml as a target: containers are stopped, killed, frozen and unplugged.

Runs under a project name of its own, on free ports, and removes its containers and volumes at the end. Needs
a container engine that answers, and the image (`docker-compose build`, or KVSTORE_IMAGE).
"""

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from chaos.cluster import Cluster, TargetError, ToolError
from chaos.nemeses import Fault, Nemesis
from chaos.targets import MUTANTS, PROJECT, free_ports

NAMES = ["n1", "n2", "n3"]


class ComposeCluster(Cluster):
    """Three containers. `start` without names brings everything up."""

    def __init__(self, directory: Path, nodes: int = 3, shards: int = 16, mutant: str = "") -> None:
        if nodes != len(NAMES):
            raise TargetError(f"docker-compose.yml has {len(NAMES)} nodes")
        ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
        client = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        super().__init__(directory, NAMES, client, shards)
        directory.mkdir(parents=True, exist_ok=True)
        self._name = f"kvstore-chaos-{os.getpid()}"
        published = {f"KVSTORE_{name.upper()}_PORT": str(port) for name, port in ports.items()}
        self._environment = {**os.environ, **published}
        self._files = ["--file", str(PROJECT / "docker-compose.yml")]
        if mutant:
            self._files += ["--file", str(self._write_mutant(mutant))]
        self._compose("down", "--volumes", "--remove-orphans")
        self._compose("up", "--no-start")
        self.containers = {name: self._compose("ps", "--all", "--quiet", name).strip() for name in NAMES}

    def _write_mutant(self, mutant: str) -> Path:
        own = {
            "environment": {"KVSTORE_MUTANT": mutant, "PYTHONPATH": "/mutants"},
            "volumes": [f"{MUTANTS}:/mutants:ro"],
        }
        path = self.directory / "mutant.yml"
        path.write_text(yaml.safe_dump({"services": dict.fromkeys(NAMES, own)}))
        return path

    def close(self) -> None:
        for name in list(self.paused):
            self.resume(name)
        for name in self.names:
            (self.directory / f"{name}.log").write_text(self.log(name))
        self._compose("down", "--volumes", "--remove-orphans")

    def start(self, *names: str) -> None:
        docker("start", *(self.containers[name] for name in names or self.names))

    def stop(self, name: str, timeout_s: float = 30.0) -> int:
        docker("stop", "--time", str(int(timeout_s)), self.containers[name])
        return int(self._state(name)["ExitCode"])

    def kill(self, name: str) -> None:
        self.paused.discard(name)
        docker("kill", self.containers[name])

    def pause(self, name: str) -> None:
        """Freezes the container's whole process tree."""
        docker("pause", self.containers[name])
        self.paused.add(name)

    def resume(self, name: str) -> None:
        self.paused.discard(name)
        if self.stands_still(name):
            docker("unpause", self.containers[name])

    def stands_still(self, name: str) -> str:
        return "container paused" if self._state(name)["Paused"] else ""

    def is_running(self, name: str) -> bool:
        return bool(self._state(name)["Running"])

    def pid(self, name: str) -> int:
        return int(self._state(name)["Pid"])

    def log(self, name: str) -> str:
        return docker("logs", self.containers[name])

    def networks(self, name: str) -> list[str]:
        inspected = json.loads(docker("inspect", self.containers[name]))
        return sorted(inspected[0]["NetworkSettings"]["Networks"])

    def address(self, name: str) -> str:
        """Of a container in the network of the project, empty if it has none."""
        inspected = json.loads(docker("inspect", self.containers[name]))
        networks = inspected[0]["NetworkSettings"]["Networks"]
        return str(networks.get(self.network_of_project(), {}).get("IPAddress", ""))

    def network_of_project(self) -> str:
        return f"{self._name}_default"

    def _state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(
            docker("inspect", "--format", "{{json .State}}", self.containers[name])
        )
        return state

    def _compose(self, *arguments: str) -> str:
        return _run(
            [*compose_command(), *self._files, "--project-name", self._name, *arguments], self._environment
        )


class Unplug(Nemesis):
    """A container loses its network, peers and clients alike, and gets it back."""

    kind = "unplug"

    def __init__(self, cluster: ComposeCluster, dice: random.Random) -> None:
        super().__init__(cluster, dice)
        self._containers = cluster

    def begin(self, now_s: float) -> Fault | None:
        name = self._any()
        if name is None or not self._containers.networks(name):
            return None
        network = self._containers.network_of_project()
        docker("network", "disconnect", network, self._containers.containers[name])
        fault = self._fault(now_s, name)
        fault.bites = int(not self._containers.networks(name))
        fault.proof = "the container had no network" if fault.bites else "it still had a network"
        return fault

    def end(self, fault: Fault, now_s: float) -> None:
        (name,) = fault.nodes
        network = self._containers.network_of_project()
        # The alias is the name by which the other nodes know it.
        docker("network", "connect", "--alias", name, network, self._containers.containers[name])
        fault.ended = now_s


class Isolate(Nemesis):
    """A container that leads loses its peers, not its clients, by iptables in its own namespace."""

    kind = "isolate"

    def __init__(self, cluster: ComposeCluster, dice: random.Random) -> None:
        super().__init__(cluster, dice)
        self._containers = cluster

    def begin(self, now_s: float) -> Fault | None:
        name = self._leader()
        if name is None:
            return None
        others = [self._containers.address(other) for other in self.cluster.names if other != name]
        fault = self._fault(now_s, name)
        for other in filter(None, others):
            self._iptables(name, "--append", "INPUT", "--source", other, "--jump", "DROP")
            self._iptables(name, "--append", "OUTPUT", "--destination", other, "--jump", "DROP")
        return fault

    def end(self, fault: Fault, now_s: float) -> None:
        (name,) = fault.nodes
        fault.ended = now_s
        try:
            told = self._iptables(name, "--list", "--verbose", "--numeric", "--exact")
            self._iptables(name, "--flush", "INPUT")
            self._iptables(name, "--flush", "OUTPUT")
        except ToolError:
            fault.proof = "its rules went with its container, which another fault ended"
            return
        fault.bites = sum(int(packets) for packets in re.findall(r"(?m)^\s*(\d+)\s+\d+\s+DROP\s", told))
        fault.proof = f"{fault.bites} packets dropped"

    def _iptables(self, name: str, *arguments: str) -> str:
        inside = ["nsenter", f"--net=/proc/{self.cluster.pid(name)}/ns/net"]
        return _run([*inside, "iptables", "--wait", *arguments], dict(os.environ))


COMPOSE_NEMESES: dict[str, Callable[[ComposeCluster, random.Random], Nemesis]] = {
    kind.kind: kind for kind in (Unplug, Isolate)
}


def can_isolate() -> str | None:
    """None if rules can be made inside containers here, else what is missing."""
    if os.geteuid():
        return "needs root for the namespaces of containers"
    missing = [tool for tool in ("nsenter", "iptables") if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else None


def docker(*arguments: str) -> str:
    return _run(["docker", *arguments], dict(os.environ))


def compose_command() -> list[str]:
    return ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]


def can_compose() -> str | None:
    """None if containers can be run here, else what is missing."""
    if shutil.which("docker") is None:
        return "needs docker"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "needs a container engine that answers"
    try:
        _run([*compose_command(), "version"], dict(os.environ))
    except ToolError:
        return "needs docker-compose"
    return None


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ToolError(f"{' '.join(command)}: {done.stdout.strip()}")
    return done.stdout
