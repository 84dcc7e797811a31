"""Fair queues for locks and elections: who holds a name, who waits for it, in which order.

A queue lies in the tablet of the shard of its name's key. Its first entry is the holder. While there is
one, the key is present and has the holder's value; the put that made it the holder has the *fence* as its
revision, so fences of a name only grow. When the holder goes, the same op writes the key for the next
one, or deletes it.

| record | content |
|---|---|
| `q` length of name, name | MP: order of the holder, last order given, count of entries |
| `q` length of name, name, order | MP: an entry |
| `u` length of name, name, claim | MP: the mark of a claim |

**Nobody unknown may hold a name** (pitfall 44). An ENTER that arrives late, after its caller was told that
it does not wait any more, must not take a place:

- It is refused when the shard clock has passed its not-after.
- Until then a mark stays that makes it void: of the attempts that were given up, up to a not-after. A
  request that comes again (a later attempt, its not-after is higher) may enter anew.
- A claim whose name was granted and has been given back or lost is over: it enters no more.
- Who gives up names its attempt. An entry goes with the last attempt that joined it: another may have been
  told that it holds. Not-afters do not tell which came later; they are guesses of different nodes.

**Deadlines.** A waiting entry ends a little after its wait. When its turn comes, the caller's node has
`PICKUP_MS` to take the grant, by sending its ENTER again; from there the entry lasts its TTL, and each RENEW
sets that anew. All of it counts in the shard clock and is carried out by EXPIRE ops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from kvstore.store import deadlines, keys, lock_commands, mvcc, records
from kvstore.store.draft import Draft
from kvstore.store.engine import Engine
from kvstore.store.records import CHANGE_DELETE, CHANGE_EXPIRE
from kvstore.store.results import IDENTITY_MISMATCH, LOCK_LOST, OK, QUEUE_FULL, REFUSED, Result

ENTRIES_MAX: Final = 1000
"""Of one queue, the holder included."""
AHEAD_MS_MAX: Final = 60_000
"""How far beyond clock and wait a not-after may lie: as long as that a mark may have to stay."""
LATE_MS: Final = 5_000
"""A waiting entry outlives its wait by this, so that its node withdraws it first."""
PICKUP_MS: Final = 10_000
ATTEMPTS_MAX: Final = 16
"""Of one entry; the oldest are forgotten."""
RELEASED: Final = 1
EXPIRED: Final = 2
OVER_MS: Final = 60_000
"""How long it is known that a claim is over."""

_encode = msgspec.msgpack.Encoder().encode


class Entry(msgspec.Struct, array_like=True):
    claim: bytes
    not_after_ms: int
    """The highest of all attempts that joined or were given up."""
    attempts: list[int]
    """Who joined and has not given up."""
    ttl_ms: int
    due_ms: int
    fence: int
    """0 while it waits."""
    is_taken: bool
    """Its caller's node has seen the grant."""
    value: bytes

    def join(self, attempt: int) -> None:
        if attempt not in self.attempts:
            self.attempts = [*self.attempts[1 - ATTEMPTS_MAX :], attempt]

    def part(self, attempt: int) -> None:
        self.attempts = [each for each in self.attempts if each != attempt]


class Mark(msgspec.Struct, array_like=True):
    order: int
    """Of the claim's entry; 0: it has none."""
    void_ms: int = 0
    """Attempts up to this not-after were given up."""
    over: int = 0
    """The claim held the name and does no more: `RELEASED` or `EXPIRED`."""
    due_ms: int = 0
    """When the mark goes, while there is no entry."""
    fence: int = 0
    """Of the entry, once it holds: whoever waits for the grant waits for this record to be written."""


_decode_head = msgspec.msgpack.Decoder(tuple[int, int, int]).decode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode
_decode_mark = msgspec.msgpack.Decoder(Mark).decode


class Queue:
    """The queue of one name, as the draft has it."""

    def __init__(self, draft: Draft, name: bytes) -> None:
        self.draft = draft
        self.name = name
        self._prefix = keys.queue(name)
        record = draft.get(self._prefix)
        self.holder, self._last, self.count = (0, 0, 0) if record is None else _decode_head(record)

    # ---- records ---------------------------------------------------------------------------------

    def entry(self, order: int) -> Entry | None:
        record = self.draft.get(self._prefix + keys.number(order))
        return None if record is None else _decode_entry(record)

    def mark(self, claim: bytes) -> Mark | None:
        record = self.draft.get(keys.claim_mark(self.name, claim))
        return None if record is None else _decode_mark(record)

    def claimed(self, claim: bytes) -> tuple[Mark | None, Entry | None]:
        """A claim's mark, and the entry that it leads to."""
        mark = self.mark(claim)
        return mark, self.entry(mark.order) if mark is not None and mark.order else None

    def _write_head(self) -> None:
        head = (self.holder, self._last, self.count)
        self.draft.writes[self._prefix] = _encode(head) if self.count else None

    def write(self, order: int, entry: Entry) -> None:
        self.draft.writes[self._prefix + keys.number(order)] = _encode(entry)

    def set_due(self, order: int, entry: Entry, due_ms: int) -> None:
        subject = keys.queue_subject(self.name, keys.number(order))
        if entry.due_ms:
            deadlines.remove_deadline(self.draft, entry.due_ms, deadlines.LOCK_ENTRY, subject)
        entry.due_ms = due_ms
        deadlines.set_deadline(self.draft, due_ms, deadlines.LOCK_ENTRY, subject)
        self.write(order, entry)

    def write_mark(self, claim: bytes, old: Mark | None, new: Mark | None) -> None:
        """Replace a claim's mark; one without an entry goes when it is due."""
        draft, subject = self.draft, keys.queue_subject(self.name, claim)
        if old is not None and old.due_ms:
            deadlines.remove_deadline(draft, old.due_ms, deadlines.LOCK_MARK, subject)
        if new is not None and not new.order:
            deadlines.set_deadline(draft, new.due_ms, deadlines.LOCK_MARK, subject)
        draft.writes[keys.claim_mark(self.name, claim)] = None if new is None else _encode(new)

    # ---- changes ---------------------------------------------------------------------------------

    def add(self, entry: Entry, wait_ms: int) -> int:
        """Put an entry at the end; in an empty queue it holds at once, and its node is there to see it."""
        self._last = order = self._last + 1
        self.count += 1
        left_ms = wait_ms + LATE_MS
        if self.count == 1:
            self._grant(order, entry)
            entry.is_taken, left_ms = True, entry.ttl_ms
        else:
            self.write_mark(entry.claim, None, Mark(order))
        self.set_due(order, entry, self.draft.clock_ms + left_ms)
        self._write_head()
        return order

    def _grant(self, order: int, entry: Entry) -> None:
        self.holder = order
        old = self.draft.head(b"h" + self.name)
        entry.fence, _ = mvcc.write_head(self.draft, self.name, old, entry.value, records.NO_ATTRIBUTES)
        self.write_mark(entry.claim, None, Mark(order, fence=entry.fence))

    def end(self, order: int, entry: Entry, kind: int) -> None:
        """Take an entry out. If it held the name, the next one does, or the key goes with `kind`."""
        self._remove(order, entry, EXPIRED if kind == CHANGE_EXPIRE else RELEASED)
        if order == self.holder:
            self._hand_over(kind)
        self._write_head()

    def _remove(self, order: int, entry: Entry, over: int) -> None:
        self.count -= 1
        self.draft.writes[self._prefix + keys.number(order)] = None
        subject = keys.queue_subject(self.name, keys.number(order))
        deadlines.remove_deadline(self.draft, entry.due_ms, deadlines.LOCK_ENTRY, subject)
        clock_ms = self.draft.clock_ms
        if entry.is_taken:
            due_ms = max(clock_ms, entry.not_after_ms) + OVER_MS
            self.write_mark(entry.claim, None, Mark(0, entry.not_after_ms, over, due_ms))
        elif entry.not_after_ms >= clock_ms:
            due_ms = entry.not_after_ms + 1
            self.write_mark(entry.claim, None, Mark(0, entry.not_after_ms, 0, due_ms))
        else:
            self.write_mark(entry.claim, None, None)

    def _hand_over(self, kind: int) -> None:
        """Grant to the first that still waits; who should have gone by now is passed over."""
        order, self.holder = self.holder, 0
        while self.count:
            order, entry = self._next(order)
            if entry.due_ms > self.draft.clock_ms:
                self._grant(order, entry)
                self.set_due(order, entry, self.draft.clock_ms + min(entry.ttl_ms, PICKUP_MS))
                return
            self._remove(order, entry, EXPIRED)
        mvcc.remove(self.draft, self.name, kind)

    def _next(self, after: int) -> tuple[int, Entry]:
        # Not from the first order on: there lies what was deleted, which costs a step each.
        start = self._prefix + keys.number(after + 1)
        for record_key, record in self.draft.scan(start, self._prefix + b"\xff" * 9):
            return int.from_bytes(record_key[-8:], "big"), _decode_entry(record)
        raise AssertionError(f"the queue of {self.name!r} counts {self.count} entries and has none")

    # ---- answers ---------------------------------------------------------------------------------

    def stand(self, order: int, entry: Entry) -> Result:
        """Where an entry stands. The holder's own node has come: from now on it lasts its TTL."""
        if order != self.holder:
            return [OK, False, self.fence(), entry.due_ms - self.draft.clock_ms]
        if not entry.is_taken:
            entry.is_taken = True
            self.set_due(order, entry, self.draft.clock_ms + entry.ttl_ms)
        return [OK, True, entry.fence, entry.due_ms - self.draft.clock_ms]

    def fence(self) -> int:
        """Of the present holder; 0: there is none."""
        holder = self.entry(self.holder) if self.holder else None
        return 0 if holder is None else holder.fence


def _enter(draft: Draft, op: list[Any]) -> Result:
    """-> `[OK, holds, fence of the holder, ms left of this entry]`; see `results` for refusals."""
    _, name, claim, attempt, ttl_ms, wait_ms, not_after_ms, value = op
    queue = Queue(draft, name)
    mark, entry = queue.claimed(claim)
    is_in_time = draft.clock_ms <= not_after_ms <= draft.clock_ms + wait_ms + AHEAD_MS_MAX
    if mark is not None and entry is not None:
        if (ttl_ms, value) != (entry.ttl_ms, entry.value):
            return [IDENTITY_MISMATCH]
        if attempt not in entry.attempts:
            if not is_in_time or not_after_ms <= entry.not_after_ms:
                return [REFUSED, entry.not_after_ms]
            entry.join(attempt)
            entry.not_after_ms, entry.is_taken = not_after_ms, False
            due_ms = entry.due_ms if entry.fence else draft.clock_ms + wait_ms + LATE_MS
            queue.set_due(mark.order, entry, due_ms)
        return queue.stand(mark.order, entry)
    if mark is not None and mark.over:
        return [LOCK_LOST]
    if not is_in_time or (mark is not None and not_after_ms <= mark.void_ms):
        return [REFUSED, 0 if mark is None else mark.void_ms]
    if queue.count and not wait_ms:
        # A second copy of this very op must not find the name free.
        queue.write_mark(claim, mark, Mark(0, not_after_ms, 0, not_after_ms + 1))
        return [OK, False, queue.fence(), 0]
    if queue.count >= ENTRIES_MAX:
        return [QUEUE_FULL, queue.count]
    if mark is not None:
        queue.write_mark(claim, mark, None)
    entry = Entry(claim, not_after_ms, [attempt], ttl_ms, 0, 0, False, value)
    return queue.stand(queue.add(entry, wait_ms), entry)


def _leave(draft: Draft, op: list[Any]) -> Result:
    """-> `[OK, holds, fence of the holder, ms left, ended]`; `holds`: the grant was kept; `ended`: an entry
    was taken out by this, or by an earlier release."""
    _, name, claim, attempt, not_after_ms, keeps_grant = op
    queue = Queue(draft, name)
    mark, entry = queue.claimed(claim)
    if mark is not None and entry is not None:
        if not_after_ms is not None:
            entry.not_after_ms = max(entry.not_after_ms, not_after_ms)
            if keeps_grant and mark.order == queue.holder:
                entry.join(attempt)
                queue.write(mark.order, entry)
                return [*queue.stand(mark.order, entry), False]
            entry.part(attempt)
            if entry.attempts:
                queue.write(mark.order, entry)
                return [OK, False, queue.fence(), 0, False]
        queue.end(mark.order, entry, CHANGE_DELETE)
        return [OK, False, queue.fence(), 0, True]
    known_void_ms = 0 if mark is None else mark.void_ms
    if not_after_ms is not None and not_after_ms > known_void_ms and not_after_ms >= draft.clock_ms:
        # The ENTER is still on its way, or was refused: it must not arrive after this.
        over = 0 if mark is None else mark.over
        due_ms = max(not_after_ms + 1, 0 if mark is None else mark.due_ms)
        queue.write_mark(claim, mark, Mark(0, not_after_ms, over, due_ms))
    return [OK, False, queue.fence(), 0, mark is not None and mark.over == RELEASED]


def _renew(draft: Draft, op: list[Any]) -> Result:
    """-> `[OK, True, fence, ms left]` or `[LOCK_LOST]`."""
    queue = Queue(draft, op[1])
    mark, entry = queue.claimed(op[2])
    if mark is None or entry is None or mark.order != queue.holder:
        return [LOCK_LOST]
    entry.is_taken = True
    queue.set_due(mark.order, entry, draft.clock_ms + entry.ttl_ms)
    return queue.stand(mark.order, entry)


def expire_entry(draft: Draft, due_ms: int, subject: bytes) -> bool:
    """An entry's time is up: its caller has stopped renewing, or waiting without saying so."""
    name, number = keys.queue_subject_parts(subject)
    if name in draft.intents.locks:
        return False
    queue, order = Queue(draft, name), int.from_bytes(number, "big")
    entry = queue.entry(order)
    # The same EXPIRE may have passed it over already.
    if entry is not None and entry.due_ms == due_ms:
        queue.end(order, entry, CHANGE_EXPIRE)
    return True


def expire_mark(draft: Draft, due_ms: int, subject: bytes) -> bool:
    name, claim = keys.queue_subject_parts(subject)
    queue = Queue(draft, name)
    mark = queue.mark(claim)
    if mark is not None and mark.due_ms == due_ms:
        queue.write_mark(claim, mark, None)
    return True


APPLY: Final[dict[int, Callable[[Draft, list[Any]], Result]]] = {
    lock_commands.ENTER: _enter,
    lock_commands.LEAVE: _leave,
    lock_commands.RENEW: _renew,
}


# ---- reads ---------------------------------------------------------------------------------------


def find_claim(engine: Engine, name: bytes, claim: bytes) -> list[Any] | None:
    """`[fence or 0 while it waits]`, None: the claim has no entry."""
    record = engine.get(keys.claim_mark(name, claim))
    mark = None if record is None else _decode_mark(record)
    return None if mark is None or not mark.order else [mark.fence]


def find_holder(engine: Engine, name: bytes) -> list[Any] | None:
    """`[value, fence, due_ms, how many wait]`, None: nobody holds the name."""
    prefix = keys.queue(name)
    head = engine.get(prefix)
    if head is None:
        return None
    holder, _, count = _decode_head(head)
    record = engine.get(prefix + keys.number(holder))
    if record is None:
        return None
    entry = _decode_entry(record)
    return [entry.value, entry.fence, entry.due_ms, count - 1]
