"""The checks must not only pass: each is shown to notice what it is there for."""

from collections.abc import Callable

import pytest

from kvstore.raft import Core
from kvstore.raft.invariants import ClusterHistory, InvariantViolated, check, check_cluster
from kvstore.raft.messages import NORMAL, Entry
from kvstore.raft.role import Role
from kvstore.types import LogIndex, Term
from tests.support.raft_core import entries, make_core, make_leader, settled_leader, work
from tests.support.raft_group import Group, rid, voters


def _set(**values: object) -> Callable[[Core], None]:
    def damage(core: Core) -> None:
        for name, value in values.items():
            owner: object = core
            *path, last = name.split("__")
            for step in path:
                owner = getattr(owner, step)
            setattr(owner, last, value)

    return damage


def _swap_entry(core: Core) -> None:
    core.log._entries[0] = Entry(LogIndex(7), Term(1), NORMAL, b"")
    core.log.truncations += 1


DAMAGES = {
    "commit beyond the log": _set(commit=99),
    "applied beyond the commit": _set(applied_index=3),
    "emitted beyond the synced": _set(log__synced=0),
    "term falls": _set(term=Term(0)),
    "commit falls": _set(commit=LogIndex(0), applied_index=LogIndex(0), emitted=LogIndex(0)),
    "vote changes": _set(vote=rid(3)),
    "leader changes": _set(leader=rid(3)),
    "leader without the role": _set(is_leader=False),
    "own match beyond the disk": lambda core: setattr(core.own_progress, "match", LogIndex(9)),
    "match beyond the log": lambda core: setattr(core.progress[rid(2)], "match", LogIndex(9)),
    "next at the match": lambda core: setattr(core.progress[rid(2)], "next", 1),
    "answer to an unopened round": lambda core: setattr(core.progress[rid(2)], "round", 99),
    "confirmed beyond the opened": _set(confirmed_round=99),
    "round falls": _set(round=0, confirmed_round=0),
    "uncommitted bytes off": _set(uncommitted_bytes=5),
    "leader rewrites its log": _set(log__truncations=1),
    "entry at a wrong index": _swap_entry,
    "transfer to a stranger": _set(transfer_target=rid(9)),
    "two changes at once": lambda core: core.log.unapplied_configurations.extend(
        [LogIndex(5), LogIndex(6), LogIndex(7)]
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_check_notices(name: str) -> None:
    core = settled_leader()
    core.tick()
    work(core)
    view = check(core)
    check(core, view)
    DAMAGES[name](core)
    with pytest.raises(InvariantViolated):
        check(core, view)


def test_check_notices_a_lease_that_comes_back() -> None:
    core = settled_leader()
    core.transfer_leadership(rid(2))
    view = check(core)
    assert view.lease_forbidden
    core.lease_forbidden = False
    with pytest.raises(InvariantViolated, match="lease"):
        check(core, view)


def test_check_notices_a_fresh_candidate() -> None:
    core = make_core(1, fresh=True)
    core.become_pre_candidate()
    with pytest.raises(InvariantViolated, match="fresh"):
        check(core)


def test_check_notices_a_commit_by_counting_an_older_term() -> None:
    core = make_leader(1, 1)
    work(core)
    view = check(core)
    core.commit_to(LogIndex(2))
    core.uncommitted_bytes = 0
    with pytest.raises(InvariantViolated, match="counting"):
        check(core, view)


def _group_of_two() -> tuple[Core, Core]:
    return settled_leader(), settled_leader()


def test_cluster_check_notices_two_leaders_of_one_term() -> None:
    first, second = _group_of_two()
    second.me = rid(2)
    with pytest.raises(InvariantViolated, match="Election Safety"):
        check_cluster([first, second])


def test_cluster_check_notices_different_entries_at_one_index_and_term() -> None:
    first, second = make_core(1, 1), make_core(1)
    second.me = rid(2)
    second.log.append([Entry(LogIndex(2), Term(1), NORMAL, b"other")])
    with pytest.raises(InvariantViolated, match="Log Matching"):
        check_cluster([first, second])


def test_cluster_check_notices_different_histories_before_one_entry() -> None:
    first, second = make_core(1, 1, 3), make_core(1, 2, 3)
    second.me = rid(2)
    with pytest.raises(InvariantViolated, match="Log Matching"):
        check_cluster([first, second])


def test_cluster_check_notices_different_committed_entries() -> None:
    first, second = make_core(1, 1, commit=2), make_core(1, 2, commit=2)
    second.me = rid(2)
    with pytest.raises(InvariantViolated, match="State Machine Safety"):
        check_cluster([first, second])


def test_cluster_check_remembers_what_a_crashed_replica_committed() -> None:
    history = check_cluster([make_core(1, 1, commit=2)])
    second = make_core(1, 2, commit=2)
    second.me = rid(2)
    with pytest.raises(InvariantViolated, match="State Machine Safety"):
        check_cluster([second], history)


def test_cluster_check_notices_a_leader_that_lacks_a_committed_entry() -> None:
    history = check_cluster([make_core(1, 1, commit=2)])
    second = make_core(1, term=1)
    second.me = rid(2)
    second.vote = second.leader = second.me
    second.role, second.is_leader, second.term = Role.LEADER, True, Term(2)
    with pytest.raises(InvariantViolated, match="Leader Completeness"):
        check_cluster([second], history)


def test_late_winner_of_an_older_term_is_not_blamed_for_what_came_after() -> None:
    history = ClusterHistory()
    check_cluster([make_core(stored=entries(1, 3), commit=2)], history)
    second = make_core(1, term=2)
    second.me = rid(2)
    second.role, second.is_leader, second.leader = Role.LEADER, True, second.me
    check_cluster([second], history)


def test_checks_pass_through_an_ordinary_life() -> None:
    group = Group(voters(1, 2, 3))
    group.elect(1)
    group.propose(1, b"a")
    group.pump()
    group.elect(2)
    group.crash(1)
    group.tick(30)
    group.restart(1)
    group.tick(30)
    assert group.history.leaders
    assert {group[number].machine.commands for number in (1, 2, 3)} == {(b"a",)}
