"""Waiting reads: parked where they were confirmed, woken by what is applied, wherever the caller asked."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.errors import Overloaded, ReadTimeout, Unavailable
from kvstore.node.calls import Call
from kvstore.node.parked import ParkedReads
from kvstore.store import commands
from kvstore.types import NodeId, ShardId
from kvstore.wire import peer
from tests.support.host_group import N1, N2, N3, SHARD, HostGroup, Outcome, value_of

N4 = NodeId("n4")


def wait_for(
    group: HostGroup, name: NodeId, query: list[Any], *, wait_s: float = 5.0, more_s: float = 2.0
) -> Outcome:
    outcome, node = Outcome(group.world), group[name]
    node.router.wait_then(SHARD, query, node.now + wait_s, node.now + wait_s + more_s, outcome)
    return outcome


@pytest.fixture
def group() -> HostGroup:
    group = HostGroup()
    group.lead(N1)
    return group


class TestParkedReads:
    def call(self, key: bytes, wait_until: float = 1.0) -> Call:
        query = ["wait", key, 0]
        return Call(
            ShardId(0), query, 9.0, lambda answer, error: None, consistency="x", wait_until=wait_until
        )

    def test_an_answer_that_is_news_is_not_parked(self) -> None:
        parked = ParkedReads()
        assert not parked.park(self.call(b"a"), [b"v", 3, 3, 1, None, None, None])
        assert not parked

    def test_only_who_waits_for_a_written_record_is_taken(self) -> None:
        parked = ParkedReads()
        a, b = self.call(b"a"), self.call(b"b")
        assert parked.park(a, None)
        assert parked.park(b, None)
        assert parked.written({b"hb": b"", b"m": b""}) == [b]
        assert list(parked) == [a]
        assert parked.written({b"hb": b""}) == []

    def test_whoever_waited_long_enough_is_taken_in_order(self) -> None:
        parked = ParkedReads()
        late, early = self.call(b"a", 2.0), self.call(b"b", 1.0)
        for call in (late, early):
            parked.park(call, None)
        assert parked.over(0.5) == []
        assert parked.over(1.0) == [early]
        assert parked.over(9.0) == [late]

    def test_calls_that_were_answered_long_ago_leave_nothing_behind(self) -> None:
        parked = ParkedReads()
        for number in range(1000):
            parked.park(self.call(b"a", float(number)), None)
            parked.written({b"ha": b""})
        assert len(parked._ends) < 100
        assert not parked._by_topic


class TestAtAReplica:
    @pytest.mark.parametrize("name", [N1, N2])
    def test_a_wait_is_answered_when_the_key_changes(self, group: HostGroup, name: NodeId) -> None:
        wait = wait_for(group, name, ["wait", b"a", 0])
        group.write(N3, commands.put(b"b", b"1")).wait()
        group.run(1.0)
        assert not wait.is_done
        group.write(N3, commands.put(b"a", b"1")).wait()
        group.run(0.1)
        assert value_of(wait.answer) == b"1"

    @pytest.mark.parametrize("name", [N1, N2])
    def test_a_wait_for_what_is_there_already_is_answered_at_once(
        self, group: HostGroup, name: NodeId
    ) -> None:
        group.write(N1, commands.put(b"a", b"1")).wait()
        before = group.world.now
        assert value_of(wait_for(group, name, ["wait", b"a", 0]).wait()) == b"1"
        assert group.world.now - before < 0.1

    @pytest.mark.parametrize("name", [N1, N2])
    def test_at_the_end_of_the_wait_the_present_state_is_the_answer(
        self, group: HostGroup, name: NodeId
    ) -> None:
        group.write(N1, commands.put(b"a", b"1")).wait()
        began = group.world.now
        assert value_of(wait_for(group, name, ["wait", b"a", 1], wait_s=2.0).wait()) == b"1"
        assert 2.0 <= group.world.now - began < 2.2

    @pytest.mark.parametrize("op", [commands.delete(b"a"), commands.delete_range(b"a", b"b")])
    def test_a_deletion_is_news(self, group: HostGroup, op: commands.Op) -> None:
        group.write(N1, commands.put(b"a", b"1")).wait()
        waits = [wait_for(group, N2, ["wait", b"a", 1]), wait_for(group, N2, ["wait", b"a", None])]
        group.run(0.5)
        assert not any(wait.is_done for wait in waits)
        group.write(N1, op).wait()
        assert [wait.wait().value for wait in waits] == [None, None]

    def test_changes_wait_for_the_next_revision(self, group: HostGroup) -> None:
        wait = wait_for(group, N2, ["changes", 1, {}])
        group.run(1.0)
        assert not wait.is_done
        group.write(N1, commands.put(b"a", b"1")).wait()
        events, following = wait.wait().value
        assert ([event[:3] for event in events], following) == ([[1, 0, b"a"]], 2)

    def test_apply_keeps_nothing_while_nobody_waits(self, group: HostGroup) -> None:
        group.write(N1, commands.put(b"a", b"1")).wait()
        assert group[N1].replica().machine.written == {}

    def test_a_wait_that_its_leader_can_no_longer_serve_goes_to_the_next(self, group: HostGroup) -> None:
        wait = wait_for(group, N1, ["wait", b"a", 0])
        group.run(0.5)
        assert len(group[N1].replica().parked) == 1
        group.lead(N2)
        group.write(N2, commands.put(b"a", b"1")).wait()
        assert value_of(wait.wait()) == b"1"

    def test_without_a_quorum_no_wait_is_answered(self, group: HostGroup) -> None:
        group.part(N1)
        wait = wait_for(group, N1, ["wait", b"a", 0], wait_s=3.0)
        with pytest.raises(ReadTimeout):
            wait.wait(9.0)

    def test_an_installed_snapshot_wakes_everybody(self, group: HostGroup) -> None:
        waits = [wait_for(group, N2, ["wait", b"a", 0]), wait_for(group, N2, ["wait", b"b", 0])]
        group.run(0.5)
        replica = group[N2].replica()
        group.write(N1, commands.put(b"a", b"1")).wait()
        ahead = group[N1].replica().machine
        assert not waits[0].is_done
        replica.replace_machine(ahead, "copy", ahead.snapshot_meta())
        assert value_of(waits[0].answer) == b"1"
        assert not waits[1].is_done
        assert len(replica.parked) == 1


class TestElsewhere:
    @pytest.fixture
    def group(self) -> HostGroup:
        group = HostGroup(nodes=4, homes=3)
        group.lead(N1)
        return group

    def test_a_node_without_a_replica_has_another_wait(self, group: HostGroup) -> None:
        wait = wait_for(group, N4, ["wait", b"a", 0], wait_s=20.0)
        group.run(12.0)
        assert not wait.is_done
        group.write(N1, commands.put(b"a", b"1")).wait()
        group.run(0.1)
        assert value_of(wait.answer) == b"1"

    def test_it_is_told_what_is_there_at_the_end_of_the_wait(self, group: HostGroup) -> None:
        began = group.world.now
        assert wait_for(group, N4, ["wait", b"a", 0], wait_s=8.0).wait(9.0).value is None
        assert 7.9 <= group.world.now - began < 8.3

    def test_a_lost_forward_is_noticed_within_its_slice(self, group: HostGroup) -> None:
        lost = []

        def lose_the_first(source: NodeId, target: NodeId, message: Any) -> Any:
            if isinstance(message, peer.ForwardWait) and not lost:
                lost.append(message)
                return None
            return message

        group.network.sift = lose_the_first
        wait = wait_for(group, N4, ["wait", b"a", 0], wait_s=30.0)
        group.write(N1, commands.put(b"a", b"1")).wait()
        assert value_of(wait.wait(7.0)) == b"1"
        assert lost

    def test_another_leader_is_asked_when_the_first_is_gone(self, group: HostGroup) -> None:
        wait = wait_for(group, N4, ["wait", b"a", 0], wait_s=20.0)
        group.run(0.5)
        group[N1].stop()
        group.run_until(lambda: group.leader() not in (None, group[N1]))
        leader = group.leader()
        assert leader is not None
        group.write(leader.name, commands.put(b"a", b"1")).wait()
        assert value_of(wait.wait()) == b"1"


class TestBounds:
    def test_more_waits_than_the_node_allows_are_refused(self, group: HostGroup) -> None:
        group[N1].router.waits_max = 2
        waits = [wait_for(group, N1, ["wait", b"a", 0]) for _ in range(3)]
        group.run(0.1)
        assert [wait.is_done for wait in waits] == [False, False, True]
        assert isinstance(waits[2].error, Overloaded)
        group.write(N1, commands.put(b"a", b"1")).wait()
        assert not group[N1].router._waits

    def test_a_caller_that_went_leaves_its_place_at_once(self, group: HostGroup) -> None:
        outcome, node = Outcome(group.world), group[N1]
        call = node.router.wait_then(SHARD, ["wait", b"a", 0], node.now + 5, node.now + 7, outcome)
        group.run(0.5)
        assert call is not None
        node.router.cancel(call)
        assert not node.router._waits
        assert not node.replica().parked
        group.run(8.0)
        assert not outcome.is_done

    def test_a_node_that_stops_sends_its_waiters_elsewhere(self, group: HostGroup) -> None:
        wait = wait_for(group, N2, ["wait", b"a", 0])
        group.run(0.5)
        group[N2].router.end_waits()
        assert isinstance(wait.error, Unavailable)
