"""An HTTP server that answers as told, and remembers what arrived."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple


class Arrived(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    status: int
    document: Any = None
    headers: dict[str, str] = {}
    body: bytes | None = None


HANG_UP = Answer(0)
"""Read the request, then close without a word."""

Script = Callable[[Arrived], Answer]


class ScriptedServer:
    """Listens on a free port; `script` decides every answer."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.arrived: list[Arrived] = []
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await _read(reader)
                self.arrived.append(request)
                answer = self.script(request)
                if answer is HANG_UP:
                    return
                body = json.dumps(answer.document).encode() if answer.body is None else answer.body
                headers = {**answer.headers, "Content-Length": str(len(body))}
                lines = [
                    f"HTTP/1.1 {answer.status} X",
                    *(f"{name}: {value}" for name, value in headers.items()),
                ]
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Arrived:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = dict(line.split(": ", 1) for line in head[1:-2])
    return Arrived(method, target, headers, await reader.readexactly(int(headers.get("Content-Length", "0"))))


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[ScriptedServer]:
    served = ScriptedServer(script)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    served.address = f"{host}:{port}"
    try:
        yield served
    finally:
        server.close()


def problem(status: int, code: str) -> Answer:
    return Answer(status, {"code": code})
