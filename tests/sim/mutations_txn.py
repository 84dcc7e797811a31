"""Bugs in transactions: in locks, votes, decisions, their coordinators and their recovery."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import msgspec

from kvstore.node import recovery, transactions
from kvstore.node.transactions import Vote
from kvstore.store import mvcc
from kvstore.store import transactions as store_transactions
from kvstore.store.intents import Intents
from kvstore.store.sessions import Sessions
from kvstore.store.transactions import YES
from tests.sim.plant import planted


@planted(32, "a shard forgets which requests it has carried out as parts of transactions")
def carried_out_forgotten() -> Iterator[None]:
    with patch.object(Sessions, "result_of", lambda self, draft, whose: None):
        yield


@planted(32, "a coordinator takes a missing vote for a no, and tries again")
def missing_vote_is_a_no() -> Iterator[None]:
    with patch.object(transactions, "_is_final", lambda vote: not vote.says(YES)):
        yield


@planted(32, "a coordinator commits although a vote is missing")
def missing_vote_is_a_yes() -> Iterator[None]:
    says = Vote.says

    def believe(self: Vote, state: int) -> bool:
        return says(self, state) or (state == YES and self.is_missing)

    def result(self: Vote) -> list[Any]:
        return [0, YES, [True, None, None]] if self.answer is None else self.answer.result.results[0]

    with patch.object(Vote, "says", believe), patch.object(Vote, "result", property(result)):
        yield


@planted(33, "a no that was forced is not remembered, and a late prepare is taken")
def forced_no_forgotten() -> Iterator[None]:
    def forget(draft: Any, txid: bytes, not_after_ms: int) -> None:
        draft.intents.write(draft, txid, None)

    with patch.object(store_transactions, "_refuse", forget):
        yield


@planted(34, "keys that were only compared or read are not held")
def read_keys_not_held() -> Iterator[None]:
    hold = Intents.hold

    def hold_written(self: Intents, draft: Any, txid: bytes, record: Any) -> None:
        hold(self, draft, txid, msgspec.structs.replace(record, shared=[]))

    with patch.object(Intents, "hold", hold_written):
        yield


@planted(35, "single writes pass over the locks of transactions")
def writes_pass_locks() -> Iterator[None]:
    write_head, remove = mvcc.write_head, mvcc._remove

    def unlocked(work: Any) -> Any:
        def run(draft: Any, *arguments: Any) -> Any:
            locks, draft.intents.locks = draft.intents.locks, {}
            try:
                return work(draft, *arguments)
            finally:
                draft.intents.locks = locks

        return run

    with (
        patch.object(Intents, "meets", lambda self, draft, ops: False),
        patch.object(mvcc, "write_head", unlocked(write_head)),
        patch.object(mvcc, "_remove", unlocked(remove)),
    ):
        yield


@planted(35, "reads show what was before a transaction that is decided elsewhere")
def reads_pass_locks() -> Iterator[None]:
    with patch.object(Intents, "writers_met", lambda self, query: frozenset()):
        yield


@planted(45, "recovery commits what it finds prepared, without asking for the votes of others")
def recovery_asks_nobody() -> Iterator[None]:
    async def commit(self: Any, shard: Any, txid: bytes, pending: Any, *, force: bool) -> None:
        await self._spread(txid, pending, True)

    with patch.object(recovery.Recovery, "_decide", commit):
        yield


@planted(45, "recovery drops what it finds prepared, without making anybody say no")
def recovery_drops_at_once() -> Iterator[None]:
    async def drop(self: Any, shard: Any, txid: bytes, pending: Any, *, force: bool) -> None:
        await self._drop(txid, pending)

    with patch.object(recovery.Recovery, "_decide", drop):
        yield


@planted(45, "nobody ends what a dead coordinator has left")
def nobody_recovers() -> Iterator[None]:
    with patch.object(recovery.Recovery, "_look_at", lambda self, replica, now: None):
        yield
