"""A Raft group in one test: cores, their disks and state machines, and a network that obeys the test.

Nothing happens by itself. A test ticks cores, takes Readys, completes syncs, delivers or loses messages,
crashes and restarts replicas; after each such step every invariant is checked. A crash keeps exactly the
writes whose sync was completed, and the state machine falls back to its last flush.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kvstore.raft import NO_SNAPSHOT, Core, RaftSettings, Restored, Role
from kvstore.raft.invariants import ClusterHistory, View, check, check_cluster
from kvstore.raft.membership import decode
from kvstore.raft.messages import CONFIGURATION, Configuration, Entry, HardState, Message, Ready, SnapshotMeta
from kvstore.types import LogIndex, ReplicaId, Term

QUICK = RaftSettings(election_ticks_min=10, election_ticks_max=20, heartbeat_ticks=1)


def rid(number: int) -> ReplicaId:
    return ReplicaId(f"n{number}/1")


def voters(*numbers: int, learners: Sequence[int] = ()) -> Configuration:
    return Configuration(voters=tuple(map(rid, sorted(numbers))), learners=tuple(map(rid, sorted(learners))))


@dataclass
class Machine:
    """A state machine whose state is the list of what it applied."""

    applied: LogIndex = LogIndex(0)
    term: Term = Term(0)
    configuration: Configuration = field(default_factory=Configuration)
    commands: tuple[bytes, ...] = ()

    def apply(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            assert entry.index == self.applied + 1, f"applied {entry.index} after {self.applied}"
            self.applied, self.term = entry.index, entry.term
            if entry.kind == CONFIGURATION:
                self.configuration = decode(entry.payload)
            elif entry.payload:
                self.commands = (*self.commands, entry.payload)

    def meta(self) -> SnapshotMeta:
        return SnapshotMeta(self.applied, self.term, self.configuration)


@dataclass
class Disk:
    """What survives a crash of one replica."""

    hard_state: HardState = field(default_factory=HardState)
    entries: list[Entry] = field(default_factory=list)
    cut: SnapshotMeta = NO_SNAPSHOT
    """Where the stored log starts."""
    machine: Machine = field(default_factory=Machine)
    """As of the last flush or installation."""

    def write(self, ready: Ready, snapshot: Machine | None) -> None:
        if ready.installed is not None:
            assert snapshot is not None
            self.entries, self.cut, self.machine = [], ready.installed, replace(snapshot)
        if ready.truncate_after is not None:
            self.entries = [entry for entry in self.entries if entry.index <= ready.truncate_after]
        if ready.entries:
            last = self.entries[-1].index if self.entries else self.cut.index
            assert ready.entries[0].index == last + 1, f"gap on disk: {ready.entries[0].index} after {last}"
            self.entries.extend(ready.entries)
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state

    def cut_at(self, meta: SnapshotMeta) -> None:
        if meta.index > self.cut.index:
            self.entries = [entry for entry in self.entries if entry.index > meta.index]
            self.cut = meta

    def restored(self) -> Restored:
        cut = self.cut if self.cut.index else NO_SNAPSHOT
        return Restored(
            self.hard_state, tuple(self.entries), cut, self.machine.applied, self.machine.configuration
        )


class Replica:
    """One core with its disk; `unsynced` are the Readys whose writes are under way."""

    def __init__(self, group: Group, me: ReplicaId, configuration: Configuration) -> None:
        self.group = group
        self.me = me
        self.disk = Disk(machine=Machine(configuration=configuration))
        self.core: Core | None = None
        self.view: View | None = None
        self.machine = Machine()
        self.unsynced: deque[Ready] = deque()
        self.fetched: Machine | None = None
        self.reads: dict[int, LogIndex] = {}
        self.reads_lost: list[int] = []
        self.start()

    def start(self) -> None:
        assert self.core is None, f"{self.me} runs"
        group = self.group
        self.machine = replace(self.disk.machine)
        self.unsynced.clear()
        observe: Callable[[str, dict[str, Any]], None] | None = None
        if group.observe is not None:
            told = group.observe

            def observe(event: str, fields: dict[str, Any]) -> None:
                told(self.me, event, fields)

        self.core = Core(self.me, group.settings, self.disk.restored(), group.dice(self.me), observe)
        self.view = None

    @property
    def living(self) -> Core:
        assert self.core is not None, f"{self.me} is down"
        return self.core

    def crash(self) -> None:
        """Lose everything that was not synced."""
        self.core = None
        self.unsynced.clear()
        self.fetched = None

    def take(self) -> Ready | None:
        """Take a Ready: send what may leave now, start its writes, apply what is committed."""
        core = self.living
        if not core.has_ready():
            return None
        ready = core.take_ready()
        self.group.post(ready.messages_now)
        self.unsynced.append(ready)
        for context, index in ready.reads:
            self.reads[context] = index
        self.reads_lost.extend(ready.reads_lost)
        self.group.wanted.extend((self.me, target) for target in ready.snapshots_wanted)
        if ready.committed:
            self.group.audit(self, ready.committed)
            self.machine.apply(ready.committed)
            core.applied(ready.committed[-1].index)
        return ready

    def sync(self, count: int | None = None) -> int:
        """Complete the writes of the oldest `count` Readys, all by default; their promises leave."""
        done = 0
        while self.unsynced and (count is None or done < count):
            ready = self.unsynced.popleft()
            self.disk.write(ready, self.fetched)
            if ready.installed is not None:
                self.machine = replace(self.disk.machine)
                self.fetched = None
            self.living.persisted(ready.number)
            self.group.post(ready.messages_after_sync)
            done += 1
        return done

    def flush_machine(self) -> None:
        self.disk.machine = replace(self.machine)

    def compact(self, index: int) -> None:
        """Cut the log at `index`, at most at what the flushed machine holds; on disk too."""
        core = self.living
        at = LogIndex(min(index, self.disk.machine.applied))
        term = core.log.term_at(at)
        if at <= core.log.base_index or term is None:
            return
        core.compact(at)
        self.disk.cut_at(SnapshotMeta(at, term, Configuration()))


class Group:
    """Replicas by id, and the messages under way between them."""

    def __init__(
        self,
        configuration: Configuration,
        settings: RaftSettings = QUICK,
        dice: Callable[[ReplicaId], Callable[[int, int], int]] | None = None,
        observe: Callable[[ReplicaId, str, dict[str, Any]], None] | None = None,
    ) -> None:
        self.settings = settings
        self.first_configuration = configuration
        self.dice = dice or (lambda me: lambda low, _high: low + 3 * (int(me[1]) % 4))
        self.observe = observe
        self.network: list[Message] = []
        self.wanted: list[tuple[ReplicaId, ReplicaId]] = []
        self.history = ClusterHistory()
        self.applied: dict[LogIndex, Entry] = {}
        self.replicas: dict[ReplicaId, Replica] = {}
        for member in configuration.members():
            self.add(member)

    def add(self, me: ReplicaId, configuration: Configuration | None = None) -> Replica:
        """Start an empty replica; one that joins later knows no configuration."""
        replica = Replica(self, me, self.first_configuration if configuration is None else configuration)
        self.replicas[me] = replica
        return replica

    def __getitem__(self, number: int) -> Replica:
        return self.replicas[rid(number)]

    def core(self, number: int) -> Core:
        return self[number].living

    @property
    def living(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.core is not None]

    @property
    def leader(self) -> Replica | None:
        """The leader of the highest term."""
        leaders = [replica for replica in self.living if replica.living.role is Role.LEADER]
        return max(leaders, key=lambda replica: replica.living.term, default=None)

    def post(self, messages: Iterable[Message]) -> None:
        self.network.extend(messages)

    def audit(self, replica: Replica, committed: Iterable[Entry]) -> None:
        """What one replica applies at an index, all apply there, and each only what is on its own disk."""
        for entry in committed:
            known = self.applied.setdefault(entry.index, entry)
            assert known == entry, f"{replica.me} applies {entry}, another applied {known}"
            disk = replica.disk
            at = entry.index - disk.cut.index - 1
            stored = at < 0 or (at < len(disk.entries) and disk.entries[at] == entry)
            assert stored, f"{replica.me} applies {entry.index}, which is not on its disk"

    def check(self, replicas: Iterable[Replica] | None = None) -> None:
        """Check every claim of the given replicas, of all living ones by default."""
        cores = []
        for replica in self.living if replicas is None else replicas:
            if replica.core is not None:
                replica.view = check(replica.core, replica.view)
                cores.append(replica.core)
        check_cluster(cores, self.history)

    # --- steps

    def deliver(self, message: Message) -> None:
        target = self.replicas.get(message.target)
        if target is not None and target.core is not None:
            target.core.step(message)

    def deliver_all(self, allows: Callable[[Message], bool] = lambda _message: True) -> int:
        """Deliver what is under way now, in order; what is not allowed is lost."""
        under_way, self.network = self.network, []
        for message in under_way:
            if allows(message):
                self.deliver(message)
        return len(under_way)

    def pump(self, allows: Callable[[Message], bool] = lambda _message: True, rounds_max: int = 200) -> None:
        """Let everybody work, sync and talk until nothing is left to do."""
        for _ in range(rounds_max):
            busy = False
            for replica in self.living:
                while replica.take() is not None:
                    busy = True
                    self.check()
                replica.sync()
            self.check()
            busy = bool(self.deliver_all(allows)) or busy
            self.check()
            if not busy and not any(replica.living.has_ready() for replica in self.living):
                return
        raise AssertionError("the group does not come to rest")

    def tick(self, count: int = 1, *numbers: int, allows: Callable[[Message], bool] | None = None) -> None:
        """Tick the given replicas, all living ones by default, and pump after each tick."""
        for _ in range(count):
            for replica in [self[number] for number in numbers] or self.living:
                replica.living.tick()
            self.pump(allows or (lambda _message: True))

    def elect(self, number: int, allows: Callable[[Message], bool] | None = None) -> Core:
        """Make one replica leader: everybody forgets whom it heard, this one runs out of patience first."""
        core = self.core(number)
        for replica in self.living:
            if replica.living.role is not Role.LEADER:
                replica.living.promise_left = 0
                replica.living.elapsed = 0
                replica.living.ticks = max(replica.living.ticks, self.settings.election_ticks_min)
            else:
                replica.living.become_follower(replica.living.term, None)
        core.elapsed = core.election_timeout
        core.tick()
        self.pump(allows or (lambda _message: True))
        assert core.role is Role.LEADER, f"{core.me} did not win"
        return core

    def propose(self, number: int, *commands: bytes) -> tuple[Term, LogIndex]:
        return self.core(number).propose(commands)

    def commands(self, number: int) -> tuple[bytes, ...]:
        return self[number].machine.commands

    def crash(self, *numbers: int) -> None:
        for number in numbers:
            self[number].crash()

    def restart(self, *numbers: int) -> None:
        for number in numbers:
            self[number].start()


def between(*numbers: int) -> Callable[[Message], bool]:
    """Allow only messages within one side of a partition."""
    side = {rid(number) for number in numbers}
    return lambda message: message.source in side and message.target in side


def without(*numbers: int) -> Callable[[Message], bool]:
    """Lose every message from and to the given replicas."""
    cut = {rid(number) for number in numbers}
    return lambda message: message.source not in cut and message.target not in cut
