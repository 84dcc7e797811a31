"""Bugs in what has a deadline, and in watches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from kvstore.node import replica
from kvstore.node.lease_ends import LeaseEnds
from kvstore.node.replica import Replica
from kvstore.node.watch import positions
from kvstore.node.watch.feed import Feed, Run
from kvstore.store import apply, commands, expiry, lease_commands, leases
from kvstore.store.results import Result
from tests.sim.plant import planted

AHEAD_MS = 600


@planted(3, "what is due is judged by somebody's idea of the time, not by the clock of the entry")
def expires_early() -> Iterator[None]:
    carry_out = expiry.apply_expire

    def early(draft: Any, op: commands.Op) -> Result:
        draft.clock_ms += AHEAD_MS
        try:
            return carry_out(draft, op)
        finally:
            draft.clock_ms -= AHEAD_MS

    with patch.dict(apply.APPLY, {commands.EXPIRE: early}):
        yield


@planted(4, "a new leader's clock goes on from its last entry: what has passed without writes is forgotten")
def idle_time_forgotten() -> Iterator[None]:
    run_clock = Replica.run_clock

    def anew(self: Replica, now: float) -> None:
        was = self.clock_term
        run_clock(self, now)
        if self.led_term is not None and self.clock_term != was:
            self._set_clock(self.machine.clock_ms, self.led_term, now)

    with patch.object(Replica, "run_clock", anew):
        yield


@planted(4, "a follower counts time as its leader does: after a long silence a quick crystal is ahead")
def quick_crystal_believed() -> Iterator[None]:
    with patch.object(replica, "FOLLOWED_PACE", 1000):
        yield


@planted(43, "a lease that is kept alive dies by the deadline of its grant")
def renewals_forgotten() -> Iterator[None]:
    def renew(draft: Any, op: commands.Op) -> Result:
        found = [leases.find(draft, lease_id) for lease_id in op[1]]
        return [0, [None if lease is None else [lease.ttl_ms, lease.ttl_ms] for lease in found]]

    with patch.dict(apply.APPLY, {lease_commands.RENEW: renew}):
        yield


@planted(43, "only who revokes a lease tells the shards of its keys; nobody follows up")
def ends_not_followed_up() -> Iterator[None]:
    with patch.object(LeaseEnds, "sweep", lambda self: None):
        yield


@planted(24, "a watch goes on behind what was compacted, and says nothing")
def compacted_changes_left_out() -> Iterator[None]:
    def skip(self: Feed, run: Run, oldest: int) -> None:
        run.at = positions.before(oldest)

    with patch.object(Feed, "_skip_to", skip):
        yield
