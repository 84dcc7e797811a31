"""Links between nodes: WebSockets on the peer address, one per peer and lane in each direction.

Every node dials every other; a dialled socket only sends, an accepted one only receives, so that
neither side has to agree on who dials. The first message in both directions is a Hello
(`handshake.py`). Frames are opaque here (`wire/peer.py`), and may be lost whenever a link breaks:
what is queued is dropped, never replayed to the peer's next life.

Sending costs no task: `send` runs aiohttp's send coroutine by hand, which ends at once unless the
socket's buffer is full. Then the coroutine is kept until the buffer drains, and frames wait in an
outbox bounded in number and bytes. Measured on 200-byte frames with uvloop: 12 us for both ends of a
frame together, system calls included; no less with the writer's private parts.

A peer that vanishes without a word is noticed by TCP_USER_TIMEOUT (unacknowledged bytes) on sending
sockets and by keepalive on receiving ones. Without it, retransmission back-off would keep a link dead
for many seconds after a partition has healed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from kvstore.node.aio_runtime import boottime
from kvstore.node.handshake import Handshake
from kvstore.node.runtime import Lane
from kvstore.types import NodeId
from kvstore.wire import peer
from kvstore.wire.peer import Hello, PeerProtocolError, Refusal

log = logging.getLogger(__name__)

PATH = "/peer"


class LinkSettings(msgspec.Struct, frozen=True):
    outbox_frames_max: int = 4096
    outbox_bytes_max: int = 32 << 20
    """Per link. A frame that does not fit is dropped; Raft sends again what matters."""
    hello_s: float = 2.0
    """For connecting and for the other side's Hello."""
    retry_min_s: float = 0.05
    retry_max_s: float = 2.0
    silence_s: float = 3.0
    """A socket with bytes unacknowledged for so long is given up."""
    log_again_s: float = 60.0
    """The same complaint about the same node is logged once in this time."""


class LinkCounters:
    """Plain totals since start, read by the metrics."""

    __slots__ = ("connects", "frames_dropped", "frames_received", "frames_sent", "refusals")

    def __init__(self) -> None:
        self.connects = 0
        self.frames_sent = 0
        self.frames_received = 0
        self.frames_dropped = 0
        self.refusals = 0


class OutLink:
    """The sending end towards one peer on one lane."""

    def __init__(self, node: NodeId, lane: Lane, settings: LinkSettings, counters: LinkCounters) -> None:
        self.node = node
        self.lane = lane
        self.wake = asyncio.Event()
        """Set to end a back-off early: the address changed, or the peer has just dialled us."""
        self._settings = settings
        self._counters = counters
        self.socket: aiohttp.ClientWebSocketResponse | None = None
        self._stalled: Coroutine[Any, Any, None] | None = None
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0

    @property
    def is_up(self) -> bool:
        return self.socket is not None

    def attach(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = ws
        self._counters.connects += 1

    def detach(self) -> None:
        self.socket = None
        self._counters.frames_dropped += len(self._outbox)
        self._outbox.clear()
        self._outbox_bytes = 0
        if self._stalled is not None:
            self._stalled.close()
            self._stalled = None

    def send(self, frame: bytes) -> bool:
        if self.socket is None:
            self._counters.frames_dropped += 1
            return False
        if self._stalled is None:
            return self._write(frame)
        if (
            len(self._outbox) >= self._settings.outbox_frames_max
            or self._outbox_bytes + len(frame) > self._settings.outbox_bytes_max
        ):
            self._counters.frames_dropped += 1
            return False
        self._outbox.append(frame)
        self._outbox_bytes += len(frame)
        return True

    def _write(self, frame: bytes) -> bool:
        assert self.socket is not None
        self._counters.frames_sent += 1
        return self._step(self.socket.send_bytes(frame))

    def _step(self, sending: Coroutine[Any, Any, None]) -> bool:
        """Run the send until it is done or waits for the socket; False: the link is broken."""
        try:
            drained: asyncio.Future[None] = sending.send(None)
        except StopIteration:
            return True
        except (aiohttp.ClientError, OSError):
            # The socket is closing: whoever watches its reading side takes the link down.
            return False
        self._stalled = sending
        drained.add_done_callback(lambda _future: self._resume(sending))
        return True

    def _resume(self, sending: Coroutine[Any, Any, None]) -> None:
        if self._stalled is not sending:
            return
        self._stalled = None
        if not self._step(sending):
            return
        while self._outbox and self._stalled is None:
            frame = self._outbox.popleft()
            self._outbox_bytes -= len(frame)
            self._write(frame)


class PeerLinks:
    """`Transport` over aiohttp. `listen`, then `run` for ever; `close` at the end.

    `on_frame(node, lane, frame)` is called on the loop for every frame; a `PeerProtocolError` out of it
    closes that link, anything else goes to the loop's exception handler. `on_hello` is told of every
    accepted peer, for its address; `on_link(node, is_up)` when the control link to a peer comes or goes.
    """

    def __init__(
        self,
        handshake: Handshake,
        on_frame: Callable[[NodeId, Lane, bytes], None],
        dice: Random,
        settings: LinkSettings | None = None,
        *,
        on_hello: Callable[[Hello], None] = lambda hello: None,
        on_link: Callable[[NodeId, bool], None] = lambda node, is_up: None,
    ) -> None:
        self.counters = LinkCounters()
        self._handshake = handshake
        self._on_frame = on_frame
        self._on_hello = on_hello
        self._on_link = on_link
        self._dice = dice
        self._settings = settings or LinkSettings()
        self._addresses: dict[NodeId, str] = {}
        self._out: dict[NodeId, dict[Lane, OutLink]] = {}
        self._accepted: dict[tuple[NodeId, Lane], web.Request] = {}
        self._tasks: dict[OutLink, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._runner: web.AppRunner | None = None
        self._complaints: dict[tuple[NodeId, str], float] = {}

    # ---- Transport -------------------------------------------------------------------------------

    def send(self, node: NodeId, lane: Lane, frame: bytes) -> bool:
        links = self._out.get(node)
        if links is None:
            self.counters.frames_dropped += 1
            return False
        return links[lane].send(frame)

    def is_connected(self, node: NodeId) -> bool:
        links = self._out.get(node)
        return links is not None and links[Lane.CONTROL].is_up and links[Lane.APPEND].is_up

    # ---- life ------------------------------------------------------------------------------------

    async def listen(self, host: str, port: int) -> int:
        """Accept peers; returns the port, chosen by the system if `port` is 0.

        Raises:
            OSError: the address is in use or not ours.
        """
        application = web.Application()
        application.router.add_get(PATH, self._accept)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def run(self) -> None:
        """Dial every peer and dial again whenever a link breaks, until cancelled."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True, use_dns_cache=False)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, cookie_jar=jar) as session:
            self._session = session
            try:
                async with asyncio.TaskGroup() as group:
                    self._group = group
                    for node in self._out:
                        self._redial(node)
                    await asyncio.Event().wait()
            finally:
                self._group = None
                self._tasks.clear()

    async def close(self) -> None:
        """Stop listening and drop every accepted link. Cancel `run` to drop the dialled ones."""
        self._drop_accepted()
        if self._runner is not None:
            await self._runner.cleanup()

    def set_addresses(self, addresses: Mapping[NodeId, str]) -> None:
        """Say who the peers are and where (`host:port`); links to nodes not named are dropped."""
        for node in [node for node in self._out if node not in addresses]:
            for link in self._out.pop(node).values():
                self._stop_dialling(link)
        for node, address in addresses.items():
            if node not in self._out:
                self._out[node] = {lane: OutLink(node, lane, self._settings, self.counters) for lane in Lane}
            elif self._addresses[node] == address:
                continue
            self._addresses[node] = address
            self._redial(node)

    def reset(self) -> None:
        """Break every link, so that each is judged anew: call it once this node became a member.

        A link that was accepted while one side had no cluster id must not carry Raft messages: the
        other side may since have joined another cluster of the same name.
        """
        for node in self._out:
            self._redial(node)
        self._drop_accepted()

    def _drop_accepted(self) -> None:
        accepted = list(self._accepted.values())
        self._accepted.clear()
        for request in accepted:
            _abort(request)

    # ---- the sending side ------------------------------------------------------------------------

    def _redial(self, node: NodeId) -> None:
        if self._group is not None:
            for link in self._out[node].values():
                self._stop_dialling(link)
                self._tasks[link] = self._group.create_task(self._keep_dialling(link))

    def _stop_dialling(self, link: OutLink) -> None:
        self._down(link)
        if (task := self._tasks.pop(link, None)) is not None:
            task.cancel()

    async def _keep_dialling(self, link: OutLink) -> None:
        failures = 0
        while True:
            link.wake.clear()
            if await self._dial(link):
                failures = 0
            delay_s = min(self._settings.retry_max_s, self._settings.retry_min_s * 2 ** min(failures, 10))
            failures += 1
            try:
                async with asyncio.timeout(delay_s * self._dice.uniform(0.5, 1.0)):
                    await link.wake.wait()
            except TimeoutError:
                continue

    async def _dial(self, link: OutLink) -> bool:
        """Connect, serve the link until it breaks; True if it was up for a while."""
        settings = self._settings
        ws: aiohttp.ClientWebSocketResponse | None = None
        try:
            async with asyncio.timeout(settings.hello_s):
                ws = await self._session.ws_connect(
                    f"http://{self._addresses[link.node]}{PATH}",
                    max_msg_size=peer.FRAME_BYTES_MAX,
                    autoping=False,
                    compress=0,
                    timeout=aiohttp.ClientWSTimeout(ws_close=0.2),
                )
                _set_silence(ws.get_extra_info("socket"), settings.silence_s)
                await ws.send_bytes(peer.encode([self._handshake.hello(link.lane)]))
                answer = _single(await ws.receive())
            if (reason := self._objection(link, answer)) is not None:
                self._complain(link.node, reason)
                return False
            self._up(link, ws)
            # Nothing but the end of the link is ever received here.
            await ws.receive()
        except (aiohttp.ClientError, OSError, ValueError, PeerProtocolError) as error:
            # One complaint speaks for all lanes. ValueError: an address that is none.
            if link.lane == Lane.CONTROL:
                self._complain(link.node, f"no link to {self._addresses[link.node]}: {_say(error)}")
            return False
        else:
            return True
        finally:
            self._down(link, ws)
            if ws is not None:
                await _close(ws)

    def _objection(self, link: OutLink, answer: peer.PeerMessage) -> str | None:
        if isinstance(answer, Refusal):
            return f"refused by the node at {self._addresses[link.node]}: {answer.reason}"
        if not isinstance(answer, Hello):
            return f"answered with a {type(answer).__name__} instead of a Hello"
        if answer.node != link.node:
            return f"the node at {self._addresses[link.node]} is {answer.node}"
        return self._handshake.refusal(answer)

    def _up(self, link: OutLink, ws: aiohttp.ClientWebSocketResponse) -> None:
        link.attach(ws)
        if link.lane == Lane.CONTROL:
            log.info("link up: node=%s", link.node)
            self._on_link(link.node, True)

    def _down(self, link: OutLink, ws: aiohttp.ClientWebSocketResponse | None = None) -> None:
        """Take the link down, unless it has meanwhile come up on another socket than `ws`."""
        if not link.is_up or (ws is not None and link.socket is not ws):
            return
        link.detach()
        if link.lane == Lane.CONTROL:
            log.info("link down: node=%s", link.node)
            self._on_link(link.node, False)

    # ---- the receiving side ----------------------------------------------------------------------

    async def _accept(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(
            max_msg_size=peer.FRAME_BYTES_MAX, autoping=False, compress=False, timeout=0.5
        )
        try:
            async with asyncio.timeout(self._settings.hello_s):
                await ws.prepare(request)  # fails where the peer has gone meanwhile
                hello = await self._greet(request, ws)
        except (PeerProtocolError, TimeoutError, OSError) as error:
            self._complain(NodeId(request.remote or "?"), f"no Hello: {_say(error)}")
            hello = None
        if hello is not None:
            _keep_alive(request.transport, self._settings.silence_s)
            await self._receive(request, ws, (hello.node, Lane(hello.lane)))
        _abort(request)
        return ws

    async def _greet(self, request: web.Request, ws: web.WebSocketResponse) -> Hello | None:
        theirs = _single(await ws.receive())
        if not isinstance(theirs, Hello):
            raise PeerProtocolError(f"first message is a {type(theirs).__name__}")
        reason = self._handshake.refusal(theirs)
        if reason is not None:
            self.counters.refusals += 1
            self._complain(theirs.node, reason)
            await ws.send_bytes(peer.encode([Refusal(reason[:1000])]))
            await ws.close(code=aiohttp.WSCloseCode.POLICY_VIOLATION)
            return None
        await ws.send_bytes(peer.encode([self._handshake.hello(Lane(theirs.lane))]))
        link = (theirs.node, Lane(theirs.lane))
        if (older := self._accepted.pop(link, None)) is not None:
            # The peer dialled again: its earlier socket is dead, whatever TCP thinks.
            _abort(older)
        self._accepted[link] = request
        self._on_hello(theirs)
        for out in self._out.get(theirs.node, {}).values():
            out.wake.set()
        return theirs

    async def _receive(
        self, request: web.Request, ws: web.WebSocketResponse, link: tuple[NodeId, Lane]
    ) -> None:
        node, lane = link
        on_frame, receive, accepted = self._on_frame, ws.receive, self._accepted
        try:
            while (message := await receive()).type is aiohttp.WSMsgType.BINARY:
                if accepted.get(link) is not request:
                    # Superseded or dropped; what its buffer still holds is from before.
                    return
                self.counters.frames_received += 1
                on_frame(node, lane, message.data)
        except PeerProtocolError as error:
            self._complain(node, f"link closed: {error}")
        except Exception as error:  # noqa: BLE001 - a fault of ours; the owner of the loop decides
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"handling a frame of node {node} failed", "exception": error}
            )
        finally:
            if accepted.get(link) is request:
                del accepted[link]

    # ---- complaints ------------------------------------------------------------------------------

    def _complain(self, node: NodeId, reason: str) -> None:
        """Log a reason once, and again only after `log_again_s`: peers retry many times a minute."""
        now = boottime()
        key = (node, reason)
        if now - self._complaints.get(key, -1e9) >= self._settings.log_again_s:
            if len(self._complaints) >= 1000:
                self._complaints.clear()
            self._complaints[key] = now
            log.warning("peer %s: %s", node, reason)


def _single(message: aiohttp.WSMessage) -> peer.PeerMessage:
    if message.type is not aiohttp.WSMsgType.BINARY:
        raise PeerProtocolError(f"link ended before its Hello ({message.type.name.lower()})")
    messages = peer.decode(message.data)
    if len(messages) != 1:
        raise PeerProtocolError(f"{len(messages)} messages where one Hello was expected")
    return messages[0]


def _abort(request: web.Request) -> None:
    """Drop the connection now: a closing handshake could wait for a peer that is gone."""
    if request.transport is not None:
        request.transport.abort()


async def _close(ws: aiohttp.ClientWebSocketResponse) -> None:
    """Close politely but not for long: the peer may be gone and the socket's buffer full."""
    try:
        async with asyncio.timeout(0.5):
            await ws.close()
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass


def _say(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.strerror or str(error.os_error) or type(error.os_error).__name__
    return str(error) or type(error).__name__


def _set_silence(sock: Any, silence_s: float) -> None:
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_s * 1000))


def _keep_alive(transport: asyncio.Transport | None, silence_s: float) -> None:
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", max(1, int(silence_s))), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
