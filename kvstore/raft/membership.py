"""How a group changes its members: learners freely, voters by joint consensus only (thesis 4.3).

A change of voters takes two entries. The first puts the group in a joint configuration, in which old and
new voters must both agree; once it is applied the leader appends the second, which leaves it. Two
majorities that could decide apart from each other never exist, whatever is added or removed at once.
Adding or removing learners touches no majority, so one entry is enough.

Pure functions on `Configuration`; when a change may be proposed is `leader.py`'s business.
"""

import msgspec

from kvstore.errors import InvalidArgument
from kvstore.raft.messages import Configuration
from kvstore.types import ReplicaId

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Configuration)


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What to make of whom; members that are not named stay what they are."""

    voters: tuple[ReplicaId, ...] = ()
    """Add, or promote."""
    learners: tuple[ReplicaId, ...] = ()
    """Add, or demote."""
    removed: tuple[ReplicaId, ...] = ()


def encode(configuration: Configuration) -> bytes:
    """Return the payload of a CONFIGURATION entry."""
    return _encoder.encode(configuration)


def decode(payload: bytes) -> Configuration:
    """Read the payload of a CONFIGURATION entry.

    Raises:
        msgspec.DecodeError: the payload is not one.
    """
    return _decoder.decode(payload)


def next_configuration(current: Configuration, change: Change) -> Configuration:
    """Return the configuration that starts `change`: joint if the voters change.

    Raises:
        InvalidArgument: the group is joint, no voter would be left, a replica is named twice, one to be
            removed is no member, or nothing would change.
    """
    if current.is_joint:
        raise InvalidArgument("the group is still in a joint configuration")
    named = [*change.voters, *change.learners, *change.removed]
    if len(set(named)) != len(named):
        raise InvalidArgument("a replica is named twice in one change")
    strangers = set(change.removed) - set(current.members())
    if strangers:
        raise InvalidArgument(f"not a member: {', '.join(sorted(strangers))}")
    voters = (set(current.voters) | set(change.voters)) - set(change.learners) - set(change.removed)
    learners = (set(current.learners) | set(change.learners)) - set(change.voters) - set(change.removed)
    if not voters:
        raise InvalidArgument("no voter would be left")
    if voters == set(current.voters):
        following = Configuration(voters=current.voters, learners=tuple(sorted(learners)))
    else:
        # Who still votes in the outgoing half cannot be a learner before that half is gone.
        waiting = learners & set(current.voters)
        following = Configuration(
            voters=tuple(sorted(voters)),
            outgoing=current.voters,
            learners=tuple(sorted(learners - waiting)),
            learners_next=tuple(sorted(waiting)),
        )
    if following == current:
        raise InvalidArgument("the change changes nothing")
    validate(following)
    return following


def left_joint(current: Configuration) -> Configuration:
    """Return what follows a joint configuration; it must be one."""
    assert current.is_joint, "only a joint configuration can be left"
    learners = {*current.learners, *current.learners_next}
    return Configuration(voters=current.voters, learners=tuple(sorted(learners)))


def validate(configuration: Configuration) -> None:
    """Check what every configuration must be.

    Raises:
        InvalidArgument: it has no voter, is unsorted, or somebody has two contradicting parts in it.
    """
    parts = (
        configuration.voters,
        configuration.outgoing,
        configuration.learners,
        configuration.learners_next,
    )
    if not configuration.voters:
        raise InvalidArgument("a configuration needs a voter")
    if any(list(part) != sorted(set(part)) for part in parts):
        raise InvalidArgument("the members of a configuration must be sorted and distinct")
    voting = {*configuration.voters, *configuration.outgoing}
    if voting & set(configuration.learners):
        raise InvalidArgument("a learner cannot vote")
    if not set(configuration.learners_next) <= set(configuration.outgoing) - set(configuration.voters):
        raise InvalidArgument("only an outgoing voter can be about to become a learner")
