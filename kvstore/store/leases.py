"""Leases on their home shard, and the tie of a key to a lease.

A lease lives on one shard, its home, which alone decides when it ends. Each grant of an id has a generation
of its own, so that what is said about one grant never touches another of the same id (schedule 43).

| record | content |
|---|---|
| `l` 0, id | a living lease (`Lease`) |
| `l` 1, generation, shard | empty; keys of the grant may lie on that shard |
| `l` 2 | the last generation given out here |
| `l` 3, generation | `[id, kind, count]`: the grant has ended, so many shards may still hold keys of it |
| `k` length of id, id, generation, key | on its keys' shard: empty, or `RESERVED` by a transaction |
| `n` length of id, id, generation | empty, on a key's shard: the grant has ended, attach nothing to it |

A key on another shard is attached in two steps: first that shard is registered at home, then the put names
the grant and, in the clock of its own shard, a not-after. It is refused past that, and when the grant has
left an end mark, which outlives every not-after that may be on its way. So whatever is attached is found by
the end (`lease_ends`), however late messages are.

A transaction over shards ties its keys when it is decided, but what it ties them to is settled by its vote:
the vote reserves the key under the grant. An end that comes between finds the reservation, is not finished
while the key is held, and deletes what the decision has put.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from kvstore.store import deadlines, keys, lease_commands
from kvstore.store.draft import Draft
from kvstore.store.results import LEASE_NOT_FOUND, OK, PRECONDITION_FAILED, REFUSED, Result

REVOKED: Final = 1
EXPIRED: Final = 2
"""Kinds of end."""

AHEAD_MS_MAX: Final = 60_000
"""A not-after further ahead comes from a node whose idea of the clock is wrong."""
RESERVED: Final = b"\x01"
TIED: Final = "tied"
"""Option of a put in a prepared transaction: what `claim` has said. Never in an entry."""
RENEWAL_SHARE: Final = 4
"""A renewal that moves the deadline by less than one part in so many of the TTL is not worth a write."""

_LEASE: Final = struct.Struct(">QQQBI")


class Lease(NamedTuple):
    generation: int
    ttl_ms: int
    deadline_ms: int
    is_home_used: bool
    """Keys may be attached on the home shard itself."""
    shard_count: int
    """Other shards that are registered."""

    def pack(self) -> bytes:
        return _LEASE.pack(*self)

    @classmethod
    def unpack(cls, record: bytes) -> Lease:
        return cls(*_LEASE.unpack(record))

    def is_worth_renewing(self, clock_ms: int) -> bool:
        return (clock_ms + self.ttl_ms - self.deadline_ms) * RENEWAL_SHARE >= self.ttl_ms


def find(draft: Draft, lease_id: bytes) -> Lease | None:
    record = draft.get(keys.lease(lease_id))
    return None if record is None else Lease.unpack(record)


def _write(draft: Draft, lease_id: bytes, lease: Lease) -> None:
    draft.writes[keys.lease(lease_id)] = lease.pack()


def apply_grant(draft: Draft, op: list[Any]) -> Result:
    """`[GRANT, id, ttl_ms]` -> `[OK, generation]`; PRECONDITION_FAILED while a lease of this id lives."""
    _, lease_id, ttl_ms = op
    if find(draft, lease_id) is not None:
        return [PRECONDITION_FAILED, 0]
    last = draft.get(keys.LEASE_GENERATION)
    generation = 1 + (0 if last is None else int.from_bytes(last, "big"))
    draft.writes[keys.LEASE_GENERATION] = keys.number(generation)
    due_ms = draft.clock_ms + ttl_ms
    _write(draft, lease_id, Lease(generation, ttl_ms, due_ms, False, 0))
    deadlines.set_deadline(draft, due_ms, deadlines.LEASE, lease_id)
    return [OK, generation]


def apply_renew(draft: Draft, op: list[Any]) -> Result:
    """`[RENEW, [id, ...]]` -> `[OK, [[ttl_ms, ms left] or None: no such lease, ...]]`."""
    clock_ms = draft.clock_ms
    answers: list[list[int] | None] = []
    for lease_id in op[1]:
        lease = find(draft, lease_id)
        if lease is None:
            answers.append(None)
            continue
        due_ms = lease.deadline_ms
        if lease.is_worth_renewing(clock_ms):
            deadlines.remove_deadline(draft, due_ms, deadlines.LEASE, lease_id)
            due_ms = clock_ms + lease.ttl_ms
            _write(draft, lease_id, lease._replace(deadline_ms=due_ms))
            deadlines.set_deadline(draft, due_ms, deadlines.LEASE, lease_id)
        answers.append([lease.ttl_ms, max(0, due_ms - clock_ms)])
    return [OK, answers]


def apply_revoke(draft: Draft, op: list[Any]) -> Result:
    """`[REVOKE, id, generation]` -> `[OK, generation]`: that grant has ended, now or before.
    LEASE_NOT_FOUND if `generation` is 0, no grant's."""
    _, lease_id, generation = op
    if not generation:
        return [LEASE_NOT_FOUND]
    lease = find(draft, lease_id)
    if lease is not None and lease.generation == generation:
        end(draft, lease_id, lease, REVOKED)
    return [OK, generation]


def expire(draft: Draft, due_ms: int, lease_id: bytes) -> bool:
    """The handler of a lease's deadline."""
    lease = find(draft, lease_id)
    assert lease is not None, "a deadline of no lease"
    assert lease.deadline_ms == due_ms, "a lease has one deadline"
    end(draft, lease_id, lease, EXPIRED)
    return True


def end(draft: Draft, lease_id: bytes, lease: Lease, kind: int) -> None:
    """From here on the lease is not found. Its keys go shard by shard, see `lease_ends`."""
    draft.writes[keys.lease(lease_id)] = None
    deadlines.remove_deadline(draft, lease.deadline_ms, deadlines.LEASE, lease_id)
    if lease.is_home_used or lease.shard_count:
        count = lease.shard_count + lease.is_home_used
        draft.writes[keys.ended_grant(lease.generation)] = lease_commands.pack([lease_id, kind, count])
        draft.ends.open_count += 1


def apply_attach(draft: Draft, op: list[Any]) -> Result:
    """`[ATTACH, id, generation, shard]` -> `[OK, generation]`: the shard is registered for that grant."""
    _, lease_id, generation, shard = op
    lease = find(draft, lease_id)
    if lease is None or lease.generation != generation:
        return [LEASE_NOT_FOUND]
    registered = keys.lease_shard(generation, shard)
    if draft.get(registered) is None:
        draft.writes[registered] = b""
        _write(draft, lease_id, lease._replace(shard_count=lease.shard_count + 1))
    return [OK, generation]


def apply_shard_done(draft: Draft, op: list[Any]) -> Result:
    """`[SHARD_DONE, [[generation, shard], ...]]` -> `[OK]`: the shards have
    deleted all keys of these grants."""
    for generation, shard in op[1]:
        ended, registered = keys.ended_grant(generation), keys.lease_shard(generation, shard)
        record = draft.get(ended)
        if record is None or draft.get(registered) is None:
            continue
        draft.writes[registered] = None
        lease_id, kind, count = lease_commands.unpack(record)
        if count > 1:
            draft.writes[ended] = lease_commands.pack([lease_id, kind, count - 1])
        else:
            draft.writes[ended] = None
            draft.ends.open_count -= 1
    return [OK]


def refusal_of(draft: Draft, options: Mapping[str, Any]) -> Result | None:
    """Why a put with these options can not be tied to the lease that they name, else None."""
    generation = options.get("lease_generation")
    if generation is None:
        return [LEASE_NOT_FOUND] if find(draft, options["lease"]) is None else None
    if not generation:
        return [LEASE_NOT_FOUND]
    not_after_ms = options["lease_until_ms"]
    is_in_time = draft.clock_ms <= not_after_ms <= draft.clock_ms + AHEAD_MS_MAX
    if not is_in_time or draft.get(keys.lease_mark(options["lease"], generation)) is not None:
        draft.has_refused = True
        return [REFUSED]
    return None


def claim(draft: Draft, options: Mapping[str, Any]) -> tuple[bytes | None, Result | None]:
    """What ties a put to the lease that its options name, as kept in the key's head; or why it can't be."""
    refusal = refusal_of(draft, options)
    return (None, refusal) if refusal is not None else (_tie(draft, options), None)


def _tie(draft: Draft, options: Mapping[str, Any]) -> bytes:
    lease_id: bytes = options["lease"]
    generation = options.get("lease_generation")
    if generation is None:
        lease = find(draft, lease_id)
        assert lease is not None, "a tie to no lease"
        generation = lease.generation
        if not lease.is_home_used:
            draft.writes[keys.lease_shard(generation, keys.HOME_SHARD)] = b""
            _write(draft, lease_id, lease._replace(is_home_used=True))
    return keys.number(generation) + lease_id


def reserve(draft: Draft, key: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
    """Have the end of a put's lease wait for the transaction that will, or will not, put the key. The options
    with which the put is carried out, whatever has become of the lease by then."""
    packed = _tie(draft, options)
    record_key = keys.leased_key(packed[8:], packed[:8], key)
    if draft.get(record_key) is None:
        draft.writes[record_key] = RESERVED
    kept = {name: value for name, value in options.items() if not name.startswith("lease")}
    return kept | {TIED: packed}


def let_go(draft: Draft, key: bytes, packed: bytes) -> None:
    """The transaction is decided: a key that is tied only if its put is carried out is not tied now."""
    record_key = keys.leased_key(packed[8:], packed[:8], key)
    if draft.get(record_key) == RESERVED:
        draft.writes[record_key] = None


def attach(draft: Draft, packed: bytes, key: bytes) -> None:
    draft.writes[keys.leased_key(packed[8:], packed[:8], key)] = b""


def detach(draft: Draft, packed: bytes, key: bytes) -> None:
    draft.writes[keys.leased_key(packed[8:], packed[:8], key)] = None


APPLY: Final[dict[int, Callable[[Draft, list[Any]], Result]]] = {
    lease_commands.GRANT: apply_grant,
    lease_commands.RENEW: apply_renew,
    lease_commands.REVOKE: apply_revoke,
    lease_commands.ATTACH: apply_attach,
    lease_commands.SHARD_DONE: apply_shard_done,
}
