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
from kvstore.node.scrape import scraper
from kvstore.node.trace import open_trace
from kvstore.node.view import NodeView
from kvstore.node.watchdog import watch_log
from kvstore.store.engine import Engines
from kvstore.store.memory import MemoryEngines
from kvstore.store.rocks import RocksEngines
from kvstore.types import NodeId
from kvstore.wire.peer import NodeAddress

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""The log thread must get the interpreter soon after its sync: 5 ms, the default, is many syncs."""
GC_THRESHOLDS = (50_000, 20, 50)
HAND_OVER_S = 0.5
"""A clean stop waits this long for peers to take over the leaderships."""


class Server:
    """Builds the parts on the running loop; `run` returns the exit code."""

    def __init__(self, config: Config, me: NodeId, data: str) -> None:
        self._config = config
        self._me = me
        self._data = data
        self._mine = config.node(me)
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._files = OsFiles()
        self._runtime = AioRuntime(asyncio.get_running_loop())
        self._addresses = self._address_book()
        self._handshake = Handshake(
            config.cluster,
            me,
            self._runtime.dice.getrandbits(63),
            config_hash(config),
            self._addresses,
            lambda node: node in config.node_ids(),
        )
        self._links = PeerLinks(
            self._handshake,
            lambda node, lane, frame: self._node.host.on_frame(node, lane, frame),
            self._runtime.dice,
            LinkSettings(outbox_bytes_max=config.limits.peer_outbox_bytes_max),
            on_hello=lambda hello: self._node.learn_addresses((hello.address,)),
            on_link=lambda node, is_up: self._node.greet(node) if is_up else None,
        )
        self._node = self._make_node()
        api = Api(
            self._node.router, NodeView(self._node, self._links), config, self._runtime, self._node.watches
        )
        self._http = HttpServer(api.handle, _http_limits(config), api.body_limit, api.refusal)
        api.metrics.on_scrape(scraper(api.metrics, self._node, self._links, self._http))

    def _address_book(self) -> Addresses:
        return Addresses(
            NodeAddress(NodeId(each.id), 0, each.peer, each.client) for each in self._config.nodes
        )

    def _make_node(self) -> Node:
        storage, files = self._config.storage, self._files
        engines: Engines
        if storage.engine == "memory":
            engines = MemoryEngines(files)
        else:
            engines = RocksEngines(
                files,
                block_cache_bytes=storage.block_cache_bytes,
                write_buffer_bytes=storage.write_buffer_bytes,
            )
        node = Node(
            self._config,
            self._me,
            self._runtime,
            self._links,
            files,
            self._data,
            engines,
            self._addresses,
            self._on_fatal,
            open_trace(os.environ.get("KVSTORE_RAFT_TRACE"), self._me),
        )
        # What this node knew at its last stop, and where it can be reached now.
        self._addresses.merge(node.boot.identity.addresses, me=self._me)
        self._addresses.announce(self._me, self._mine.peer, self._mine.client)
        return node

    async def run(self) -> int:
        """Serve until a signal or a fatal error; returns the exit code.

        Raises:
            Fatal: an address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self._listen()
        self._handshake.cluster_id = self._node.boot.identity.cluster_id
        self._node.on_member = self._on_member
        self._node.on_addresses = self._dial_all
        self._dial_all()
        watch_log(self._log_busy_s, self._config.timeouts.disk_dead_s)
        self._node.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        log.info("node %s serves clients on %s, peers on %s", self._me, self._mine.client, self._mine.peer)
        async with asyncio.TaskGroup() as group:
            dialling = group.create_task(self._links.run())
            await self._stopping.wait()
            code = await self._shut_down()
            dialling.cancel()
        return code

    def _log_busy_s(self) -> float:
        writer = self._node.host.log
        return 0.0 if writer.is_disk_full else writer.busy_s(self._runtime.now())

    def _on_member(self) -> None:
        self._handshake.cluster_id = self._node.boot.identity.cluster_id
        self._links.reset()

    def _dial_all(self) -> None:
        self._links.set_addresses(self._addresses.peers(but=self._me))

    async def _listen(self) -> None:
        for name, address, listen in (
            ("client", self._mine.client, self._http.start),
            ("peer", self._mine.peer, self._links.listen),
        ):
            host, port = split_address(address)
            try:
                await listen(self._mine.bind or host, port)
            except OSError as error:
                problem = error.strerror or str(error)
                raise Fatal(f"cannot listen on {name} address {address}: {problem}") from error

    async def _shut_down(self) -> int:
        if self._failure is not None:
            log.critical("node %s stops: %s", self._me, self._failure)
            # Nothing that runs in a thread may go on to acknowledge; the process ends here.
            os._exit(1)
        log.info("node %s is stopping", self._me)
        self._node.hand_over()
        await asyncio.sleep(HAND_OVER_S if self._node.host.peers else 0)
        self._node.watches.stop()
        self._node.router.end_waits()
        await self._http.stop(self._config.timeouts.stop_s)
        self._node.stop()
        await self._links.close()
        hung = self._runtime.stop()
        if hung:
            log.error("threads still hang at the end: %s", ", ".join(hung))
            return 1
        self._node.close()
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
        import uvloop
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
