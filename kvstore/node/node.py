"""A whole node, but for its sockets: data directory, log, replicas, router, first boot, housekeeping.

`Node` is written against `Runtime`, `Transport` and `Files`, so that the process (`server.py`) and the
simulator run the same code. Its life: `open` the data directory, agree on a cluster if it is new, host
the replicas that the log names, until `stop` or a fatal error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from kvstore.config import Config, agreed_facts, config_hash
from kvstore.errors import Corrupt, DiskFailed
from kvstore.files import Files, join
from kvstore.node.boot import Boot
from kvstore.node.boot_runner import BootRunner
from kvstore.node.calls import Call
from kvstore.node.expiry import Expiry
from kvstore.node.handshake import Addresses
from kvstore.node.host import Host
from kvstore.node.identity import DataDirectory, Identity
from kvstore.node.keeper import Keeper
from kvstore.node.lease_ends import LeaseEnds
from kvstore.node.quarantine import Quarantine
from kvstore.node.rebuild import Rebuilds
from kvstore.node.recovery import Recovery
from kvstore.node.replica import Replica
from kvstore.node.router import Router
from kvstore.node.runtime import Lane, Runtime, Transport
from kvstore.node.settings_of import (
    host_settings,
    keeper_settings,
    raft_settings,
    replica_limits,
    store_limits,
    wal_settings,
)
from kvstore.node.snapshot_host import SnapshotHost
from kvstore.node.status import Status
from kvstore.node.tablets import Opened, Tablets
from kvstore.node.watch import Watches
from kvstore.placement import Member, ShardMap, place
from kvstore.store.engine import Engine, Engines
from kvstore.store.heads import HeadBudget
from kvstore.store.machine import Machine
from kvstore.types import Incarnation, NodeId, ShardId, incarnation_of, node_of, replica_id
from kvstore.wal import Recovered, RecoveredReplica, Wal
from kvstore.wire import peer
from kvstore.wire.boot_messages import BootState, ShardPlan

log = logging.getLogger(__name__)

HEADS_KEPT = 262_144
"""Hot keys' records kept in memory, all shards together, about 250 bytes each."""

Observe = Callable[[ShardId], Callable[[str, dict[str, Any]], None] | None]


class Node:
    """`observe(shard)` gives the Raft trace of one shard or None; `on_fatal` must end the process."""

    def __init__(
        self,
        config: Config,
        me: NodeId,
        runtime: Runtime,
        transport: Transport,
        files: Files,
        data: str,
        engines: Engines,
        addresses: Addresses,
        on_fatal: Callable[[BaseException], None],
        observe: Observe = lambda shard: None,
    ) -> None:
        self.config = config
        self.me = me
        self.runtime = runtime
        self._files = files
        self._engines = engines
        self._addresses = addresses
        self._observe = observe
        self.role_changes = 0
        self.on_member: Callable[[], None] = lambda: None
        self.on_addresses: Callable[[], None] = lambda: None
        """The address book has changed."""
        self.directory = DataDirectory.open(files, data, config.cluster, me)
        self.tablets = Tablets(files, data, me, engines.open)
        self.tablets.prepare()
        self.wal, self.recovered = Wal.open(
            files, join(data, "wal"), wal_settings(config), self.directory.identity.directory
        )
        peers = tuple(node for node in config.node_ids() if node != me)
        self.host = Host(me, peers, runtime, transport, self.wal, host_settings(config), on_fatal)
        self.shard_map = ShardMap(config.shards)
        self._head_budget = HeadBudget(HEADS_KEPT)
        self.router = Router(self.host, transport, self.shard_map, config.limits.waiting_reads_max)
        self.watches = Watches(self.router, self.host.on_applied, runtime, config.limits.watchers_max)
        self.keeper = Keeper(
            self.host, self.wal, files, data, keeper_settings(config), self.router.set_read_only
        )
        self.snapshots = SnapshotHost(
            self.host, transport, self.keeper, self.tablets, files, config.snapshot, self._machine
        )
        self.quarantine = Quarantine(
            self.host, self.tablets, self._host_replica, self.snapshots.receiver.cancel
        )
        self.keeper.halted = self.quarantine.halted
        self.rebuilds = Rebuilds(self.host, transport)
        self.recovery = Recovery(self.host, self.router)
        self.expiry = Expiry(self.host)
        self.lease_ends = LeaseEnds(self.host, self.router)
        self.boot = self._make_boot()
        self.boot_runner = self._make_boot_runner()
        self.status = Status(self.host, transport, lambda: self._is_hosting)
        self._is_hosting = False
        self._listen()

    def _listen(self) -> None:
        on_message = self.host.on_message
        on_message[BootState] = self.boot_runner.on_message
        on_message[peer.AddressBook] = lambda node, book: self.learn_addresses(book.addresses)
        on_message[peer.TransferRequest] = self._on_transfer
        self.host.on_role_change = self._on_role_change
        self.host.on_tick = self._sweep

    # ---- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin: host at once if this directory is a member's, else seek agreement."""
        self.host.start()
        self.keeper.start()
        self.quarantine.start()
        self.rebuilds.start()
        self.recovery.start()
        self.boot_runner.start()

    def stop(self) -> None:
        """Stop acknowledging; what is on disk stays as it is."""
        self.host.stop()
        self.boot_runner.stop()

    def close(self) -> None:
        """Release the disk; call once no thread works on it any more."""
        for replica in (*self.host.replicas.values(), *self.quarantine.halted()):
            replica.machine.close()
        self.wal.close()
        self.directory.release()

    def hand_over(self) -> None:
        """Before a clean stop: give every leadership to a peer, so that nobody waits for a timeout."""
        for replica in self.host.replicas.values():
            core = replica.core
            if replica.led_term is None:
                continue
            others = [voter for voter in core.configuration.voters if voter != replica.me]
            if others:
                core.transfer_leadership(max(others, key=lambda voter: core.progress[voter].match))
                self.host.mark_dirty(replica)

    @property
    def is_ready(self) -> bool:
        return self._is_hosting

    def waiting_for(self) -> list[str]:
        """Why this node does not serve yet, for people."""
        if not self._is_hosting:
            return self.boot.waiting_for() or ["opening tablets"]
        return []

    # ---- first boot ------------------------------------------------------------------------------

    def _make_boot(self) -> Boot:
        config = self.config
        return Boot(
            self.directory.identity,
            config.node_ids(),
            agreed_facts(config),
            config_hash(config),
            self._plan,
            lambda: self._files.entropy(16),
        )

    def _make_boot_runner(self) -> BootRunner:
        return BootRunner(
            self.boot,
            self.directory,
            self.runtime,
            lambda node, state: self.host.post(node, Lane.CONTROL, state),
            self._host_replicas,
            self.host.fail,
            prepare=self._create_replicas,
        )

    def _plan(self) -> tuple[ShardPlan, ...]:
        config = self.config
        members = [
            Member(node=NodeId(each.id), host=each.host, zone=each.zone, weight=each.weight)
            for each in config.nodes
        ]
        placement = place(
            self.shard_map, members, replication=config.replication, virtual_nodes=config.virtual_nodes
        )
        return tuple(
            ShardPlan(shard, tuple(replica_id(node, Incarnation(1)) for node in nodes))
            for shard, nodes in sorted(placement.items())
        )

    def greet(self, node: NodeId) -> None:
        """A link to a peer came up."""
        self.boot_runner.greet(node)
        self.host.beats.forget(node)
        self.host.post(node, Lane.CONTROL, self._addresses.as_message())

    def _create_replicas(self, identity: Identity, go_on: Callable[[], None]) -> None:
        """Replicas exist in the log before the identity says "member": a member whose log lacks them has
        lost its log, and must not vote again."""
        if not identity.is_member or identity.accepted is None:
            go_on()
            return
        records = self.tablets.planned(identity.accepted.plan, self.recovered)
        for record in records:
            self.recovered.replicas[record.shard, record.incarnation] = RecoveredReplica(created=record)
        self.host.log.add(records, None)
        self.host.log.then(go_on)
        self.host.schedule_pass()

    # ---- replicas --------------------------------------------------------------------------------

    def _host_replicas(self) -> None:
        """Open what the log names; what is damaged, or should be there and is not, is quarantined."""
        accepted = self.boot.identity.accepted
        assert accepted is not None, "a member knows its plan"
        self._is_hosting = True
        self.router.homes = {
            plan.shard: tuple(node_of(voter) for voter in plan.voters) for plan in accepted.plan
        }
        recovered = self.recovered
        missing = [(each.shard, each.incarnation) for each in self.tablets.planned(accepted.plan, recovered)]
        self.tablets.remove_debris(recovered, missing)
        for key in missing:
            self.quarantine.mark(*key, "the log has no trace of this replica")
        newest = dict(sorted(recovered.replicas))
        for (shard, incarnation), replica in sorted(recovered.replicas.items()):
            self.quarantine.know(shard, incarnation)
            if replica.destroyed:
                continue
            if replica.quarantined is not None:
                self.quarantine.hold(shard, incarnation, replica.quarantined)
            elif incarnation < newest[shard]:
                self.quarantine.mark(shard, incarnation, "a later incarnation was made")
            else:
                self._host_replica(shard, incarnation, replica)
        if self.host.is_stopped:
            return
        self.host.clocks.restore(recovered.clocks)
        self.quarantine.is_open = True
        self.recovered = Recovered()
        self.host.schedule_pass()
        self.on_member()

    def _host_replica(self, shard: ShardId, incarnation: Incarnation, replica: RecoveredReplica) -> None:
        try:
            opened = self.tablets.open(
                (shard, incarnation),
                replica,
                raft_settings(self.config),
                self._roll,
                self._machine,
                self._observe,
            )
        except Corrupt as error:
            self.quarantine.mark(shard, incarnation, str(error))
            return
        except DiskFailed as error:
            # A quarantine lasts: where two nodes' disks stutter, it would cost the shard its quorum.
            self.host.fail(error)
            return
        self.host.add(self._replica(opened))

    def _replica(self, opened: Opened) -> Replica:
        return Replica(
            opened.shard,
            opened.me,
            incarnation_of(opened.me),
            opened.core,
            opened.machine,
            opened.directory,
            replica_limits(self.config),
            self.router.dispatch,
        )

    def _roll(self, low: int, high: int) -> int:
        return self.runtime.dice.randint(low, high)

    def _machine(self, engine: Engine) -> Machine:
        return Machine(engine, store_limits(self.config), self._head_budget)

    # ---- the rest --------------------------------------------------------------------------------

    def _on_role_change(self, replica: Replica) -> None:
        self.role_changes += 1
        log.info(
            "shard=%d replica=%s role=%s term=%d",
            replica.shard,
            replica.me,
            replica.core.role.value,
            replica.core.term,
        )
        self.router.wake(replica.shard)
        if replica.led_term is not None:
            self._propose_limits(replica)

    def _propose_limits(self, replica: Replica) -> None:
        """Bring this node's configured retention into a shard that it has begun to lead."""
        command = replica.machine.limits_to_propose()
        if command is not None:
            deadline = self.runtime.now() + self.config.timeouts.request_s
            replica.enqueue(Call(replica.shard, command, deadline, lambda answer, error: None))
            self.host.mark_dirty(replica)

    def learn_addresses(self, heard: Iterable[peer.NodeAddress]) -> None:
        """Take over newer addresses, so that a changed one needs no edited seed list."""
        if not self._addresses.merge(heard, me=self.me):
            return
        self.on_addresses()
        if self._is_hosting:
            book = self._addresses.all()
            self.runtime.in_thread(
                lambda: self.directory.save_addresses(book), self._addresses_saved, lane="files"
            )

    def _addresses_saved(self, _result: Any, error: BaseException | None) -> None:
        if error is not None:
            log.warning("addresses could not be saved: %s", error)

    def address_of(self, node: NodeId) -> peer.NodeAddress | None:
        """Where the node last said it can be reached."""
        return self._addresses.get(node)

    def client_address(self, node: NodeId) -> str | None:
        address = self.address_of(node)
        if address is not None:
            return address.client
        return next((each.client for each in self.config.nodes if each.id == node), None)

    def ask_transfer(self, shard: ShardId, to: NodeId) -> None:
        """Have the shard's leader, wherever it is, hand over to `to`. Nothing tells whether it did."""
        leader = self.router.leader_node(shard)
        if leader == self.me:
            self._transfer(shard, to)
        elif leader is not None:
            self.host.post(leader, Lane.CONTROL, peer.TransferRequest(0, shard, to))

    def _on_transfer(self, node: NodeId, request: peer.TransferRequest) -> None:
        self._transfer(request.shard, request.to)

    def _transfer(self, shard: ShardId, to: NodeId) -> None:
        replica = self.host.replicas.get(shard)
        if replica is None or replica.led_term is None:
            return
        for voter in replica.core.configuration.voters:
            if node_of(voter) == to:
                replica.core.transfer_leadership(voter)
                self.host.mark_dirty(replica)

    def _sweep(self) -> None:
        self.router.sweep()
        self.expiry.sweep()
        self.lease_ends.sweep()
