"""Which directory belongs to which replica, and what of a data directory must not be trusted."""

from __future__ import annotations

import pytest

from kvstore.errors import Corrupt, DiskFailed
from kvstore.node.tablets import Opened, Tablets
from kvstore.raft import RaftSettings
from kvstore.raft.messages import NORMAL, Configuration, Entry, HardState, SnapshotMeta
from kvstore.store import commands
from kvstore.store.engine import Engine
from kvstore.store.machine import Machine
from kvstore.store.memory import MemoryEngines
from kvstore.types import Incarnation, LogIndex, NodeId, ReplicaId, ShardId, Term
from kvstore.wal import Key, Recovered, RecoveredReplica, ShardCreated, SnapshotInstalled
from kvstore.wire.boot_messages import ShardPlan
from tests.support.sim_files import SimFiles

ME = NodeId("n1")
VOTERS = (ReplicaId("n1/1"), ReplicaId("n2/1"), ReplicaId("n3/1"))
FOUNDERS = Configuration(voters=VOTERS)


def key(shard: int, incarnation: int = 1) -> Key:
    return ShardId(shard), Incarnation(incarnation)


def created(directory: str, shard: int = 0, incarnation: int = 1) -> ShardCreated:
    return ShardCreated(*key(shard, incarnation), directory, FOUNDERS)


def entry(index: int, term: int = 1) -> Entry:
    payload = commands.payload(1000 + index, [commands.encode(None, [commands.put(b"k", b"%d" % index)])])
    return Entry(LogIndex(index), Term(term), NORMAL, payload)


def entries(first: int, last: int) -> list[Entry]:
    return [entry(index) for index in range(first, last + 1)]


def installed(index: int, directory: str) -> SnapshotInstalled:
    return SnapshotInstalled(*key(0), directory, SnapshotMeta(LogIndex(index), Term(1), FOUNDERS))


class Shelf:
    def __init__(self) -> None:
        self.files = SimFiles()
        self.files.mkdirs("/data")
        self.engines = MemoryEngines(self.files)
        self.tablets = Tablets(self.files, "/data", ME, self.engines.open)
        self.tablets.prepare()

    def put_tablet(self, name: str, upto: int) -> None:
        """A tablet that holds everything up to that entry, durably."""
        machine = Machine(self.engines.open(self.tablets.path(name)))
        machine.bootstrap(FOUNDERS)
        machine.apply(entries(1, upto))
        machine.flush()()

    def open(self, replica: RecoveredReplica, at: Key = key(0)) -> Opened:  # noqa: B008 - immutable
        def make_machine(engine: Engine) -> Machine:
            return Machine(engine)

        return self.tablets.open(
            at, replica, RaftSettings(), lambda low, high: low, make_machine, lambda shard: None
        )

    def names(self) -> list[str]:
        return self.files.list("/data/tablets")


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


class TestPlanning:
    PLAN = (ShardPlan(ShardId(0), VOTERS), ShardPlan(ShardId(1), VOTERS[1:]), ShardPlan(ShardId(2), VOTERS))

    def test_a_plan_puts_replicas_here_where_it_names_this_node(self, shelf: Shelf) -> None:
        records = shelf.tablets.planned(self.PLAN, Recovered())
        assert [(record.shard, record.incarnation) for record in records] == [key(0), key(2)]
        assert {record.configuration for record in records} == {FOUNDERS}
        assert len({record.directory for record in records}) == 2

    def test_what_the_log_knows_is_not_planned_again(self, shelf: Shelf) -> None:
        recovered = Recovered(replicas={key(0): RecoveredReplica(created=created("0-1-aa"))})
        assert [record.shard for record in shelf.tablets.planned(self.PLAN, recovered)] == [2]

    def test_a_later_incarnation_proves_that_the_first_is_gone(self, shelf: Shelf) -> None:
        recovered = Recovered(
            replicas={key(0, 2): RecoveredReplica(created=created("0-2-aa", incarnation=2))}
        )
        assert [record.shard for record in shelf.tablets.planned(self.PLAN, recovered)] == [2]

    def test_pitfall_20_a_destroyed_replica_is_not_made_again(self, shelf: Shelf) -> None:
        recovered = Recovered(replicas={key(0): RecoveredReplica(destroyed=True)})
        assert [record.shard for record in shelf.tablets.planned(self.PLAN, recovered)] == [2]

    def test_a_directory_name_is_never_used_twice(self, shelf: Shelf) -> None:
        names = {shelf.tablets.fresh_name(*key(3, 2)) for _ in range(50)}
        assert len(names) == 50
        assert all(name.startswith("3-2-") for name in names)


class TestDebris:
    def test_pitfall_36_what_the_log_does_not_name_is_removed(self, shelf: Shelf) -> None:
        for name in ("0-1-aa", "0-1-bb", "1-1-cc", "notes"):
            shelf.put_tablet(name, 1)
        recovered = Recovered(
            replicas={
                key(0): RecoveredReplica(created=created("0-1-aa"), installed=installed(5, "0-1-bb")),
                key(1): RecoveredReplica(created=created("1-1-cc", 1), destroyed=True),
            }
        )
        shelf.tablets.remove_debris(recovered, ())
        assert shelf.names() == ["0-1-bb"]

    def test_every_directory_of_a_damaged_replica_stays(self, shelf: Shelf) -> None:
        for name in ("0-1-aa", "0-1-bb", "1-1-cc"):
            shelf.put_tablet(name, 1)
        recovered = Recovered(
            replicas={key(0): RecoveredReplica(created=created("0-1-aa"), quarantined="rot")}
        )
        shelf.tablets.remove_debris(recovered, ())
        assert shelf.names() == ["0-1-aa", "0-1-bb"]

    def test_so_does_what_may_belong_to_a_replica_that_the_log_has_lost(self, shelf: Shelf) -> None:
        shelf.put_tablet("0-1-aa", 1)
        shelf.put_tablet("1-1-bb", 1)
        shelf.tablets.remove_debris(Recovered(), [key(0)])
        assert shelf.names() == ["0-1-aa"]
        shelf.put_tablet("1-1-bb", 1)
        shelf.tablets.remove_debris(Recovered(has_lost_track=True), ())
        assert shelf.names() == ["0-1-aa", "1-1-bb"]

    def test_a_destroyed_replica_leaves_no_directory(self, shelf: Shelf) -> None:
        for name in ("0-1-aa", "0-1-bb", "0-2-cc"):
            shelf.put_tablet(name, 1)
        shelf.tablets.remove_all_of(key(0))
        assert shelf.names() == ["0-2-cc"]

    def test_checkpoints_of_an_earlier_life_go_at_the_start(self, shelf: Shelf) -> None:
        shelf.files.mkdirs("/data/snapshots/0-1-aa")
        shelf.put_tablet("0-1-aa", 1)
        shelf.tablets.prepare()
        assert shelf.files.list("/data/snapshots") == []
        assert shelf.names() == ["0-1-aa"]


class TestOpening:
    def test_a_new_replica_begins_with_the_founding_members(self, shelf: Shelf) -> None:
        opened = shelf.open(RecoveredReplica(created=created("0-1-aa")))
        assert (opened.shard, opened.me, opened.directory) == (0, "n1/1", "0-1-aa")
        assert opened.core.configuration == opened.machine.configuration == FOUNDERS
        assert (opened.core.term, opened.core.last_index, opened.machine.applied) == (0, 0, 0)

    def test_a_crash_between_the_record_and_its_directory_leaves_a_new_replica(self, shelf: Shelf) -> None:
        assert not shelf.files.exists(shelf.tablets.path("0-1-aa"))
        assert shelf.open(RecoveredReplica(created=created("0-1-aa"))).machine.configuration == FOUNDERS

    def test_log_and_tablet_are_joined_where_they_meet(self, shelf: Shelf) -> None:
        shelf.put_tablet("0-1-aa", 4)
        state = HardState(Term(3), ReplicaId("n2/1"), LogIndex(5))
        opened = shelf.open(RecoveredReplica(state, entries(2, 7), created=created("0-1-aa")))
        core = opened.core
        assert (core.term, core.vote, core.applied_index, core.commit, core.last_index) == (
            3,
            "n2/1",
            4,
            5,
            7,
        )

    def test_a_tablet_without_log_is_a_snapshot(self, shelf: Shelf) -> None:
        shelf.put_tablet("0-1-bb", 6)
        recovered = RecoveredReplica(created=created("0-1-aa"), installed=installed(6, "0-1-bb"))
        opened = shelf.open(recovered)
        assert (opened.directory, opened.core.last_index, opened.core.commit) == ("0-1-bb", 6, 6)

    def test_entries_without_a_creation_are_damage(self, shelf: Shelf) -> None:
        with pytest.raises(Corrupt, match="not how it was created"):
            shelf.open(RecoveredReplica(entries=entries(1, 3)))

    def test_a_gap_between_tablet_and_log_is_damage(self, shelf: Shelf) -> None:
        shelf.put_tablet("0-1-aa", 3)
        with pytest.raises(Corrupt, match=r"entries 4\.\.5 are missing"):
            shelf.open(RecoveredReplica(entries=entries(6, 9), created=created("0-1-aa")))

    def test_pitfall_37_a_tablet_ahead_of_its_log_is_damage(self, shelf: Shelf) -> None:
        shelf.put_tablet("0-1-aa", 5)
        with pytest.raises(Corrupt, match="log ends at 4, the tablet is at 5"):
            shelf.open(RecoveredReplica(entries=entries(1, 4), created=created("0-1-aa")))

    def test_pitfall_17_a_tablet_below_the_snapshot_it_came_from_is_damage(self, shelf: Shelf) -> None:
        shelf.put_tablet("0-1-bb", 5)
        recovered = RecoveredReplica(created=created("0-1-aa"), installed=installed(6, "0-1-bb"))
        with pytest.raises(Corrupt, match="below the snapshot at 6"):
            shelf.open(recovered)

    def test_a_tablet_that_does_not_open_is_damage_of_its_replica_only(self, shelf: Shelf) -> None:
        shelf.put_tablet("0-1-aa", 5)
        shelf.files.flip("/data/tablets/0-1-aa/tablet", 20)
        with pytest.raises(Corrupt, match="0-1-aa does not open"):
            shelf.open(RecoveredReplica(created=created("0-1-aa")))
        shelf.files.fail("read", path_part="0-1-bb")
        shelf.put_tablet("0-1-bb", 1)
        with pytest.raises(Corrupt, match="0-1-bb does not open"):
            shelf.open(RecoveredReplica(created=created("0-1-bb")))

    def test_a_disk_that_refuses_what_opening_writes_proves_no_damage(self, shelf: Shelf) -> None:
        """A sync that failed while tablets were opened cost two nodes their replicas, and the shard its
        quorum, though nothing was damaged."""

        def refuse(directory: str) -> Engine:
            raise DiskFailed(f"cannot open tablet {directory}: While fdatasync: Input/output error")

        shelf.tablets.open_engine = refuse
        with pytest.raises(DiskFailed):
            shelf.open(RecoveredReplica(created=created("0-1-aa")))

    def test_a_log_that_contradicts_its_tablet_is_damage(self, shelf: Shelf) -> None:
        shelf.put_tablet("0-1-aa", 3)
        other = [entry(index, term=2) for index in range(2, 5)]
        with pytest.raises(Corrupt, match="contradicts"):
            shelf.open(RecoveredReplica(entries=other, created=created("0-1-aa")))

    def test_a_discarded_directory_is_gone(self, shelf: Shelf) -> None:
        shelf.put_tablet("0-1-aa", 1)
        shelf.tablets.discard("0-1-aa")
        assert shelf.names() == []
