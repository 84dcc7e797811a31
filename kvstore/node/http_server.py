"""HTTP/1.1 on the client address: sockets in, `Request` out, `Response` back in order.

aiohttp's C parser reads the bytes; everything above it is ours, because aiohttp's own server spends a
task and a request object on each request, 40 to 75 µs (docs/decisions). Here there is no task, no
future and no timer per request. One sweep enforces all deadlines, so they are exact to its period.

Nothing that a peer sends or withholds holds memory or a connection without bound: see `HttpLimits`. At
a cap on connections, whoever has kept us waiting longest for a head, a body or for reading an answer
goes first, then whoever is idle longest, and only then is a newcomer turned away.

Deliberately absent: TLS (the transport's matter), compression, trailers, upgrades.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate

import msgspec

from kvstore.errors import KvError, Unavailable
from kvstore.node.http_connection import Connection, Exchange
from kvstore.node.requests import Headers, Request, Response, reason_of
from kvstore.wire.api import problem

log = logging.getLogger(__name__)

FILES_RESERVED = 1024
"""Open files for tablets, the log, peers and snapshots."""


class HttpLimits(msgspec.Struct, frozen=True):
    """Sizes in bytes, times in seconds."""

    target_bytes_max: int = 65_536
    """A key of 4 KiB takes 12 KiB percent-encoded; far above, so that it is the key that is refused."""
    field_bytes_max: int = 16_384
    header_bytes_max: int = 98_304
    """The target and all header fields together; the two above are never more."""
    headers_max: int = 100
    body_bytes_max: int = 8_388_608
    """Where the handlers name no smaller limit."""
    body_bytes_unasked: int = 16_384
    """Bodies up to this that arrive with their header pass without asking for a limit."""
    buffered_bytes_max: int = 268_435_456
    """Partial bodies of all connections together; above it the slowest sender is dropped."""
    pipeline_max: int = 32
    """Requests of one connection that may wait for their answers."""
    connections_max: int = 4096
    connections_per_address_max: int = 2048
    header_s: float = 10.0
    """From the connection, or the first byte of a later request, to the end of the header."""
    body_s: float = 30.0
    """From the end of the header to the end of the body."""
    write_s: float = 30.0
    """A peer that does not read must take at least `write_bytes_min` in this time."""
    write_bytes_min: int = 65_536
    unread_bytes_max: int = 268_435_456
    """Answers that peers don't read, all together; above it the slowest reader is dropped."""
    idle_s: float = 75.0
    linger_s: float = 2.0
    """How long input is dropped after a refusal, so that the peer can read why."""
    sweep_s: float = 1.0
    backlog: int = 1024


def _consistent(limits: HttpLimits) -> HttpLimits:
    """A target that fills the whole header is refused as a target, and the parser tells a target from a
    field only by which limit was passed."""
    target = min(limits.target_bytes_max, limits.header_bytes_max)
    field = min(limits.field_bytes_max, target - 1)
    return msgspec.structs.replace(limits, target_bytes_max=target, field_bytes_max=field)


def _body_limit(limits: HttpLimits) -> Callable[[str, str], tuple[str, int]]:
    answer = ("body_bytes_max", limits.body_bytes_max)
    return lambda method, target: answer


def _affordable(connections_max: int) -> int:
    """As many connections as the process may have files open, less what the store and peers need. Raises
    the soft limit first: accepting into EMFILE would stall everybody, slow or not."""
    try:
        import resource
    except ImportError:  # not a Unix
        return connections_max
    wanted = connections_max + FILES_RESERVED
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections_max
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    affordable = min(connections_max, max(soft - FILES_RESERVED, soft // 2))
    if affordable < connections_max:
        log.warning(
            "at most %d connections, not %d: the process may open %d files", affordable, connections_max, soft
        )
    return affordable


class HttpServer:
    """Serves `handle`, which must answer each request once, now or later, and must not block.

    `body_limit(method, target)` names the limit on a request's body and its bytes. It is asked before
    the body is read. `refusal(error, headers)` makes the answer to a request that never became one; the
    headers are empty where none could be read.
    """

    def __init__(
        self,
        handle: Callable[[Request], None],
        limits: HttpLimits | None = None,
        body_limit: Callable[[str, str], tuple[str, int]] | None = None,
        refusal: Callable[[KvError, Headers], Response] | None = None,
    ) -> None:
        self.limits = _consistent(limits or HttpLimits())
        self.body_limit = body_limit or _body_limit(self.limits)
        self.refusal = refusal or (lambda error, headers: Response(*problem(error)))
        self.connections_max = self.limits.connections_max
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment] # set by start
        self.now_s = 0.0
        """Loop time of the last sweep: good enough for idleness, free to read."""
        self.slow: dict[Connection, None] = {}
        """Connections that keep us waiting, longest first."""
        self.status_lines: dict[int, bytes] = {}
        self.buffered_bytes = 0
        self.accepted = 0
        self.refused = 0
        self.dropped = 0
        """Connections closed by a deadline or a cap."""
        self._handle = handle
        self._connections: dict[Connection, None] = {}
        self._addresses: Counter[str] = Counter()
        self._lingering: dict[Connection, None] = {}
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_stopping = False
        self._all_gone = asyncio.Event()
        self._date_line = b""

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the server listens."""
        return [each.getsockname()[:2] for listener in self._listeners for each in listener.sockets]

    async def start(self, host: str | None, port: int) -> None:
        """Listen. Raises OSError if the address is taken."""
        self.loop = asyncio.get_running_loop()
        self.connections_max = _affordable(self.limits.connections_max)
        listener = await self.loop.create_server(
            lambda: Connection(self), host, port, backlog=self.limits.backlog, family=socket.AF_UNSPEC
        )
        self._listeners.append(listener)
        if self._sweeper is None:
            self._sweep()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Stop accepting, finish what was asked, close; after `grace_s` cut what is left."""
        self._is_stopping = True
        for listener in self._listeners:
            listener.close()
        for connection in tuple(self._connections):
            connection.stop()
        if self._connections:
            self._all_gone.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._all_gone.wait()
        for connection in tuple(self._connections):
            connection.abort()
        await asyncio.sleep(0)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._listeners.clear()

    # --- connections ------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> None:
        """Count a new connection in, at the cost of a slower one or of itself."""
        address = connection.address
        self.accepted += 1
        if self._addresses[address] >= self.limits.connections_per_address_max:
            self._make_room(address, connection)
        elif len(self._connections) >= self.connections_max:
            self._make_room(None, connection)
        self._connections[connection] = None
        self._addresses[address] += 1
        self.slow[connection] = None
        if self._is_stopping:
            connection.abort()

    def _make_room(self, address: str | None, newcomer: Connection) -> None:
        victim = self._slowest(address) or self._idlest(address)
        if victim is None:
            newcomer.refuse_busy(
                Unavailable("this node has as many connections as it may", limit="connections_max")
            )
            return
        self._drop(victim)

    def _slowest(self, address: str | None) -> Connection | None:
        return next((each for each in self.slow if address is None or each.address == address), None)

    def _idlest(self, address: str | None) -> Connection | None:
        idle = (
            each
            for each in self._connections
            if each.is_idle and (address is None or each.address == address)
        )
        return min(idle, key=lambda each: each.since_s, default=None)

    def _drop(self, victim: Connection) -> None:
        self.dropped += 1
        self.forget(victim)
        victim.abort()

    def drop_slowest(self) -> None:
        """Free the memory of the partial body that has been arriving for longest."""
        victim = next((each for each in self.slow if each.has_partial_body), None)
        if victim is not None:
            self._drop(victim)

    def linger(self, connection: Connection) -> None:
        self._lingering[connection] = None

    def forget(self, connection: Connection) -> None:
        if self._connections.pop(connection, self) is None:
            self._addresses[connection.address] -= 1
            if not self._addresses[connection.address]:
                del self._addresses[connection.address]
            if not self._connections:
                self._all_gone.set()
        self.slow.pop(connection, None)
        self._lingering.pop(connection, None)

    # --- requests ---------------------------------------------------------------------------------

    def dispatch(self, exchange: Exchange) -> None:
        try:
            self._handle(exchange)
        except Exception as error:
            # A handler answers its failures itself, so this is a fault of ours: say so in the log, tell
            # the caller, keep serving.
            log.exception("handler of %s failed", exchange.method)
            if not exchange.is_answered:
                if not isinstance(error, KvError):
                    error = KvError("the node failed to handle this request; its log says more")
                exchange.respond(Response(*problem(error)))

    def status_line(self, status: int) -> bytes:
        """The first lines of every answer with this status, made anew once per sweep for the date."""
        line = b"HTTP/1.1 %d %b\r\n%bX-Content-Type-Options: nosniff\r\n" % (
            status,
            reason_of(status).encode(),
            self._date_line,
        )
        self.status_lines[status] = line
        return line

    # --- deadlines --------------------------------------------------------------------------------

    def _sweep(self) -> None:
        self.now_s = now_s = self.loop.time()
        self._date_line = f"Date: {formatdate(usegmt=True)}\r\n".encode()
        self.status_lines.clear()
        self._sweep_slow(now_s)
        for connection in [each for each in self._lingering if now_s - each.since_s > self.limits.linger_s]:
            connection.abort()
        idle_since = now_s - self.limits.idle_s
        for connection in [each for each in self._connections if each.since_s < idle_since and each.is_idle]:
            self.dropped += 1
            connection.abort()
        self._sweeper = self.loop.call_later(self.limits.sweep_s, self._sweep)

    def _sweep_slow(self, now_s: float) -> None:
        limits = self.limits
        unread_bytes = sum(each.unread_now() for each in self.slow if each.has_unread_answer)
        for connection in tuple(self.slow):
            waited_s = now_s - connection.since_s
            if connection.has_unread_answer:
                if unread_bytes > limits.unread_bytes_max:
                    unread_bytes -= connection.unread_now()
                    self._drop(connection)
                elif waited_s > limits.write_s:
                    self._judge_reader(connection, now_s)
            elif waited_s > (limits.header_s if connection.is_in_head else limits.body_s):
                self.dropped += 1
                connection.expire()

    def _judge_reader(self, connection: Connection, now_s: float) -> None:
        """A slow reader is let be while it takes a fair amount in each period."""
        unread = connection.unread_now()
        if connection.unread_bytes - unread < self.limits.write_bytes_min:
            self.dropped += 1
            connection.abort()
        else:
            connection.since_s, connection.unread_bytes = now_s, unread
