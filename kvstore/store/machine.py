"""The replicated state machine of one replica: entries in, results out, a tablet underneath.

The host that owns the replica drives it from one thread:

- `apply` takes committed entries in order, each index exactly once. All of them become one engine write,
  together with the applied index, term, configuration, revision, clock, sessions and state hash: whatever
  a crash leaves behind is a tablet as it was after some entry, and says after which one.
- `flush` and `checkpoint` do their blocking part in a thread. The log may be cut only up to
  `durable_applied`.

Apply is deterministic: entry and replicated state, nothing else. A failure that is part of an op's meaning
is a result. A full disk is raised as `DiskFull`: nothing of the draft is in and the same entries may
be applied again. Anything else is `Fatal` (`Corrupt` if the tablet is damaged):
nothing of the draft is in, and this replica must stop.

What it does not do: read a clock, know about Raft beyond the entry, decide what a caller may do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from kvstore.errors import Corrupt, DiskFull, Fatal
from kvstore.raft.messages import CONFIGURATION, NORMAL, Configuration, Entry, SnapshotMeta
from kvstore.store import commands, keys, mvcc, queries, records
from kvstore.store.apply import NOWHERE, apply_ops, run_ops
from kvstore.store.compaction import Compaction
from kvstore.store.deadlines import Deadlines
from kvstore.store.draft import Draft
from kvstore.store.engine import Engine, Engines
from kvstore.store.heads import HeadBudget, Heads
from kvstore.store.intents import Intents
from kvstore.store.lease_hints import Ends
from kvstore.store.limits import StoreLimits
from kvstore.store.records import Meta
from kvstore.store.results import CommandResult
from kvstore.store.sessions import Sessions
from kvstore.types import ClockMs, LogIndex, Revision, Term

_encode = msgspec.msgpack.Encoder().encode
_decode = _decode_payload = msgspec.msgpack.Decoder().decode
_decode_shell = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_configuration = msgspec.msgpack.Decoder(Configuration).decode
_DEFAULT_LIMITS = StoreLimits()
_NOTHING: dict[bytes, bytes | None] = {}


class Machine:
    """Opens on what the engine holds; an empty engine needs `bootstrap` or an installed snapshot.

    `limits` are the ones this node is configured for. They do nothing by themselves, see
    `limits_to_propose`. `budget` bounds the small records kept in memory for hot keys.
    """

    def __init__(
        self, engine: Engine, limits: StoreLimits = _DEFAULT_LIMITS, budget: HeadBudget | None = None
    ) -> None:
        self._engine = engine
        self._heads = Heads(engine, budget or HeadBudget(4096))
        self._wanted_limits = limits
        self._sessions = Sessions(engine)
        self._compaction = Compaction()
        self._deadlines = Deadlines(engine)
        self.intents = Intents(engine)
        """Only to look at: which keys are held, and which transactions are open."""
        self._ends = Ends(engine)
        self._failure: str | None = None
        meta, configuration, stored_limits = engine.get_many([keys.META, keys.CONFIGURATION, keys.LIMITS])
        self.is_empty = meta is None
        self._meta = Meta() if meta is None else Meta.unpack(meta)
        self.configuration = (
            Configuration() if configuration is None else _decode_configuration(configuration)
        )
        self.limits = StoreLimits() if stored_limits is None else records.unpack_limits(stored_limits)
        self.durable_applied = LogIndex(self._meta.applied)
        """The log may be cut up to and including this index. What an engine holds when it is opened is on
        disk; after that only flushes move this."""
        self.keeps_written = False
        self.written: dict[bytes, bytes | None] = {}
        """If wanted: all records that the last apply wrote, by record key, for who waits for one of them."""

    @property
    def applied(self) -> LogIndex:
        return LogIndex(self._meta.applied)

    @property
    def applied_term(self) -> Term:
        return Term(self._meta.applied_term)

    @property
    def revision(self) -> Revision:
        return Revision(self._meta.revision)

    @property
    def clock_ms(self) -> ClockMs:
        return ClockMs(self._meta.clock_ms)

    @property
    def compacted(self) -> Revision:
        """First revision that can still be read."""
        return Revision(self._meta.compacted)

    @property
    def next_deadline_ms(self) -> int | None:
        """No deadline lies before this shard clock; None: there is none. A lower bound."""
        return self._deadlines.next_ms

    @property
    def has_lease_ends(self) -> bool:
        """Leases of this shard have ended, and other shards may still hold keys of theirs."""
        return self._ends.open_count > 0

    @property
    def key_count(self) -> int:
        return self._meta.key_count

    @property
    def state_hash(self) -> int:
        """Equal on all replicas of a shard that have applied the same index."""
        return self._meta.state_hash

    def snapshot_meta(self) -> SnapshotMeta:
        return SnapshotMeta(self.applied, self.applied_term, self.configuration)

    def bootstrap(self, configuration: Configuration) -> None:
        """Make the empty tablet of a new shard's first replicas. Not durable before a flush."""
        assert self.is_empty, "bootstrap of a tablet that holds something"
        self._engine.write(
            {keys.META: self._meta.pack(), keys.CONFIGURATION: _encode(configuration)},
        )
        self.configuration = configuration
        self.is_empty = False

    def apply(self, entries: Sequence[Entry], *, is_asked: bool = True) -> list[list[CommandResult]]:
        """Apply committed entries as one engine write; results per entry, per command. Unless `is_asked`
        there may be fewer.

        Raises: DiskFull (may be repeated), Fatal (this replica must not go on).
        """
        if self._failure is not None:
            raise Fatal(self._failure)
        if not entries:
            return []
        self._check_order(entries)
        configuration = self.configuration
        try:
            heads = self._heads
            # Hot: each command is unpacked when its turn comes, into memory that is in the cache yet.
            decode = _decode_payload if heads.is_cold else _decode_shell
            payloads = [decode(entry.payload) if entry.kind == NORMAL else None for entry in entries]
            if heads.is_cold:
                heads.fetch(mvcc.heads_of(payloads))
            mirrors = (self._deadlines, self.intents, self._sessions)
            draft = Draft(
                self._engine, self._meta, self.limits, heads.young, *mirrors, heads.find, self._ends
            )
            results = []
            for entry, payload in zip(entries, payloads, strict=True):
                draft.term = entry.term
                answers: list[CommandResult] = []
                if payload is not None:
                    answers = self._apply_commands(draft, payload, is_asked=is_asked)
                elif entry.kind == CONFIGURATION:
                    configuration = _decode_configuration(entry.payload)
                    draft.writes[keys.CONFIGURATION] = entry.payload
                draft.finish_entry(entry.index, entry.term)
                results.append(answers)
            meta = draft.meta(entries[-1].index, entries[-1].term)
            draft.pending[keys.META] = meta.pack()
            self._engine.write(draft.pending)
        except Exception as error:
            self._give_up(entries, error)
            raise
        self._meta = meta
        self.configuration = configuration
        self.limits = draft.limits
        self.is_empty = False
        self.written = draft.pending if self.keeps_written else _NOTHING
        heads.settle(len(draft.pending), draft.large_heads)
        self._sessions.between_drafts()
        return results

    def _check_order(self, entries: Sequence[Entry]) -> None:
        """Refuse a gap, a repetition or a term that goes back, before anything is touched."""
        index, term = self._meta.applied, self._meta.applied_term
        for entry in entries:
            index += 1
            if entry.index != index or entry.term < term:
                raise Fatal(f"entry {entry.index} of term {entry.term} after {index - 1} of term {term}")
            term = entry.term

    def _give_up(self, entries: Sequence[Entry], error: Exception) -> None:
        """Nothing is in the engine: what the mirrors ran ahead must go. All but a full disk is final."""
        self._heads.clear()
        self._sessions.reset()
        self._compaction.reset()
        self._deadlines.reset()
        self.intents.reset()
        self._ends.reset()
        if isinstance(error, DiskFull):
            return
        span = f"entries {entries[0].index} to {entries[-1].index}"
        self._failure = f"cannot apply {span} to {self._engine.directory}: {error!r}"
        raise (Corrupt if isinstance(error, Corrupt) else Fatal)(self._failure) from error

    def _apply_commands(self, draft: Draft, payload: list[Any], *, is_asked: bool) -> list[CommandResult]:
        """`payload` is decoded whole, or its parts are `msgspec.Raw`."""
        parts = iter(payload) if type(payload[0]) is int else map(_decode, payload)
        draft.clock_ms = max(draft.clock_ms, next(parts))
        answers: list[CommandResult] = []
        intents = self.intents
        for command in parts:
            if command[0] is not None:
                answers.append(self._sessions.run(draft, command))
                continue
            del command[0]
            if intents.locks and intents.meets(draft, command):
                answers.append(intents.locked(command))
            elif is_asked:
                answers.append(CommandResult(False, apply_ops(draft, command)))
            else:
                # Made and dropped at once: a follower would only keep them cold.
                run_ops(draft, command, NOWHERE)
        self._compaction.step(draft, draft.close_changes())
        self._sessions.expire(draft)
        return answers

    def query(self, query: list[Any]) -> Any:
        """Answer a read from the applied state, see `queries`. Present values of keys go by the hot heads.

        Raises: Compacted, RevisionInFuture, InvalidArgument; Fatal or Corrupt if the tablet fails."""
        name = query[0]
        if name == "wait" or (name == "get" and (len(query) == 2 or query[2] is None)):
            head = self._heads.get(b"h" + query[1])
            return None if head is None else records.item(head)
        if name == "gets":
            found = self._heads.get_all([b"h" + key for key in query[1]])
            return [None if head is None else records.item(head) for head in found]
        return queries.run(self._engine, self._meta, query)

    def limits_to_propose(self) -> bytes | None:
        """A command that brings this node's configured limits into the shard, None if they are in force.
        To be proposed by a leader, once it has applied its term's first entry."""
        if self.limits == self._wanted_limits:
            return None
        return commands.encode(None, [commands.set_limits(self._wanted_limits)])

    def flush(self) -> Callable[[], LogIndex]:
        """Call on the loop; run what it returns in a thread. That makes everything applied up to now durable,
        advances `durable_applied` and returns it.

        Raises (the returned function): DiskFull, Fatal.
        """
        captured = self.applied

        def work() -> LogIndex:
            self._engine.flush()
            self.durable_applied = max(self.durable_applied, captured)
            return self.durable_applied

        return work

    def checkpoint(self, directory: str) -> SnapshotMeta:
        """Copy the tablet to `directory` (absent yet), blocking, safe in a thread beside `apply`.

        The meta that comes back is read from the copy itself: by now this tablet may be further.
        Raises: DiskFull, Fatal.
        """
        self._engine.checkpoint(directory)
        return read_snapshot_meta(self._engine.engines, directory)

    def byte_count(self) -> int:
        return self._engine.byte_count()

    def close(self) -> None:
        self._engine.close()


def read_snapshot_meta(engines: Engines, directory: str) -> SnapshotMeta:
    """What the closed tablet in `directory` stands for, by its own records.

    Raises: Corrupt if it is not a complete tablet.
    """
    meta, configuration = engines.read(directory, [keys.META, keys.CONFIGURATION])
    if meta is None or configuration is None:
        raise Corrupt(f"{directory} holds no complete tablet")
    stand = Meta.unpack(meta)
    return SnapshotMeta(
        LogIndex(stand.applied), Term(stand.applied_term), _decode_configuration(configuration)
    )
