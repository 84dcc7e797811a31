"""Clients of the chaos runs: each does one operation at a time and writes it into the history.

An *identified* caller sends a write again under the same identity (session, sequence) until its deadline,
to any node, as the API promises that it happens once. Others send a write again only when it surely was
not proposed, so that their lost answers leave operations of unknown outcome for the checker.
"""

import asyncio
import json
import random
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from chaos.exchange import Connection, Lost, NotSent, Reply
from chaos.history import History, Operation, Outcome

ATTEMPT_S = 4.0
"""Longest wait for one answer of a request that may be sent again: a paused node never answers."""

BACKOFF_S = (0.02, 0.12)

Piece = tuple[str, str, dict[str, Any] | None]
"""Kind, key and argument of one operation of a batch."""


class End(NamedTuple):
    """How a request ended: an answer to interpret, or the outcome without one."""

    reply: Reply | None
    outcome: Outcome
    error: str
    node: str
    is_doubtful: bool = False
    """An earlier attempt was lost: what this answer says did not happen may have happened in that one."""


class Caller:
    """One client. `pin` names the only node it asks; None asks any, another one after each failure."""

    def __init__(
        self,
        number: int,
        endpoints: Mapping[str, str],
        history: History,
        *,
        is_identified: bool = True,
        pin: str | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self.number = number
        self.dice = random.Random(number)
        self.unexpected: Counter[str] = Counter()
        """Answers that no client may ever get: server errors, and refusals of good requests."""
        self._history = history
        self._is_identified = is_identified
        self.timeout_s = timeout_s
        self._endpoints = dict(endpoints)
        self._connections = {name: Connection(address) for name, address in endpoints.items()}
        self._nodes = [pin] if pin else list(endpoints)
        self._node = self.dice.choice(self._nodes)
        self._session = secrets.token_hex(16)
        self._sequence = 0
        self._clocks: dict[str, str] = {}

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    # ---- operations ------------------------------------------------------------------------------

    async def put(
        self, key: str, value: str, *, if_revision: int | None = None, if_absent: bool = False
    ) -> Operation:
        argument: dict[str, Any] = {"value": value}
        headers = {"Content-Type": "text/plain"}
        if if_revision is not None:
            argument["if_revision"] = if_revision
            headers["If-Match"] = f'"{if_revision}"'
        if if_absent:
            argument["if_absent"] = True
            headers["If-None-Match"] = "*"
        return await self._write("put", key, argument, "PUT", _path(key), headers, value.encode())

    async def delete(self, key: str) -> Operation:
        return await self._write("delete", key, None, "DELETE", _path(key), {}, b"")

    async def incr(self, key: str, by: int = 1) -> Operation:
        body = json.dumps({"by": by}).encode()
        headers = {"Content-Type": "application/json"}
        return await self._write("incr", key, {"by": by}, "POST", f"{_path(key)}?op=incr", headers, body)

    async def get(self, key: str) -> Operation:
        operation = self._history.invoke(self.number, "get", key, None, self._now())
        end = await self._ask("GET", _path(key), {}, b"", is_write=False)
        result = None
        if end.reply and end.reply.status == 200:
            result = {"value": end.reply.body.decode(), "revision": int(end.reply.headers["kv-revision"])}
        return self._complete(operation, end, result)

    async def scan(self, prefix: str, keys: Sequence[str]) -> Operation:
        """Read the keys with this prefix, of which `keys` are all that anybody writes."""
        operation = self._history.invoke(self.number, "scan", "", {"keys": list(keys)}, self._now())
        target = f"/v1/kv?{urlencode({'prefix': prefix, 'limit': len(keys) + 1})}"
        end = await self._ask("GET", target, {}, b"", is_write=False)
        result = None
        if end.reply and end.reply.status == 200:
            items = json.loads(end.reply.body)["items"]
            result = {"items": {item["key"]: _picked(item, "value", "revision") for item in items}}
        return self._complete(operation, end, result)

    async def batch(self, pieces: Sequence[Piece]) -> list[Operation]:
        """Independent operations in one request: each is one of the history."""
        now = self._now()
        operations = [self._history.invoke(self.number, *piece, now) for piece in pieces]
        body = json.dumps({"ops": [_batched(*piece) for piece in pieces]}).encode()
        headers = {"Content-Type": "application/json", **self._identity("")}
        settled: dict[int, Any] = {}

        def settle(reply: Reply) -> bool:
            # A later attempt may find no leader for a piece that an earlier one has carried out.
            for number, result in enumerate(json.loads(reply.body)["results"]):
                if result["status"] not in _PASSING_STATUS:
                    settled.setdefault(number, result)
            return len(settled) == len(pieces)

        end = await self._ask("POST", "/v1/batch", headers, body, is_write=True, is_whole=settle)
        results: list[Any] = [None] * len(pieces)
        if end.reply and end.reply.status == 200:
            results = json.loads(end.reply.body)["results"]
        for number, (operation, result) in enumerate(zip(operations, results, strict=True)):
            self._complete_piece(operation, end, settled.get(number, result))
        return operations

    async def call(
        self,
        kind: str,
        key: str,
        argument: Any,
        method: str,
        target: str,
        told: Callable[[Reply], Any],
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        is_write: bool = True,
        conflicts: frozenset[str] = frozenset(),
    ) -> Operation:
        """Any request as one operation of the history. `told` picks the result out of the answer, which may
        be a 404. `conflicts` are codes of errors that are an answer to this request, as 412 is to all: the
        operation is then a conflict, with that code as its error."""
        operation = self._history.invoke(self.number, kind, key, argument, self._now())
        own = {**(headers or {}), **(self._identity(key) if is_write else {})}
        end = await self._ask(method, target, own, body, is_write=is_write, conflicts=conflicts)
        result = None
        if end.reply:
            if "kv-clock" in end.reply.headers:
                self._clocks[key] = end.reply.headers["kv-clock"]
            result = told(end.reply)
        return self._complete(operation, end, result)

    @property
    def node(self) -> str:
        """The node it asks now."""
        return self._node

    def connect(self, node: str = "") -> Connection:
        """A connection of one's own, for what stays open; to be closed by whoever asked for it."""
        return Connection(self._endpoints[node or self._node])

    def choose_node(self) -> str:
        """Any of the nodes that it may ask."""
        return self.dice.choice(self._nodes)

    def begin(self, kind: str, key: str, argument: Any, process: int | None = None) -> Operation:
        """An operation that is made by other means than `call`; `complete` ends it. `process`: another's."""
        number = self.number if process is None else process
        return self._history.invoke(number, kind, key, argument, self._now())

    def complete(self, operation: Operation, outcome: Outcome, result: Any = None) -> None:
        self._history.complete(operation, outcome, self._now(), result)

    # ---- one request -----------------------------------------------------------------------------

    async def _write(
        self,
        kind: str,
        key: str,
        argument: dict[str, Any] | None,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
    ) -> Operation:
        operation = self._history.invoke(self.number, kind, key, argument, self._now())
        end = await self._ask(method, target, {**headers, **self._identity(key)}, body, is_write=True)
        result = None
        if end.reply:
            if "kv-clock" in end.reply.headers:
                self._clocks[key] = end.reply.headers["kv-clock"]
            told = json.loads(end.reply.body)
            result = _picked(told, "revision", "version", "created", "deleted", "value", "current_revision")
        return self._complete(operation, end, result)

    def _identity(self, key: str) -> dict[str, str]:
        if not self._is_identified:
            return {}
        self._sequence += 1
        own = str(self._sequence)
        identity = {"KV-Session": self._session, "KV-Sequence": own, "KV-Acked-Below": own}
        return identity | ({"KV-Since": self._clocks[key]} if key in self._clocks else {})

    async def _ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        is_write: bool,
        is_whole: Callable[[Reply], bool] = lambda reply: True,
        conflicts: frozenset[str] = frozenset(),
    ) -> End:
        deadline = self._now() + self.timeout_s
        partial: Reply | None = None
        may_repeat = self._is_identified or not is_write
        is_doubtful, error = False, "deadline"
        while (remaining := deadline - self._now()) > 0.001:
            patience = min(remaining, ATTEMPT_S) if may_repeat else remaining
            node, own = self._node, {**headers, "KV-Timeout": f"{int(patience * 1000)}ms"}
            try:
                reply = await self._connections[node].request(method, target, own, body, patience + 0.5)
            except NotSent as failure:
                error = f"not sent: {failure}"
                # Nobody listens: many clients that knock at once would take the time that a start needs.
                await asyncio.sleep(min(self.dice.uniform(*BACKOFF_S), max(0.0, deadline - self._now())))
            except Lost as failure:
                error, is_doubtful = f"lost: {failure}", is_doubtful or is_write
            else:
                told = "" if reply.status < 300 else _code(reply)
                if reply.status == 404 and told not in conflicts:
                    told = ""
                if not told or reply.status == 412 or told in conflicts:
                    outcome: Outcome = "conflict" if told else "ok"
                    if is_whole(reply) or not may_repeat:
                        return End(reply, outcome, told if told in conflicts else "", node, is_doubtful)
                    # Pieces that ran out of time are asked for again, all under the same identity.
                    partial, is_doubtful = reply, is_doubtful or _has_doubtful_results(reply)
                else:
                    error = told
                    if _is_final(reply):
                        if error != "disk-full":
                            self.unexpected[f"{method} {reply.status} {error}"] += 1
                        is_doubtful = is_doubtful or (is_write and reply.status >= 500)
                        break
                    is_doubtful = is_doubtful or (is_write and error == "outcome-unknown")
            if is_doubtful and not may_repeat:
                break
            self._node = self.dice.choice(self._nodes)
            await asyncio.sleep(min(self.dice.uniform(*BACKOFF_S), max(0.0, deadline - self._now())))
        if partial is not None:
            return End(partial, "ok", "", self._node, is_doubtful)
        return End(None, "unknown" if is_doubtful else "refused", error, self._node)

    def _complete(self, operation: Operation, end: End, result: Any) -> Operation:
        operation.node = end.node
        self._history.complete(operation, end.outcome, self._now(), result, end.error)
        return operation

    def _complete_piece(self, operation: Operation, end: End, result: Any) -> None:
        if result is None:
            self._complete(operation, end, None)
            return
        status, code = result["status"], result.get("code", "")
        if status < 300 or (status == 404 and operation.kind == "get"):
            told = None if status == 404 else _picked(result, *_TOLD[operation.kind])
            self._complete(operation, End(end.reply, "ok", "", end.node), told)
        elif status == 412:
            told = _picked(result, "current_revision")
            self._complete(operation, End(end.reply, "conflict", "", end.node), told)
        else:
            is_doubtful = end.is_doubtful or code == "outcome-unknown" or status == 500
            if status == 500:
                self.unexpected[f"500 in a batch: {code}"] += 1
            self._complete(
                operation, End(None, "unknown" if is_doubtful else "refused", code, end.node), None
            )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


_TOLD = {
    "get": ("value", "revision"),
    "put": ("revision", "version", "created"),
    "delete": ("deleted", "revision"),
    "incr": ("value", "revision"),
}

_PASSING_STATUS = frozenset({429, 503, 504})

_PASSING = frozenset({"no-leader", "not-ready", "unavailable", "overloaded", "wrong-route", "conflict"})


def _has_doubtful_results(reply: Reply) -> bool:
    return any(result["status"] == 504 for result in json.loads(reply.body)["results"])


def _is_final(reply: Reply) -> bool:
    """Whether asking again is pointless."""
    return not (_code(reply) in _PASSING or (reply.status == 504 and _code(reply) != "internal"))


def _code(reply: Reply) -> str:
    try:
        return str(json.loads(reply.body)["code"])
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status} without a problem document"


def _path(key: str) -> str:
    return f"/v1/kv/{quote(key, safe='')}"


def _picked(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: document[name] for name in names if document.get(name) is not None}


def _batched(kind: str, key: str, argument: dict[str, Any] | None) -> dict[str, Any]:
    return {"op": kind, "key": key, **(argument or {})}
