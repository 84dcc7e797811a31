"""What a replica promises is on its disk: checked against the log's own index when the promise leaves.

The core believes what its host tells it. Here nobody is believed: the log says what it has synced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstore.node.replica import Replica
from kvstore.raft.invariants import InvariantViolated
from kvstore.raft.messages import AppendReply, Message, VoteReply, VoteRequest
from kvstore.types import ReplicaId, Term
from kvstore.wal import HardStateRecord

if TYPE_CHECKING:
    from tests.sim.cluster import Process


def watch_promises(process: Process, failures: list[str]) -> None:
    """Look at every message that leaves a process life."""
    host = process.node.host
    post = host._post_raft

    def checked(replica: Replica, messages: tuple[Message, ...], **more: Any) -> None:
        for message in messages:
            try:
                _check(process, replica, message)
            except InvariantViolated as violation:
                failures.append(str(violation))
        post(replica, messages, **more)

    host._post_raft = checked  # type: ignore[method-assign]


def _check(process: Process, replica: Replica, message: Message) -> None:
    if isinstance(message, VoteReply) and message.is_granted and not message.is_pre_vote:
        check_vote(process, replica, message.term, message.target)
    elif isinstance(message, VoteRequest) and not message.is_pre_vote:
        check_vote(process, replica, message.term, message.source)
    elif isinstance(message, AppendReply) and not message.is_rejected and message.term == replica.core.term:
        log = process.node.wal._index.replicas.get((replica.shard, replica.incarnation))
        last = 0 if log is None else log.last
        if message.index > max(last, replica.core.log.base_index):
            raise InvariantViolated(
                f"shard {replica.shard}: {replica.me} acknowledges {message.index}, its log ends at {last}"
            )


def check_vote(process: Process, replica: Replica, term: Term, given_to: ReplicaId) -> None:
    """The vote of `term`, or a later term, is on disk."""
    log = process.node.wal._index.replicas.get((replica.shard, replica.incarnation))
    held = None if log is None else log.newest.get(HardStateRecord)
    state = None if held is None else held.record
    is_kept = isinstance(state, HardStateRecord) and (
        state.term > term or (state.term == term and state.vote == given_to)
    )
    if not is_kept:
        raise InvariantViolated(
            f"shard {replica.shard}: {replica.me} votes for {given_to} in term {term}, on disk is {state}"
        )
