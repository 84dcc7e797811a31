from kvstore.raft.messages import AppendRequest, Configuration, Heartbeat
from kvstore.raft.role import Role
from kvstore.types import Term
from tests.support.raft_core import (
    accept,
    alive,
    beat,
    make_core,
    make_leader,
    only,
    sent,
    settled_leader,
    work,
)
from tests.support.raft_group import rid, voters


def served(core: object) -> list[tuple[int, int]]:
    return [read for ready in work(core) for read in ready.reads]  # type: ignore[arg-type]


def test_read_opens_a_round_and_waits_for_a_quorum() -> None:
    core = settled_leader()
    core.read(7)
    beats = only(sent(core), Heartbeat)
    assert [(message.target, message.round) for message in beats] == [(rid(2), 2), (rid(3), 2)]
    assert served(core) == []
    alive(core, 2)
    assert served(core) == [(7, 1)]


def test_all_reads_of_a_pass_share_one_round() -> None:
    core = settled_leader()
    for context in range(5):
        core.read(context)
    assert len(only(sent(core), Heartbeat)) == 2
    alive(core, 3)
    assert served(core) == [(context, 1) for context in range(5)]


def test_read_rides_on_an_append_that_goes_out_anyway() -> None:
    core = settled_leader()
    core.propose([b"a"])
    core.read(7)
    messages = sent(core)
    assert only(messages, Heartbeat) == []
    assert {request.round for request in only(messages, AppendRequest)} == {2}
    accept(core, 2, 2)
    assert served(core) == [(7, 1)]


def test_refused_append_confirms_too_for_it_is_an_answer_of_this_term() -> None:
    core = settled_leader()
    core.read(7)
    work(core)
    accept(core, 2, 1, is_rejected=True, hint_index=0, hint_term=0)
    assert served(core) == [(7, 1)]


def test_answer_to_an_older_round_confirms_nothing() -> None:
    core = settled_leader()
    core.read(7)
    work(core)
    alive(core, 2, round_number=1)
    alive(core, 3, round_number=0)
    assert served(core) == []


def test_learners_and_strangers_confirm_nothing() -> None:
    core = settled_leader(configuration=voters(1, 2, 3, learners=[4]))
    core.read(7)
    work(core)
    alive(core, 4)
    alive(core, 9)
    assert served(core) == []


def test_joint_configuration_confirms_with_both_halves() -> None:
    joint = Configuration(voters=(rid(1), rid(4), rid(5)), outgoing=(rid(1), rid(2), rid(3)))
    core = make_leader(configuration=joint)
    work(core)
    for number in (2, 4):
        accept(core, number, 1)
    work(core)
    core.read(7)
    work(core)
    alive(core, 4)
    alive(core, 5)
    assert served(core) == []
    alive(core, 2)
    assert [context for context, _ in served(core)] == [7]


def test_group_of_one_confirms_itself() -> None:
    core = make_leader(configuration=voters(1))
    work(core)
    core.read(7)
    assert served(core) == [(7, 1)]
    core.tick()
    assert core.confirmed_round == core.round


def test_reads_are_lost_with_the_leadership() -> None:
    core = settled_leader()
    core.read(1)
    work(core)
    core.read(2)
    alive(core, 2, term=5)
    assert core.role is Role.FOLLOWER
    assert [sorted(ready.reads_lost) for ready in work(core)] == [[1, 2]]
    core.read(3)
    assert [ready.reads_lost for ready in work(core)] == [(3,)]


def test_rounds_start_anew_in_each_term() -> None:
    core = settled_leader()
    for _ in range(5):
        core.tick()
    work(core)
    core.step(beat(5))
    again = make_core(term=5)
    assert (core.confirmed_round, again.round) == (1, 0)
    core.become_candidate()
    core.become_leader()
    assert (core.round, core.confirmed_round) == (1, 0)


def test_answer_of_an_older_term_confirms_nothing() -> None:
    core = settled_leader()
    core.step(beat(5))
    core.become_candidate()
    core.become_leader()
    work(core)
    alive(core, 2, round_number=1, term=int(Term(1)))
    assert core.confirmed_round == 0
