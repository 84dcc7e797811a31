"""The HTTP server on a real socket, and raw bytes to and from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable

from kvstore.node.http_server import HttpLimits, HttpServer
from kvstore.node.requests import Request, Response

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
            pieces = []
            while size := int(await reader.readuntil(b"\r\n"), 16):
                pieces.append(await reader.readexactly(size))
                await reader.readexactly(2)
            await reader.readexactly(2)
            body = b"".join(pieces)
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
    return status, headers, body


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something has happened; fail after some seconds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


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
