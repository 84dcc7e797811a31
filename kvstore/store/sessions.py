"""Exactly once: what an identified write answered is kept in the tablet, and a retry gets that answer.

A session is one client's line of numbered requests. Per request (session, sequence) one record keeps the
results of its ops by their index in the request, so that a request split over several entries resumes
where it stood. A kept result goes when the client acknowledges it, when it falls out of the window behind
the newest sequence, or after its lifetime; a session goes a lifetime after its last command.

What keeps a write from happening twice although records go:
- a sequence below the session's floor (acknowledged, or out of the window) is never executed;
- `since`, the shard clock when the client first tried: a missing record proves "not applied" only within
  half a lifetime of it, and past that the answer is SESSION_UNKNOWN.

An `Idempotency-Key` is a session of its own with the one sequence 0 and the hash of the request's body.

All of this is replicated state and lives in the tablet; the objects here only mirror it, are built when
first needed, and are dropped whole when a draft fails. Expiry is paced: a few sessions per entry.
"""

from __future__ import annotations

from typing import Any, Final

from kvstore.store import keys, records
from kvstore.store.apply import apply_ops
from kvstore.store.draft import Draft
from kvstore.store.engine import Engine
from kvstore.store.records import SessionHeader
from kvstore.store.results import (
    IDENTITY_MISMATCH,
    REFUSED,
    SESSION_CAP,
    SESSION_UNKNOWN,
    CommandResult,
    Result,
    is_of_txn,
)

SESSION_BYTES: Final = 128
"""What a session counts against the caps besides its kept results."""
EXPIRED_PER_ENTRY: Final = 8
MIRRORED_MAX: Final = 16_384
"""Sessions plus kept results mirrored in memory, checked between drafts."""

_NEVER: Final = 1 << 64


class Session:
    """Mirror of one session's records."""

    __slots__ = ("counted_bytes", "exists", "floor", "kept", "kept_bytes", "newest", "principal", "used_ms")

    def __init__(self, principal: bytes) -> None:
        self.exists = False
        self.floor = 0
        self.newest = 0
        self.used_ms = 0
        self.principal = principal
        self.kept_bytes = SESSION_BYTES
        self.counted_bytes = 0
        """What of `kept_bytes` the tablet's and the principal's sums hold by now."""
        self.kept: dict[int, tuple[int, int]] = {}
        """Sequence to (clock, bytes) of its record, oldest clock first."""

    def header(self) -> bytes:
        return SessionHeader(self.floor, self.newest, self.used_ms, self.kept_bytes, self.principal).pack()


class Sessions:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.reset()

    def reset(self) -> None:
        """Forget the mirrors; the tablet has it all."""
        self._mirrors: dict[bytes, Session] = {}
        self._mirrored_results = 0
        self._bytes_of: dict[bytes, int] | None = None
        self._next_due_ms = 0

    def between_drafts(self) -> None:
        """Bound the memory of the mirrors. Only now does the engine hold everything they say."""
        if len(self._mirrors) + self._mirrored_results > MIRRORED_MAX:
            self._mirrors = {}
            self._mirrored_results = 0

    def run(self, draft: Draft, command: list[Any]) -> CommandResult:
        """Execute what of an identified command has not been executed yet, and answer all of it."""
        session_id, sequence, first_index, acked_below, since_ms, body_hash = command[0][:6]
        principal = command[0][6] if len(command[0]) > 6 else b""
        ops = command[1:]
        session = self._find(draft, session_id, principal)
        if not ops:
            if session.exists:
                self._settle(draft, session_id, session, acked_below, session.newest)
            return CommandResult(False, [])
        is_stale = since_ms is not None and draft.clock_ms - since_ms > draft.limits.session_lifetime_ms // 2
        if sequence < max(session.floor, acked_below) or (is_stale and not session.exists):
            return _all(SESSION_UNKNOWN, ops)
        if sequence in session.kept:
            return self._resume(draft, command, session, is_stale)
        if is_stale:
            return _all(SESSION_UNKNOWN, ops)
        if draft.intents.locks and draft.intents.meets(draft, ops):
            return draft.intents.locked(ops)
        if not session.exists:
            if not self._has_room(draft, principal):
                return _all(SESSION_CAP, ops)
            self._create(draft, session_id, session)
        draft.has_refused = False
        results = apply_ops(draft, ops)
        runs = [[first_index, results]] if not draft.has_refused else _runs(_final(results, first_index))
        if runs:
            self._keep(draft, session_id, session, sequence, body_hash, runs)
        self._settle(draft, session_id, session, acked_below, sequence)
        return CommandResult(False, results)

    def _resume(self, draft: Draft, command: list[Any], session: Session, is_stale: bool) -> CommandResult:
        """A request of which at least a part was executed: do the rest, answer all."""
        session_id, sequence, first_index, acked_below, _, body_hash = command[0][:6]
        ops = command[1:]
        record = draft.get(keys.result(session_id, sequence))
        assert record is not None, "a mirrored result has no record"
        _, kept_hash, runs = records.unpack_result(record)
        if body_hash is not None and kept_hash is not None and body_hash != kept_hash:
            return _all(IDENTITY_MISMATCH, ops)
        known: dict[int, Result] = {
            first + offset: result for first, run in runs for offset, result in enumerate(run)
        }
        missing = [index for index in range(first_index, first_index + len(ops)) if index not in known]
        if not missing:
            self._settle(draft, session_id, session, acked_below, sequence)
            return CommandResult(True, [known[first_index + offset] for offset in range(len(ops))])
        if is_stale:
            fresh: dict[int, Result] = {index: [SESSION_UNKNOWN] for index in missing}
        else:
            draft.has_refused = False
            to_do = [ops[index - first_index] for index in missing]
            if draft.intents.locks and draft.intents.meets(draft, to_do):
                return draft.intents.locked(ops)
            executed = apply_ops(draft, to_do)
            fresh = dict(zip(missing, executed, strict=True))
            final = fresh
            if draft.has_refused:
                final = {index: result for index, result in fresh.items() if result[0] != REFUSED}
            runs = _runs(known | final)
            self._keep(draft, session_id, session, sequence, kept_hash or body_hash, runs)
        self._settle(draft, session_id, session, acked_below, sequence)
        known |= fresh
        return CommandResult(False, [known[first_index + offset] for offset in range(len(ops))])

    def result_of(self, draft: Draft, whose: list[Any]) -> Result | None:
        """What a transaction of this identity answered, or why no other may follow it; None: go ahead.
        `whose` is as in `txn_commands`."""
        session_id, sequence, acked_below, since_ms, body_hash, principal = whose
        session = self._find(draft, session_id, principal)
        is_stale = since_ms is not None and draft.clock_ms - since_ms > draft.limits.session_lifetime_ms // 2
        if sequence < max(session.floor, acked_below):
            return [SESSION_UNKNOWN]
        if sequence in session.kept:
            record = draft.get(keys.result(session_id, sequence))
            assert record is not None, "a mirrored result has no record"
            _, kept_hash, runs = records.unpack_result(record)
            if body_hash is not None and kept_hash is not None and body_hash != kept_hash:
                return [IDENTITY_MISMATCH]
            if runs[0][0] == 0:
                result: Result = runs[0][1][0]
                return result if is_of_txn(result) else [IDENTITY_MISMATCH]
        if is_stale:
            return [SESSION_UNKNOWN]
        if not session.exists and not self._has_room(draft, principal):
            return [SESSION_CAP]
        return None

    def keep_decided(self, draft: Draft, whose: list[Any], result: Result) -> None:
        """Keep the result of a transaction that was carried out, whatever the caps say by now."""
        session_id, sequence, acked_below, _, body_hash, principal = whose
        session = self._find(draft, session_id, principal)
        if not session.exists:
            self._create(draft, session_id, session)
        if sequence >= session.floor:
            known: dict[int, Result] = {}
            if sequence in session.kept:
                # The mark of the request's body, see the batch handler.
                record = draft.get(keys.result(session_id, sequence))
                assert record is not None, "a mirrored result has no record"
                runs = records.unpack_result(record)[2]
                known = {first + offset: each for first, run in runs for offset, each in enumerate(run)}
            self._keep(draft, session_id, session, sequence, body_hash, _runs(known | {0: result}))
        self._settle(draft, session_id, session, acked_below, sequence)

    def _find(self, draft: Draft, session_id: bytes, principal: bytes) -> Session:
        """The session's mirror; one that does not exist yet belongs to `principal`."""
        session = self._mirrors.get(session_id)
        if session is not None:
            if not session.exists:
                session.principal = principal
            return session
        # Whatever this draft wrote of a session left its mirror here, so the engine is up to date.
        record = self._engine.get(keys.session(session_id))
        session = Session(principal)
        if record is not None:
            header = SessionHeader.unpack(record)
            session.exists = True
            session.floor, session.newest, session.used_ms, session.kept_bytes, session.principal = header
            session.counted_bytes = session.kept_bytes
            if header.kept_bytes > SESSION_BYTES:
                session.kept = self._load_kept(session_id)
                self._mirrored_results += len(session.kept)
        self._mirrors[session_id] = session
        return session

    def _load_kept(self, session_id: bytes) -> dict[int, tuple[int, int]]:
        start = keys.results_of(session_id)
        found = [
            (records.unpack_result(record)[0], int.from_bytes(key[-8:], "big"), len(record))
            for key, record in self._engine.scan(start, start + b"\xff" * 9)
        ]
        return {sequence: (clock_ms, byte_count) for clock_ms, sequence, byte_count in sorted(found)}

    def _create(self, draft: Draft, session_id: bytes, session: Session) -> None:
        session.exists = True
        due_ms = draft.clock_ms + draft.limits.session_lifetime_ms
        draft.writes[keys.expiry(due_ms, session_id)] = b""
        self._next_due_ms = min(self._next_due_ms, due_ms)

    def _has_room(self, draft: Draft, principal: bytes) -> bool:
        limits = draft.limits
        if draft.session_bytes + SESSION_BYTES > limits.sessions_bytes_max:
            return False
        return self._usage().get(principal, 0) + SESSION_BYTES <= limits.session_share_bytes_max

    def _keep(
        self,
        draft: Draft,
        session_id: bytes,
        session: Session,
        sequence: int,
        body_hash: bytes | None,
        runs: list[list[Any]],
    ) -> None:
        record = records.pack_result(draft.clock_ms, body_hash, runs)
        if len(record) > draft.limits.result_bytes_max:
            slim = [[first, [records.without_values(result) for result in run]] for first, run in runs]
            record = records.pack_result(draft.clock_ms, body_hash, slim)
        draft.writes[keys.result(session_id, sequence)] = record
        _, replaced_bytes = session.kept.pop(sequence, (0, 0))
        session.kept[sequence] = (draft.clock_ms, len(record))
        self._mirrored_results += not replaced_bytes
        session.kept_bytes += len(record) - replaced_bytes

    def _settle(
        self, draft: Draft, session_id: bytes, session: Session, acked_below: int, sequence: int
    ) -> None:
        """Move the floor, free what is below it or past its lifetime, count and write the header."""
        kept = session.kept
        session.newest = max(session.newest, sequence)
        session.used_ms = draft.clock_ms
        floor = max(session.floor, acked_below, session.newest + 1 - draft.limits.session_window)
        freed: list[int] = []
        if floor > session.floor:
            if floor - session.floor <= len(kept):
                freed = [number for number in range(session.floor, floor) if number in kept]
            else:
                freed = [number for number in kept if number < floor]
            session.floor = floor
        past_ms = draft.clock_ms - draft.limits.session_lifetime_ms
        for number, (clock_ms, _) in kept.items():
            if clock_ms >= past_ms:
                break
            if number >= floor:
                freed.append(number)
        if freed:
            freed.sort()
            self._free(draft, session_id, session, freed)
        self._count(draft, session)
        draft.writes[keys.session(session_id)] = session.header()

    def _free(self, draft: Draft, session_id: bytes, session: Session, sequences: list[int]) -> None:
        byte_count = 0
        for number in sequences:
            byte_count += session.kept.pop(number)[1]
            draft.writes[keys.result(session_id, number)] = None
        self._mirrored_results -= len(sequences)
        session.kept_bytes -= byte_count

    def _count(self, draft: Draft, session: Session) -> None:
        """Bring the sums up to the session's bytes."""
        grown = session.kept_bytes - session.counted_bytes
        if grown:
            usage = self._usage()
            usage[session.principal] = usage.get(session.principal, 0) + grown
            draft.session_bytes += grown
            session.counted_bytes = session.kept_bytes

    def _usage(self) -> dict[bytes, int]:
        """Bytes per principal. First built before anything of the draft at hand was counted."""
        if self._bytes_of is None:
            usage: dict[bytes, int] = {}
            for _, record in self._engine.scan(keys.SESSION, keys.SESSION_END):
                header = SessionHeader.unpack(record)
                usage[header.principal] = usage.get(header.principal, 0) + header.kept_bytes
            self._bytes_of = usage
        return self._bytes_of

    def expire(self, draft: Draft) -> None:
        """Remove sessions whose lifetime has passed, at most `EXPIRED_PER_ENTRY` looked at.

        A session has one `e` record. It is due a lifetime after the session's first command; a session
        that was used since then gets a later one."""
        if draft.clock_ms <= self._next_due_ms:
            return
        due: list[bytes] = []
        self._next_due_ms = _NEVER
        for key, _ in draft.scan(keys.EXPIRY, keys.EXPIRY_END):
            due_ms, _ = keys.expiry_parts(key)
            if due_ms >= draft.clock_ms or len(due) == EXPIRED_PER_ENTRY:
                self._next_due_ms = due_ms
                break
            due.append(key)
        for key in due:
            _, session_id = keys.expiry_parts(key)
            draft.writes[key] = None
            session = self._find(draft, session_id, b"")
            again_ms = session.used_ms + draft.limits.session_lifetime_ms
            if again_ms >= draft.clock_ms:
                draft.writes[keys.expiry(again_ms, session_id)] = b""
                self._next_due_ms = min(self._next_due_ms, again_ms)
            else:
                self._remove(draft, session_id, session)

    def _remove(self, draft: Draft, session_id: bytes, session: Session) -> None:
        self._free(draft, session_id, session, sorted(session.kept))
        session.kept_bytes = 0
        self._count(draft, session)
        draft.writes[keys.session(session_id)] = None
        # Stays as the mirror of nothing: until the draft is written the engine still has the session.
        self._mirrors[session_id] = Session(b"")


def _final(results: list[Result], first_index: int) -> dict[int, Result]:
    """Results by index, without those that say to try again."""
    return {first_index + at: result for at, result in enumerate(results) if result[0] != REFUSED}


def _all(code: int, ops: list[Any]) -> CommandResult:
    return CommandResult(False, [[code] for _ in ops])


def _runs(by_index: dict[int, Result]) -> list[list[Any]]:
    runs: list[list[Any]] = []
    for index in sorted(by_index):
        if runs and index == runs[-1][0] + len(runs[-1][1]):
            runs[-1][1].append(by_index[index])
        else:
            runs.append([index, [by_index[index]]])
    return runs
