"""A cluster without faults of its own: the test says what happens and when. For schedules, where
`scenario.py` is for chance.

Everything but the network, the disks and the clocks is what ships. `ask` plays a client and runs the world
until the answer is there; `send` lets it go on in the background.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from random import Random
from typing import Any

import msgspec

from kvstore.config import Config
from kvstore.errors import Fatal
from kvstore.node.replica import Replica
from kvstore.node.requests import Request, Response
from kvstore.raft.messages import Message
from kvstore.types import NodeId, ShardId
from kvstore.wire import peer
from tests.sim.cluster import Process, SimCluster
from tests.sim.invariants import ClusterInvariants
from tests.sim.world import World
from tests.support.sim_files import Crashed

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
SHARD = ShardId(0)

Edit = Callable[[Config], Config]


class Worst(Random):
    """Fate at its worst: no thread took another step, nothing unsynced survives."""

    def choice(self, seq: Any) -> Any:
        return seq[0]

    def randint(self, a: int, b: int) -> int:
        return a


class Tear(Random):
    """Every thread is caught between its write and its sync, and about half of the sectors survive."""

    def choice(self, seq: Any) -> Any:
        return next(each for each in seq if each in (1, 0.5))


class Pending:
    """An answer that may come. `response` None although `is_done`: the node was down."""

    def __init__(self) -> None:
        self.is_done = False
        self.response: Response | None = None
        self.request: Request | None = None

    def settle(self, response: Response | None) -> None:
        self.is_done, self.response = True, response

    @property
    def status(self) -> int:
        """0: no answer yet, or nobody to give one."""
        return self.response.status if self.response is not None else 0


class Script:
    """By its seed: odd ones sync small batches on the loop, even ones in the log's thread."""

    def __init__(
        self,
        *,
        seed: int = 2,
        nodes: int = 3,
        shards: int = 1,
        edit: Edit = lambda config: config,
        replication: int = 3,
    ) -> None:
        self.world = World(seed)
        self.cluster = SimCluster(self.world, nodes, shards, replication=min(replication, nodes))
        self.cluster.config = edit(self.cluster.config)
        self.cluster.on_exit = self._on_exit
        self.network = self.cluster.network
        self.exits: list[tuple[NodeId, BaseException]] = []
        """Nodes that stopped by themselves."""
        self.violations: list[str] = []
        invariants = ClusterInvariants(self.cluster, self.violations)
        self.world.after_event = invariants.after_event

    def _on_exit(self, process: Process, error: BaseException) -> None:
        self.exits.append((process.name, error))
        self.world.after(0.0, self._end, process)

    def _end(self, process: Process) -> None:
        if self.cluster.processes.get(process.name) is process:
            self.cluster.kill(process.name, power_loss=False)

    # ---- time ------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        self.world.run_until(self.world.now + seconds)

    def run_until(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        assert self.world.run_while(lambda: not condition(), limit_s), f"not within {limit_s} s: {what}"

    # ---- processes -------------------------------------------------------------------------------

    def start(self, *names: NodeId) -> None:
        """Start nodes, by default all, and wait until every shard has a leader."""
        for name in names or self.cluster.config.node_ids():
            self.cluster.start(name)
        self.run_until(self.cluster.has_all_leaders, 15.0, "every shard has a leader")

    def kill(self, *names: NodeId) -> None:
        """End processes; what they wrote stays."""
        for name in names:
            self.cluster.kill(name, power_loss=False)

    def cut_power(self, *names: NodeId, fate: Random | None = None) -> None:
        """End processes; nothing stays but what was synced, if `fate` is no other."""
        for name in names:
            self.cluster.kill(name, power_loss=True, fate=fate or Worst())

    def restart(self, *names: NodeId) -> None:
        for name in names:
            self.cluster.start(name)

    def try_to_start(self, name: NodeId) -> BaseException | None:
        """Start a node that may refuse at once."""
        try:
            self.cluster.start(name)
        except (Fatal, OSError) as error:
            self.cluster.machines[name].files.kill()
            return error
        return None

    def crash_at_step(self, name: NodeId, step: int, path_part: str = "") -> list[str]:
        """Cut the power of a node before its disk's coming change number `step` to such a path. The list
        gets the change that did not happen."""
        files, missed = self.cluster.machines[name].files, []
        steps_left = step

        def on_step(kind: str, path: str) -> None:
            nonlocal steps_left
            if path_part in path:
                steps_left -= 1
                if steps_left < 0:
                    missed.append(f"{kind} {path}")
                    raise Crashed

        files.on_step = on_step
        return missed

    def start_until_crash(self, name: NodeId) -> None:
        """Start a node whose power may go while it starts."""
        try:
            self.cluster.start(name)
        except Crashed:
            self.cluster.processes.pop(name, None)
            self.network.leave(name)
            self.cluster.machines[name].files.crash(self.world.dice)

    def run_through_crashes(self, seconds: float) -> None:
        """Like `run`, with power cuts as told by `crash_at_step`."""
        end = self.world.now + seconds
        while self.world.now < end:
            try:
                self.world.run_until(end)
            except Crashed:
                self._cut_power_of_the_crashed()

    def _cut_power_of_the_crashed(self) -> None:
        for name, machine in self.cluster.machines.items():
            if machine.files.on_step is not None and name in self.cluster.processes:
                self.cluster.kill(name, power_loss=True)

    def process(self, name: NodeId) -> Process:
        return self.cluster.processes[name]

    def replica(self, name: NodeId, shard: int = 0) -> Replica:
        return self.process(name).node.host.replicas[ShardId(shard)]

    def damaged(self) -> dict[NodeId, dict[ShardId, str]]:
        found = {name: process.node.host.damaged for name, process in self.cluster.processes.items()}
        return {name: shards for name, shards in found.items() if shards}

    # ---- leaders ---------------------------------------------------------------------------------

    def leader(self, shard: int = 0) -> NodeId | None:
        process = self.cluster.leader_of(ShardId(shard))
        return None if process is None else process.name

    def lead(self, name: NodeId, *shards: int) -> None:
        """Make `name` the leader of the shards (by default 0), and let it settle."""
        for shard in shards or (0,):
            self.run_until(lambda shard=shard: self.leader(shard) is not None, 15.0, "a leader")  # type: ignore[misc]
            if self.leader(shard) != name:
                self.process(self.leader(shard) or name).node.ask_transfer(ShardId(shard), name)
            self.run_until(lambda shard=shard: self._is_settled(name, shard), 5.0, f"{name} leads")  # type: ignore[misc]
        self.run(0.3)

    def _is_settled(self, name: NodeId, shard: int) -> bool:
        return self.leader(shard) == name and self.replica(name, shard).core.has_committed_in_term

    # ---- the network -----------------------------------------------------------------------------

    def cut(self, source: NodeId, *targets: NodeId) -> None:
        """Nothing arrives any more from `source` at the targets."""
        self.network.cut |= {(source, target) for target in targets}

    def part(self, name: NodeId, *others: NodeId) -> None:
        """Cut both directions between `name` and the others, by default all."""
        for other in others or [each for each in self.cluster.config.node_ids() if each != name]:
            self.cut(name, other)
            self.cut(other, name)

    def mend(self) -> None:
        self.network.cut.clear()
        self.network.sift = None

    def sift(self, allows: Callable[[NodeId, NodeId, Message], bool]) -> None:
        """Decide on each Raft message (source, target, message) whether it may pass."""
        self.edit(lambda source, target, message: message if allows(source, target, message) else None)

    def edit(self, change: Callable[[NodeId, NodeId, Message], Message | None]) -> None:
        """Change Raft messages on their way; None: lost."""

        def changed(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
            if not isinstance(message, peer.RaftMessages):
                return message
            passed = [change(source, target, each) for each in message.messages]
            kept = tuple(each for each in passed if each is not None)
            return peer.RaftMessages(message.shard, kept) if kept else None

        self.network.sift = changed

    # ---- clients ---------------------------------------------------------------------------------

    def send(
        self, name: NodeId, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Pending:
        pending = Pending()
        pending.request = self.cluster.request(name, method, target, headers or {}, body, pending.settle)
        return pending

    def ask(
        self, name: NodeId, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Response:
        pending = self.send(name, method, target, body, headers)
        self.run_until(lambda: pending.is_done, 7.0, f"{method} {target} is answered")
        assert pending.response is not None, f"{name} is down"
        return pending.response

    def put(self, name: NodeId, key: str, value: str, **headers: str) -> Response:
        return self.ask(name, "PUT", f"/v1/kv/{key}", value.encode(), _header_names(headers))

    def get(self, name: NodeId, key: str, consistency: str = "linearizable", **headers: str) -> Response:
        """Headers by name, `_` for `-`."""
        return self.ask(name, "GET", f"/v1/kv/{key}?consistency={consistency}", b"", _header_names(headers))

    def value(self, name: NodeId, key: str, consistency: str = "linearizable") -> str | None:
        """The key's value, None if there is none; only an answer will do."""
        response = self.get(name, key, consistency)
        assert response.status in (200, 404), f"read of {key} at {name}: {response}"
        return response.body.decode() if response.status == 200 else None

    def values(self, name: NodeId, keys: Iterable[str]) -> dict[str, str | None]:
        return {key: self.value(name, key) for key in keys}

    def fill(self, name: NodeId, count: int, prefix: str = "k", value: str = "v") -> dict[str, str]:
        """Write that many keys; returns what must be found again."""
        written = {}
        for number in range(count):
            key = f"{prefix}{number}"
            response = self.put(name, key, f"{value}{number}")
            assert response.status in (200, 201), f"write of {key} at {name}: {response}"
            written[key] = f"{value}{number}"
        return written

    # ---- the verdict -----------------------------------------------------------------------------

    def check(self) -> None:
        """Nothing that must always hold was violated, and all replicas agree."""
        assert not self.violations, self.violations
        for shard, states in self.cluster.state_hashes().items():
            by_index: dict[int, set[int]] = {}
            for applied, state_hash in states.values():
                by_index.setdefault(applied, set()).add(state_hash)
            assert all(len(hashes) == 1 for hashes in by_index.values()), f"shard {shard}: {states}"


def _header_names(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


_numbers = count(1 << 50)


def unremembered(message: peer.PeerMessage) -> peer.PeerMessage:
    """A copy of a forwarded write that its target does not know for one: the node was started anew since, or
    has forwarded thousands meanwhile."""
    assert isinstance(message, peer.ForwardWrite)
    return msgspec.structs.replace(message, id=next(_numbers))


def with_timeouts(**values: Any) -> Edit:
    """Settings of the section `timeouts`, for `Script(edit=...)`."""
    return lambda config: msgspec.structs.replace(
        config, timeouts=msgspec.structs.replace(config.timeouts, **values)
    )
