"""Each schedule fails when its guard is taken away: a test that passes without would prove nothing."""

from collections.abc import Callable

import pytest

from kvstore.raft import Change, Core, candidate, follower, leader, membership, output
from kvstore.raft.log import Flight, RaftLog
from kvstore.raft.messages import (
    Configuration,
)
from kvstore.raft.progress import Progress
from kvstore.types import LogIndex, ReplicaId, Term
from tests.support.raft_schedules import (
    acknowledgement_from_before_the_damage,
    divergent_follower_installs_a_snapshot,
    figure_8,
    isolated_replica_returns,
    lagging_leader_is_read_at_once,
    lagging_replica_gets_the_members_with_the_snapshot,
    leader_changes_members_before_it_has_committed,
    leader_loses_what_its_followers_committed,
    leader_with_a_hung_disk,
    node_goes_on_without_leading_this_shard,
    paused_leader_hears_that_nodes_are_alive,
    replacing_a_majority,
    replica_hears_the_others_but_not_the_leader,
    single_voter_loses_power_before_the_sync,
    supporter_restarts_and_is_asked_to_vote,
    transfer_comes_to_nothing,
    voter_restarts_between_two_requests,
)

Remove = Callable[[pytest.MonkeyPatch], None]


# --- the guards


def _count_from_any_term(patch: pytest.MonkeyPatch) -> None:
    begin = leader.begin_term

    def begin_without_mark(core: Core) -> None:
        begin(core)
        core.term_start = LogIndex(0)

    patch.setattr(leader, "begin_term", begin_without_mark)


def _count_own_unsynced_entries(patch: pytest.MonkeyPatch) -> None:
    append = leader._append

    def append_and_count(core: Core, kind: int, payloads: list[bytes]) -> LogIndex:
        index = append(core, kind, payloads)
        core.own_progress.match = core.last_index
        leader.advance_commit(core)
        return index

    patch.setattr(leader, "_append", append_and_count)


def _promise_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "send_after_sync", Core.send_now)


def _keep_the_old_tail(patch: pytest.MonkeyPatch) -> None:
    def reset(log: RaftLog, index: LogIndex, term: Term, commit: LogIndex) -> None:
        log.compact(min(index, log.last_index))

    patch.setattr(RaftLog, "reset", reset)


def _forget_the_snapshots_members(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "_installed", lambda core, at: setattr(core, "applied_index", at.index))


def _change_members_in_one_step(patch: pytest.MonkeyPatch) -> None:
    def at_once(current: Configuration, change: Change) -> Configuration:
        following = membership.next_configuration(current, change)
        return membership.left_joint(following) if following.is_joint else following

    patch.setattr(
        leader, "membership", type("Patched", (), {**vars(membership), "next_configuration": at_once})
    )


def _campaign_without_asking_first(patch: pytest.MonkeyPatch) -> None:
    ask = candidate.campaign
    patch.setattr(candidate, "campaign", lambda core, is_transfer: ask(core, is_transfer=True))


def _vote_at_any_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(candidate, "_is_bound", lambda _core, _message: False)


def _never_look_at_the_disk(patch: pytest.MonkeyPatch) -> None:
    create = Flight.__init__

    def create_ageless(flight: Flight, *arguments: object) -> None:
        create(flight, *arguments)  # type: ignore[arg-type]
        flight.tick = 1 << 60

    patch.setattr(Flight, "__init__", create_ageless)


def _remember_the_damaged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Progress, "forget", lambda _peer, last_index, round_floor: None)


def _take_life_for_confirmation(patch: pytest.MonkeyPatch) -> None:
    def hear_follower(core: Core, replica: ReplicaId) -> None:
        core.progress[replica].round = core.round
        leader.confirm_rounds(core)

    patch.setattr(Core, "hear_follower", hear_follower)


def _believe_any_node(patch: pytest.MonkeyPatch) -> None:
    def hear_leader(core: Core, _source: ReplicaId, _term: Term) -> bool:
        core.elapsed = 0
        return True

    patch.setattr(follower, "hear_leader", hear_leader)


def _apply_what_is_committed(patch: pytest.MonkeyPatch) -> None:
    def take(core: Core) -> tuple[object, ...]:
        committed = core.log.between(core.emitted, core.commit)
        core.emitted = core.commit
        return committed

    patch.setattr(output, "_take_committed", take)


def _start_unbound(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "is_fresh", False)
    start = Core._start_clocks

    def start_free(core: Core) -> None:
        start(core)
        core.promise_left = 0

    patch.setattr(Core, "_start_clocks", start_free)


def _take_the_lease_back(patch: pytest.MonkeyPatch) -> None:
    tick = leader.tick

    def tick_and_forgive(core: Core) -> None:
        tick(core)
        core.lease_forbidden = core.transfer_target is not None

    patch.setattr(leader, "tick", tick_and_forgive)


GUARDS: list[tuple[Callable[[], None], Remove]] = [
    (lagging_leader_is_read_at_once, _count_from_any_term),
    (single_voter_loses_power_before_the_sync, _count_own_unsynced_entries),
    (figure_8, _count_from_any_term),
    (voter_restarts_between_two_requests, _promise_before_the_sync),
    (divergent_follower_installs_a_snapshot, _keep_the_old_tail),
    (lagging_replica_gets_the_members_with_the_snapshot, _forget_the_snapshots_members),
    (replacing_a_majority, _change_members_in_one_step),
    (leader_changes_members_before_it_has_committed, _count_from_any_term),
    (isolated_replica_returns, _campaign_without_asking_first),
    (replica_hears_the_others_but_not_the_leader, _vote_at_any_time),
    (leader_with_a_hung_disk, _never_look_at_the_disk),
    (acknowledgement_from_before_the_damage, _remember_the_damaged),
    (paused_leader_hears_that_nodes_are_alive, _take_life_for_confirmation),
    (node_goes_on_without_leading_this_shard, _believe_any_node),
    (leader_loses_what_its_followers_committed, _apply_what_is_committed),
    (supporter_restarts_and_is_asked_to_vote, _start_unbound),
    (transfer_comes_to_nothing, _take_the_lease_back),
]


@pytest.mark.parametrize(
    ("schedule", "remove"),
    GUARDS,
    ids=[f"{schedule.__name__}-{remove.__name__[1:]}" for schedule, remove in GUARDS],
)
def test_schedule_fails_when_its_guard_is_taken_away(
    schedule: Callable[[], None], remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule()
    remove(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        schedule()
