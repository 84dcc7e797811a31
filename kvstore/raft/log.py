"""The log of one replica above its cut: entries in memory, and how far each of them has come.

    base < ... applied ... <= synced <= taken <= last

`base` is the last entry that was cut off; only its index and term are known. Entries up to `taken` were
handed to the host in a Ready; those up to `synced` are known to be on disk *in the log as it is now*.

Who drives it: the core and its role modules. It never touches a disk: recovery gives it the whole live
log once, and `Flight` records what each Ready will have made durable when its sync is reported.
Terms never decrease along a log, which is what the binary searches below rest on.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from kvstore.errors import Corrupt
from kvstore.raft.messages import CONFIGURATION, Entry, SnapshotMeta
from kvstore.types import LogIndex, ReplicaId, Term

ENTRY_OVERHEAD_BYTES = 24
"""What an entry costs beside its payload; keeps a flood of empty entries within the byte limits."""


def _term_of(entry: Entry) -> Term:
    return entry.term


def entry_bytes(entry: Entry) -> int:
    return len(entry.payload) + ENTRY_OVERHEAD_BYTES


class Flight:
    """Writes on their way to the disk: what is durable once Ready `number` is synced."""

    __slots__ = ("commit", "installed", "last_index", "number", "term", "tick", "vote")

    def __init__(
        self,
        number: int,
        last_index: LogIndex,
        term: Term,
        vote: ReplicaId | None,
        commit: LogIndex,
        installed: SnapshotMeta | None,
        tick: int,
    ) -> None:
        self.number = number
        self.last_index = last_index
        self.term = term
        self.vote = vote
        self.commit = commit
        self.installed = installed
        self.tick = tick


class RaftLog:
    __slots__ = (
        "_entries",
        "base_index",
        "base_term",
        "bytes_held",
        "flights",
        "last_index",
        "last_term",
        "pending_truncate",
        "synced",
        "taken",
        "truncations",
        "unapplied_configurations",
    )

    def __init__(
        self, base_index: LogIndex, base_term: Term, entries: list[Entry], applied: LogIndex
    ) -> None:
        self._entries = entries
        self.base_index = base_index
        self.base_term = base_term
        self.last_index = entries[-1].index if entries else base_index
        self.last_term = entries[-1].term if entries else base_term
        self.synced = self.last_index
        self.taken = self.last_index
        self.flights: deque[Flight] = deque()
        self.bytes_held = sum(map(entry_bytes, entries))
        """Of all entries above the cut."""
        self.pending_truncate: LogIndex | None = None
        self.truncations = 0
        """Counts how often a suffix was voided: invariant checks read it to notice rewritten history."""
        self.unapplied_configurations: deque[LogIndex] = deque(
            entry.index for entry in entries if entry.kind == CONFIGURATION and entry.index > applied
        )

    @classmethod
    def restore(cls, snapshot: SnapshotMeta, entries: Sequence[Entry], applied: LogIndex) -> "RaftLog":
        """Build the log from what a restart read. Everything given counts as synced.

        `snapshot` is any point whose term is known and up to which the machine holds the state; entries
        below it are kept for lagging peers if they reach it without a gap.

        Raises:
            Corrupt: there is a gap, terms fall, or the log contradicts the snapshot or `applied`.
        """
        for before, after in zip(entries, entries[1:], strict=False):
            if after.index != before.index + 1 or after.term < before.term:
                raise Corrupt(f"log breaks between entries {before.index} and {after.index}")
        log = cls._joined(snapshot, list(entries), applied)
        if not log.base_index <= applied <= log.last_index:
            raise Corrupt(f"applied {applied} is outside the log {log.base_index}..{log.last_index}")
        return log

    @classmethod
    def _joined(cls, snapshot: SnapshotMeta, entries: list[Entry], applied: LogIndex) -> "RaftLog":
        if not entries or entries[-1].index < snapshot.index:
            return cls(snapshot.index, snapshot.term, [], applied)
        first = entries[0]
        if first.index == snapshot.index + 1:
            if first.term < snapshot.term:
                raise Corrupt(f"entry {first.index} is of an older term than the snapshot before it")
            return cls(snapshot.index, snapshot.term, entries, applied)
        if first.index <= snapshot.index:
            at_snapshot = entries[snapshot.index - first.index]
            if at_snapshot.term != snapshot.term:
                raise Corrupt(f"entry {snapshot.index} contradicts the snapshot at that index")
        if first.index == 1:
            return cls(LogIndex(0), Term(0), entries, applied)
        if first.index > applied:
            raise Corrupt(f"entries {snapshot.index + 1}..{first.index - 1} are missing")
        # The term before the first entry is unknown, so the first entry itself becomes the cut.
        return cls(first.index, first.term, entries[1:], applied)

    # --- reading

    def term_at(self, index: int) -> Term | None:
        """Return the term of the entry, or None if it is cut off or beyond the end."""
        offset = index - self.base_index
        if offset == 0:
            return self.base_term
        if 0 < offset <= len(self._entries):
            return self._entries[offset - 1].term
        return None

    def matches(self, index: int, term: Term) -> bool:
        return self.term_at(index) == term

    def entry(self, index: int) -> Entry:
        """Return one entry; it must be above the cut."""
        assert index > self.base_index, f"entry {index} is cut off"
        return self._entries[index - self.base_index - 1]

    def between(self, after: int, upto: int) -> tuple[Entry, ...]:
        """Return the entries in (after, upto]; `after` must not be below the cut."""
        base = self.base_index
        assert base <= after, f"entries from {after + 1} are cut off"
        return tuple(self._entries[after - base : upto - base])

    def read(self, after: int, upto: int, bytes_max: int) -> tuple[tuple[Entry, ...], int]:
        """Return entries of (after, upto] up to `bytes_max`, but at least one, and their bytes."""
        low = after - self.base_index
        high = upto - self.base_index
        assert low >= 0, f"entries from {after + 1} are cut off"
        entries = self._entries
        if high - low == 1:
            only = entries[low]
            return (only,), len(only.payload) + ENTRY_OVERHEAD_BYTES
        bytes_sum = 0
        for position in range(low, high):
            bytes_next = bytes_sum + entry_bytes(entries[position])
            if bytes_next > bytes_max and position > low:
                return tuple(entries[low:position]), bytes_sum
            bytes_sum = bytes_next
        return tuple(entries[low:high]), bytes_sum

    def last_at_or_below_term(self, index: int, term: Term) -> tuple[LogIndex, Term]:
        """Return the highest position at or below `index` whose term is at most `term`.

        Both ends of a rejected append use it to step over whole terms at once (thesis 3.5). The cut is
        the lowest answer: what lies below it is committed and matches.
        """
        high = min(index, self.last_index) - self.base_index
        if high <= 0:
            return self.base_index, self.base_term
        found = bisect_right(self._entries, term, 0, high, key=_term_of)
        if found == 0:
            return self.base_index, self.base_term
        entry = self._entries[found - 1]
        return entry.index, entry.term

    def cut_to_keep(self, bytes_max: int) -> LogIndex:
        """Return the lowest cut that leaves at most `bytes_max` in memory."""
        surplus = self.bytes_held - bytes_max
        index = self.base_index
        for entry in self._entries:
            if surplus <= 0:
                break
            surplus -= entry_bytes(entry)
            index = entry.index
        return index

    def is_up_to_date(self, last_index: LogIndex, last_term: Term) -> bool:
        """Tell whether a log with that end holds at least what this one holds (Raft 5.4.1)."""
        return last_term > self.last_term or (last_term == self.last_term and last_index >= self.last_index)

    # --- writing

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries that directly follow the last one."""
        assert entries[0].index == self.last_index + 1, f"gap: {entries[0].index} after {self.last_index}"
        assert entries[0].term >= self.last_term, f"term falls at {entries[0].index}"
        self._entries.extend(entries)
        last = entries[-1]
        self.last_index = last.index
        self.last_term = last.term
        for entry in entries:
            self.bytes_held += len(entry.payload) + ENTRY_OVERHEAD_BYTES
            if entry.kind == CONFIGURATION:
                self.unapplied_configurations.append(entry.index)

    def truncate(self, index: LogIndex) -> None:
        """Void all entries above `index`.

        Completions still under way must not count for what replaces them, not even if a later leader
        brings back an equal entry: what is on disk would in between be without it.
        """
        assert self.base_index <= index < self.last_index, f"cannot cut {self.last_index} back to {index}"
        term = self.term_at(index)
        assert term is not None
        self._drop(index - self.base_index, len(self._entries))
        self.last_index, self.last_term = index, term
        if index < self.taken:
            self.taken = index
            pending = self.pending_truncate
            self.pending_truncate = index if pending is None else min(pending, index)
        self.synced = min(self.synced, index)
        for flight in self.flights:
            flight.last_index = min(flight.last_index, index)
        while self.unapplied_configurations and self.unapplied_configurations[-1] > index:
            self.unapplied_configurations.pop()
        self.truncations += 1

    def reset(self, index: LogIndex, term: Term, commit: LogIndex) -> None:
        """Forget everything: the log now starts after a snapshot at `index` that is about to be written.

        Only what is committed is common to the old log and the snapshot, so nothing above `commit` may
        stay acknowledged until the installation itself is synced.
        """
        self._drop(0, len(self._entries))
        self.base_index = self.last_index = self.taken = index
        self.base_term = self.last_term = term
        self.pending_truncate = None
        self.synced = min(self.synced, commit)
        for flight in self.flights:
            flight.last_index = min(flight.last_index, commit)
        self.unapplied_configurations.clear()
        self.truncations += 1

    def compact(self, index: LogIndex) -> None:
        """Drop entries up to `index`, of which only the term is kept; must not be above what is applied."""
        if index <= self.base_index:
            return
        term = self.term_at(index)
        assert term is not None, f"cannot cut at {index}, the log ends at {self.last_index}"
        self._drop(0, index - self.base_index)
        self.base_index, self.base_term = index, term

    def _drop(self, low: int, high: int) -> None:
        self.bytes_held -= sum(map(entry_bytes, self._entries[low:high]))
        del self._entries[low:high]

    def term_runs(self) -> list[tuple[LogIndex, Term]]:
        """Describe the log: its base, then the first index of each run of entries of one term."""
        runs = [(self.base_index, self.base_term)]
        last_term = None
        for entry in self._entries:
            if entry.term != last_term:
                last_term = entry.term
                runs.append((entry.index, last_term))
        return runs

    # --- durability

    def take(self) -> tuple[Entry, ...]:
        """Return the entries that no Ready has carried yet, and count them as carried."""
        if self.taken == self.last_index:
            return ()
        entries = tuple(self._entries[self.taken - self.base_index :])
        self.taken = self.last_index
        return entries

    def landed(self, number: int) -> list[Flight]:
        """Ready `number` and all before it are synced: advance `synced`, return what has landed."""
        flights = self.flights
        landed = []
        while flights and flights[0].number <= number:
            landed.append(flights.popleft())
        if landed and landed[-1].last_index > self.synced:
            self.synced = landed[-1].last_index
        return landed
