"""The loop over dirty shards: what shares a sync, what waits for it, what a failure takes down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import pytest

from kvstore.errors import Corrupt, DiskFull, Fatal, NoLeader, OutcomeUnknown, WalPoisoned
from kvstore.node import host as host_module
from kvstore.node.host import HostSettings
from kvstore.node.replica import Replica, ReplicaLimits
from kvstore.node.runtime import Lane
from kvstore.raft import Core
from kvstore.raft.messages import AppendReply, AppendRequest, Entry, Heartbeat, Message, VoteReply
from kvstore.store import commands
from kvstore.store.machine import Machine
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId, Term
from kvstore.wal import Entries, HardStateRecord
from kvstore.wire import peer
from tests.support.host_group import N1, N2, N3, SHARD, HostedNode, HostGroup, result_of


@pytest.fixture
def group() -> HostGroup:
    group = HostGroup()
    group.lead(N1)
    return group


def raft_messages(group: HostGroup, kind: type, source: NodeId) -> list[Any]:
    """Every Raft message of a kind that the node sends from now on."""
    seen: list[Any] = []
    envelopes = group.watch(peer.RaftMessages, source)

    class Seen(list[Any]):
        def __iter__(self) -> Any:
            seen[:] = [each for envelope in envelopes for each in envelope.messages if isinstance(each, kind)]
            return iter(seen)

        def __len__(self) -> int:
            return len(list(iter(self)))

    return Seen()


def watch_steps(node: HostedNode) -> list[str]:
    """What the node does from now on for others to wait for, in order."""
    steps: list[str] = []
    send, append, apply = node.transport.send, node.log.append, node.replica().machine.apply

    def sent(to: NodeId, lane: Lane, frame: bytes) -> bool:
        steps.append(f"{lane.name.lower()} to {to}")
        return send(to, lane, frame)

    def synced(records: Sequence[Any]) -> None:
        steps.append("sync")
        append(records)

    def applied(entries: Sequence[Entry], **more: Any) -> Any:
        steps.append("apply")
        return apply(entries, **more)

    node.transport.send = sent  # type: ignore[method-assign]
    node.log.append = synced  # type: ignore[method-assign]
    node.replica().machine.apply = applied  # type: ignore[method-assign]
    return steps


class TestPass:
    def test_all_shards_of_a_pass_share_one_write(self) -> None:
        group = HostGroup(shards=4)
        node = group.lead(N1, 0, 1, 2, 3)
        before = len(node.log.batches)
        for shard in range(4):
            group.write(N1, commands.put(b"a", b"1"), shard=shard)
        group.run(0.0001)
        node.disk.high = 0.0001
        group.run(0.02)
        batches = [
            {record.shard for record in batch if isinstance(record, Entries)}
            for batch in node.log.batches[before:]
        ]
        assert batches[0] == {0, 1, 2, 3}
        assert sum(map(len, batches)) == 4

    def test_writes_that_arrive_during_a_sync_gather_for_one_entry(self, group: HostGroup) -> None:
        node = group[N1]
        node.disk.hung_until = group.world.now + 0.3
        outcomes = [group.write(N1, commands.put(b"a", b"1"))]
        group.run(0.01)
        for _ in range(20):
            outcomes.append(group.write(N1, commands.put(b"a", b"1")))
            group.run(0.001)
        last_index = node.replica().core.last_index
        for outcome in outcomes:
            outcome.wait()
        assert node.replica().core.last_index == last_index + 1

    def test_entries_leave_for_the_followers_before_the_leaders_own_sync(self, group: HostGroup) -> None:
        group[N1].disk.hung_until = group.world.now + 0.3
        batches = len(group[N1].log.batches)
        appends = raft_messages(group, AppendRequest, N1)
        group.write(N1, commands.put(b"a", b"1"))
        group.run(0.01)
        assert any(append.entries for append in appends)
        assert len(group[N1].log.batches) == batches

    def test_pitfall_10_a_follower_acknowledges_only_after_its_sync(self, group: HostGroup) -> None:
        node = group[N2]
        node.disk.hung_until = group.world.now + 0.3
        replies = raft_messages(group, AppendReply, N2)
        write = group.write(N1, commands.put(b"a", b"1"))
        group.run(0.2)
        index = group[N1].replica().core.last_index
        assert not [reply for reply in replies if reply.index == index]
        assert write.is_done, "n1 and n3 are enough"
        group.run(0.2)
        assert [reply for reply in replies if reply.index == index]

    def test_pitfall_09_a_vote_leaves_only_after_its_sync(self, group: HostGroup) -> None:
        group.run(0.5)
        group[N3].disk.hung_until = group.world.now + 0.4
        group[N1].stop()
        votes = raft_messages(group, VoteReply, N3)
        for name in (N2, N3):
            group[name].replica().core.promise_left = 0
        group[N2].replica().core.elapsed = group[N2].replica().core.election_timeout
        group.run(0.3)
        assert not [vote for vote in votes if not vote.is_pre_vote]
        group.run(0.3)
        [vote] = [vote for vote in votes if not vote.is_pre_vote]
        term = group[N3].replica().core.term
        assert (vote.term, vote.is_granted) == (term, True)
        states = [
            each for batch in group[N3].log.batches for each in batch if isinstance(each, HardStateRecord)
        ]
        assert (term, "n2/1") in [(state.term, state.vote) for state in states]

    def test_pitfall_07_a_group_of_one_waits_for_its_own_sync(self) -> None:
        group = HostGroup(nodes=1)
        group.lead(N1)
        group[N1].disk.hung_until = group.world.now + 0.3
        write = group.write(N1, commands.put(b"a", b"1"))
        group.run(0.25)
        assert not write.is_done
        assert result_of(write.wait())[1] == 1

    def test_nobody_works_when_nothing_happens(self, group: HostGroup) -> None:
        group.run(2.0)
        group.world.events_run = 0
        group.run(1.0)
        # Per second and node: 20 ticks, 20 sweeps, and beats with replies to two peers, each with a pass.
        assert group.world.events_run < 450

    def test_a_leader_sends_a_lone_write_then_syncs_it(self) -> None:
        group = HostGroup(settings=HostSettings(inline_sync_s=1.0))
        node = group.lead(N1)
        steps = watch_steps(node)
        group.write(N1, commands.put(b"a", b"1"))
        group.run(0.0001)
        assert steps == ["append to n2", "append to n3", "sync"]

    def test_a_follower_promises_an_entry_before_it_applies_the_one_before(self) -> None:
        group = HostGroup(settings=HostSettings(inline_sync_s=1.0))
        group.lead(N1)
        group.write(N1, commands.put(b"a", b"1")).wait()
        group.run_until(lambda: group[N2].replica().core.synced == group[N1].replica().core.last_index)
        steps = watch_steps(group[N2])
        group.write(N1, commands.put(b"a", b"2"))
        group.run_until(lambda: "apply" in steps)
        assert steps == ["sync", "control to n1", "apply"]

    def test_a_follower_that_nobody_asks_applies_a_stream_of_commits_together(self, group: HostGroup) -> None:
        steps = watch_steps(group[N2])
        for _ in range(40):
            group.write(N1, commands.incr(b"n")).wait()
        group.run(0.05)
        assert steps.count("apply") < 0.4 * steps.count("sync")
        assert group[N2].replica().machine.state_hash == group[N1].replica().machine.state_hash

    def test_a_follower_that_is_asked_has_applied_what_was_answered(self, group: HostGroup) -> None:
        for number in range(20):
            group.write(N1, commands.put(b"a", b"%d" % number)).wait()
            read = group.read(N2, b"a").wait()
            assert read.value[0] == b"%d" % number

    def test_a_follower_in_a_stream_of_writes_stays_fresh(self, group: HostGroup) -> None:
        ages = []
        for _ in range(300):
            group.write(N1, commands.incr(b"n")).wait()
            ages.append(group.read(N2, b"n", "stale").wait().staleness_s)
        assert max(ages) < 0.1

    def test_a_large_backlog_is_applied_in_slices_between_which_others_get_their_turn(self) -> None:
        group = HostGroup(limits=ReplicaLimits(apply_bytes_max=1000, entry_commands_max=1))
        node = group.lead(N1)
        sizes: list[int] = []
        apply = node.replica().machine.apply

        def apply_and_count(entries: Sequence[Entry], *, is_asked: bool) -> Any:
            sizes.append(sum(len(entry.payload) for entry in entries))
            return apply(entries, is_asked=is_asked)

        node.replica().machine.apply = apply_and_count  # type: ignore[method-assign]
        writes = [group.write(N1, commands.put(b"k%d" % number, bytes(400))) for number in range(20)]
        for write in writes:
            write.wait()
        assert max(sizes) < 1500


class TestFrames:
    def test_messages_of_other_incarnations_or_under_false_names_are_ignored(self, group: HostGroup) -> None:
        core = group[N2].replica().core
        term = Term(core.term + 5)

        def heartbeat(source: str, target: str) -> peer.RaftMessages:
            message: Message = Heartbeat(ReplicaId(source), ReplicaId(target), term, LogIndex(0), 1)
            return peer.RaftMessages(SHARD, (message,))

        group.deliver(N1, N2, heartbeat("n1/1", "n2/2"))
        group.deliver(N3, N2, heartbeat("n1/1", "n2/1"))
        assert core.term < term
        group.deliver(N1, N2, heartbeat("n1/1", "n2/1"))
        assert core.term == term

    def test_messages_for_a_shard_that_is_not_here_are_dropped(self, group: HostGroup) -> None:
        message = Heartbeat(ReplicaId("n1/1"), ReplicaId("n2/1"), Term(9), LogIndex(0), 1)
        group.deliver(N1, N2, peer.RaftMessages(ShardId(7), (message,)))
        group.run(0.1)
        assert not group[N2].fatal

    def test_a_pass_sends_one_frame_per_link(self) -> None:
        group = HostGroup(shards=4)
        group.lead(N1, 0, 1, 2, 3)
        group.run(2.0)
        sent = group.network.counts["sent"]
        for shard in range(4):
            group.write(N1, commands.put(b"a", b"1"), shard=shard)
        group.run(0.00005)
        assert group.network.counts["sent"] - sent == 2, "append lane to two followers, four shards in each"

    def test_a_lone_frame_is_dealt_with_at_once_and_those_that_waited_for_that_share_a_pass(self) -> None:
        group = HostGroup(shards=4)
        group.lead(N1, 0, 1, 2)
        group.run(2.0)
        counts = group.network.counts
        begun = counts["sent"]

        def forward(shard: int) -> int:
            query = msgpack.packb(["get", b"a", None])
            group.deliver(N2, N1, peer.ForwardRead(100 + shard, ShardId(shard), query, "", 1000))
            return counts["sent"] - begun

        assert forward(0) == 2, "to each follower"
        assert forward(1) == forward(2) == 2
        group.run(0.00005)
        assert counts["sent"] - begun == 4

    def test_a_frame_that_grows_too_large_is_split_and_nothing_of_it_lost(
        self, group: HostGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(peer, "FRAME_BYTES_MAX", 3000)
        arrived: list[int] = []
        group[N1].host.on_message[peer.ForwardWrite] = lambda node, message: arrived.append(message.id)
        for number in range(12):
            group[N2].host.post(N1, Lane.APPEND, peer.ForwardWrite(number, SHARD, bytes(800), False, 1))
        group.run(0.1)
        assert arrived == list(range(12))

    def test_raft_messages_of_one_shard_are_split_too(self) -> None:
        messages = tuple(
            Heartbeat(ReplicaId("n1/1"), ReplicaId("n2/1"), Term(1), LogIndex(0), number)
            for number in range(3)
        )
        parts = host_module._halves([peer.RaftMessages(SHARD, messages)])
        assert [each.messages for [each] in parts] == [messages[:1], messages[1:]]  # type: ignore[union-attr]

    def test_a_single_message_that_no_frame_holds_is_dropped(self) -> None:
        assert host_module._halves([peer.ForwardWrite(1, SHARD, b"", False, 1)]) == []


class TestFailures:
    def test_pitfall_11_a_failed_log_ends_the_node_and_nothing_is_said_any_more(
        self, group: HostGroup
    ) -> None:
        node = group[N1]
        node.log.failure = WalPoisoned("sync failed")
        write = group.write(N1, commands.put(b"a", b"1"))
        group.run(0.05)
        sent = raft_messages(group, Message, N1)  # type: ignore[arg-type]
        group.run(5.0)
        assert [type(error) for error in node.fatal] == [WalPoisoned]
        assert node.host.is_stopped
        assert not write.is_done
        assert list(sent) == []

    def test_only_the_first_failure_is_told(self, group: HostGroup) -> None:
        group[N1].host.fail(Fatal("first"))
        group[N1].host.fail(Fatal("second"))
        assert [str(error) for error in group[N1].fatal] == ["first"]

    def test_a_failing_apply_halts_that_replica_and_other_shards_go_on(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        group = HostGroup(shards=2)
        node = group.lead(N1, 0, 1)
        halted: list[tuple[Replica, str]] = []
        node.host.on_halt = lambda replica, reason, *more: halted.append((replica, reason))
        broken = node.replica(0)

        def fail(entries: Sequence[Entry], *, is_asked: bool) -> Any:
            raise Fatal("bad block")

        broken.machine.apply = fail  # type: ignore[method-assign]
        write = group.write(N1, commands.put(b"a", b"1"), shard=0, timeout_s=3.0)
        with pytest.raises(OutcomeUnknown):
            write.wait()
        assert [(replica, "bad block" in reason) for replica, reason in halted] == [(broken, True)]
        assert "bad block" in node.host.damaged[SHARD]
        assert not node.fatal
        assert result_of(group.write(N1, commands.put(b"a", b"1"), shard=1).wait())[0] == 0
        group.run_until(lambda: group.leader(0) is not None)
        assert result_of(group.write(N1, commands.put(b"b", b"2"), shard=0).wait())[0] == 0

    def test_a_damaged_block_met_by_a_read_halts_the_replica(
        self, group: HostGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replica = group[N2].replica()

        def damaged(query: list[Any]) -> Any:
            raise Corrupt("block 3")

        replica.machine.query = damaged  # type: ignore[method-assign]
        read = group.read(N2, b"a")
        group.run_until(lambda: read.is_done)
        group.run(0.1)
        assert "block 3" in group[N2].host.damaged[SHARD]
        assert SHARD not in group[N2].host.replicas

    def test_a_message_that_proves_a_loss_halts_that_replica_only(self, group: HostGroup) -> None:
        core = group[N2].replica().core
        beyond = LogIndex(core.last_index + 5)
        proof = Heartbeat(ReplicaId("n1/1"), ReplicaId("n2/1"), core.term, beyond, 9)
        group.deliver(N1, N2, peer.RaftMessages(SHARD, (proof,)))
        assert SHARD in group[N2].host.damaged
        assert not group[N2].host.is_stopped
        group.run(1.0)

    def test_pitfall_13_a_full_disk_under_a_tablet_is_waited_for(self, group: HostGroup) -> None:
        machine = group[N1].replica().machine
        apply, tries = machine.apply, 0

        def full_twice(entries: Sequence[Entry], *, is_asked: bool) -> Any:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise DiskFull("no space")
            return apply(entries, is_asked=is_asked)

        machine.apply = full_twice  # type: ignore[method-assign]
        assert result_of(group.write(N1, commands.put(b"a", b"1")).wait())[0] == 0
        assert tries == 3
        assert not group[N1].host.damaged

    def test_a_stopped_host_takes_no_frame_makes_no_pass_and_ticks_no_more(self, group: HostGroup) -> None:
        node = group[N2]
        write = group.write(N2, commands.put(b"a", b"1"))
        node.host.stop()
        ticks = node.replica().core.ticks
        group.run(2.0)
        assert node.replica().core.ticks == ticks
        assert not write.is_done


class TestLeases:
    def test_a_lease_counts_from_when_its_round_was_sent(self, group: HostGroup) -> None:
        node = group[N1]
        group.network.faults.delay_low = group.network.faults.delay_high = 0.05
        asked_at = node.now
        group.read(N1, b"a").wait()
        replica = node.replica()
        assert replica.lease_until <= asked_at + 0.7 + 0.001
        assert node.host.holds_lease(replica)
        group.part(N1)
        group.run(0.65)
        assert not node.host.holds_lease(replica)

    def test_pitfall_06_a_confirmed_round_extends_the_lease_once(self, group: HostGroup) -> None:
        """Regression (seed 273): whatever made a leader's core ready dated its confirmed round anew, so that
        a leader that woke from a pause gave itself a lease by taking a write."""
        group.run(3.0)
        replica = group[N1].replica()
        assert replica.core.quiet, "its newest round was answered long ago"
        lease_until = replica.lease_until
        group.part(N1)
        for _ in range(5):
            group.write(N1, commands.put(b"a", b"1"))
            group.run(0.01)
        assert replica.lease_until == lease_until
        assert not group[N1].host.holds_lease(replica)

    def test_every_round_that_is_answered_extends_the_lease(self, group: HostGroup) -> None:
        group.write(N1, commands.put(b"a", b"1")).wait()
        group.part(N3)
        group.write(N1, commands.put(b"a", b"1")).wait()
        replica = group[N1].replica()
        for _ in range(20):
            group.run(0.1)
            assert group[N1].host.holds_lease(replica)

    def test_a_single_voter_confirms_its_own_rounds(self) -> None:
        group = HostGroup(nodes=1)
        group.lead(N1)
        group.read(N1, b"a").wait()
        assert group[N1].host.holds_lease(group[N1].replica())

    def test_no_lease_without_leading_or_once_a_timeout_now_has_left(self, group: HostGroup) -> None:
        host, replica = group[N1].host, group[N1].replica()
        group.read(N1, b"a").wait()
        assert host.holds_lease(replica)
        replica.core.lease_forbidden = True
        assert not host.holds_lease(replica)
        assert not group[N2].host.holds_lease(group[N2].replica())

    def test_a_new_term_begins_without_a_lease(self, group: HostGroup) -> None:
        group.read(N1, b"a").wait()
        group.lead(N2)
        replica = group[N1].replica()
        assert (replica.lease_until, replica.round_sent_at, replica.led_term) == (0.0, {}, None)

    def test_a_new_leader_goes_on_from_the_highest_clock_it_knows(self, group: HostGroup) -> None:
        core = group[N2].replica().core
        core.clock_ms, core.clock_term = 5_000_000, Term(core.term + 1)
        group.lead(N2)
        answer = group.write(N2, commands.put(b"a", b"1")).wait()
        assert 5_000_000 <= answer.clock_ms < 5_002_000


class TestTime:
    def test_ticks_missed_in_a_stall_are_dropped(self, group: HostGroup) -> None:
        node = group[N2]
        before = node.replica().core.ticks
        node.runtime.paused_until = group.world.now + 3.0
        group.run(3.0)
        node.runtime.paused_until = 0.0
        group.run(1.0)
        assert 18 <= node.replica().core.ticks - before <= 23

    def test_pitfall_22_a_disk_that_never_answers_ends_the_process(self) -> None:
        group = HostGroup(settings=HostSettings(disk_dead_s=5.0))
        node = group.lead(N1)
        node.disk.hung_until = group.world.now + 100.0
        group.write(N1, commands.put(b"a", b"1"))
        group.run(4.5)
        assert not node.fatal
        group.run(1.0)
        assert [type(error) for error in node.fatal] == [Fatal]

    def test_pitfall_13_a_full_disk_is_waited_for_however_long(self) -> None:
        group = HostGroup(settings=HostSettings(disk_dead_s=2.0))
        node = group.lead(N1)
        log, full_until = node.log, group.world.now + 6.0
        append = log.append

        def full(records: Any) -> None:
            if group.world.now < full_until:
                raise DiskFull("no space")
            append(records)

        log.append = full  # type: ignore[method-assign]
        write = group.write(N1, commands.put(b"a", b"1"), timeout_s=20.0)
        group.run(8.0)
        assert not node.fatal
        write.wait(20.0)

    def test_a_settled_shard_goes_quiet_and_an_operation_wakes_it(self, group: HostGroup) -> None:
        group.run(1.0)
        core = group[N1].replica().core
        assert core.quiet
        write = group.write(N1, commands.put(b"a", b"1"))
        group.run(0.0001)
        assert not core.quiet
        write.wait()

    def test_reads_that_wait_without_a_leader_keep_nobody_busy(self, group: HostGroup) -> None:
        """Regression: a waiting read marked its replica dirty in every pass, for ever."""
        group[N1].stop()
        group[N3].stop()
        group.run(5.0)
        assert group[N2].replica().core.leader is None
        reads = [group.read(N2, b"a", timeout_s=60.0) for _ in range(3)]
        group.run(0.2)
        group.world.events_run = 0
        group.run(1.0)
        assert group.world.events_run < 150
        assert not any(read.is_done for read in reads)

    def test_callers_are_told_when_their_deadline_passes(self, group: HostGroup) -> None:
        group[N1].stop()
        group[N3].stop()
        group.run(3.0)
        started = group.world.now
        with pytest.raises(NoLeader):
            group.write(N2, commands.put(b"a", b"1"), timeout_s=0.5).wait()
        assert 0.5 <= group.world.now - started < 0.65


def test_what_a_node_tells_itself_needs_no_network(group: HostGroup) -> None:
    heard: list[Any] = []
    host = group[N1].host
    host.on_message[peer.QuarantineNotice] = lambda node, message: heard.append((node, message))
    notice = peer.QuarantineNotice(SHARD, ReplicaId("n1/1"))
    host.tell(N1, notice)
    assert heard == [(N1, notice)]


def test_roles_are_told_once_per_change(group: HostGroup) -> None:
    changes: list[tuple[NodeId, Term | None]] = []
    for name in (N1, N2):
        group[name].host.on_role_change = lambda replica, name=name: changes.append((name, replica.led_term))  # type: ignore[misc]
    term = group[N1].replica().core.term
    group.lead(N2)
    assert changes == [(N1, None), (N2, Term(term + 1))]


def test_a_core_that_was_replaced_hears_nothing_of_its_syncs(group: HostGroup) -> None:
    node = group[N2]
    node.disk.hung_until = group.world.now + 0.3
    group.write(N1, commands.put(b"a", b"1"))
    group.run(0.05)
    replica = node.host.replicas.pop(SHARD)
    synced = replica.core.synced
    group.run(0.5)
    assert replica.core.synced == synced
    assert isinstance(replica.core, Core)
    assert isinstance(replica.machine, Machine)
