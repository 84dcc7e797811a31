"""What a client says last: that it has all its answers, so that the store need not keep them.

Every write acknowledges the ones before it, so the last one's result would stay for the session's lifetime.
One request to one node names the shards that hold results. It is made for the store's sake alone: nothing
depends on it, and it fails without a word.
"""

from __future__ import annotations

import json

from kvstore.client import codec
from kvstore.client.exchange import Event, Request, Send
from kvstore.client.plan import Core, Plan

FAREWELL_S = 0.5
"""The most that closing a client waits for it."""
BACKGROUND_S_MAX = 2.0
"""How long closing a client waits for what is given back in the background."""


def farewell(core: Core) -> Plan[None]:
    """Acknowledge what the present session has finished. Asks the node that answered it last."""
    session = core.sessions.current
    if session is None or session.answered_by is None or not session.shards:
        return
    headers = {
        "Content-Type": "application/json",
        "KV-Timeout": codec.milliseconds(FAREWELL_S),
        "KV-Session": session.name,
        "KV-Sequence": str(session.next_sequence),
        "KV-Acked-Below": str(session.acked_below),
    }
    body = json.dumps({"ops": [], "shards": sorted(session.shards)}).encode()
    session.shards.clear()
    event: Event = yield Send(session.answered_by, Request("POST", "/v1/batch", headers, body), FAREWELL_S)
    del event
