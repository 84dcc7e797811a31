"""The random network is worth its time: it finds bugs planted in the core within its usual seeds."""

from collections.abc import Callable

import pytest

from kvstore.errors import Fatal
from kvstore.raft import Core, candidate, follower, output
from kvstore.raft.log import RaftLog
from kvstore.raft.messages import AppendRequest, HardState, VoteRequest
from kvstore.types import LogIndex, Term
from tests.unit.raft.test_random_network import SETTINGS, Chaos


def vote_for_any_log(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RaftLog, "is_up_to_date", lambda _log, _index, _term: True)


def vote_twice(patch: pytest.MonkeyPatch) -> None:
    grant = candidate.on_vote_request

    def forgetful(core: Core, message: VoteRequest) -> None:
        if message.term == core.term and core.role.value == "follower" and core.leader is None:
            core.vote = None
        grant(core, message)

    patch.setattr(candidate, "on_vote_request", forgetful)


def vote_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "send_after_sync", Core.send_now)


def trust_the_leaders_commit_blindly(patch: pytest.MonkeyPatch) -> None:
    take = follower.on_append

    def blind(core: Core, message: AppendRequest) -> None:
        take(core, message)
        if core.leader == message.source and message.commit > core.commit:
            core.commit = LogIndex(min(message.commit, core.log.last_index))

    patch.setitem(follower.HANDLERS, AppendRequest, blind)
    for handlers in _handlers():
        patch.setitem(handlers, AppendRequest, blind)


def _handlers() -> list[dict[type, object]]:
    from kvstore.raft.core import _HANDLERS

    return [handlers for role, handlers in _HANDLERS.items() if role.value != "leader"]  # type: ignore[misc]


def count_overwritten_writes(patch: pytest.MonkeyPatch) -> None:
    def truncate(log: RaftLog, index: LogIndex) -> None:
        kept = [flight.last_index for flight in log.flights]
        cut(log, index)
        for flight, last_index in zip(log.flights, kept, strict=True):
            flight.last_index = last_index

    cut = RaftLog.truncate
    patch.setattr(RaftLog, "truncate", truncate)


def match_any_previous_term(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RaftLog, "matches", lambda log, index, _term: log.term_at(index) is not None)


def forget_to_write_the_term(patch: pytest.MonkeyPatch) -> None:
    def write_nothing(core: Core, _has_log_writes: bool) -> None:
        core.written = HardState(core.term, core.vote, core.commit)

    patch.setattr(output, "_hard_state_to_write", write_nothing)


def confirm_reads_with_the_last_round(patch: pytest.MonkeyPatch) -> None:
    read = Core.read

    def at_once(core: Core, context: int) -> None:
        if core.is_leader:
            core.reads_ready.append((context, core.commit))
        else:
            read(core, context)

    patch.setattr(Core, "read", at_once)


def start_a_term_that_is_taken(patch: pytest.MonkeyPatch) -> None:
    become = Core.become_candidate

    def again(core: Core) -> None:
        become(core)
        core.term = Term(core.term - 1)

    patch.setattr(Core, "become_candidate", again)


QUICKLY_FOUND = [
    vote_for_any_log,
    vote_twice,
    vote_before_the_sync,
    forget_to_write_the_term,
    confirm_reads_with_the_last_round,
    start_a_term_that_is_taken,
]
RARE = [trust_the_leaders_commit_blindly, count_overwritten_writes, match_any_previous_term]


@pytest.mark.parametrize(
    "plant",
    [*QUICKLY_FOUND, *(pytest.param(plant, marks=pytest.mark.slow) for plant in RARE)],
    ids=lambda plant: plant.__name__,
)
def test_random_network_finds(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(200):
        try:
            Chaos(seed, steps=1000).run()
        except (AssertionError, Fatal):
            return
    pytest.fail(f"survives {seed + 1} seeds with {SETTINGS}")
