"""Brings transactions to their end whose coordinator does not: each leader looks after its shard.

A prepare younger than `ASK_S` is left alone: its coordinator is at it. After that the other participants are
asked for their votes, and when all are in, everybody knows the decision and this carries it out. Only past
`FORCE_S` a participant that knows nothing is made to say no for good. So readers and writers that meet a slow
transaction wait for it and never kill it (pitfall 45), and a dead one holds its keys a little above two
seconds. A participant without a quorum can not be asked: what it has to say is what everybody waits for.

To be asked about is work too: an entry for each participant. On nodes that are too busy every transaction is
slow, and if all of them were asked about, by all their leaders, again and again, that alone would keep them
busy for ever. So the leaders of the first participants ask before the others, all of them ask less often the
older a transaction is, and how early follows from how long it takes to ask, also in vain.

A committed record is kept until every participant has carried out the decision; after `REMIND_S` this tells
those that may have missed it. They hold keys, and so have asked long before.
"""

from __future__ import annotations

from typing import Any, Final

from kvstore.errors import KvError
from kvstore.node.flow import gather, spawn
from kvstore.node.host import Host
from kvstore.node.replica import Replica
from kvstore.node.router import Router
from kvstore.node.transactions import Vote, vote_of
from kvstore.store import commands, txn_commands
from kvstore.store.intents import Pending
from kvstore.store.transactions import COMMITTED, NO, UNKNOWN, YES, outcome_of
from kvstore.types import ShardId

LOOK_EVERY_S: Final = 0.25
ASK_S: Final = 0.25
FORCE_S: Final = 2.0
ROUNDS: Final = 6
"""So many times what asking takes at present, a living coordinator is surely given."""
ROUND_DECAY: Final = 0.9
"""What asking took counts less with each look."""
AGAIN_S_MAX: Final = 3.0
LATER: Final = 2
"""The second participant's leader waits twice as long as the first, the others once more as long."""
REMIND_S: Final = 3.0
"""A transaction carried out here for so long was surely meant to be finished by now: are the others done?"""
DEADLINE_S: Final = 2.0
AT_ONCE_MAX: Final = 64
"""Transactions that one node brings to their end at a time."""


class Recovery:
    def __init__(self, host: Host, router: Router) -> None:
        self._host = host
        self._router = router
        self._busy: set[tuple[ShardId, bytes]] = set()
        self._again: dict[tuple[ShardId, bytes], float] = {}
        """When those that were asked about in vain are asked about again."""
        self._round_s = 0.0
        """What it takes at present to ask, or tell, all participants."""
        self.finished = 0
        """Transactions that this node has brought to their end."""

    def start(self) -> None:
        self._host.runtime.call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        if self._host.is_stopped:
            return
        now = self._host.runtime.now()
        self._round_s *= ROUND_DECAY
        self._again = {place: at for place, at in self._again.items() if at > now}
        for replica in list(self._host.replicas.values()):
            if replica.led_term is not None and replica.machine.intents.pending and replica.has_applied_all:
                self._look_at(replica, now)
        self._host.runtime.call_later(LOOK_EVERY_S, self._look)

    def _look_at(self, replica: Replica, now: float) -> None:
        clock_ms = replica.stamp_ms(now)
        for txid, pending in list(replica.machine.intents.pending.items()):
            place = (replica.shard, txid)
            age_s = (clock_ms - pending.since_ms) / 1000
            if age_s < self._wait_s(replica.shard, pending) or place in self._busy or place in self._again:
                continue
            if len(self._busy) >= AT_ONCE_MAX:
                return
            self._busy.add(place)
            spawn(self._bring_to_end(replica.shard, txid, pending, age_s))

    def _wait_s(self, shard: ShardId, pending: Pending) -> float:
        """The age from which on a transaction is looked after here."""
        if pending.is_committed:
            return REMIND_S
        rank = next(number for number, each in enumerate(pending.participants) if each[0] == shard)
        return min(FORCE_S, max(ASK_S, ROUNDS * self._round_s)) * (1 + min(rank, LATER))

    async def _bring_to_end(self, shard: ShardId, txid: bytes, pending: Pending, age_s: float) -> None:
        try:
            if pending.is_committed:
                await self._spread(txid, pending, pending.branch)
            else:
                await self._decide(shard, txid, pending, force=age_s >= FORCE_S)
        except KvError:
            # Somebody could not be reached: the next look tries again.
            return
        finally:
            self._busy.discard((shard, txid))
            self._again[shard, txid] = self._host.runtime.now() + min(age_s, AGAIN_S_MAX)

    async def _decide(self, shard: ShardId, txid: bytes, pending: Pending, *, force: bool) -> None:
        others = [each for each in pending.participants if each[0] != shard]
        asks = [
            (ShardId(other), txn_commands.ask(txid, not_after_ms, force=force))
            for other, not_after_ms in others
        ]
        votes = await self._write(asks)
        branches = [bool(vote.result[2][3]) for vote in votes if vote.says(COMMITTED)]
        if branches:
            await self._spread(txid, pending, branches[0])
        elif any(vote.says(NO) for vote in votes):
            await self._drop(txid, pending)
        elif all(vote.says(YES) for vote in votes):
            by_shard = {other[0]: vote.result[2] for other, vote in zip(others, votes, strict=True)}
            assert pending.vote is not None, "a decided transaction is not decided again"
            by_shard[shard] = pending.vote
            outcome = outcome_of([by_shard[each[0]] for each in pending.participants])
            if outcome.commits:
                await self._spread(txid, pending, outcome.branch)
            else:
                await self._drop(txid, pending)

    async def _spread(self, txid: bytes, pending: Pending, branch: bool) -> None:
        """Commit it wherever it is not yet; then it is finished."""
        votes = await self._tell_all(pending, txn_commands.decide(txid, commit=True, branch=branch))
        # Who knows nothing of it any more has carried it out, and was told that all have.
        if all(vote.says(COMMITTED) or vote.says(UNKNOWN) for vote in votes):
            self.finished += 1
            await self._tell_all(pending, txn_commands.finish([txid]))

    async def _drop(self, txid: bytes, pending: Pending) -> None:
        await self._tell_all(pending, txn_commands.decide(txid, commit=False))
        self.finished += 1

    async def _tell_all(self, pending: Pending, op: commands.Op) -> list[Vote]:
        return await self._write([(ShardId(shard), op) for shard, _ in pending.participants])

    async def _write(self, ops: list[tuple[ShardId, Any]]) -> list[Vote]:
        begun = self._host.runtime.now()
        votes = await gather(
            [
                vote_of(self._router.write(shard, commands.encode(None, (op,)), True, begun + DEADLINE_S))
                for shard, op in ops
            ]
        )
        self._round_s = max(self._round_s, self._host.runtime.now() - begun)
        return votes
