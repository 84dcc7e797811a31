"""One replica: its queue, entries and waiting callers. A core of one voter commits what it has synced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec
import pytest

from kvstore.errors import (
    Conflict,
    Corrupt,
    DiskFull,
    NoLeader,
    OutcomeUnknown,
    Overloaded,
    ReadTimeout,
    Unavailable,
)
from kvstore.node.calls import Call, Stage
from kvstore.node.replica import Replica, ReplicaLimits
from kvstore.raft import Core, ProposalDropped
from kvstore.raft.messages import CONFIGURATION, NORMAL, Configuration, Entry, Ready, SnapshotMeta
from kvstore.store import commands
from kvstore.store.machine import Machine
from kvstore.store.memory import MemoryEngines
from kvstore.store.results import CommandResult
from kvstore.types import Incarnation, LogIndex, ReplicaId, ShardId, Term
from tests.support.raft_core import campaign, make_core, settled_leader, work
from tests.support.raft_group import voters
from tests.support.sim_files import SimFiles


class Caller:
    def __init__(self) -> None:
        self.answer: Any = None
        self.error: BaseException | None = None
        self.is_done = False

    def __call__(self, answer: Any, error: BaseException | None) -> None:
        assert not self.is_done, "answered twice"
        self.answer, self.error, self.is_done = answer, error, True


class Desk:
    """A replica, driven by hand. `take` does what a host does in a pass; syncs complete at once."""

    def __init__(self, core: Core | None = None, limits: ReplicaLimits = ReplicaLimits()) -> None:  # noqa: B008
        self.rerouted: list[Call] = []
        configuration = voters(1)
        if core is None:
            core = make_core(configuration=configuration)
            campaign(core)
            work(core)
        machine = Machine(MemoryEngines(SimFiles()).open("tablet"))
        machine.bootstrap(configuration)
        self.replica = Replica(
            ShardId(0), core.me, Incarnation(1), core, machine, "tablet", limits, self.rerouted.append
        )
        self.core = core
        if core.applied_index:
            # The machine follows what `work` has done with the core alone.
            machine.apply(core.log.between(0, core.applied_index))
        self.entries: list[Entry] = []

    def take(self) -> None:
        while self.core.has_ready():
            ready = self.core.take_ready()
            self.entries += ready.entries
            self.core.persisted(ready.number)
            self.replica.take_committed(ready)
        while self.replica.apply_slice():
            pass
        self.replica.answer_indexed_reads()

    def write(self, *ops: commands.Op, deadline: float = 5.0) -> tuple[Call, Caller]:
        caller = Caller()
        call = Call(ShardId(0), commands.encode(None, ops), deadline, caller)
        self.replica.enqueue(call)
        return call, caller

    def read(self, key: bytes = b"k", deadline: float = 5.0) -> Caller:
        caller = Caller()
        call = Call(ShardId(0), ["get", key, None], deadline, caller, consistency="linearizable")
        self.replica.reads_new.append(call)
        return caller


def put(value: bytes = b"v", key: bytes = b"k", **options: Any) -> commands.Op:
    return commands.put(key, value, **options)


def commands_in(entry: Entry) -> int:

    return len(msgpack.unpackb(entry.payload)) - 1


class TestWrites:
    def test_all_that_waits_becomes_one_entry_and_each_caller_gets_its_own_result(self) -> None:
        desk = Desk()
        callers = [desk.write(put(key=b"%d" % number))[1] for number in range(5)]
        desk.replica.propose_queue(0.0)
        desk.take()
        assert [commands_in(entry) for entry in desk.entries] == [5]
        revisions = [caller.answer.result.results[0][1] for caller in callers]
        assert revisions == [1, 2, 3, 4, 5]
        assert desk.replica.queue_bytes == 0
        assert not desk.replica.in_flight

    def test_entries_are_capped_by_commands(self) -> None:
        desk = Desk(limits=ReplicaLimits(entry_commands_max=2))
        for _ in range(5):
            desk.write(put())
        desk.replica.propose_queue(0.0)
        desk.take()
        assert [commands_in(entry) for entry in desk.entries] == [2, 2, 1]

    def test_entries_are_capped_by_bytes_and_one_large_command_travels_alone(self) -> None:
        desk = Desk(limits=ReplicaLimits(entry_bytes_max=200))
        for count in (50, 50, 500, 50, 200):
            desk.write(put(bytes(count)))
        desk.replica.propose_queue(0.0)
        desk.take()
        assert [commands_in(entry) for entry in desk.entries] == [2, 1, 1, 1]

    def test_a_full_queue_refuses_by_count_and_by_bytes(self) -> None:
        desk = Desk(limits=ReplicaLimits(queue_ops_max=2, queue_bytes_max=100))
        desk.write(put(bytes(70)))
        _call, too_large = desk.write(put(bytes(70)))
        desk.write(put())
        _call, too_many = desk.write(put())
        assert isinstance(too_large.error, Overloaded)
        assert isinstance(too_many.error, Overloaded)
        assert too_many.error.fields["retry_after"] == 1
        assert len(desk.replica.queue) == 2

    def test_the_entry_carries_the_shard_clock_that_goes_on_from_the_election(self) -> None:
        desk = Desk()
        desk.replica.clock_base_ms, desk.replica.clock_base_at = 5_000, 100.0
        desk.replica.led_term = desk.replica.clock_term = desk.core.term
        _call, caller = desk.write(put())
        desk.replica.propose_queue(101.25)
        desk.take()
        assert caller.answer.clock_ms == 6_250
        assert desk.replica.stamp_ms(102.0) == 7_000

    def test_a_write_dropped_by_the_core_is_surely_not_done(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk()
        _call, caller = desk.write(put())

        def drop(core: Core, payloads: Sequence[bytes]) -> tuple[Term, LogIndex]:
            raise ProposalDropped("too much is uncommitted")

        monkeypatch.setattr(Core, "propose", drop)
        desk.replica.propose_queue(0.0)
        assert isinstance(caller.error, Overloaded)

    def test_writes_wait_in_order_while_leadership_is_handed_over(self) -> None:
        """Regression: they were routed back into the very queue they came from, for ever."""
        core = settled_leader()
        desk = Desk(core)
        core.transfer_leadership(core.peers[0].replica)
        calls = [desk.write(put(key=b"%d" % number))[0] for number in range(3)]
        queue_bytes = desk.replica.queue_bytes
        desk.replica.propose_queue(0.0)
        assert list(desk.replica.queue) == calls
        assert desk.replica.queue_bytes == queue_bytes
        assert desk.rerouted == []
        assert [call.stage for call in calls] == [Stage.WAITING] * 3
        core.transfer_target = None
        desk.replica.propose_queue(0.0)
        assert not desk.replica.queue
        assert [call.stage for call in calls] == [Stage.PROPOSED] * 3

    def test_an_entry_of_another_leader_at_the_same_index_proves_that_nothing_was_done(self) -> None:
        desk = Desk()
        _call, caller = desk.write(put())
        desk.replica.propose_queue(0.0)
        [(index, (term, calls))] = desk.replica.in_flight.items()
        desk.replica.in_flight[index] = (Term(term - 1), calls)
        desk.take()
        assert isinstance(caller.error, Unavailable)

    def test_an_entry_that_was_cut_off_here_may_still_commit_elsewhere(self) -> None:
        """Raft 5.4.2, figure 8: another replica may hold the entry, win, and commit it."""
        desk = Desk(settled_leader())
        _call, caller = desk.write(put())
        desk.replica.propose_queue(0.0)
        [index] = desk.replica.in_flight
        desk.replica.take_committed(_cut_off(LogIndex(index - 1)))
        assert not caller.is_done, "nothing is known about it"
        desk.replica.expire_calls(100.0)
        assert isinstance(caller.error, OutcomeUnknown)

    def test_an_identified_write_is_repeated_at_the_next_leader_and_stays_doubtful(self) -> None:
        desk = Desk(settled_leader())
        call, caller = desk.write(put())
        call.identified = True
        desk.replica.propose_queue(0.0)
        desk.replica.lost_leadership()
        assert desk.rerouted == [call]
        call.fail(Unavailable("the next one is no leader either"))
        assert isinstance(caller.error, OutcomeUnknown), "the first attempt may have been applied"

    def test_a_forwarded_write_is_left_to_the_node_it_came_from(self) -> None:
        desk = Desk(settled_leader())
        call, caller = desk.write(put())
        call.identified = call.is_forwarded = True
        desk.replica.propose_queue(0.0)
        desk.replica.lost_leadership()
        assert desk.rerouted == []
        assert not caller.is_done

    def test_a_configuration_entry_is_nobodys_write(self) -> None:
        desk = Desk()
        caller = Caller()
        index = LogIndex(desk.core.last_index + 1)
        desk.replica.in_flight[index] = (desk.core.term, [Call(ShardId(0), b"", 5.0, caller)])
        payload = _encoded(voters(1))
        desk.replica._answer_writers([Entry(index, desk.core.term, CONFIGURATION, payload)], [[]])
        assert isinstance(caller.error, Unavailable)

    def test_losing_leadership_hands_on_what_was_not_proposed(self) -> None:
        desk = Desk(settled_leader())
        proposed, _caller = desk.write(put())
        desk.replica.propose_queue(0.0)
        queued, _caller = desk.write(put())
        read = desk.read()
        desk.replica.lost_leadership()
        assert desk.rerouted[0] is queued
        assert desk.rerouted[1].done is read
        assert len(desk.rerouted) == 2
        assert proposed.stage is Stage.PROPOSED
        assert (len(desk.replica.queue), desk.replica.queue_bytes, desk.replica.reads_new) == (0, 0, [])


def _encoded(configuration: Configuration) -> bytes:

    return msgspec.msgpack.encode(configuration)


class TestApplying:
    def test_a_slice_is_bounded_and_says_that_more_waits(self) -> None:
        desk = Desk(limits=ReplicaLimits(apply_bytes_max=100, entry_commands_max=1))
        for _ in range(4):
            desk.write(put(bytes(60)))
        desk.replica.propose_queue(0.0)
        while desk.core.has_ready():
            ready = desk.core.take_ready()
            desk.core.persisted(ready.number)
            desk.replica.take_committed(ready)
        before = desk.replica.machine.applied
        assert desk.replica.apply_slice()
        assert desk.replica.machine.applied == before + 2
        assert not desk.replica.apply_slice()
        assert desk.replica.machine.applied == before + 4
        assert not desk.replica.apply_slice()
        assert desk.replica.unflushed_bytes > 240

    def test_pitfall_13_a_full_disk_keeps_the_entries_for_the_next_try(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk = Desk()
        callers = [desk.write(put(key=b"%d" % number))[1] for number in range(3)]
        desk.replica.propose_queue(0.0)

        def full(machine: Machine, entries: Sequence[Entry], *, is_asked: bool) -> list[list[CommandResult]]:
            raise DiskFull("no space")

        with monkeypatch.context() as patch:
            patch.setattr(Machine, "apply", full)
            with pytest.raises(DiskFull):
                desk.take()
        assert not any(caller.is_done for caller in callers)
        desk.take()
        assert all(caller.answer for caller in callers)

    def test_only_whoever_has_callers_asks_for_results(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk, asked = Desk(), []
        apply = Machine.apply

        def watch(machine: Machine, entries: Sequence[Entry], *, is_asked: bool) -> Any:
            asked.append(is_asked)
            return apply(machine, entries, is_asked=is_asked)

        monkeypatch.setattr(Machine, "apply", watch)
        desk.write(put())
        desk.replica.propose_queue(0.0)
        desk.take()
        desk.write(put())
        desk.replica.propose_queue(0.0)
        desk.replica.in_flight.clear()
        desk.take()
        assert asked[-2:] == [True, False]

    def test_results_that_are_no_success_are_answers_too(self) -> None:
        desk = Desk()
        _call, caller = desk.write(put(if_revision=9))
        desk.replica.propose_queue(0.0)
        desk.take()
        assert caller.answer.result.results == [[1, 0]]

    def test_the_core_learns_the_clock_that_votes_will_carry(self) -> None:
        desk = Desk()
        desk.replica.clock_base_ms = 77_000
        desk.write(put())
        desk.replica.propose_queue(0.0)
        desk.take()
        assert desk.core.clock_ms == 77_000


class TestReads:
    def test_a_round_serves_all_that_waited_and_the_next_one_those_that_came_later(self) -> None:
        desk = Desk(settled_leader())
        first, second = desk.read(), desk.read()
        desk.replica.confirm_reads()
        third = desk.read()
        desk.replica.confirm_reads()
        assert len(desk.replica.reads_confirming) == 1
        assert len(desk.replica.reads_new) == 1
        [(context, calls)] = desk.replica.reads_confirming.items()
        assert [call.done for call in calls] == [first, second]
        ready = _ready(desk.core, reads=((context, desk.core.commit),))
        desk.replica.take_committed(ready)
        desk.replica.answer_indexed_reads()
        assert first.is_done
        assert second.is_done
        assert not third.is_done

    def test_a_read_waits_until_its_index_is_applied(self) -> None:
        desk = Desk()
        caller = desk.read()
        calls, desk.replica.reads_new = desk.replica.reads_new, []
        desk.replica.reads_indexed.append((LogIndex(desk.replica.machine.applied + 1), calls))
        desk.replica.answer_indexed_reads()
        assert not caller.is_done
        desk.write(put(b"new"))
        desk.replica.propose_queue(0.0)
        desk.take()
        assert caller.answer.value[0] == b"new"
        assert caller.answer.staleness_s is None

    def test_reads_whose_confirmation_is_lost_go_back_to_the_router(self) -> None:
        desk = Desk(settled_leader())
        caller = desk.read()
        heard: list[LogIndex | None] = []
        desk.replica.confirm_reads()
        desk.replica.barrier(heard.append)
        contexts = tuple([*desk.replica.reads_confirming, *desk.replica.barriers])
        desk.replica.take_committed(_ready(desk.core, reads_lost=contexts))
        assert [call.done for call in desk.rerouted] == [caller]
        assert heard == [None]

    def test_a_barrier_hears_the_confirmed_index(self) -> None:
        desk = Desk()
        heard: list[LogIndex | None] = []
        desk.replica.barrier(heard.append)
        desk.take()
        assert heard == [desk.core.commit]
        assert not desk.replica.barriers

    def test_an_error_of_the_query_is_the_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk()
        caller = desk.read()

        def conflict(machine: Machine, query: list[Any]) -> None:
            raise Conflict("no")

        monkeypatch.setattr(Machine, "query", conflict)
        desk.replica.serve(desk.replica.reads_new[0])
        assert isinstance(caller.error, Conflict)
        assert desk.replica.damage is None

    def test_a_damaged_block_is_told_to_the_host_and_the_caller_may_ask_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        desk = Desk()
        caller = desk.read()

        def damaged(machine: Machine, query: list[Any]) -> None:
            raise Corrupt("block 7")

        monkeypatch.setattr(Machine, "query", damaged)
        desk.replica.serve(desk.replica.reads_new[0])
        assert isinstance(caller.error, Unavailable)
        assert desk.replica.damage == "block 7"

    def test_an_answered_read_is_not_run_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk()
        desk.read()
        call = desk.replica.reads_new[0]
        call.expire()
        monkeypatch.setattr(Machine, "query", lambda machine, query: pytest.fail("nobody waits for it"))
        desk.replica.serve(call)


class TestDeadlines:
    def test_what_is_late_is_answered_by_its_stage_and_the_rest_goes_on(self) -> None:
        desk = Desk(settled_leader())
        _call, proposed = desk.write(put(), deadline=1.0)
        _call, beside = desk.write(put(), deadline=9.0)
        desk.replica.propose_queue(0.0)
        _call, queued = desk.write(put(), deadline=1.0)
        _call, patient = desk.write(put(), deadline=9.0)
        reading, indexed = desk.read(deadline=1.0), desk.read(deadline=1.0)
        desk.replica.reads_indexed.append((LogIndex(99), [desk.replica.reads_new.pop()]))
        confirming = desk.read(deadline=1.0)
        desk.replica.reads_confirming[5] = [desk.replica.reads_new.pop()]
        desk.replica.expire_calls(2.0)
        assert isinstance(proposed.error, OutcomeUnknown)
        assert isinstance(queued.error, NoLeader)
        assert [type(each.error) for each in (reading, indexed, confirming)] == [ReadTimeout] * 3
        assert not beside.is_done
        assert not patient.is_done
        assert desk.replica.queue_bytes == len(desk.replica.queue[0].payload)
        assert desk.replica.reads_indexed == []

    def test_an_entry_pairs_results_with_callers_also_after_some_gave_up(self) -> None:
        desk = Desk()
        _call, late = desk.write(put(key=b"a"), deadline=1.0)
        _call, other = desk.write(put(key=b"b"), put(key=b"c"), deadline=9.0)
        desk.replica.propose_queue(0.0)
        desk.replica.expire_calls(2.0)
        desk.take()
        assert isinstance(late.error, OutcomeUnknown)
        assert len(other.answer.result.results) == 2


class TestReplacing:
    def test_an_installed_snapshot_leaves_writes_below_it_unknown(self) -> None:
        desk = Desk(settled_leader())
        _call, below = desk.write(put())
        desk.replica.propose_queue(0.0)
        _call, above = desk.write(put())
        desk.replica.propose_queue(0.0)
        index = next(iter(desk.replica.in_flight))
        desk.replica.committed.append(Entry(index, Term(1), NORMAL, b""))
        machine = Machine(MemoryEngines(SimFiles()).open("other"))
        old = desk.replica.machine
        meta = SnapshotMeta(index, Term(1), voters(1))
        assert desk.replica.replace_machine(machine, "other", meta) == (old, "tablet")
        assert (desk.replica.machine, desk.replica.directory) == (machine, "other")
        assert isinstance(below.error, OutcomeUnknown)
        assert not above.is_done
        assert not desk.replica.committed
        assert desk.replica.committed_until == index

    def test_all_who_wait_are_found_wherever_they_are(self) -> None:
        desk = Desk(settled_leader())
        callers = [desk.write(put())[1]]
        desk.replica.propose_queue(0.0)
        callers.append(desk.write(put())[1])
        callers += [desk.read() for _ in range(3)]
        desk.replica.reads_indexed.append((LogIndex(99), [desk.replica.reads_new.pop()]))
        desk.replica.reads_confirming[3] = [desk.replica.reads_new.pop()]
        assert len(list(desk.replica.waiting_calls())) == 5
        for call in list(desk.replica.waiting_calls()):
            call.expire()
        assert all(caller.is_done for caller in callers)


def _ready(core: Core, **fields: Any) -> Any:

    core.flush_wanted = True
    ready = core.take_ready()
    empty = {"committed": (), "reads": (), "reads_lost": (), "truncate_after": None}
    return msgspec.structs.replace(ready, **(empty | fields))


def test_members_are_told_apart_by_incarnation() -> None:
    desk = Desk()
    assert desk.replica.me == ReplicaId("n1/1")
    assert desk.replica.incarnation == 1
    assert desk.replica.is_leader


def _cut_off(truncate_after: LogIndex) -> Ready:
    return Ready(1, None, None, truncate_after, (), (), (), (), (), (), ())
