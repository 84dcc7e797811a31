"""One client connection: bytes in, requests out, answers back in the order of their requests.

Every request is one object, an `Exchange`, which waits in up to two queues: `_held` while an unsafe
request before it is unanswered (RFC 9112 9.3.2), then `_open` until it is answered and everything
before it has been written. Reading stops when too many requests wait or the peer does not read.

What the peer is slow with is told to the server (`Server.slow`): it enforces the deadlines and decides
who goes when connections are scarce.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp.http import HttpRequestParser, HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from kvstore.errors import InvalidArgument, KvError, MethodNotAllowed, RequestTimeout
from kvstore.node.http_refusals import (
    ExpectationFailed,
    UnknownVersion,
    body_too_large,
    encoded_body,
    headers_too_large,
    parse_error,
    target_too_large,
)
from kvstore.node.http_stream import Stream, StreamedExchange
from kvstore.node.requests import NO_HEADERS, Request, Response

if TYPE_CHECKING:
    from kvstore.node.http_server import HttpServer

log = logging.getLogger(__name__)

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_NO_BODY = frozenset({204, 304})
_STREAM_READER_LIMIT = 2**30
"""Flow control is ours: the body's limit is checked after every read."""
_CHUNK_SLACK_BYTES = 8192


class _NoFlowControl:
    """Stands in for the protocol that aiohttp's StreamReader would pause."""

    def pause_reading(self) -> None: ...

    def resume_reading(self, resume_parser: bool = True) -> None: ...


_NO_FLOW_CONTROL: Any = _NoFlowControl()


class Exchange(Request):
    """A request and what its connection must know to answer it."""

    __slots__ = ("closing", "is_last", "ready", "stream")

    def __init__(
        self, message: RawRequestMessage, body: bytes, connection: Connection, is_last: bool, closing: bytes
    ) -> None:
        # Written out instead of calling the base: this runs once per request.
        self.method = message.method
        self.target = message.path
        self.headers = message.headers
        self.body = body
        self.address = connection.address
        self.sink = connection
        self.is_answered = False
        self.on_end_of_input = self.on_gone = None
        self.is_last = is_last
        """The connection closes after this answer."""
        self.closing = closing
        """The Connection header of the answer, if it needs one."""
        self.ready: bytes | None = None
        """The answer, while earlier ones are not written yet."""
        self.stream: Stream | None = None


class _Unread:
    """Takes the place of a message that could not be read to its end."""

    method, path, headers = "POST", "", NO_HEADERS


_UNREAD: Any = _Unread()


class Connection(asyncio.Protocol):
    """States: waiting for a head (fresh or partial), for a body, for answers, idle, lingering."""

    __slots__ = (
        "_body_max",
        "_body_name",
        "_buffered_bytes",
        "_exchange_message",
        "_head_bytes",
        "_held",
        "is_paused",
        "_is_pumping",
        "_is_refusing",
        "_is_stalled",
        "_is_stopping",
        "_limits",
        "_open",
        "_parsed",
        "_parser",
        "_payload",
        "_server",
        "transport",
        "_wire_bytes",
        "address",
        "is_in_head",
        "is_lingering",
        "is_slow",
        "since_s",
        "unread_bytes",
    )

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._parser = HttpRequestParser(
            _NO_FLOW_CONTROL,
            server.loop,
            _STREAM_READER_LIMIT,
            max_line_size=self._limits.target_bytes_max,
            max_field_size=self._limits.field_bytes_max,
            max_headers=self._limits.headers_max,
            auto_decompress=False,
            max_msg_queue_size=self._limits.pipeline_max,
        )
        self.transport: asyncio.Transport | None = None
        self._open: deque[Exchange] = deque()
        self._held: deque[Exchange] = deque()
        self._payload: StreamReader | None = None
        self._exchange_message: RawRequestMessage | None = None
        self._body_max, self._body_name = 0, ""
        self._buffered_bytes = 0
        self._wire_bytes = 0
        self._head_bytes = 0
        self._parsed = 0
        """Complete requests that the parser counts as not consumed yet."""
        self._is_stalled = False
        """The parser stopped between two pipelined requests, and so did reading."""
        self.is_paused = False
        """The peer does not read what we wrote."""
        self._is_pumping = False
        self._is_refusing = False
        """Input is dropped: a refusal is on its way, or the peer has said all it will."""
        self._is_stopping = False
        self.is_in_head = True
        self.is_lingering = False
        self.is_slow = True
        """In `Server.slow`: it is the peer that keeps this connection waiting."""
        self.since_s = 0.0
        """When the present wait for the peer, or idleness, began."""
        self.unread_bytes = 0
        """What the peer had left to read when `since_s` was set, while it does not read."""
        self.address = ""

    # --- events of the transport ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else ""
        self.since_s = self._server.loop.time()
        self._server.admit(self)

    def connection_lost(self, error: BaseException | None) -> None:
        self.transport = None
        self._account_body(0)
        self._server.forget(self)
        for exchange in tuple(self._open):
            if exchange.stream is not None:
                exchange.stream.wake()
            if exchange.on_gone is not None:
                exchange.on_gone()
        self._open.clear()
        self._held.clear()

    def eof_received(self) -> bool:
        """A peer that has closed its half still gets the answers to what it asked completely."""
        self._is_refusing = True
        if self.is_lingering or not (self._open or self._held):
            return False
        (self._held or self._open)[-1].is_last = True
        for exchange in tuple(self._open):
            if exchange.on_end_of_input is not None:
                exchange.on_end_of_input()
        return True

    def pause_writing(self) -> None:
        self.is_paused = True
        if self.transport is not None:
            self.unread_bytes = self.transport.get_write_buffer_size()
            self._wait_for_peer()

    def resume_writing(self) -> None:
        self.is_paused = False
        self._peer_came()
        if self._open and self._open[0].stream is not None:
            self._open[0].stream.wake()
        self._pump()

    def data_received(self, data: bytes) -> None:
        if self._is_refusing:
            return
        parsed_before = self._parsed
        try:
            messages, _is_upgraded, _tail = self._parser.feed_data(data)
        except Exception as error:  # noqa: BLE001 - whatever hostile bytes make the parser raise
            self._refuse(parse_error(error, data, self._limits.target_bytes_max))
            return
        complete = 0
        if self._payload is not None:
            complete = self._continue_body(len(data))
            if complete == 0:
                return
        elif not messages:
            self._continue_head(len(data))
            return
        for message, payload in messages:
            if len(data) > self._limits.header_bytes_max and not self._is_head_small(message):
                return
            if payload is EMPTY_PAYLOAD:
                self._accept(message, b"")
            elif payload.is_eof() and message.method != "CONNECT":
                if not self._is_body_allowed(message, payload, len(data) if len(messages) == 1 else 0):
                    return
                self._accept(message, payload.read_nowait())
            else:
                self._begin_body(message, payload)
                break
            complete += 1
            if self._takes_no_more():
                return
        if parsed_before + complete >= self._limits.pipeline_max:
            self._stall()

    def _takes_no_more(self) -> bool:
        return self._is_refusing

    # --- heads and bodies -------------------------------------------------------------------------

    def _continue_head(self, arrived_bytes: int) -> None:
        if arrived_bytes == 0:
            return
        if not self.is_in_head:
            self.is_in_head = True
            self._head_bytes = 0
            self._wait_for_peer()
        self._head_bytes += arrived_bytes
        if self._head_bytes > self._limits.header_bytes_max:
            self._refuse(headers_too_large(self._limits.header_bytes_max))

    def _is_head_small(self, message: RawRequestMessage) -> bool:
        size = len(message.path) + sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
        if size <= self._limits.header_bytes_max:
            return True
        if len(message.path) > self._limits.target_bytes_max:
            self._refuse(target_too_large(self._limits.target_bytes_max), message)
            return False
        self._refuse(headers_too_large(self._limits.header_bytes_max), message)
        return False

    def _is_body_allowed(self, message: RawRequestMessage, payload: StreamReader, wire_bytes: int) -> bool:
        size = payload.total_bytes
        if size > self._limits.body_bytes_unasked:
            name, allowed = self._server.body_limit(message.method, message.path)
            if size > allowed:
                self._refuse(body_too_large(name, allowed, size), message)
                return False
        if message.compression is not None:
            self._refuse(encoded_body(message.compression), message)
        elif message.chunked and wire_bytes and self._is_padded(wire_bytes, size):
            self._refuse(InvalidArgument("malformed HTTP request: chunk extensions are too long"), message)
        else:
            return True
        return False

    def _begin_body(self, message: RawRequestMessage, payload: StreamReader) -> None:
        """The head is here and the body is not, or not all: judge it before more arrives."""
        if message.method == "CONNECT":
            self._refuse(MethodNotAllowed("CONNECT is for proxies, and this is none"), message)
            return
        self._body_name, self._body_max = self._server.body_limit(message.method, message.path)
        announced = message.headers.get("Content-Length")
        if announced is not None and int(announced) > self._body_max:
            self._refuse(body_too_large(self._body_name, self._body_max, int(announced)), message)
            return
        if message.compression is not None:
            self._refuse(encoded_body(message.compression), message)
            return
        expects = message.headers.get("Expect")
        if expects is not None:
            if expects.strip().lower() != "100-continue":
                self._refuse(ExpectationFailed("the only expectation met here is 100-continue"), message)
                return
            # Behind unanswered requests it is left out: the peer then sends its body unasked.
            if not self._open and self.transport is not None and payload.total_bytes == 0:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._exchange_message, self._payload = message, payload
        self._wire_bytes = payload.total_bytes
        self.is_in_head = False
        self._wait_for_peer()
        self._continue_body(0)

    def _continue_body(self, arrived_bytes: int) -> int:
        """Returns 1 if the body is complete and its request accepted, else 0."""
        payload, message = self._payload, self._exchange_message
        assert payload is not None
        assert message is not None
        self._wire_bytes += arrived_bytes
        total = payload.total_bytes
        if total > self._body_max:
            self._refuse(body_too_large(self._body_name, self._body_max, total))
        elif payload.is_eof():
            self._payload = self._exchange_message = None
            self._account_body(0)
            self._accept(message, payload.read_nowait())
            return 1
        elif message.chunked and self._is_padded(self._wire_bytes, total):
            self._refuse(InvalidArgument("malformed HTTP request: chunk extensions are too long"))
        else:
            self._account_body(total)
        return 0

    @staticmethod
    def _is_padded(wire_bytes: int, body_bytes: int) -> bool:
        """Whether a chunked body costs far more bytes than its smallest honest framing would."""
        return wire_bytes > _CHUNK_SLACK_BYTES + 9 * body_bytes

    def _account_body(self, buffered_bytes: int) -> None:
        self._server.buffered_bytes += buffered_bytes - self._buffered_bytes
        self._buffered_bytes = buffered_bytes
        if self._server.buffered_bytes > self._limits.buffered_bytes_max:
            self._server.drop_slowest()

    @property
    def has_partial_body(self) -> bool:
        return self._payload is not None

    @property
    def has_unread_answer(self) -> bool:
        return self.is_paused

    # --- requests and answers ---------------------------------------------------------------------

    def _accept(self, message: RawRequestMessage, body: bytes) -> None:
        """A complete request: hand it on, or hold it behind one that must be answered first."""
        self.is_in_head = False
        if self.is_slow:
            self._peer_came()
        self._parsed += 1
        version = message.version
        is_last = message.should_close or message.upgrade or self._is_stopping
        closing = b""
        if version is not HttpVersion11 and version != HttpVersion10:
            self._parsed -= 1
            kind = UnknownVersion if version.major > 1 else InvalidArgument
            self._refuse(kind("this server speaks HTTP/1.1 and HTTP/1.0"), message)
            return
        if is_last:
            closing = b"Connection: close\r\n"
            self._is_refusing = True
        elif version is not HttpVersion11:
            closing = b"Connection: keep-alive\r\n"
        exchange = Exchange(message, body, self, is_last, closing)
        if self._open or self._held or self.is_paused:
            self._held.append(exchange)
            self._pump()
        else:
            self._open.append(exchange)
            self._server.dispatch(exchange)

    def _pump(self) -> None:
        """Start what may run now: one request at a time, or any number of safe ones side by side."""
        if self._is_pumping:
            return
        self._is_pumping = True
        held, running = self._held, self._open
        while held and not self.is_paused:
            exchange = held[0]
            if running and not (exchange.method in _SAFE and running[-1].method in _SAFE):
                break
            held.popleft()
            running.append(exchange)
            if exchange.ready is None:
                self._server.dispatch(exchange)
            else:
                self._write_ready()
        self._is_pumping = False

    def answer(self, request: Request, response: Response) -> None:
        transport = self.transport
        if transport is None:
            return
        assert isinstance(request, Exchange)
        encoded = self._encoded(request, response)
        running = self._open
        if running[0] is not request:
            request.ready = encoded
            return
        transport.write(encoded)
        self.finish(request)

    def _encoded(self, exchange: Exchange, response: Response) -> bytes:
        status, body = response.status, response.body
        first = self._server.status_lines.get(status) or self._server.status_line(status)
        if status in _NO_BODY:
            return b"".join((first, response.head, exchange.closing, b"\r\n"))
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        if exchange.method == "HEAD":
            body = b""
        return b"".join((first, response.head, exchange.closing, length, body))

    def finish(self, exchange: StreamedExchange) -> None:
        """The answer of the first open exchange has been written whole."""
        self._open.popleft()
        self._parsed -= 1
        self._parser.message_consumed()
        if exchange.is_last or (self._is_stopping and not (self._open or self._held)):
            self._close_after_answer()
            return
        if self._open:
            self._write_ready()
        elif self._held:
            self._pump()
        else:
            self.since_s = self._server.now_s
        if self._is_stalled and self._parsed <= self._limits.pipeline_max // 2:
            self._is_stalled = False
            self._server.loop.call_soon(self._unstall)

    def _write_ready(self) -> None:
        """Write answers that were waiting for those before them."""
        while self._open and self.transport is not None:
            exchange = self._open[0]
            if exchange.stream is not None:
                exchange.stream.come_first()
                return
            if exchange.ready is None:
                return
            self.transport.write(exchange.ready)
            self._open.popleft()
            self._parsed -= 1
            self._parser.message_consumed()
            if exchange.is_last:
                self._close_after_answer()
                return
        self._pump()

    def status_line(self, status: int) -> bytes:
        return self._server.status_line(status)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._server.loop.call_soon(callback)

    def open_stream(self, request: Request, response: Response) -> Stream:
        assert isinstance(request, Exchange)
        request.stream = stream = Stream(self, request, response)
        if self._open and self._open[0] is request:
            stream.come_first()
        return stream

    # --- refusing, closing ------------------------------------------------------------------------

    def _refuse(self, error: KvError, message: RawRequestMessage | None = None) -> None:
        """Answer a request that cannot be read to its end, after those before it; then close."""
        self._is_refusing = True
        if message is None:
            message = self._exchange_message
        self._payload = self._exchange_message = None
        self._account_body(0)
        self._peer_came()
        self._server.refused += 1
        log.debug("refused a request of %s: %s", self.address, error.detail)
        exchange = Exchange(_UNREAD, b"", self, True, b"Connection: close\r\n")
        response = self._server.refusal(error, NO_HEADERS if message is None else message.headers)
        exchange.ready = self._encoded(exchange, response)
        exchange.is_answered = True
        self._parsed += 1
        self.is_lingering = True
        self._held.append(exchange)
        self._pump()

    def refuse_busy(self, error: KvError) -> None:
        """Turn the connection away before it has said anything."""
        self._refuse(error)

    def expire(self) -> None:
        """The peer took too long for a head or a body."""
        if self.is_in_head and self._head_bytes == 0:
            self.abort()
            return
        what, limit_s = (
            ("header", self._limits.header_s) if self.is_in_head else ("body", self._limits.body_s)
        )
        self._refuse(RequestTimeout(f"the {what} did not arrive whole within {limit_s:g} s", limit_s=limit_s))

    def _close_after_answer(self) -> None:
        transport = self.transport
        if transport is None:
            return
        self._held.clear()
        self._open.clear()
        if not self.is_lingering:
            transport.close()
            return
        # Closing now with unread input would reset the connection and destroy the answer on its way
        # (RFC 9112 9.6): close our half and drop what still comes, for a while.
        self.since_s = self._server.loop.time()
        if transport.can_write_eof():
            transport.write_eof()
        self._server.linger(self)

    def stop(self) -> None:
        """Close now if idle, else after the last answer."""
        self._is_stopping = True
        if self._open or self._held:
            last = (self._held or self._open)[-1]
            if last.ready is None and last.stream is None:
                last.closing = b"Connection: close\r\n"
            last.is_last = self._payload is None
        elif self._payload is None and self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # --- flow -------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        return not (self._open or self._held or self._payload or self.is_in_head or self.is_lingering)

    def unread_now(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def _wait_for_peer(self) -> None:
        self.since_s = self._server.loop.time()
        self.is_slow = True
        self._server.slow[self] = None

    def _peer_came(self) -> None:
        if self.is_slow and not self.is_paused:
            self.is_slow = False
            self._server.slow.pop(self, None)

    def _stall(self) -> None:
        """Stop reading until half of the pipelined requests are answered."""
        if self.transport is None:
            return
        if self._parsed <= self._limits.pipeline_max // 2:
            self._server.loop.call_soon(self._unstall)
        else:
            self._is_stalled = True
        self.transport.pause_reading()

    def _unstall(self) -> None:
        """Parse what the parser kept back, then read on."""
        if self.transport is None:
            return
        self.data_received(b"")
        if not self._is_stalled and self.transport is not None:
            self.transport.resume_reading()
