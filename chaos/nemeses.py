"""The faults. Each can be started and ended, names what it hit, and proves by numbers that it bit.

A fault that did nothing makes a run worthless without anybody noticing, so a proof never rests on the
intention: a kill shows another process id, a pause the process state that the kernel reports, a cut the
packets that were dropped.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from chaos.cluster import Cluster, TargetError


@dataclass
class Fault:
    """One occurrence. Times are of the same clock as the history's."""

    kind: str
    nodes: list[str]
    begun: float
    ended: float = 0.0
    bites: int = 0
    """0: it did nothing. What is counted depends on the kind; `proof` says it."""
    proof: str = ""


@dataclass
class Nemesis:
    """One kind of fault. `begin` may block and is called on a thread; `end` is called on the main thread,
    must be quick, and must leave the cluster as it was before."""

    cluster: Cluster
    dice: random.Random
    faults: list[Fault] = field(default_factory=list)
    kind = ""

    def begin(self, now_s: float) -> Fault | None:
        """Break something. None if there is nothing to break, because other faults have it already. Raises
        TargetError where a node does not do what it must, OSError where a tool fails."""
        raise NotImplementedError

    def has_bitten(self, fault: Fault) -> bool:
        """Whether an open fault may end: one that waits for somebody to run into it lasts until then."""
        return True

    def end(self, fault: Fault, now_s: float) -> None:
        raise NotImplementedError

    def _fault(self, now_s: float, *nodes: str) -> Fault:
        fault = Fault(self.kind, list(nodes), now_s)
        self.faults.append(fault)
        return fault

    def _whole(self) -> list[str]:
        """Nodes that nothing is wrong with."""
        return [name for name in self.cluster.running() if not self.cluster.is_paused(name)]

    def _any(self) -> str | None:
        whole = self._whole()
        return self.dice.choice(whole) if whole else None

    def _leader(self) -> str | None:
        """The leader of some shard."""
        leading = sorted({name for name in self.cluster.leaders().values() if name in self._whole()} - {None})
        return self.dice.choice([name for name in leading if name]) if leading else self._any()


class Kill(Nemesis):
    """SIGKILL of one node, started again when the fault ends."""

    kind = "kill"

    def __init__(self, cluster: Cluster, dice: random.Random) -> None:
        super().__init__(cluster, dice)
        self._before: dict[str, int] = {}

    def begin(self, now_s: float) -> Fault | None:
        victims = self._victims()
        if not victims:
            return None
        for name in victims:
            self._before[name] = self.cluster.pid(name)
        for name in victims:
            self.cluster.kill(name)
        return self._fault(now_s, *victims)

    def _victims(self) -> list[str]:
        name = self._any()
        return [name] if name else []

    def end(self, fault: Fault, now_s: float) -> None:
        for name in fault.nodes:
            if self.cluster.is_running(name):
                continue
            self.cluster.start(name)
            if self.cluster.pid(name) != self._before[name]:
                fault.bites += 1
        fault.proof = f"{fault.bites} processes replaced by new ones"
        fault.ended = now_s


class KillLeader(Kill):
    """SIGKILL of a node that leads."""

    kind = "kill-leader"

    def _victims(self) -> list[str]:
        name = self._leader()
        return [name] if name else []


class KillAll(Kill):
    """SIGKILL of every node at the same moment."""

    kind = "kill-all"

    def _victims(self) -> list[str]:
        return self._whole()


class Stop(Kill):
    """SIGTERM and a clean stop of one node, started again when the fault ends."""

    kind = "stop"

    def begin(self, now_s: float) -> Fault | None:
        name = self._any()
        if name is None or not self.cluster.is_serving(name):
            return None  # a process that has not even begun to run knows nothing of clean ends
        self._before[name] = self.cluster.pid(name)
        fault = self._fault(now_s, name)
        code = self.cluster.stop(name)
        if code:
            raise TargetError(f"{name} ended with {code} when asked to stop\n{self.cluster.last_words()}")
        return fault


class Pause(Nemesis):
    """SIGSTOP of one node: it holds all its connections and knows nothing of the time that passes."""

    kind = "pause"

    def begin(self, now_s: float) -> Fault | None:
        name = self._victim()
        if name is None:
            return None
        self.cluster.pause(name)
        return self._fault(now_s, name)

    def _victim(self) -> str | None:
        return self._any()

    def end(self, fault: Fault, now_s: float) -> None:
        (name,) = fault.nodes
        if self.cluster.is_running(name):
            proof = self.cluster.stands_still(name)
            fault.bites = int(bool(proof))
            fault.proof = f"{proof or 'it ran'} for {now_s - fault.begun:.1f} s"
            self.cluster.resume(name)
        fault.ended = now_s


class PauseLeader(Pause):
    """SIGSTOP of a node that leads."""

    kind = "pause-leader"

    def _victim(self) -> str | None:
        return self._leader()


NEMESES: dict[str, Callable[[Cluster, random.Random], Nemesis]] = {
    kind.kind: kind for kind in (Kill, KillLeader, KillAll, Stop, Pause, PauseLeader)
}


def heal(cluster: Cluster) -> None:
    """Start what is down, resume what is paused. Must be called on the main thread (`Cluster.start`)."""
    for name in cluster.names:
        if not cluster.is_running(name):
            cluster.start(name)
        elif cluster.is_paused(name):
            cluster.resume(name)
