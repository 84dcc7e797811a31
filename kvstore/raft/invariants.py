"""Every property we claim of one core and of a group; tests and the simulator check them after each step.

`check(core, previous)` compares one core with what it was a step ago. `check_cluster(cores, history)`
compares cores with each other and with everything the group has ever shown: who led which term, which
entry stands at (index, term), what was committed. Both cost about as much as what has changed.

Named after the Raft paper, figure 3, where a name exists. A violation is a bug here, never an input.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kvstore.raft import membership
from kvstore.raft.core import Core
from kvstore.raft.messages import Configuration, Entry
from kvstore.raft.progress import ProgressState
from kvstore.raft.role import Role
from kvstore.types import LogIndex, ReplicaId, Term


class InvariantViolated(AssertionError):
    """A claim does not hold; the message names the claim, the replica and the numbers."""


class View(NamedTuple):
    """What of a core the next check compares with."""

    term: Term
    vote: ReplicaId | None
    role: Role
    leader: ReplicaId | None
    commit: LogIndex
    applied: LogIndex
    last_index: LogIndex
    base_index: LogIndex
    truncations: int
    round: int
    lease_forbidden: bool
    configuration: Configuration


def _claim(holds: bool, core: Core, claim: str) -> None:
    if not holds:
        log = core.log
        raise InvariantViolated(
            f"{claim}: {core.me} {core.role.value} term={core.term} vote={core.vote} leader={core.leader} "
            f"base={log.base_index} applied={core.applied_index} emitted={core.emitted} commit={core.commit} "
            f"synced={log.synced} taken={log.taken} last={log.last_index}/{log.last_term}"
        )


def check(core: Core, previous: View | None = None) -> View:
    """Check one core, alone and against its `previous` view; return the view for the next check.

    A restarted core has no previous view.

    Raises:
        InvariantViolated: a claim does not hold.
    """
    _check_cursors(core)
    _check_log(core, previous)
    _check_role(core)
    if core.is_leader:
        _check_leader(core)
    if previous is not None:
        _check_step(core, previous)
    # Who joins knows no configuration until it has applied one.
    is_known = core.configuration != Configuration()
    if is_known and (previous is None or previous.configuration != core.configuration):
        membership.validate(core.configuration)
    log = core.log
    return View(
        term=core.term,
        vote=core.vote,
        role=core.role,
        leader=core.leader,
        commit=core.commit,
        applied=core.applied_index,
        last_index=log.last_index,
        base_index=log.base_index,
        truncations=log.truncations,
        round=core.round,
        lease_forbidden=core.lease_forbidden,
        configuration=core.configuration,
    )


def _check_cursors(core: Core) -> None:
    log = core.log
    is_installing = core.applied_index < log.base_index
    _claim(core.commit <= log.last_index, core, "nothing is committed that the log does not hold")
    _claim(core.applied_index <= core.emitted <= core.commit, core, "only committed entries are applied")
    _claim(log.base_index <= core.emitted, core, "the log is cut only below what was given to apply")
    _claim(log.taken <= log.last_index, core, "no more is taken than there is")
    if is_installing:
        _claim(
            core.pending_install is not None or any(flight.installed for flight in log.flights),
            core,
            "the log starts above what is applied only while a snapshot is being installed",
        )
    else:
        _claim(core.emitted <= log.synced, core, "no replica applies past its own synced index")
        _claim(log.synced <= log.taken, core, "nothing is synced that was not taken")
    numbers = [flight.number for flight in log.flights]
    _claim(numbers == sorted(set(numbers)), core, "writes land in the order they were taken")
    _claim(
        all(flight.last_index <= log.last_index for flight in log.flights),
        core,
        "a write under way counts for no entry that was voided since",
    )


def _check_log(core: Core, previous: View | None) -> None:
    """Indexes without a gap, terms that never fall; only what is new is looked at."""
    log = core.log
    start = log.base_index
    if previous is not None and previous.truncations == log.truncations:
        start = max(start, LogIndex(previous.last_index - 1))
    index, term = start, log.term_at(start)
    _claim(term is not None, core, "the term at the cut is known")
    for entry in log.between(start, log.last_index):
        index = LogIndex(index + 1)
        _claim(entry.index == index, core, f"entry {entry.index} stands at its index")
        _claim(term is None or entry.term >= term, core, f"terms do not fall at {entry.index}")
        term = entry.term
    _claim(log.last_term <= core.term, core, "no entry is of a term that has not begun here")
    changes = log.unapplied_configurations
    _claim(all(index > core.applied_index for index in changes), core, "an applied change is in force")
    _claim(len(changes) < 2 or changes[-2] <= core.commit, core, "one change of members at a time")


def _check_role(core: Core) -> None:
    _claim(core.is_leader == (core.role is Role.LEADER), core, "the leader knows its role")
    _claim(
        (core.leader == core.me) == core.is_leader, core, "nobody takes itself for the leader but the leader"
    )
    if core.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
        _claim(core.leader is None, core, "a candidate follows nobody")
    if core.role in (Role.CANDIDATE, Role.LEADER):
        _claim(core.vote == core.me, core, "who stands for election voted for itself")
    if core.is_fresh:
        _claim(core.role is Role.FOLLOWER, core, "a fresh replica does not campaign")
    if not core.is_leader:
        _claim(not core.progress and not core.peers, core, "only a leader tracks its peers")
        _claim(not core.reads, core, "reads wait only at a leader")
        _claim(core.transfer_target is None, core, "only a leader hands over")


def _check_leader(core: Core) -> None:
    log = core.log
    _claim(core.term_start <= log.last_index, core, "a leader's term starts with an entry of its own")
    _claim(
        log.base_index >= core.term_start or log.term_at(core.term_start) == core.term, core, "… of its term"
    )
    _claim(set(core.progress) == {*core.configuration.members(), core.me}, core, "every member is tracked")
    _claim(core.own_progress.match <= log.synced, core, "a leader counts itself only up to its own disk")
    _claim(core.confirmed_round <= core.round, core, "no round is confirmed before it is opened")
    _claim(
        core.transfer_target is None or core.transfer_target in core.configuration.voters, core, "heirs vote"
    )
    uncommitted = sum(len(entry.payload) for entry in log.between(core.commit, log.last_index))
    _claim(core.uncommitted_bytes == uncommitted, core, f"uncommitted bytes are {uncommitted}")
    _claim(not core.quiet or not core.reads, core, "a quiet leader keeps no read waiting")
    for peer in core.progress.values():
        _claim(
            peer.match < peer.next <= log.last_index + 1 or peer is core.own_progress, core, "match < next"
        )
        _claim(peer.match <= log.last_index, core, "nobody matches beyond the leader's log")
        _claim(peer.round <= core.round, core, "no answer is to a round that was not opened")
        _claim(peer.inflight_bytes == sum(size for _, size in peer.inflight), core, "window bytes add up")
        _claim(len(peer.inflight) <= core.settings.inflight_messages_max, core, "the window is kept")
        _claim(
            peer.state is ProgressState.REPLICATE or not peer.inflight, core, "only replication has a window"
        )


def _check_step(core: Core, previous: View) -> None:
    log = core.log
    _claim(core.term >= previous.term, core, f"terms only grow, was {previous.term}")
    _claim(core.commit >= previous.commit, core, f"commit only grows, was {previous.commit}")
    _claim(core.applied_index >= previous.applied, core, f"applied only grows, was {previous.applied}")
    _claim(log.base_index >= previous.base_index, core, f"the cut only rises, was {previous.base_index}")
    if core.term != previous.term:
        return
    _claim(previous.vote in (None, core.vote), core, f"one vote per term, was {previous.vote}")
    _claim(
        core.leader is None or previous.leader in (None, core.leader),
        core,
        f"one leader per term, was {previous.leader}",
    )
    if not core.is_leader or previous.role is not Role.LEADER:
        return
    _claim(log.truncations == previous.truncations, core, "Leader Append-Only")
    _claim(core.round >= previous.round, core, "rounds only grow")
    _claim(
        core.lease_forbidden or not previous.lease_forbidden, core, "a lease given up stays so for the term"
    )
    if core.commit > previous.commit:
        _claim(core.commit >= core.term_start, core, "only entries of the own term commit by counting")


class _Seen(NamedTuple):
    core: Core
    truncations: int
    checked_to: LogIndex
    commit_checked_to: LogIndex


class ClusterHistory:
    """What one group has shown so far, over all restarts of its members."""

    def __init__(self) -> None:
        self.leaders: dict[Term, ReplicaId] = {}
        self.entries: dict[tuple[LogIndex, Term], tuple[Term | None, Entry]] = {}
        """(index, term) → (term of the entry before it, entry)."""
        self.committed: dict[LogIndex, tuple[Term, Entry]] = {}
        """index → (term in which it was first known to be committed, entry)."""
        self._seen: dict[ReplicaId, _Seen] = {}

    def check(self, core: Core) -> None:
        seen = self._seen.get(core.me)
        log = core.log
        entries_from = commit_from = log.base_index
        if seen is not None and seen.core is core:
            commit_from = max(commit_from, seen.commit_checked_to)
            if seen.truncations == log.truncations:
                entries_from = max(entries_from, seen.checked_to)
        self._check_log_matching(core, entries_from)
        if core.is_leader and self.leaders.get(core.term) != core.me:
            self._check_election(core)
        self._check_committed(core, commit_from)
        self._seen[core.me] = _Seen(core, log.truncations, log.last_index, core.commit)

    def _check_log_matching(self, core: Core, start: LogIndex) -> None:
        """Two logs with the same (index, term) are equal up to there: by induction, if such an entry has
        one content and one predecessor wherever it appears."""
        log = core.log
        term_before = log.term_at(start)
        for entry in log.between(start, log.last_index):
            here = (term_before, entry)
            known = self.entries.setdefault((entry.index, entry.term), here)
            _claim(known == here, core, f"Log Matching at {entry.index}, known as {known}, here {here}")
            term_before = entry.term

    def _check_election(self, core: Core) -> None:
        _claim(core.term not in self.leaders, core, f"Election Safety, also {self.leaders.get(core.term)}")
        self.leaders[core.term] = core.me
        log = core.log
        for index, (commit_term, known) in self.committed.items():
            # A candidate may win late, when a later term has committed more: it is bound by what came before.
            if commit_term < core.term and index > log.base_index:
                holds = index <= log.last_index and log.entry(index) == known
                _claim(holds, core, f"Leader Completeness at {index}, committed in term {commit_term}")

    def _check_committed(self, core: Core, start: LogIndex) -> None:
        if core.commit <= start:
            return
        for entry in core.log.between(start, core.commit):
            _, known = self.committed.setdefault(entry.index, (core.term, entry))
            _claim(known == entry, core, f"State Machine Safety at {entry.index}: {known} and {entry}")


def check_cluster(cores: Iterable[Core], history: ClusterHistory | None = None) -> ClusterHistory:
    """Check the living cores of one group against each other and against `history`, which is extended.

    Raises:
        InvariantViolated: a claim does not hold.
    """
    history = history if history is not None else ClusterHistory()
    for core in sorted(cores, key=lambda core: core.me):
        history.check(core)
    return history
