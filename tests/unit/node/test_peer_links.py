"""Links between nodes over real sockets on the loopback."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import aiohttp
import pytest

from kvstore.node.handshake import Addresses, Handshake
from kvstore.node.peer_links import PATH, LinkSettings, PeerLinks
from kvstore.node.runtime import Lane
from kvstore.types import NodeId
from kvstore.wire.peer import AddressBook, Hello, Refusal, decode, encode

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")
QUICK = LinkSettings(retry_min_s=0.01, retry_max_s=0.05, hello_s=1.0)


class Node:
    """One end, with everything it was told."""

    def __init__(self, node: NodeId, cluster: str = "demo", settings: LinkSettings = QUICK) -> None:
        self.node = node
        self.addresses = Addresses()
        self.addresses.announce(node, "127.0.0.1:0", "127.0.0.1:1")
        self.known: set[NodeId] = {N1, N2, N3}
        self.handshake = Handshake(
            cluster, node, 7, b"hash", self.addresses, is_known=lambda other: other in self.known
        )
        self.frames: list[tuple[NodeId, Lane, bytes]] = []
        self.hellos: list[Hello] = []
        self.changes: list[tuple[NodeId, bool]] = []
        self.on_frame: Callable[[NodeId, Lane, bytes], None] = lambda *frame: self.frames.append(frame)
        self.links = PeerLinks(
            self.handshake,
            lambda *frame: self.on_frame(*frame),
            Random(1),
            settings,
            on_hello=self.hellos.append,
            on_link=lambda *change: self.changes.append(change),
        )
        self.port = 0

    async def listen(self, port: int = 0) -> None:
        self.port = await self.links.listen("127.0.0.1", port)

    def knows(self, *others: "Node") -> None:
        self.links.set_addresses({other.node: f"127.0.0.1:{other.port}" for other in others})


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    for node in nodes:
        if not node.port:
            await node.listen()
    for node in nodes:
        node.knows(*[other for other in nodes if other is not node])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(node.links.run()) for node in nodes]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
    for node in nodes:
        await node.links.close()


async def test_frames_arrive_in_order_on_their_lane_in_both_directions() -> None:
    a, b = Node(N1), Node(N2)
    async with running(a, b):
        await until(lambda: a.links.is_connected(N2) and b.links.is_connected(N1))
        await until(lambda: all(link.is_up for link in a.links._out[N2].values()))
        for number in range(100):
            assert a.links.send(N2, Lane.APPEND, b"%d" % number)
        assert a.links.send(N2, Lane.SNAPSHOT, b"bulk")
        assert b.links.send(N1, Lane.CONTROL, b"beat")
        await until(lambda: len(b.frames) == 101 and a.frames)
        appended = [frame for _node, lane, frame in b.frames if lane is Lane.APPEND]
        assert appended == [b"%d" % number for number in range(100)]
        assert (N1, Lane.SNAPSHOT, b"bulk") in b.frames
        assert a.frames == [(N2, Lane.CONTROL, b"beat")]


async def test_a_peer_is_told_of_the_other_sides_hello_and_of_links_up_and_down() -> None:
    a, b = Node(N1), Node(N2)
    async with running(a, b):
        await until(lambda: a.links.is_connected(N2) and len(b.hellos) == 3)
        assert {hello.node for hello in b.hellos} == {N1}
        assert b.hellos[0].address.client == "127.0.0.1:1"
        a.links.set_addresses({})
        assert not a.links.is_connected(N2)
        assert a.changes == [(N2, True), (N2, False)]


async def test_sending_to_a_node_without_a_link_drops_and_counts() -> None:
    a = Node(N1)
    a.links.set_addresses({N2: "127.0.0.1:1"})
    assert not a.links.send(N2, Lane.CONTROL, b"x")
    assert not a.links.send(N3, Lane.CONTROL, b"x")
    assert a.links.counters.frames_dropped == 2


async def test_a_link_comes_back_after_the_peer_restarted_on_the_same_address() -> None:
    a, b = Node(N1), Node(N2)
    async with running(a):
        await b.listen()
        a.knows(b)
        await until(lambda: a.links.is_connected(N2))
        await b.links.close()
        await until(lambda: not a.links.is_connected(N2))
        again = Node(N2)
        await again.listen(b.port)
        await until(lambda: a.links.is_connected(N2))
        assert a.links.send(N2, Lane.CONTROL, b"hello again")
        await until(lambda: again.frames)
        await again.links.close()


async def test_an_unreachable_peer_is_named_once_and_an_address_that_is_none_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    a, b = Node(N1), Node(N2)
    await b.listen()
    async with running(a):
        a.links.set_addresses({N3: "127.0.0.1:1", N2: "no such address"})
        await asyncio.sleep(0.1)
        a.links.set_addresses({N3: "127.0.0.1:1", N2: f"127.0.0.1:{b.port}"})
        await until(lambda: a.links.is_connected(N2))
    complaints = [record.getMessage() for record in caplog.records]
    assert [text for text in complaints if "n3" in text] == [
        "peer n3: no link to 127.0.0.1:1: Connect call failed ('127.0.0.1', 1)"
    ]
    assert len([text for text in complaints if "no such address" in text]) == 1
    await b.links.close()


async def test_a_changed_address_is_dialled_at_once() -> None:
    a, b, moved = Node(N1), Node(N2), Node(N2)
    await b.listen()
    await moved.listen()
    async with running(a):
        a.knows(b)
        await until(lambda: a.links.is_connected(N2))
        a.knows(moved)
        await until(lambda: a.links.is_connected(N2))
        a.links.send(N2, Lane.CONTROL, b"where are you")
        await until(lambda: moved.frames)
        assert not b.frames
    await b.links.close()
    await moved.links.close()


async def test_another_cluster_is_refused_with_a_reason_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    a, b = Node(N1, "demo"), Node(N2, "other")
    async with running(a, b):
        await until(lambda: b.links.counters.refusals >= 9)
        assert not a.links.is_connected(N2)
        assert not b.links.is_connected(N1)
    mine = [record.getMessage() for record in caplog.records]
    assert mine.count("peer n1: node n1 belongs to cluster 'demo', this node to 'other'") == 1
    refused = [text for text in mine if "refused by the node at" in text and "'demo'" in text]
    assert len(refused) == len(set(refused)) <= 2


async def test_an_unknown_node_is_refused() -> None:
    a, b = Node(N1), Node(N2)
    b.known = {N3}
    async with running(a, b):
        await until(lambda: b.links.counters.refusals >= 3)
        assert not a.links.is_connected(N2)


async def test_an_address_that_belongs_to_another_node_is_no_link() -> None:
    a, c = Node(N1), Node(N3)
    await c.listen()
    async with running(a):
        a.links.set_addresses({N2: f"127.0.0.1:{c.port}"})
        await until(lambda: len(c.hellos) >= 3)
        assert not a.links.is_connected(N2)
    await c.links.close()


async def test_after_becoming_a_member_links_to_another_clusters_member_are_gone() -> None:
    a, b = Node(N1), Node(N2)
    async with running(a, b):
        await until(lambda: a.links.is_connected(N2) and b.links.is_connected(N1))
        a.handshake.cluster_id, b.handshake.cluster_id = b"a" * 16, b"b" * 16
        a.links.reset()
        await until(lambda: a.links.counters.refusals and b.links.counters.refusals)
        assert not a.links.is_connected(N2)
        assert not b.links.is_connected(N1)


async def test_a_malformed_frame_closes_the_link_and_others_go_on() -> None:
    a, b = Node(N1), Node(N2)

    def strict(node: NodeId, lane: Lane, frame: bytes) -> None:
        decode(frame)
        b.frames.append((node, lane, frame))

    b.on_frame = strict
    async with running(a, b):
        await until(lambda: a.links.is_connected(N2))
        connects = a.links.counters.connects
        a.links.send(N2, Lane.APPEND, b"rubbish")
        await until(lambda: a.links.counters.connects > connects)
        await until(lambda: a.links.is_connected(N2))
        good = encode([AddressBook(())])
        a.links.send(N2, Lane.APPEND, good)
        await until(lambda: b.frames)
        assert b.frames == [(N1, Lane.APPEND, good)]


async def test_a_fault_while_handling_a_frame_reaches_the_owner_of_the_loop() -> None:
    a, b = Node(N1), Node(N2)
    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))

    def broken(*frame: object) -> None:
        raise AssertionError("our own mistake")

    b.on_frame = broken
    async with running(a, b):
        await until(lambda: a.links.is_connected(N2))
        a.links.send(N2, Lane.CONTROL, b"x")
        await until(lambda: faults)
    assert isinstance(faults[0]["exception"], AssertionError)


async def test_a_peer_that_does_not_read_fills_a_bounded_outbox_and_the_rest_is_dropped() -> None:
    settings = LinkSettings(retry_min_s=0.01, outbox_frames_max=8, outbox_bytes_max=4 << 20)
    a = Node(N1, settings=settings)
    released = asyncio.Event()

    async def deaf(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        ws = aiohttp.web.WebSocketResponse(max_msg_size=0)
        await ws.prepare(request)
        hello = decode(await ws.receive_bytes())[0]
        assert isinstance(hello, Hello)
        await ws.send_bytes(encode([Node(N2).handshake.hello(Lane(hello.lane))]))
        request.transport.pause_reading()  # type: ignore[union-attr]
        await released.wait()
        request.transport.resume_reading()  # type: ignore[union-attr]
        while (message := await ws.receive()).type is aiohttp.WSMsgType.BINARY:
            received.append(message.data)
        return ws

    received: list[bytes] = []
    application = aiohttp.web.Application()
    application.router.add_get(PATH, deaf)
    runner = aiohttp.web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    async with running(a):
        a.links.set_addresses({N2: f"127.0.0.1:{runner.addresses[0][1]}"})
        await until(lambda: a.links.is_connected(N2))
        frames = [bytes([number]) * 300_000 for number in range(100)]
        accepted = [frame for frame in frames if a.links.send(N2, Lane.APPEND, frame)]
        assert 8 < len(accepted) < 100
        assert a.links.counters.frames_dropped == 100 - len(accepted)
        released.set()
        await until(lambda: len(received) == len(accepted))
        assert received == accepted
        assert a.links.send(N2, Lane.APPEND, b"room again")
        await until(lambda: received[-1] == b"room again")
    await runner.cleanup()


async def test_a_peer_that_says_something_else_first_is_cut_off() -> None:
    b = Node(N2)
    await b.listen()
    async with aiohttp.ClientSession() as session:
        for first in (b"rubbish", encode([AddressBook(())]), encode([])):
            async with session.ws_connect(f"http://127.0.0.1:{b.port}{PATH}") as ws:
                await ws.send_bytes(first)
                assert (await ws.receive()).type is not aiohttp.WSMsgType.BINARY
    assert not b.hellos
    await b.links.close()


async def test_a_second_link_from_the_same_peer_replaces_the_first() -> None:
    a, b = Node(N1), Node(N2)
    await b.listen()
    url = f"http://127.0.0.1:{b.port}{PATH}"
    async with aiohttp.ClientSession() as session:
        first = await session.ws_connect(url)
        await first.send_bytes(encode([a.handshake.hello(Lane.CONTROL)]))
        assert isinstance(decode(await first.receive_bytes())[0], Hello)
        second = await session.ws_connect(url)
        await second.send_bytes(encode([a.handshake.hello(Lane.CONTROL)]))
        assert isinstance(decode(await second.receive_bytes())[0], Hello)
        assert (await first.receive()).type is not aiohttp.WSMsgType.BINARY
        await second.send_bytes(b"newest life")
        await until(lambda: b.frames)
        await first.close()
        await second.close()
    await b.links.close()


async def test_a_refusal_names_its_reason_to_the_dialler() -> None:
    b = Node(N2)
    await b.listen()
    url = f"http://127.0.0.1:{b.port}{PATH}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as ws:
        await ws.send_bytes(encode([Node(N1, "other").handshake.hello(Lane.CONTROL)]))
        (refusal,) = decode(await ws.receive_bytes())
        assert isinstance(refusal, Refusal)
        assert "cluster 'other'" in refusal.reason
    await b.links.close()


async def test_an_address_in_use_is_an_error_at_listening() -> None:
    a, b = Node(N1), Node(N2)
    await a.listen()
    with pytest.raises(OSError, match="in use"):
        await b.listen(a.port)
    await a.links.close()
    await b.links.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not a socket option here")
async def test_a_sending_socket_gives_up_on_a_peer_that_acknowledges_nothing() -> None:
    a, b = Node(N1), Node(N2)
    async with running(a, b):
        await until(lambda: a.links.is_connected(N2))
        ws = a.links._out[N2][Lane.CONTROL].socket
        assert ws is not None
        option = ws.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert option == QUICK.silence_s * 1000
