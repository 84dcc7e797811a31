"""Between Python values and the HTTP contract: keys in paths, bodies, items, problem documents.

What a server may send is judged here once; anything that is not what the contract says is `Garbled`,
which the plans treat like a lost answer.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from kvstore.client.exchange import Reply
from kvstore.client.results import Item
from kvstore.errors import BY_CODE, InvalidArgument, KvError, NotApplied, OutcomeUnknown, Unavailable

MSGPACK = "application/msgpack"


class Garbled(Exception):
    """A reply that the contract does not allow: what it meant is not known."""


def key_bytes(key: str | bytes) -> bytes:
    """Return the key as the server counts it: text is UTF-8. Raises InvalidArgument when empty."""
    encoded = key.encode() if isinstance(key, str) else bytes(key)
    if not encoded:
        raise InvalidArgument("a key must have at least one byte")
    return encoded


def value_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def key_path(key: bytes) -> str:
    """Return the path of one key. A key of dots only is escaped too, or proxies would fold the path."""
    if not key.strip(b"."):
        return "/v1/kv/" + "%2E" * len(key)
    return "/v1/kv/" + quote(key, safe="")


def query(path: str, **parameters: str | bytes | int | None) -> str:
    """Append the parameters that are not None; bytes are percent-encoded as they are."""
    pairs = [
        f"{name}={quote(str(value) if isinstance(value, int) else value, safe='')}"
        for name, value in parameters.items()
        if value is not None
    ]
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def milliseconds(seconds: float) -> str:
    """Format a duration for a parameter or header, never rounding a positive one to nothing."""
    return f"{max(1, int(seconds * 1000))}ms"


def content(reply: Reply) -> Any:
    """Decode a JSON or msgpack body. Raises Garbled."""
    kind = reply.headers.get("content-type", "")
    try:
        if kind.startswith(MSGPACK):
            import msgpack  # only where an answer is msgpack: one-shot commands start faster

            return msgpack.unpackb(
                reply.body, raw=False, strict_map_key=False, unicode_errors="surrogateescape"
            )
        return json.loads(reply.body)
    except ValueError as error:
        raise Garbled(f"{reply.status} {kind or 'without content type'}: {error}") from error


def document(reply: Reply) -> dict[str, Any]:
    found = content(reply)
    if not isinstance(found, dict):
        raise Garbled(f"expected an object, got {type(found).__name__}")
    return found


def pack(body: Any) -> bytes:
    import msgpack  # see content()

    packed: bytes = msgpack.packb(body, use_bin_type=True)
    return packed


def integer(fields: Mapping[str, Any], name: str) -> int:
    found = fields.get(name)
    if not isinstance(found, int):
        raise Garbled(f"expected an integer {name!r}, got {found!r}")
    return found


def octets(fields: Mapping[str, Any], name: str) -> bytes:
    """Return a key or value: bytes, UTF-8 text, or base64 under the name with `_b64`. Absent is empty."""
    encoded = fields.get(f"{name}_b64")
    if isinstance(encoded, str):
        try:
            return b64decode(encoded, validate=True)
        except ValueError as error:
            raise Garbled(f"{name}_b64: {error}") from error
    found = fields.get(name)
    if found is None:
        return b""
    if isinstance(found, bytes):
        return found
    if isinstance(found, str):
        return found.encode("utf-8", "surrogateescape")
    raise Garbled(f"expected bytes or text {name!r}, got {type(found).__name__}")


def item(fields: Mapping[str, Any], key: bytes | None = None) -> Item:
    """Build an Item from a scan item, a batch result or a `prev` (where the key is the caller's)."""
    ttl_ms = fields.get("ttl_ms")
    return Item(
        key=octets(fields, "key") if key is None else key,
        value=octets(fields, "value"),
        revision=integer(fields, "revision"),
        create_revision=fields.get("create_revision") or 0,
        version=fields.get("version") or 0,
        lease=fields.get("lease"),
        ttl_s=ttl_ms / 1000 if isinstance(ttl_ms, int) else None,
        content_type=fields.get("content_type"),
    )


def item_from_headers(key: bytes, reply: Reply) -> Item:
    headers = reply.headers
    return Item(
        key=key,
        value=reply.body,
        revision=_header_integer(headers, "kv-revision"),
        create_revision=_header_integer(headers, "kv-create-revision"),
        version=_header_integer(headers, "kv-version"),
        lease=headers.get("kv-lease"),
        ttl_s=_seconds(headers.get("kv-ttl")),
        content_type=headers.get("content-type"),
        staleness_s=_seconds(headers.get("kv-staleness")),
    )


def _header_integer(headers: Mapping[str, str], name: str) -> int:
    found = headers.get(name, "")
    if not found.isascii() or not found.isdigit():
        raise Garbled(f"expected an integer in header {name}, got {found!r}")
    return int(found)


def _seconds(text: str | None) -> float | None:
    """Parse a duration header: "1500ms", "1.5s" or plain seconds. What cannot be read is left out."""
    if not text:
        return None
    number, scale = (text[:-2], 0.001) if text.endswith("ms") else (text.removesuffix("s"), 1.0)
    try:
        return float(number) * scale
    except ValueError:
        return None


def problem(reply: Reply, *, is_write: bool) -> KvError:
    """Turn an error reply into the error class its code names.

    An answer whose code we don't know is judged by its status: a 5xx of a write may have happened.
    """
    try:
        fields = document(reply)
    except Garbled:
        fields = {}
    error = from_fields(fields, reply.status, is_write=is_write)
    error.request_id = reply.headers.get("kv-request-id") or fields.get("request_id")
    retry_after_s = _seconds(reply.headers.get("retry-after"))
    if retry_after_s is not None:
        error.fields.setdefault("retry_after", retry_after_s)
    return error


def from_fields(fields: Mapping[str, Any], status: int, *, is_write: bool) -> KvError:
    """Build the error of a problem document, or of one operation's result in a batch."""
    code, detail = fields.get("code"), fields.get("detail")
    kind = BY_CODE.get(code) if isinstance(code, str) else None
    if kind is None or kind is KvError:
        kind = NotApplied if status < 500 else OutcomeUnknown if is_write else Unavailable
    text = detail if isinstance(detail, str) and detail else f"HTTP {status} {code or ''}".rstrip()
    known = {"type", "title", "status", "detail", "code", "retryable", "request_id"}
    return kind(
        text, **{name: value for name, value in fields.items() if name not in known and name.isidentifier()}
    )
