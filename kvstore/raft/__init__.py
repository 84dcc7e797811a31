"""Raft as a function of its inputs: one `Core` per replica, many per process, no I/O.

A host feeds a core with messages, ticks, proposals and completed syncs, and carries out the `Ready` it
gives back. Reading order:

    messages.py     what enters and leaves: entries, peer messages, and Ready with its durability order
    core.py         the state of one replica, its inputs, and the changes of role
    follower.py     what a replica does with a leader's messages; installing a snapshot
    candidate.py    elections: asking, voting, and when a vote must be refused
    leader.py       proposals, committing, stepping down, handing over
    replication.py  what leaves for the followers, built once per Ready
    rounds.py       how a leader learns that it still leads; reads.py: the reads that wait for it
    output.py       builds the Ready: what to write, what may leave, how far to apply
    log.py          the entries above the cut, and which of them are on disk
    progress.py     what a leader knows of a peer, and how much it may send
    quorum.py       majorities, also joint; membership.py: which configuration follows which
    restored.py     what a replica starts from; settings.py: every number
    invariants.py   every claim as a check, for tests and the simulator; nothing else imports it

A write: `leader.propose` appends; `replication.flush` sends it while `output.take_ready` hands it to the
disk; followers answer after their sync; `leader.on_append_reply` finds a quorum and commits.

Caveats, each explained in `docs/raft.md`:
- A configuration is in force once applied, not once appended.
- A lease must be shorter than `election_ticks_min - 1` ticks, on the slowest clock of the cluster.
- A replica that has just started neither votes nor campaigns for `election_ticks_min`.
- `messages_after_sync` wait for the writes of all earlier Readys too, even if their own has none.
- A replica that was removed may never hear of it; destroying it is the host's decision.
- Damage that shows itself raises `Corrupt`; the host must stop that replica.
"""

from kvstore.raft.core import Core
from kvstore.raft.membership import Change
from kvstore.raft.refusals import NotLeader, ProposalDropped
from kvstore.raft.restored import NO_SNAPSHOT, Restored
from kvstore.raft.role import Role
from kvstore.raft.settings import RaftSettings

__all__ = [
    "NO_SNAPSHOT",
    "Change",
    "Core",
    "NotLeader",
    "ProposalDropped",
    "RaftSettings",
    "Restored",
    "Role",
]
