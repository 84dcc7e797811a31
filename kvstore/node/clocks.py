"""Shard clocks on this node: heard from leaders, kept over a restart, told to whoever builds a deadline.

Every replica runs its shard's clock on from what the newest leader has told, by CLOCK_BOOTTIME. So whoever
is elected goes on where the clock is, and a failover moves a deadline by little. What is heard was true when
it was sent, time only adds to it, and a follower counts time so slowly that no two crystals differ as much:
no estimate is ahead of that leader's clock, however long a follower was cut off.

The word of a newer leader counts also where it is lower. A leader that knew the clock a little late has set
deadlines by its own; who slept through its time, and would have been ahead, must not go on from there.

A leader tells its clocks in every beat where something is due some day, and all of them now and then. A
process that starts knows the clock of its last log record, hence one record for all shards with deadlines
every `LOG_EVERY_S`: that much, and the outage, is what a deadline moves when all nodes are lost at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from kvstore.types import NodeId, ShardId, Term, node_of
from kvstore.wal import ClockRecord

if TYPE_CHECKING:
    from kvstore.node.host import Host

LOG_EVERY_S: Final = 10.0
TELL_ALL_EVERY: Final = 10
"""Every so-manieth beat carries the clocks of all shards led here, with and without deadlines."""
HEARD_FOR_S: Final = 60.0
"""How long a clock that was heard may be run on here, for a shard whose leader is elsewhere: should all its
replicas stand still meanwhile, its clock does too."""

Clocks = tuple[tuple[ShardId, int, Term], ...]


class ShardClocks:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._heard: dict[ShardId, tuple[int, float]] = {}
        """The newest clock that a leader told, and when."""

    def start(self) -> None:
        self._host.runtime.call_later(LOG_EVERY_S, self._log)

    def restore(self, clocks: Mapping[ShardId, int]) -> None:
        """Take over what an earlier life of this node has logged."""
        now = self._host.runtime.now()
        for shard, clock_ms in clocks.items():
            replica = self._host.replicas.get(shard)
            if replica is not None:
                replica.restore_clock(clock_ms, now)

    def hear(self, shard: ShardId, clock_ms: int, term: Term | None = None) -> None:
        """The leader of `term`, or who has an answer of some leader, says that the shard's clock is this."""
        now = self._host.runtime.now()
        self._heard[shard] = (clock_ms, now)
        replica = self._host.replicas.get(shard)
        if replica is not None and term is not None:
            replica.hear_clock(clock_ms, term, now)

    def of(self, shard: ShardId) -> int | None:
        """The shard's clock (ms) by what is known here, or None. Never ahead of it, unless the shard had no
        leader for a while."""
        now = self._host.runtime.now()
        replica = self._host.replicas.get(shard)
        if replica is not None and replica.led_term is not None:
            return replica.stamp_ms(now)
        heard_ms, heard_at = self._heard.get(shard, (0, -HEARD_FOR_S))
        age_s = now - heard_at
        return None if age_s >= HEARD_FOR_S else heard_ms + int(age_s * 1000)

    def told(self, number: int) -> dict[NodeId, list[tuple[ShardId, int, Term]]]:
        """What beat `number` tells each node."""
        now = self._host.runtime.now()
        tells_all = number % TELL_ALL_EVERY == 0
        told: dict[NodeId, list[tuple[ShardId, int, Term]]] = {}
        for shard, replica in self._host.replicas.items():
            if replica.led_term is None or not (tells_all or replica.machine.next_deadline_ms is not None):
                continue
            line = (shard, replica.stamp_ms(now), replica.led_term)
            for member in replica.core.configuration.members():
                if member != replica.me:
                    told.setdefault(node_of(member), []).append(line)
        return told

    def _log(self) -> None:
        host = self._host
        if host.is_stopped:
            return
        now = host.runtime.now()
        clocks = tuple(
            (shard, replica.stamp_ms(now))
            for shard, replica in sorted(host.replicas.items())
            if replica.machine.next_deadline_ms is not None
        )
        if clocks:
            host.log.add([ClockRecord(clocks)], None)
            host.schedule_pass()
        host.runtime.call_later(LOG_EVERY_S, self._log)
