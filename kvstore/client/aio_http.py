"""HTTP for the asyncio client, on aiohttp: requests and streams, and what their failures mean."""

from __future__ import annotations

import asyncio

import aiohttp
from yarl import URL

from kvstore.client.exchange import Failure, Fault, Open, Reply, Send

CONNECT_S_MAX = 1.0
IDLE_S_MAX = 60.0
"""A connection idle for longer is not used again: the server closes them after 75 s."""
_SKIPPED_HEADERS = ("User-Agent", "Content-Type", "Accept", "Accept-Encoding")
_CLOSED = Failure(Fault.NOT_SENT, "the client is closed")


class Stream:
    """The body of an answer that is still being sent."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def receive(self, timeout_s: float) -> bytes | Failure:
        """Return some bytes, b"" at the end. Cancelling it loses nothing."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._response.content.readany()
        except TimeoutError:
            return Failure(Fault.TIMED_OUT, f"nothing for {timeout_s:.3g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Failure(Fault.LOST, _told(error))

    def close(self) -> None:
        """Drop the connection: the rest of the stream will not be read."""
        self._response.close()


class Connections:
    """All connections of one client. A call that is cancelled, or runs out of time, drops its own."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self.is_closed = False

    async def close(self) -> None:
        self.is_closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def exchange(self, send: Send) -> Reply | Failure:
        """aiohttp itself repeats a GET, PUT or DELETE once when a kept-alive connection turns out to be
        closed. That is harmless: writes carry an identity."""
        if self.is_closed:
            return _CLOSED
        try:
            async with asyncio.timeout(send.timeout_s), self._request(send) as response:
                body = await response.read()
                return Reply(response.status, response.headers, body)
        except (aiohttp.ClientError, OSError) as error:
            return _failure(error, send.timeout_s)

    async def open(self, opening: Open) -> tuple[Reply | Failure, Stream | None]:
        """Return the answer's head and, if its status is 200, the stream of its body."""
        if self.is_closed:
            return _CLOSED, None
        try:
            async with asyncio.timeout(opening.timeout_s):
                response = await self._request(opening)
                if response.status == 200:
                    return Reply(200, response.headers, b""), Stream(response)
                async with response:
                    body = await response.read()
                    return Reply(response.status, response.headers, body), None
        except (aiohttp.ClientError, OSError) as error:
            return _failure(error, opening.timeout_s), None

    def _request(self, effect: Send | Open) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            self._session = _session()
        request = effect.request
        return self._session.request(
            request.method,
            URL(f"http://{effect.address}{request.target}", encoded=True),
            data=request.body or None,
            headers=request.headers,
            allow_redirects=False,
        )


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S_MAX),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S_MAX),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_SKIPPED_HEADERS,
        auto_decompress=False,
    )


def _failure(error: BaseException, timeout_s: float) -> Failure:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Failure(Fault.NOT_SENT, _told(error))
    if isinstance(error, TimeoutError):
        return Failure(Fault.TIMED_OUT, f"after {timeout_s:.3g} s")
    return Failure(Fault.LOST, _told(error))


def _told(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    text = getattr(error, "strerror", None) or str(error)
    return str(text) or type(error).__name__
