"""What the API may say about the cluster, gathered from this node and, where asked for, from the others."""

from __future__ import annotations

from typing import Any

from kvstore.errors import (
    InvalidArgument,
    KvError,
    NoLeader,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
)
from kvstore.node.api.view import (
    Check,
    ClusterRow,
    NodeRow,
    RebuildRow,
    ReplicaRow,
    RouteNode,
    RouteRow,
    Routes,
    ShardRow,
)
from kvstore.node.flow import Promise, spawn
from kvstore.node.node import Node
from kvstore.node.runtime import Transport
from kvstore.types import META_SHARD, NodeId, ReplicaId, ShardId, incarnation_of, node_of
from kvstore.wire.peer import LedShard, StatusReply

TRANSFER_POLL_S = 0.02
REBUILD_POLL_S = 0.1
OLD_INTENT_S = 3.0
"""A transaction undecided for longer is worth telling: those whose coordinator died take little above 2 s."""


class NodeView:
    def __init__(self, node: Node, transport: Transport) -> None:
        self.me = node.me
        self._node = node
        self._host = node.host
        self._transport = transport
        self._config = node.config

    # ---- routes ----------------------------------------------------------------------------------

    def epoch(self) -> int:
        """Sum of the terms known here: it grows with every election this node has heard of."""
        return sum(replica.core.term for replica in self._host.replicas.values())

    def leader_of(self, shard: ShardId) -> NodeId | None:
        return self._node.router.leader_node(shard)

    def client_address(self, node: NodeId) -> str | None:
        return self._node.client_address(node)

    def _homes(self, shard: ShardId) -> list[NodeId]:
        replica = self._host.replicas.get(shard)
        if replica is not None:
            # Two incarnations on one node while one replaces the other; a new replica knows no members yet.
            nodes = {node_of(member): None for member in replica.core.configuration.members()}
            if nodes:
                return list(nodes)
        return list(self._node.router.homes.get(shard, ()))

    def routes(self) -> Routes:
        rows = []
        for shard in self._node.shard_map.shards:
            start, end = self._node.shard_map.range_of(shard)
            replica = self._host.replicas.get(shard)
            clock_ms = None if replica is None else replica.known_clock_ms
            rows.append(RouteRow(shard, start, end, self.leader_of(shard), self._homes(shard), clock_ms))
        nodes = [
            RouteNode(NodeId(each.id), self.client_address(NodeId(each.id)) or each.client)
            for each in self._config.nodes
        ]
        return Routes(self.epoch(), rows, nodes)

    # ---- nodes and shards ------------------------------------------------------------------------

    def _is_up(self, node: NodeId) -> bool:
        return node == self.me or self._transport.is_connected(node)

    def nodes(self) -> list[NodeRow]:
        rows = []
        for each in self._config.nodes:
            node = NodeId(each.id)
            address = self._node.address_of(node)
            rows.append(
                NodeRow(
                    node,
                    address.client if address else each.client,
                    address.peer if address else each.peer,
                    each.host,
                    each.zone,
                    each.weight,
                    self._is_up(node),
                )
            )
        return rows

    def cluster(self) -> Promise[ClusterRow]:
        return spawn(self._cluster())

    async def _cluster(self) -> ClusterRow:
        statuses = await self._node.status.ask_all()
        led = _newest_leaders(statuses)
        leaderless = [shard for shard in self._node.shard_map.shards if shard not in led]
        down = [row.id for row in self.nodes() if not row.up]
        damaged = any(status.damaged for status in statuses.values())
        health = "unavailable" if leaderless else "degraded" if down or damaged else "ok"
        meta = led.get(META_SHARD)
        cluster_id = self._node.boot.identity.cluster_id
        return ClusterRow(
            self._config.cluster,
            cluster_id.hex() if cluster_id else None,
            node_of(meta.leader) if meta else None,
            health,
            leaderless,
            self._config.shards,
            len(self._config.nodes),
            down,
            self._config.replication,
            self.me,
        )

    def shard_rows(self) -> Promise[list[ShardRow]]:
        return spawn(self._shard_rows())

    async def _shard_rows(self) -> list[ShardRow]:
        statuses = await self._node.status.ask_all()
        led = _newest_leaders(statuses)
        shards = (*self._node.shard_map.shards, META_SHARD)
        return [self._shard_row(shard, led.get(shard), statuses) for shard in shards]

    def _shard_row(
        self, shard: ShardId, led: LedShard | None, statuses: dict[NodeId, StatusReply]
    ) -> ShardRow:
        start, end = ("", "") if shard == META_SHARD else self._node.shard_map.range_of(shard)
        if led is None:
            homes = [ReplicaRow(node, "follower") for node in self._homes(shard)]
            return ShardRow(shard, start, end, self.leader_of(shard), 0, homes)
        matches = dict(led.matches)
        rows = []
        for replica in (*led.voters, *led.learners):
            role = "follower"
            if replica == led.leader:
                role = "leader"
            elif _is_out(shard, replica, led, statuses.get(node_of(replica))):
                role = "quarantined"
            elif replica in led.learners:
                role = "learner"
            rows.append(ReplicaRow(node_of(replica), role, matches.get(replica)))
        return ShardRow(shard, start, end, node_of(led.leader), led.term, rows, led.applied, led.keys)

    # ---- transfer --------------------------------------------------------------------------------

    def transfer(self, shard: ShardId, to: NodeId, deadline: float) -> Promise[None]:
        return spawn(self._transfer(shard, to, deadline))

    async def _transfer(self, shard: ShardId, to: NodeId, deadline: float) -> None:
        if shard not in self._node.shard_map.shards and shard != META_SHARD:
            raise NotFound(f"there is no shard {shard}; expected 0 to {self._config.shards - 1}")
        if to not in self._homes(shard):
            raise InvalidArgument(f"{to} holds no voting replica of shard {shard}: {self._homes(shard)} do")
        while self.leader_of(shard) != to:
            if self._host.runtime.now() > deadline:
                raise NoLeader(f"shard {shard} was not handed to {to} before the deadline", retry_after=1)
            self._node.ask_transfer(shard, to)
            await self._sleep(TRANSFER_POLL_S)

    def _sleep(self, delay_s: float) -> Promise[None]:
        promise: Promise[None] = Promise()
        self._host.runtime.call_later(delay_s, promise.resolve, None)
        return promise

    # ---- rebuild ---------------------------------------------------------------------------------

    def rebuild(self, shard: ShardId, node: NodeId, deadline: float) -> Promise[RebuildRow]:
        return spawn(self._rebuild(shard, node, deadline))

    async def _rebuild(self, shard: ShardId, node: NodeId, deadline: float) -> RebuildRow:
        """Ask the leader until the new incarnation is seen in its committed configuration: from then on no
        crash can stop it."""
        if shard not in self._node.shard_map.shards and shard != META_SHARD:
            raise NotFound(f"there is no shard {shard}; expected 0 to {self._config.shards - 1}")
        heir: ReplicaId | None = None
        while True:
            failure: KvError = NoLeader(f"shard {shard} has no leader that could rebuild it", retry_after=1)
            statuses = await self._node.status.ask_all()
            led = _newest_leaders(statuses).get(shard)
            if led is not None:
                newest = newest_on(node, led)
                if newest in (heir, pending_on(node, led, statuses.get(node))):
                    role = "learner" if newest in led.learners else "follower"
                    return RebuildRow(shard, node, newest, role)
                check_lost(newest, led, statuses.get(node))
                try:
                    heir = await self._node.rebuilds.ask(node_of(led.leader), shard, newest)
                    failure = OutcomeUnknown(f"{heir} was proposed, but is not committed yet")
                except (NoLeader, Overloaded, OutcomeUnknown) as error:
                    failure = error
            if self._host.runtime.now() + REBUILD_POLL_S > deadline:
                raise failure
            await self._sleep(REBUILD_POLL_S)

    # ---- health ----------------------------------------------------------------------------------

    def liveness(self) -> list[Check]:
        """What only a restart can mend; a dead loop gives no answer at all. A slow disk is not among it: a
        restart would make it no faster, and take one more node away from those that wait for theirs."""
        log = self._host.log
        return [
            Check("running", not self._host.is_stopped),
            Check("log", not log.is_dead, "the log has failed" if log.is_dead else ""),
        ]

    def _log_disk(self) -> Check:
        busy_s = self._host.log.busy_s(self._host.runtime.now())
        limit_s = self._config.timeouts.disk_stall_ms / 1000
        detail = f"oldest unsynced write is {busy_s:.1f} s old" if busy_s else ""
        return Check("log_disk", busy_s < limit_s, detail)

    def readiness(self) -> list[Check]:
        if not self._node.is_ready:
            return [Check("member", False, "; ".join(self._node.waiting_for()))]
        replicas = self._host.replicas.values()
        leaderless = [replica.shard for replica in replicas if replica.core.leader is None]
        damaged = [f"shard {shard}: {why}" for shard, why in self._host.damaged.items()]
        return [
            Check("member", True),
            Check(
                "leaders_known",
                not leaderless,
                f"no leader known for shards {leaderless}" if leaderless else "",
            ),
            Check("no_quarantine", not damaged, "; ".join(damaged)),
            Check(
                "disk_space",
                not self._node.router.is_read_only,
                "nearly full: only deletes are accepted" if self._node.router.is_read_only else "",
            ),
            self._log_disk(),
            Check("transactions", True, self._oldest_intents()),
            *self.liveness(),
        ]

    def _oldest_intents(self) -> str:
        """Transactions that hold keys and are not decided. They wait for shards that do not answer."""
        old = [
            f"shard {replica.shard}: {replica.machine.intents.prepared_count} undecided, "
            f"the oldest for {age_s:.1f} s"
            for replica in self._host.replicas.values()
            if (age_s := replica.machine.intents.oldest_s(replica.known_clock_ms)) >= OLD_INTENT_S
        ]
        return "; ".join(old)

    def facts(self) -> dict[str, Any]:
        return {
            "node": self.me,
            "engine": self._config.storage.engine,
            "shards": self._config.shards,
            "replication": self._config.replication,
        }


def _newest_leaders(statuses: dict[NodeId, StatusReply]) -> dict[ShardId, LedShard]:
    """The leader of the highest term for each shard: a deposed one may not know it yet."""
    led: dict[ShardId, LedShard] = {}
    for status in statuses.values():
        for each in status.led:
            if each.shard not in led or led[each.shard].term < each.term:
                led[each.shard] = each
    return led


def _is_out(shard: ShardId, replica: ReplicaId, led: LedShard, status: StatusReply | None) -> bool:
    """Whether its node says that the replica is damaged, or has no trace of it though it should vote."""
    if status is None:
        return False
    is_missing = status.hosted is not None and (shard, replica) not in status.hosted
    return (shard, replica) in status.damaged or (is_missing and replica in led.voters)


def newest_on(node: NodeId, led: LedShard) -> ReplicaId:
    """The newest incarnation of the shard on `node`.

    Raises: InvalidArgument, if the node is no home of the shard."""
    members = [replica for replica in (*led.voters, *led.learners) if node_of(replica) == node]
    if not members:
        homes = sorted({node_of(replica) for replica in (*led.voters, *led.learners)})
        raise InvalidArgument(f"{node} is no home of shard {led.shard}: {', '.join(homes)} are")
    return max(members, key=incarnation_of)


def pending_on(node: NodeId, led: LedShard, status: StatusReply | None) -> ReplicaId | None:
    """The learner that replaces a voter of its node already, unless it was damaged itself meanwhile."""
    newest = newest_on(node, led)
    is_replacing = newest in led.learners and any(node_of(voter) == node for voter in led.voters)
    is_damaged = status is not None and (led.shard, newest) in status.damaged
    return newest if is_replacing and not is_damaged else None


def check_lost(replica: ReplicaId, led: LedShard, status: StatusReply | None) -> None:
    """Only a replica that its own node does not have in service may be replaced.

    Raises: Unavailable, if the node cannot be asked; InvalidArgument, if the replica is healthy."""
    node = node_of(replica)
    if status is None:
        raise Unavailable(f"node {node} does not answer: it must run to be copied to", retry_after=1)
    if status.hosted is None:
        raise Unavailable(f"node {node} is not ready yet", retry_after=1)
    if (led.shard, replica) in status.hosted:
        raise InvalidArgument(f"{node} holds a healthy replica of shard {led.shard}: {replica}")
