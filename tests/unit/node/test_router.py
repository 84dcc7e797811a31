"""Where an operation goes, what may be sent twice, and what a read may be answered from."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kvstore.errors import DiskFull, NoLeader, OutcomeUnknown, ReadTimeout, WrongRoute
from kvstore.node import router as router_module
from kvstore.node.calls import Answer, Call, Stage
from kvstore.node.replica import ReplicaLimits
from kvstore.node.router import INDEX_RETRY_S, Router
from kvstore.raft import Core
from kvstore.store import commands
from kvstore.store.commands import Identity
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId
from kvstore.wire import peer
from tests.support.host_group import N1, N2, N3, SHARD, HostGroup, Outcome, result_of, value_of

INCR = commands.incr(b"n")


@pytest.fixture
def group() -> HostGroup:
    group = HostGroup()
    group.lead(N1)
    return group


def count(group: HostGroup) -> int:
    value = value_of(group.read(N1, b"n").wait())
    return int(value or b"0")


def sent(group: HostGroup, kind: type, source: NodeId | None = None) -> list[Any]:
    return group.watch(kind, source)


def drop(group: HostGroup, kind: type) -> list[Any]:
    """Lose messages of a kind from now on; collects them."""
    lost: list[Any] = []
    before = group.network.sift

    def lose(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        if isinstance(message, kind):
            lost.append(message)
            return None
        return message if before is None else before(source, target, message)

    group.network.sift = lose
    return lost


class TestWrites:
    def test_a_write_at_the_leader_needs_no_forwarding(self, group: HostGroup) -> None:
        forwards = sent(group, peer.ForwardWrite)
        answer = group.write(N1, INCR).wait()
        assert isinstance(answer, Answer)
        assert (answer.shard, result_of(answer)) == (SHARD, [0, 1, 1])
        assert forwards == []

    def test_a_write_elsewhere_travels_to_the_leader_once_with_its_deadline(self, group: HostGroup) -> None:
        forwards = sent(group, peer.ForwardWrite)
        answer = group.write(N2, INCR, timeout_s=3.0).wait()
        assert result_of(answer) == [0, 1, 1]
        [forward] = forwards
        assert forward.timeout_ms == pytest.approx(3000, abs=2)
        assert not forward.identified

    def test_a_refusal_comes_back_with_its_facts(self, group: HostGroup) -> None:
        group[N1].router.set_read_only(True)
        with pytest.raises(DiskFull, match="nearly full"):
            group.write(N2, INCR).wait()

    def test_a_write_waits_for_a_leader_and_goes_as_soon_as_one_is_known(self, group: HostGroup) -> None:
        group[N1].stop()
        outcome = group.write(N2, INCR, timeout_s=8.0)
        group.run_until(lambda: group.leader() is not None)
        at = group.world.now
        assert result_of(outcome.wait()) == [0, 1, 1]
        assert group.world.now - at < 0.1

    def test_without_a_leader_it_surely_was_not_done(self, group: HostGroup) -> None:
        group[N1].stop()
        group[N3].stop()
        group.run(4.0)
        with pytest.raises(NoLeader):
            group.write(N2, INCR, timeout_s=0.3).wait()

    def test_a_node_that_does_not_lead_sends_a_forwarded_write_no_further(self, group: HostGroup) -> None:
        forwards = sent(group, peer.ForwardWrite)
        replies = sent(group, peer.ForwardReply)
        command = commands.encode(None, [INCR])
        group.deliver(N3, N2, peer.ForwardWrite(5, SHARD, command, False, 1000))
        group.run(0.01)
        [reply] = replies
        assert (reply.id, reply.error, reply.fields["leader"]) == (5, WrongRoute.code, N1)
        assert forwards == []

    def test_a_refused_write_follows_the_leader_that_the_refusal_names(self) -> None:
        group = HostGroup(nodes=4, homes=3)
        group.lead(N2)
        group[NodeId("n4")].router._hints[SHARD] = N1
        forwards = sent(group, peer.ForwardWrite)
        assert result_of(group.write(NodeId("n4"), INCR).wait()) == [0, 1, 1]
        assert len(forwards) == 2
        assert group[NodeId("n4")].router.leader_node(SHARD) == N2

    def test_pitfall_23_a_write_without_identity_is_never_sent_again(self, group: HostGroup) -> None:
        lost = drop(group, peer.ForwardReply)
        forwards = sent(group, peer.ForwardWrite)
        outcome = group.write(N2, INCR, timeout_s=4.0)
        group.run(0.5)
        group.lead(N3)
        with pytest.raises(OutcomeUnknown):
            outcome.wait()
        assert len(forwards) == 1
        assert len(lost) == 1
        group.network.sift = None
        assert count(group) == 1

    def test_a_write_with_identity_is_sent_again_when_another_leads_and_counts_once(
        self, group: HostGroup
    ) -> None:
        drop(group, peer.ForwardReply)
        forwards = sent(group, peer.ForwardWrite)
        outcome = group.write(N2, INCR, identity=Identity(b"session", 1), timeout_s=8.0)
        group.run(0.5)
        group.network.sift = None
        forwards = sent(group, peer.ForwardWrite)
        group.lead(N3)
        assert outcome.wait().result.results == [[0, 1, 1]]
        assert len(forwards) == 1
        assert count(group) == 1

    def test_a_write_with_identity_is_sent_again_when_its_link_goes_down(self, group: HostGroup) -> None:
        drop(group, peer.ForwardReply)
        outcome = group.write(N2, INCR, identity=Identity(b"session", 1), timeout_s=8.0)
        group.run(0.3)
        group.network.sift = None
        group[N1].stop()
        assert outcome.wait().result.results == [[0, 1, 1]]
        group.run_until(lambda: group.leader() is not None)
        assert value_of(group.read(N2, b"n").wait()) == b"1"

    def test_pitfall_23_a_repeated_frame_of_a_write_without_identity_is_done_once(
        self, group: HostGroup
    ) -> None:
        """Regression: the network may deliver a frame twice, and nothing but its id tells."""
        forward = peer.ForwardWrite(77, SHARD, commands.encode(None, [INCR]), False, 1000)
        group.deliver(N2, N1, forward)
        group.deliver(N2, N1, forward)
        group.run(0.1)
        group.deliver(N2, N1, forward)
        group.run(0.1)
        assert count(group) == 1
        group.deliver(N3, N1, forward)
        group.run(0.1)
        assert count(group) == 2, "ids are per sender"

    def test_a_repeated_frame_with_identity_is_no_second_try(self, group: HostGroup) -> None:
        """Of two copies one may be refused and the other done: the caller would be told that nothing was."""
        replies = sent(group, peer.ForwardReply)
        command = commands.encode(Identity(b"session", 1), [INCR])
        group[N1].replica().limits = ReplicaLimits(queue_ops_max=0)
        group.deliver(N2, N1, peer.ForwardWrite(78, SHARD, command, True, 1000))
        group.run(0.1)
        group[N1].replica().limits = ReplicaLimits()
        group.deliver(N2, N1, peer.ForwardWrite(78, SHARD, command, True, 1000))
        group.run(0.1)
        assert [reply.error for reply in replies] == ["overloaded"]
        assert count(group) == 0

    def test_only_so_many_ids_are_remembered(self, group: HostGroup, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(router_module, "REMEMBERED_FORWARDS", 3)
        router = group[N1].router
        assert all(router._is_first(N2, number) for number in range(5))
        assert len(router._seen) == 3
        assert not router._is_first(N2, 4)
        assert router._is_first(N2, 0)

    def test_ids_of_two_lives_do_not_meet(self) -> None:
        numbers = {HostGroup(nodes=1)[N1].router._take_id(), 0}
        assert len(numbers) == 2
        assert max(numbers) > 1 << 32

    def test_a_nearly_full_disk_takes_only_deletes(self, group: HostGroup) -> None:
        group.write(N1, commands.put(b"a", b"1")).wait()
        group[N1].router.set_read_only(True)
        with pytest.raises(DiskFull):
            group.write(N1, commands.put(b"b", b"1")).wait()
        assert result_of(group.write(N1, commands.delete(b"a")).wait())[2] == 1
        group[N1].router.set_read_only(False)
        group.write(N1, commands.put(b"b", b"1")).wait()

    def test_late_and_unknown_replies_are_nobodys(self, group: HostGroup) -> None:
        group.deliver(N1, N2, peer.ForwardReply(123, None, {}, b""))
        group.deliver(N1, N2, peer.IndexReply(123, LogIndex(1), None))
        group.run(0.1)
        assert not group[N2].fatal

    def test_an_error_code_of_a_newer_version_leaves_the_outcome_unknown(self, group: HostGroup) -> None:
        drop(group, peer.ForwardReply)
        outcome = group.write(N2, INCR)
        group.run(0.05)
        [number] = group[N2].router._forwards
        group.deliver(N1, N2, peer.ForwardReply(number, "from-the-future", {"detail": "d", "x": 1}, b""))
        with pytest.raises(OutcomeUnknown, match="d"):
            outcome.wait()


class TestLinearizableReads:
    def test_all_reads_that_wait_at_a_follower_share_one_question(self, group: HostGroup) -> None:
        group.write(N1, commands.put(b"a", b"1")).wait()
        asks = sent(group, peer.IndexRequest)
        reads = [group.read(N2, b"a") for _ in range(10)]
        assert [value_of(read.wait()) for read in reads] == [b"1"] * 10
        assert len(asks) <= 2

    def test_a_follower_answers_only_once_it_has_applied_the_index(self, group: HostGroup) -> None:
        group[N2].disk.hung_until = group.world.now + 0.4
        group.write(N1, commands.put(b"a", b"1")).wait()
        read = group.read(N2, b"a")
        group.run(0.2)
        assert not read.is_done
        assert value_of(read.wait()) == b"1"

    def test_an_unanswered_question_is_asked_again(self, group: HostGroup) -> None:
        lost = drop(group, peer.IndexRequest)
        read = group.read(N2, b"a")
        group.run(3 * INDEX_RETRY_S)
        assert len(lost) >= 2
        group.network.sift = None
        assert read.wait().value is None

    def test_a_question_to_who_leads_no_more_is_asked_of_who_does(self, group: HostGroup) -> None:
        read = group.read(N2, b"a", timeout_s=9.0)
        group[N1].stop()
        assert read.wait(9.0).value is None

    def test_a_follower_that_is_asked_says_no_and_the_reads_wait_on(self, group: HostGroup) -> None:
        replies = sent(group, peer.IndexReply)
        group.deliver(N3, N2, peer.IndexRequest(9, SHARD))
        group.run(0.01)
        assert [(reply.id, reply.error) for reply in replies] == [(9, WrongRoute.code)]
        number = _ask(group)
        group.deliver(N1, N2, peer.IndexReply(number, LogIndex(0), WrongRoute.code))
        [call] = group[N2].replica().reads_new
        assert call.done is not None

    def test_a_read_is_never_answered_below_what_the_leader_said(self, group: HostGroup) -> None:
        number = _ask(group)
        ahead = LogIndex(group[N2].replica().machine.applied + 1)
        group.deliver(N1, N2, peer.IndexReply(number, ahead, None))
        group.run(0.1)
        assert [index for index, _calls in group[N2].replica().reads_indexed] == [ahead]

    def test_a_read_without_a_leader_times_out(self, group: HostGroup) -> None:
        group[N1].stop()
        group[N3].stop()
        group.run(4.0)
        with pytest.raises(ReadTimeout):
            group.read(N2, b"a", timeout_s=0.3).wait()

    def test_a_node_without_a_replica_has_another_read(self) -> None:
        group = HostGroup(nodes=4, homes=3)
        group.lead(N1)
        group.write(NodeId("n4"), commands.put(b"a", b"1")).wait()
        forwards = sent(group, peer.ForwardRead)
        assert value_of(group.read(NodeId("n4"), b"a").wait()) == b"1"
        assert [forward.consistency for forward in forwards][:1] == ["linearizable"]


class TestASilentLeader:
    """A stopped process keeps its links; only its silence tells."""

    @pytest.fixture
    def group(self) -> HostGroup:
        group = HostGroup(nodes=4, homes=3)
        group.lead(N1)
        assert group.read(NodeId("n4"), b"a").wait().value is None
        assert group[NodeId("n4")].router.leader_node(SHARD) == N1
        group.network.sift = lambda source, target, message: None if N1 in (source, target) else message
        return group

    def test_a_node_without_a_replica_finds_the_next_one(self, group: HostGroup) -> None:
        lost = group.write(NodeId("n4"), commands.put(b"a", b"1"), timeout_s=1.5)
        group.run(4.0)
        assert lost.error is not None
        group.write(NodeId("n4"), commands.put(b"a", b"2"), timeout_s=2.0).wait()
        assert group[NodeId("n4")].router.leader_node(SHARD) in (N2, N3)

    def test_what_waits_for_it_goes_to_the_next_one_too(self, group: HostGroup) -> None:
        outcome = Outcome(group.world)
        node = group[NodeId("n4")]
        node.router.wait_then(SHARD, ["wait", b"a", 0], node.now + 20, node.now + 22, outcome)
        group.run(4.0)
        group.write(N2, commands.put(b"a", b"1")).wait()
        assert value_of(outcome.wait(9.0)) == b"1"


def _ask(group: HostGroup) -> int:
    """Leave one index request of n2 open; returns its number."""
    drop(group, peer.IndexRequest)
    group.read(N2, b"a", timeout_s=60.0)
    group.run(0.01)
    [number] = group[N2].router._index_asks
    return number


class TestLeaseReads:
    def test_a_lease_read_is_answered_in_the_call(self, group: HostGroup) -> None:
        group.write(N1, commands.put(b"a", b"1")).wait()
        group.read(N1, b"a").wait()
        read = group.read(N1, b"a", "lease")
        assert read.is_done
        assert value_of(read.answer) == b"1"

    def test_without_a_lease_it_is_a_linearizable_read(self, group: HostGroup) -> None:
        group.run(3.0)
        assert not group[N1].host.holds_lease(group[N1].replica())
        read = group.read(N1, b"a", "lease")
        assert not read.is_done
        assert read.wait().value is None

    def test_pitfall_05_a_leader_that_has_committed_nothing_serves_none(
        self, group: HostGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        group.read(N1, b"a").wait()
        monkeypatch.setattr(Core, "has_committed_in_term", False)
        assert not group.read(N1, b"a", "lease").is_done

    def test_pitfall_06_what_is_committed_must_be_applied_first(self, group: HostGroup) -> None:
        group.write(N1, commands.put(b"a", b"old")).wait()
        group[N1].disk.hung_until = group.world.now + 0.4
        group.write(N1, commands.put(b"a", b"new"))
        group.run(0.1)
        assert value_of(group.read(N2, b"a").wait()) == b"new"
        read = group.read(N1, b"a", "lease")
        assert not read.is_done
        assert value_of(read.wait()) == b"new"

    def test_pitfall_06_a_lease_that_ends_during_the_read_was_none(
        self, group: HostGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        group.read(N1, b"a").wait()
        host = group[N1].host
        answers = [True, False]
        monkeypatch.setattr(host, "holds_lease", lambda replica: answers.pop(0) if answers else False)
        read = group.read(N1, b"a", "lease")
        assert not read.is_done
        assert read.wait().value is None


class TestStaleReads:
    def test_any_replica_answers_in_the_call_with_the_age_of_what_it_knows(self, group: HostGroup) -> None:
        group.write(N1, commands.put(b"a", b"1")).wait()
        group.run(0.5)
        read = group.read(N2, b"a", "stale")
        assert read.is_done
        assert value_of(read.answer) == b"1"
        assert 0 <= read.answer.staleness_s < 0.15

    def test_the_age_grows_while_the_leader_is_not_heard(self, group: HostGroup) -> None:
        group.run(0.5)
        group.part(N2)
        group.run(2.0)
        read = group.read(N2, b"a", "stale")
        assert 1.9 < read.answer.staleness_s < 2.3

    def test_what_is_too_old_is_read_from_the_leader(self, group: HostGroup) -> None:
        group.run(0.5)
        group.part(N2)
        group.run(2.0)
        read = group.read(N2, b"a", "stale", max_staleness_s=1.0)
        assert not read.is_done
        group.network.cut.clear()
        assert read.wait().staleness_s is None

    def test_a_replica_that_never_heard_a_leader_asks(self, group: HostGroup) -> None:
        group[N2].replica().heard_at = -1.0
        assert not group.read(N2, b"a", "stale").is_done

    def test_a_message_about_more_than_is_applied_does_not_make_the_replica_fresh(
        self, group: HostGroup
    ) -> None:
        group.run(0.5)
        group[N2].disk.hung_until = group.world.now + 3.0
        group.write(N1, commands.put(b"a", b"1")).wait()
        group.run(1.0)
        read = group.read(N2, b"a", "stale")
        assert value_of(read.answer) is None
        assert read.answer.staleness_s > 0.9, "it has missed a write of a second ago"

    def test_a_leader_is_fresh_only_with_all_that_is_committed(self, group: HostGroup) -> None:
        group.run(0.3)
        group.write(N1, commands.put(b"a", b"old")).wait()
        group[N1].disk.hung_until = group.world.now + 0.5
        group.write(N1, commands.put(b"a", b"new"))
        group.run(0.1)
        assert value_of(group.read(N2, b"a").wait()) == b"new"
        read = group.read(N1, b"a", "stale", max_staleness_s=0.0)
        assert not read.is_done
        assert value_of(read.wait()) == b"new"

    def test_a_forwarded_stale_read_is_served_by_any_home(self) -> None:
        group = HostGroup(nodes=4, homes=3)
        group.lead(N1)
        group.write(N1, commands.put(b"a", b"1")).wait()
        group.run(0.5)
        read = group.read(NodeId("n4"), b"a", "stale")
        assert value_of(read.wait()) == b"1"
        assert read.answer.staleness_s is not None


class TestSweeping:
    def test_a_forward_whose_caller_was_answered_is_forgotten(self, group: HostGroup) -> None:
        drop(group, peer.ForwardReply)
        group.write(N2, INCR, timeout_s=0.2)
        group.run(0.5)
        assert group[N2].router._forwards == {}

    def test_parked_calls_keep_their_stage(self, group: HostGroup) -> None:
        group.part(N2)
        group.run(4.0)
        outcome = Outcome(group.world)
        call = Call(SHARD, commands.encode(None, [INCR]), group[N2].now + 0.3, outcome)
        group[N2].router.dispatch(call)
        assert call.stage is Stage.WAITING
        with pytest.raises(NoLeader):
            outcome.wait()

    def test_shards_are_named_in_token_order(self) -> None:
        router: Router = HostGroup(nodes=1, shards=4)[N1].router
        assert list(router.shards()) == [0, 1, 2, 3]
        assert {router.shard_of(b"key%d" % number) for number in range(50)} == {0, 1, 2, 3}

    def test_promises_settle_like_callbacks(self, group: HostGroup) -> None:
        router, deadline = group[N1].router, group[N1].now + 2.0
        write = router.write(SHARD, commands.encode(None, [INCR]), False, deadline)
        read = router.read(SHARD, ["get", b"n", None], "linearizable", deadline)
        nothing = router.write(ShardId(9), commands.encode(None, [INCR]), False, group[N1].now + 0.1)
        group.run(0.5)
        assert result_of(write.result()) == [0, 1, 1]
        assert read.is_done
        assert isinstance(nothing.error, NoLeader)


def test_a_failure_that_is_no_answer_is_not_hidden_from_the_loop(group: HostGroup) -> None:
    done = group[N1].router._replier(N2, 1, lambda answer: answer)
    with pytest.raises(ZeroDivisionError):
        done(None, ZeroDivisionError())


def test_replies_carry_results_as_the_machine_gave_them(group: HostGroup) -> None:
    replies = sent(group, peer.ForwardReply)
    group.write(N2, commands.put(b"a", b"1", prev=True)).wait()
    [reply] = replies
    result, clock_ms = router_module.decode_result(reply.payload)
    assert result.results == [[0, 1, 1, True, None]]
    assert clock_ms == msgspec.msgpack.decode(reply.payload)[1]
    assert group[N1].replica().me == ReplicaId("n1/1")
