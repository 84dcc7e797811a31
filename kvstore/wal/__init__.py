"""The write-ahead log: one for all replicas of a node.

    wal.py            the log: open, append, reclaim
    record.py         what a record can say, and its bytes
    batch.py          the unit of validity: one write, one sync
    segment.py        one file: header, then batches
    segment_files.py  making, retiring and reserving these files
    index.py          what of the log is alive, and where it lies
    reclaim.py        which segments may go, and what is copied first
    recovery.py       reading the log at start: torn writes, damage
    replay.py         what the records mean, and whom damage hurt
    dump.py           the log for human eyes, offline

The host of the node's replicas hands over the records of one pass of its loop as one batch. What it got
acknowledged is found again after any crash; what was damaged on the disk is reported, never left out in
silence. The bytes are described in `docs/data_on_disk.md`.

Left out: checks of old segments between starts (rot is found at the next start or relocation), and any
defence against a disk that acknowledges a sync and then drops it.
"""

from kvstore.wal.record import (
    ClockRecord,
    Entries,
    HardStateRecord,
    Key,
    Quarantined,
    Record,
    ShardCreated,
    ShardDestroyed,
    SnapshotInstalled,
    Truncate,
)
from kvstore.wal.replay import Recovered, RecoveredReplica
from kvstore.wal.segment_files import WalSettings
from kvstore.wal.wal import Wal

__all__ = [
    "ClockRecord",
    "Entries",
    "HardStateRecord",
    "Key",
    "Quarantined",
    "Record",
    "Recovered",
    "RecoveredReplica",
    "ShardCreated",
    "ShardDestroyed",
    "SnapshotInstalled",
    "Truncate",
    "Wal",
    "WalSettings",
]
