"""Faults that wait for their moment: a trap is set for a message of a kind and springs when one leaves.

Chance alone seldom hits the instant between a vote and its first use, or between the two halves of a change
of members. What then happens is drawn like everything else, so no trap knows what it might find.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kvstore.node.replica import Replica
from kvstore.raft.messages import (
    CONFIGURATION,
    EMPTY,
    NORMAL,
    AppendReply,
    AppendRequest,
    Heartbeat,
    Message,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from kvstore.types import NodeId, ShardId, node_of

if TYPE_CHECKING:
    from typing import Any

    from tests.sim.cluster import Process
    from tests.sim.faults import Faults

PATIENCE_S = 4.0


def _carries(kind: int) -> Callable[[Message], bool]:
    return lambda message: (
        isinstance(message, AppendRequest) and any(entry.kind == kind for entry in message.entries)
    )


MOMENTS: dict[str, Callable[[Message], bool]] = {
    "someone campaigns": lambda message: isinstance(message, VoteRequest),
    "a vote is asked for": lambda message: isinstance(message, VoteRequest) and not message.is_pre_vote,
    "a vote is given": lambda message: (
        isinstance(message, VoteReply) and message.is_granted and not message.is_pre_vote
    ),
    "a term begins": _carries(EMPTY),
    "writes are sent": _carries(NORMAL),
    "members change": _carries(CONFIGURATION),
    "writes are acknowledged": lambda message: isinstance(message, AppendReply) and not message.is_rejected,
    "logs do not match": lambda message: isinstance(message, AppendReply) and message.is_rejected,
    "leadership is handed over": lambda message: isinstance(message, TimeoutNow),
    "a snapshot is offered": lambda message: isinstance(message, SnapshotOffer),
    "a round is opened": lambda message: isinstance(message, Heartbeat) and message.round > 0,
}


class Trap(NamedTuple):
    moment: str
    shard: ShardId | None
    """None: any."""
    until: float
    blows: list[tuple[str, str]]
    """What happens, and to whom: the source or target of the message, or a third node."""
    delay_s: float
    is_like: Callable[[Message], bool]


class Ambush:
    """At most one trap is set at a time."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.trap: Trap | None = None

    def watch(self, process: Process) -> None:
        """Look at what leaves a process life."""
        host = process.node.host
        post = host._post_raft

        def watched(replica: Replica, messages: tuple[Message, ...], **more: Any) -> None:
            post(replica, messages, **more)
            if self.trap is not None:
                for message in messages:
                    self._look(replica, message)

        host._post_raft = watched  # type: ignore[method-assign]

    def set(self, shard: ShardId | None, moment: str | None = None) -> None:
        faults, dice = self.faults, self.faults.dice
        moment = moment or dice.choice(tuple(MOMENTS))
        blows = [
            (dice.choice(tuple(faults.blows)), dice.choice(("source", "source", "target", "target", "third")))
            for _ in range(dice.choice((1, 2, 2, 3)))
        ]
        delay_s = dice.choice((0.0001, 0.0001, 0.001, 0.004, 0.03, 0.3))
        self.trap = Trap(moment, shard, faults.world.now + PATIENCE_S, blows, delay_s, MOMENTS[moment])

    def _look(self, replica: Replica, message: Message) -> None:
        trap, faults = self.trap, self.faults
        if trap is None or (trap.shard is not None and replica.shard != trap.shard):
            return
        if faults.is_healing or faults.world.now > trap.until:
            self.trap = None
        elif trap.is_like(message):
            self.trap = None
            faults.world.after(
                trap.delay_s, self._spring, trap, node_of(message.source), node_of(message.target)
            )

    def _spring(self, trap: Trap, source: NodeId, target: NodeId) -> None:
        faults = self.faults
        if faults.is_healing:
            return
        others = [name for name in faults.cluster.config.node_ids() if name not in (source, target)]
        whom = {"source": source, "target": target, "third": faults.dice.choice(others)}
        faults.world.note(f"trap: {trap.moment}, {trap.blows} from {source} to {target}")
        faults.cluster.states[f"trap: {trap.moment}"] += 1
        faults.hurry()
        for blow, who in trap.blows:
            faults.blows[blow](whom[who])
