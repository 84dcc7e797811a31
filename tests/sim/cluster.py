"""A whole cluster of real nodes on virtual time: the code that ships, on a faked network, disk and clock.

What is faked: `Runtime` (time, dice, threads), `Transport` (network), `Files` (disk). What runs as it
ships: API handlers, router, host, Raft, log, store with the memory engine, first boot, snapshots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

from multidict import CIMultiDict, CIMultiDictProxy

from kvstore.config import Config, parse_config
from kvstore.node.api import Api
from kvstore.node.handshake import Addresses
from kvstore.node.keeper import KeeperSettings
from kvstore.node.node import Node
from kvstore.node.replica import Replica
from kvstore.node.requests import BodyStream, Request, Response
from kvstore.node.requests import Sink as RequestSink
from kvstore.node.runtime import Lane
from kvstore.node.trace import Observe
from kvstore.node.view import NodeView
from kvstore.placement import ShardMap
from kvstore.store.engine import Engines
from kvstore.store.memory import MemoryEngines
from kvstore.types import NodeId, ShardId
from kvstore.wire.peer import PeerProtocolError
from tests.sim.network import Network, SimTransport
from tests.sim.world import DiskTimes, SimRuntime, World
from tests.support.sim_files import Crashed, SimFiles

DATA = "/data"


class Process:
    """One life of one node."""

    def __init__(self, cluster: SimCluster, name: NodeId) -> None:
        self.name = name
        self.cluster = cluster
        machine = cluster.machines[name]
        machine.lives += 1
        self.life = f"{name}/{machine.lives}"
        """No other process has the same; its id() may be another's once it is gone."""
        dice = Random(f"{cluster.world.seed}/{name}/{machine.lives}")
        self.runtime = SimRuntime(cluster.world, name, dice, machine.disk, machine.clock_rate)
        self.runtime.offset = machine.clock_offset
        self.transport = SimTransport(cluster.network, name, self.runtime)
        self.runtime.on_run = self._on_run
        machine.files.on_datasync = lambda path: self.runtime.block("wal")
        self.failure: BaseException | None = None
        addresses = Addresses()
        self.node = Node(
            cluster.config,
            name,
            self.runtime,
            self.transport,
            machine.files,
            DATA,
            machine.engines(),
            addresses,
            self._on_fatal,
            cluster.observe(name),
        )
        if cluster.keeper is not None:
            self.node.keeper._settings = cluster.keeper
        self.touched: dict[ShardId, Replica] = {}
        """Replicas that may have changed since somebody last looked and cleared this."""
        self._note_touched()
        self.before_add: list[Callable[[Replica], None]] = []
        """Who looks at, or prepares, each replica that comes to this node."""
        self._tell_adds()
        cluster.on_process(self)
        self._tell_roles()
        mine = cluster.config.node(name)
        addresses.announce(name, mine.peer, mine.client)
        view = NodeView(self.node, self.transport)
        self.api = Api(self.node.router, view, cluster.config, self.runtime, self.node.watches)

    def _note_touched(self) -> None:
        """Whatever changes a replica marks it dirty, takes its turn in a pass, or changes its role."""
        host, touched = self.node.host, self.touched
        mark_dirty, advance, watch_role = host.mark_dirty, host.advance, host._watch_role

        def marked(replica: Replica) -> None:
            touched[replica.shard] = replica
            mark_dirty(replica)

        def advanced(replica: Replica) -> None:
            touched[replica.shard] = replica
            advance(replica)

        def watched(replica: Replica) -> None:
            touched[replica.shard] = replica
            watch_role(replica)

        host.mark_dirty = marked  # type: ignore[method-assign]
        host.advance = advanced  # type: ignore[method-assign]
        host._watch_role = watched  # type: ignore[method-assign]

    def _tell_adds(self) -> None:
        add = self.node.host.add

        def added(replica: Replica) -> None:
            for prepare in self.before_add:
                prepare(replica)
            add(replica)

        self.node.host.add = added  # type: ignore[method-assign]

    def _tell_roles(self) -> None:
        host, world = self.node.host, self.cluster.world
        on_role_change = host.on_role_change

        def tell(replica: Replica) -> None:
            role = "follows" if replica.led_term is None else "leads"
            world.note(f"{self.name} {role} shard {replica.shard} in term {replica.core.term}")
            on_role_change(replica)

        host.on_role_change = tell

    def start(self) -> None:
        self.cluster.world.note(f"{self.name} starts")
        self.cluster.network.listen(self.name, self._on_frame)
        self.node.start()
        for peer, process in self.cluster.processes.items():
            if peer != self.name:
                self.node.greet(peer)
                process.runtime.call_soon(process.node.greet, self.name)

    def _on_frame(self, source: NodeId, lane: Lane, frame: bytes) -> None:
        if self.cluster.world.now < self.runtime.paused_until:
            self.cluster.world.at(self.runtime.paused_until, self._on_frame, source, lane, frame)
        elif self.runtime.is_alive:
            self._on_run()
            try:
                self.node.host.on_frame(source, lane, frame)
            except PeerProtocolError:
                self.cluster.count("bad_frames")

    def _on_run(self) -> None:
        self.cluster.last_active = self

    def _on_fatal(self, error: BaseException) -> None:
        self.failure = error
        self.cluster.on_exit(self, error)

    def replicas(self) -> Iterator[Replica]:
        yield from self.node.host.replicas.values()


class Probed:
    """The shard that deserves a close look, and until when; `wake` calls those who look (`probers.py`)."""

    def __init__(self) -> None:
        self.shard = ShardId(0)
        self.until = 0.0
        self.wake: list[Callable[[], None]] = []


class Machine:
    """What outlives a process: the disk and the clock."""

    def __init__(self, files: SimFiles) -> None:
        self.files = files
        self.engines: Callable[[], Engines] = lambda: MemoryEngines(self.files)
        self.on_death: Callable[[], None] = lambda: None
        self.disk = DiskTimes()
        self.lives = 0
        self.clock_rate = 1.0
        self.clock_offset = 0.0


class SimCluster:
    def __init__(
        self,
        world: World,
        nodes: int = 3,
        shards: int = 4,
        replication: int = 3,
        history_revisions: int = 100_000,
    ) -> None:
        self.world = world
        self.counts: dict[str, int] = {}
        self.clock_jumps: list[tuple[float, float]] = []
        """When some node's clock went ahead, and by how many seconds."""
        self.network = Network(world, Random(f"{world.seed}/network"))
        # Every other seed syncs small batches on the loop.
        self.config = _config(nodes, shards, replication, world.seed % 2, history_revisions)
        self.machines = {
            node: Machine(SimFiles(Random(f"{world.seed}/disk/{node}").getrandbits(32)))
            for node in self.config.node_ids()
        }
        self.processes: dict[NodeId, Process] = {}
        self.last_active: Process | None = None
        """Whose code the present event ran."""
        self.on_exit: Callable[[Process, BaseException], None] = lambda process, error: None
        self.on_process: Callable[[Process], None] = lambda process: None
        """Told of each process, made but not started."""
        self.keeper: KeeperSettings | None = None
        """Other bounds for the housekeeping than the shipped ones, to reach rare states sooner."""
        self.states: Counter[str] = Counter()
        """Rare states that were reached, see `coverage.py`."""
        self.lull_until = 0.0
        """Clients ask for nothing until then."""
        self.reads_only_until = 0.0
        """Clients only read until then; those that can not do without writes ask for nothing."""
        self.patient_until = 0.0
        """Clients of transactions wait long for answers to what they ask until then."""
        self.singly_until = 0.0
        """Clients of transactions read one key at a time until then, and no snapshots."""
        self.hurry_until = 0.0
        """Something has just gone wrong: clients ask at a quick pace until then."""
        self.probed = Probed()
        self.observe: Callable[[NodeId], Observe] = lambda name: lambda shard: None
        """Gives each life of a node the observers of its Raft events."""

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by

    def probe(self, shard: ShardId, seconds: float) -> None:
        """Have a shard looked at closely, from now on."""
        self.probed.shard = shard
        self.probed.until = max(self.probed.until, self.world.now + seconds)
        for wake in self.probed.wake:
            wake()

    # ---- processes -------------------------------------------------------------------------------

    def start(self, name: NodeId) -> Process:
        process = Process(self, name)
        self.processes[name] = process
        process.start()
        return process

    def start_all(self) -> None:
        for name in self.config.node_ids():
            self.start(name)

    def kill(self, name: NodeId, *, power_loss: bool, fate: Random | None = None) -> None:
        """End a process at this instant. Power loss also takes what the disk had not synced; `fate` decides
        how far its threads had come and what of the unsynced survives."""
        self.world.note(f"{name} {'loses power' if power_loss else 'is killed'}")
        process = self.processes.pop(name)
        process.runtime.is_alive = False
        process.node.host.stop()
        self.network.leave(name)
        files = self.machines[name].files
        dice = fate or process.runtime.dice
        self._tear_work_in_progress(process, files, dice)
        self.machines[name].on_death()
        if power_loss:
            files.crash(dice)
        else:
            files.kill()

    def _tear_work_in_progress(self, process: Process, files: SimFiles, dice: Random) -> None:
        """Each thread is caught at any step of what it was doing: before the first, behind the last."""
        steps_left = dice.choice((0, 1, 2, 3, 5, 8, 10_000))

        def one_step(_step: str, _path: str) -> None:
            nonlocal steps_left
            if steps_left == 0:
                raise Crashed
            steps_left -= 1

        files.on_step = one_step
        for _lane, work in process.runtime.in_progress:
            try:
                work()
            except (Crashed, Exception):  # noqa: BLE001 - nobody is left to hear of it
                self.count("work_torn")
        files.on_step = None

    # ---- requests --------------------------------------------------------------------------------

    def request(
        self,
        name: NodeId,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
        done: Callable[[Response | None], None],
    ) -> Request | None:
        """Ask one node; `done(None)` when it is down and nobody answers."""
        process = self.processes.get(name)
        if process is None:
            done(None)
            return None
        sink = Sink(lambda response: process.runtime.when_done(done, response))
        request = Request(method, target, CIMultiDictProxy(CIMultiDict(headers)), body, "10.0.0.9", sink)
        process.runtime.call_soon(process.api.handle, request)
        return request

    def open(
        self, process: Process, method: str, target: str, headers: dict[str, str], sink: RequestSink
    ) -> Request:
        """Ask one life of a node, with a sink of the caller's own: for answers that are streams."""
        request = Request(method, target, CIMultiDictProxy(CIMultiDict(headers)), b"", "10.0.0.9", sink)
        process.runtime.call_soon(process.api.handle, request)
        return request

    def hang_up(self, name: NodeId, request: Request | None) -> None:
        """The caller closes its connection."""
        process = self.processes.get(name)
        if process is not None and request is not None:
            process.runtime.call_soon(lambda: request.on_gone() if request.on_gone is not None else None)

    # ---- looking inside --------------------------------------------------------------------------

    def shard_of(self, key: str) -> ShardId:
        return ShardMap(self.config.shards).shard_of(key.encode())

    def leader_of(self, shard: ShardId) -> Process | None:
        leaders = [
            process
            for process in self.processes.values()
            if shard in process.node.host.replicas and process.node.host.replicas[shard].led_term is not None
        ]
        return max(leaders, key=lambda process: process.node.host.replicas[shard].core.term, default=None)

    def has_all_leaders(self) -> bool:
        return all(self.leader_of(shard) is not None for shard in range(self.config.shards))  # type: ignore[arg-type]

    def state_hashes(self) -> dict[ShardId, dict[NodeId, tuple[int, int]]]:
        """(applied, hash) of every replica."""
        found: dict[ShardId, dict[NodeId, tuple[int, int]]] = {}
        for process in self.processes.values():
            for replica in process.replicas():
                found.setdefault(replica.shard, {})[process.name] = (
                    replica.machine.applied,
                    replica.machine.state_hash,
                )
        return found


class Sink:
    """Takes the answer to one request; streams are gathered whole."""

    def __init__(self, done: Callable[[Response | None], None]) -> None:
        self._done = done

    def answer(self, request: Request, response: Response) -> None:
        self._done(response)

    def open_stream(self, request: Request, response: Response) -> BodyStream:
        return GatheredStream(response, self._done)


class GatheredStream:
    is_open = True

    def __init__(self, response: Response, done: Callable[[Response | None], None]) -> None:
        self._response = response
        self._done = done
        self._pieces = [response.body]

    def write(self, piece: bytes) -> bool:
        self._pieces.append(piece)
        return True

    def on_drain(self, callback: Callable[[], None]) -> None:
        callback()

    def end(self) -> None:
        self._done(Response(self._response.status, self._response.head, b"".join(self._pieces)))


def _config(nodes: int, shards: int, replication: int, inline_sync_ms: int, history_revisions: int) -> Config:
    lines = [
        "cluster: sim",
        f"replication: {replication}",
        f"shards: {shards}",
        "virtual_nodes: 16",
        f"history: {{revisions: {history_revisions}}}",
        f"storage: {{engine: memory, wal_segment_bytes: 65536, inline_sync_ms: {inline_sync_ms}}}",
        "nodes:",
    ]
    for number in range(1, nodes + 1):
        address = f"10.0.0.{number}"
        lines.append(
            f"  - {{id: n{number}, client: '{address}:7400', peer: '{address}:7500', host: h{number}}}"
        )
    return parse_config("\n".join(lines))
