"""What a stranger may send and must not get away with, as raw bytes on a real socket."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from kvstore.errors import KvError
from kvstore.node.requests import Headers, Request, Response
from tests.support.http_socket import HOST, echo, get, problem_of, put, read_answer, serving, status_of, until

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
        await until(lambda: bool(waiting))
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
    assert status_of(answer) == problem_of(answer)["status"] == status
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


async def test_refusals_are_made_by_the_application_with_the_headers_that_could_be_read() -> None:
    seen: list[str | None] = []

    def refusal(error: KvError, headers: Headers) -> Response:
        seen.append(headers.get("KV-Request-Id"))
        return Response(error.http_status, b"X-Mine: yes\r\n", b"no")

    async with serving(body_bytes_max=10) as running:
        running.server.refusal = refusal
        answer = await running.exchange(b"nonsense\r\n\r\n")
        assert answer.endswith(b"no")
        head = b"PUT / HTTP/1.1\r\n" + HOST + b"KV-Request-Id: mine\r\n"
        answer = await running.exchange(head + b"Content-Length: 11\r\n\r\n")
        assert b"X-Mine: yes\r\n" in answer
    assert seen == [None, "mine"]
