"""All targets and all nemeses, and which of them go together."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.clocks import FakedClocks, can_fake_clocks
from chaos.cluster import Cluster
from chaos.compose import COMPOSE_NEMESES, ComposeCluster, Isolate, can_compose, can_isolate
from chaos.disks import can_mount
from chaos.injection import can_inject
from chaos.machine_faults import MACHINE_NEMESES, ClockJump, Power, PoweredCluster
from chaos.nemeses import NEMESES, Nemesis
from chaos.network import NetworkedCluster, can_make_networks
from chaos.network_faults import NETWORK_NEMESES
from chaos.targets import LocalCluster, plant

TARGETS = ("local", "hosts", "netns", "compose")
"""local: processes on loopback. hosts: processes in network namespaces with veth pairs and a bridge, broken
by iptables, NFQUEUE and tbf. netns: the same on a switch of ours, which needs less of the kernel. compose:
the containers of docker-compose.yml."""

NETWORKS = {"hosts": "chaos.bridge", "netns": "chaos.switch"}

_BY_STRACE = ("slow-disk", "fail-disk")


class Target:
    """The cluster of a run, with the disks that its nemeses need. Use as a context manager."""

    def __init__(
        self, kind: str, directory: Path, names: Sequence[str], nodes: int, shards: int, mutant: str = ""
    ) -> None:
        self.cluster: Cluster
        if kind == "compose":
            self.cluster = ComposeCluster(directory, nodes, shards, mutant)
        elif kind in NETWORKS:
            self.cluster = NetworkedCluster(directory, nodes, NETWORKS[kind], shards=shards)
        else:
            self.cluster = LocalCluster(directory, nodes=nodes, shards=shards)
        if mutant and isinstance(self.cluster, LocalCluster):
            plant(self.cluster, mutant)
        self._disks: PoweredCluster | None = None
        if Power.kind in names:
            assert isinstance(self.cluster, LocalCluster), "containers have no disks of ours"
            self._disks = PoweredCluster(self.cluster)
        self._clocks: FakedClocks | None = None
        if ClockJump.kind in names:
            assert isinstance(self.cluster, LocalCluster), "containers have clocks of their own"
            self._clocks = FakedClocks(self.cluster)

    def nemeses(self, names: Sequence[str], dice: random.Random) -> list[Nemesis]:
        """The named faults, ready to be used on this cluster."""
        made: list[Nemesis] = []
        for name in names:
            if name in NETWORK_NEMESES:
                assert isinstance(self.cluster, NetworkedCluster), f"{name} needs the target hosts or netns"
                made.append(NETWORK_NEMESES[name](self.cluster, dice))
            elif name in COMPOSE_NEMESES:
                assert isinstance(self.cluster, ComposeCluster), f"{name} needs the target compose"
                made.append(COMPOSE_NEMESES[name](self.cluster, dice))
            elif name in MACHINE_NEMESES:
                assert isinstance(self.cluster, LocalCluster), f"{name} needs processes of ours"
                made.append(MACHINE_NEMESES[name](self.cluster, dice))
            else:
                made.append(NEMESES[name](self.cluster, dice))
            if isinstance(made[-1], Power):
                assert self._disks is not None, "the target was made for other nemeses"
                made[-1].disks = self._disks
            if isinstance(made[-1], ClockJump):
                assert self._clocks is not None, "the target was made for other nemeses"
                made[-1].clocks = self._clocks
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cluster.close()
        if self._disks is not None:
            self._disks.close()


def faults_of(target: str) -> dict[str, Callable[..., Nemesis]]:
    """Every nemesis that this target can have, by name."""
    if target == "compose":
        return {**NEMESES, **COMPOSE_NEMESES}
    own = {**NEMESES, **MACHINE_NEMESES}
    return {**own, **NETWORK_NEMESES} if target in NETWORKS else own


def misuse(names: Sequence[str], target: str) -> str | None:
    """Why these nemeses can never run on this target; None if they can."""
    known = {**faults_of("hosts"), **faults_of("compose")}
    unknown = [name for name in names if name not in known]
    if unknown:
        return f"unknown nemesis {', '.join(unknown)}; known: {', '.join(known)}"
    for name in names:
        if name not in faults_of(target):
            others = [other for other in ("local", "hosts", "compose") if name in faults_of(other)]
            return f"the target {target} cannot have {name}; use --target {' or '.join(others)}"
    return None


def missing_for(names: Sequence[str], target: str) -> str | None:
    """What this machine lacks for these nemeses on this target; None if it lacks nothing."""
    if target in NETWORKS and (missing := can_make_networks(target)):
        return f"the target {target} {missing}"
    if target == "compose" and (missing := can_compose()):
        return f"the target compose {missing}"
    for name in names:
        if name in _BY_STRACE and (missing := can_inject()):
            return f"{name} {missing}"
        if name == Isolate.kind and (missing := can_isolate()):
            return f"{name} {missing}"
        if name == ClockJump.kind and (missing := can_fake_clocks()):
            return f"{name} {missing}"
        if name == Power.kind and (missing := can_mount()):
            return f"{name} {missing}"
    return None


def describe() -> str:
    """Every nemesis with what it does, for people."""
    lines = []
    for title, kinds in (
        ("on every target", NEMESES),
        ("of the machine (root; strace, loop devices, time namespaces, libfaketime)", MACHINE_NEMESES),
        ("of the network (--target hosts or netns)", NETWORK_NEMESES),
        ("of containers (--target compose)", COMPOSE_NEMESES),
    ):
        lines.append(f"{title}:")
        lines += [f"  {name:<13} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in kinds.items()]
    return "\n".join(lines)
