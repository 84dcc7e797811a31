"""What a replica starts from: everything in it is durable."""

from collections.abc import Sequence

import msgspec

from kvstore.raft.messages import Configuration, Entry, HardState, SnapshotMeta
from kvstore.types import LogIndex, Term

NO_SNAPSHOT = SnapshotMeta(LogIndex(0), Term(0), Configuration())
"""Where the log of a new group starts."""


class Restored(msgspec.Struct, frozen=True):
    hard_state: HardState
    entries: Sequence[Entry]
    """The live log, ascending without a gap."""
    snapshot: SnapshotMeta
    """An index whose term is known and up to which the machine holds the state; `NO_SNAPSHOT` at first."""
    applied: LogIndex
    configuration: Configuration
    """In force at `applied`."""
