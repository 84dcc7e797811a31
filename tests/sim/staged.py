"""Faults of several steps, each of which leads to a state that chance alone hardly comes to.

They often have the stage for themselves for a while. None knows what it might show: which node, which
delay, which step is drawn, and what follows is looked at closely, see `probers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from kvstore.node.runtime import Lane
from kvstore.raft.membership import Change
from kvstore.raft.progress import ProgressState
from kvstore.types import NodeId, ShardId, Term, node_of
from tests.sim.ambush import TXN_MOMENTS

if TYPE_CHECKING:
    from kvstore.node.replica import Replica
    from tests.sim.cluster import Process
    from tests.sim.faults import Faults

RIVAL_S = 3.5
POLL_S = 0.0002
"""How soon a step is followed by the next."""
QUIET_S = (0.5, 0.8)
"""Without work a shard goes quiet within that."""
HAND_OVER_S = 0.2
UNHEARD_S = (1.5, 3.0)
"""Long enough that others end what a coordinator began, short enough that it is still there."""
DECIDED_S = 3.0
BEHIND_S = (1.2, 2.5)
"""How long a follower is cut off that should need a snapshot then."""


class Staged:
    """Each fault is a method; it returns the name to count it by."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.cluster = faults.cluster
        self.world = faults.world
        self.dice = faults.dice

    # ---- small parts -----------------------------------------------------------------------------

    def _replica(self, name: NodeId, shard: ShardId) -> Replica | None:
        process = self.cluster.processes.get(name)
        return None if process is None else process.node.host.replicas.get(shard)

    def _others(self, leader: Process, shard: ShardId) -> list[NodeId]:
        """The living voters that do not lead."""
        voters = [node_of(voter) for voter in leader.node.host.replicas[shard].core.configuration.voters]
        return [name for name in voters if name != leader.name and name in self.cluster.processes]

    def _led_shard(self, least: int) -> tuple[ShardId, Process, list[NodeId]] | None:
        """Some shard, its leader, and its other living voters; None if those are fewer than `least`."""
        shard, leader = self.faults.some_leader()
        others = [] if leader is None else self._others(leader, shard)
        return None if leader is None or len(others) < least else (shard, leader, others)

    def _highest_term(self, shard: ShardId) -> Term:
        replicas = [process.node.host.replicas.get(shard) for process in self.cluster.processes.values()]
        return max((replica.core.term for replica in replicas if replica is not None), default=Term(0))

    def _when(
        self,
        is_reached: Callable[[], bool],
        then: Callable[[], None],
        limit_s: float,
        every_s: float = POLL_S,
    ) -> None:
        """Do something as soon as a state is reached, unless that takes too long."""
        until = self.world.now + limit_s

        def look() -> None:
            if self.faults.is_healing or self.world.now > until:
                return
            if is_reached():
                then()
            else:
                self.world.after(every_s, look)

        look()

    def _step(self, what: str, *how: Any) -> None:
        """One of the faults of which this one is made."""
        self.faults.count(f"step: {what}")
        getattr(self.faults, what)(*how)

    def _hand_over(self, leader: Process, shard: ShardId, heir: NodeId) -> None:
        self.faults.count("step: transfer")
        leader.node.ask_transfer(shard, heir)

    def _later(self, delay_s: float, then: Callable[[], None]) -> None:
        self.world.after(delay_s, lambda: None if self.faults.is_healing else then())

    # ---- leaders that hear too little, or too late -----------------------------------------------

    def isolate_leader(self) -> str:
        """Fully, or so that it still hears others."""
        shard, leader = self.faults.some_leader()
        if leader is None:
            return "nothing"
        links = self.faults.links if self.dice.random() < 0.5 else self.faults.links_out_of
        self._step("cut", links(leader.name))
        self.faults.hurry(shard, 2.0)
        return "isolate_leader"

    def late_answers(self) -> str:
        """A leader hears late what others answer, and still does when it is not heard itself any more."""
        shard, leader = self.faults.some_leader()
        if leader is None:
            return "nothing"
        # In two steps, or it would miss a whole period's answers and step down.
        for delay_s, after_s in ((self.dice.uniform(0.4, 0.7), 0.0), (self.dice.uniform(0.9, 1.2), 0.3)):
            self._later(
                after_s, partial(self._step, "slow", self.faults.links_into(leader.name), delay_s, 5.0)
            )

        def mute() -> None:
            self._step("cut", self.faults.links_out_of(leader.name), 3.5)
            self._later(0.8, lambda: self.faults.hurry(shard, 1.6))

        self._later(self.dice.uniform(1.5, 2.0), mute)
        return "late_answers"

    # ---- leadership that changes behind somebody's back ------------------------------------------

    def transfer_and_cut(self) -> str:
        """Cut a leader off right when its heir campaigns: it does not hear of the new term."""
        found = self._led_shard(1)
        if found is None:
            return "nothing"
        shard, leader, heirs = found
        term = leader.node.host.replicas[shard].core.term
        self._hand_over(leader, shard, self.dice.choice(heirs))

        def cut() -> None:
            self._step("cut", self.faults.links_into(leader.name))
            self.faults.hurry(shard, 1.5)

        self._when(lambda: self._highest_term(shard) > term, cut, 0.5)
        return "transfer_and_cut"

    def transfer_unheard(self) -> str:
        """After a silence in which its shard may have gone quiet, a leader hands over, and hears late what
        becomes of it."""
        found = self._led_shard(1)
        if found is None:
            return "nothing"
        shard, leader, heirs = found
        delay_s = self.dice.choice((self.dice.uniform(0.05, 0.1), self.dice.uniform(0.05, 0.6)))
        quiet_s = self.dice.uniform(*QUIET_S)
        self.cluster.lull_until = self.world.now + quiet_s + 0.2

        def hand_over() -> None:
            self._hand_over(leader, shard, self.dice.choice(heirs))
            self.faults.hurry(shard, 0.8)

        def slow() -> None:
            self._step("slow", self.faults.links_into(leader.name), delay_s, 1.5)
            self._later(self.dice.uniform(0.0, 0.15), hand_over)

        self._later(quiet_s, slow)
        return "transfer_unheard"

    def rival(self) -> str:
        """A follower that has lost its leader campaigns, and asks a voter that may not listen to it: the
        voter hears the leader, or did before it restarted (schedule 39). The leader does not hear of it.
        Nobody writes before that, or the rival's log would be too short to win."""
        found = self._led_shard(2)
        if found is None:
            return "nothing"
        shard, leader, others = found
        rival, voter = self.dice.sample(others, 2)
        does_restart = self.dice.random() < 0.5
        margins = (3, 9) if does_restart else (1, 10)
        self._lose_leader(leader, shard, rival, voter, margins, does_restart=does_restart)
        return "rival"

    def equal_rival(self) -> str:
        """The same, and the rival's log is as long as the voter's: this one hears its leader without getting
        anything new, since one of the two connections between them hangs."""
        found = self._led_shard(2)
        if found is None:
            return "nothing"
        shard, leader, others = found
        rival, voter = self.dice.sample(others, 2)
        self._step("stick", {(leader.name, voter, Lane.APPEND)}, RIVAL_S)
        does_restart = self.dice.random() < 0.5
        margins = (3, 6) if does_restart else (1, 6)
        self._lose_leader(leader, shard, rival, voter, margins, does_restart=does_restart)
        return "equal_rival"

    def _lose_leader(
        self,
        leader: Process,
        shard: ShardId,
        rival: NodeId,
        voter: NodeId,
        margins: tuple[int, int],
        *,
        does_restart: bool,
    ) -> None:
        """`margins`: how many ticks before the rival campaigns its voter is reached."""
        core = leader.node.host.replicas[shard].core
        self._step("cut_both_ways", {(leader.name, rival)}, RIVAL_S)
        self.cluster.reads_only_until = self.world.now + RIVAL_S
        margin = self.dice.randint(*margins)

        def write_again() -> None:
            self.cluster.reads_only_until = 0.0

        def go_on() -> None:
            term = core.term
            self.faults.hurry(shard, 1.2)
            self._when(lambda: self._highest_term(shard) > term, write_again, 1.0)
            self._later(1.0, write_again)
            if does_restart:
                self._step("cut_both_ways", {(voter, leader.name)}, RIVAL_S)
                if voter in self.cluster.processes:
                    self.faults.count("step: kill")
                    self.cluster.kill(voter, power_loss=False)
                    self.world.after(0.05, self.faults.start, voter)
            else:
                self._step("cut", {(voter, leader.name)}, RIVAL_S)

        def is_about_to_campaign() -> bool:
            replica = self._replica(rival, shard)
            return replica is not None and replica.core.election_timeout - replica.core.elapsed <= margin

        self._when(is_about_to_campaign, go_on, RIVAL_S, 0.02)

    # ---- members ---------------------------------------------------------------------------------

    def members_and_ambush(self) -> str:
        """A change of members that is disturbed at once."""
        shard = self.faults.some_leader()[0]
        self.faults.ambush.set(shard, "members change")
        return "members_and_ambush" if self.faults.change_members(shard) == "members" else "nothing"

    def members_and_cut(self) -> str:
        """A leader takes the vote of one or of all others, and is cut off when that is proposed, in force, or
        done. If somebody has no vote from before, all get it back first."""
        shard, leader = self.faults.some_leader()
        if leader is None:
            return "nothing"
        core = leader.node.host.replicas[shard].core
        learners = core.configuration.learners
        if learners and not self.faults.change(leader, shard, Change(voters=learners)):
            return "nothing"

        def is_whole() -> bool:
            return not core.configuration.learners and not core.configuration.is_joint

        self._when(is_whole, lambda: self._change_and_cut(leader, shard), 1.0, 0.01)
        return "members_and_cut"

    def _change_and_cut(self, leader: Process, shard: ShardId) -> None:
        replica = leader.node.host.replicas.get(shard)
        if replica is None:
            return
        core = replica.core
        before = core.configuration
        others = [voter for voter in before.voters if voter != core.me]
        count = self.dice.choice((1, len(others), len(others)))
        if not others or not self.faults.change(
            leader, shard, Change(learners=tuple(self.dice.sample(others, count)))
        ):
            return
        step = self.dice.choice(("proposed", "in force", "in force", "done"))

        def is_reached() -> bool:
            now = core.configuration
            return now.is_joint if step == "in force" else now != before and not now.is_joint

        def cut_off() -> None:
            self._step("cut", self.faults.links(leader.name), self.dice.choice((3.0, 4.5)))
            self.faults.hurry(shard, 3.0)

        if step == "proposed":
            self._later(self.dice.uniform(0.0, 0.004), cut_off)
        else:
            self._when(is_reached, cut_off, 1.0)

    # ---- snapshots -------------------------------------------------------------------------------

    def late_snapshot(self) -> str:
        """A follower falls behind a log that its leader cuts. While it fetches a snapshot from there, slowly,
        another takes over, whose log is longer because its disk is slow to flush."""
        found = self._led_shard(2)
        if found is None or self.cluster.keeper is None:
            return "nothing"
        shard, leader, others = found
        behind, heir = self.dice.sample(others, 2)
        behind_s = self.dice.uniform(*BEHIND_S)
        disk = self.cluster.machines[heir].disk
        disk.hung_until, disk.hung_lane = self.world.now + behind_s + 2.0, "store"
        self._step("cut_both_ways", {(behind, other) for other in self.cluster.config.node_ids()}, behind_s)
        self.faults.hurry(shard, behind_s)
        replica = leader.node.host.replicas[shard]

        def is_offered() -> bool:
            return any(
                node_of(peer.replica) == behind
                and peer.state is ProgressState.SNAPSHOT
                and peer.snapshot is not None
                for peer in replica.core.peers
            )

        def hand_over() -> None:
            self._step("slow", {(leader.name, behind)}, self.dice.uniform(0.1, 0.6), 3.0)
            self._hand_over(leader, shard, heir)
            self.faults.hurry(shard, 2.0)
            self.cluster.states["leader changed under a snapshot"] += 1

        self._when(is_offered, hand_over, behind_s + 3.0, 0.01)
        return "late_snapshot"

    # ---- transactions ----------------------------------------------------------------------------

    def txn_and_ambush(self) -> str:
        """Somebody is hit in the midst of a transaction over several shards."""
        if not self.cluster.states["transaction over shards"]:
            return "nothing"
        prepares, decides, asks = TXN_MOMENTS
        moment = self.dice.choice((prepares, prepares, decides, asks))
        self.faults.ambush.set(None, moment, unanswered_share=0.4)
        return "txn_and_ambush"

    def unheard_coordinator(self) -> str:
        """What a node asks of a leader gets lost for a while. Patient clients wait, but the leaders of other
        shards come to think that it is dead: they end its transactions, and then it is heard again."""
        found = self._led_shard(2)
        if found is None or not self.cluster.states["transaction over shards"]:
            return "nothing"
        shard, leader, others = found
        coordinator, partner = self.dice.sample(others, 2)
        for number in range(self.cluster.config.shards):
            led = self.cluster.leader_of(ShardId(number))
            if number != shard and led is not None:
                self._hand_over(led, ShardId(number), partner)

        def lose() -> None:
            seconds = self.dice.uniform(*UNHEARD_S)
            self.cluster.patient_until = self.world.now + seconds
            self._step("cut", {(coordinator, leader.name)}, seconds)

        self._later(HAND_OVER_S, lose)
        return "unheard_coordinator"

    def late_decision(self) -> str:
        """A leader hears later than others what a coordinator says: what a transaction did shows in one
        shard when it does not yet in another."""
        found = self._led_shard(1)
        if found is None or not self.cluster.states["transaction over shards"]:
            return "nothing"
        shard, leader, others = found
        link = (self.dice.choice(others), leader.name)
        self._step("slow", {link}, self.dice.uniform(0.1, 0.5), DECIDED_S)
        self.cluster.singly_until = self.world.now + DECIDED_S
        self.faults.hurry(shard, DECIDED_S)
        return "late_decision"


STAGED = {
    "isolate_leader": 2.5,
    "late_answers": 4.2,
    "transfer_and_cut": 2.2,
    "transfer_unheard": 2.2,
    "rival": 3.2,
    "late_snapshot": 4.5,
    "txn_and_ambush": 2.2,
}
"""How many seconds each has the stage for itself."""
STAGED_LATER = {
    "late": {"unheard_coordinator": 4.5, "equal_rival": 3.2},
    "later": {"late_decision": 2.5},
}
"""Those that came later have dice of their own, of this name: seeds without them stay what they were."""
STAGED_MEMBERS = {"members_and_ambush": 2.5, "members_and_cut": 3.5}
