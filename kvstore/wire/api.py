"""The client API's encodings: targets, queries, durations, conditions, identities, cursors, problems.

Everything that arrives here was written by a stranger. Each function returns a value of the promised
shape or raises a `KvError` that names the part and what was expected; nothing else ever escapes. Pure:
the same functions serve the node's handlers, the simulator and the fuzz tests.
"""

from __future__ import annotations

import binascii
import hashlib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NewType, Protocol

import msgspec

from kvstore.errors import InvalidArgument, KvError, TooLarge

Query = NewType("Query", dict[str, bytes])
"""Decoded parameters of a query string. Values are bytes, because keys and prefixes may be any bytes."""

TIMEOUT_MS_MAX = 600_000
"""A caller may wait this long: a request in progress holds a connection that nobody else can have."""
INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

_HEX_PAIRS = {
    (high + low).encode(): bytes((int(high + low, 16),))
    for high in "0123456789abcdefABCDEF"
    for low in "0123456789abcdefABCDEF"
}
_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h)?", re.ASCII)
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, None: 1000}
_SESSION = re.compile(r"[A-Za-z0-9._~-]{1,64}", re.ASCII)
_HEX_SESSION = re.compile(r"[0-9a-f]{32}", re.ASCII)
_KEY_HEADER = re.compile(r'"?([\x21\x23-\x7e]{1,255})"?', re.ASCII)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/=+@-]{1,128}", re.ASCII)
_ETAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"', re.ASCII)
_REVISION = re.compile(r"[0-9]{1,19}", re.ASCII)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?:[ \t]*;[\x20-\x7e\t]*)?", re.ASCII)


class HeaderLookup(Protocol):
    """Case-insensitive headers; `get` returns the first of a name."""

    def get(self, name: str, /) -> str | None: ...


# --- targets and queries -------------------------------------------------------------------------


def split_target(target: str) -> tuple[str, str]:
    """Path and query of a raw request target; an absolute-form target loses its scheme and host."""
    if not target.startswith("/"):
        _scheme, separator, rest = target.partition("://")
        if not separator:
            raise InvalidArgument("the request target must be a path that begins with '/'")
        _host, slash, rest = rest.partition("/")
        target = slash + rest or "/"
    if "#" in target:
        raise InvalidArgument("the request target must not hold a fragment: send '#' as %23")
    path, _mark, query = target.partition("?")
    return path, query


def percent_decoded(text: str, where: str) -> bytes:
    """The bytes that `text` stands for; `+` is a plus. `where` names the part in errors."""
    raw = text.encode("utf-8", "surrogateescape")
    if b"%" not in raw:
        return raw
    head, *escapes = raw.split(b"%")
    pieces = [head]
    for escape in escapes:
        byte = _HEX_PAIRS.get(escape[:2])
        if byte is None:
            raise InvalidArgument(
                f"{where} holds a '%' that two hexadecimal digits do not follow; send '%' itself as %25"
            )
        pieces.append(byte)
        pieces.append(escape[2:])
    return b"".join(pieces)


def path_key(encoded: str, bytes_max: int) -> bytes:
    """The key named in a path. Raises `InvalidArgument` if it is empty, `TooLarge` above the limit."""
    key = percent_decoded(encoded, "the key")
    check_key(key, bytes_max, "the key")
    return key


def check_key(key: bytes, bytes_max: int, where: str) -> None:
    if not key:
        raise InvalidArgument(f"{where} is empty: a key has at least one byte")
    if len(key) > bytes_max:
        raise too_large(where, "key_bytes_max", bytes_max, len(key))


def too_large(where: str, limit: str, allowed: int, size: int) -> TooLarge:
    return TooLarge(f"{where} has {size} bytes, {limit} is {allowed}", limit=limit, max=allowed, size=size)


def parse_query(query: str, known: Collection[str]) -> Query:
    """Decode a query string. Unknown and repeated parameters are refused by name."""
    values: dict[str, bytes] = {}
    if query:
        for pair in query.split("&"):
            if not pair:
                continue
            name_text, _equals, value = pair.partition("=")
            name = percent_decoded(name_text, "a query parameter's name").decode("utf-8", "replace")
            if name not in known:
                expected = ", ".join(sorted(known)) or "none"
                raise InvalidArgument(
                    f"unknown query parameter {name!r}; known here: {expected}", parameter=name
                )
            if name in values:
                raise InvalidArgument(f"query parameter {name!r} is given twice", parameter=name)
            values[name] = percent_decoded(value.replace("+", " "), f"query parameter {name!r}")
    return Query(values)


def text_of(query: Query, name: str) -> str | None:
    raw = query.get(name)
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"query parameter {name!r} is not UTF-8", parameter=name) from None


def flag_of(query: Query, name: str) -> bool:
    """`?name`, `?name=1` and `?name=true` are true; `0` and `false` are false."""
    raw = query.get(name)
    if raw is None or raw in (b"0", b"false"):
        return False
    if raw in (b"", b"1", b"true"):
        return True
    raise InvalidArgument(f"query parameter {name!r} must be 1 or 0", parameter=name)


def integer_of(query: Query, name: str, low: int, high: int) -> int | None:
    text = text_of(query, name)
    return None if text is None else integer(text, f"query parameter {name!r}", low, high)


def choice_of(query: Query, name: str, choices: Collection[str], default: str) -> str:
    text = text_of(query, name)
    if text is None:
        return default
    if text not in choices:
        raise InvalidArgument(
            f"query parameter {name!r} must be one of {', '.join(choices)}", parameter=name, got=text[:64]
        )
    return text


def integer(text: str, where: str, low: int, high: int) -> int:
    """A plain decimal integer within [low, high]; no spaces, underscores or other scripts' digits."""
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= 19:
        number = int(text)
        if low <= number <= high:
            return number
    raise InvalidArgument(f"{where} must be an integer from {low} to {high}, got {text[:40]!r}")


def duration_ms(text: str, where: str, low_ms: int, high_ms: int) -> int:
    """Milliseconds of "750ms", "30s", "1.5m", "2h"; a plain number is seconds."""
    match = _DURATION.fullmatch(text)
    if match is not None:
        number = math.ceil(float(match[1]) * _UNIT_MS[match[2]])
        if low_ms <= number <= high_ms:
            return number
        raise InvalidArgument(f"{where} must be from {low_ms}ms to {high_ms}ms, got {text[:40]!r}")
    raise InvalidArgument(f'{where} must be a duration like "750ms", "30s" or "1m", got {text[:40]!r}')


# --- headers -------------------------------------------------------------------------------------


def etags(value: str, where: str) -> list[tuple[bool, str]] | None:
    """(is_weak, opaque tag) of each tag of a condition header; None stands for `*`."""
    if value.strip() == "*":
        return None
    found = []
    for part in value.split(","):
        match = _ETAG.fullmatch(part.strip())
        if match is None:
            raise InvalidArgument(f'{where} must be * or quoted revisions like "7", got {value[:80]!r}')
        found.append((match[1] is not None, match[2]))
    return found


def revision_of_if_match(value: str) -> int | None:
    """The one revision a write may name in If-Match; None stands for `*`, any that exists."""
    tags = etags(value, "If-Match")
    if tags is None:
        return None
    if len(tags) != 1:
        raise InvalidArgument("If-Match on a write takes exactly one revision")
    is_weak, tag = tags[0]
    if is_weak or not _REVISION.fullmatch(tag) or int(tag) > INT64_MAX:
        raise InvalidArgument(
            f'If-Match must be a strong tag that is a revision, like "7", got {value[:80]!r}'
        )
    return int(tag)


def require_absent(value: str) -> None:
    """The only If-None-Match a write may carry is `*`: create, never replace."""
    if etags(value, "If-None-Match") is not None:
        raise InvalidArgument("If-None-Match on a write must be *; to compare revisions use If-Match")


def matches_etag(value: str, revision: int, where: str, *, weakly: bool) -> bool:
    """Whether a condition header of a read names `revision` (RFC 9110 8.8.3.2)."""
    tags = etags(value, where)
    if tags is None:
        return True
    wanted = str(revision)
    return any(tag == wanted and (weakly or not is_weak) for is_weak, tag in tags)


def revision_to_wait_on(headers: HeaderLookup) -> int | None:
    """The revision that a long poll names in If-None-Match, 0 for an absent key; None stands for `*`."""
    value = headers.get("If-None-Match")
    if value is None:
        raise InvalidArgument(
            'wait needs If-None-Match: "REVISION", the one you know ("0": the key is absent, *: it exists)'
        )
    tags = etags(value, "If-None-Match")
    if tags is None:
        return None
    if len(tags) != 1 or not _REVISION.fullmatch(tags[0][1]) or int(tags[0][1]) > INT64_MAX:
        raise InvalidArgument(f'with wait, If-None-Match takes one revision, like "7", got {value[:80]!r}')
    return int(tags[0][1])


def request_id_of(headers: HeaderLookup) -> str | None:
    """The caller's own id for the request, if it may safely be echoed and logged."""
    value = headers.get("KV-Request-Id")
    if value is not None and _REQUEST_ID.fullmatch(value):
        return value
    return None


def timeout_s(headers: HeaderLookup, default_s: float) -> float:
    value = headers.get("KV-Timeout")
    if value is None:
        return default_s
    return duration_ms(value, "KV-Timeout", 1, TIMEOUT_MS_MAX) / 1000


def epoch_of(headers: HeaderLookup) -> int | None:
    value = headers.get("KV-Epoch")
    return None if value is None else integer(value, "KV-Epoch", 0, INT64_MAX)


def content_type_of(headers: HeaderLookup, bytes_max: int) -> str | None:
    """The media type to store with a value, checked so that it can be given back as a header."""
    value = headers.get("Content-Type")
    if value is None:
        return None
    check_content_type(value, bytes_max, "Content-Type")
    return value


def check_content_type(value: str, bytes_max: int, where: str) -> None:
    if len(value) > bytes_max:
        raise too_large(where, "content_type_bytes_max", bytes_max, len(value))
    if not _MEDIA_TYPE.fullmatch(value):
        raise InvalidArgument(f"{where} must be a media type like text/plain; charset=utf-8")


def wants_msgpack(headers: HeaderLookup) -> bool:
    accept = headers.get("Accept")
    return accept is not None and "msgpack" in accept


class Identity(msgspec.Struct, frozen=True):
    """What makes a retried write the same write (architecture, Exactly once).

    `session` is the client's own name or, for an Idempotency-Key, a hash of the key's scope; the first
    byte tells the two apart, so that neither can be made to collide with the other.
    """

    session: bytes
    sequence: int
    acked_below: int = 0
    since_ms: int | None = None
    body_hash: bytes | None = None


def identity_of(headers: HeaderLookup, method: str, target: str, body: bytes) -> Identity | None:
    """The identity a write carries: `KV-Session` + `KV-Sequence`, or `Idempotency-Key`, or None."""
    session = headers.get("KV-Session")
    key = headers.get("Idempotency-Key")
    if session is None and key is None:
        for name in ("KV-Sequence", "KV-Acked-Below"):
            if headers.get(name) is not None:
                raise InvalidArgument(f"{name} is given without KV-Session")
        return None
    since_text = headers.get("KV-Since")
    since_ms = None if since_text is None else integer(since_text, "KV-Since", 0, INT64_MAX)
    if session is None:
        assert key is not None
        return _identity_of_key(key, method, target, body, since_ms)
    if key is not None:
        raise InvalidArgument("give either Idempotency-Key or KV-Session, not both")
    if not _SESSION.fullmatch(session):
        raise InvalidArgument("KV-Session must be 1 to 64 of the characters A-Z a-z 0-9 . _ ~ -")
    sequence_text = headers.get("KV-Sequence")
    if sequence_text is None:
        raise InvalidArgument("KV-Session is given without KV-Sequence")
    sequence = integer(sequence_text, "KV-Sequence", 0, INT64_MAX)
    acked_text = headers.get("KV-Acked-Below")
    acked_below = 0 if acked_text is None else integer(acked_text, "KV-Acked-Below", 0, INT64_MAX)
    if acked_below > sequence:
        raise InvalidArgument(
            "KV-Acked-Below must not be above KV-Sequence: that write is not acknowledged yet"
        )
    return Identity(_session_bytes(session), sequence, acked_below, since_ms)


def _session_bytes(session: str) -> bytes:
    """A 128-bit hexadecimal name, as our client sends, is stored in its 16 bytes."""
    if _HEX_SESSION.fullmatch(session):
        return b"x" + bytes.fromhex(session)
    return b"s" + session.encode()


def _identity_of_key(key: str, method: str, target: str, body: bytes, since_ms: int | None) -> Identity:
    match = _KEY_HEADER.fullmatch(key)
    if match is None:
        raise InvalidArgument(
            'Idempotency-Key must be a quoted string of 1 to 255 visible characters, like "a1b2"'
        )
    principal = ""  # nobody is authenticated in this version
    scope = "\0".join((principal, match[1], method, target)).encode("utf-8", "surrogateescape")
    return Identity(
        b"k" + hashlib.blake2b(scope, digest_size=16).digest(),
        0,
        0,
        since_ms,
        hashlib.blake2b(body, digest_size=16).digest(),
    )


def digest(size: int, *parts: bytes) -> bytes:
    """A hash of parts, each with its length, so that no other parts have the same."""
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        state.update(len(part).to_bytes(4, "big"))
        state.update(part)
    return state.digest()


# --- cursors and positions -----------------------------------------------------------------------


def seal(kind: str, content: list[Any]) -> str:
    """An opaque string that `unseal` of the same kind takes apart again."""
    packed = msgspec.msgpack.encode([kind, *content])
    return _to_text(packed + binascii.crc32(packed).to_bytes(4, "big"))


def _to_text(framed: bytes) -> str:
    return binascii.b2a_base64(framed, newline=False).translate(_TO_URL_SAFE).rstrip(b"=").decode()


def unseal(kind: str, text: str) -> list[Any]:
    """Contents of a sealed string. Raises `InvalidArgument` for anything that `seal` did not make."""
    try:
        raw = text.encode("ascii")
        if raw.translate(None, _URL_SAFE):
            raise ValueError("not base64url")
        framed = binascii.a2b_base64(raw.translate(_FROM_URL_SAFE) + b"=" * (-len(raw) % 4), strict_mode=True)
        packed, check = framed[:-4], framed[-4:]
        if binascii.crc32(packed).to_bytes(4, "big") != check:
            raise ValueError("check sum differs")
        if _to_text(framed) != text:
            raise ValueError("not the way we write it")
        content = msgspec.msgpack.decode(packed)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise InvalidArgument(f"the {kind} is not one this service gave out") from None
    if not isinstance(content, list) or not content or content[0] != kind:
        raise InvalidArgument(f"the {kind} is not one this service gave out")
    return content[1:]


_URL_SAFE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_TO_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


# --- problems ------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A field of an error as JSON can carry it: bytes as text where they are text."""
    if isinstance(value, bytes):
        return text_or_base64(value)
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and INT64_MIN <= value <= INT64_MAX:
        return value
    return _well_formed(str(value))


def _well_formed(text: str) -> str:
    """Text that can be encoded: what came as stray bytes of a target becomes question marks."""
    return text.encode("utf-8", "replace").decode()


def text_or_base64(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return binascii.b2a_base64(value, newline=False).decode()


def problem_document(error: KvError) -> dict[str, Any]:
    """The RFC 9457 members of an error; fields of the case never shadow the standard ones."""
    document: dict[str, Any] = {
        "type": f"urn:kvstore:problem:{error.code}",
        "title": error.title,
        "status": error.http_status,
        "detail": _well_formed(error.detail),
        "code": error.code,
        "retryable": error.retryable,
    }
    for name, value in error.fields.items():
        if name not in document:
            document[name] = plain(value)
    if error.request_id is not None:
        document["request_id"] = error.request_id
    return document


def problem(error: KvError) -> tuple[int, bytes, bytes]:
    """Status, header lines and body of the answer to a failed request."""
    head = b"Content-Type: application/problem+json\r\n"
    if error.retryable and error.http_status in (429, 503):
        after_s = error.fields.get("retry_after", 1)
        head += b"Retry-After: %d\r\n" % max(1, math.ceil(after_s))
    if error.http_status == 405 and "allow" in error.fields:
        head += b"Allow: %b\r\n" % str(error.fields["allow"]).encode()
    return error.http_status, head, msgspec.json.encode(problem_document(error))
