"""A node as its API sees it, without consensus: real state machines in memory behind a router that applies
each command at once, a view of a made-up cluster, and requests made by hand."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgpack
from multidict import CIMultiDict, CIMultiDictProxy

from kvstore.config import Config, NodeConfig
from kvstore.errors import KvError
from kvstore.node.api import Api
from kvstore.node.api.view import (
    Check,
    ClusterRow,
    NodeRow,
    RebuildRow,
    ReplicaRow,
    RouteNode,
    RouteRow,
    Routes,
    ShardRow,
)
from kvstore.node.calls import Answer, Call, Done, ReadAnswer
from kvstore.node.flow import Promise
from kvstore.node.requests import Headers, Request, Response
from kvstore.node.watch import Watches
from kvstore.placement import ShardMap
from kvstore.raft.messages import NORMAL, Configuration, Entry
from kvstore.store import StoreLimits, commands, lease_commands, lock_commands, txn_commands
from kvstore.store.machine import Machine
from kvstore.store.memory import MemoryEngines
from kvstore.store.waits import WAITS
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId, Term
from tests.support.sim_files import SimFiles

REPEATABLE_TXN_OPS = {
    txn_commands.PREPARE,
    txn_commands.DECIDE,
    txn_commands.ASK,
    txn_commands.FINISH,
}


class InstantRouter:
    """Applies writes and answers reads in the same call. `fail` makes a shard answer with an error; `held`
    collects calls instead of running them, to be let go in any order."""

    def __init__(self, shard_count: int, limits: StoreLimits | None = None) -> None:
        self.shard_map = ShardMap(shard_count)
        self.shard_of = self.shard_map.shard_of
        self.clock_ms = 1_000
        self.knows_clocks = True
        self.machines: dict[ShardId, Machine] = {}
        self.fail: dict[ShardId, KvError] = {}
        self.held: list[Callable[[], None]] | None = None
        self.calls: list[tuple[str, ShardId, Any]] = []
        self.deadlines: list[float] = []
        self.staleness_s: float | None = None
        self.waiting: list[Call] = []
        """Reads that wait, in order; `end_waits` answers them."""
        engines = MemoryEngines(SimFiles())
        for shard in self.shard_map.shards:
            machine = self.machines[shard] = Machine(engines.open(f"shard-{shard}"))
            machine.bootstrap(Configuration((ReplicaId("n1/1"),)))
            if limits is not None:
                self._apply(shard, commands.encode(None, [commands.set_limits(limits)]))

    def shards(self) -> Sequence[ShardId]:
        return self.shard_map.shards

    def clock_of(self, shard: ShardId) -> int | None:
        return self.clock_ms if self.knows_clocks else None

    def write_then(
        self, shard: ShardId, command: bytes, identified: bool, deadline: float, done: Done
    ) -> None:
        commands.check(command)
        identity, ops = commands.decode(command)
        assert identified == (identity is not None or all(map(_is_repeatable, ops)))
        self.calls.append(("write", shard, commands.decode(command)))
        self.deadlines.append(deadline)
        self._run(shard, lambda: self._apply(shard, command), done)

    def _apply(self, shard: ShardId, command: bytes) -> Answer:
        machine = self.machines[shard]
        index = LogIndex(machine.applied + 1)
        entry = Entry(index, Term(1), NORMAL, commands.payload(self.clock_ms, [command]))
        result = machine.apply([entry])[0][0]
        for call in [call for call in self.waiting if call.shard == shard]:
            # The answer of one may have led to a write that answered the next.
            if call in self.waiting:
                self._serve_wait(call)
        return Answer(shard, result, machine.clock_ms)

    def wait_then(
        self, shard: ShardId, query: Sequence[object], wait_until: float, deadline: float, done: Done
    ) -> Call | None:
        assert wait_until <= deadline
        self.calls.append(("wait", shard, query))
        self.deadlines.append(deadline)
        call = Call(shard, list(query), deadline, done, consistency="linearizable", wait_until=wait_until)
        self.waiting.append(call)
        self._serve_wait(call)
        return call

    def cancel(self, call: Call) -> None:
        if call in self.waiting:
            self.waiting.remove(call)

    def local(self, shard: ShardId) -> None:
        """No replica that feeds could read by themselves: they ask, as on a node without one."""

    def _serve_wait(self, call: Call, *, is_over: bool = False) -> None:
        try:
            if call.shard in self.fail:
                raise self.fail[call.shard]
            answer = self._read(call.shard, call.payload, "linearizable")
        except KvError as error:
            self.waiting.remove(call)
            call.fail(error)
            return
        if is_over or WAITS[call.payload[0]].is_met(call.payload, answer.value):
            self.waiting.remove(call)
            call.finish(answer)

    def end_waits(self) -> None:
        """Time passes: every wait is over."""
        for call in list(self.waiting):
            self._serve_wait(call, is_over=True)

    def read_then(
        self,
        shard: ShardId,
        query: Sequence[object],
        consistency: str,
        deadline: float,
        done: Done,
        max_staleness_s: float | None = None,
    ) -> None:
        self.calls.append((consistency, shard, query))
        self.deadlines.append(deadline)
        # As over a peer link: what cannot travel must not be in a query or its answer.
        packed = msgpack.packb(list(query))
        travelled = msgpack.unpackb(packed)
        self._run(shard, lambda: self._read(shard, travelled, consistency), done)

    def _read(self, shard: ShardId, query: list[Any], consistency: str) -> ReadAnswer:
        value = msgpack.unpackb(msgpack.packb(self.machines[shard].query(query)), strict_map_key=False)
        staleness_s = self.staleness_s if consistency == "stale" else None
        return ReadAnswer(shard, value, int(self.machines[shard].clock_ms), staleness_s)

    def _run(self, shard: ShardId, work: Callable[[], Any], done: Done) -> None:
        def go() -> None:
            if shard in self.fail:
                done(None, self.fail[shard])
                return
            try:
                answer = work()
            except KvError as error:
                done(None, error)
                return
            done(answer, None)

        if self.held is None:
            go()
        else:
            self.held.append(go)

    def write(self, shard: ShardId, command: bytes, identified: bool, deadline: float) -> Promise[Answer]:
        promise: Promise[Answer] = Promise()
        self.write_then(shard, command, identified, deadline, _settling(promise))
        return promise

    def read(
        self,
        shard: ShardId,
        query: Sequence[object],
        consistency: str,
        deadline: float,
        max_staleness_s: float | None = None,
    ) -> Promise[ReadAnswer]:
        promise: Promise[ReadAnswer] = Promise()
        self.read_then(shard, query, consistency, deadline, _settling(promise), max_staleness_s)
        return promise


def _settling(promise: Promise[Any]) -> Done:
    def done(answer: Any, error: BaseException | None) -> None:
        if error is None:
            promise.resolve(answer)
        else:
            promise.fail(error)

    return done


class PaperCluster:
    """Three nodes that exist on paper; n1 leads everything unless a test says otherwise."""

    me = NodeId("n1")

    def __init__(self, shard_map: ShardMap) -> None:
        self.shard_map = shard_map
        self.leaders: dict[ShardId, NodeId | None] = dict.fromkeys(shard_map.shards, NodeId("n1"))
        self.current_epoch = 5
        self.checks = [Check("joined", True), Check("leaders", True)]
        self.addresses = {NodeId(f"n{number}"): f"10.0.0.{number}:7401" for number in (1, 2, 3)}
        self.transfers: list[tuple[ShardId, NodeId]] = []
        self.rebuilds: list[tuple[ShardId, NodeId]] = []
        self.rebuild_role = "learner"

    def epoch(self) -> int:
        return self.current_epoch

    def leader_of(self, shard: ShardId) -> NodeId | None:
        return self.leaders[shard]

    def client_address(self, node: NodeId) -> str | None:
        return self.addresses.get(node)

    def routes(self) -> Routes:
        rows = [
            RouteRow(shard, *self.shard_map.range_of(shard), self.leaders[shard], list(self.addresses), 77)
            for shard in self.shard_map.shards
        ]
        nodes = [RouteNode(node, address) for node, address in self.addresses.items()]
        return Routes(self.current_epoch, rows, nodes)

    def nodes(self) -> list[NodeRow]:
        return [NodeRow(node, address, "", "", "", 1.0, True) for node, address in self.addresses.items()]

    def cluster(self) -> Promise[ClusterRow]:
        return _known(ClusterRow("paper", "c1", NodeId("n1"), "ok", [], 4, 3, [], 3, self.me))

    def shard_rows(self) -> Promise[list[ShardRow]]:
        rows = [
            ShardRow(
                shard,
                *self.shard_map.range_of(shard),
                leader,
                3,
                [ReplicaRow(NodeId("n1"), "leader", 9)],
                9,
                2,
            )
            for shard, leader in self.leaders.items()
        ]
        return _known(rows)

    def liveness(self) -> list[Check]:
        return [Check("loop", True)]

    def readiness(self) -> list[Check]:
        return self.checks

    def transfer(self, shard: ShardId, to: NodeId, deadline: float) -> Promise[None]:
        self.transfers.append((shard, to))
        self.leaders[shard] = to
        return _known(None)

    def rebuild(self, shard: ShardId, node: NodeId, deadline: float) -> Promise[RebuildRow]:
        self.rebuilds.append((shard, node))
        return _known(RebuildRow(shard, node, ReplicaId(f"{node}/2"), self.rebuild_role))

    def facts(self) -> dict[str, Any]:
        return {"engine": "memory"}


def _known(value: Any) -> Promise[Any]:
    promise: Promise[Any] = Promise()
    promise.resolve(value)
    return promise


def _is_repeatable(op: commands.Op) -> bool:
    """Whether the op does the same however often it is applied, by an id of its own or doing nothing."""
    if op[0] == txn_commands.TXN:
        return all(each[0] == txn_commands.GET for branch in op[2:] for each in branch)
    if op[0] in lease_commands.CHECKS:
        return bool(op[0] != lease_commands.GRANT)
    return op[0] in lock_commands.CHECKS or op[0] in REPEATABLE_TXN_OPS


class PaperRuntime:
    """As much of a runtime as the API asks for."""

    def __init__(self) -> None:
        self.dice = Random(1)
        self.time_s = 100.0
        self._turns: list[Callable[[], None]] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0

    def now(self) -> float:
        return self.time_s

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self._turns.append(lambda: callback(*args))

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (self.time_s + delay_s, self._timer_count, lambda: callback(*args)))

    def turn(self) -> None:
        """Run what wants a turn of the loop, until nothing does."""
        for _ in range(10_000):
            if not self._turns:
                return
            self._turns.pop(0)()
        raise AssertionError("the loop is kept busy for nothing")

    def run(self, seconds: float) -> None:
        end = self.time_s + seconds
        self.turn()
        while self._timers and self._timers[0][0] <= end:
            self.time_s, _, callback = heapq.heappop(self._timers)
            callback()
            self.turn()
        self.time_s = end


class Reply:
    """What a request was answered. Reading it asserts that there was exactly one answer."""

    def __init__(self) -> None:
        self.response: Response | None = None
        self.stream: ListStream | None = None

    def answer(self, request: Request, response: Response) -> None:
        assert self.response is None
        self.response = response

    def open_stream(self, request: Request, response: Response) -> ListStream:
        self.answer(request, response)
        self.stream = ListStream(response.body)
        return self.stream

    @property
    def is_there(self) -> bool:
        return self.response is not None

    @property
    def status(self) -> int:
        assert self.response is not None, "no answer yet"
        return self.response.status

    @property
    def headers(self) -> Headers:
        assert self.response is not None, "no answer yet"
        return self.response.headers

    @property
    def body(self) -> bytes:
        assert self.response is not None, "no answer yet"
        return self.response.body

    @property
    def content(self) -> Any:
        if self.headers["Content-Type"] == "application/msgpack":
            return msgpack.unpackb(self.body)
        assert "json" in self.headers["Content-Type"], self.headers
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        assert self.stream is not None, "not a stream"
        return [json.loads(line) for line in b"".join(self.stream.pieces).splitlines()]


class ListStream:
    """Collects what is written; `room` is how many pieces it takes before it says stop."""

    def __init__(self, first: bytes) -> None:
        self.pieces = [first]
        self.is_open = True
        self.is_ended = False
        self.room = 1_000_000
        self.waiting: Callable[[], None] | None = None

    def write(self, piece: bytes) -> bool:
        assert not self.is_ended
        self.pieces.append(piece)
        self.room -= 1
        return self.room > 0

    def on_drain(self, callback: Callable[[], None]) -> None:
        self.waiting = callback

    def end(self) -> None:
        self.is_ended = True


def config_of(**sections: Any) -> Config:
    nodes = tuple(
        NodeConfig(id=f"n{number}", client=f"10.0.0.{number}:7401", peer=f"10.0.0.{number}:7501")
        for number in (1, 2, 3)
    )
    return Config(cluster="paper", nodes=nodes, shards=4, **sections)


class ApiNode:
    """The API under test and ways to ask it."""

    def __init__(self, shard_count: int = 4, store: StoreLimits | None = None, **sections: Any) -> None:
        self.router = InstantRouter(shard_count, store)
        self.view = PaperCluster(self.router.shard_map)
        self.runtime = PaperRuntime()
        config = config_of(**sections)
        self.watches = Watches(
            self.router,
            {},
            self.runtime,  # type: ignore[arg-type]
            config.limits.watchers_max,
        )
        self.api = Api(self.router, self.view, config, self.runtime, self.watches)  # type: ignore[arg-type]

    def ask(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None, **more: str
    ) -> Reply:
        """`more` are headers too: `if_match="7"` is If-Match."""
        reply = Reply()
        self.api.handle(self.request(method, target, reply, body, headers, **more))
        self.runtime.turn()
        return reply

    @staticmethod
    def request(
        method: str,
        target: str,
        reply: Reply,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        **more: str,
    ) -> Request:
        all_headers: CIMultiDict[str] = CIMultiDict(headers or {})
        for name, value in more.items():
            all_headers[name.replace("_", "-")] = value
        return Request(method, target, CIMultiDictProxy(all_headers), body, "10.9.9.9", reply)

    def ask_json(self, method: str, target: str, content: Any, **more: str) -> Reply:
        return self.ask(
            method, target, json.dumps(content).encode(), {"Content-Type": "application/json"}, **more
        )

    def ask_msgpack(self, method: str, target: str, content: Any, **more: str) -> Reply:
        headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
        return self.ask(method, target, msgpack.packb(content), headers, **more)

    def put(self, key: str, value: str = "v", **more: str) -> Reply:
        return self.ask("PUT", f"/v1/kv/{key}", value.encode(), **more)

    def value(self, key: str) -> bytes | None:
        reply = self.ask("GET", f"/v1/kv/{key}")
        return reply.body if reply.status == 200 else None

    def problem(self, reply: Reply, status: int, code: str) -> dict[str, Any]:
        """The document of a failed request, checked for what every one of them has."""
        assert (reply.status, reply.content.get("code")) == (status, code), reply.response
        assert reply.headers["Content-Type"] == "application/problem+json"
        document = reply.content
        assert isinstance(document, dict)
        assert document["status"] == status
        assert {"type", "title", "detail", "retryable", "request_id"} <= document.keys()
        assert reply.headers["KV-Request-Id"] == document["request_id"]
        return document
