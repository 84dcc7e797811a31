"""Microseconds of the API per request and per operation of a batch, over a router that answers at once.

Run by hand: `python -m tests.bench.bench_api`. What it prints is the HTTP side's own cost: parsing, routing,
packing the command, answering; no consensus, no store, no socket.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack

from kvstore.node.api import Api
from kvstore.node.calls import Answer, Done, ReadAnswer
from kvstore.node.http_connection import Connection
from kvstore.node.http_server import HttpServer
from kvstore.node.watch import Watches
from kvstore.placement import ShardMap
from kvstore.store.commands import decode
from kvstore.store.results import CommandResult
from kvstore.types import ShardId
from tests.support.api_node import PaperCluster, PaperRuntime, config_of

VALUE = b"x" * 64
ITEM = [VALUE, 7, 7, 1, None, None, None]
OPS = 100


class NullRouter:
    def __init__(self, shard_count: int) -> None:
        self.shard_map = ShardMap(shard_count)
        self.shard_of = self.shard_map.shard_of
        self._one = CommandResult(False, [[0, 7, 1, True, None]])
        self._many: dict[bytes, Any] = {}

    def shards(self) -> tuple[ShardId, ...]:
        return self.shard_map.shards

    def write_then(
        self, shard: ShardId, command: bytes, identified: bool, deadline: float, done: Done
    ) -> None:
        if len(command) < 200:
            done(Answer(shard, self._one, 5), None)
            return
        result = self._many.get(command)
        if result is None:
            count = len(decode(command)[1])
            result = self._many[command] = CommandResult(False, [[0, 7, 1, True, None]] * count)
        done(Answer(shard, result, 5), None)

    def read_then(
        self, shard: ShardId, query: Any, consistency: str, deadline: float, done: Done, *_: Any
    ) -> None:
        done(ReadAnswer(shard, ITEM if query[0] == "get" else [ITEM] * len(query[1]), 5), None)


class NullTransport:
    def write(self, content: bytes) -> None: ...

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    def abort(self) -> None: ...

    def close(self) -> None: ...


def best_us(work: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(7):
        before = time.process_time()
        for _ in range(count):
            work()
        times.append(time.process_time() - before)
    return min(times) / count * 1e6


def http(method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1:7401", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def main() -> None:
    for shard_count in (1, 16):
        router = NullRouter(shard_count)
        runtime: Any = PaperRuntime()
        watches = Watches(router, {}, runtime, 1)  # type: ignore[arg-type]
        api = Api(router, PaperCluster(router.shard_map), config_of(), runtime, watches)  # type: ignore[arg-type]
        server = HttpServer(api.handle, body_limit=api.body_limit)
        await server.start("127.0.0.1", 0)
        connection = Connection(server)
        connection.connection_made(NullTransport())  # type: ignore[arg-type]
        puts = [{"op": "put", "key": b"key%d" % number, "value": VALUE} for number in range(OPS)]
        gets = [{"op": "get", "key": b"key%d" % number} for number in range(OPS)]
        packed = ("Content-Type: application/msgpack", "Accept: application/msgpack")
        identity = ("KV-Session: " + "0f" * 16, "KV-Sequence: 5", "KV-Acked-Below: 4", "KV-Since: 5")
        cases = {
            "get": (http("GET", "/v1/kv/key1"), 1),
            "get with a query": (http("GET", "/v1/kv/key1?consistency=lease"), 1),
            "put": (http("PUT", "/v1/kv/key1", VALUE), 1),
            "put with identity": (http("PUT", "/v1/kv/key1", VALUE, *identity), 1),
            "batch of puts, per op": (http("POST", "/v1/batch", msgpack.packb({"ops": puts}), *packed), OPS),
            "batch of gets, per op": (http("POST", "/v1/batch", msgpack.packb({"ops": gets}), *packed), OPS),
        }
        for name, (request, ops) in cases.items():
            cost = best_us(partial(connection.data_received, request), 20_000 // ops)
            print(f"{shard_count:3} shards  {name:24} {cost / ops:7.2f} us")
        await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
