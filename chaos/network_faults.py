"""Faults of the network, for clusters on a switch of their own (`network.py`). Proof: counted packets."""

import random
import threading
from collections.abc import Iterable
from typing import Any

from chaos.nemeses import Fault, Nemesis
from chaos.network import Links, NetworkedCluster

CUT = {"cut": True}


class LinkFault(Nemesis):
    """Base: `_choose` names the nodes that are hit and the rules of the links. Proof: packets that had one
    of its `fates` on these links."""

    fates: tuple[str, ...] = ("dropped",)

    def __init__(self, cluster: NetworkedCluster, dice: random.Random) -> None:
        super().__init__(cluster, dice)
        self.network = cluster
        self._open: dict[int, tuple[int, Links, int]] = {}

    def begin(self, now_s: float) -> Fault | None:
        nodes, links = self._choose()
        before = self.network.packets(links, self.fates)
        fault = self._fault(now_s, *nodes)
        self._open[id(fault)] = (self.network.break_links(links), links, before)
        return fault

    def has_bitten(self, fault: Fault) -> bool:
        _, links, before = self._open[id(fault)]
        return self.network.packets(links, self.fates) > before

    def end(self, fault: Fault, now_s: float) -> None:
        handle, links, before = self._open.pop(id(fault))
        self.network.mend_links(handle)
        fault.bites = self.network.packets(links, self.fates) - before
        fault.proof = f"{fault.bites} packets {' or '.join(self.fates)}"
        fault.ended = now_s

    def _choose(self) -> tuple[list[str], Links]:
        raise NotImplementedError

    def _others(self, name: str) -> list[str]:
        return [other for other in self.cluster.names if other != name]

    def _some(self) -> str:
        return self.dice.choice(self.cluster.names)

    def _peers(self, rule: dict[str, Any]) -> Links:
        names = self.cluster.names
        return {(a, b): rule for a in names for b in names if a != b}


class Partition(LinkFault):
    """A random minority is cut off from the others; clients reach both sides."""

    kind = "partition"

    def _choose(self) -> tuple[list[str], Links]:
        names = self.cluster.names
        minority = self.dice.sample(names, self.dice.randint(1, (len(names) - 1) // 2))
        return minority, between(minority, [name for name in names if name not in minority])


class CutLeader(LinkFault):
    """A leader is cut off from its peers, not from its clients: it must not answer reads for long."""

    kind = "cut-leader"

    def _choose(self) -> tuple[list[str], Links]:
        name = self._leader() or self._some()
        return [name], between([name], self._others(name))


class OneWay(LinkFault):
    """One node hears the others but is not heard, or the other way round."""

    kind = "one-way"

    def _choose(self) -> tuple[list[str], Links]:
        name = self._leader() or self._some()
        if self.dice.random() < 0.5:
            return [name], {(name, other): CUT for other in self._others(name)}
        return [name], {(other, name): CUT for other in self._others(name)}


class Bridge(LinkFault):
    """Two nodes do not reach each other, both reach the third: not transitive."""

    kind = "bridge"

    def _choose(self) -> tuple[list[str], Links]:
        pair = self.dice.sample(self.cluster.names, 2)
        return pair, between(pair[:1], pair[1:])


class CutClients(LinkFault):
    """One node keeps its peers and loses its clients."""

    kind = "cut-clients"

    def _choose(self) -> tuple[list[str], Links]:
        name = self._some()
        return [name], between([name], ["clients"])


class Loss(LinkFault):
    """Packets between all nodes get lost at random."""

    kind = "loss"

    def _choose(self) -> tuple[list[str], Links]:
        return self.cluster.names, self._peers({"loss": self.dice.choice([0.02, 0.1, 0.25])})


class Delay(LinkFault):
    """Packets between all nodes are late, out of order and sometimes doubled."""

    kind = "delay"
    fates = ("delayed", "duplicated")

    def _choose(self) -> tuple[list[str], Links]:
        late = self.dice.choice([20, 60, 150])
        return self.cluster.names, self._peers({"delay_ms": [1, late], "duplicate": 0.05})


class Slow(LinkFault):
    """One node's links carry little."""

    kind = "slow"
    fates = ("delayed", "dropped")

    def _choose(self) -> tuple[list[str], Links]:
        name = self._some()
        rule = {"bytes_per_s": self.dice.choice([3_000, 15_000])}
        others = self._others(name)
        return [name], {(a, b): rule for other in others for a, b in ((name, other), (other, name))}


class Flap(LinkFault):
    """One node's links come and go, at the pace of the election timeout and faster."""

    kind = "flap"

    def __init__(self, cluster: NetworkedCluster, dice: random.Random) -> None:
        super().__init__(cluster, dice)
        self._flappers: dict[int, tuple[threading.Event, threading.Thread]] = {}

    def _choose(self) -> tuple[list[str], Links]:
        name = self._some()
        return [name], between([name], self._others(name))

    def begin(self, now_s: float) -> Fault | None:
        fault = super().begin(now_s)
        if fault is not None:
            stop, seed = threading.Event(), self.dice.random()
            flapper = threading.Thread(
                target=self._flap, args=(fault, stop, random.Random(seed)), daemon=True
            )
            self._flappers[id(fault)] = (stop, flapper)
            flapper.start()
        return fault

    def _flap(self, fault: Fault, stop: threading.Event, dice: random.Random) -> None:
        handle, links, before = self._open[id(fault)]
        is_cut = True
        while not stop.wait(dice.choice([0.05, 0.3, 1.0, 1.5])):
            if is_cut:
                self.network.mend_links(handle)
            else:
                handle = self.network.break_links(links)
                self._open[id(fault)] = (handle, links, before)
            is_cut = not is_cut

    def end(self, fault: Fault, now_s: float) -> None:
        stop, flapper = self._flappers.pop(id(fault))
        stop.set()
        flapper.join()
        super().end(fault, now_s)


def between(some: Iterable[str], others: Iterable[str]) -> Links:
    """Cuts in both directions between two groups."""
    reached = list(others)
    return {pair: CUT for a in some for b in reached for pair in ((a, b), (b, a))}


NETWORK_NEMESES: dict[str, type[LinkFault]] = {
    kind.kind: kind for kind in (Partition, CutLeader, OneWay, Bridge, CutClients, Loss, Delay, Slow, Flap)
}
