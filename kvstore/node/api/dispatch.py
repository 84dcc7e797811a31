"""From a request to its handler: single keys first, then the table of routes."""

from __future__ import annotations

import re
from typing import NamedTuple

from kvstore import __version__
from kvstore.config import Config
from kvstore.errors import Denied, KvError, MethodNotAllowed, NotFound, Unsupported
from kvstore.node.api import kv, openapi
from kvstore.node.api.context import ApiSettings, Context, Router
from kvstore.node.api.table import OPERATIONS, Operation
from kvstore.node.api.view import ClusterView
from kvstore.node.leases import Leases
from kvstore.node.metrics import NodeMetrics
from kvstore.node.requests import Headers, Request, Response
from kvstore.node.runtime import Runtime
from kvstore.node.transactions import Transactions
from kvstore.node.watch import Watches
from kvstore.wire import api

_KEY_PREFIX = "/v1/kv/"
_NO_QUERY = api.Query({})
_SMALL_BODY_BYTES = 65_536
"""Limit on bodies of routes that take a few numbers, or none."""

_HOT = {
    "GET": (kv.get, "get"),
    "PUT": (kv.put, "put"),
    "DELETE": (kv.delete, "delete"),
    "HEAD": (kv.get, "get"),
}


class _Route(NamedTuple):
    """One path: its operations by method, HEAD included where GET is."""

    path: str
    operations: dict[str, Operation]
    parameters: dict[str, frozenset[str]]
    allow: str


def _routes(operations: tuple[Operation, ...]) -> dict[str, _Route]:
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    found = {}
    for path, methods in by_path.items():
        if "GET" in methods:
            methods["HEAD"] = methods["GET"]
        known = {
            method: frozenset(parameter.name for parameter in operation.parameters)
            for method, operation in methods.items()
        }
        found[path] = _Route(path, methods, known, ", ".join(sorted((*methods, "OPTIONS"))))
    return found


def _pattern(path: str) -> re.Pattern[str]:
    """A key may hold slashes; other arguments are one segment."""
    pattern = re.sub(r"\{(\w+)\}", lambda match: "(.*)" if match[1] == "key" else "([^/]+)", path)
    return re.compile(pattern, re.DOTALL)


class Api:
    """The entry for all requests. `handle` answers each one, now or later, and never raises a KvError."""

    def __init__(
        self,
        router: Router,
        view: ClusterView,
        config: Config,
        runtime: Runtime,
        watches: Watches,
        metrics: NodeMetrics | None = None,
    ) -> None:
        self.metrics = metrics or NodeMetrics(__version__, view.me)
        settings = ApiSettings(
            limits=config.limits,
            request_s=config.timeouts.request_s,
            session_window=config.sessions.window,
            session_lifetime_s=config.sessions.lifetime_s,
            cluster=config.cluster,
            version=__version__,
        )
        prefix = f"{view.me}-{runtime.dice.getrandbits(40):x}"
        secret = runtime.dice.getrandbits(256).to_bytes(32, "big")
        leases = Leases(router, runtime)
        transactions = Transactions(router, runtime, leases)
        self.context = Context(
            router, view, runtime.now, settings, self.metrics, prefix, secret, leases, watches, transactions
        )
        openapi_operation = Operation(
            "GET",
            "/v1/openapi.json",
            "openapi",
            self._openapi,
            "This description.",
            answers=((200, "", "object"),),
            errors=(),
        )
        self.operations = (*OPERATIONS, openapi_operation)
        routes = _routes(self.operations)
        self._fixed = {path: route for path, route in routes.items() if "{" not in path}
        self._patterns = [(_pattern(path), route) for path, route in routes.items() if "{" in path]
        self._document: bytes | None = None

    def handle(self, request: Request) -> None:
        context = self.context
        request.started_s = context.now()
        request.id = context.take_request_id(request.headers)
        request.shard = None
        request.route = "unmatched"
        try:
            target = request.target
            if target.startswith(_KEY_PREFIX) and "?" not in target and "#" not in target:
                hot = _HOT.get(request.method)
                if hot is not None:
                    request.route = hot[1]
                    hot[0](context, request, target[len(_KEY_PREFIX) :], _NO_QUERY)
                    return
            self._route(request)
        except KvError as error:
            context.fail(request, error)

    def refusal(self, error: KvError, headers: Headers) -> Response:
        """The answer to what the server could not read as a request."""
        request_id = self.context.take_request_id(headers)
        error.request_id = request_id.decode()
        status, head, body = api.problem(error)
        self.metrics.requests.of("refused", str(status)).value += 1
        return Response(status, head + b"KV-Request-Id: %b\r\n" % request_id, body)

    def body_limit(self, method: str, target: str) -> tuple[str, int]:
        """Name and bytes of the limit on a body, for the server to ask before it reads one."""
        limits = self.context.limits
        if target.startswith(_KEY_PREFIX) and method == "PUT":
            return "value_bytes_max", limits.value_bytes_max
        path = target.partition("?")[0]
        if path in ("/v1/batch", "/v1/leases/keepalive"):
            return "batch_bytes_max", limits.batch_bytes_max
        if path == "/v1/txn":
            return "txn_bytes_max", limits.txn_bytes_max
        return "body_bytes_max", _SMALL_BODY_BYTES

    def _route(self, request: Request) -> None:
        if request.target == "*" and request.method == "OPTIONS":
            self._answer_options(request, "DELETE, GET, HEAD, OPTIONS, POST, PUT")
            return
        path, query_text = api.split_target(request.target)
        route, arguments = self._match(path)
        method = request.method
        if method == "OPTIONS":
            self._answer_options(request, route.allow)
            return
        operation = route.operations.get(method)
        if operation is None:
            raise MethodNotAllowed(
                f"{method} is not for {route.path}; allowed: {route.allow}", allow=route.allow
            )
        request.route = operation.name
        if method == "POST":
            _refuse_foreign_page(request)
        if operation.handler is None:
            raise Unsupported(f"{method} {route.path} is not supported by this version")
        query = api.parse_query(query_text, route.parameters[method])
        operation.handler(self.context, request, *arguments, query)

    def _match(self, path: str) -> tuple[_Route, tuple[str, ...]]:
        route = self._fixed.get(path)
        if route is not None:
            return route, ()
        for pattern, candidate in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return candidate, match.groups()
        raise NotFound("there is no such route; /v1/openapi.json lists all")

    def _answer_options(self, request: Request, allow: str) -> None:
        request.route = "options"
        head = b"Allow: %b\r\n%b" % (allow.encode(), self.context.head(request))
        self.context.respond(request, Response(204, head))

    def _openapi(self, context: Context, request: Request, query: api.Query) -> None:
        if self._document is None:
            self._document = openapi.document(self.operations, context.settings.version)
        head = b"Content-Type: application/json\r\n" + context.head(request)
        context.respond(request, Response(200, head, self._document))


def _refuse_foreign_page(request: Request) -> None:
    """Browsers let any page send a POST with a plain body; they also say where it came from. PUT and
    DELETE they ask about first, and this server never agrees."""
    headers = request.headers
    site = headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        raise Denied("a page of another origin must not write here")
    origin = headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != headers.get("Host"):
        raise Denied("a page of another origin must not write here")
