"""HTTP/1.1 for the blocking client, on http.client: a pool of kept-alive connections, and streams."""

from __future__ import annotations

import http.client
import select
import socket
import threading
import time
from contextlib import suppress

from kvstore.client.exchange import Failure, Fault, Open, Reply, Request, Send

CONNECT_S_MAX = 1.0
IDLE_CONNECTIONS_MAX = 8
"""Kept per node; more may be in use at a time."""
IDLE_S_MAX = 60.0
"""A connection idle for longer is not used again: the server closes them after 75 s."""
CHUNK_BYTES_MAX = 1 << 16
CHUNK_S_MIN = 1.0
"""How long the rest of a chunk may take whose first bytes have arrived."""


class _Connection(http.client.HTTPConnection):
    idle_since = 0.0


class Pool:
    """Kept-alive connections per node. One that failed or was left in the middle is never kept."""

    def __init__(self) -> None:
        self._idle: dict[str, list[_Connection]] = {}
        self._lock = threading.Lock()
        self.is_closed = False

    def close(self) -> None:
        with self._lock:
            self.is_closed = True
            idle, self._idle = self._idle, {}
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
                return Reply(200, _headers(response), b""), Stream(connection, held, response)
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

    def receive(self, timeout_s: float) -> bytes | Failure:
        """Return some bytes, b"" at the end. Running out of time loses nothing."""
        deadline = time.monotonic() + timeout_s
        try:
            if not self._wait(timeout_s):
                return Failure(Fault.TIMED_OUT, f"nothing for {timeout_s:.3g} s")
            # Something is there, and the server sends whole chunks: this does not wait in the ordinary case.
            self._socket.settimeout(max(CHUNK_S_MIN, deadline - time.monotonic()))
            return self._response.read1(CHUNK_BYTES_MAX)
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            # What a socket closed by another thread raises depends on where it is caught.
            return Failure(Fault.LOST, _told(error))

    def _wait(self, timeout_s: float) -> bool:
        """A wait that ended inside http.client would break its buffer, so it happens before."""
        self._socket.settimeout(0.0)
        if self._response.isclosed() or self._response.fp.peek(1):
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
