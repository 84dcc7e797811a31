"""The API as an OpenAPI 3.1 document, made from the table of routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from kvstore.node.api import view
from kvstore.node.requests import reason_of

if TYPE_CHECKING:
    from kvstore.node.api.table import Operation

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "integer"}
_FLAG: Schema = {"type": "boolean"}
_CURSOR: Schema = {"type": ["string", "null"]}
_ANY_OBJECT: Schema = {"type": "object"}


def _object(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_ITEM: Schema = {
    "key": _TEXT,
    "key_b64": _TEXT,
    "value": _TEXT,
    "value_b64": _TEXT,
    "revision": _COUNT,
    "create_revision": _COUNT,
    "version": _COUNT,
    "lease": {"type": ["string", "null"]},
    "content_type": _TEXT,
}
_EVENTS = ["start", "put", "delete", "expire", "progress", "compacted", "end", "error"]


def _claim_schemas() -> dict[str, Schema]:
    """Of leases, locks and elections."""
    lease = {"lease": _TEXT, "ttl_ms": _COUNT}
    listed = lease | {"remaining_ms": _COUNT}
    kept = lease | {"status": _COUNT, "granted_ttl_ms": _COUNT, "code": _TEXT, "detail": _TEXT}
    holder = {"value": _TEXT, "value_b64": _TEXT, "fence": _COUNT, "ttl_ms": _COUNT, "waiting": _COUNT}
    return {
        "Grant": _object("ttl", ttl=_TEXT, id=_TEXT),
        "Lease": _object("lease ttl_ms", **lease, granted_ttl_ms=_COUNT),
        "Leases": _object("leases next", leases=_list(_object("lease ttl_ms", **listed)), next=_CURSOR),
        "LeaseInfo": _object("lease ttl_ms remaining_ms keys more", **listed, keys=_list({}), more=_FLAG),
        "Keepalive": _object("leases", leases=_list(_TEXT)),
        "KeptLeases": _object("results", results=_list(_object("lease status", **kept))),
        "Revoked": _object("lease revoked", lease=_TEXT, revoked=_FLAG, pending_shards=_list(_COUNT)),
        "Claim": _object("ttl", ttl=_TEXT, wait=_TEXT, value=_TEXT, value_b64=_TEXT),
        "Candidacy": _object("ttl value", ttl=_TEXT, wait=_TEXT, value=_TEXT, value_b64=_TEXT),
        "Claimed": _object("token fence ttl_ms", token=_TEXT, fence=_COUNT, ttl_ms=_COUNT),
        "Holder": _object("fence ttl_ms waiting", **holder),
        "Kept": _object("fence ttl_ms", fence=_COUNT, ttl_ms=_COUNT),
        "Released": _object("released", released=_FLAG),
    }


def _txn_schemas(op: dict[str, Schema], result: dict[str, Schema]) -> dict[str, Schema]:
    numbers = _object(eq=_COUNT, ne=_COUNT, lt=_COUNT, le=_COUNT, gt=_COUNT, ge=_COUNT)
    texts = _object(eq=_TEXT, ne=_TEXT, lt=_TEXT, le=_TEXT, gt=_TEXT, ge=_TEXT)
    compare = dict.fromkeys(("revision", "version", "create_revision"), numbers)
    compare |= dict.fromkeys(("value", "value_b64"), texts) | {"key": _TEXT, "key_b64": _TEXT}
    compare["lease"] = _object(eq=_TEXT, ne=_TEXT)
    unconditional = {name: schema for name, schema in op.items() if name not in ("if_revision", "if_absent")}
    branch = _list(_object("op", **unconditional))
    lists = {"if": _list(_object("", **compare)), "then": branch, "else": branch}
    return {
        "Txn": {"type": "object", "properties": lists},
        "TxnResults": _object(
            "succeeded results revisions",
            succeeded=_FLAG,
            results=_list(_object("status", **result)),
            revision=_COUNT,
            revisions={"type": "object", "additionalProperties": _COUNT},
        ),
    }


def _schemas() -> dict[str, Schema]:
    item = _ITEM
    op = item | {"op": {"enum": ["put", "get", "delete", "incr"]}}
    op |= {"if_revision": _COUNT, "if_absent": _FLAG, "prev": _FLAG, "by": _NUMBER}
    op |= {"min": {"type": ["integer", "null"]}, "max": {"type": ["integer", "null"]}}
    result = item | {"status": _COUNT, "created": _FLAG, "deleted": _COUNT}
    result |= {"code": _TEXT, "detail": _TEXT, "prev": _ref("Item")}
    schemas: dict[str, Schema] = {
        "Item": _object("revision", **item),
        "Written": _object(
            "revision version created", revision=_COUNT, version=_COUNT, created=_FLAG, prev=_ref("Item")
        ),
        "Deleted": _object("deleted revision", deleted=_COUNT, revision=_COUNT, prev=_ref("Item")),
        "RangeDeleted": _object("deleted", deleted=_COUNT),
        "Increment": _object(
            by=_NUMBER, min={"type": ["integer", "null"]}, max={"type": ["integer", "null"]}
        ),
        "Incremented": _object("value revision", value=_NUMBER, revision=_COUNT),
        "Page": _object(
            "items next count pos", items=_list(_ref("Item")), next=_CURSOR, count=_COUNT, pos=_TEXT
        ),
        "Batch": _object("ops", ops=_list(_object("op", **op)), shards=_list(_COUNT)),
        "BatchResults": _object("results", results=_list(_object("status", **result))),
        "Transfer": _object("to", to=_TEXT),
        "Transferred": _object("shard to", shard=_COUNT, to=_TEXT, leader={"type": ["string", "null"]}),
        "Rebuild": _object("node", node=_TEXT),
        "Rebuilding": _ref("RebuildRow"),
        "Explained": _object("token shard", token=_TEXT, shard=_COUNT, key=_TEXT, hash_tag=_TEXT),
        "Info": _object("version limits", version=_TEXT, limits=_ANY_OBJECT),
        "Nodes": _object("nodes", nodes=_list(_ref("NodeRow"))),
        "Shards": _object("shards", shards=_list(_ref("ShardRow"))),
        "Shard": _ref("ShardRow"),
        "Cluster": _ref("ClusterRow"),
        "Event": _object("type", type={"enum": _EVENTS}, pos=_TEXT, shard=_COUNT, prev=_ref("Item"), **item),
        "object": _ANY_OBJECT,
        "Problem": _object(
            "type title status detail code retryable",
            type=_TEXT,
            title=_TEXT,
            status=_COUNT,
            detail=_TEXT,
            code=_TEXT,
            retryable=_FLAG,
        ),
    }
    rows = (view.ShardRow, view.NodeRow, view.ClusterRow, view.Routes, view.RebuildRow)
    _, described = msgspec.json.schema_components(rows, ref_template="#/components/schemas/{name}")
    return schemas | _claim_schemas() | _txn_schemas(op, result) | described


def _answer(status: int, text: str, schema: str | None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": text or reason_of(status),
        "headers": {"KV-Request-Id": {"schema": _TEXT}},
    }
    if schema in ("value", "text", "html"):
        media = {"value": "*/*", "text": "text/plain", "html": "text/html"}[schema]
        answer["content"] = {media: {"schema": _TEXT}}
    elif schema is not None:
        content = {"schema": _ref(schema)}
        answer["content"] = {"application/json": content, "application/msgpack": content}
    return answer


def _problem(status: int) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _ref("Problem")}}
    return {"description": reason_of(status), "content": content}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    for parameter in operation.parameters:
        kind = "string" if parameter.kind == "bytes" else parameter.kind
        text = parameter.text if parameter.is_supported else parameter.text + " Not in this version: 501."
        schema: Schema = {"type": kind}
        if kind == "boolean":
            schema = {"enum": ["0", "1"]}
        found.append({"name": parameter.name, "in": "query", "description": text, "schema": schema})
    for name in (*operation.headers, "KV-Timeout", "KV-Request-Id"):
        found.append({"name": name, "in": "header", "schema": _TEXT})
    return found


def _operation(operation: Operation) -> dict[str, Any]:
    errors = operation.errors if operation.handler is not None else (501,)
    answers = operation.answers if operation.handler is not None else ()
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.text,
        "parameters": _parameters(operation),
        "responses": {str(status): _answer(status, text, schema) for status, text, schema in answers}
        | {str(status): _problem(status) for status in sorted({*errors, 400})},
    }
    if operation.body == "value":
        described["requestBody"] = {"content": {"*/*": {"schema": _TEXT}}}
    elif operation.body is not None:
        content = {"schema": _ref(operation.body)}
        described["requestBody"] = {"content": {"application/json": content, "application/msgpack": content}}
    return described


def document(operations: Iterable[Operation], version: str) -> bytes:
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = paths.setdefault(operation.path, {})
        path[operation.method.lower()] = _operation(operation)
        if operation.method == "GET":
            head = _operation(operation)
            head["operationId"] += "_head"
            path["head"] = head
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "kvstore",
                "version": version,
                "description": "A strongly consistent, sharded key-value store.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {"schemas": _schemas()},
        }
    )
