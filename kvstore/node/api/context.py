"""What all handlers share: the router, the view of the cluster, limits, and how answers are made."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from kvstore.config import Limits
from kvstore.errors import KvError, OutcomeUnknown, WrongRoute
from kvstore.node.api.view import ClusterView
from kvstore.node.calls import Answer, Call, Done, ReadAnswer
from kvstore.node.flow import Promise
from kvstore.node.leases import Leases
from kvstore.node.metrics import NodeMetrics
from kvstore.node.requests import JSON, MSGPACK, Headers, Request, Response
from kvstore.node.transactions import Transactions
from kvstore.node.watch import Watches
from kvstore.store import commands
from kvstore.types import ShardId
from kvstore.wire import api

log = logging.getLogger(__name__)

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode

CONSISTENCIES = ("linearizable", "lease", "stale")


class Router(Protocol):
    """Brings operations to the replicas that may answer them (`node/router.py`)."""

    shard_of: Callable[[bytes], ShardId]

    def shards(self) -> Sequence[ShardId]: ...

    def clock_of(self, shard: ShardId) -> int | None: ...

    def write_then(
        self, shard: ShardId, command: bytes, identified: bool, deadline: float, done: Done
    ) -> None: ...

    def read_then(
        self,
        shard: ShardId,
        query: Sequence[object],
        consistency: str,
        deadline: float,
        done: Done,
        max_staleness_s: float | None = None,
    ) -> None: ...

    def wait_then(
        self, shard: ShardId, query: Sequence[object], wait_until: float, deadline: float, done: Done
    ) -> Call | None: ...

    def cancel(self, call: Call) -> None: ...

    def write(self, shard: ShardId, command: bytes, identified: bool, deadline: float) -> Promise[Answer]: ...

    def read(
        self,
        shard: ShardId,
        query: Sequence[object],
        consistency: str,
        deadline: float,
        max_staleness_s: float | None = None,
    ) -> Promise[ReadAnswer]: ...


class ApiSettings(msgspec.Struct, frozen=True):
    limits: Limits = Limits()
    request_s: float = 5.0
    """Deadline of a request without KV-Timeout."""
    session_window: int = 1024
    session_lifetime_s: float = 600.0
    cluster: str = ""
    version: str = "0"


class Context:
    """One per node. `now` is `Runtime.now`: deadlines are absolute in it."""

    __slots__ = (
        "_fresh",
        "_next_id",
        "_prefix",
        "_secret",
        "deadline_s",
        "key_bytes_max",
        "leases",
        "limits",
        "metrics",
        "now",
        "router",
        "settings",
        "shard_of",
        "transactions",
        "view",
        "watches",
    )

    def __init__(
        self,
        router: Router,
        view: ClusterView,
        now: Callable[[], float],
        settings: ApiSettings,
        metrics: NodeMetrics,
        id_prefix: str,
        secret: bytes,
        leases: Leases,
        watches: Watches,
        transactions: Transactions,
    ) -> None:
        self.router = router
        self.watches = watches
        self.shard_of = router.shard_of
        self.leases = leases
        self.view = view
        self.now = now
        self.settings = settings
        self.limits = settings.limits
        self.key_bytes_max = settings.limits.key_bytes_max
        self.deadline_s = settings.request_s
        self.metrics = metrics
        self._prefix = id_prefix.encode()
        self._next_id = 0
        self._secret = secret
        self.transactions = transactions
        self._fresh = 0

    def fresh_bytes(self, count: int) -> bytes:
        """Up to 64 bytes that nobody has seen or can guess."""
        self._fresh += 1
        return hashlib.blake2b(b"%d" % self._fresh, key=self._secret, digest_size=count).digest()

    # --- of a request -----------------------------------------------------------------------------

    def take_request_id(self, headers: Headers) -> bytes:
        """The caller's id if it is sane, else one of ours: unique by the process' prefix and a count."""
        given = api.request_id_of(headers)
        if given is not None:
            return given.encode()
        self._next_id += 1
        return b"%b-%x" % (self._prefix, self._next_id)

    def deadline(self, request: Request) -> float:
        return request.started_s + api.timeout_s(request.headers, self.deadline_s)

    def identity(self, request: Request) -> commands.Identity | None:
        """The write identity that the request carries, charged to its caller's share."""
        found = api.identity_of(request.headers, request.method, request.target, request.body)
        if found is None:
            return None
        return commands.Identity(
            found.session,
            found.sequence,
            0,
            found.acked_below,
            found.since_ms,
            found.body_hash,
            request.address.encode()[: commands.PRINCIPAL_BYTES_MAX],
        )

    def is_elsewhere(self, request: Request, shard: ShardId, redirect: bool) -> bool:
        """Whether the request must go to the shard's leader by itself; if so it has been answered or
        an error raised: 307 if it asked for a redirect, 421 if it routes itself by an old epoch.

        Raises: WrongRoute.
        """
        epoch = api.epoch_of(request.headers)
        if epoch is None and not redirect:
            return False
        view = self.view
        leader = view.leader_of(shard)
        if leader is None or leader == view.me:
            return False
        address = view.client_address(leader)
        if redirect and address is not None:
            head = b"Location: http://%b%b\r\n" % (address.encode(), _path_of(request.target))
            self.respond(request, Response(307, head + self.head(request)))
            return True
        current = view.epoch()
        if epoch is not None and epoch != current:
            raise WrongRoute(
                f"shard {shard} is led by {leader}, and the routes are at epoch {current}",
                shard=shard,
                leader=leader,
                address=address,
                epoch=current,
            )
        return False

    # --- of an answer -----------------------------------------------------------------------------

    @staticmethod
    def head(request: Request, clock_ms: int | None = None) -> bytes:
        """The header lines every answer carries; KV-Shard where one shard answered."""
        if request.shard is None:
            return b"KV-Request-Id: %b\r\n" % request.id
        if clock_ms is None:
            return b"KV-Shard: %d\r\nKV-Request-Id: %b\r\n" % (request.shard, request.id)
        return b"KV-Shard: %d\r\nKV-Request-Id: %b\r\nKV-Clock: %d\r\n" % (
            request.shard,
            request.id,
            clock_ms,
        )

    def respond(self, request: Request, response: Response) -> None:
        request.respond(response)
        self.metrics.observe_request(
            request.route, request.method, response.status, self.now() - request.started_s
        )

    def respond_content(self, request: Request, status: int, content: Any, head: bytes = b"") -> None:
        """Answer with a container, in the format that the caller accepts."""
        if api.wants_msgpack(request.headers):
            response = Response(status, MSGPACK + head, _encode_msgpack(content))
        else:
            response = Response(status, JSON + head, _encode_json(content))
        self.respond(request, response)

    def fail(self, request: Request, error: BaseException, more_head: bytes = b"") -> None:
        """Answer with what went wrong. An error that is not a `KvError` is our own fault."""
        if not isinstance(error, KvError):
            log.error("request %s failed", request.id.decode(), exc_info=error)
            # It may have failed behind the proposal, so nothing may be promised about a write.
            kind = KvError if request.method in ("GET", "HEAD") else OutcomeUnknown
            error = kind("the node failed to handle this request; its log says more")
        error.request_id = request.id.decode()
        status, head, body = api.problem(error)
        self.respond(request, Response(status, head + self.head(request) + more_head, body))


def _path_of(target: str) -> bytes:
    """The target to repeat at another node, whose host the caller's own must not override."""
    path, query = api.split_target(target)
    return (path + ("?" + query if query else "")).encode("utf-8", "surrogateescape")
