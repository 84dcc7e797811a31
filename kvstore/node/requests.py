"""Requests and responses as the handlers see them, with no server and no event loop behind them.

`http_server.py` makes requests from sockets; the simulator and the tests make them by hand. A handler
calls `respond` or `respond_stream` exactly once, at any time; if the caller has gone, nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

from kvstore.types import ShardId

Headers = CIMultiDictProxy[str]

NO_HEADERS: Headers = CIMultiDictProxy(CIMultiDict())

JSON = b"Content-Type: application/json\r\n"
MSGPACK = b"Content-Type: application/msgpack\r\n"
PROBLEM = b"Content-Type: application/problem+json\r\n"

_encode_json = msgspec.json.Encoder().encode


class Response:
    """Status, header lines and body. `head` is complete lines, each ended by CRLF: handlers on the hot
    path format it in one step. It must not name Content-Length, Date or Connection: the server does."""

    __slots__ = ("body", "head", "status")

    def __init__(self, status: int, head: bytes = b"", body: bytes = b"") -> None:
        self.status = status
        self.head = head
        self.body = body

    @classmethod
    def json(cls, status: int, content: Any, head: bytes = b"") -> Response:
        return cls(status, JSON + head, _encode_json(content))

    @property
    def headers(self) -> Headers:
        """`head` parsed, for tests and tools."""
        parsed: CIMultiDict[str] = CIMultiDict()
        for line in self.head.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon:
                parsed.add(name.decode("latin-1"), value.strip().decode("latin-1"))
        return CIMultiDictProxy(parsed)

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.head!r} {self.body[:200]!r}>"


class BodyStream(Protocol):
    """A body sent piece by piece. Stop writing when `write` returns False, go on from `on_drain`."""

    @property
    def is_open(self) -> bool:
        """False once the caller has gone: what is written then is dropped."""
        ...

    def write(self, piece: bytes) -> bool:
        """Send a piece; False: the caller reads slower than we write, or has gone."""
        ...

    def on_drain(self, callback: Callable[[], None]) -> None:
        """Call back once, when writing may go on or the caller has gone."""
        ...

    def end(self) -> None: ...


class Sink(Protocol):
    """Where a request's answer goes: a connection, or a test."""

    def answer(self, request: Request, response: Response) -> None: ...

    def open_stream(self, request: Request, response: Response) -> BodyStream: ...


class Request:
    """One request, complete with its body.

    `target` is the raw request target as sent, bytes that are not UTF-8 as surrogate escapes.
    `address` is the caller's address without its port. The dispatcher sets `id`, `route`, `shard`
    (None until known) and `started_s`, which must not be read before.
    """

    __slots__ = (
        "address",
        "body",
        "headers",
        "id",
        "is_answered",
        "method",
        "on_end_of_input",
        "on_gone",
        "route",
        "shard",
        "sink",
        "started_s",
        "target",
    )

    def __init__(
        self, method: str, target: str, headers: Headers, body: bytes, address: str, sink: Sink
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.address = address
        self.sink = sink
        self.is_answered = False
        self.on_gone: Callable[[], None] | None = None
        """Called if the caller goes before it was answered whole."""
        self.on_end_of_input: Callable[[], None] | None = None
        """Called if the caller closes its half of the connection: it may still read an answer, but more
        likely its process has ended."""
        self.id: bytes
        self.route: str
        self.shard: ShardId | None
        self.started_s: float

    def respond(self, response: Response) -> None:
        assert not self.is_answered, "a request is answered once"
        self.is_answered = True
        self.sink.answer(self, response)

    def respond_stream(self, response: Response) -> BodyStream:
        """Send status and headers now and the body through the returned stream; `response.body` is
        its first piece."""
        assert not self.is_answered, "a request is answered once"
        self.is_answered = True
        return self.sink.open_stream(self, response)


def reason_of(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
