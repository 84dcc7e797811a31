"""What the HTTP server says to requests that it cannot or will not read, in the contract's words."""

from aiohttp.http_exceptions import BadHttpMethod, LineTooLong

from kvstore.errors import (
    HeadersTooLarge,
    InvalidArgument,
    KvError,
    MethodNotAllowed,
    TooLarge,
    UnsupportedMedia,
)

_TOKEN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~")


class ExpectationFailed(InvalidArgument):
    http_status, title = 417, "Expectation failed"


class UnknownVersion(InvalidArgument):
    http_status, title = 505, "HTTP version not supported"


def headers_too_large(allowed: int) -> KvError:
    return HeadersTooLarge(
        f"the request's header has more than header_bytes_max = {allowed} bytes",
        limit="header_bytes_max",
        max=allowed,
    )


def target_too_large(allowed: int) -> KvError:
    """413 and not 414: what makes a target long here is a key or a bound, and those are answered so."""
    return TooLarge(
        f"the request target has more than target_bytes_max = {allowed} bytes",
        limit="target_bytes_max",
        max=allowed,
    )


def body_too_large(name: str, allowed: int, size: int) -> KvError:
    return TooLarge(
        f"the body has at least {size} bytes, {name} is {allowed}", limit=name, max=allowed, size=size
    )


def encoded_body(coding: str) -> KvError:
    return UnsupportedMedia(f"Content-Encoding {coding} is not understood here: send the body as it is")


def parse_error(error: Exception, data: bytes, target_bytes_max: int) -> KvError:
    """What the parser refused, in the contract's words. Never echoes the peer's bytes."""
    if isinstance(error, LineTooLong):
        if error.args[1] == target_bytes_max:
            return target_too_large(target_bytes_max)
        return HeadersTooLarge("a header field is longer than field_bytes_max", limit="field_bytes_max")
    text = str(error.args[0]) if error.args else ""
    if text.startswith("Too many headers"):
        return HeadersTooLarge("the request has more than headers_max header fields", limit="headers_max")
    if isinstance(error, BadHttpMethod):
        method = data.partition(b" ")[0]
        if (
            method
            and len(method) <= 32
            and _TOKEN.issuperset(method)
            and b" HTTP/1." in data.partition(b"\n")[0]
        ):
            return MethodNotAllowed(
                "this method is not known here", allow="GET, HEAD, PUT, POST, DELETE, OPTIONS"
            )
    reason = text.partition("\n")[0].partition("b'")[0].partition("'")[0].strip(" :")[:80]
    printable = "".join(each for each in reason if each.isascii() and each.isprintable())
    return InvalidArgument(f"malformed HTTP request: {printable or 'cannot be parsed'}")
