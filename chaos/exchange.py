"""HTTP/1.1 as plainly as possible: one request on one connection, sent exactly once.

General clients send an idempotent request again when a kept connection turns out to be closed. Here that
would make one operation of the history two, so this client never does: what may have been sent and was
not answered is lost, and the caller decides.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


class NotSent(Exception):
    """No connection: the server has surely seen nothing."""


class Lost(Exception):
    """The request may have arrived; no whole answer did."""


class Connection:
    """A connection to one address, opened when needed, for one request at a time."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, timeout_s: float
    ) -> Reply:
        """Send once, wait for the whole answer. Raises NotSent or Lost."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                reader, writer = await self._open()
        except (OSError, TimeoutError) as error:
            raise NotSent(str(error) or "no connection in time") from error
        is_over = False
        try:
            async with asyncio.timeout_at(deadline):
                writer.write("\r\n".join(lines).encode() + body)
                reply = await _read_reply(reader, method)
                is_over = reply.headers.get("connection", "").lower() != "close"
                return reply
        except (OSError, TimeoutError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise Lost(f"{type(error).__name__} {error}".strip()) from error
        finally:
            if not is_over:
                self.close()

    async def lines(self, target: str, open_s: float, idle_s: float) -> AsyncIterator[bytes | None]:
        """Lines of a chunked answer, each as it comes; None whenever `idle_s` have passed without one. Ends
        with the answer. Raises NotSent or Lost, also for any other status than 200."""
        request = f"GET {target} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n\r\n"
        try:
            async with asyncio.timeout(open_s):
                reader, writer = await self._open()
        except (OSError, TimeoutError) as error:
            raise NotSent(str(error) or "no connection in time") from error
        try:
            async with asyncio.timeout(open_s):
                writer.write(request.encode())
                head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                raise Lost(head.split(b"\r\n")[0].decode("latin-1"))
            rest = b""
            async for chunk in _chunks_of(reader, idle_s):
                if chunk is None:
                    yield None
                    continue
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line
        except (OSError, TimeoutError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise Lost(f"{type(error).__name__} {error}".strip()) from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is not None and self._writer is not None:
            # Bytes or an end between requests belong to nobody: such a connection must not be used again.
            if not self._reader.at_eof() and not self._writer.is_closing():
                return self._reader, self._writer
            self.close()
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        return self._reader, self._writer


async def _read_reply(reader: asyncio.StreamReader, method: str) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ", 2)[1])
    headers = {}
    for line in head[1:-2]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if method == "HEAD" or status in (204, 304):
        return Reply(status, headers, b"")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return Reply(status, headers, await _read_chunks(reader))
    return Reply(status, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


async def _chunks_of(reader: asyncio.StreamReader, idle_s: float) -> AsyncIterator[bytes | None]:
    """Pieces of a chunked body, None for each `idle_s` without one."""
    size = asyncio.ensure_future(reader.readuntil(b"\r\n"))
    try:
        while True:
            await asyncio.wait((size,), timeout=idle_s)
            if not size.done():
                yield None
                continue
            length = int(size.result().split(b";")[0], 16)
            part = await reader.readexactly(length + 2)
            if length == 0:
                return
            yield part[:-2]
            size = asyncio.ensure_future(reader.readuntil(b"\r\n"))
    finally:
        size.cancel()


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    while True:
        length = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        part = await reader.readexactly(length + 2)
        if length == 0:
            return b"".join(parts)
        parts.append(part[:-2])
