"""What goes wrong in a random run: one fault at a time is drawn, and they pile up.

Every fault heals by itself after a while, or when `heal` is called. No seed has them all (swarm testing):
each draws which kinds it has, how often each of them, and how fast they follow each other, so that what one
fault would hide from another shows elsewhere. Rot and changes of members exclude each other, because rot on
the only voter of a shard loses data in any system.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from kvstore.errors import InvalidArgument
from kvstore.node.runtime import Lane
from kvstore.raft import NotLeader, ProposalDropped
from kvstore.raft.membership import Change
from kvstore.raft.messages import Configuration
from kvstore.types import META_SHARD, NodeId, ShardId, node_of
from tests.sim.ambush import Ambush
from tests.sim.cluster import DATA, Process, SimCluster
from tests.sim.rot import WAL, rot_place
from tests.sim.staged import STAGED, STAGED_LATER, STAGED_MEMBERS, Staged
from tests.support.sim_files import Crashed

ALL_STAGED = {
    kind: alone_s
    for kinds in (STAGED, *STAGED_LATER.values(), STAGED_MEMBERS)
    for kind, alone_s in kinds.items()
}
Link = tuple[NodeId, NodeId]
MEND_S = 1.0
HURRY_S = 0.8

EVERYWHERE = (
    "kill",
    "power_loss",
    "torn_write",
    "power_loss_all",
    "pause",
    "partition",
    "one_way_cut",
    "pair_cut",
    "slow_link",
    "bad_network",
    "slow_disk",
    "hang_disk",
    "fail_disk",
    "disk_full",
    "clock_jump",
    "transfer",
    "ambush",
    "lull",
    *STAGED,
)
PROFILES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "rot": ("rot",),
    "members": ("members", *STAGED_MEMBERS),
}
_OF_PROFILES = {kind for kinds in PROFILES.values() for kind in kinds}
ALL_FAULTS = tuple(sorted({*EVERYWHERE, *ALL_STAGED, *_OF_PROFILES} - {"fail_disk"})) + (
    "fail_write",
    "fail_datasync",
)
"""Names under which faults are counted."""
CALM_S = 2.5
"""How long a fault of several steps waits until all is well."""
SHARE = 0.5
STAGED_SHARE = 0.6
STAGED_LATER_SHARE = 0.3
"""Of the kinds of faults, how many a seed has."""
KINDS_MIN = 5
GAPS_S = ((0.1, 0.6), (0.2, 1.0), (0.2, 1.6))


class Faults:
    """`start` starts a node; a fault that finds nothing to do counts as "nothing"."""

    def __init__(self, cluster: SimCluster, dice: Random, start: Callable[[NodeId], None]) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.dice = dice
        self.fired: dict[str, int] = {}
        self.is_healing = False
        self.profile = dice.choice(tuple(PROFILES))
        self.weights = self._swarm()
        self.gap_s = dice.choice(GAPS_S)
        self.favourite: ShardId | None = None
        """The shard that most clients work on: many faults aim at it."""
        self.ambush = Ambush(self)
        self.staged = Staged(self)
        self.blows: dict[str, Callable[[NodeId], None]] = {
            "kill": lambda name: self._end_named(name, power_loss=False),
            "power_loss": lambda name: self._end_named(name, power_loss=True),
            "pause": self._pause_named,
            "cut_off": lambda name: self.cut(self.links(name)),
            "deafen": lambda name: self.cut(self.links_into(name)),
            "mute": lambda name: self.cut(self.links_out_of(name)),
            "slow_in": lambda name: self.slow(self.links_into(name)),
            "slow_out": lambda name: self.slow(self.links_out_of(name)),
            "hang_disk": self._hang_named,
        }
        self.rotten: NodeId | None = None
        """The one node whose log was damaged and whose replicas are not all back yet."""
        self.start_crash_share = dice.choice((0.0, 0.1, 0.3))
        self._dying = NodeId("")
        self.start = start

    def begin(self) -> None:
        self.world.after(0.5, self._next)
        self.world.after(MEND_S, self._mend)

    def _next(self) -> None:
        if self.is_healing:
            return
        kind = self.dice.choices(tuple(self.weights), tuple(self.weights.values()))[0]
        if kind not in ALL_STAGED:
            self._fire(kind, getattr(self, f"_{kind}"), 0.0)
        elif self.dice.random() < 0.7:
            self._calm()
            self._fire_when_calm(kind, self.world.now + CALM_S)
        else:
            self._fire(kind, getattr(self.staged, kind), 0.0)

    def _fire(self, kind: str, begin: Callable[[], str], alone_s: float) -> None:
        fired = begin()
        self.count(fired)
        self.world.note(f"fault {fired}")
        gap_s = self.dice.uniform(*self.gap_s)
        self.world.after(alone_s if alone_s and fired != "nothing" else gap_s, self._next)

    def _fire_when_calm(self, kind: str, until: float) -> None:
        if self.is_healing:
            return
        if self.world.now >= until or self._is_calm():
            self._fire(kind, getattr(self.staged, kind), ALL_STAGED[kind])
        else:
            self.world.after(0.05, self._fire_when_calm, kind, until)

    def _is_calm(self) -> bool:
        """All nodes are there and every shard has its leader."""
        is_whole = len(self.cluster.processes) == len(self.cluster.machines)
        return is_whole and self.cluster.has_all_leaders()

    def _calm(self) -> None:
        """End what is wrong: what comes now shows nothing if others are in its way."""
        self.cluster.network.reconnect()
        self._good_network()
        for name, machine in self.cluster.machines.items():
            machine.disk.high = 0.002
            machine.disk.hung_until = 0.0
            machine.files.capacity_bytes = None
            process = self.cluster.processes.get(name)
            if process is None:
                self.start(name)
            else:
                process.runtime.paused_until = process.runtime.busy_until

    def _swarm(self) -> dict[str, int]:
        """Which kinds of faults this seed has, and how often each."""
        dice = self.dice
        kinds = [
            kind for kind in EVERYWHERE if dice.random() < (STAGED_SHARE if kind in ALL_STAGED else SHARE)
        ]
        while len(kinds) < KINDS_MIN:
            kinds.append(dice.choice(EVERYWHERE))
        kinds += PROFILES[self.profile]
        weights = {kind: dice.choice((3, 6) if kind in ALL_STAGED else (1, 2, 2, 4)) for kind in kinds}
        for name, later_kinds in STAGED_LATER.items():
            later = Random(f"{self.world.seed}/{name}")
            more = [kind for kind in later_kinds if later.random() < STAGED_LATER_SHARE]
            weights |= {kind: later.choice((3, 6)) for kind in more}
        return weights

    def count(self, fired: str) -> None:
        self.fired[fired] = self.fired.get(fired, 0) + 1

    def hurry(self, shard: ShardId | None = None, seconds: float = HURRY_S) -> None:
        """Let the clients ask faster for a moment, and some look closely: now answers may be wrong."""
        self.cluster.hurry_until = max(self.cluster.hurry_until, self.world.now + seconds)
        if shard is None or shard not in self._shards():
            shard = self.favourite or ShardId(0)
        self.cluster.probe(shard, seconds)

    # ---- processes -------------------------------------------------------------------------------

    def _any_process(self) -> Process | None:
        """Often a leader: it is what most guards are about."""
        leader = self.some_leader()[1]
        if leader is not None and self.dice.random() < 0.5:
            return leader
        names = sorted(self.cluster.processes)
        return self.cluster.processes[self.dice.choice(names)] if names else None

    def end(self, process: Process, *, power_loss: bool) -> None:
        """Kill, and start again after a while."""
        self.cluster.kill(process.name, power_loss=power_loss)
        self.world.after(self.dice.choice((0.05, 0.5, 2.0, 5.0)), self.start, process.name)

    def _end_named(self, name: NodeId, *, power_loss: bool) -> None:
        process = self.cluster.processes.get(name)
        if process is not None:
            self.end(process, power_loss=power_loss)

    def _kill(self, *, power_loss: bool = False) -> str:
        process = self._any_process()
        if process is None:
            return "nothing"
        self.end(process, power_loss=power_loss)
        return "power_loss" if power_loss else "kill"

    def _power_loss(self) -> str:
        return self._kill(power_loss=True)

    def _torn_write(self) -> str:
        """Power fails, or the process ends, at one of the next steps of writing the log."""
        process = self._any_process()
        if process is None:
            return "nothing"
        self._die_at_step(process.name, self.dice.choice((0, 1, 2, 3, 6)), WAL)
        return "torn_write"

    def _die_at_step(self, name: NodeId, steps_left: int, path_part: str) -> None:
        """The process does not get beyond so many more changes of its files."""

        def on_step(_step: str, path: str) -> None:
            nonlocal steps_left
            if path_part in path:
                steps_left -= 1
                if steps_left < 0:
                    self._dying = name
                    raise Crashed

        self.cluster.machines[name].files.on_step = on_step

    def after_crash(self) -> None:
        """Some process has come to its last step."""
        if self._dying in self.cluster.processes:
            self.end(self.cluster.processes[self._dying], power_loss=self.dice.random() < 0.7)

    def before_start(self, name: NodeId) -> None:
        """Now and then a node dies again while it recovers, or soon after."""
        if not self.is_healing and self.dice.random() < self.start_crash_share:
            self._die_at_step(name, self.dice.randint(0, 30), DATA)

    def _power_loss_all(self) -> str:
        for name in sorted(self.cluster.processes):
            self.end(self.cluster.processes[name], power_loss=True)
        return "power_loss_all"

    def _pause(self) -> str:
        process = self._any_process()
        if process is None:
            return "nothing"
        self._pause_named(process.name)
        return "pause"

    def _pause_named(self, name: NodeId) -> None:
        process = self.cluster.processes.get(name)
        if process is not None:
            until = self.world.now + self.dice.choice((0.3, 1.8, 2.2, 4.0))
            process.runtime.paused_until = max(process.runtime.paused_until, until)
            self.hurry()

    def _clock_jump(self) -> str:
        """Forward: a virtual machine was suspended, and CLOCK_BOOTTIME counts that. It never goes back."""
        process = self._any_process()
        if process is None:
            return "nothing"
        jump_s = self.dice.choice((0.2, 1.0, 10.0))
        process.runtime.offset += jump_s
        self.cluster.machines[process.name].clock_offset += jump_s
        self.cluster.count("clock_jumps")
        self.cluster.clock_jumps.append((self.cluster.world.now, jump_s))
        return "clock_jump"

    # ---- network ---------------------------------------------------------------------------------

    def _partition(self) -> str:
        names = list(self.cluster.config.node_ids())
        self.dice.shuffle(names)
        side = names[: self.dice.randint(1, len(names) - 1)]
        self.cut_both_ways({(a, b) for a in side for b in names if b not in side})
        return "partition"

    def _one_way_cut(self) -> str:
        source, target = self.dice.sample(self.cluster.config.node_ids(), 2)
        self.cut({(source, target)})
        return "one_way_cut"

    def _pair_cut(self) -> str:
        """Two nodes do not hear each other, all others hear both: a non-transitive partition."""
        a, b = self.dice.sample(self.cluster.config.node_ids(), 2)
        self.cut_both_ways({(a, b)})
        return "pair_cut"

    def links_into(self, name: NodeId) -> set[Link]:
        return {(other, name) for other in self.cluster.config.node_ids() if other != name}

    def links_out_of(self, name: NodeId) -> set[Link]:
        return {(name, other) for other in self.cluster.config.node_ids() if other != name}

    def links(self, name: NodeId) -> set[Link]:
        return self.links_into(name) | self.links_out_of(name)

    def cut_both_ways(self, links: set[Link], seconds: float | None = None) -> None:
        self.cut(links | {(b, a) for a, b in links}, seconds)

    def cut(self, links: set[Link], seconds: float | None = None) -> None:
        self._lose(
            self.cluster.network.cut,
            links,
            self.dice.choice((0.5, 2.0, 2.0, 6.0)) if seconds is None else seconds,
        )

    def stick(self, connections: set[tuple[NodeId, NodeId, Lane]], seconds: float) -> None:
        """Let connections hang, until they are given up."""
        self._lose(self.cluster.network.stuck, connections, seconds)

    def _lose(self, lost: set[Any], more: set[Any], seconds: float) -> None:
        lost |= more
        self.world.after(seconds, lost.difference_update, more)

    def _slow_link(self) -> str:
        """What goes one way between some nodes takes long."""
        name = self._some_node()
        other = self.dice.choice([each for each in self.cluster.config.node_ids() if each != name])
        self.slow(self.dice.choice((self.links_into(name), self.links_out_of(name), {(name, other)})))
        return "slow_link"

    def slow(self, links: set[Link], delay_s: float | None = None, seconds: float | None = None) -> None:
        delays = self.cluster.network.delays
        if delay_s is None:
            delay_s = self.dice.choice((0.05, 0.4, 0.9, 2.0))
        delays |= dict.fromkeys(links, delay_s)

        def mend() -> None:
            for link in links:
                delays.pop(link, None)

        self.world.after(self.dice.choice((1.0, 3.0)) if seconds is None else seconds, mend)

    def _bad_network(self) -> str:
        faults = self.cluster.network.faults
        faults.loss = self.dice.choice((0.0, 0.02, 0.2))
        faults.repeat = self.dice.choice((0.0, 0.1, 0.3))
        faults.repeat_within_s = self.dice.choice((0.01, 0.3, 3.0))
        faults.reorder = self.dice.choice((0.0, 0.2))
        faults.delay_high = self.dice.choice((0.002, 0.02, 0.2))
        self.world.after(self.dice.uniform(1, 5), self._good_network)
        return "bad_network"

    def _good_network(self) -> None:
        faults = self.cluster.network.faults
        faults.loss = faults.repeat = faults.reorder = 0.0
        faults.delay_high = 0.002

    # ---- disks -----------------------------------------------------------------------------------

    def _some_node(self) -> NodeId:
        process = self._any_process()
        return process.name if process is not None else self.dice.choice(self.cluster.config.node_ids())

    def _slow_disk(self) -> str:
        disk = self.cluster.machines[self._some_node()].disk
        disk.high = self.dice.choice((0.02, 0.2))

        def mend() -> None:
            disk.high = 0.002

        self.world.after(self.dice.uniform(1, 4), mend)
        return "slow_disk"

    def _hang_disk(self) -> str:
        self._hang_named(self._some_node())
        return "hang_disk"

    def _hang_named(self, name: NodeId) -> None:
        disk = self.cluster.machines[name].disk
        disk.hung_until = self.world.now + self.dice.choice((1.0, 4.0))
        disk.hung_lane = self.dice.choice((None, None, "wal", "store"))

    def _fail_disk(self) -> str:
        process = self._any_process()
        if process is None:
            return "nothing"
        step = self.dice.choice(("write", "datasync"))
        self.cluster.machines[process.name].files.fail(step, path_part="wal")
        if self.dice.random() < 0.5:
            self.world.after(self.dice.uniform(0.1, 1.5), self._lose_power_again, process)
        return f"fail_{step}"

    def _lose_power_again(self, process: Process) -> None:
        """Of a node that should have ended by itself: what it has failed to sync is lost now."""
        if not self.is_healing and self.cluster.processes.get(process.name) is process:
            self.end(process, power_loss=True)

    def _disk_full(self) -> str:
        files = self.cluster.machines[self._some_node()].files
        files.capacity_bytes = 1 << 50
        used = files.capacity_bytes - files.free_bytes(DATA)
        files.capacity_bytes = used + self.dice.choice((0, 10_000, 100_000))

        def mend() -> None:
            files.capacity_bytes = None

        self.world.after(self.dice.uniform(1, 5), mend)
        return "disk_full"

    def _rot(self) -> str:
        """Stop a node, damage its log where it was surely synced, start it: it must notice, and may be
        rebuilt. One node at a time, or a shard could lose its last whole copy."""
        process = self._any_process()
        if self.rotten is not None or process is None:
            return "nothing"
        place = rot_place(self.cluster.machines[process.name].files, self.dice)
        if place is None:
            return "nothing"
        self.rotten = process.name
        self.end(process, power_loss=False)
        self.cluster.machines[process.name].files.flip(*place)
        return "rot"

    # ---- leaders and members ---------------------------------------------------------------------

    def some_leader(self) -> tuple[ShardId, Process | None]:
        shard = ShardId(self.dice.randrange(self.cluster.config.shards))
        if self.favourite is not None and self.dice.random() < 0.6:
            shard = self.favourite
        return shard, self.cluster.leader_of(shard)

    def _transfer(self) -> str:
        shard, leader = self.some_leader()
        if leader is None:
            return "nothing"
        leader.node.ask_transfer(shard, self.dice.choice(self.cluster.config.node_ids()))
        return "transfer"

    def _ambush(self) -> str:
        self.ambush.set(self.some_leader()[0] if self.dice.random() < 0.7 else None)
        return "ambush"

    def _lull(self) -> str:
        """Nobody asks for anything for a while: shards go quiet."""
        self.cluster.lull_until = self.world.now + self.dice.choice((0.7, 1.5, 3.0))
        return "lull"

    def _members(self) -> str:
        return self.change_members()

    def change_members(self, shard: ShardId | None = None) -> str:
        """Take the vote of some voters, or give it back to all: joint changes, proposed to the core."""
        if shard is None:
            shard = self.some_leader()[0]
        leader = self.cluster.leader_of(shard)
        if leader is None:
            return "nothing"
        configuration = leader.node.host.replicas[shard].core.configuration
        voters = configuration.voters
        if configuration.learners or len(voters) < 2:
            change = Change(voters=configuration.learners)
        else:
            change = Change(learners=tuple(self.dice.sample(voters, self.dice.randint(1, len(voters) - 1))))
        return "members" if self.change(leader, shard, change) else "nothing"

    def change(self, leader: Process, shard: ShardId, change: Change) -> bool:
        host = leader.node.host
        replica = host.replicas[shard]
        try:
            replica.core.propose_configuration(change)
        except (NotLeader, ProposalDropped, InvalidArgument):
            return False
        host.mark_dirty(replica)
        return True

    # ---- mending ---------------------------------------------------------------------------------

    def heal(self) -> None:
        """End all faults, now; what needs time to mend goes on mending."""
        self.is_healing = True
        self.cluster.network.reconnect()
        self.cluster.lull_until = self.cluster.reads_only_until = 0.0
        self._good_network()
        for name, machine in self.cluster.machines.items():
            machine.disk.high = 0.002
            machine.disk.hung_until = 0.0
            machine.disk.hung_lane = None
            machine.files.heal()
            machine.files.on_step = None
            machine.files.capacity_bytes = None
            if name in self.cluster.processes:
                runtime = self.cluster.processes[name].runtime
                runtime.paused_until = runtime.busy_until
            else:
                self.start(name)

    @property
    def is_mended(self) -> bool:
        """Every replica is hosted, votes, and no change of members is under way, nor unknown to any."""
        if self.rotten is not None or any(self._unfinished(shard) for shard in self._shards()):
            return False
        known: dict[ShardId, set[Configuration]] = {}
        for process in self.cluster.processes.values():
            for replica in process.replicas():
                known.setdefault(replica.shard, set()).add(replica.core.configuration)
        return all(len(configurations) == 1 for configurations in known.values())

    def _shards(self) -> list[ShardId]:
        return [ShardId(number) for number in range(self.cluster.config.shards)]

    def _unfinished(self, shard: ShardId) -> Configuration | None:
        leader = self.cluster.leader_of(shard)
        if leader is None:
            return Configuration()
        core = leader.node.host.replicas[shard].core
        configuration = core.configuration
        is_settled = core.has_committed_in_term and not core.log.unapplied_configurations
        is_whole = not configuration.is_joint and not configuration.learners
        return None if is_settled and is_whole else configuration

    def _mend(self) -> None:
        """The operator: asks for rebuilds of what is quarantined, and gives votes back in the end."""
        self.world.after(MEND_S, self._mend)
        process = self.cluster.processes.get(self.rotten) if self.rotten is not None else None
        if process is not None and process.node.is_ready:
            damaged = process.node.host.damaged
            for shard in sorted(damaged):
                self.cluster.states["quarantine"] += 1
                self._ask_rebuild(shard, process.name)
            if not damaged and not any(self._is_joining(shard, process.name) for shard in self._shards()):
                self.rotten = None
        if self.is_healing and self.profile == "members":
            for shard in self._shards():
                unfinished, leader = self._unfinished(shard), self.cluster.leader_of(shard)
                if unfinished is not None and leader is not None and unfinished.learners:
                    self.change(leader, shard, Change(voters=unfinished.learners))

    def _is_joining(self, shard: ShardId, name: NodeId) -> bool:
        unfinished = self._unfinished(shard)
        if unfinished is None:
            return False
        return unfinished.is_joint or any(node_of(learner) == name for learner in unfinished.learners)

    def _ask_rebuild(self, shard: ShardId, name: NodeId) -> None:
        number = "meta" if shard == META_SHARD else str(int(shard))
        body = b'{"node":"%b"}' % name.encode()
        path = f"/v1/shards/{number}/rebuild"
        self.cluster.request(self._some_node(), "POST", path, {"KV-Timeout": "1s"}, body, lambda answer: None)
