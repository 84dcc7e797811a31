"""Bodies sent piece by piece, on real sockets."""

from __future__ import annotations

import asyncio

from kvstore.node.requests import BodyStream, Request, Response
from tests.support.http_socket import echo, get, read_answer, reset, serving, until

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
        await until(lambda: bool(streams))
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
        await until(lambda: bool(streams))
        reset(writer)
        await until(lambda: bool(woken))
        assert woken == [False]
        assert streams[0].write(b"more") is False
