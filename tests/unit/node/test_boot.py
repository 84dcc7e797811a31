"""The first-boot agreement: scripted cases, and an explorer that loses, repeats, crashes and wipes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from kvstore.node import boot as boot_module
from kvstore.node.boot import Boot, ClusterKnowsMe
from kvstore.node.identity import VERSION, Identity
from kvstore.types import NodeId, ReplicaId, ShardId
from kvstore.wire.boot_messages import EMPTY, MEMBER, PROPOSED, BootState, Proposal, ShardPlan

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
SEEDS = (N1, N2, N3)
FACTS = {"cluster": "demo", "shards": 16}
PLAN = (ShardPlan(ShardId(0), (ReplicaId("n1/1"), ReplicaId("n2/1"), ReplicaId("n3/1"))),)


class Life:
    """One data directory of one node, from empty to wiped."""

    def __init__(self, node: NodeId, number: int) -> None:
        self.node = node
        self.durable = Identity(VERSION, "demo", node, number.to_bytes(16, "big"))
        self.member_since: int | None = None
        self.ended_at: int | None = None


class Seeds:
    """Seeds, their disks, and every message that is on its way."""

    def __init__(self, seed: int = 0, kind: type[Boot] = Boot) -> None:
        self.dice = Random(seed)
        self.kind = kind
        self.now = 0
        self.minted = 0
        self.ids: set[bytes] = set()
        self.lives: list[Life] = []
        self.life: dict[NodeId, Life] = {}
        self.boot: dict[NodeId, Boot | None] = dict.fromkeys(SEEDS)
        self.persisting: dict[NodeId, Identity] = {}
        self.refusals: dict[NodeId, ClusterKnowsMe] = {}
        """Processes that ended because the cluster knows their node."""
        self.flying: list[tuple[NodeId, NodeId, BootState]] = []
        self.facts: dict[NodeId, dict[str, object]] = {node: dict(FACTS) for node in SEEDS}
        self.cut: Callable[[NodeId, NodeId], bool] = lambda source, target: False
        for node in SEEDS:
            self.wipe(node)

    def mint(self) -> bytes:
        self.minted += 1
        return b"id%014d" % self.minted

    def start(self, node: NodeId) -> None:
        facts = self.facts[node]
        self.boot[node] = self.kind(
            self.life[node].durable,
            SEEDS,
            facts,
            repr(sorted(facts.items())).encode(),
            lambda: PLAN,
            self.mint,
        )

    def crash(self, node: NodeId) -> None:
        self.boot[node] = None
        self.persisting.pop(node, None)

    def wipe(self, node: NodeId) -> None:
        """Crash, and lose the disk."""
        self.crash(node)
        if node in self.life:
            self.life[node].ended_at = self.now
        life = Life(node, len(self.lives) + 1)
        self.lives.append(life)
        self.life[node] = life

    def drain(self, node: NodeId) -> None:
        boot = self.boot[node]
        if boot is None:
            return
        while boot.has_ready():
            ready = boot.take_ready()
            self.flying += [(node, target, state) for target, state in ready.messages]
            if ready.persist is not None:
                self.persisting[node] = ready.persist
        if boot.refusal is not None:
            self.refusals[node] = boot.refusal
            self.crash(node)

    def sync(self, node: NodeId) -> None:
        identity, boot, life = self.persisting.pop(node), self.boot[node], self.life[node]
        assert boot is not None
        was_member = life.durable.is_member
        life.durable = identity
        boot.persisted(identity)
        self.drain(node)
        if identity.is_member and not was_member:
            self.check_new_member(life)

    def deliver(self, index: int, *, keep: bool = False) -> None:
        source, target, state = self.flying[index] if keep else self.flying.pop(index)
        boot = self.boot[target]
        if boot is not None and not self.cut(source, target):
            boot.on_message(source, state)
            self.drain(target)

    def tick(self, node: NodeId) -> None:
        if (boot := self.boot[node]) is not None:
            boot.tick()
            self.drain(node)

    # ---- claims ------------------------------------------------------------------------------------

    def members(self) -> list[Life]:
        return [life for life in self.lives if life.ended_at is None and life.durable.is_member]

    def check_new_member(self, life: Life) -> None:
        self.now += 1
        life.member_since = self.now
        ids = {member.durable.cluster_id for member in self.members()}
        assert len(ids) == 1, f"two clusters live: {ids}"
        for earlier in self.lives:
            if earlier.node != life.node or earlier is life or earlier.member_since is None:
                continue
            assert earlier.ended_at is not None
            witnesses = [
                member
                for member in self.members()
                if member.member_since is not None and member.member_since <= earlier.ended_at
            ]
            assert not witnesses, f"{life.node} joined again beside a member that knew its former self"

    # ---- schedules ---------------------------------------------------------------------------------

    def settle(self, rounds: int = 120) -> None:
        """No more faults: tick, sync and deliver in order until everything stands still."""
        self.flying.clear()
        self.refusals.clear()
        for _ in range(rounds):
            for node in SEEDS:
                if self.boot[node] is None and node not in self.refusals:
                    self.start(node)
                self.tick(node)
            self.run_dry()

    def run_dry(self) -> None:
        while self.flying or self.persisting:
            for node in list(self.persisting):
                self.sync(node)
            if self.flying:
                self.deliver(0)

    def chaos(self, steps: int, wipes: int) -> None:
        """Anything in any order; now and then a node is cut off or its disk is slow for a while."""
        dice = self.dice
        cut_off: NodeId | None = None
        slow: NodeId | None = None
        self.cut = lambda source, target: cut_off in (source, target)
        for _ in range(steps):
            self.now += 1
            node = dice.choice(SEEDS)
            roll = dice.random()
            if roll < 0.01:
                cut_off, slow = dice.choice((None, *SEEDS)), dice.choice((None, *SEEDS))
            elif roll < 0.02:
                self.crash(node)
            elif roll < 0.07 and wipes and self.life[node].durable.stage != EMPTY:
                wipes -= 1
                self.wipe(node)
            elif self.boot[node] is None:
                if roll < 0.4:
                    self.start(node)
            elif node in self.persisting and (node != slow or roll < 0.1):
                self.sync(node)
            elif roll < 0.75 and self.flying:
                self.deliver(dice.randrange(len(self.flying)), keep=dice.random() < 0.1)
            elif roll < 0.80 and self.flying:
                self.flying.pop(dice.randrange(len(self.flying)))
            else:
                self.tick(node)
            if len(self.flying) > 40:
                del self.flying[:10]
        self.cut = lambda source, target: False


def started(**kinds: type[Boot]) -> Seeds:
    seeds = Seeds(**kinds)
    for node in SEEDS:
        seeds.start(node)
    return seeds


def boot_of(seeds: Seeds, node: NodeId) -> Boot:
    boot = seeds.boot[node]
    assert boot is not None
    return boot


def stages(seeds: Seeds) -> list[int]:
    return [seeds.life[node].durable.stage for node in SEEDS]


def proposal_of(seeds: Seeds, node: NodeId) -> Proposal:
    accepted = seeds.life[node].durable.accepted
    assert accepted is not None
    return accepted


def test_three_empty_seeds_become_members_of_one_cluster_with_one_plan() -> None:
    seeds = started()
    seeds.settle(3)
    assert stages(seeds) == [MEMBER] * 3
    assert len({proposal_of(seeds, node).cluster_id for node in SEEDS}) == 1
    assert all(proposal_of(seeds, node).plan == PLAN for node in SEEDS)
    assert all(boot_of(seeds, node).waiting_for() == [] for node in SEEDS)


def test_nothing_is_said_before_it_is_durable() -> None:
    seeds = started()
    for node in SEEDS:
        seeds.tick(node)
    while seeds.flying:
        seeds.deliver(0)
    assert seeds.persisting
    for _source, _target, state in seeds.flying:
        assert state.promised.round == 0
    seeds.run_dry()
    assert boot_of(seeds, N1).identity == seeds.life[N1].durable


def test_nobody_mints_while_a_seed_is_missing_and_the_missing_one_is_named() -> None:
    seeds = Seeds()
    seeds.start(N1)
    seeds.start(N2)
    for _ in range(30):
        seeds.tick(N1)
        seeds.tick(N2)
        seeds.run_dry()
    assert seeds.minted == 0
    assert stages(seeds) == [EMPTY] * 3
    assert boot_of(seeds, N1).waiting_for() == ["n3: not reached"]
    assert "n3: not reached" in boot_of(seeds, N2).waiting_for()


def test_seeds_with_different_configurations_wait_and_name_what_differs() -> None:
    seeds = Seeds()
    seeds.facts[N3]["shards"] = 32
    for node in SEEDS:
        seeds.start(node)
    seeds.settle(20)
    assert stages(seeds) == [EMPTY] * 3
    assert boot_of(seeds, N1).waiting_for() == [
        "n3: its cluster.yaml differs: shards is 32 there and 16 here"
    ]
    assert "n1: its cluster.yaml differs: shards is 16 there and 32 here" in boot_of(seeds, N3).waiting_for()
    seeds.crash(N3)
    seeds.facts[N3]["shards"] = 16
    seeds.settle(30)
    assert stages(seeds) == [MEMBER] * 3


def test_a_proposal_for_a_configuration_that_all_have_since_changed_is_given_up() -> None:
    seeds = started()
    seeds.cut = lambda source, target: target == N3 and seeds.life[N1].durable.stage == PROPOSED
    for _ in range(5):
        for node in SEEDS:
            seeds.tick(node)
        seeds.run_dry()
    assert stages(seeds) == [PROPOSED, PROPOSED, EMPTY]
    first = proposal_of(seeds, N1)
    for node in SEEDS:
        seeds.crash(node)
        seeds.facts[node]["shards"] = 64
    seeds.cut = lambda source, target: False
    seeds.settle(40)
    assert stages(seeds) == [MEMBER] * 3
    assert proposal_of(seeds, N1).config_hash != first.config_hash
    assert proposal_of(seeds, N1).cluster_id != first.cluster_id


def test_a_seed_that_stored_the_proposal_and_was_down_is_promoted_by_a_members_word() -> None:
    seeds = started()
    seeds.cut = lambda source, target: target == N3 and seeds.life[N3].durable.stage == PROPOSED
    for _ in range(5):
        for node in SEEDS:
            seeds.tick(node)
        seeds.run_dry()
    assert stages(seeds) == [MEMBER, MEMBER, PROPOSED]
    seeds.crash(N3)
    seeds.crash(N1)
    seeds.cut = lambda source, target: False
    seeds.start(N3)
    seeds.start(N1)
    seeds.settle(3)
    assert stages(seeds) == [MEMBER] * 3


def test_a_seed_emptied_while_no_member_exists_gets_the_same_proposal_again() -> None:
    seeds = started()
    seeds.cut = lambda source, target: seeds.life[source].durable.stage == PROPOSED and source != N1
    for _ in range(5):
        for node in SEEDS:
            seeds.tick(node)
        seeds.run_dry()
    assert stages(seeds) == [PROPOSED] * 3
    cluster_id = proposal_of(seeds, N1).cluster_id
    for node in (N1, N2):
        seeds.wipe(node)
        seeds.start(node)
    seeds.cut = lambda source, target: False
    seeds.settle(60)
    assert stages(seeds) == [MEMBER] * 3
    assert {proposal_of(seeds, node).cluster_id for node in SEEDS} == {cluster_id}


def test_pitfall_20_a_wiped_node_of_a_living_cluster_refuses_and_says_what_to_run() -> None:
    seeds = started()
    seeds.settle(3)
    seeds.wipe(N2)
    seeds.start(N2)
    for _ in range(5):
        seeds.tick(N2)
        seeds.run_dry()
    refusal = seeds.refusals[N2]
    assert "kvctl node rm n2" in str(refusal)
    assert proposal_of(seeds, N1).cluster_id.hex() in str(refusal)
    assert stages(seeds) == [MEMBER, EMPTY, MEMBER]


def test_a_node_that_the_cluster_does_not_know_is_told_to_join() -> None:
    seeds = started()
    seeds.settle(3)
    member = boot_of(seeds, N1)
    member._knows = lambda node: node != N3
    seeds.wipe(N3)
    seeds.boot[N2] = None
    seeds.start(N3)
    seeds.tick(N3)
    seeds.run_dry()
    assert not seeds.refusals
    assert any("--join" in reason for reason in boot_of(seeds, N3).waiting_for())


@pytest.mark.parametrize("lost", [(N2, N3), (N1, N2), (N1, N3)])
def test_pitfall_26_two_emptied_seeds_never_start_a_second_history_without_the_third(
    lost: tuple[NodeId, NodeId],
) -> None:
    seeds = started()
    seeds.settle(3)
    (survivor,) = set(SEEDS) - set(lost)
    seeds.cut = lambda source, target: survivor in (source, target)
    for node in lost:
        seeds.wipe(node)
        seeds.start(node)
    seeds.settle(100)
    assert [seeds.life[node].durable.stage for node in lost] == [EMPTY, EMPTY]
    seeds.cut = lambda source, target: False
    seeds.settle(5)
    assert set(seeds.refusals) == set(lost)
    assert seeds.life[survivor].durable.is_member


def test_pitfall_26_a_late_seed_and_an_emptied_one_wait_for_the_member_that_is_cut_off() -> None:
    """n1 and n2 form the cluster and acknowledge, n3 holds the proposal only; n2's disk is emptied and
    n1 cut off. n3 must not take the new n2 for the one that accepted."""
    seeds = started()
    seeds.cut = lambda source, target: target == N3 and seeds.life[N3].durable.stage == PROPOSED
    for _ in range(5):
        for node in SEEDS:
            seeds.tick(node)
        seeds.run_dry()
    assert stages(seeds) == [MEMBER, MEMBER, PROPOSED]
    seeds.cut = lambda source, target: N1 in (source, target)
    seeds.wipe(N2)
    seeds.start(N2)
    seeds.settle(100)
    assert stages(seeds) == [MEMBER, EMPTY, PROPOSED]
    seeds.cut = lambda source, target: False
    seeds.settle(5)
    assert stages(seeds) == [MEMBER, EMPTY, MEMBER]
    assert set(seeds.refusals) == {N2}


def test_pitfall_26_a_member_promoted_during_a_later_ballot_does_not_vouch_for_an_emptied_seed() -> None:
    """n3 is a member and n2 becomes one by its word, after n2 had promised a second ballot to n1. n3's disk
    is emptied, the new n3 promises too, and n1 proposes with it. Neither n1 nor n2 may let it in."""
    seeds = started()
    seeds.cut = lambda source, target: (
        target != N3 and source != N1 and seeds.life[source].durable.stage in (PROPOSED, MEMBER)
    )
    for _ in range(4):
        for node in SEEDS:
            seeds.tick(node)
        seeds.run_dry()
    assert stages(seeds) == [PROPOSED, PROPOSED, MEMBER]
    word = BootState(N3, seeds.life[N3].durable.directory, MEMBER, {}, *_held(seeds, N3), knows_you=True)
    one, two = boot_of(seeds, N1), boot_of(seeds, N2)
    facts = two._facts
    one.on_message(N3, BootState(N3, b"an earlier life!", EMPTY, facts, boot_module.Ballot(), None))
    for _ in range(boot_module.BALLOT_TICKS):
        one.tick()
    seeds.drain(N1)
    seeds.sync(N1)
    assert seeds.life[N1].durable.promised.round == 2
    seeds.flying.clear()
    two.on_message(N1, BootState(N1, seeds.life[N1].durable.directory, PROPOSED, facts, *_held(seeds, N1)))
    seeds.drain(N2)
    seeds.sync(N2)
    promise = BootState(N2, seeds.life[N2].durable.directory, PROPOSED, facts, *_held(seeds, N2))
    two.on_message(N3, word)
    seeds.drain(N2)
    seeds.sync(N2)
    assert stages(seeds) == [PROPOSED, MEMBER, MEMBER]

    seeds.wipe(N3)
    seeds.start(N3)
    seeds.flying.clear()
    seeds.cut = lambda source, target: N2 in (source, target)
    one.on_message(N2, promise)
    for _ in range(3):
        seeds.tick(N1)
        seeds.tick(N3)
        seeds.run_dry()
    assert proposal_of(seeds, N1).ballot == proposal_of(seeds, N3).ballot
    assert stages(seeds) == [PROPOSED, MEMBER, PROPOSED]

    seeds.cut = lambda source, target: {source, target} == {N2, N3}
    seeds.settle(20)
    assert stages(seeds) == [MEMBER, MEMBER, PROPOSED]
    assert set(seeds.refusals) == {N3}


def _held(seeds: Seeds, node: NodeId) -> tuple[boot_module.Ballot, Proposal | None]:
    durable = seeds.life[node].durable
    return durable.promised, durable.accepted


def test_a_member_restarts_without_any_peer() -> None:
    seeds = started()
    seeds.settle(3)
    seeds.crash(N1)
    seeds.start(N1)
    assert boot_of(seeds, N1).is_member
    assert not boot_of(seeds, N1).has_ready()


def test_a_single_seed_boots_alone() -> None:
    identity = Identity(VERSION, "demo", N1, b"d" * 16)
    boot = Boot(identity, [N1], FACTS, b"h", lambda: PLAN, lambda: b"i" * 16)
    boot.tick()
    written = []
    while boot.has_ready():
        ready = boot.take_ready()
        assert ready.persist is not None
        written.append(ready.persist.stage)
        boot.persisted(ready.persist)
    assert written == [EMPTY, PROPOSED, MEMBER]
    assert boot.identity.cluster_id == b"i" * 16


# ---- exploration -------------------------------------------------------------------------------------


def explore(seed: int, kind: type[Boot] = Boot) -> Seeds:
    seeds = Seeds(seed, kind)
    wipes = seeds.dice.choice((0, 1, 2, 4))
    for node in SEEDS:
        seeds.start(node)
    seeds.chaos(400, wipes)
    return seeds


@pytest.mark.parametrize("block", range(10))
def test_pitfall_26_no_schedule_of_losses_crashes_and_wipes_makes_two_clusters(block: int) -> None:
    outcomes = set()
    for seed in range(block * 150, block * 150 + 150):
        seeds = explore(seed)
        had_member = any(life.durable.is_member for life in seeds.lives)
        seeds.settle()
        refused = seeds.refusals
        assert all(seeds.life[node].durable.is_member != (node in refused) for node in SEEDS), (
            f"seed {seed}: stuck at {stages(seeds)}, refused {refused}"
        )
        assert len({member.durable.cluster_id for member in seeds.members()}) == 1
        if len(seeds.lives) == len(SEEDS):
            assert not refused, f"seed {seed}: refused although no disk was emptied"
        outcomes.add((had_member, bool(refused)))
    assert {had_member for had_member, _ in outcomes} == {True, False}


class TakesAnyDirectory(Boot):
    """The mistake: an emptied seed's new directory counts for its old one."""

    def _has_accepted(self, node: NodeId, proposal: Proposal) -> bool:
        heard = self._heard.get(node)
        if node == self._me:
            return self.identity.accepted == proposal
        return heard is not None and heard.accepted is not None

    def _follow(self, theirs: BootState) -> None:
        super()._follow(theirs)
        mine = self._newest()
        if theirs.accepted is not None and mine.accepted is None and not mine.is_member:
            self._want(
                boot_module.replace(
                    mine, promised=theirs.accepted.ballot, accepted=theirs.accepted, stage=PROPOSED
                )
            )


class MintsForSome(Boot):
    """The mistake: a majority of the seeds is enough to begin."""

    def _obstacle(self, node: NodeId) -> str | None:
        return None if self._ticks > 12 and node in self._heard else super()._obstacle(node)

    def _has_all_promises(self, others: list[NodeId], ballot: boot_module.Ballot) -> bool:
        promised = [node for node in others if self._heard[node].promised == ballot]
        return self.identity.accepted is None and len(promised) >= 1

    def _is_agreed(self) -> bool:
        accepted = self.identity.accepted
        return accepted is not None and sum(self._has_accepted(node, accepted) for node in SEEDS) >= 2


@pytest.mark.parametrize("kind", [TakesAnyDirectory, MintsForSome])
def test_the_exploration_finds_the_second_history_when_a_guard_is_taken_away(kind: type[Boot]) -> None:
    def survives(seed: int) -> bool:
        try:
            explore(seed, kind).settle()
        except AssertionError:
            return False
        return True

    assert not all(survives(seed) for seed in range(1500))
