"""A replica that comes back knows what it had promised: checked over the restarts of its node.

The core and its host are asked only what they said to others, and what they start with: no log is trusted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kvstore.node.replica import Replica
from kvstore.raft.messages import AppendReply, Message, Ready, VoteReply, VoteRequest
from kvstore.types import LogIndex, ReplicaId, ShardId, Term
from kvstore.wal import Record

if TYPE_CHECKING:
    from tests.sim.cluster import Process

Key = tuple[ShardId, ReplicaId]


class Vote(NamedTuple):
    term: Term
    given_to: ReplicaId


class End(NamedTuple):
    """Of a log, in Raft's order of logs."""

    term: Term
    last: LogIndex


class Durability:
    """`failures` gets what a replica has forgotten. Replicas in quarantine are hosted no more, and free."""

    def __init__(self, failures: list[str]) -> None:
        self._failures = failures
        self._votes: dict[Key, Vote] = {}
        self._ends: dict[Key, End] = {}
        self._acknowledged: dict[Key, End] = {}
        """The term of the leader to whom a replica said that its log matches, and up to where."""

    def watch(self, process: Process) -> None:
        host = process.node.host
        post, records = host._post_raft, host._records

        def posted(replica: Replica, messages: tuple[Message, ...], **more: Any) -> None:
            for message in messages:
                self._note(replica, message)
            post(replica, messages, **more)

        def recorded(replica: Replica, ready: Ready) -> list[Record]:
            if ready.truncate_after is not None:
                self._shorten(replica, ready.truncate_after, is_covered=ready.installed is not None)
            return records(replica, ready)

        host._post_raft = posted  # type: ignore[method-assign]
        host._records = recorded  # type: ignore[method-assign]
        process.before_add.append(self._check)

    def _note(self, replica: Replica, message: Message) -> None:
        key = (replica.shard, replica.me)
        if isinstance(message, VoteReply) and message.is_granted and not message.is_pre_vote:
            self._votes[key] = Vote(message.term, message.target)
        elif isinstance(message, VoteRequest) and not message.is_pre_vote:
            self._votes[key] = Vote(message.term, message.source)
        elif isinstance(message, AppendReply) and not message.is_rejected:
            known = self._acknowledged.get(key)
            self._acknowledged[key] = max(
                End(message.term, message.index), known or End(message.term, LogIndex(0))
            )
            term = replica.core.log.term_at(message.index)
            if term is not None:
                self._ends[key] = End(term, message.index)

    def _shorten(self, replica: Replica, index: LogIndex, *, is_covered: bool) -> None:
        """A truncation is on its way to the disk; it may be there after a crash, or not. `is_covered`: a
        snapshot takes the place of what goes."""
        key = (replica.shard, replica.me)
        known = self._acknowledged.get(key)
        if known is not None and not is_covered and known.term == replica.core.term and index < known.last:
            self._failures.append(
                f"shard {replica.shard}: {replica.me} cuts its log to {index}, but has acknowledged {known}"
            )
        end = self._ends.get(key)
        if end is not None and end.last > index:
            del self._ends[key]

    def _check(self, replica: Replica) -> None:
        core, key = replica.core, (replica.shard, replica.me)
        vote, end = self._votes.get(key), self._ends.get(key)
        where = f"shard {replica.shard}: {replica.me} has forgotten"
        if vote is not None and (
            core.term < vote.term or (core.term == vote.term and core.vote != vote.given_to)
        ):
            self._failures.append(f"{where} {vote}, it starts in term {core.term} with vote {core.vote}")
        if end is not None and (core.log.last_term, core.log.last_index) < end:
            self._failures.append(
                f"{where} {end}, its log ends at {core.log.last_index} of term {core.log.last_term}"
            )
