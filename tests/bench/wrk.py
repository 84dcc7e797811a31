"""Runs wrk with a script made for one kind of request, and reads back exact figures.

Every request takes a random one of `KEYS` keys. Bodies are made beforehand in Python and read by the Lua
side from a file, so that making them does not count. A run with any answer outside 200..299, or any socket
error, is void.
"""

import base64
import json
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack

KEYS = 100_000
VALUE_BYTES = 64
BATCH_OPERATIONS = 100

_SCRIPT = """
local prefix, method, kind = "%(prefix)s", "%(method)s", "%(content_type)s"
local count, targets, bodies = 0, {}, {}
local function field(file)
  local head = file:read(4)
  if not head then return nil end
  local a, b, c, d = head:byte(1, 4)
  local length = ((a * 256 + b) * 256 + c) * 256 + d
  return length == 0 and "" or file:read(length)
end
function init(args)
  local file = assert(io.open("%(requests)s", "rb"))
  while true do
    local target = field(file)
    if not target then break end
    count = count + 1
    targets[count], bodies[count] = target, field(file)
  end
  file:close()
  math.randomseed(tonumber(args[1]) or 1)
  if kind ~= "" then wrk.headers["Content-Type"] = kind end
end
function request()
  local number = math.random(count)
  local body = bodies[number]
  return wrk.format(method, targets[number], nil, body ~= "" and body or nil)
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests": %%d, "seconds": %%.6f, "bad_status": %%d, "socket_errors": %%d, ' ..
    '"p50_ms": %%.4f, "p99_ms": %%.4f, "max_ms": %%.4f}\\n',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"""


class VoidRun(Exception):
    """A run that proves nothing, because not every request was answered well."""


@dataclass(frozen=True)
class Load:
    """One kind of request. `per_request` operations travel in each."""

    name: str
    method: str
    content_type: str
    per_request: int = 1


@dataclass(frozen=True)
class Measured:
    operations_per_s: float
    requests_per_s: float
    p50_ms: float
    p99_ms: float


def keys() -> list[str]:
    return [f"key-{number:06d}" for number in range(KEYS)]


def value() -> bytes:
    return random.randbytes(VALUE_BYTES // 2).hex().encode()


def write_script(directory: Path, load: Load, requests: Iterator[tuple[str, bytes]]) -> Path:
    """Write the Lua script and its file of (target, body) pairs. Gives the script's path."""
    bodies, script = directory / f"{load.name}.requests", directory / f"{load.name}.lua"
    with bodies.open("wb") as file:
        for target, body in requests:
            for field in (target.encode(), body):
                file.write(struct.pack(">I", len(field)) + field)
    script.write_text(
        _SCRIPT % {"prefix": "", "method": load.method, "content_type": load.content_type, "requests": bodies}
    )
    return script


def run(script: Path, load: Load, address: str, connections: int, seconds: int, seed: int) -> Measured:
    """Drive `address` ("host:port") and give the rates. Raises VoidRun."""
    threads = min(2, connections)
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    reply = subprocess.run(
        [*command, "-s", str(script), f"http://{address}", "--", str(seed)],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    if reply.returncode:
        raise VoidRun(f"{load.name}: wrk ended with {reply.returncode}: {reply.stderr.strip()}")
    told = json.loads(reply.stdout.strip().splitlines()[-1])
    if told["bad_status"] or told["socket_errors"] or not told["requests"]:
        raise VoidRun(f"{load.name}: {told}")
    rate = told["requests"] / told["seconds"]
    return Measured(rate * load.per_request, rate, told["p50_ms"], told["p99_ms"])


def etcd_requests(kind: str) -> Iterator[tuple[str, bytes]]:
    """(target, body) for etcd's JSON gateway: kind is put, get or batch (a transaction of puts)."""
    names = keys()
    if kind == "batch":
        for chosen in _groups(names):
            puts = [{"requestPut": {"key": _b64(key.encode()), "value": _b64(value())}} for key in chosen]
            yield "/v3/kv/txn", json.dumps({"success": puts}).encode()
        return
    for key in names:
        if kind == "put":
            document = {"key": _b64(key.encode()), "value": _b64(value())}
            yield "/v3/kv/put", json.dumps(document).encode()
        else:
            yield "/v3/kv/range", json.dumps({"key": _b64(key.encode())}).encode()


def our_requests(kind: str) -> Iterator[tuple[str, bytes]]:
    """(target, body) for this store's API."""
    names = keys()
    if kind == "batch":
        for chosen in _groups(names):
            operations = [{"op": "put", "key": key, "value": value()} for key in chosen]
            yield "/v1/batch", msgpack.packb({"ops": operations})
        return
    for key in names:
        yield f"/v1/kv/{key}", value() if kind == "put" else b""


ETCD_LOADS = {
    "put": Load("put", "POST", "application/json"),
    "get": Load("get", "POST", "application/json"),
    "batch": Load("batch", "POST", "application/json", BATCH_OPERATIONS),
}
OUR_LOADS = {
    "put": Load("put", "PUT", "application/octet-stream"),
    "get": Load("get", "GET", ""),
    "batch": Load("batch", "POST", "application/msgpack", BATCH_OPERATIONS),
}


def _groups(names: list[str]) -> Iterator[list[str]]:
    shuffled = random.sample(names, len(names))
    for start in range(0, len(shuffled), BATCH_OPERATIONS):
        yield shuffled[start : start + BATCH_OPERATIONS]


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
