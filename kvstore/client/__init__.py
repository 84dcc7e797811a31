"""Python clients of a cluster: `AsyncClient` on asyncio, and `Client`, which blocks.

    from kvstore.client import AsyncClient

    async with AsyncClient("127.0.0.1:7401", "127.0.0.1:7402", timeout=2.0) as kv:
        await kv.put("user/1", b"ann")
        item = await kv.get("user/1")

How the parts fit:

    operations, op, batch, transactions, claims
                        what a call asks for, and how its answer reads
    plan                where it goes, when it goes again, what a failure means; no I/O
    watching, claims    the plans that go on: following changes, keeping leases, locks and offices
    routes, session     what a client remembers: leaders, clocks, failed nodes; identities of writes
    aio*, sync*         the two drivers: they send, wait and hand back what came of it
    errors              the exceptions, for `from kvstore.client import errors`

Every call has a deadline, not a number of retries. A call that ends in `NotApplied` surely changed
nothing; `OutcomeUnknown` means that a write may have happened. Everything in between is retried, and a
write that is retried is applied once: it carries an identity that the shards remember.

`AsyncClient` and its like are loaded on first use: programs that only block never load aiohttp.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvstore import errors
from kvstore.client.results import DeleteResult, IncrResult, Item, Leader, LeaseInfo, Pending, PutResult
from kvstore.client.sync import Client
from kvstore.errors import (
    Compacted,
    Conflict,
    Denied,
    InvalidArgument,
    KvError,
    LeaseNotFound,
    Locked,
    LockLost,
    NoLeader,
    NotANumber,
    NotApplied,
    OutcomeUnknown,
    OutOfRange,
    Overloaded,
    ReadTimeout,
    TooLarge,
    TxnConflict,
    Unavailable,
)

if TYPE_CHECKING:
    from kvstore.client import op
    from kvstore.client.aio import AsyncClient
    from kvstore.client.batch import Batch
    from kvstore.client.changes import Change, Delete, Expire, Progress, Put, Resynced
    from kvstore.client.transactions import Committed, Compare, when

__all__ = [
    "AsyncClient",
    "Batch",
    "Change",
    "Client",
    "Committed",
    "Compacted",
    "Compare",
    "Conflict",
    "Delete",
    "DeleteResult",
    "Denied",
    "Expire",
    "IncrResult",
    "InvalidArgument",
    "Item",
    "KvError",
    "Leader",
    "LeaseInfo",
    "LeaseNotFound",
    "LockLost",
    "Locked",
    "NoLeader",
    "NotANumber",
    "NotApplied",
    "OutOfRange",
    "OutcomeUnknown",
    "Overloaded",
    "Pending",
    "Progress",
    "Put",
    "PutResult",
    "ReadTimeout",
    "Resynced",
    "TooLarge",
    "TxnConflict",
    "Unavailable",
    "errors",
    "op",
    "when",
]


_MODULES = {
    "AsyncClient": "aio",
    "Batch": "batch",
    **dict.fromkeys(("Change", "Delete", "Expire", "Progress", "Put", "Resynced"), "changes"),
    **dict.fromkeys(("Committed", "Compare", "when"), "transactions"),
}
"""Where names are that are loaded on first use."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"kvstore.client.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
