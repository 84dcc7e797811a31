"""Known bugs, switched on by KVSTORE_MUTANT in a node that finds this directory on its PYTHONPATH.

A chaos run that finds nothing proves something only if the same run finds these. Python loads this module by
its name when the process starts; without the variable it does nothing.
"""

import os
from collections.abc import Callable
from typing import Any


def reads_without_quorum() -> None:
    """A leader serves reads at its commit index without asking whether it still leads (thesis 6.4), and
    does not step down when it has not heard from a quorum, which would hide the fault most of the time."""
    from kvstore.raft import leader
    from kvstore.raft.core import Core

    def read(core: Any, context: int) -> None:
        if core.is_leader:
            core.reads_ready.append((context, core.commit))
            core.flush_wanted = True
        else:
            core.reads_lost.append(context)

    setattr(leader, "_check_quorum", lambda core: True)  # noqa: B010
    setattr(Core, "read", read)  # noqa: B010 - a plain assignment needs an ignore


def reads_anywhere() -> None:
    """A follower answers a linearizable read from what it has applied, without asking its leader."""
    from kvstore.node.router import Router

    then: Any = Router.read_then

    def read_then(self: Any, shard: Any, query: Any, consistency: str, *others: Any, **named: Any) -> None:
        then(self, shard, query, "stale", *others, **named)

    setattr(Router, "read_then", read_then)  # noqa: B010


def elects_anyone() -> None:
    """A vote is granted to a candidate whose log lacks committed entries (Raft 5.4.1)."""
    from kvstore.raft.log import RaftLog

    def is_up_to_date(self: Any, last_index: int, last_term: int) -> bool:
        return True

    setattr(RaftLog, "is_up_to_date", is_up_to_date)  # noqa: B010


def acknowledged_by_one() -> None:
    """A leader commits what its own disk holds, without counting a quorum (Raft 5.3)."""
    from kvstore.raft import leader

    def advance_commit(core: Any) -> None:
        index, commit = core.own_progress.match, core.commit
        if index <= commit or index < core.term_start:
            return
        for entry in core.log.between(commit, index):
            core.uncommitted_bytes -= len(entry.payload)
        core.commit_to(index)
        core.settled_round = core.round
        core.flush_wanted = True

    leader.advance_commit = advance_commit


def retries_run_again() -> None:
    """A repeated write is executed again instead of being answered from its record."""
    from kvstore.store import sessions

    run: Any = vars(sessions)["apply_ops"]
    answer: Any = vars(sessions)["CommandResult"]

    def resume(self: Any, draft: Any, command: list[Any], session: Any, is_stale: bool) -> Any:
        return answer(False, run(draft, command[1:]))

    setattr(sessions.Sessions, "_resume", resume)  # noqa: B010 - a plain assignment needs an ignore


def syncs_do_nothing() -> None:
    """What is acknowledged is in the memory of the machine only."""

    def sync(fd: Any) -> None:
        return None

    os.fsync = os.fdatasync = sync


def acknowledged_before_sync() -> None:
    """What is acknowledged is synced up to two seconds later."""
    import time

    sync, last_s = os.fdatasync, [0.0]

    def sync_later(fd: Any) -> None:
        if time.monotonic() > last_s[0] + 2:
            last_s[0] = time.monotonic()
            sync(fd)

    os.fdatasync = sync_later


MUTANTS: dict[str, Callable[[], None]] = {
    "reads-without-quorum": reads_without_quorum,
    "reads-anywhere": reads_anywhere,
    "elects-anyone": elects_anyone,
    "acknowledged-by-one": acknowledged_by_one,
    "retries-run-again": retries_run_again,
    "acknowledged-before-sync": acknowledged_before_sync,
    "syncs-do-nothing": syncs_do_nothing,
}

if name := os.environ.get("KVSTORE_MUTANT"):
    MUTANTS[name]()
