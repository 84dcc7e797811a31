"""A cluster whose nodes live in network namespaces, joined by something that can break each link apart.

That is a process of ours (`switch.py`) or the kernel (`bridge.py`). The process that uses the cluster moves
into a namespace of the same network (`enter`), so that its requests cross it too, and its links can be cut.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chaos.cluster import TargetError
from chaos.targets import PROJECT, LocalCluster

CLIENT = "10.77.0.254"

Links = dict[tuple[str, str], dict[str, Any]]
"""Rule of each direction, by the names of sender and receiver (`chaos/switch.py`, Rule)."""


class Network:
    """The process that joins the namespaces: `chaos.switch`, or `chaos.bridge`, where the kernel does it."""

    def __init__(self, addresses: Iterable[str], program: str) -> None:
        self._switch = subprocess.Popen(
            [sys.executable, "-m", program, *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
        )
        assert self._switch.stdout is not None
        line = self._switch.stdout.readline()
        if not line:
            raise TargetError(f"{program} did not start")
        self._lock = threading.Lock()
        self.namespaces: dict[str, str] = json.loads(line)["namespaces"]

    def enter(self, address: str) -> None:
        """Move this thread, and every thread and process that it starts, into a namespace."""
        handle = os.open(self.namespaces[address], os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(handle, 0):
                raise OSError(ctypes.get_errno(), f"cannot enter the namespace of {address}")
        finally:
            os.close(handle)

    def set_links(self, links: Mapping[str, Mapping[str, Any]]) -> None:
        self._tell({"links": links})

    def counters(self) -> dict[str, int]:
        """Packets by `source>target fate`."""
        found: dict[str, int] = self._tell({"counters": True})
        return found

    def _tell(self, command: Mapping[str, Any]) -> Any:
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        with self._lock:
            self._switch.stdin.write(json.dumps(command) + "\n")
            self._switch.stdin.flush()
            return json.loads(self._switch.stdout.readline())

    def close(self) -> None:
        self._switch.kill()
        self._switch.wait()


class NetworkedCluster(LocalCluster):
    """`LocalCluster` with a namespace and an address for each node."""

    def __init__(
        self, directory: Path, nodes: int = 3, program: str = "chaos.switch", **options: Any
    ) -> None:
        hosts = [f"10.77.0.{number + 1}" for number in range(nodes)]
        self.network = Network([*hosts, CLIENT], program)
        self.network.enter(CLIENT)
        super().__init__(directory, nodes, hosts=hosts, **options)
        self.address = dict(zip(self.names, hosts, strict=True)) | {"clients": CLIENT}
        for name in self.names:
            namespace = self.network.namespaces[self.address[name]]
            self.enter_command[name] = ["nsenter", f"--net={namespace}"]
        self._links: dict[int, Links] = {}
        self._lock = threading.Lock()
        self._next = 0

    def break_links(self, links: Links) -> int:
        """Add rules to links; gives a handle for `mend_links`. All rules of a link hold at once."""
        with self._lock:
            self._next += 1
            self._links[self._next] = links
            self._apply()
            return self._next

    def mend_links(self, handle: int) -> None:
        with self._lock:
            self._links.pop(handle, None)
            self._apply()

    def _apply(self) -> None:
        merged: dict[str, Mapping[str, Any]] = {}
        for links in self._links.values():
            for (source, target), rule in links.items():
                name = f"{self.address[source]}>{self.address[target]}"
                merged[name] = both(merged[name], rule) if name in merged else rule
        self.network.set_links(merged)

    def packets(self, links: Iterable[tuple[str, str]], fates: Iterable[str]) -> int:
        """How many packets of these links had one of these fates (dropped, delayed, duplicated) so far."""
        names = {f"{self.address[a]}>{self.address[b]} {fate}" for a, b in links for fate in fates}
        return sum(count for name, count in self.network.counters().items() if name in names)

    def close(self) -> None:
        super().close()
        self.network.close()


def both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The rule of a link on which two rules hold."""
    rule = {**one, **other}
    if "loss" in one and "loss" in other:
        rule["loss"] = 1 - (1 - one["loss"]) * (1 - other["loss"])
    if "bytes_per_s" in one and "bytes_per_s" in other:
        rule["bytes_per_s"] = min(one["bytes_per_s"], other["bytes_per_s"])
    return rule


def can_make_networks(target: str) -> str | None:
    """None if the network of this target (netns or hosts) can be made here, else what is missing."""
    if os.geteuid():
        return "needs root for network namespaces"
    tools = ["ip", "nsenter"] + (["iptables-restore", "iptables-save", "tc"] if target == "hosts" else [])
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    return None if target == "hosts" or Path("/dev/net/tun").exists() else "needs /dev/net/tun"
