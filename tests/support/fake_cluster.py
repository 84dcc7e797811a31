"""A stand-in for a cluster that speaks the HTTP contract, with faults on demand. Threads and a dict; no
consensus. For tests of the clients and of kvctl, which must also see what real nodes do once a week."""

from __future__ import annotations

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote_to_bytes

import msgpack

from kvstore.placement import ShardMap, token_of
from tests.support.fake_coordination import Coordination, seconds, txn_body

SHARDS = 4


@dataclass
class Stored:
    value: bytes
    revision: int
    create_revision: int
    version: int
    content_type: str | None = None
    lease: str | None = None


@dataclass
class Seen:
    """A request as it arrived, for tests to look at."""

    node: str
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    status: int
    content: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    stream: Iterator[bytes] | None = None


class Drop(Exception):
    """Close the connection instead of answering."""


Fault = Callable[[Seen], Answer | None]
"""May raise Drop, sleep, or answer in the node's place. None: go on."""


class FakeCluster:
    """`with FakeCluster(3) as cluster: cluster.endpoints`. Shard s is led by node s modulo nodes."""

    def __init__(self, node_count: int = 1) -> None:
        self.map = ShardMap(SHARDS)
        self.keys: dict[bytes, Stored] = {}
        self.revisions = [0] * SHARDS
        self.clock_ms = 1000
        self.results: dict[tuple[str, str, int], Any] = {}
        self.seen: list[Seen] = []
        self.before: Fault | None = None
        self.after: Fault | None = None
        """Runs when the request has been carried out: what it answers or drops comes too late."""
        self.health = "ok"
        self.coordination = Coordination(
            lambda key, value: int(self._put(key, value)["revision"]), self._remove, self.map.shard_of
        )
        self.lock: Any = self.coordination.condition
        self.servers = [_Server(self, f"n{number + 1}") for number in range(node_count)]
        self.leaders = [self.servers[shard % node_count].name for shard in range(SHARDS)]

    def __enter__(self) -> FakeCluster:
        for server in self.servers:
            server.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.coordination.stop()
        for server in self.servers:
            server.stop()

    @property
    def endpoints(self) -> list[str]:
        return [server.address for server in self.servers]

    def server(self, name: str) -> _Server:
        return next(server for server in self.servers if server.name == name)

    def key_of_shard(self, shard: int, name: str = "key") -> bytes:
        """Return some key that the shard owns."""
        return next(
            key for number in range(1000) if self.map.shard_of(key := f"{name}{number}".encode()) == shard
        )

    def requests(self, method: str | None = None, path: str = "/v1/kv") -> list[Seen]:
        return [seen for seen in self.seen if seen.target.startswith(path) and method in (None, seen.method)]

    # Carrying requests out.

    def handle(self, seen: Seen) -> Answer:
        with self.lock:
            self.seen.append(seen)
        if self.before is not None and (answer := self.before(seen)) is not None:
            return answer
        with self.lock:
            answer = self._route(seen)
        if self.after is not None and (late := self.after(seen)) is not None:
            return late
        return answer

    def _route(self, seen: Seen) -> Answer:
        path, _, query_text = seen.target.partition("?")
        query = {}
        for pair in filter(None, query_text.split("&")):
            name, _, value = pair.partition("=")
            query[name] = unquote_to_bytes(value)
        self.coordination.expire()
        if path.startswith("/v1/kv/"):
            return self._key(seen, unquote_to_bytes(path[len("/v1/kv/") :]), query)
        if path == "/v1/kv":
            return self._delete_range(seen, query) if seen.method == "DELETE" else self._scan(query)
        if path == "/v1/batch":
            return self._batch(seen)
        return self._coordinate(seen, path, query) or self._document(seen, path)

    def _coordinate(self, seen: Seen, path: str, query: dict[str, bytes]) -> Answer | None:
        made: Any
        if path == "/v1/txn":
            return self._once(seen, -2, lambda: self._txn(txn_body(seen.body)))
        if path == "/v1/watch":
            return Answer(200, stream=self.coordination.watch(query, self.lock))
        if path.startswith("/v1/leases"):
            made = self.coordination.lease_request(seen.method, path, seen.body, problem)
        elif path.startswith(("/v1/locks/", "/v1/elections/")):
            made = self.coordination.queue_request(seen.method, path, seen.headers, seen.body, problem)
        else:
            return None
        return made if isinstance(made, Answer) else Answer(made[0], made[1])

    def _txn(self, body: dict[str, Any]) -> Answer:
        found = [
            self.coordination.holds(
                each, item(each["key"], self.keys[each["key"]]) if each["key"] in self.keys else None
            )
            for each in body["if"]
        ]
        succeeded = all(found)
        results, revisions = [], {}
        for op in body["then"] if succeeded else body["else"]:
            key = op["key"]
            shard = self.map.shard_of(key)
            if op["op"] == "get":
                stored = self.keys.get(key)
                results.append({"status": 404} if stored is None else {"status": 200, **item(key, stored)})
            elif op["op"] == "incr":
                answer = self._incr(key, op)
                if answer.status >= 400:
                    return answer
                results.append({**answer.content, "status": 200})
            elif op["op"] == "delete":
                results.append({**self._delete(key), "status": 200})
            else:
                results.append({**self._put(key, op["value"]), "status": 200})
            revisions[str(int(shard))] = self.revisions[shard]
        return Answer(200, {"succeeded": succeeded, "results": results, "revisions": revisions})

    def _key(self, seen: Seen, key: bytes, query: dict[str, bytes]) -> Answer:
        shard = self.map.shard_of(key)
        is_stale = "kv-epoch" in seen.headers and self.leaders[shard] != seen.node
        if is_stale:
            leader = self.leaders[shard]
            fields = {"shard": shard, "leader": leader, "address": self.server(leader).address}
            return problem(421, "wrong-route", **fields)
        headers = {"KV-Shard": str(shard), "KV-Clock": str(self.clock_ms)}
        if seen.method == "GET":
            known = seen.headers.get("if-none-match", "").strip('"')
            until = time.monotonic() + (seconds(query["wait"].decode()) if "wait" in query else 0.0)
            while "wait" in query and str(self.keys[key].revision if key in self.keys else 0) == known:
                if time.monotonic() >= until:
                    return Answer(304, None, headers, raw=b"")
                self.coordination.condition.wait(0.01)
            return self._get(key, headers)
        answer = self._once(seen, shard, lambda: self._write(seen, key, query))
        answer.headers = headers | answer.headers
        return answer

    def _once(self, seen: Seen, shard: int, write: Callable[[], Answer]) -> Answer:
        if "kv-session" not in seen.headers:
            return write()
        name = (str(shard), seen.headers["kv-session"], int(seen.headers["kv-sequence"]))
        if name in self.results:
            before = self.results[name]
            return Answer(before.status, before.content, before.headers | {"Idempotency-Replayed": "true"})
        answer = self.results[name] = write()
        return answer

    def _get(self, key: bytes, headers: dict[str, str]) -> Answer:
        found = self.keys.get(key)
        if found is None:
            return problem(404, "key-not-found", headers=headers)
        headers |= {
            "ETag": f'"{found.revision}"',
            "KV-Revision": str(found.revision),
            "KV-Version": str(found.version),
            "KV-Create-Revision": str(found.create_revision),
            "Content-Type": found.content_type or "application/octet-stream",
        }
        if found.lease is not None:
            headers["KV-Lease"] = found.lease
        if key in self.coordination.due:
            headers["KV-TTL"] = f"{max(0.0, self.coordination.due[key] - time.monotonic()):.3f}"
        return Answer(200, None, headers, raw=found.value)

    def _write(self, seen: Seen, key: bytes, query: dict[str, bytes]) -> Answer:
        found = self.keys.get(key)
        revision = 0 if found is None else found.revision
        match = seen.headers.get("if-match")
        is_refused = match is not None and match != f'"{revision}"'
        if is_refused or ("if-none-match" in seen.headers and found is not None):
            return problem(412, "precondition-failed", current_revision=revision)
        if seen.method == "POST":
            return self._incr(key, json.loads(seen.body))
        if seen.method == "DELETE":
            content: dict[str, Any] = self._delete(key)
        else:
            lease = query["lease"].decode() if "lease" in query else None
            if lease is not None and lease not in self.coordination.leases:
                return problem(404, "lease-not-found")
            content = self._put(key, seen.body, seen.headers.get("content-type"), lease)
            if "ttl" in query:
                self.coordination.due[key] = time.monotonic() + seconds(query["ttl"].decode())
        if query.get("prev") == b"1" and found is not None:
            content["prev"] = item(key, found)
        return Answer(201 if content.get("created") else 200, content)

    def _put(
        self, key: bytes, value: bytes, content_type: str | None = None, lease: str | None = None
    ) -> dict[str, Any]:
        revision = self._next_revision(key)
        found = self.keys.get(key)
        created, version = (revision, 1) if found is None else (found.create_revision, found.version + 1)
        self.keys[key] = Stored(value, revision, created, version, content_type, lease)
        self.coordination.due.pop(key, None)
        if lease is not None:
            self.coordination.leases[lease].keys.add(key)
        prev = None if found is None else item(key, found)
        self.coordination.changed("put", key, value, revision, prev)
        return {"revision": revision, "version": version, "created": found is None}

    def _delete(self, key: bytes, kind: str = "delete") -> dict[str, Any]:
        if key not in self.keys:
            return {"deleted": 0, "revision": self.revisions[self.map.shard_of(key)]}
        prev = item(key, self.keys.pop(key))
        self.coordination.due.pop(key, None)
        revision = self._next_revision(key)
        self.coordination.changed(kind, key, None, revision, prev)
        return {"deleted": 1, "revision": revision}

    def _remove(self, key: bytes, kind: str) -> None:
        self._delete(key, kind)

    def _incr(self, key: bytes, body: dict[str, Any]) -> Answer:
        found = self.keys.get(key)
        try:
            number = int(found.value) if found is not None else 0
        except ValueError:
            return problem(409, "not-a-number")
        value = number + body.get("by", 1)
        low, high = body.get("min"), body.get("max")
        if (low is not None and value < low) or (high is not None and value > high):
            return problem(409, "out-of-range", value=number)
        content = self._put(key, str(value).encode())
        return Answer(200, {"value": value, "revision": content["revision"]})

    def _next_revision(self, key: bytes) -> int:
        shard = self.map.shard_of(key)
        self.revisions[shard] += 1
        return self.revisions[shard]

    def _in_range(self, query: dict[str, bytes]) -> list[bytes]:
        prefix, start, end = query.get("prefix", b""), query.get("start", b""), query.get("end")
        return sorted(
            key for key in self.keys if key.startswith(prefix) and key >= start and (end is None or key < end)
        )

    def _scan(self, query: dict[str, bytes]) -> Answer:
        keys = self._in_range(query)
        if query.get("count_only") == b"1":
            return Answer(200, {"count": len(keys)})
        if query.get("order") == b"desc":
            keys.reverse()
        at, limit = int(query.get("cursor", b"0")), int(query.get("limit", b"100"))
        page = [item(key, self.keys[key]) for key in keys[at : at + limit]]
        if query.get("keys_only") == b"1":
            for each in page:
                del each["value"]
        cursor = str(at + limit) if at + limit < len(keys) else None
        pos = self.coordination.pos
        return Answer(200, {"items": page, "next": cursor, "count": len(page), "pos": pos})

    def _delete_range(self, seen: Seen, query: dict[str, bytes]) -> Answer:
        keys = self._in_range(query)
        if query.get("confirm") not in (b"*", str(len(keys)).encode()):
            return problem(400, "confirm-required", count=len(keys))

        def write() -> Answer:
            for key in keys:
                self._delete(key)
            return Answer(200, {"deleted": len(keys)})

        return self._once(seen, -1, write)

    def _batch(self, seen: Seen) -> Answer:
        if seen.headers.get("content-type") == "application/json":
            assert json.loads(seen.body)["ops"] == [], "only a farewell is in JSON"
            return Answer(200, {"results": []})
        ops = msgpack.unpackb(seen.body)["ops"]
        results = []
        for index, op in enumerate(ops):
            key, name = op["key"], op["op"]
            inner = Seen(seen.node, {"put": "PUT", "delete": "DELETE"}.get(name, "POST"), "", {}, b"")
            if "if_revision" in op:
                inner.headers["if-match"] = f'"{op["if_revision"]}"'
            if op.get("if_absent"):
                inner.headers["if-none-match"] = "*"
            inner.body = json.dumps(op, default=str).encode() if name == "incr" else op.get("value", b"")
            if name == "get":
                found = self.keys.get(key)
                results.append({"status": 404} if found is None else {"status": 200, **item(key, found)})
                continue
            if "kv-session" in seen.headers:
                inner.headers |= {"kv-session": f"{seen.headers['kv-session']}/{index}"}
                inner.headers |= {"kv-sequence": seen.headers["kv-sequence"]}
            query = {"prev": b"1"} if op.get("prev") else {}
            answer = self._once(inner, self.map.shard_of(key), lambda: self._write(inner, key, query))  # noqa: B023
            results.append({**answer.content, "status": answer.status})
        return Answer(200, {"results": results}, {"KV-Clock": str(self.clock_ms)})

    def _document(self, seen: Seen, path: str) -> Answer:
        nodes = [{"id": server.name, "client": server.address, "peer": "p", "host": "h", "zone": "z"}
                 for server in self.servers]  # fmt: skip
        shards = []
        for shard in range(SHARDS):
            start, end = self.map.range_of(self.map.shards[shard])
            leader = self.leaders[shard]
            shards.append({"id": shard, "start": start, "end": end, "leader": leader, "term": 2,
                           "replicas": [{"node": leader, "role": "leader", "match": 7}], "applied": 7,
                           "keys": 3, "clock_ms": self.clock_ms})  # fmt: skip
        if path == "/v1/routes":
            return Answer(200, {"epoch": 5, "shards": shards, "nodes": nodes})
        if path == "/v1/nodes":
            return Answer(200, {"nodes": nodes})
        if path == "/v1/shards":
            return Answer(200, {"shards": shards})
        if path.startswith("/v1/shards/") and path.count("/") == 3:
            return Answer(200, shards[int(path.split("/")[3])])
        if path == "/v1/cluster":
            fields = {"name": "fake", "id": "c1", "meta_leader": "n1", "health": self.health}
            return Answer(200, fields | {"shards_without_leader": []})
        if path.startswith("/v1/shards/") and path.endswith("/transfer"):
            shard, to = int(path.split("/")[3]), json.loads(seen.body)["to"]
            self.leaders[shard] = to
            return Answer(202, {"shard": shard, "to": to})
        if path.startswith("/v1/keys/") and path.endswith("/explain"):
            key = unquote_to_bytes(path[len("/v1/keys/") : -len("/explain")])
            shard = self.map.shard_of(key)
            fields = {"key": key.decode(), "token": f"{token_of(key):016x}", "shard": shard}
            return Answer(
                200, fields | {"leader": self.leaders[shard], "replicas": shards[shard]["replicas"]}
            )
        return problem(404, "not-found", detail=path)


def item(key: bytes, stored: Stored) -> dict[str, Any]:
    return {
        "key": key,
        "value": stored.value,
        "revision": stored.revision,
        "create_revision": stored.create_revision,
        "version": stored.version,
        "lease": stored.lease,
    }


def problem(status: int, code: str, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    content = {"type": f"urn:kvstore:problem:{code}", "title": code, "status": status, "code": code}
    return Answer(
        status,
        content | {"detail": f"detail of {code}", "retryable": status in (429, 503)} | fields,
        {"Content-Type": "application/problem+json", "KV-Request-Id": "r-1"} | (headers or {}),
    )


def _jsonable(content: Any) -> Any:
    if isinstance(content, dict):
        plain = {}
        for name, value in content.items():
            if isinstance(value, bytes):
                try:
                    plain[name] = value.decode()
                except UnicodeDecodeError:
                    plain[name + "_b64"] = b64encode(value).decode()
            else:
                plain[name] = _jsonable(value)
        return plain
    return [_jsonable(each) for each in content] if isinstance(content, list) else content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            seen = Seen(self.server.name, self.command, self.path, headers, body)
            answer = self.server.cluster.handle(seen)
        except Drop:
            self.close_connection = True
            return
        if answer.stream is not None:
            self._send_stream(answer.stream)
            return
        kind = answer.headers.pop("Content-Type", None)
        if answer.raw is not None:
            payload, kind = answer.raw, kind or "application/octet-stream"
        elif kind is None and "msgpack" in headers.get("accept", ""):
            payload, kind = msgpack.packb(answer.content), "application/msgpack"
        else:
            payload, kind = json.dumps(_jsonable(answer.content)).encode(), kind or "application/json"
        self.send_response(answer.status)
        for name, value in {"KV-Request-Id": "r-1", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _send_stream(self, lines: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        try:
            for line in lines:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        except OSError:
            pass

    do_GET = do_PUT = do_POST = do_DELETE = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, cluster: FakeCluster, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cluster = cluster
        self.name = name
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.005,), daemon=True)
        self.connections: list[Any] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def stop(self) -> None:
        """Refuse connections from now on, and close those that are open."""
        if self.socket.fileno() < 0:
            return
        if self.thread.is_alive():
            self.shutdown()
        self.server_close()
        for connection in self.connections:
            connection.close()
