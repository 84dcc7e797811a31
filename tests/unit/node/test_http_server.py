"""The server's deadlines, caps and stop, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest

from kvstore.node.http_server import HttpServer
from kvstore.node.requests import Request, Response
from tests.support.http_socket import HOST, echo, get, problem_of, put, read_answer, serving, status_of, until

# --- deadlines and caps --------------------------------------------------------------------------


async def test_header_that_never_ends_is_answered_408() -> None:
    async with serving(header_s=0.1) as running:
        answer = await running.exchange(b"GET / HTTP/1.1\r\nHost:")
        assert status_of(answer) == 408
        assert problem_of(answer)["code"] == "request-timeout"


async def test_header_sent_a_byte_at_a_time_does_not_gain_time() -> None:
    async with serving(header_s=0.15) as running:
        reader, writer = await running.connect()
        writer.write(b"GET / HTTP/1.1\r\nA: ")

        async def dribble() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"b")
                    await writer.drain()
                    await asyncio.sleep(0.01)

        task = asyncio.get_running_loop().create_task(dribble())
        assert (await read_answer(reader))[0] == 408
        task.cancel()
        writer.close()


async def test_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with serving(header_s=0.05) as running:
        assert await running.exchange(b"") == b""


async def test_body_that_never_ends_is_answered_408() -> None:
    async with serving(body_s=0.1) as running:
        answer = await running.exchange(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\nabc")
        assert status_of(answer) == 408
        assert "body" in str(problem_of(answer)["detail"])


async def test_idle_connection_is_closed_after_its_time_and_not_before() -> None:
    async with serving(idle_s=0.15) as running:
        reader, writer = await running.connect()
        for _ in range(4):
            writer.write(get())
            assert (await read_answer(reader))[0] == 200
            await asyncio.sleep(0.06)
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


async def test_request_in_progress_has_no_deadline_of_the_server() -> None:
    waiting: list[Request] = []
    async with serving(waiting.append, header_s=0.05, body_s=0.05, idle_s=0.05) as running:
        reader, writer = await running.connect()
        writer.write(put(b"x"))
        await asyncio.sleep(0.2)
        waiting[0].respond(Response(200, b"", b"slow but sure"))
        assert (await read_answer(reader))[2] == b"slow but sure"
        writer.close()


async def test_peer_that_does_not_read_is_dropped() -> None:
    def large(request: Request) -> None:
        request.respond(Response(200, b"", b"x" * 8_000_000))

    async with serving(large, write_s=0.1) as running:
        plain = socket.create_connection(("127.0.0.1", running.port))
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.sendall(get() * 5)
        await until(lambda: running.server.dropped > 0)
        plain.close()


async def test_answers_that_nobody_reads_are_bounded_together() -> None:
    def large(request: Request) -> None:
        request.respond(Response(200, b"", b"x" * 8_000_000))

    async with serving(large, unread_bytes_max=10_000_000) as running:
        readers = []
        for _ in range(4):
            plain = socket.create_connection(("127.0.0.1", running.port))
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            plain.sendall(get())
            readers.append(plain)
        await until(lambda: running.server.dropped >= 2)
        await asyncio.sleep(0.05)
        assert running.server.connection_count >= 1
        for plain in readers:
            plain.close()


@pytest.mark.parametrize(
    "half", [b"GET / HTTP/1.1\r\nHost:", b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 50\r\n\r\nx", b""]
)
async def test_500_connections_that_keep_us_waiting_keep_nobody_else_from_being_served(half: bytes) -> None:
    async with serving(connections_max=300, connections_per_address_max=300) as running:
        slow = [await running.connect() for _ in range(250)]
        for _, writer in slow:
            writer.write(half)
        for _ in range(10):
            for _ in range(25):
                connection = await running.connect()
                connection[1].write(half)
                slow.append(connection)
            reader, writer = await running.connect()
            writer.write(put(b"me"))
            assert (await read_answer(reader))[0] == 200
            writer.close()
        assert running.server.connection_count <= 300
        assert running.server.dropped >= 200
        for _, writer in slow:
            writer.close()


async def test_busy_connections_are_never_dropped_for_a_newcomer() -> None:
    waiting: list[Request] = []
    async with serving(waiting.append, connections_max=3) as running:
        busy = [await running.connect() for _ in range(3)]
        for _, writer in busy:
            writer.write(get())
        await until(lambda: len(waiting) >= 3)
        reader, newcomer = await running.connect()
        status, headers, body = await read_answer(reader)
        assert (status, json.loads(body)["code"]) == (503, "unavailable")
        assert int(headers["retry-after"]) >= 1
        for request in waiting:
            request.respond(Response(200))
        for busy_reader, writer in busy:
            assert (await read_answer(busy_reader))[0] == 200
            writer.close()
        newcomer.close()


async def test_idle_connection_makes_room_for_a_newcomer() -> None:
    async with serving(connections_max=1) as running:
        reader, writer = await running.connect()
        writer.write(get())
        assert (await read_answer(reader))[0] == 200
        second_reader, second = await running.connect()
        second.write(get())
        assert (await read_answer(second_reader))[0] == 200
        assert await reader.read() == b""
        writer.close()
        second.close()


async def test_partial_bodies_together_are_bounded() -> None:
    async with serving(buffered_bytes_max=100_000) as running:
        slow = [await running.connect() for _ in range(4)]
        for _, writer in slow:
            writer.write(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 60000\r\n\r\n" + b"x" * 40_000)
            await asyncio.sleep(0.02)
        assert running.server.buffered_bytes <= 100_000
        assert running.server.dropped == 2
        for _, writer in slow[2:]:
            writer.write(b"x" * 20_000)
        for reader, _ in slow[2:]:
            assert (await read_answer(reader))[0] == 200
        assert running.server.buffered_bytes == 0
        for _, writer in slow:
            writer.close()


async def test_flood_of_pipelined_requests_is_read_no_faster_than_it_is_answered() -> None:
    waiting: list[Request] = []
    async with serving(waiting.append, pipeline_max=16) as running:
        reader, writer = await running.connect()
        writer.write(get("/a") * 2000)
        await asyncio.sleep(0.05)
        assert len(waiting) <= 16
        for _ in range(2000):
            await until(lambda: bool(waiting))
            waiting.pop(0).respond(Response(200))
            assert (await read_answer(reader))[0] == 200
        writer.close()


# --- stopping ------------------------------------------------------------------------------------


async def test_stop_finishes_what_is_in_flight_and_closes_the_idle() -> None:
    waiting: list[Request] = []

    def handle(request: Request) -> None:
        if request.target == "/slow":
            waiting.append(request)
        else:
            echo(request)

    async with serving(handle) as running:
        idle_reader, idle = await running.connect()
        idle.write(get("/fast"))
        await read_answer(idle_reader)
        reader, writer = await running.connect()
        writer.write(get("/slow"))
        await until(lambda: bool(waiting))
        stopping = asyncio.get_running_loop().create_task(running.server.stop(grace_s=5))
        assert await idle_reader.read() == b""
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
            await running.connect()
        waiting[0].respond(Response(200, b"", b"done"))
        status, headers, body = await read_answer(reader)
        assert (status, headers["connection"], body) == (200, "close", b"done")
        assert await reader.read() == b""
        await stopping
        writer.close()
        idle.close()


async def test_occupied_port_is_an_error_of_the_system() -> None:
    async with serving() as running:
        other = HttpServer(echo)
        with pytest.raises(OSError, match="in use"):
            await other.start("127.0.0.1", running.port)
