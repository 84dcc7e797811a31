"""What operators and tools ask: liveness, readiness, metrics, limits and versions, the API's description."""

from __future__ import annotations

import html
from typing import Any

import msgspec

from kvstore.errors import NotReady
from kvstore.node.api.context import Context
from kvstore.node.api.view import Check
from kvstore.node.metrics import CONTENT_TYPE
from kvstore.node.requests import Request, Response
from kvstore.store import lock_commands, lock_queue
from kvstore.wire import api

NO_STORE = b"Cache-Control: no-store\r\n"

LOCK_LIMITS = {
    "ttl_ms_min": lock_commands.TTL_MS_MIN,
    "ttl_ms_max": lock_commands.TTL_MS_MAX,
    "wait_ms_max": lock_commands.WAIT_MS_MAX,
    "value_bytes_max": lock_commands.VALUE_BYTES_MAX,
    "entries_max": lock_queue.ENTRIES_MAX,
}
"""Part of the data format and not configured: every replica must judge by the same."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>kvstore {node}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}}</style>
</head>
<body><h1>kvstore {version}</h1>
<p>Node <b>{node}</b> of cluster <b>{cluster}</b>.</p>
<ul>
<li><a href="/v1/cluster">/v1/cluster</a> health of the cluster</li>
<li><a href="/v1/nodes">/v1/nodes</a>, <a href="/v1/shards">/v1/shards</a> members and shards</li>
<li><a href="/v1/routes">/v1/routes</a> what a client routes by</li>
<li><a href="/v1/info">/v1/info</a> limits and version</li>
<li><a href="/readyz?verbose=1">/readyz</a>, <a href="/livez">/livez</a> health checks</li>
<li><a href="/metrics">/metrics</a> for Prometheus</li>
<li><a href="/v1/openapi.json">/v1/openapi.json</a> the API</li>
</ul>
<pre>curl -X PUT --data-binary hello http://THIS/v1/kv/greeting
curl http://THIS/v1/kv/greeting</pre>
</body></html>
"""


def _answer_checks(context: Context, request: Request, checks: list[Check], query: api.Query) -> None:
    failed = [check for check in checks if not check.is_ok]
    content: dict[str, Any] = {}
    if api.flag_of(query, "verbose"):
        content["checks"] = [
            {"name": check.name, "ok": check.is_ok, "detail": check.detail} for check in checks
        ]
    if failed:
        reasons = "; ".join(f"{check.name}: {check.detail or 'failed'}" for check in failed)
        raise NotReady(reasons, failed=[check.name for check in failed], **content)
    context.respond_content(request, 200, {"status": "ok"} | content, NO_STORE + context.head(request))


def livez(context: Context, request: Request, query: api.Query) -> None:
    _answer_checks(context, request, context.view.liveness(), query)


def readyz(context: Context, request: Request, query: api.Query) -> None:
    _answer_checks(context, request, context.view.readiness(), query)


def metrics(context: Context, request: Request, query: api.Query) -> None:
    body = context.metrics.exposition()
    context.respond(request, Response(200, CONTENT_TYPE + NO_STORE + context.head(request), body))


def info(context: Context, request: Request, query: api.Query) -> None:
    settings, view = context.settings, context.view
    content = {
        "version": settings.version,
        "api": "v1",
        "node": view.me,
        "cluster": settings.cluster,
        "limits": msgspec.structs.asdict(settings.limits),
        "sessions": {"window": settings.session_window, "lifetime_s": settings.session_lifetime_s},
        "timeouts": {"request_s": settings.request_s},
        "locks": LOCK_LIMITS,
        **view.facts(),
    }
    context.respond_content(request, 200, content, context.head(request))


def index(context: Context, request: Request, query: api.Query) -> None:
    settings = context.settings
    page = _PAGE.format(
        node=html.escape(context.view.me),
        cluster=html.escape(settings.cluster),
        version=html.escape(settings.version),
    )
    head = (
        b"Content-Type: text/html; charset=utf-8\r\n"
        b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'\r\n"
    )
    context.respond(request, Response(200, head + context.head(request), page.encode()))
