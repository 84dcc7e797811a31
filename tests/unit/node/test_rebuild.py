"""The steps of a rebuild, read off a configuration; and what a node keeps of damaged replicas."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import InvalidArgument, Overloaded, Unavailable
from kvstore.node.quarantine import Quarantine
from kvstore.node.rebuild import is_replaced, replacement, successions
from kvstore.node.tablets import Tablets
from kvstore.node.view import check_lost, newest_on, pending_on
from kvstore.raft.membership import Change, left_joint, next_configuration
from kvstore.raft.messages import Configuration
from kvstore.store.memory import MemoryEngines
from kvstore.types import Incarnation, LogIndex, NodeId, ReplicaId, ShardId, Term, incarnation_of
from kvstore.wal import Quarantined, Recovered, RecoveredReplica, ShardCreated, ShardDestroyed
from kvstore.wire import peer
from kvstore.wire.boot_messages import ShardPlan
from kvstore.wire.peer import LedShard, StatusReply
from tests.support.sim_files import SimFiles

SHARD = ShardId(3)
N1, N2 = NodeId("n1"), NodeId("n2")


def group(voters: str, learners: str = "", outgoing: str = "") -> Configuration:
    """`"n1/1 n2/1"` and so on."""
    return Configuration(
        voters=tuple(map(ReplicaId, sorted(voters.split()))),
        outgoing=tuple(map(ReplicaId, sorted(outgoing.split()))),
        learners=tuple(map(ReplicaId, sorted(learners.split()))),
    )


def everybody(replica: ReplicaId) -> bool:
    return True


THREE = group("n1/1 n2/1 n3/1")
LEARNING = group("n1/1 n2/1 n3/1", "n1/2")
JOINT = group("n1/2 n2/1 n3/1", outgoing="n1/1 n2/1 n3/1")
SWAPPED = group("n1/2 n2/1 n3/1")
OLD, NEW, THIRD = ReplicaId("n1/1"), ReplicaId("n1/2"), ReplicaId("n1/3")


# ---- what to do next


def test_a_learner_beside_an_older_voter_of_its_node_succeeds_it() -> None:
    assert successions(LEARNING) == [(NEW, (OLD,))]
    assert successions(THREE) == []
    assert successions(SWAPPED) == []
    assert successions(JOINT) == [], "Raft leaves a joint configuration by itself"


def test_a_learner_of_another_purpose_is_left_alone() -> None:
    assert successions(group("n1/1 n2/1 n3/1", "n4/1")) == []
    assert successions(group("n1/2 n2/1 n3/1", "n1/1")) == [], "an older learner succeeds nobody"


def test_incarnations_are_compared_as_numbers() -> None:
    assert successions(group("n1/9 n2/1 n3/1", "n1/10")) == [("n1/10", ("n1/9",))]
    assert is_replaced(group("n1/10 n2/1"), ReplicaId("n1/9"))
    assert not is_replaced(group("n1/9 n2/1"), ReplicaId("n1/10"))


def test_only_a_configuration_with_a_later_incarnation_proves_that_one_is_gone() -> None:
    assert is_replaced(SWAPPED, OLD)
    for configuration in (THREE, LEARNING, JOINT, Configuration(), group("n2/1 n3/1 n4/1")):
        assert not is_replaced(configuration, OLD), configuration
    assert not is_replaced(SWAPPED, NEW)
    assert not is_replaced(THREE, NEW), "a later incarnation is not known to an older configuration"


def test_a_lost_voter_is_replaced_by_a_learner_of_the_next_incarnation() -> None:
    assert replacement(THREE, OLD, everybody) == (NEW, Change(learners=(NEW,)))


def test_asking_again_names_the_one_that_comes_already() -> None:
    for configuration in (LEARNING, JOINT, SWAPPED):
        assert replacement(configuration, OLD, everybody) == (NEW, None)


def test_a_lost_learner_makes_room_for_the_next() -> None:
    heir, change = replacement(LEARNING, NEW, everybody)
    assert (heir, change) == (THIRD, Change(learners=(THIRD,), removed=(NEW,)))
    assert change is not None
    following = next_configuration(LEARNING, change)
    assert successions(following) == [(THIRD, (OLD,))]
    assert is_replaced(following, NEW)


def test_who_never_was_a_member_cannot_be_lost() -> None:
    for stranger in ("n4/1", "n1/7"):
        with pytest.raises(InvalidArgument, match="is no member"):
            replacement(THREE, ReplicaId(stranger), everybody)


def test_a_joint_group_has_to_finish_first() -> None:
    with pytest.raises(Overloaded):
        replacement(JOINT, NEW, everybody)


@pytest.mark.parametrize(
    ("voters", "live", "is_enough"),
    [
        ("n1/1 n2/1 n3/1", "n2/1 n3/1", True),
        ("n1/1 n2/1 n3/1", "n2/1", False),
        ("n1/1 n2/1 n3/1", "n1/1 n2/1", False),
        ("n1/1 n2/1", "n2/1", False),
        ("n1/1 n2/1 n3/1 n4/1 n5/1", "n2/1 n3/1 n4/1", True),
        ("n1/1 n2/1 n3/1 n4/1 n5/1", "n1/1 n2/1 n3/1", False),
    ],
)
def test_a_majority_must_live_without_the_lost_one(voters: str, live: str, is_enough: bool) -> None:
    alive = set(live.split())
    if is_enough:
        assert replacement(group(voters), OLD, lambda voter: voter in alive)[0] == NEW
    else:
        with pytest.raises(Unavailable, match="voters live without n1"):
            replacement(group(voters), OLD, lambda voter: voter in alive)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["lose voter", "lose newest", "swap"]), max_size=12))
def test_incarnations_only_grow_and_nobody_who_was_replaced_comes_back(events: list[str]) -> None:
    """Whatever is lost when: each configuration follows from the one before by what a leader proposes."""
    configuration, gone = THREE, set[ReplicaId]()
    for event in events:
        mine = [member for member in configuration.members() if member.startswith("n1/")]
        newest = max(mine, key=incarnation_of)
        if event == "swap":
            for learner, older in successions(configuration):
                joint = next_configuration(configuration, Change(voters=(learner,), removed=older))
                assert not any(is_replaced(joint, each) for each in older)
                configuration = left_joint(joint)
        else:
            lost = newest if event == "lose newest" else min(mine, key=incarnation_of)
            _heir, change = replacement(configuration, lost, everybody)
            if change is not None:
                configuration = next_configuration(configuration, change)
        gone |= {each for each in mine if each not in configuration.members()}
        assert all(is_replaced(configuration, each) for each in gone)
        assert sum(voter.startswith("n1/") for voter in configuration.voters) == 1


# ---- what a request may be about


def led(configuration: Configuration) -> LedShard:
    leader = ReplicaId("n2/1")
    return LedShard(SHARD, Term(2), leader, configuration.voters, configuration.learners, (), LogIndex(9), 4)


def status(hosted: str | None, damaged: str = "") -> StatusReply:
    return StatusReply(
        1,
        (),
        tuple((SHARD, ReplicaId(each)) for each in damaged.split()),
        None if hosted is None else tuple((SHARD, ReplicaId(each)) for each in hosted.split()),
    )


def test_a_request_is_about_the_newest_incarnation_of_a_home() -> None:
    assert newest_on(N1, led(THREE)) == OLD
    assert newest_on(N1, led(LEARNING)) == NEW
    with pytest.raises(InvalidArgument, match="n4 is no home of shard 3: n1, n2, n3 are"):
        newest_on(NodeId("n4"), led(THREE))


def test_a_successor_under_way_is_pending_unless_it_is_damaged_itself() -> None:
    assert pending_on(N1, led(LEARNING), status("", "n1/1")) == NEW
    assert pending_on(N1, led(LEARNING), None) == NEW
    assert pending_on(N1, led(LEARNING), status("", "n1/2")) is None
    assert pending_on(N1, led(THREE), status("", "n1/1")) is None
    assert pending_on(N1, led(SWAPPED), status("n1/2")) is None


def test_a_replica_in_service_is_not_lost() -> None:
    with pytest.raises(InvalidArgument, match="healthy replica of shard 3: n1/1"):
        check_lost(OLD, led(THREE), status("n1/1"))


def test_a_node_must_say_itself_that_it_has_no_replica() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        check_lost(OLD, led(THREE), None)
    with pytest.raises(Unavailable, match="not ready"):
        check_lost(OLD, led(THREE), status(None))
    check_lost(OLD, led(THREE), status("", "n1/1"))
    check_lost(NEW, led(SWAPPED), status("", "n1/1"))


# ---- what a node keeps


class Log:
    """Collects records; `sync` makes them durable."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.callbacks: list[Any] = []

    def add(self, records: list[Any], promise: None) -> None:
        self.records += records

    def then(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def sync(self) -> None:
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


class Instant:
    """As much of a runtime as is asked for: threads are done at once, timers never."""

    def in_thread(self, work: Any, done: Any, *, lane: str) -> None:
        done(work(), None)

    def call_later(self, delay_s: float, callback: Any) -> None:
        pass


class PaperReplica:
    def __init__(self, incarnation: int) -> None:
        self.shard, self.incarnation, self.me = SHARD, incarnation, ReplicaId(f"n1/{incarnation}")
        self.is_closed = False
        self.machine = self

    def close(self) -> None:
        self.is_closed = True


class PaperHost:
    me = N1
    peers = (N2,)
    is_stopped = False

    def __init__(self) -> None:
        self.log = Log()
        self.runtime = Instant()
        self.replicas: dict[ShardId, PaperReplica] = {}
        self.damaged: dict[ShardId, str] = {}
        self.damaged_replicas: dict[ShardId, ReplicaId] = {}
        self.on_message: dict[type, Any] = {}
        self.told: list[tuple[NodeId, Any]] = []

    def schedule_pass(self) -> None:
        pass

    def tell(self, node: NodeId, message: Any) -> None:
        self.told.append((node, message))

    def hear(self, message: Any) -> None:
        self.on_message[type(message)](N2, message)


class Keep:
    """A node's quarantine on paper, its log and its tablets' disk."""

    def __init__(self) -> None:
        self.files = SimFiles()
        self.host = PaperHost()
        self.tablets = Tablets(self.files, "/data", N1, MemoryEngines(self.files).open)
        self.tablets.prepare()
        self.forgotten: list[ShardId] = []
        host: Any = self.host
        self.quarantine = Quarantine(host, self.tablets, self._open, self.forgotten.append)
        self.quarantine.is_open = True

    def _open(self, shard: ShardId, incarnation: Incarnation, replica: RecoveredReplica) -> None:
        assert replica.created is not None
        assert replica.created.configuration == Configuration(), "who joins knows no members"
        self.host.replicas[shard] = PaperReplica(incarnation)

    def make_directory(self, name: str) -> None:
        self.files.mkdirs(self.tablets.path(name))
        self.files.create(self.tablets.path(name) + "/tablet")

    def kinds(self) -> list[type]:
        return [type(record) for record in self.host.log.records]


@pytest.fixture
def keep() -> Keep:
    return Keep()


def test_a_successor_is_hosted_only_once_its_creation_is_durable(keep: Keep) -> None:
    keep.quarantine.hold(SHARD, Incarnation(1), "rot")
    keep.host.hear(peer.CreateReplica(SHARD, NEW))
    keep.host.hear(peer.CreateReplica(SHARD, NEW))
    assert keep.kinds() == [ShardCreated]
    assert keep.host.replicas == {}
    keep.host.log.sync()
    assert keep.host.replicas[SHARD].me == NEW
    assert keep.forgotten == [SHARD]
    keep.host.hear(peer.CreateReplica(SHARD, NEW))
    assert keep.kinds() == [ShardCreated]


def test_an_incarnation_that_was_ever_here_is_not_made_again(keep: Keep) -> None:
    keep.quarantine.know(SHARD, Incarnation(2))
    for replica in (OLD, NEW, ReplicaId("n2/5")):
        keep.host.hear(peer.CreateReplica(SHARD, replica))
    assert keep.kinds() == []
    keep.host.hear(peer.CreateReplica(SHARD, THIRD))
    assert keep.kinds() == [ShardCreated]


def test_nothing_is_made_before_the_log_has_said_what_there_is(keep: Keep) -> None:
    keep.quarantine.is_open = False
    keep.host.hear(peer.CreateReplica(SHARD, NEW))
    assert keep.kinds() == []


def test_a_healthy_replica_is_not_pushed_out(keep: Keep) -> None:
    keep.host.replicas[SHARD] = PaperReplica(1)
    keep.host.hear(peer.CreateReplica(SHARD, NEW))
    assert keep.kinds() == []
    assert keep.host.told == [(N2, peer.CreateRefused(SHARD, NEW))]


def test_a_halted_replica_gets_its_mark_with_the_creation_of_its_successor(keep: Keep) -> None:
    halted: Any = PaperReplica(1)
    keep.host.on_halt(halted, "apply failed", False)  # type: ignore[attr-defined]
    assert keep.kinds() == [], "a restart may find it whole"
    assert keep.host.damaged_replicas == {SHARD: OLD}
    assert keep.quarantine.halted() == [halted]
    keep.host.hear(peer.CreateReplica(SHARD, NEW))
    assert keep.kinds() == [Quarantined, ShardCreated]
    keep.host.log.sync()
    keep.host.hear(peer.DestroyReplica(SHARD, OLD))
    keep.host.log.sync()
    assert halted.is_closed


def test_a_replica_that_forgot_what_it_had_acknowledged_is_marked_at_once(keep: Keep) -> None:
    halted: Any = PaperReplica(1)
    keep.host.on_halt(halted, "contradicted", True)  # type: ignore[attr-defined]
    assert keep.kinds() == [Quarantined]
    keep.host.hear(peer.CreateReplica(SHARD, NEW))
    assert keep.kinds() == [Quarantined, ShardCreated]


def test_the_tombstone_is_for_one_incarnation_and_its_files_go_after_it(keep: Keep) -> None:
    keep.quarantine.hold(SHARD, Incarnation(1), "rot")
    keep.quarantine.hold(SHARD, Incarnation(2), "rot again")
    keep.host.replicas[SHARD] = PaperReplica(3)
    for name in ("3-1-aa", "3-1-bb", "3-2-cc", "3-3-dd", "31-1-ee"):
        keep.make_directory(name)
    assert keep.host.damaged == {SHARD: "rot again"}
    keep.host.hear(peer.DestroyReplica(SHARD, NEW))
    keep.host.hear(peer.DestroyReplica(SHARD, NEW))
    assert keep.host.log.records == [ShardDestroyed(SHARD, Incarnation(2))]
    assert len(keep.files.list("/data/tablets")) == 5
    keep.host.log.sync()
    assert keep.files.list("/data/tablets") == ["3-1-aa", "3-1-bb", "3-3-dd", "31-1-ee"]
    assert keep.host.damaged == {SHARD: "rot"}
    assert keep.host.damaged_replicas == {SHARD: OLD}
    keep.host.hear(peer.DestroyReplica(SHARD, OLD))
    keep.host.log.sync()
    assert keep.files.list("/data/tablets") == ["3-3-dd", "31-1-ee"]
    assert keep.host.damaged == {}


def test_a_damaged_copy_stays_where_no_successor_lives(keep: Keep) -> None:
    keep.quarantine.hold(SHARD, Incarnation(1), "rot")
    keep.host.hear(peer.DestroyReplica(SHARD, OLD))
    assert keep.kinds() == []
    keep.host.replicas[SHARD] = PaperReplica(2)
    for other in (NEW, THIRD, ReplicaId("n2/1")):
        keep.host.hear(peer.DestroyReplica(SHARD, other))
    assert keep.kinds() == []


def test_everybody_is_told_of_every_copy_again_and_again(keep: Keep) -> None:
    keep.quarantine.hold(SHARD, Incarnation(1), "rot")
    keep.quarantine.hold(SHARD, Incarnation(2), "rot")
    keep.quarantine.start()
    told = {(node, message.replica) for node, message in keep.host.told}
    assert told == {(node, replica) for node in (N1, N2) for replica in (OLD, NEW)}


# ---- what a restart keeps


def created(shard: int, incarnation: int, directory: str) -> ShardCreated:
    return ShardCreated(ShardId(shard), Incarnation(incarnation), directory, THREE)


def recovered_with(**more: Any) -> Recovered:
    """Shard 1 healthy, shard 2 damaged, shard 3 rebuilt once."""
    replicas = {
        (1, 1): RecoveredReplica(created=created(1, 1, "1-1-aa")),
        (2, 1): RecoveredReplica(created=created(2, 1, "2-1-aa"), quarantined="rot"),
        (3, 1): RecoveredReplica(destroyed=True),
        (3, 2): RecoveredReplica(created=created(3, 2, "3-2-aa")),
    }
    known = {(ShardId(shard), Incarnation(each)): replica for (shard, each), replica in replicas.items()}
    return Recovered(replicas=known, **more)


@pytest.mark.parametrize("is_trackless", [False, True])
def test_debris_goes_but_nothing_that_a_damaged_replica_left(keep: Keep, is_trackless: bool) -> None:
    names = ["1-1-aa", "1-1-old", "2-1-aa", "2-1-old", "3-1-aa", "3-2-aa", "4-1-aa", "strange"]
    for name in names:
        keep.make_directory(name)
    keep.tablets.remove_debris(recovered_with(has_lost_track=is_trackless), [])
    kept = ["1-1-aa", "2-1-aa", "2-1-old", "3-2-aa"]
    # A log that lost track cannot say that an unknown replica never was.
    assert keep.files.list("/data/tablets") == (kept + ["4-1-aa"] if is_trackless else kept)


def test_tablets_of_replicas_that_the_log_has_no_trace_of_are_kept(keep: Keep) -> None:
    keep.make_directory("5-1-aa")
    keep.tablets.remove_debris(recovered_with(), [(ShardId(5), Incarnation(1))])
    assert keep.files.list("/data/tablets") == ["5-1-aa"]
    keep.tablets.remove_debris(Recovered(is_new=True), [])
    assert keep.files.list("/data/tablets") == ["5-1-aa"]


def test_the_founding_plan_does_not_miss_what_a_later_incarnation_replaced(keep: Keep) -> None:
    plan = [ShardPlan(ShardId(shard), THREE.voters) for shard in (1, 2, 3, 6)]
    recovered = recovered_with()
    del recovered.replicas[ShardId(3), Incarnation(1)]
    assert [record.shard for record in keep.tablets.planned(plan, recovered)] == [6]
