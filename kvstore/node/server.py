"""One node as a process: sockets, signals and logging around a `Node`.

Exit codes: 0 after a clean stop, 1 after a failure, 2 when the command line or configuration is wrong.
A fatal error ends the process without ceremony: whatever was not acknowledged was not promised.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys

from kvstore.config import Config, config_hash, split_address
from kvstore.errors import Fatal
from kvstore.files import OsFiles, join
from kvstore.node.aio_runtime import AioRuntime
from kvstore.node.allocator import keep_large_blocks
from kvstore.node.api import Api
from kvstore.node.handshake import Addresses, Handshake
from kvstore.node.http_server import HttpLimits, HttpServer
from kvstore.node.node import Node
from kvstore.node.peer_links import LinkSettings, PeerLinks
from kvstore.node.trace import open_trace
from kvstore.node.view import NodeView
from kvstore.store.memory import MemoryEngines
from kvstore.store.rocks import RocksEngines
from kvstore.types import NodeId
from kvstore.wire.peer import NodeAddress

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""The log thread must get the interpreter soon after its sync: 5 ms, the default, is many syncs."""
HAND_OVER_S = 0.5
"""A clean stop waits this long for peers to take over the leaderships."""


class Server:
    """Builds the parts on the running loop; `run` returns the exit code."""

    def __init__(self, config: Config, me: NodeId, data: str) -> None:
        self._config = config
        self._me = me
        self._data = data
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        runtime = AioRuntime(loop)
        config, files = self._config, OsFiles()
        seeds = {NodeId(each.id): each for each in config.nodes}
        mine = seeds[self._me]
        addresses = Addresses(NodeAddress(node, 0, each.peer, each.client) for node, each in seeds.items())
        handshake = Handshake(
            config.cluster,
            self._me,
            runtime.dice.getrandbits(63),
            config_hash(config),
            addresses,
            lambda node: node in seeds,
        )
        links = PeerLinks(
            handshake,
            lambda node, lane, frame: node_.host.on_frame(node, lane, frame),
            runtime.dice,
            LinkSettings(outbox_bytes_max=config.limits.peer_outbox_bytes_max),
            on_hello=lambda hello: node_.learn_addresses((hello.address,)),
            on_link=lambda node, is_up: node_.greet(node) if is_up else None,
        )
        engines = (
            MemoryEngines(files)
            if config.storage.engine == "memory"
            else RocksEngines(
                files,
                block_cache_bytes=config.storage.block_cache_bytes,
                write_buffer_bytes=config.storage.write_buffer_bytes,
            )
        )
        trace = open_trace(os.environ.get("KVSTORE_RAFT_TRACE"), self._me)
        node_ = Node(
            config, self._me, runtime, links, files, self._data, engines, addresses, self._on_fatal, trace
        )
        self._adopt_addresses(node_, addresses, mine.peer, mine.client)
        api = Api(node_.router, NodeView(node_, links), config, runtime)
        http = HttpServer(api.handle, _http_limits(config), api.body_limit)
        bind = mine.bind

        def on_member() -> None:
            handshake.cluster_id = node_.boot.identity.cluster_id
            links.reset()

        handshake.cluster_id = node_.boot.identity.cluster_id
        node_.on_member = on_member
        await self._listen(http, links, mine.client, mine.peer, bind)
        node_.on_addresses = lambda: links.set_addresses(addresses.peers(but=self._me))
        node_.on_addresses()
        node_.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        log.info("node %s listens on %s (clients) and %s (peers)", self._me, mine.client, mine.peer)
        running = asyncio.ensure_future(links.run())  # noqa: RUF006 - awaited through cancel below
        await self._stopping.wait()
        return await self._shut_down(node_, runtime, http, links, running)

    async def _listen(
        self, http: HttpServer, links: PeerLinks, client: str, peer: str, bind: str | None
    ) -> None:
        for name, address, listen in (
            ("client", client, http.start),
            ("peer", peer, links.listen),
        ):
            host, port = split_address(address)
            try:
                await listen(bind or host, port)
            except OSError as error:
                raise Fatal(f"cannot listen on {name} address {address}: {error.strerror or error}") from error

    def _adopt_addresses(self, node: Node, addresses: Addresses, peer: str, client: str) -> None:
        """What this node knew at its last stop, and where it can be reached now."""
        addresses.merge(node.boot.identity.addresses, me=self._me)
        addresses.announce(self._me, peer, client)

    async def _shut_down(
        self,
        node: Node,
        runtime: AioRuntime,
        http: HttpServer,
        links: PeerLinks,
        running: asyncio.Future[None],
    ) -> int:
        if self._failure is not None:
            log.critical("node %s stops: %s", self._me, self._failure)
            return 1
        log.info("node %s is stopping", self._me)
        node.hand_over()
        await asyncio.sleep(HAND_OVER_S if node.host.peers else 0)
        await http.stop(self._config.timeouts.stop_s)
        node.stop()
        running.cancel()
        await links.close()
        hung = runtime.stop()
        if hung:
            log.error("threads still hang at the end: %s", ", ".join(hung))
            return 1
        node.close()
        return 0

    def _on_fatal(self, error: BaseException) -> None:
        self._failure = error
        self._stopping.set()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A fault of ours outside any request: going on could fake data."""
        error = context.get("exception")
        loop.default_exception_handler(context)
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self._on_fatal(error)


def _http_limits(config: Config) -> HttpLimits:
    limits, timeouts = config.limits, config.timeouts
    return HttpLimits(
        header_bytes_max=limits.header_bytes_max,
        body_bytes_max=limits.batch_bytes_max,
        connections_max=limits.connections_max,
        connections_per_address_max=limits.connections_per_address_max,
        header_s=timeouts.header_s,
        body_s=timeouts.body_s,
        idle_s=timeouts.idle_s,
    )


def run(config: Config, me: NodeId, data: str) -> int:
    """Run one node until it is told to stop or must."""
    keep_large_blocks()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        runner = asyncio.run
    else:
        runner = uvloop.run

    async def main() -> int:
        return await Server(config, me, data).run()

    try:
        return runner(main())
    except Fatal as error:
        log.critical("node %s cannot start: %s", me, error)
        return 1


def default_data(me: NodeId) -> str:
    return join("data", me)
