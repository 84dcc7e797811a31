"""HTTP/1.1 for the blocking client, on http.client: a pool of kept-alive connections, and streams."""

from __future__ import annotations

import http.client
import select
import socket
import threading
import time
from contextlib import suppress
from weakref import WeakSet

from kvstore.client.exchange import Failure, Fault, Open, Reply, Request, Send

CONNECT_S_MAX = 1.0
IDLE_CONNECTIONS_MAX = 8
"""Kept per node; more may be in use at a time."""
IDLE_S_MAX = 60.0
"""A connection idle for longer is not used again: the server closes them after 75 s."""
CHUNK_BYTES_MAX = 1 << 16
CHUNK_HEAD_BYTES_MAX = 64


class _Connection(http.client.HTTPConnection):
    idle_since = 0.0


class Pool:
    """Kept-alive connections per node. One that failed or was left in the middle is never kept."""

    def __init__(self) -> None:
        self._idle: dict[str, list[_Connection]] = {}
        self._streams: WeakSet[Stream] = WeakSet()
        self._lock = threading.Lock()
        self.is_closed = False

    def close(self) -> None:
        with self._lock:
            self.is_closed = True
            idle, self._idle = self._idle, {}
            streams = list(self._streams)
        for stream in streams:
            stream.close()
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def exchange(self, send: Send) -> Reply | Failure:
        deadline = time.monotonic() + send.timeout_s
        if self.is_closed:
            return Failure(Fault.NOT_SENT, "the client is closed")
        while True:
            connection = self._take(send.address)
            is_reused = connection is not None
            if connection is None:
                try:
                    connection = _connect(send.address, min(CONNECT_S_MAX, send.timeout_s))
                except OSError as error:
                    return Failure(Fault.NOT_SENT, _told(error))
            try:
                reply = _exchange(connection, send.request, deadline)
            except TimeoutError:
                connection.close()
                return Failure(Fault.TIMED_OUT, f"after {send.timeout_s:.3g} s")
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if is_reused and isinstance(error, ConnectionError):
                    # Most likely closed by the server while it was idle. Every request may be repeated.
                    continue
                return Failure(Fault.LOST, _told(error))
            except BaseException:
                connection.close()
                raise
            break
        self._give_back(send.address, connection)
        return reply

    def open(self, opening: Open) -> tuple[Reply | Failure, Stream | None]:
        """Return the answer's head and, if its status is 200, the stream of its body. Always on a new
        connection: a stream keeps it to itself."""
        if self.is_closed:
            return Failure(Fault.NOT_SENT, "the client is closed"), None
        deadline = time.monotonic() + opening.timeout_s
        try:
            connection = _connect(opening.address, min(CONNECT_S_MAX, opening.timeout_s))
        except OSError as error:
            return Failure(Fault.NOT_SENT, _told(error)), None
        # An answer that ends with its connection takes the socket away from it.
        held = connection.sock
        try:
            response = _ask(connection, opening.request, deadline)
            if response.status == 200:
                return Reply(200, _headers(response), b""), self._keep(Stream(connection, held, response))
            reply = _read(connection, response, deadline)
        except TimeoutError:
            connection.close()
            return Failure(Fault.TIMED_OUT, f"after {opening.timeout_s:.3g} s"), None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Failure(Fault.LOST, _told(error)), None
        except BaseException:
            connection.close()
            raise
        self._give_back(opening.address, connection)
        return reply, None

    def _keep(self, stream: Stream) -> Stream:
        with self._lock:
            self._streams.add(stream)
        if self.is_closed:
            stream.close()
        return stream

    def _take(self, address: str) -> _Connection | None:
        oldest = time.monotonic() - IDLE_S_MAX
        while True:
            with self._lock:
                idle = self._idle.get(address)
                connection = idle.pop() if idle else None
            if connection is None:
                return None
            if connection.idle_since >= oldest and not _is_readable(connection):
                return connection
            connection.close()

    def _give_back(self, address: str, connection: _Connection) -> None:
        if connection.sock is None:
            return
        connection.idle_since = time.monotonic()
        with self._lock:
            idle = self._idle.setdefault(address, [])
            if not self.is_closed and len(idle) < IDLE_CONNECTIONS_MAX:
                idle.append(connection)
                return
        connection.close()


def _connect(address: str, timeout_s: float) -> _Connection:
    host, _, port = address.rpartition(":")
    connection = _Connection(host.strip("[]"), int(port), timeout=timeout_s)
    connection.connect()
    return connection


def _is_readable(connection: _Connection) -> bool:
    """An idle connection with something to read was closed by the server, or is out of step."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _exchange(connection: _Connection, request: Request, deadline: float) -> Reply:
    return _read(connection, _ask(connection, request, deadline), deadline)


def _ask(connection: _Connection, request: Request, deadline: float) -> http.client.HTTPResponse:
    _allow(connection, deadline)
    connection.putrequest(request.method, request.target, skip_accept_encoding=True)
    for name, value in request.headers.items():
        connection.putheader(name, value)
    if request.body or request.method in ("PUT", "POST"):
        connection.putheader("Content-Length", str(len(request.body)))
    connection.endheaders(request.body or None)
    return connection.getresponse()


def _read(connection: _Connection, response: http.client.HTTPResponse, deadline: float) -> Reply:
    pieces = []
    while not response.isclosed():
        _allow(connection, deadline)
        piece = response.read1(1 << 20)
        if not piece:
            break
        pieces.append(piece)
    body = b"".join(pieces)
    if response.length:
        raise http.client.IncompleteRead(body, response.length)
    response.close()
    return Reply(response.status, _headers(response), body)


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


class Stream:
    """The body of an answer that is still being sent. One thread reads; any thread may close it."""

    def __init__(
        self, connection: _Connection, held: socket.socket, response: http.client.HTTPResponse
    ) -> None:
        self._connection = connection
        self._socket = held
        self._response = response
        self._chunks = Chunks() if response.chunked else None
        self._is_over = False
        # From here on reads take what is there: waits happen before them.
        held.settimeout(0.0)

    def receive(self, timeout_s: float) -> bytes | Failure:
        """Return some bytes, b"" at the end. Running out of time loses nothing."""
        deadline = time.monotonic() + timeout_s
        try:
            while not self._is_over:
                if not self._wait(deadline - time.monotonic()):
                    return Failure(Fault.TIMED_OUT, f"nothing for {timeout_s:.3g} s")
                # Not through the response: its reading of chunks waits for the next one's head, and is
                # broken for good when it runs out of time there.
                found = self._response.fp.read1(CHUNK_BYTES_MAX)
                if self._chunks is None:
                    self._is_over = not found
                    return found
                if not found:
                    return Failure(Fault.LOST, "cut in the middle")
                piece = self._chunks.feed(found)
                self._is_over = self._chunks.is_over
                if piece:
                    return piece
            return b""
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            # What a socket closed by another thread raises depends on where it is caught.
            return Failure(Fault.LOST, _told(error))

    def _wait(self, timeout_s: float) -> bool:
        """Whether there is something to read, or the end."""
        if self._response.fp.peek(1):
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))

    def close(self) -> None:
        """Drop the connection: the rest of the stream will not be read. A reader wakes up."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._response.close()


class Chunks:
    """Takes the framing off a body in chunks (RFC 9112, 7.1), from pieces of any length."""

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        """Bytes of the present chunk that have not come yet."""
        self._is_inside = False
        """The end of the present chunk's data has not been passed yet."""
        self.is_over = False

    def feed(self, piece: bytes) -> bytes:
        """Return the data in it. Raises ValueError for what is no chunk."""
        self._rest += piece
        found = []
        while not self.is_over:
            data, self._rest = self._rest[: self._left], self._rest[self._left :]
            self._left -= len(data)
            found.append(data)
            if self._left:
                break
            if self._is_inside:
                if len(self._rest) < 2:
                    break
                self._rest, self._is_inside = self._rest[2:], False
            head, end, rest = self._rest.partition(b"\r\n")
            if not end:
                if len(head) > CHUNK_HEAD_BYTES_MAX:
                    raise ValueError("no chunk")
                break
            self._left, self._rest, self._is_inside = int(head.partition(b";")[0], 16), rest, True
            self.is_over = self._left == 0
        return b"".join(found)


def _allow(connection: _Connection, deadline: float) -> None:
    """Let the next socket call wait until the deadline. The socket is gone once the answer is complete."""
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    if connection.sock is not None:
        connection.sock.settimeout(left_s)


def _told(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    text = getattr(error, "strerror", None) or str(error)
    return str(text) or type(error).__name__
