"""What all simulated clients share: whom they ask, how they repeat, and the pace at which they go.

A caller talks like the shipped client: it carries a session, repeats an unknown outcome with the same
identity at another node until its deadline, and then records "unknown". Callers without an identity
never send a write twice. Each kind of client is a subclass in a file of its own, see `crowd.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

import msgspec

from chaos.history import Outcome
from kvstore.node.requests import Request, Response
from kvstore.types import NodeId, ShardId
from tests.sim.cluster import SimCluster

DEADLINE_S = 5.0
ATTEMPT_S = 1.5
THINK_S = 0.1
HURRY_S = 0.02

parse = msgspec.json.decode


class Ask(NamedTuple):
    """One request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""


Done = Callable[[Outcome, Response | None], None]
"""`refused`: surely not done. `unknown`: nobody can tell. `ok`: there is an answer, of whatever status."""


class Caller:
    """One sequential client. Kinds of client define `ask_next`, which must lead to `finished` in the end."""

    def __init__(self, cluster: SimCluster, number: int, dice: Random) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self.dice = dice
        self.is_identified = number % 2 == 0
        self.session = f"{dice.getrandbits(128):032x}"
        self.sequence = 0
        self.is_stopped = False
        self.is_reader = False
        """It can go on when it `may_only_read`."""
        self.late_share = 0.0
        """Of the identified writes, how many come once more, late, from wherever they were held up."""
        self.loyalty = 0.0
        """How often it asks the node it asked before."""
        self.home: NodeId | None = None
        self.wants_leader_of: ShardId | None = None
        """Whose leader it looks for when it needs a new node, as a client with routes does."""
        self.attempt_s, self.deadline_s = ATTEMPT_S, DEADLINE_S
        """How long it waits for one answer, and how long it goes on asking."""

    # ---- for each kind of client -----------------------------------------------------------------

    def ask_next(self) -> None:
        """Begin the next operation."""
        raise NotImplementedError

    def judge(self) -> list[str]:
        """What it found wrong with the answers, when all is over. Histories are judged elsewhere."""
        return []

    # ---- pace ------------------------------------------------------------------------------------

    def start(self) -> None:
        self.world.after(self.dice.uniform(0, 0.2), self._next)

    def _next(self) -> None:
        if self.is_stopped:
            return
        if self.is_reader or not self.may_only_read():
            wait_s = self.cluster.lull_until - self.world.now
            if wait_s <= 0:
                self.ask_next()
                return
        else:
            wait_s = 0.05
        self.world.after(wait_s + self.dice.uniform(0, 0.05), self._next)

    def may_only_read(self) -> bool:
        return self.world.now < self.cluster.reads_only_until

    def finished(self) -> None:
        """After something has gone wrong everybody hurries: that is when answers may be wrong."""
        think_s = HURRY_S if self.world.now < self.cluster.hurry_until else THINK_S
        self.world.after(self.dice.uniform(0, think_s), self._next)

    # ---- whom to ask -----------------------------------------------------------------------------

    def node(self) -> NodeId:
        if self.home is None or self.dice.random() >= self.loyalty:
            self.home = self._new_home()
        return self.home

    def _new_home(self) -> NodeId:
        if self.wants_leader_of is not None:
            leader = self.cluster.leader_of(self.wants_leader_of)
            if leader is not None:
                return leader.name
        return self.dice.choice(self.cluster.config.node_ids())

    def patience_s(self) -> float:
        """How long it waits for an answer to what it asks now."""
        return self.attempt_s

    def disappointed(self) -> None:
        """The node did not answer well: try others, now and then."""
        if self.dice.random() < 0.5:
            self.home = None

    def identify(self, ask: Ask) -> Ask:
        """Number a write of an identified client."""
        if not self.is_identified:
            return ask
        self.sequence += 1
        identity = {
            "KV-Session": self.session,
            "KV-Sequence": str(self.sequence),
            "KV-Acked-Below": str(self.sequence),
        }
        return ask._replace(headers=ask.headers | identity)


class Attempt:
    """One operation, sent as often as is safe. `done` is called once. `node` is the one asked last."""

    def __init__(self, caller: Caller, ask: Ask, done: Done) -> None:
        self.caller = caller
        self.is_write = ask.method != "GET"
        self.ask = caller.identify(ask) if self.is_write else ask
        self.done = done
        self.patience_s = caller.patience_s()
        self.deadline = caller.world.now + caller.deadline_s
        self.number = 0
        self.is_over = False
        self.was_unknown = False
        self.node = NodeId("")
        self._request: Request | None = None

    def hang_up(self) -> None:
        """Close the connection, and ask no more."""
        if not self.is_over:
            self.caller.cluster.hang_up(self.node, self._request)
            self._end("unknown", None)

    def send(self) -> None:
        caller, world = self.caller, self.caller.world
        self.number += 1
        number = self.number
        self.node = caller.node()
        delay = caller.dice.uniform(0.0002, 0.002)
        world.after(delay, self._arrive, self.node, number)
        if self.is_write and caller.is_identified and caller.dice.random() < caller.late_share:
            world.after(caller.dice.uniform(0, 6), self._arrive, caller.node(), 0)
            # It may be carried out after all others were refused.
            self.was_unknown = True
        world.after(self.patience_s + min(0.2, self.patience_s), self._on_answer, None, number)

    def _arrive(self, node: NodeId, number: int) -> None:
        caller, ask = self.caller, self.ask

        def answered(response: Response | None) -> None:
            delay = caller.dice.uniform(0.0002, 0.002)
            caller.world.after(delay, self._on_answer, response, number)

        headers = ask.headers | {"KV-Timeout": f"{int(self.patience_s * 1000)}ms"}
        request = caller.cluster.request(node, ask.method, ask.target, headers, ask.body, answered)
        if number == self.number:
            self._request = request

    def _on_answer(self, response: Response | None, number: int) -> None:
        if self.is_over or number != self.number:
            return
        caller = self.caller
        if response is None or response.status == 504:
            self.was_unknown = self.was_unknown or self.is_write
            self._retry_or_end("unknown", not self.is_write or caller.is_identified)
        elif response.status in (429, 503, 507):
            caller.cluster.states["disk full"] += response.status == 507
            self._retry_or_end("unknown" if self.was_unknown else "refused", True)
        else:
            self._end("ok", response)

    def _retry_or_end(self, outcome: Outcome, may_retry: bool) -> None:
        caller = self.caller
        caller.disappointed()
        if may_retry and caller.world.now < self.deadline:
            self.number += 1
            caller.world.after(caller.dice.uniform(0.01, 0.2), self.send)
        else:
            self._end(outcome, None)

    def _end(self, outcome: Outcome, response: Response | None) -> None:
        self.is_over = True
        if response is not None and "Idempotency-Replayed" in response.headers:
            self.caller.cluster.states["replayed session result"] += 1
        said = b"" if response is None else response.body
        self.caller.world.stir(b"%d %a %b" % (self.caller.number, outcome, said))
        self.done(outcome, response)
