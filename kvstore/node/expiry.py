"""Proposes the removal of what is due, on the shards led here, a paced few at a time.

What dies is decided by the entry and the tablet alone (`store/expiry.py`). This only says when to look: a
leader that knows, by its clock, that the first deadline has come proposes one EXPIRE, and the next one
when that was applied. It names its term and never travels to another node, so that a leader which slept
through its successor's election expires nothing (pitfall 3).

Thousands of keys that are due in one second must not hold up the writes beside them: each tick has a
budget, shared by the shards that have something due, each in its turn. The later they are the more it is,
so that no rate of writes with a TTL can outrun it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kvstore.node.calls import Answer, Call
from kvstore.node.host import Host
from kvstore.node.replica import Replica
from kvstore.store import commands
from kvstore.types import ShardId

DEADLINE_S: Final = 5.0


class ExpirySettings(msgspec.Struct, frozen=True):
    node_base: int = 50
    """Deadlines of all shards together that this node proposes in a tick, when nothing is late."""
    late_s: float = 10.0
    """When the first of them is so late it is four times as much, nine times at twice that, and so on."""
    node_max: int = 1000
    shard_min: int = 10
    """Fewer are not worth an entry: then not every shard has its turn in each tick."""
    back_off_s: float = 0.1
    """Wait, when transactions hold all that is due, doubled up to `back_off_max_s`."""
    back_off_max_s: float = 1.6


class _Wait:
    """What a shard's driver waits for."""

    __slots__ = ("back_off_s", "is_asking", "until")

    def __init__(self) -> None:
        self.is_asking = False
        self.until = 0.0
        self.back_off_s = 0.0


class Expiry:
    def __init__(self, host: Host, settings: ExpirySettings | None = None) -> None:
        self._host = host
        self._settings = settings or ExpirySettings()
        self._waits: dict[ShardId, _Wait] = {}
        self._turn = 0
        self.carried_out = 0

    def sweep(self) -> None:
        """Each tick: propose what is due."""
        now = self._host.runtime.now()
        due = [replica for replica in self._host.replicas.values() if self._is_due(replica, now)]
        if not due:
            return
        settings = self._settings
        budget = self._budget(due, now)
        limit = max(settings.shard_min, budget // len(due))
        room = max(1, budget // limit)
        first = self._turn % len(due)
        for replica in (due[first:] + due[:first])[:room]:
            self._propose(replica, limit, now)
        self._turn = first + room

    def _budget(self, due: list[Replica], now: float) -> int:
        late_ms = max(replica.stamp_ms(now) - (replica.machine.next_deadline_ms or 0) for replica in due)
        settings = self._settings
        share = 1 + max(0, late_ms) / (1000 * settings.late_s)
        return min(settings.node_max, int(settings.node_base * share**2))

    def _is_due(self, replica: Replica, now: float) -> bool:
        if replica.led_term is None:
            return False
        due_ms = replica.machine.next_deadline_ms
        if due_ms is None or due_ms > replica.stamp_ms(now) or not replica.has_applied_all:
            return False
        wait = self._waits.get(replica.shard)
        return wait is None or (not wait.is_asking and wait.until <= now)

    def _propose(self, replica: Replica, limit: int, now: float) -> None:
        assert replica.led_term is not None, "only a leader expires"
        wait = self._waits.setdefault(replica.shard, _Wait())
        wait.is_asking = True

        def done(answer: Any, error: BaseException | None) -> None:
            wait.is_asking = False
            self._judge(replica, wait, answer)

        command = commands.encode(None, [commands.expire(replica.led_term, limit)])
        # As if forwarded already: it must not follow the leadership to another node.
        replica.enqueue(Call(replica.shard, command, now + DEADLINE_S, done, is_forwarded=True))
        self._host.mark_dirty(replica)

    def _judge(self, replica: Replica, wait: _Wait, answer: Answer | None) -> None:
        count = 0 if answer is None else answer.result.results[0][2]
        self.carried_out += count
        now = self._host.runtime.now()
        due_ms = replica.machine.next_deadline_ms
        if count or due_ms is None or due_ms > replica.stamp_ms(now):
            wait.back_off_s = 0.0
        else:
            settings = self._settings
            wait.back_off_s = min(max(settings.back_off_s, 2 * wait.back_off_s), settings.back_off_max_s)
        wait.until = now + wait.back_off_s
