"""Which node to ask: shard ranges, leaders and addresses as last learnt, and which nodes failed lately.

A route is a hint. Any node answers any request, so a wrong or missing hint costs a hop, never an error.
Pure: times come in as arguments.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kvstore.client.codec import Garbled
from kvstore.errors import InvalidArgument

ROUTES_AGE_S_MAX = 60.0
"""Routes are fetched anew after this time even if nothing has gone wrong."""
FETCH_GAP_S_MIN = 0.2
"""While routes keep failing they are not fetched more often than this."""
SHUN_S_MIN = 0.5
SHUN_S_MAX = 30.0
CLOCK_AGE_S_MAX = 60.0
"""A shard clock learnt longer ago is not sent as `KV-Since`: it could be too old to prove anything."""


class Shard(NamedTuple):
    id: int
    start: int
    """First token that it owns."""
    leader: str | None
    """Node id, if one was known."""


class _Shunned(NamedTuple):
    until: float
    failure_count: int


def address_of(endpoint: str) -> str:
    """Return "host:port" of an endpoint as users write it: "host:port" or "http://host:port/".

    Raises:
        InvalidArgument: it is neither, or asks for TLS, which this version does not speak.
    """
    text = endpoint.strip()
    if text.startswith("https://"):
        raise InvalidArgument(f"endpoint {endpoint!r}: TLS is not supported by this version")
    text = text.removeprefix("http://").rstrip("/")
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"endpoint {endpoint!r}: expected HOST:PORT")
    return text


class Routes:
    def __init__(self, endpoints: Sequence[str]) -> None:
        if not endpoints:
            raise InvalidArgument("at least one endpoint is needed")
        self._seeds = tuple(dict.fromkeys(address_of(each) for each in endpoints))
        self._addresses = self._seeds
        self._nodes: dict[str, str] = {}
        self._shards: list[Shard] = []
        self._starts: list[int] = []
        self._leaders: dict[int, str] = {}
        self._clocks: dict[int, tuple[int, float]] = {}
        self._shunned: dict[str, _Shunned] = {}
        self.epoch: str | None = None
        self._fetched_at: float | None = None
        self._asked_at: float | None = None
        self._is_doubted = False
        self._turn = 0

    # What the plans ask.

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    def is_fetch_due(self, now: float) -> bool:
        """True when someone should fetch `/v1/routes`; asking counts as the attempt, so that of many
        concurrent calls only one does it."""
        if self._asked_at is not None and now - self._asked_at < FETCH_GAP_S_MIN:
            return False
        is_fresh = self._fetched_at is not None and now - self._fetched_at < ROUTES_AGE_S_MAX
        if is_fresh and not self._is_doubted:
            return False
        self._asked_at = now
        return True

    def shard_of(self, key: bytes) -> int | None:
        """Return the shard that owns the key, or None while no routes are known."""
        if not self._starts:
            return None
        from kvstore.placement import token_of  # one-shot clients never route

        return self._shards[bisect_right(self._starts, token_of(key)) - 1].id

    def leader_of(self, shard: int) -> str | None:
        """Return the address of the shard's leader, or None."""
        node = self._leaders.get(shard)
        return None if node is None else self._nodes.get(node)

    def clock_of(self, shard: int, now: float) -> int | None:
        """Return a shard clock that was true some seconds ago, or None."""
        known = self._clocks.get(shard)
        return None if known is None or now - known[1] > CLOCK_AGE_S_MAX else known[0]

    def order(self, shard: int | None, now: float) -> list[str]:
        """Return all addresses, best first: the shard's leader, the others in turn, those that failed
        lately last."""
        leader = None if shard is None else self.leader_of(shard)
        self._turn += 1
        at = self._turn % len(self._addresses)
        ranked = [*self._addresses[at:], *self._addresses[:at]]
        if leader is not None:
            ranked.sort(key=lambda address: address != leader)
        if self._shunned:
            ranked.sort(key=lambda address: self._shunned_until(address, now))
        return ranked

    def is_shunned(self, address: str, now: float) -> bool:
        return bool(self._shunned) and self._shunned_until(address, now) > 0

    def _shunned_until(self, address: str, now: float) -> float:
        shunned = self._shunned.get(address)
        return 0.0 if shunned is None or shunned.until <= now else shunned.until

    # What the plans tell.

    def doubt(self) -> None:
        """Something did not go where the routes said: fetch them anew before the next attempt."""
        self._is_doubted = True

    def note_failure(self, address: str, now: float) -> None:
        """The node did not answer: ask it last for a while, longer each time. It leads nothing."""
        before = self._shunned.get(address)
        failure_count = 1 if before is None else before.failure_count + 1
        shun_s = min(SHUN_S_MAX, SHUN_S_MIN * (1 << min(failure_count - 1, 10)))
        self._shunned[address] = _Shunned(now + shun_s, failure_count)
        self._is_doubted = True

    def note_answer(self, address: str) -> None:
        self._shunned.pop(address, None)

    def learn_clock(self, shard: int, clock_ms: int, now: float) -> None:
        known = self._clocks.get(shard)
        if known is None or clock_ms >= known[0]:
            self._clocks[shard] = (clock_ms, now)

    def forget_clock(self, shard: int) -> None:
        """The store called what we knew too old to prove anything."""
        self._clocks.pop(shard, None)

    def learn_leader(self, shard: int, node: str, address: str) -> None:
        """Take over what a node said about one shard. Raises InvalidArgument for a bad address."""
        self._nodes[node] = address_of(address)
        self._leaders[shard] = node

    def forget_leader(self, shard: int) -> None:
        self._leaders.pop(shard, None)
        self._is_doubted = True

    def learn(self, routes: Mapping[str, Any], now: float) -> None:
        """Take over the answer of `/v1/routes`. Raises Garbled, and then changes nothing."""
        try:
            shards = sorted((_shard(each) for each in routes["shards"]), key=lambda shard: shard.start)
            nodes = {str(node["id"]): address_of(str(node["client"])) for node in routes["nodes"]}
            epoch = routes["epoch"]
        except (KeyError, TypeError, ValueError, InvalidArgument) as error:
            raise Garbled(f"routes: {error!r}") from error
        if not shards or shards[0].start != 0:
            raise Garbled("routes: no shard owns the first token")
        self._shards, self._starts = shards, [shard.start for shard in shards]
        self._nodes = nodes
        self._leaders = {shard.id: shard.leader for shard in shards if shard.leader is not None}
        self._addresses = tuple(dict.fromkeys([*nodes.values(), *self._seeds]))
        self.epoch = str(epoch)
        self._fetched_at, self._is_doubted = now, False
        for each in routes["shards"]:
            if isinstance(clock_ms := each.get("clock_ms"), int):
                self.learn_clock(int(each["id"]), clock_ms, now)


def _shard(fields: Mapping[str, Any]) -> Shard:
    leader = fields.get("leader")
    return Shard(int(fields["id"]), int(str(fields["start"]), 16), None if leader is None else str(leader))
