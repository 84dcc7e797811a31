"""What the stand-in for a cluster (`fake_cluster`) knows of transactions, leases, locks, elections and
watches: enough of the contract for clients to be tried on, by one dict and one clock."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

import msgpack

Problem = Callable[..., Any]


def seconds(text: str) -> float:
    return float(text[:-2]) / 1000 if text.endswith("ms") else float(text.removesuffix("s"))


@dataclass
class FakeLease:
    id: str
    ttl_s: float
    until: float
    keys: set[bytes] = field(default_factory=set)


@dataclass
class Claim:
    token: str
    value: bytes
    ttl_s: float
    until: float
    fence: int = 0


@dataclass
class Change:
    kind: str
    key: bytes
    value: bytes | None
    revision: int
    prev: dict[str, Any] | None


class Coordination:
    """`put(key, value)` and `delete(key, kind)` change keys; both must call `changed`."""

    def __init__(
        self, put: Callable[[bytes, bytes], int], delete: Callable[[bytes, str], None], shard: Any
    ) -> None:
        self._put, self._delete, self._shard_of = put, delete, shard
        self.condition = threading.Condition(threading.RLock())
        self.log: list[Change] = []
        self.compacted_below = 0
        """Positions below this one are gone."""
        self.leases: dict[str, FakeLease] = {}
        self.queues: dict[str, list[Claim]] = {}
        self.fences: dict[str, int] = {}
        self.due: dict[bytes, float] = {}
        self.progress_s = 0.2
        self.cut: Callable[[int], bool] = lambda _: False
        """Asked before each line of a watch: whether to cut the stream instead."""
        self._line_count = 0
        self.is_stopped = False

    def stop(self) -> None:
        with self.condition:
            self.is_stopped = True
            self.condition.notify_all()

    # Time and changes.

    def changed(
        self, kind: str, key: bytes, value: bytes | None, revision: int, prev: dict[str, Any] | None
    ) -> None:
        with self.condition:
            self.log.append(Change(kind, key, value, revision, prev))
            self.condition.notify_all()

    def expire(self) -> None:
        """Do what time has brought."""
        now = time.monotonic()
        for key, until in list(self.due.items()):
            if until <= now:
                del self.due[key]
                self._delete(key, "expire")
        for lease in list(self.leases.values()):
            if lease.until <= now:
                self.end_lease(lease, "expire")
        for path, queue in self.queues.items():
            while queue and queue[0].until <= now:
                queue.pop(0)
                self._grant_next(path, now)

    def end_lease(self, lease: FakeLease, kind: str) -> None:
        del self.leases[lease.id]
        for key in sorted(lease.keys):
            self._delete(key, kind)

    # Transactions.

    def holds(self, compare: dict[str, Any], item: dict[str, Any] | None) -> bool:
        ((subject, relation),) = [
            (name, found) for name, found in compare.items() if not name.startswith("key")
        ]
        ((operator, operand),) = relation.items()
        if item is None and subject == "value":
            return bool(operator == "ne")
        actual = 0 if item is None else item[subject]
        if isinstance(operand, str):
            operand = operand.encode()
        results = {"eq": actual == operand, "ne": actual != operand}
        if operator in results:
            return bool(results[operator])
        return bool({"lt": actual < operand, "le": actual <= operand,
                     "gt": actual > operand, "ge": actual >= operand}[operator])  # fmt: skip

    # Leases.

    def lease_request(self, method: str, path: str, body: bytes, problem: Problem) -> tuple[int, Any] | Any:
        parts = path.split("/")[3:]
        if method == "POST" and not parts:
            fields = json.loads(body)
            lease_id = fields.get("id") or f"lease-{len(self.leases) + 1}"
            ttl_s = seconds(fields["ttl"])
            self.leases[lease_id] = FakeLease(lease_id, ttl_s, time.monotonic() + ttl_s)
            return 201, {"lease": lease_id, "ttl_ms": round(ttl_s * 1000)}
        if not parts:
            return 200, {"leases": [self._lease_fields(each) for each in self.leases.values()]}
        lease = self.leases.get(parts[0])
        if lease is None:
            return problem(404, "lease-not-found")
        if method == "PUT":
            lease.until = time.monotonic() + lease.ttl_s
            return 200, {"lease": lease.id, "ttl_ms": round(lease.ttl_s * 1000)}
        if method == "DELETE":
            self.end_lease(lease, "delete")
            return 200, {"lease": lease.id}
        return 200, self._lease_fields(lease) | {"keys": [key.decode() for key in sorted(lease.keys)]}

    def _lease_fields(self, lease: FakeLease) -> dict[str, Any]:
        left_ms = round((lease.until - time.monotonic()) * 1000)
        return {"lease": lease.id, "ttl_ms": round(lease.ttl_s * 1000), "remaining_ms": left_ms}

    # Locks and elections.

    def queue_request(
        self, method: str, path: str, headers: dict[str, str], body: bytes, problem: Problem
    ) -> tuple[int, Any] | Any:
        _, _, kind, name, *rest = path.split("/")
        queue_path = f"{kind}/{name}"
        queue = self.queues.setdefault(queue_path, [])
        if method == "POST":
            return self._claim(queue_path, headers, json.loads(body), problem)
        if not rest:
            if not queue:
                return problem(404, "key-not-found")
            return 200, {"fence": queue[0].fence, "ttl_ms": 1000, "waiting": 0, "value": queue[0].value}
        claim = next((each for each in queue if each.token == rest[0]), None)
        if claim is None:
            return problem(404, "lock-lost")
        if method == "PUT":
            claim.until = time.monotonic() + claim.ttl_s
            return 200, {"fence": claim.fence, "ttl_ms": round(claim.ttl_s * 1000)}
        at = queue.index(claim)
        queue.remove(claim)
        if at == 0:
            self._grant_next(queue_path, time.monotonic())
        return 200, {"released": True}

    def _claim(self, path: str, headers: dict[str, str], fields: dict[str, Any], problem: Problem) -> Any:
        queue = self.queues[path]
        token = f"{headers.get('kv-session', 'none')}-{headers.get('kv-sequence', len(queue))}"
        wait_until = time.monotonic() + seconds(fields.get("wait") or "0s")
        claim = next((each for each in queue if each.token == token), None)
        if claim is None:
            ttl_s = seconds(fields["ttl"])
            value = fields.get("value", "").encode()
            claim = Claim(token, value, ttl_s, wait_until + ttl_s)
            queue.append(claim)
            if len(queue) == 1:
                self._grant_next(path, time.monotonic())
        while claim in queue and queue[0] is not claim and time.monotonic() < wait_until:
            self.condition.wait(0.01)
            self.expire()
        if claim not in queue or queue[0] is not claim:
            if claim in queue:
                queue.remove(claim)
            return problem(409, "locked", fence=queue[0].fence if queue else 0)
        return 200, {"token": token, "fence": claim.fence, "ttl_ms": round(claim.ttl_s * 1000)}

    def _grant_next(self, path: str, now: float) -> None:
        """The head of the queue holds the name from now on; the key shows it."""
        kind, name = path.split("/")
        key = f"_{kind}/".encode() + unquote_to_bytes(name)
        queue = self.queues[path]
        if queue:
            head = queue[0]
            head.until = now + head.ttl_s
            head.fence = self._put(key, head.value)
        else:
            self._delete(key, "delete")
        self.condition.notify_all()

    # Watches.

    @property
    def pos(self) -> str:
        return f"p{len(self.log)}"

    def watch(self, query: dict[str, bytes], lock: threading.RLock) -> Iterator[bytes]:
        """Yield the lines of a stream. Ends without a last line when `cut` says so."""
        at = int(query["from"][1:]) if "from" in query else len(self.log)
        if at < self.compacted_below:
            yield _line({"type": "start", "pos": f"p{at}"})
            yield _line({"type": "compacted"})
            return
        if self._is_cut():
            return
        yield _line({"type": "start", "pos": f"p{at}"})
        while not self.is_stopped:
            if at >= len(self.log):
                with self.condition:
                    waited = self.condition.wait(self.progress_s)
                with lock:
                    self.expire()
                if not waited and at >= len(self.log):
                    if self._is_cut():
                        return
                    yield _line({"type": "progress", "pos": f"p{at}"})
                continue
            change = self.log[at]
            at += 1
            if "key" in query and change.key != query["key"]:
                continue
            if not change.key.startswith(query.get("prefix", b"")):
                continue
            if self._is_cut():
                return
            fields: dict[str, Any] = {"type": change.kind, **_named("key", change.key)}
            if change.value is not None:
                fields |= _named("value", change.value)
            fields |= {"revision": change.revision, "pos": f"p{at}"}
            if query.get("prev") == b"1" and change.prev is not None:
                fields["prev"] = {name: value for name, value in change.prev.items() if name != "key"}
                fields["prev"]["value"] = change.prev["value"].decode()
            yield _line(fields)

    def _is_cut(self) -> bool:
        self._line_count += 1
        return self.cut(self._line_count)


def _named(name: str, value: bytes) -> dict[str, str]:
    from base64 import b64encode

    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_b64": b64encode(value).decode()}


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def txn_body(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(body)
    return found
