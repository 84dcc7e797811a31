"""The state of one replica: an MVCC store in a tablet, driven by committed log entries.

Reading order: `commands` (what an entry may say) and `results` (what comes back); `machine` (apply, query,
flush, checkpoint); `mvcc`, `sessions` and `compaction` (what entries do); `draft` (their writes before
they are in the engine); `queries` (reads); `keys` and `records` (bytes); `engine` with `rocks` and
`memory` (what keeps them).

Invariants, each with tests in `tests/unit/store`:
- the tablet is always as it was after some entry, and its meta record says after which one;
- the same entries give the same tablet, results and state hash, however they were batched, flushed, copied
  or replayed, on either engine;
- every op of a session's request is executed at most once;
- at and above the compaction point every read is exact; below it every read says so.

Caveats: `flush` and `checkpoint` block; a scan's iterator ends with the next write; results that carry large
previous values lose them in replayed answers; nothing here checks sizes, `commands.check` and the API do.
"""

from kvstore.store.engine import Engine, Engines
from kvstore.store.limits import StoreLimits
from kvstore.store.machine import Machine, read_snapshot_meta
from kvstore.store.memory import MemoryEngines
from kvstore.store.results import CommandResult
from kvstore.store.rocks import RocksEngines

__all__ = [
    "CommandResult",
    "Engine",
    "Engines",
    "Machine",
    "MemoryEngines",
    "RocksEngines",
    "StoreLimits",
    "read_snapshot_meta",
]
