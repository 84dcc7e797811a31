"""Carries the ends of leases to the shards of their keys: each home's leader, until all have acknowledged.

What has ended and who must still be told is in the home's tablet, so whoever leads next goes on. Telling
twice is harmless. A lease with very many keys goes in slices, a few in each tick, and a shard that does
not answer holds up nobody but its own keys.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from kvstore.errors import KvError
from kvstore.node.flow import gather, spawn
from kvstore.node.host import Host
from kvstore.node.leases import LeaseRouter, tell_shard
from kvstore.node.replica import Replica
from kvstore.store.leases import REVOKED
from kvstore.types import ShardId

log = logging.getLogger(__name__)

NODE_KEYS: Final = 100
"""Keys that this node has deleted in a tick, over all shards."""
SLICE_MIN: Final = 20
GRANTS: Final = 100
"""Ended grants that one round takes up."""
DEADLINE_S: Final = 2.0
SHUNNED_S: Final = 2.0
REVOKER_S: Final = 1.0
"""Whoever revoked is telling the shards: for so long nobody else needs to."""
BACK_OFF_S: Final = 0.1
BACK_OFF_MAX_S: Final = 1.6


class _Home:
    """What the driver remembers of one home shard, while its replica leads."""

    __slots__ = ("after", "back_off_s", "first_seen", "is_busy", "until")

    def __init__(self) -> None:
        self.after = 0
        """Generation up to which the present turn has looked."""
        self.is_busy = False
        self.until = 0.0
        self.back_off_s = 0.0
        self.first_seen: dict[int, float] = {}
        """Revoked grants, which others are busy with."""


class LeaseEnds:
    def __init__(self, host: Host, router: LeaseRouter) -> None:
        self._host = host
        self._router = router
        self._homes: dict[ShardId, _Home] = {}
        self._shunned: dict[ShardId, float] = {}
        """Until when shards that did not answer are left alone."""

    def sweep(self) -> None:
        """Each tick: one round for every home that has something to tell."""
        now = self._host.runtime.now()
        open_homes = []
        for shard, replica in self._host.replicas.items():
            if replica.led_term is None or not replica.machine.has_lease_ends:
                if shard in self._homes:
                    del self._homes[shard]
                continue
            home = self._homes.setdefault(shard, _Home())
            if not home.is_busy and home.until <= now:
                open_homes.append((replica, home))
        for replica, home in open_homes:
            home.is_busy = True
            outcome = spawn(self._round(replica, home, NODE_KEYS // len(open_homes), now))
            outcome.on_done(lambda settled: self._report(settled.error))

    @staticmethod
    def _report(error: BaseException | None) -> None:
        if error is not None:
            log.error("telling ends of leases failed", exc_info=error)

    async def _round(self, replica: Replica, home: _Home, room: int, now: float) -> None:
        try:
            progress = await self._tell(replica, home, room, now)
        finally:
            home.is_busy = False
        if progress:
            home.back_off_s = 0.0
        elif home.after == 0:
            home.back_off_s = min(max(BACK_OFF_S, 2 * home.back_off_s), BACK_OFF_MAX_S)
        home.until = self._host.runtime.now() + home.back_off_s

    async def _tell(self, replica: Replica, home: _Home, room: int, now: float) -> int:
        """One round; how many grants or keys it got rid of."""
        rows = replica.machine.query(["lease_ends", home.after, GRANTS])
        home.after = rows[-1][0] if len(rows) == GRANTS else 0
        by_shard: dict[ShardId, list[list[Any]]] = {}
        for generation, lease_id, kind, shards in rows:
            if kind == REVOKED and self._is_young(home, generation, now):
                continue
            for shard in shards:
                if self._shunned.get(shard, 0.0) <= now:
                    by_shard.setdefault(shard, []).append([lease_id, generation, kind])
        if not by_shard:
            return 0
        limit = max(SLICE_MIN, room // len(by_shard))
        rounds = [
            spawn(self._tell_one(replica.shard, shard, grants, limit, now + DEADLINE_S))
            for shard, grants in by_shard.items()
        ]
        return sum(await gather(rounds))

    @staticmethod
    def _is_young(home: _Home, generation: int, now: float) -> bool:
        if len(home.first_seen) > 10 * GRANTS:
            home.first_seen.clear()
        return now - home.first_seen.setdefault(generation, now) < REVOKER_S

    async def _tell_one(
        self, home: ShardId, shard: ShardId, grants: list[list[Any]], limit: int, deadline: float
    ) -> int:
        try:
            return sum(await tell_shard(self._router, home, shard, grants, limit, deadline))
        except KvError:
            self._shunned[shard] = self._host.runtime.now() + SHUNNED_S
            return 0
