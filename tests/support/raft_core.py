"""One Raft core on its own, with peers that are nothing but messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from kvstore.raft import NO_SNAPSHOT, Core, RaftSettings, Restored
from kvstore.raft.messages import (
    NORMAL,
    AppendReply,
    AppendRequest,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    Ready,
    SnapshotMeta,
    VoteReply,
    VoteRequest,
)
from kvstore.types import LogIndex, ReplicaId, Term
from tests.support.raft_group import QUICK, rid, voters

M = TypeVar("M")


def entries(*terms: int, first: int = 1) -> tuple[Entry, ...]:
    return tuple(
        Entry(LogIndex(index), Term(term), NORMAL, b"x") for index, term in enumerate(terms, start=first)
    )


def make_core(
    *terms: int,
    configuration: Configuration | None = None,
    term: int | None = None,
    vote: ReplicaId | None = None,
    commit: int = 0,
    applied: int = 0,
    settings: RaftSettings = QUICK,
    fresh: bool = False,
    stored: Sequence[Entry] | None = None,
    **more: Any,
) -> Core:
    """Restore n1 with a log of the given terms; by default past the period in which it does not vote."""
    log = entries(*terms) if stored is None else tuple(stored)
    at_least = log[-1].term if log else 0
    restored = Restored(
        HardState(Term(at_least if term is None else term), vote, LogIndex(commit)),
        log,
        NO_SNAPSHOT,
        LogIndex(applied),
        voters(1, 2, 3) if configuration is None else configuration,
    )
    core = Core(rid(1), settings, restored, lambda low, _high: low, **more)
    if not fresh:
        core.ticks, core.promise_left = settings.election_ticks_min, 0
    return core


def work(core: Core) -> list[Ready]:
    """Do everything the core asks for; syncs complete at once."""
    readies = []
    while core.has_ready():
        ready = core.take_ready()
        readies.append(ready)
        core.persisted(ready.number)
        if ready.committed:
            core.applied(ready.committed[-1].index)
    return readies


def sent(core: Core) -> list[Message]:
    """Work, and return all messages that left."""
    return [message for ready in work(core) for message in (*ready.messages_now, *ready.messages_after_sync)]


def only(messages: Sequence[Message], kind: type[M]) -> list[M]:
    return [message for message in messages if isinstance(message, kind)]


def campaign(core: Core) -> list[Message]:
    """Let time pass until it asks for votes."""
    core.elapsed = core.election_timeout - 1
    core.tick()
    return sent(core)


def make_leader(*terms: int, **options: Any) -> Core:
    """A leader of n1, n2, n3 (or `configuration`), elected with everybody's vote just now."""
    core = make_core(*terms, **options)
    peers = [peer for peer in core.configuration.members() if peer != core.me]
    campaign(core)
    for peer in peers:
        core.step(
            VoteReply(
                source=peer, target=core.me, term=Term(core.term + 1), is_granted=True, is_pre_vote=True
            )
        )
    work(core)
    for peer in peers:
        core.step(VoteReply(source=peer, target=core.me, term=core.term, is_granted=True, is_pre_vote=False))
    assert core.is_leader
    return core


def accept(core: Core, number: int, index: int | None = None, **fields: Any) -> None:
    """n<number> answers that it matches up to `index`, by default to the end of the log."""
    at = core.last_index if index is None else index
    route = {"source": rid(number), "target": core.me, "term": core.term}
    answer = {"is_rejected": False, "hint_index": 0, "hint_term": 0, "round": core.round}
    core.step(AppendReply(**(route | answer | {"index": at} | fields)))  # type: ignore[arg-type]


def reject(core: Core, number: int, index: int, hint: tuple[int, int], **fields: Any) -> None:
    accept(core, number, index, is_rejected=True, hint_index=hint[0], hint_term=hint[1], **fields)


def alive(core: Core, number: int, round_number: int | None = None, term: int | None = None) -> None:
    core.step(
        HeartbeatReply(
            source=rid(number),
            target=core.me,
            term=core.term if term is None else Term(term),
            round=core.round if round_number is None else round_number,
        )
    )


def settled_leader(*terms: int, **options: Any) -> Core:
    """A leader whose first entry everybody has and knows to be committed."""
    core = make_leader(*terms, **options)
    work(core)
    for peer in core.peers:
        accept(core, int(peer.replica[1]))
    work(core)
    return core


def append(term: int, prev: tuple[int, int], *terms: int, source: int = 2, **fields: Any) -> AppendRequest:
    request = {
        "source": rid(source),
        "target": rid(1),
        "term": Term(term),
        "prev_index": prev[0],
        "prev_term": prev[1],
        "commit": 0,
        "round": 1,
        "entries": entries(*terms, first=prev[0] + 1),
    }
    return AppendRequest(**(request | fields))  # type: ignore[arg-type]


def beat(term: int, commit: int = 0, round_number: int = 1, source: int = 2) -> Heartbeat:
    return Heartbeat(
        source=rid(source), target=rid(1), term=Term(term), commit=LogIndex(commit), round=round_number
    )


def ask_vote(term: int, last: tuple[int, int], source: int = 2, **fields: Any) -> VoteRequest:
    request = {
        "source": rid(source),
        "target": rid(1),
        "term": Term(term),
        "last_index": last[0],
        "last_term": last[1],
        "is_pre_vote": False,
        "is_transfer": False,
        "clock_ms": 0,
    }
    return VoteRequest(**(request | fields))  # type: ignore[arg-type]


def meta(index: int, term: int, configuration: Configuration | None = None) -> SnapshotMeta:
    return SnapshotMeta(
        LogIndex(index), Term(term), voters(1, 2, 3) if configuration is None else configuration
    )
