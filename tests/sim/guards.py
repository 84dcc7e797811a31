"""Guards that more than one test takes away, to show that it would notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvstore.node.host import Host
from kvstore.node.log_writer import LogWriter, Promise
from kvstore.node.replica import Replica
from kvstore.raft.messages import Ready
from kvstore.store.apply import apply_ops
from kvstore.store.draft import Draft
from kvstore.store.results import CommandResult
from kvstore.store.sessions import Sessions
from kvstore.wal import Record

Remove = Callable[[pytest.MonkeyPatch], None]


def acknowledge_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    def submit(
        writer: LogWriter,
        records: list[Record],
        promises: list[Promise],
        callbacks: list[Callable[[], None]],
        *,
        is_inline: bool = False,
    ) -> None:
        writer._runtime.in_thread(lambda: writer._wal.append(records), lambda _, error: None, lane="wal")
        writer._completed(promises, callbacks)

    patch.setattr(LogWriter, "_submit", submit)


def promise_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    """Votes and acknowledgements leave at once; only what a replica counts itself waits."""

    def persist(host: Host, replica: Replica, ready: Ready) -> None:
        host._post_raft(replica, ready.messages_after_sync)
        replica.unsynced_readies += 1
        host.log.add(host._records(replica, ready), Promise(replica, ready.number, ()))

    patch.setattr(Host, "_persist", persist)


def execute_every_time(patch: pytest.MonkeyPatch) -> None:
    """Writes that were tried before are done again."""

    def run(sessions: Sessions, draft: Draft, command: list[Any]) -> CommandResult:
        return CommandResult(False, apply_ops(draft, command[1:]))

    patch.setattr(Sessions, "run", run)
