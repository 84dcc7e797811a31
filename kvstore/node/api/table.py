"""Every route of the API: its handler, its parameters, its words for people.

The dispatcher matches by this table, refuses parameters that are not in it, makes the 405 answers from it,
and `openapi.py` describes it. A route without a handler belongs to the contract but not to this version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kvstore.node.api import batch, cluster, kv, leases, locks, ops, ranges, txn, watch

Handler = Callable[..., None]
"""Called with context, request, the raw path arguments, and the decoded query."""


class Parameter(NamedTuple):
    """A query parameter. `kind` is an OpenAPI type, or `bytes` for percent-encoded bytes."""

    name: str
    kind: str
    text: str
    is_supported: bool = True


class Operation(NamedTuple):
    method: str
    path: str
    name: str
    """Names the operation in metrics and as OpenAPI's operationId."""
    handler: Handler | None
    text: str
    parameters: tuple[Parameter, ...] = ()
    headers: tuple[str, ...] = ()
    """Request headers with a meaning here, beside KV-Timeout and KV-Request-Id."""
    body: str | None = None
    """Name of the body's schema in `openapi.SCHEMAS`, or `value` for raw bytes."""
    answers: tuple[tuple[int, str, str | None], ...] = ((200, "Done.", None),)
    """Status, meaning, name of the schema."""
    errors: tuple[int, ...] = (400, 503, 504)


_TTL = Parameter("ttl", "string", "Time to live, like 30s: the key is deleted when it has passed.")
_LEASE = Parameter("lease", "string", "Tie the key to this lease: it is deleted when that ends.")
_WAIT = Parameter("wait", "string", "Hold the answer while the key is as If-None-Match says, like 30s.")
_PREV = Parameter("prev", "boolean", "Give back what was replaced.")
_REDIRECT = Parameter("redirect", "boolean", "Answer 307 to the leader instead of proxying.")
_READ = (
    Parameter("consistency", "string", "linearizable (default), lease or stale."),
    Parameter("max_staleness", "string", "Greatest age of a stale read, like 2s."),
)
_RANGE = (
    Parameter("prefix", "bytes", "Keys that begin with these bytes."),
    Parameter("start", "bytes", "First key."),
    Parameter("end", "bytes", "First key that is not included."),
)
_VERBOSE = Parameter("verbose", "boolean", "Name every check.")
_IDENTITY = ("Idempotency-Key", "KV-Session", "KV-Sequence", "KV-Acked-Below", "KV-Since", "KV-Epoch")
_WRITE_ERRORS = (400, 409, 412, 413, 421, 422, 429, 501, 503, 504, 507)
_READ_ERRORS = (400, 421, 501, 503, 504)
_CLAIM_ERRORS = (400, 404, 409, 413, 421, 422, 429, 503, 504, 507)
_HOLDER_ERRORS = (400, 404, 421, 429, 503, 504)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/v1/kv/{key}",
        "get",
        kv.get,
        "Read a key.",
        (Parameter("revision", "integer", "Read the key as of this revision."), _WAIT, _REDIRECT, *_READ),
        ("If-Match", "If-None-Match", "KV-Epoch"),
        answers=((200, "The value.", "value"), (304, "The revision is the one the caller has.", None)),
        errors=(*_READ_ERRORS, 404, 410, 412),
    ),
    Operation(
        "PUT",
        "/v1/kv/{key}",
        "put",
        kv.put,
        "Write a key. The content type is stored and given back.",
        (_TTL, _LEASE, _PREV, _REDIRECT),
        ("If-Match", "If-None-Match", *_IDENTITY),
        "value",
        ((201, "Created.", "Written"), (200, "Replaced.", "Written")),
        _WRITE_ERRORS,
    ),
    Operation(
        "DELETE",
        "/v1/kv/{key}",
        "delete",
        kv.delete,
        "Delete a key.",
        (_PREV, _REDIRECT),
        ("If-Match", *_IDENTITY),
        answers=((200, "Deleted, or was absent.", "Deleted"),),
        errors=_WRITE_ERRORS,
    ),
    Operation(
        "POST",
        "/v1/kv/{key}",
        "incr",
        kv.post,
        "Add to a counter.",
        (Parameter("op", "string", "incr"), _REDIRECT),
        _IDENTITY,
        "Increment",
        ((200, "The new value.", "Incremented"),),
        _WRITE_ERRORS,
    ),
    Operation(
        "GET",
        "/v1/kv",
        "scan",
        ranges.scan,
        "Keys in order over all shards, one snapshot per shard; a stream with Accept: application/x-ndjson.",
        (
            *_RANGE,
            Parameter("limit", "integer", "Most items of this answer."),
            Parameter("cursor", "string", "Go on where an answer's next says."),
            Parameter("keys_only", "boolean", "Leave out the values."),
            Parameter("count_only", "boolean", "Only count."),
            Parameter("order", "string", "asc (default) or desc."),
            *_READ,
        ),
        answers=((200, "A page.", "Page"),),
        errors=(400, 410, 503, 504),
    ),
    Operation(
        "DELETE",
        "/v1/kv",
        "range_delete",
        ranges.delete_range,
        "Delete all keys of a range.",
        (*_RANGE, Parameter("confirm", "string", "* or the exact count of keys.")),
        _IDENTITY,
        answers=((200, "How many were deleted.", "RangeDeleted"),),
        errors=(400, 422, 429, 503, 504),
    ),
    Operation(
        "POST",
        "/v1/batch",
        "batch",
        batch.batch,
        "Independent operations, each with its own result.",
        headers=_IDENTITY,
        body="Batch",
        answers=((200, "One result per operation.", "BatchResults"),),
        errors=(400, 413, 415, 421, 422, 429, 503, 504),
    ),
    Operation(
        "GET",
        "/v1/watch",
        "watch",
        watch.watch,
        "Stream the changes of a key, of all keys with a prefix, or of all keys, as lines of JSON; as "
        "server-sent events with Accept: text/event-stream.",
        (
            Parameter("key", "bytes", "Watch this key."),
            Parameter("prefix", "bytes", "Watch all keys that begin with these bytes."),
            Parameter("from", "string", "Go on from this position: the pos of an event or of a scan."),
            Parameter("prev", "boolean", "Give what each change replaced."),
        ),
        ("Last-Event-ID",),
        answers=((200, "A stream of events.", "Event"),),
        errors=(400, 429, 503, 504),
    ),
    Operation(
        "POST",
        "/v1/txn",
        "txn",
        txn.txn,
        "Compare, then do one of two lists of operations: all of it or nothing, over any shards.",
        headers=_IDENTITY,
        body="Txn",
        answers=((200, "Which list was done, and the result of each of its operations.", "TxnResults"),),
        errors=(400, 404, 409, 413, 415, 421, 422, 429, 501, 503, 504, 507),
    ),
    Operation(
        "POST",
        "/v1/leases",
        "lease_grant",
        leases.grant,
        "Grant a lease. With an id of the caller's own: 412 while a lease of that id lives.",
        headers=_IDENTITY,
        body="Grant",
        answers=((201, "Granted.", "Lease"),),
        errors=(400, 412, 415, 422, 429, 503, 504, 507),
    ),
    Operation(
        "GET",
        "/v1/leases",
        "lease_list",
        leases.list_all,
        "The living leases, shard by shard.",
        (
            Parameter("limit", "integer", "Most leases of this answer."),
            Parameter("cursor", "string", "Go on where an answer's next says."),
        ),
        answers=((200, "A page.", "Leases"),),
        errors=(400, 503, 504),
    ),
    Operation(
        "POST",
        "/v1/leases/keepalive",
        "lease_keepalive_many",
        leases.keepalive_many,
        "Renew many leases, each with its own result.",
        body="Keepalive",
        answers=((200, "One result per lease.", "KeptLeases"),),
        errors=(400, 413, 415, 503, 504),
    ),
    Operation(
        "GET",
        "/v1/leases/{id}",
        "lease_get",
        leases.get,
        "A lease's remaining time and keys.",
        (Parameter("limit", "integer", "Most keys of this answer."),),
        answers=((200, "It lives.", "LeaseInfo"),),
        errors=(400, 404, 503, 504),
    ),
    Operation(
        "DELETE",
        "/v1/leases/{id}",
        "lease_revoke",
        leases.revoke,
        "Revoke a lease with its keys, and wait until all are deleted.",
        headers=_IDENTITY,
        answers=(
            (200, "It has ended and its keys are gone.", "Revoked"),
            (202, "It has ended; keys on the shards named are still to go.", "Revoked"),
        ),
        errors=(404, 422, 429, 503, 504),
    ),
    Operation(
        "PUT",
        "/v1/leases/{id}/keepalive",
        "lease_keepalive",
        leases.keepalive,
        "Renew a lease.",
        answers=((200, "So long it now lasts.", "Lease"),),
        errors=(404, 503, 504),
    ),
    Operation(
        "POST",
        "/v1/locks/{name}",
        "lock",
        locks.lock,
        "Take a fair lock, or wait for it. The fence grows with every holder.",
        headers=_IDENTITY,
        body="Claim",
        answers=((200, "It is held now.", "Claimed"),),
        errors=_CLAIM_ERRORS,
    ),
    Operation(
        "GET",
        "/v1/locks/{name}",
        "lock_holder",
        locks.lock_holder,
        "Who holds a lock.",
        _READ,
        answers=((200, "It is held.", "Holder"),),
        errors=(*_READ_ERRORS, 404),
    ),
    Operation(
        "DELETE",
        "/v1/locks/{name}/{token}",
        "unlock",
        locks.unlock,
        "Release a lock. May be repeated.",
        answers=((200, "It is not held any more.", "Released"),),
        errors=_HOLDER_ERRORS,
    ),
    Operation(
        "PUT",
        "/v1/locks/{name}/{token}/keepalive",
        "lock_keepalive",
        locks.lock_keepalive,
        "Hold a lock for another TTL.",
        answers=((200, "It is held.", "Kept"),),
        errors=_HOLDER_ERRORS,
    ),
    Operation(
        "POST",
        "/v1/elections/{name}",
        "campaign",
        locks.campaign,
        "Stand for election; without wait as long as the request may take.",
        headers=_IDENTITY,
        body="Candidacy",
        answers=((200, "Elected.", "Claimed"),),
        errors=_CLAIM_ERRORS,
    ),
    Operation(
        "GET",
        "/v1/elections/{name}",
        "election",
        locks.election,
        "Who is elected.",
        _READ,
        answers=((200, "Somebody is.", "Holder"),),
        errors=(*_READ_ERRORS, 404),
    ),
    Operation(
        "DELETE",
        "/v1/elections/{name}/{token}",
        "resign",
        locks.resign,
        "Resign. May be repeated.",
        answers=((200, "Not in office any more.", "Released"),),
        errors=_HOLDER_ERRORS,
    ),
    Operation(
        "PUT",
        "/v1/elections/{name}/{token}/keepalive",
        "election_keepalive",
        locks.election_keepalive,
        "Stay in office for another TTL.",
        answers=((200, "In office.", "Kept"),),
        errors=_HOLDER_ERRORS,
    ),
    Operation(
        "GET",
        "/v1/cluster",
        "cluster",
        cluster.cluster,
        "Health of the cluster.",
        answers=((200, "", "Cluster"),),
    ),
    Operation("GET", "/v1/nodes", "nodes", cluster.nodes, "The members.", answers=((200, "", "Nodes"),)),
    Operation("POST", "/v1/nodes", "node_add", None, "Add a node."),
    Operation("DELETE", "/v1/nodes/{id}", "node_remove", None, "Remove a node."),
    Operation("POST", "/v1/nodes/{id}/drain", "node_drain", None, "Move everything off a node."),
    Operation("GET", "/v1/shards", "shards", cluster.shards, "All shards.", answers=((200, "", "Shards"),)),
    Operation(
        "GET",
        "/v1/shards/{id}",
        "shard",
        cluster.shard,
        "One shard; meta is the one with the cluster's own state.",
        answers=((200, "", "Shard"),),
        errors=(404, 503, 504),
    ),
    Operation(
        "POST",
        "/v1/shards/{id}/transfer",
        "transfer",
        cluster.transfer,
        "Make another replica lead the shard.",
        body="Transfer",
        answers=((200, "The node leads.", "Transferred"), (202, "Under way.", "Transferred")),
        errors=(400, 404, 503, 504),
    ),
    Operation(
        "POST",
        "/v1/shards/{id}/rebuild",
        "rebuild",
        cluster.rebuild,
        "Replace a quarantined or lost replica by a new copy on the same node.",
        body="Rebuild",
        answers=((200, "The new replica votes.", "Rebuilding"), (202, "Under way.", "Rebuilding")),
        errors=(400, 404, 429, 503, 504),
    ),
    Operation("POST", "/v1/shards/{id}/move", "shard_move", None, "Move a replica to another node."),
    Operation(
        "GET",
        "/v1/routes",
        "routes",
        cluster.routes,
        "What a client routes by.",
        answers=((200, "", "Routes"),),
    ),
    Operation(
        "GET",
        "/v1/keys/{key}/explain",
        "explain",
        cluster.explain,
        "Where a key lives and why.",
        answers=((200, "", "Explained"),),
    ),
    Operation("POST", "/v1/backup", "backup", None, "A consistent backup of every shard."),
    Operation("POST", "/v1/restore", "restore", None, "Restore a backup."),
    Operation("GET", "/v1/info", "info", ops.info, "Limits and version.", answers=((200, "", "Info"),)),
    Operation("GET", "/livez", "livez", ops.livez, "Whether the process works.", (_VERBOSE,), errors=(503,)),
    Operation("GET", "/readyz", "readyz", ops.readyz, "Whether the node serves.", (_VERBOSE,), errors=(503,)),
    Operation(
        "GET",
        "/metrics",
        "metrics",
        ops.metrics,
        "For Prometheus.",
        answers=((200, "Metrics.", "text"),),
        errors=(),
    ),
    Operation(
        "GET", "/", "index", ops.index, "A page for people.", answers=((200, "HTML.", "html"),), errors=()
    ),
)
