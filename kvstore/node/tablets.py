"""The data directory's tablets: which directory belongs to which replica, opened or made at start.

    DIR/identity     who this node is (`identity.py`)
    DIR/wal/         the log (`kvstore.wal`)
    DIR/tablets/     one directory per replica, named by the log; what the log does not name is debris
    DIR/snapshots/   checkpoints being sent, and nothing that outlives the process

The log is the truth: `shard-created` or the newest `snapshot-installed` record of a replica names its
directory. A crash between making a directory and its record leaves debris, which is removed here
(schedule 36).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from kvstore.errors import Corrupt, DiskFailed, Fatal
from kvstore.files import Files, join
from kvstore.raft import Core, RaftSettings, Restored
from kvstore.raft.messages import Configuration, SnapshotMeta
from kvstore.store.engine import Engine
from kvstore.store.machine import Machine
from kvstore.types import Incarnation, NodeId, ReplicaId, ShardId, incarnation_of, node_of, replica_id
from kvstore.wal import Key, Recovered, RecoveredReplica, ShardCreated
from kvstore.wire.boot_messages import ShardPlan

log = logging.getLogger(__name__)

OpenEngine = Callable[[str], Engine]
"""Opens the tablet in a directory, or makes an empty one."""


class Opened(NamedTuple):
    """A replica as recovery found it, ready to be hosted."""

    shard: ShardId
    me: ReplicaId
    core: Core
    machine: Machine
    directory: str


class Tablets:
    def __init__(self, files: Files, data: str, me: NodeId, open_engine: OpenEngine) -> None:
        self._files = files
        self._data = data
        self._me = me
        self.open_engine = open_engine
        self.tablets = join(data, "tablets")
        self.snapshots = join(data, "snapshots")

    def prepare(self) -> None:
        """Make the directories; checkpoints of an earlier life are of no use."""
        self._files.remove_tree(self.snapshots)
        self._files.mkdirs(self.tablets)
        self._files.mkdirs(self.snapshots)

    def path(self, directory: str) -> str:
        return join(self.tablets, directory)

    def fresh_name(self, shard: ShardId, incarnation: Incarnation) -> str:
        """A directory name that was never used, so that no install can meet an older one."""
        return f"{shard}-{incarnation}-{self._files.entropy(6).hex()}"

    def planned(self, plan: Iterable[ShardPlan], recovered: Recovered) -> list[ShardCreated]:
        """Records of the replicas that the founding plan puts here and the log does not know yet."""
        records = []
        for shard_plan in plan:
            for voter in shard_plan.voters:
                key = (shard_plan.shard, incarnation_of(voter))
                if node_of(voter) == self._me and not _is_known(key, recovered):
                    name = self.fresh_name(*key)
                    configuration = Configuration(voters=tuple(sorted(shard_plan.voters)))
                    records.append(ShardCreated(*key, name, configuration))
        return records

    def remove_debris(self, recovered: Recovered, missing: Iterable[Key]) -> None:
        """Remove what no living replica needs. Every directory of a damaged replica stays, also those that
        its log no longer names: they may be all that is left of a shard. `missing` are replicas that
        should be here and that the log has no trace of."""
        named = {_directory_of(replica) for replica in recovered.replicas.values() if not replica.destroyed}
        lost = set(missing)
        for name in self._files.list(self.tablets):
            if name not in named and _is_debris(_key_of(name), recovered, lost):
                log.info("removing debris tablet=%s", name)
                self._files.remove_tree(self.path(name))

    def remove_all_of(self, key: Key) -> None:
        """Remove every directory that a destroyed replica ever had."""
        for name in self._files.list(self.tablets):
            if _key_of(name) == key:
                self._files.remove_tree(self.path(name))

    def discard(self, directory: str) -> None:
        self._files.remove_tree(self.path(directory))

    def open(
        self,
        key: tuple[ShardId, Incarnation],
        replica: RecoveredReplica,
        settings: RaftSettings,
        dice: Callable[[int, int], int],
        make_machine: Callable[[Engine], Machine],
        observe: Callable[[ShardId], Callable[[str, dict[str, object]], None] | None],
    ) -> Opened:
        """Open one live replica.

        Raises:
            Corrupt: log and tablet do not fit together; the replica must be quarantined.
            DiskFailed: the disk refused a write or a sync; nothing is known to be damaged.
        """
        shard, incarnation = key
        directory = _directory_of(replica)
        if replica.created is None or directory is None:
            raise Corrupt(f"the log holds entries of shard {shard} but not how it was created")
        try:
            machine = make_machine(self.open_engine(self.path(directory)))
        except DiskFailed:
            raise
        except (OSError, Fatal) as error:
            raise Corrupt(f"tablet {directory} does not open: {error}") from error
        self._check_or_bootstrap(machine, replica)
        me = replica_id(self._me, incarnation)
        restored = Restored(
            hard_state=replica.hard_state,
            entries=tuple(replica.entries),
            snapshot=SnapshotMeta(machine.applied, machine.applied_term, machine.configuration),
            applied=machine.applied,
            configuration=machine.configuration,
        )
        core = Core(me, settings, restored, dice, observe(shard))
        voters = core.configuration.voters
        if me in voters:
            # The first leaders of many shards are spread evenly over the nodes.
            core.order_first_campaign((voters.index(me) - shard) % len(voters))
        return Opened(shard, me, core, machine, directory)

    @staticmethod
    def _check_or_bootstrap(machine: Machine, replica: RecoveredReplica) -> None:
        assert replica.created is not None
        installed = replica.installed
        if installed is not None and machine.applied < installed.meta.index:
            raise Corrupt(
                f"tablet is at {machine.applied}, below the snapshot at {installed.meta.index} it came from"
            )
        if machine.is_empty:
            machine.bootstrap(replica.created.configuration)
        entries = replica.entries
        if entries and entries[0].index > machine.applied + 1:
            raise Corrupt(f"entries {machine.applied + 1}..{entries[0].index - 1} are missing")
        if entries and entries[-1].index < machine.applied:
            raise Corrupt(f"log ends at {entries[-1].index}, the tablet is at {machine.applied}")


def _directory_of(replica: RecoveredReplica) -> str | None:
    if replica.installed is not None:
        return replica.installed.directory
    return None if replica.created is None else replica.created.directory


def _key_of(directory: str) -> Key | None:
    """Whose tablet a directory of `fresh_name` was made for."""
    parts = directory.split("-")
    if len(parts) != 3 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return ShardId(int(parts[0])), Incarnation(int(parts[1]))


def _is_known(key: Key, recovered: Recovered) -> bool:
    """The log has this replica, or a later incarnation, which alone proves that this one is gone."""
    return any(shard == key[0] and incarnation >= key[1] for shard, incarnation in recovered.replicas)


def _is_debris(key: Key | None, recovered: Recovered, missing: set[Key]) -> bool:
    """Judge a directory that the log does not name."""
    if key is None:
        return True
    replica = recovered.replicas.get(key)
    if replica is not None:
        return replica.destroyed or replica.quarantined is None
    # Unknown: superseded and forgotten, or never recorded, or damage has swallowed every trace of it.
    is_trackless = recovered.has_lost_track or recovered.is_new or key in missing
    return _is_known(key, recovered) or not is_trackless
