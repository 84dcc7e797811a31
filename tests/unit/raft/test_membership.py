import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import InvalidArgument
from kvstore.raft.membership import Change, decode, encode, left_joint, next_configuration, validate
from kvstore.raft.messages import Configuration
from kvstore.raft.quorum import has_quorum
from kvstore.types import ReplicaId
from tests.support.raft_group import rid, voters


def ids(*numbers: int) -> tuple[ReplicaId, ...]:
    return tuple(map(rid, numbers))


def test_new_voter_makes_the_configuration_joint() -> None:
    following = next_configuration(voters(1, 2, 3), Change(voters=ids(4)))
    assert following == Configuration(voters=ids(1, 2, 3, 4), outgoing=ids(1, 2, 3))
    assert left_joint(following) == voters(1, 2, 3, 4)


def test_swap_is_one_change() -> None:
    current = voters(1, 2, 3, learners=[4])
    following = next_configuration(current, Change(voters=ids(4), removed=ids(3)))
    assert following == Configuration(voters=ids(1, 2, 4), outgoing=ids(1, 2, 3))


def test_learners_come_and_go_without_a_joint_configuration() -> None:
    following = next_configuration(voters(1, 2, 3), Change(learners=ids(5, 4)))
    assert following == voters(1, 2, 3, learners=[4, 5])
    assert next_configuration(following, Change(removed=ids(4))) == voters(1, 2, 3, learners=[5])


def test_demoted_voter_becomes_a_learner_when_the_joint_configuration_is_left() -> None:
    following = next_configuration(voters(1, 2, 3), Change(learners=ids(3)))
    assert following == Configuration(voters=ids(1, 2), outgoing=ids(1, 2, 3), learners_next=ids(3))
    assert left_joint(following) == voters(1, 2, learners=[3])


@pytest.mark.parametrize(
    ("current", "change"),
    [
        pytest.param(voters(1, 2), Change(removed=ids(1, 2)), id="no voter left"),
        pytest.param(voters(1, 2), Change(learners=ids(1, 2)), id="all voters demoted"),
        pytest.param(voters(1, 2), Change(), id="nothing"),
        pytest.param(voters(1, 2), Change(voters=ids(2)), id="already so"),
        pytest.param(voters(1, 2), Change(removed=ids(3)), id="stranger removed"),
        pytest.param(voters(1, 2), Change(voters=ids(3), removed=ids(3)), id="named twice"),
        pytest.param(voters(1, 2), Change(voters=ids(3, 3)), id="named twice in one part"),
        pytest.param(
            Configuration(voters=ids(1, 2), outgoing=ids(1)), Change(removed=ids(2)), id="still joint"
        ),
    ],
)
def test_change_that_makes_no_sense_is_refused(current: Configuration, change: Change) -> None:
    with pytest.raises(InvalidArgument):
        next_configuration(current, change)


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration(),
        Configuration(voters=ids(2, 1)),
        Configuration(voters=ids(1, 1)),
        Configuration(voters=ids(1, 2), learners=ids(2)),
        Configuration(voters=ids(1), outgoing=ids(2), learners=ids(2)),
        Configuration(voters=ids(1, 2), learners_next=ids(2)),
        Configuration(voters=ids(1, 2), outgoing=ids(1, 2), learners_next=ids(2)),
    ],
)
def test_contradicting_configuration_is_invalid(configuration: Configuration) -> None:
    with pytest.raises(InvalidArgument):
        validate(configuration)


def test_configuration_survives_the_log() -> None:
    configuration = Configuration(ids(1, 2), ids(1, 2, 3), ids(4), ids(3))
    assert decode(encode(configuration)) == configuration
    assert msgspec.msgpack.decode(encode(voters(1))) == [["n1/1"], [], [], []]
    with pytest.raises(msgspec.DecodeError):
        decode(b"\xc1")


_subset = st.sets(st.integers(1, 6), max_size=6)


@given(st.sets(st.integers(1, 6), min_size=1), _subset, _subset, _subset, _subset, _subset)
@settings(max_examples=150, deadline=None)
def test_quorums_of_successive_configurations_always_meet(
    start: set[int],
    promoted: set[int],
    demoted: set[int],
    removed: set[int],
    one_group: set[int],
    other_group: set[int],
) -> None:
    current = voters(*start)
    demoted -= promoted
    removed = (removed & start) - promoted - demoted
    change = Change(
        voters=ids(*sorted(promoted)), learners=ids(*sorted(demoted)), removed=ids(*sorted(removed))
    )
    try:
        joint = next_configuration(current, change)
    except InvalidArgument:
        return
    chain = [current, joint] + ([left_joint(joint)] if joint.is_joint else [])
    for configuration in chain:
        validate(configuration)
    for before, after in zip(chain, chain[1:], strict=False):
        if has_quorum(before, ids(*one_group)) and has_quorum(after, ids(*other_group)):
            assert one_group & other_group
