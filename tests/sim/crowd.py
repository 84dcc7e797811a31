"""Who works on the simulated cluster: each kind of client has a file of its own and a line in `KINDS`.

A kind is a function that gets the stage and returns its clients, or none if this seed does without it;
what it needs of chance it draws from `stage.dice_of(kind)`, so that a new kind changes no other's draws.
Clients are `Caller`s. Those that write to `stage.history` are judged by the linearizability checker; others
say in `judge` what was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from chaos.history import History
from kvstore.types import ShardId
from tests.sim.caller import ATTEMPT_S, DEADLINE_S, Caller
from tests.sim.clients import Client
from tests.sim.cluster import SimCluster
from tests.sim.group_clients import GroupClient
from tests.sim.lease_clients import LeaseClient
from tests.sim.lock_clients import LockClient
from tests.sim.probers import Prober
from tests.sim.txn_clients import Accounts, TxnClient
from tests.sim.watch_clients import Truth, WatchClient


class Stage(NamedTuple):
    cluster: SimCluster
    history: History

    def dice_of(self, kind: str) -> Random:
        return Random(f"{self.cluster.world.seed}/{kind}")


def registers(stage: Stage) -> Sequence[Caller]:
    """Two temperaments. Some write much and ask anybody; others mostly read, often under a lease, and stay
    with the node that serves them, even when it leads no more: it is they who see stale reads."""
    dice = stage.dice_of("registers")
    keys = [f"k{number}" for number in range(dice.choice((1, 2, 4, 16)))] + ["count-a", "count-b"]
    favourite_share = dice.choice((0.3, 0.6, 0.8))
    paddings = (0, 0, 700, 3000) if dice.random() < 0.35 else (0,)
    late_share = dice.choice((0.0, 0.05, 0.2))
    readers = dice.choice((2, 3, 4))
    clients = []
    for number in range(9):
        client = Client(
            stage.cluster, number, stage.history, Random(f"{stage.cluster.world.seed}/client/{number}"), keys
        )
        client.favourite_share = favourite_share
        client.paddings = paddings
        client.late_share = late_share
        if number < readers:
            client.read_share, client.lease_share, client.loyalty = 0.9, 0.8, 0.95
            client.wants_leader_of = favourite_shard(stage.cluster)
        else:
            client.read_share, client.lease_share = dice.choice((0.15, 0.4)), 0.3
            client.loyalty = dice.choice((0.0, 0.5, 0.9))
        clients.append(client)
    return clients


def favourite_shard(cluster: SimCluster) -> ShardId:
    """The shard of the key that most clients work on, which faults aim at too."""
    return cluster.shard_of("k0")


def groups(stage: Stage) -> Sequence[Caller]:
    """Some keys that lie together, written in batches and read by scans."""
    dice = stage.dice_of("groups")
    if dice.random() < 0.5:
        return ()
    return [
        GroupClient(
            stage.cluster, number, stage.history, Random(f"{stage.cluster.world.seed}/group/{number}")
        )
        for number in (20, 21)
    ]


def locks(stage: Stage) -> Sequence[Caller]:
    """Some that want the same few locks."""
    dice = stage.dice_of("locks")
    if dice.random() < 0.5:
        return ()
    names = [f"lock{number}" for number in range(dice.choice((1, 2)))]
    clients = [
        LockClient(stage.cluster, number, Random(f"{stage.cluster.world.seed}/lock/{number}"), names)
        for number in (30, 31, 32, 33)
    ]
    clients[0].crowd = clients
    for client in clients:
        client.late_share = 0.1
    return clients


def watches(stage: Stage) -> Sequence[Caller]:
    """Some that watch what the others do."""
    dice = stage.dice_of("watches")
    if dice.random() < 0.4:
        return ()
    truth = Truth(stage.cluster)
    return [
        WatchClient(stage.cluster, number, Random(f"{stage.cluster.world.seed}/watch/{number}"), truth)
        for number in (40, 41, 42)
    ]


def leases(stage: Stage) -> Sequence[Caller]:
    """Some with leases and keys that end by time, each with its own."""
    dice = stage.dice_of("leases")
    if dice.random() < 0.4:
        return ()
    clients = [
        LeaseClient(stage.cluster, number, Random(f"{stage.cluster.world.seed}/lease/{number}"))
        for number in (50, 51, 52)
    ]
    clients[0].crowd = clients
    for client in clients:
        client.late_share = 0.2
    return clients


def transactions(stage: Stage) -> Sequence[Caller]:
    """Some that change several keys at once."""
    dice = stage.dice_of("transactions")
    if dice.random() < 0.4:
        return ()
    accounts = Accounts(dice.choice((3, 5)))
    lists = [f"list{number}" for number in range(2)]
    clients = [
        TxnClient(
            stage.cluster,
            number,
            stage.history,
            Random(f"{stage.cluster.world.seed}/txn/{number}"),
            accounts,
            lists,
        )
        for number in (60, 61, 62, 63)
    ]
    clients[0].is_judge = True
    attempt_s = dice.choice((ATTEMPT_S, ATTEMPT_S, 4.0))
    for client in clients:
        client.late_share = dice.choice((0.0, 0.1))
        client.attempt_s, client.deadline_s = attempt_s, max(DEADLINE_S, 2 * attempt_s)
    return clients


def probers(stage: Stage) -> Sequence[Caller]:
    """Those that look closely when something was staged: a reader and a writer for each node."""
    cluster = stage.cluster
    keys: dict[ShardId, str] = {}
    number = 0
    while len(keys) < cluster.config.shards:
        keys.setdefault(cluster.shard_of(f"probe{number}"), f"probe{number}")
        number += 1
    places = [(place, writes) for writes in (False, True) for place in cluster.config.node_ids()]
    return [
        Prober(
            cluster, 70 + order, stage.history, stage.dice_of(f"prober/{order}"), keys, place, writes=writes
        )
        for order, (place, writes) in enumerate(places)
    ]


KINDS: tuple[Callable[[Stage], Sequence[Caller]], ...] = (
    registers,
    groups,
    locks,
    watches,
    leases,
    transactions,
    probers,
)


def gather(stage: Stage) -> list[Caller]:
    return [client for kind in KINDS for client in kind(stage)]
