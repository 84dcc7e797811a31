"""Stored items as they go out in containers."""

from __future__ import annotations

import logging
from typing import Any

from kvstore.errors import KvError, OutcomeUnknown
from kvstore.wire import api
from kvstore.wire.bodies import named_bytes

log = logging.getLogger(__name__)


def item_fields(item: list[Any], is_msgpack: bool, key: bytes | None = None) -> dict[str, Any]:
    """A scan item, a batch get's result, or the `prev` of a write. `item` is the store's list.

    In JSON, keys and values that are not UTF-8 appear as base64 under `key_b64` and `value_b64`. A scan
    of keys only has None for the value, which is then left out.
    """
    value, revision, create_revision, version, content_type, lease, _deadline = item
    fields: dict[str, Any] = {}
    if is_msgpack:
        if key is not None:
            fields["key"] = key
        if value is not None:
            fields["value"] = value
    else:
        if key is not None:
            named_bytes("key", key, fields)
        if value is not None:
            named_bytes("value", value, fields)
    fields["revision"] = revision
    fields["create_revision"] = create_revision
    fields["version"] = version
    fields["lease"] = None if lease is None else lease.decode()
    if content_type is not None:
        fields["content_type"] = content_type
    return fields


def put_fields(result: list[Any], is_msgpack: bool) -> dict[str, Any]:
    """The answer to a put, from its OK result."""
    fields = {"revision": result[1], "version": result[2], "created": result[3]}
    if result[4] is not None:
        fields["prev"] = item_fields(result[4], is_msgpack)
    return fields


def delete_fields(result: list[Any], is_msgpack: bool) -> dict[str, Any]:
    """The answer to a delete, from its OK result."""
    fields = {"deleted": result[2], "revision": result[1]}
    if result[3] is not None:
        fields["prev"] = item_fields(result[3], is_msgpack)
    return fields


def failure_fields(error: BaseException) -> dict[str, Any]:
    """The result of an operation of a batch that failed: a problem without what repeats in each."""
    if not isinstance(error, KvError):
        log.error("an operation of a batch failed", exc_info=error)
        error = OutcomeUnknown("the node failed to handle this operation; its log says more")
    document = api.problem_document(error)
    del document["type"], document["title"]
    return document
