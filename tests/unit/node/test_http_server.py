"""The HTTP server on real sockets: raw bytes in, raw bytes out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from kvstore.node.http_server import HttpLimits, HttpServer
from kvstore.node.requests import BodyStream, Request, Response

HOST = b"Host: x\r\n"


def echo(request: Request) -> None:
    content = {
        "method": request.method,
        "target": request.target.encode("utf-8", "surrogateescape").decode("latin-1"),
        "body": request.body.decode("latin-1"),
    }
    request.respond(Response.json(200, content))


class Running:
    """A server under test and ways to talk to it."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.port = server.addresses[0][1]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange(self, sent: bytes, *, half_close: bool = False) -> bytes:
        """Send bytes and read until the server closes."""
        reader, writer = await self.connect()
        writer.write(sent)
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        return answer


@contextlib.asynccontextmanager
async def serving(
    handle: Callable[[Request], None] = echo,
    body_limit: Callable[[str, str], tuple[str, int]] | None = None,
    **limits: float,
) -> AsyncIterator[Running]:
    settings: dict[str, float] = {"sweep_s": 0.02, "linger_s": 0.3} | limits
    server = HttpServer(handle, HttpLimits(**settings), body_limit)  # type: ignore[arg-type]
    await server.start("127.0.0.1", 0)
    try:
        yield Running(server)
    finally:
        await server.stop(grace_s=0.2)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        status = int(status_line.split()[1])
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
    return status, headers, body


def reset(writer: asyncio.StreamWriter) -> None:
    """Vanish, rather than say politely that nothing more will be sent."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def get(target: str = "/", more: bytes = b"") -> bytes:
    return b"GET " + target.encode() + b" HTTP/1.1\r\n" + HOST + more + b"\r\n"


def put(body: bytes, more: bytes = b"", target: str = "/") -> bytes:
    return (
        b"PUT "
        + target.encode()
        + b" HTTP/1.1\r\n"
        + HOST
        + more
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def problem_of(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    document = json.loads(body)
    assert isinstance(document, dict)
    return document


# --- ordinary requests ---------------------------------------------------------------------------


async def test_connection_is_kept_alive_and_answers_each_request() -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        for number in range(200):
            writer.write(put(b"v%d" % number, target=f"/{number}"))
            status, headers, body = await read_answer(reader)
            assert status == 200
            assert json.loads(body) == {"method": "PUT", "target": f"/{number}", "body": f"v{number}"}
            assert "connection" not in headers
            assert headers["date"].endswith("GMT")
        writer.close()


async def test_request_arriving_byte_by_byte_is_understood() -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        for byte in put(b"hello"):
            writer.write(bytes((byte,)))
            await asyncio.sleep(0)
        status, _, body = await read_answer(reader)
        assert (status, json.loads(body)["body"]) == (200, "hello")
        writer.close()


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        writer.write(b"".join(get(f"/{number}") for number in range(1000)))
        for number in range(1000):
            _, _, body = await read_answer(reader)
            assert json.loads(body)["target"] == f"/{number}"
        writer.close()


async def test_late_answers_leave_in_the_order_of_their_requests() -> None:
    waiting: list[Request] = []
    async with serving(waiting.append) as running:
        reader, writer = await running.connect()
        writer.write(get("/a") + get("/b") + get("/c"))
        while len(waiting) < 3:
            await asyncio.sleep(0.001)
        for request in reversed(waiting):
            request.respond(Response(200, b"", request.target.encode()))
        assert [(await read_answer(reader))[2] for _ in range(3)] == [b"/a", b"/b", b"/c"]
        writer.close()


async def test_pipelined_read_waits_for_the_write_before_it() -> None:
    waiting: list[Request] = []
    async with serving(waiting.append) as running:
        reader, writer = await running.connect()
        writer.write(put(b"1") + get("/a") + get("/b") + put(b"2"))
        for expected in (["PUT"], ["GET", "GET"], ["PUT"]):
            async with asyncio.timeout(5):
                while len(waiting) < len(expected):
                    await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            assert [each.method for each in waiting] == expected
            batch, waiting[:] = list(waiting), []
            for request in batch:
                request.respond(Response(200))
        for _ in range(4):
            assert (await read_answer(reader))[0] == 200
        writer.close()


async def test_answer_to_a_caller_that_has_gone_is_ignored() -> None:
    waiting: list[Request] = []
    async with serving(waiting.append) as running:
        _, writer = await running.connect()
        writer.write(get())
        while not waiting:
            await asyncio.sleep(0.001)
        reset(writer)
        while running.server.connection_count:
            await asyncio.sleep(0.001)
        waiting[0].respond(Response(200, b"", b"late"))


async def test_http_1_0_closes_unless_it_asks_to_be_kept() -> None:
    async with serving() as running:
        answer = await running.exchange(b"GET / HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close\r\n" in answer
        reader, writer = await running.connect()
        for _ in range(2):
            writer.write(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            _, headers, _ = await read_answer(reader)
            assert headers["connection"] == "keep-alive"
        writer.close()


async def test_connection_close_is_honoured() -> None:
    async with serving() as running:
        answer = await running.exchange(get("/", b"Connection: close\r\n"))
        assert status_of(answer) == 200
        assert b"Connection: close\r\n" in answer


async def test_head_has_the_length_and_no_body() -> None:
    async with serving(lambda request: request.respond(Response(200, b"ETag: x\r\n", b"12345"))) as running:
        answer = await running.exchange(b"HEAD / HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
        assert b"Content-Length: 5\r\n" in answer
        assert answer.endswith(b"\r\n\r\n")


async def test_304_has_neither_body_nor_length() -> None:
    async with serving(lambda request: request.respond(Response(304, b"ETag: x\r\n"))) as running:
        answer = await running.exchange(get("/", b"Connection: close\r\n"))
        assert b"Content-Length" not in answer
        assert answer.endswith(b"\r\n\r\n")


async def test_half_closed_peer_still_gets_its_answer() -> None:
    waiting: list[Request] = []
    async with serving(waiting.append) as running:
        exchange = asyncio.get_running_loop().create_task(running.exchange(get(), half_close=True))
        while not waiting:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        waiting[0].respond(Response(200, b"", b"still here"))
        assert (await exchange).endswith(b"still here")


async def test_chunked_body_is_put_together() -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        writer.write(b"PUT / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await asyncio.sleep(0.01)
        writer.write(b"4;note=x\r\ndefg\r\n0\r\n\r\n" + get("/next"))
        assert json.loads((await read_answer(reader))[2])["body"] == "abcdefg"
        assert json.loads((await read_answer(reader))[2])["target"] == "/next"
        writer.close()


async def test_expectation_is_met_before_the_body_is_sent() -> None:
    async with serving() as running:
        reader, writer = await running.connect()
        writer.write(b"PUT / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        async with asyncio.timeout(5):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert json.loads((await read_answer(reader))[2])["body"] == "abc"
        writer.close()


async def test_expectation_of_a_body_too_large_is_refused_at_once() -> None:
    async with serving(body_bytes_max=10) as running:
        answer = await running.exchange(
            b"PUT / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 11\r\n\r\n"
        )
        assert status_of(answer) == 413


async def test_raw_target_reaches_the_handler_untouched() -> None:
    async with serving() as running:
        for target in ("/v1/kv/a%2Fb?x=%FF", "/v1/kv/../a//b", "/a%00", "http://other/v1/kv/a"):
            answer = await running.exchange(get(target, b"Connection: close\r\n"))
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["target"] == target


# --- what must be refused ------------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n"
MALFORMED = {
    "length and chunked": b"PUT / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\n"
    + CHUNKED
    + b"\r\n0\r\n\r\n",
    "two equal lengths": b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "two different lengths": b"PUT / HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "length list": b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 3, 3\r\n\r\nabc",
    "negative length": b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "plus length": b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: +3\r\n\r\nabc",
    "huge length": b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "space before colon": b"PUT / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "unknown coding": b"PUT / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: cow\r\n\r\n",
    "coding after chunked": b"PUT / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: x\n\n",
    "bare LF in a header": b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x00c\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n",
    "space in a name": b"GET / HTTP/1.1\r\n" + HOST + b"A b: c\r\n\r\n",
    "hex chunk size": b"PUT / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "bad chunk size": b"PUT / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\nzz\r\nabc\r\n0\r\n\r\n",
    "chunk overrun": b"PUT / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n3\r\nabcdef\r\n0\r\n\r\n",
    "endless chunk size": b"PUT / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n" + b"f" * 20 + b"\r\n",
    "bare LF after a chunk size": b"PUT / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n3\nabc\r\n0\r\n\r\n",
    "chunk extension of 70 KB": b"PUT / HTTP/1.1\r\n"
    + HOST
    + CHUNKED
    + b"\r\n3;x="
    + b"y" * 70_000
    + b"\r\nabc\r\n0\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "not HTTP": b"hello there\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "empty method": b" / HTTP/1.1\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_request_is_answered_400_and_closed(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Request] = []
    with caplog.at_level(logging.INFO):
        async with serving(seen.append) as running:
            answer = await running.exchange(MALFORMED[name])
    assert status_of(answer) == 400, answer
    assert b"Connection: close\r\n" in answer
    assert problem_of(answer)["code"] == "invalid-argument"
    assert seen == []
    assert not caplog.records, "malformed requests must not fill the log"


async def test_smuggled_request_behind_a_refused_one_is_never_run() -> None:
    seen: list[Request] = []
    async with serving(seen.append) as running:
        answer = await running.exchange(MALFORMED["length and chunked"] + get("/smuggled"))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert seen == []


async def test_refusal_waits_for_the_answers_before_it() -> None:
    waiting: list[Request] = []
    async with serving(waiting.append) as running:
        reader, writer = await running.connect()
        writer.write(get("/first"))
        while not waiting:
            await asyncio.sleep(0.001)
        writer.write(MALFORMED["bad chunk size"])
        await asyncio.sleep(0.02)
        waiting[0].respond(Response(200, b"", b"first"))
        assert (await read_answer(reader))[2] == b"first"
        assert (await read_answer(reader))[0] == 400
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    ("sent", "status", "limit"),
    [
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"b" * 20_000 + b"\r\n\r\n", 431, "field_bytes_max"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 200 + b"\r\n", 431, "headers_max"),
        (
            b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"A%d: %b\r\n" % (n, b"b" * 9000) for n in range(30)),
            431,
            None,
        ),
        (b"GET /" + b"k" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 413, "target_bytes_max"),
        (put(b"", b"Expect: cake\r\n").replace(b": 0", b": 9"), 417, None),
        (b"CONNECT x:1 HTTP/1.1\r\n" + HOST + b"\r\n", 405, None),
        (b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", 405, None),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505, None),
    ],
)
async def test_what_is_too_much_or_unknown_has_its_own_status(
    sent: bytes, status: int, limit: str | None
) -> None:
    async with serving() as running:
        answer = await running.exchange(sent)
    assert status_of(answer) == status
    assert b"Connection: close\r\n" in answer
    if limit is not None:
        assert problem_of(answer)["limit"] == limit


async def test_announced_body_too_large_is_refused_before_it_is_read() -> None:
    async with serving(body_bytes_max=1000) as running:
        answer = await running.exchange(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 1001\r\n\r\n")
    assert status_of(answer) == 413
    document = problem_of(answer)
    assert (document["code"], document["limit"], document["max"], document["size"]) == (
        "too-large",
        "body_bytes_max",
        1000,
        1001,
    )


async def test_chunked_body_is_refused_once_it_passes_the_limit() -> None:
    async with serving(body_bytes_max=20_000) as running:
        reader, writer = await running.connect()
        writer.write(b"PUT / HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n")
        for _ in range(3):
            writer.write(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
            await asyncio.sleep(0.01)
        assert (await read_answer(reader))[0] == 413
        writer.close()


async def test_limit_on_a_body_depends_on_its_target() -> None:
    def limit(method: str, target: str) -> tuple[str, int]:
        return ("small", 20_000) if target == "/small" else ("large", 100_000)

    async with serving(body_limit=limit) as running:
        body = b"x" * 30_000
        answer = await running.exchange(put(body, b"Connection: close\r\n", "/small"))
        assert (status_of(answer), problem_of(answer)["limit"]) == (413, "small")
        assert status_of(await running.exchange(put(body, b"Connection: close\r\n", "/large"))) == 200


async def test_refusal_can_be_read_by_a_peer_that_is_still_sending() -> None:
    async with serving(body_bytes_max=1000) as running:
        reader, writer = await running.connect()
        writer.write(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: 3000000\r\n\r\n")
        writer.write(b"x" * 3_000_000)
        assert (await read_answer(reader))[0] == 413
        writer.close()


async def test_encoded_body_is_refused() -> None:
    async with serving() as running:
        answer = await running.exchange(put(b"\x1f\x8b", b"Content-Encoding: gzip\r\n"))
        assert status_of(answer) == 415


async def test_upgrade_is_ignored_and_the_connection_closed() -> None:
    async with serving() as running:
        upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
        answer = await running.exchange(get("/a", upgrade) + get("/smuggled"))
        assert answer.count(b"HTTP/1.1 ") == 1
        assert status_of(answer) == 200


async def test_failing_handler_answers_500_once_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(request: Request) -> None:
        if request.target == "/broken":
            raise ZeroDivisionError
        echo(request)

    async with serving(broken) as running:
        reader, writer = await running.connect()
        writer.write(get("/broken") + get("/fine"))
        status, _, body = await read_answer(reader)
        assert (status, json.loads(body)["code"]) == (500, "internal")
        assert b"ZeroDivision" not in body
        assert (await read_answer(reader))[0] == 200
        writer.close()
    assert "handler of GET failed" in caplog.text


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
        async with asyncio.timeout(5):
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
        async with asyncio.timeout(5):
            while running.server.dropped == 0:
                await asyncio.sleep(0.01)
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
        while len(waiting) < 3:
            await asyncio.sleep(0.001)
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
            while not waiting:
                await asyncio.sleep(0.001)
            waiting.pop(0).respond(Response(200))
            assert (await read_answer(reader))[0] == 200
        writer.close()


# --- streams -------------------------------------------------------------------------------------


async def test_stream_is_sent_in_chunks_and_the_connection_lives_on() -> None:
    def stream(request: Request) -> None:
        if request.target == "/plain":
            echo(request)
            return
        body = request.respond_stream(Response(200, b"Content-Type: application/x-ndjson\r\n", b"one\n"))
        body.write(b"two\n")
        body.end()

    async with serving(stream) as running:
        reader, writer = await running.connect()
        writer.write(get("/stream") + get("/plain"))
        status, headers, body = await read_answer(reader)
        assert (status, headers["transfer-encoding"], body) == (200, "chunked", b"one\ntwo\n")
        assert (await read_answer(reader))[0] == 200
        writer.close()


async def test_stream_to_http_1_0_ends_with_the_connection() -> None:
    def stream(request: Request) -> None:
        body = request.respond_stream(Response(200))
        body.write(b"one\n")
        body.end()

    async with serving(stream) as running:
        answer = await running.exchange(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.endswith(b"\r\n\r\none\n")
        assert b"chunked" not in answer


async def test_stream_behind_a_late_answer_waits_for_it() -> None:
    waiting: list[Request] = []
    streams: list[BodyStream] = []

    def handle(request: Request) -> None:
        if request.target == "/late":
            waiting.append(request)
            return
        stream = request.respond_stream(Response(200))
        assert stream.write(b"streamed") is False
        streams.append(stream)
        stream.end()

    async with serving(handle) as running:
        reader, writer = await running.connect()
        writer.write(get("/late") + get("/stream"))
        while not streams:
            await asyncio.sleep(0.001)
        waiting[0].respond(Response(200, b"", b"late"))
        assert (await read_answer(reader))[2] == b"late"
        assert (await read_answer(reader))[2] == b"streamed"
        writer.close()


async def test_stream_stops_when_the_peer_does_not_read_and_goes_on_when_it_does() -> None:
    written = 0
    pieces = 400

    def handle(request: Request) -> None:
        stream = request.respond_stream(Response(200))

        def go_on() -> None:
            nonlocal written
            while written < pieces:
                written += 1
                if not stream.write(b"x" * 50_000):
                    stream.on_drain(go_on)
                    return
            stream.end()

        go_on()

    async with serving(handle) as running:
        reader, writer = await running.connect()
        writer.write(get())
        await asyncio.sleep(0.1)
        assert 0 < written < pieces, "the writer must feel that nobody reads"
        _, _, body = await read_answer(reader)
        assert len(body) == pieces * 50_000
        writer.close()


async def test_stream_learns_that_its_reader_has_gone() -> None:
    woken: list[bool] = []
    streams: list[BodyStream] = []

    def handle(request: Request) -> None:
        stream = request.respond_stream(Response(200))
        while stream.write(b"x" * 100_000):
            pass
        stream.on_drain(lambda: woken.append(stream.is_open))
        streams.append(stream)

    async with serving(handle) as running:
        _, writer = await running.connect()
        writer.write(get())
        while not streams:
            await asyncio.sleep(0.001)
        reset(writer)
        async with asyncio.timeout(5):
            while not woken:
                await asyncio.sleep(0.001)
        assert woken == [False]
        assert streams[0].write(b"more") is False


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
        while not waiting:
            await asyncio.sleep(0.001)
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
