"""An answer's body sent piece by piece, in its turn behind the answers before it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from kvstore.node.requests import Response


class StreamedExchange(Protocol):
    method: str
    is_last: bool
    closing: bytes


class StreamedConnection(Protocol):
    """What a stream needs of its connection. `transport` is None once the peer has gone."""

    transport: asyncio.Transport | None
    is_paused: bool

    def status_line(self, status: int) -> bytes: ...

    def call_soon(self, callback: Callable[[], None]) -> None: ...

    def finish(self, exchange: StreamedExchange) -> None: ...


class Stream:
    """A body sent in chunks; close-delimited to HTTP/1.0."""

    __slots__ = ("_callback", "_connection", "_exchange", "_head", "_is_chunked", "_is_ended", "_waiting")

    def __init__(
        self, connection: StreamedConnection, exchange: StreamedExchange, response: Response
    ) -> None:
        self._connection = connection
        self._exchange = exchange
        self._is_chunked = not exchange.closing.startswith(b"Connection: keep-alive")
        if not self._is_chunked:
            exchange.is_last, exchange.closing = True, b"Connection: close\r\n"
        first = connection.status_line(response.status)
        coding = b"Transfer-Encoding: chunked\r\n" if self._is_chunked else b""
        self._head = b"".join((first, response.head, coding, exchange.closing, b"\r\n"))
        self._waiting: list[bytes] | None = [response.body] if response.body else []
        """Pieces that wait for earlier answers; None once this stream is first in line."""
        self._is_ended = False
        self._callback: Callable[[], None] | None = None

    @property
    def is_open(self) -> bool:
        return self._connection.transport is not None

    def write(self, piece: bytes) -> bool:
        assert not self._is_ended, "write after end"
        if self._connection.transport is None:
            return False
        if self._waiting is not None:
            self._waiting.append(piece)
            return False
        self._send(piece)
        return not self._connection.is_paused

    def on_drain(self, callback: Callable[[], None]) -> None:
        if not self.is_open or (self._waiting is None and not self._connection.is_paused):
            self._connection.call_soon(callback)
        else:
            self._callback = callback

    def end(self) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        if self._waiting is None:
            self._close()

    def come_first(self) -> None:
        """Everything before this answer is written: let it go out."""
        transport, waiting = self._connection.transport, self._waiting
        if transport is None or waiting is None:
            return
        self._waiting = None
        transport.write(self._head)
        for piece in waiting:
            self._send(piece)
        if self._is_ended:
            self._close()
        elif not self._connection.is_paused:
            self.wake()

    def wake(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    def _send(self, piece: bytes) -> None:
        transport = self._connection.transport
        if transport is None or not piece or self._exchange.method == "HEAD":
            return
        transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)

    def _close(self) -> None:
        connection = self._connection
        if connection.transport is None:
            return
        if self._is_chunked and self._exchange.method != "HEAD":
            connection.transport.write(b"0\r\n\r\n")
        connection.finish(self._exchange)
