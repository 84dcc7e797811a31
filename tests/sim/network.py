"""A seeded network: every frame may be delayed, lost, repeated or overtaken; links may be cut one way."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from kvstore.node.runtime import Lane
from kvstore.types import NodeId
from kvstore.wire import peer
from tests.sim.world import SimRuntime, World

Deliver = Callable[[NodeId, Lane, bytes], None]

Sift = Callable[[NodeId, NodeId, peer.PeerMessage], peer.PeerMessage | None]
"""Source, target, message: what arrives of it, None for nothing."""


class NetworkFaults:
    """Probabilities per frame and delays in seconds; the defaults are a healthy local network."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.repeat = 0.0
        self.repeat_within_s = 0.01
        """How late the second copy may be."""
        self.reorder = 0.0
        self.delay_low, self.delay_high = 0.0002, 0.002


class Network:
    def __init__(self, world: World, dice: Random) -> None:
        self._world = world
        self._dice = dice
        self.faults = NetworkFaults()
        self._listeners: dict[NodeId, Deliver] = {}
        self.cut: set[tuple[NodeId, NodeId]] = set()
        """Directed links on which nothing arrives."""
        self.stuck: set[tuple[NodeId, NodeId, Lane]] = set()
        """Single connections that hang, while others between the same nodes do not."""
        self.delays: dict[tuple[NodeId, NodeId], float] = {}
        """Seconds that a directed link takes more than the others."""
        self.counts = {"sent": 0, "lost": 0, "repeated": 0, "reordered": 0, "cut": 0}
        self.sift: Sift | None = None
        """Set by schedules that decide message by message."""
        self._last_arrival: dict[tuple[NodeId, NodeId, Lane], float] = {}

    def listen(self, node: NodeId, deliver: Deliver) -> None:
        self._listeners[node] = deliver

    def leave(self, node: NodeId) -> None:
        self._listeners.pop(node, None)

    def is_up(self, source: NodeId, target: NodeId) -> bool:
        return target in self._listeners

    def send(self, source: NodeId, target: NodeId, lane: Lane, frame: bytes) -> bool:
        if target not in self._listeners:
            return False
        self.counts["sent"] += 1
        if self.sift is not None:
            passed = [self.sift(source, target, message) for message in peer.decode(frame)]
            frame = peer.encode([message for message in passed if message is not None])
        self._world.stir(frame)
        dice, faults = self._dice, self.faults
        if self._is_cut(source, target, lane):
            self.counts["cut"] += 1
            return True
        if faults.loss and dice.random() < faults.loss:
            self.counts["lost"] += 1
            return True
        arrival = self._arrival(source, target, lane)
        self._world.at(arrival, self._deliver, source, target, lane, frame)
        if faults.repeat and dice.random() < faults.repeat:
            self.counts["repeated"] += 1
            arrival += dice.uniform(0, faults.repeat_within_s)
            self._world.at(arrival, self._deliver, source, target, lane, frame)
        return True

    def reconnect(self) -> None:
        """All links are there again, and as quick as each other."""
        self.cut.clear()
        self.stuck.clear()
        self.delays.clear()

    def _is_cut(self, source: NodeId, target: NodeId, lane: Lane) -> bool:
        return (source, target) in self.cut or (source, target, lane) in self.stuck

    def _arrival(self, source: NodeId, target: NodeId, lane: Lane) -> float:
        dice, faults, link = self._dice, self.faults, (source, target, lane)
        arrival = self._world.now + dice.uniform(faults.delay_low, faults.delay_high)
        if self.delays:
            arrival += self.delays.get((source, target), 0.0)
        if faults.reorder and dice.random() < faults.reorder:
            self.counts["reordered"] += 1
            return arrival + dice.uniform(0, 10 * faults.delay_high)
        arrival = max(arrival, self._last_arrival.get(link, 0.0))
        self._last_arrival[link] = arrival
        return arrival

    def inject(self, source: NodeId, target: NodeId, message: peer.PeerMessage) -> None:
        """Deliver a message that was held back, now."""
        self._deliver(source, target, Lane.CONTROL, peer.encode([message]))

    def _deliver(self, source: NodeId, target: NodeId, lane: Lane, frame: bytes) -> None:
        if self._is_cut(source, target, lane):
            self.counts["cut"] += 1
            return
        listener = self._listeners.get(target)
        if listener is not None:
            listener(source, lane, frame)


class SimTransport:
    """`Transport` of one node on the simulated network."""

    def __init__(self, network: Network, me: NodeId, runtime: SimRuntime) -> None:
        self._network = network
        self._me = me
        self._runtime = runtime

    def send(self, node: NodeId, lane: Lane, frame: bytes) -> bool:
        return bool(self._runtime.when_done(self._network.send, self._me, node, lane, frame))

    def is_connected(self, node: NodeId) -> bool:
        return self._network.is_up(self._me, node)
