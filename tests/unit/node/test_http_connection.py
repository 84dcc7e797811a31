"""Requests and answers on one real connection: order, framing, persistence."""

from __future__ import annotations

import asyncio
import json

from kvstore.node.requests import Request, Response
from tests.support.http_socket import HOST, get, put, read_answer, reset, serving, status_of, until

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
        await until(lambda: len(waiting) >= 3)
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
            count = len(expected)
            await until(lambda: len(waiting) >= count)  # noqa: B023 - awaited here
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
        await until(lambda: bool(waiting))
        reset(writer)
        await until(lambda: running.server.connection_count == 0)
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
        await until(lambda: bool(waiting))
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
        async with asyncio.timeout(30):
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


# --- callers that go while their request waits ----------------------------------------------------


async def test_a_waiting_request_is_told_that_its_caller_closed_its_half() -> None:
    told: list[str] = []

    def wait(request: Request) -> None:
        def end() -> None:
            told.append("end of input")
            request.respond(Response(409, b"", b"given up"))

        request.on_end_of_input = end
        request.on_gone = lambda: told.append("gone")

    async with serving(wait) as running:
        reader, writer = await running.connect()
        writer.write(get("/lock"))
        writer.write_eof()
        status, _, body = await read_answer(reader)
        assert (status, body, told) == (409, b"given up", ["end of input"])
        writer.close()


async def test_a_waiting_request_is_told_that_its_caller_has_gone() -> None:
    waiting: list[Request] = []
    told: list[str] = []

    def wait(request: Request) -> None:
        request.on_gone = lambda: told.append("gone")
        waiting.append(request)

    async with serving(wait) as running:
        _, writer = await running.connect()
        writer.write(get("/lock"))
        await until(lambda: bool(waiting))
        reset(writer)
        await until(lambda: bool(told))
        waiting[0].respond(Response(200, b"", b"nobody reads this"))
    assert told == ["gone"]
