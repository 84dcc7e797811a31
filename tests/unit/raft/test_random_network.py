"""Seeded chaos on bare cores: loss, repetition, reordering, late syncs, crashes, member changes, snapshots.

After every step all invariants hold; when the faults stop, the group must agree and work again. A failure
names its seed: `RAFT_SEED=<n>` runs that one alone, `RAFT_SEEDS=<n>` runs more.
"""

import os
from random import Random

import pytest

from kvstore.errors import InvalidArgument
from kvstore.raft import Change, NotLeader, ProposalDropped, RaftSettings, Role
from kvstore.types import LogIndex, ReplicaId
from tests.support.raft_group import Group, Replica, rid, voters

SETTINGS = RaftSettings(
    election_ticks_min=8,
    election_ticks_max=24,
    heartbeat_ticks=1,
    append_bytes_max=120,
    inflight_messages_max=3,
)
SEEDS = (
    [int(os.environ["RAFT_SEED"])]
    if "RAFT_SEED" in os.environ
    else range(int(os.environ.get("RAFT_SEEDS", "80")))
)


class Chaos:
    def __init__(self, seed: int, steps: int) -> None:
        self.random = Random(seed)
        self.steps = steps
        self.loss = self.random.choice([0.0, 0.01, 0.1])
        self.repeat = self.random.choice([0.0, 0.1])
        self.shuffle = self.random.random() < 0.5
        self.crash_rate = self.random.choice([0.0, 0.003, 0.01])
        self.weathers = self.random.choice(
            [["calm"], ["calm", "sides"], ["calm", "leader", "calm", "sides"], ["calm", "links"]]
        )
        self.slow_share = self.random.choice([0.0, 0.15, 0.4])
        self.changes_members = self.random.random() < 0.6
        count = self.random.choice([3, 3, 4, 5])
        self.group = Group(voters(*range(1, count + 1)), SETTINGS, dice=lambda _me: self.random.randint)
        self.spare = count + 1
        self.cuts: set[tuple[ReplicaId, ReplicaId]] = set()
        self.slow: set[ReplicaId] = set()
        """Replicas whose disks take very long."""
        self.next_command = 0
        self.next_context = 0
        self.read_floor: dict[int, int] = {}
        self.reached: set[str] = set()

    # --- one step

    def run(self) -> None:
        for number in range(self.steps):
            if number % 100 == 0:
                self.change_weather()
            self.group.check(self.step())
        self.group.check()
        self.heal()

    def step(self) -> list[Replica]:
        """Do something; return the replicas that it has touched."""
        draw = self.random.random()
        if draw < self.crash_rate:
            return [self.crash_or_restart()]
        if draw < 0.24:
            self.move_messages()
            return []
        if draw < 0.50:
            busy = [replica for replica in self.group.living if self.random.random() < 0.6]
            for replica in busy:
                self.work(replica)
            return busy
        if draw < 0.80:
            living = self.group.living if self.random.random() < 0.7 else [self.pick()]
            for replica in living:
                replica.living.tick()
            return living
        replica = self.pick_leader()
        if draw < 0.91:
            self.propose(replica)
        elif draw < 0.95:
            self.read(replica)
        else:
            self.administer(replica)
        return [replica]

    def pick(self) -> Replica:
        if not self.group.living:
            self.random.choice(list(self.group.replicas.values())).start()
        return self.random.choice(self.group.living)

    def pick_leader(self) -> Replica:
        """Mostly who leads, or takes itself for the leader; now and then anybody."""
        leaders = [replica for replica in self.group.living if replica.living.is_leader]
        return self.random.choice(leaders) if leaders and self.random.random() < 0.8 else self.pick()

    def move_messages(self) -> None:
        for _ in range(self.random.randint(1, 16)):
            network = self.group.network
            if not network:
                return
            at = self.random.randrange(len(network)) if self.shuffle else 0
            message = network.pop(at)
            if self.random.random() < self.repeat:
                network.append(message)
            lost = self.random.random() < self.loss or (message.source, message.target) in self.cuts
            if not lost:
                self.group.deliver(message)
                target = self.group.replicas.get(message.target)
                self.group.check([target] if target is not None else [])

    def work(self, replica: Replica) -> None:
        self.take(replica)
        if self.random.random() < (0.05 if replica.me in self.slow else 0.7):
            replica.sync(self.random.choice([1, None]))
        self.fetch_snapshot(replica)

    def take(self, replica: Replica) -> None:
        replica.take()
        for context, floor in list(self.read_floor.items()):
            if context in replica.reads:
                assert replica.reads[context] >= floor, (
                    f"read {context} at {replica.reads[context]} < {floor}"
                )
                del self.read_floor[context]
                self.reached.add("read confirmed")

    def propose(self, replica: Replica) -> None:
        commands = []
        for _ in range(self.random.randint(1, 3)):
            self.next_command += 1
            commands.append(b"command %d" % self.next_command)
        try:
            replica.living.propose(commands)
        except NotLeader:
            pass
        else:
            self.reached.add("proposed")

    def read(self, replica: Replica) -> None:
        self.next_context += 1
        # Everything that anybody has applied so far was acknowledged: the read must see it.
        self.read_floor[self.next_context] = max(self.group.applied, default=0)
        replica.living.read(self.next_context)

    def change_weather(self) -> None:
        """Calm, a partition in two sides, single links cut one way, or the leader alone; and slow disks."""
        ids = sorted(self.group.replicas)
        kind = self.random.choice(self.weathers)
        leader = self.group.leader
        sides = {me: self.random.random() < 0.5 for me in ids}
        if kind == "leader" and leader is not None:
            sides = {me: me == leader.me for me in ids}
        self.cuts = set()
        if kind in ("sides", "leader"):
            self.cuts = {(a, b) for a in ids for b in ids if sides[a] != sides[b]}
        elif kind == "links":
            self.cuts = {(self.random.choice(ids), self.random.choice(ids)) for _ in range(4)}
        self.slow = {me for me in ids if self.random.random() < self.slow_share}

    def crash_or_restart(self) -> Replica:
        down = [replica for replica in self.group.replicas.values() if replica.core is None]
        replica = self.random.choice(down) if down and self.random.random() < 0.8 else self.pick()
        if replica.core is None:
            replica.start()
            self.reached.add("restarted")
        elif len(down) < 2:
            replica.crash()
        return replica

    # --- members, transfers, snapshots

    def administer(self, replica: Replica) -> None:
        draw = self.random.random()
        if draw < 0.3:
            replica.flush_machine()
            replica.compact(replica.disk.machine.applied - self.random.randint(0, 4))
        elif draw < 0.5:
            self.transfer(replica)
        elif draw < 0.6:
            for other in self.group.living:
                other.living.wake()
        elif self.changes_members:
            self.change_members(replica)

    def transfer(self, replica: Replica) -> None:
        target = self.random.choice(list(self.group.replicas))
        try:
            replica.living.transfer_leadership(target)
        except (NotLeader, InvalidArgument):
            return
        self.reached.add("transfer")

    def change_members(self, replica: Replica) -> None:
        core = replica.living
        members = core.configuration.members()
        names: dict[str, list[ReplicaId]] = {"voters": [], "learners": [], "removed": []}
        for member in members:
            if self.random.random() < 0.3:
                names[self.random.choice(list(names))].append(member)
        if self.random.random() < 0.5 and core.role is Role.LEADER and len(self.group.replicas) < 7:
            names[self.random.choice(["voters", "learners"])].append(self.join())
        change = Change(**{part: tuple(sorted(ids)) for part, ids in names.items()})
        try:
            core.propose_configuration(change)
        except (NotLeader, ProposalDropped, InvalidArgument):
            return
        self.reached.add("member change")

    def join(self) -> ReplicaId:
        me = rid(self.spare)
        self.spare += 1
        self.group.add(me, voters())
        return me

    def fetch_snapshot(self, replica: Replica) -> None:
        """Serve what leaders asked for, and install what was offered, each only now and then."""
        for source, target in self.group.wanted:
            leader = self.group.replicas[source]
            if leader.core is not None and leader.machine.applied:
                leader.living.offer_snapshot(target, leader.machine.meta())
        self.group.wanted.clear()
        core = replica.core
        if core is None or core.offered is None or replica.fetched is not None:
            return
        offer = core.offered
        source_replica = self.group.replicas[offer.source]
        machine = source_replica.machine
        if source_replica.core is None or machine.applied < offer.snapshot.index:
            return
        replica.fetched = type(machine)(
            machine.applied, machine.term, machine.configuration, machine.commands
        )
        if core.install(machine.meta()):
            self.reached.add("snapshot")
        else:
            replica.fetched = None

    # --- the end

    def heal(self) -> None:
        """Without faults the group must elect, agree and accept a write."""
        group = self.group
        self.cuts.clear()
        self.slow.clear()
        for replica in group.replicas.values():
            if replica.core is None:
                replica.start()
        for _ in range(40 * SETTINGS.election_ticks_max):
            for replica in group.living:
                replica.living.tick()
            for replica in group.living:
                while replica.living.has_ready():
                    self.take(replica)
                replica.sync()
                self.fetch_snapshot(replica)
            group.deliver_all()
            group.check()
            if self.has_converged():
                return
        states = [
            (
                r.me,
                r.living.role.value,
                r.living.term,
                r.living.commit,
                r.living.last_index,
                r.living.configuration,
            )
            for r in group.living
        ]
        raise AssertionError(f"the group did not converge: {states}")

    def has_converged(self) -> bool:
        leader = self.group.leader
        if leader is None or leader.living.configuration.is_joint:
            return False
        if not leader.living.has_committed_in_term or leader.living.transfer_target is not None:
            return False
        if leader.machine.commands[-1:] != (b"the end",):
            if leader.living.last_index == leader.living.commit:
                leader.living.propose([b"the end"])
            return False
        members = [self.group.replicas[member] for member in leader.living.configuration.members()]
        return all(member.machine.commands == leader.machine.commands for member in members)


@pytest.mark.parametrize("seed", SEEDS)
def test_group_keeps_every_invariant_under_faults_and_recovers(seed: int) -> None:
    Chaos(seed, steps=1000).run()


def test_faults_reach_the_states_that_matter() -> None:
    reached: set[str] = set()
    for seed in range(1000, 1030):
        chaos = Chaos(seed, steps=1000)
        chaos.run()
        reached |= chaos.reached
        terms = {LogIndex(term) for term in chaos.group.history.leaders}
        if len(terms) > 2:
            reached.add("many terms")
    assert {
        "read confirmed", "proposed", "restarted", "transfer", "member change", "snapshot", "many terms",
    } == reached  # fmt: skip
