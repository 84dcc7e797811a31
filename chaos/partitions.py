"""A history cut into groups of keys that can be checked apart, each prepared for the search.

Linearizability is local (Herlihy and Wing, section 3.2): a history is linearizable if each object's part
is. Keys that one transaction or scan covers together are one object here. Preparation then takes what
can be known without searching out of the search's way:

- An operation of unknown outcome whose value only it could have written, and which somebody saw, did
  happen, and no later than that reader's answer: it becomes an ordinary operation. Those whose value
  nobody ever mentions are alike, and become one class with a count. Thousands of them then cost little.
- Where answers tell revisions, the order of those writes, and of what was read between them, is known.
  `before` lists for each write what must have taken its place earlier.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence

from chaos.atoms import KINDS, Atom, Does, Effect, Is, Need, Variant, variants_of
from chaos.history import Operation

UNSEEN = "\x00unseen"
"""Stands for the value of a write whose value no answer mentions."""


class Step:
    """An operation as the search sees it."""

    __slots__ = ("before", "bit", "index", "invoked", "operation", "pure", "returned", "slots", "variants")

    def __init__(self, index: int, operation: Operation, variants: list[Variant]) -> None:
        self.index = index
        self.operation = operation
        self.variants = variants
        self.invoked = operation.invoked
        self.returned = math.inf if operation.returned is None else operation.returned
        self.slots = frozenset(atom.slot for variant in variants for atom in variant)
        self.pure = all(atom.effect.code == Does.NOTHING for variant in variants for atom in variant)
        self.before: list[Step] = []
        """Steps that must have taken effect before this one, by the revisions that answers told."""
        self.bit = 0
        """Bit in the masks of the search while it is pending; 0 before and after."""


class Partition:
    """Steps over some keys. `definite` must each take effect; of `optional[c]` any number may."""

    def __init__(self, keys: Sequence[str], operations: Iterable[Operation]) -> None:
        self.keys = tuple(keys)
        slots = {key: slot for slot, key in enumerate(self.keys)}
        self.definite: list[Step] = []
        open_steps: list[Step] = []
        self.operations = list(operations)
        for index, operation in enumerate(self.operations):
            variants = variants_of(operation, slots)
            if variants:
                step = Step(index, operation, variants)
                (open_steps if operation.outcome == "unknown" else self.definite).append(step)
        remaining = _settle(open_steps, self.definite)
        self.optional = _classes(remaining, self.definite)
        _order_by_revision(self.definite)


def partitions(history: Iterable[Operation]) -> list[Partition]:
    """Group a history by keys; keys joined by a transaction or scan stay together."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    operations = [
        operation
        for operation in history
        if operation.kind in KINDS and operation.outcome != "refused" and operation.touched()
    ]
    for operation in operations:
        first, *others = operation.touched()
        for other in others:
            parent[root(other)] = root(first)
        root(first)
    groups: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        groups[root(operation.touched()[0])].append(operation)
    members: dict[str, list[str]] = defaultdict(list)
    for key in parent:
        members[root(key)].append(key)
    return [Partition(sorted(members[name]), group) for name, group in groups.items()]


def _settle(open_steps: list[Step], definite: list[Step]) -> list[Step]:
    """Move the open steps that must have happened to `definite`; give back the others."""
    producers: dict[tuple[int, str | None], int] = defaultdict(int)
    for step in (*definite, *open_steps):
        for atom in _atoms(step):
            if atom.effect.code == Does.SET:
                producers[atom.slot, atom.effect.value] += 1
    seen: dict[tuple[int, str | None], tuple[set[int | None], float]] = {}
    for step in definite:
        for atom in _atoms(step):
            if atom.need.code == Is.VALUE and len(step.variants) == 1:
                revisions, earliest = seen.get((atom.slot, atom.need.value), (set(), math.inf))
                revisions.add(atom.need.revision)
                seen[atom.slot, atom.need.value] = (revisions, min(earliest, step.returned))
    counted = _counter_slots((*definite, *open_steps))
    remaining = []
    for step in open_steps:
        if len(step.variants) == 1 and _was_seen(step, producers, seen, counted):
            definite.append(step)
        else:
            remaining.append(step)
    return remaining


def _was_seen(
    step: Step,
    producers: dict[tuple[int, str | None], int],
    seen: dict[tuple[int, str | None], tuple[set[int | None], float]],
    counted: set[int],
) -> bool:
    """Whether only this step explains a value that was read; if so, fill in what the readers knew."""
    settled = False
    atoms: list[Atom] = []
    for atom in step.variants[0]:
        place = (atom.slot, atom.effect.value)
        if (
            atom.effect.code == Does.SET
            and producers[place] == 1
            and atom.slot not in counted
            and place in seen
            and len(seen[place][0]) == 1
        ):
            (revision,), earliest = seen[place]
            atom = atom._replace(effect=atom.effect._replace(revision=revision))
            step.returned = max(step.invoked, min(step.returned, earliest))
            settled = True
        atoms.append(atom)
    if settled:
        step.variants = [tuple(atoms)]
    return settled


def _classes(steps: list[Step], definite: list[Step]) -> list[list[Step]]:
    """Group steps that cannot be told apart; each class is in order of invocation."""
    mentioned = {
        (atom.slot, atom.need.value)
        for step in (*definite, *steps)
        for atom in _atoms(step)
        if atom.need.code in (Is.VALUE, Is.NOT_VALUE)
    }
    counted = _counter_slots((*definite, *steps))
    traces = _Traces(definite)
    groups: dict[tuple[Variant, ...], list[Step]] = defaultdict(list)
    for step in sorted(steps, key=lambda step: step.invoked):
        step.variants = [
            tuple(_without_unseen_value(atom, mentioned, counted) for atom in variant)
            for variant in step.variants
        ]
        if not traces.rule_out(step):
            groups[tuple(step.variants)].append(step)
    return list(groups.values())


class _Traces:
    """What answers tell of writes whose value nobody has seen: by revision, or by what stood there not."""

    def __init__(self, definite: list[Step]) -> None:
        valued: dict[int, set[int]] = defaultdict(set)
        noticed: dict[int, set[int]] = defaultdict(set)
        written: dict[int, set[int]] = defaultdict(set)
        self._vague: set[int] = set()
        for atom in (atom for step in definite for atom in _atoms(step)):
            if atom.effect.revision is not None:
                written[atom.slot].add(atom.effect.revision)
            if atom.need.code in (Is.NOT_VALUE, Is.NOT_REVISION):
                self._vague.add(atom.slot)
            elif atom.need.revision is not None:
                (valued if atom.need.code == Is.VALUE else noticed)[atom.slot].add(atom.need.revision)
        self._orphans = {
            slot: sorted(revisions - valued[slot] - written[slot]) for slot, revisions in noticed.items()
        }
        self._written = {slot: sorted(revisions) for slot, revisions in written.items()}

    def rule_out(self, step: Step) -> bool:
        """Whether `step` could only replace one value by another that nobody has noticed."""
        if len(step.variants) > 1 or len(step.variants[0]) > 1:
            return False
        ((slot, need, effect),) = step.variants[0]
        if effect.value != UNSEEN or slot in self._vague:
            return False
        orphans = self._orphans.get(slot, [])
        if need.code == Is.REVISION and need.revision is not None:
            # It follows that very revision, so its own is below that of the next known write.
            written = self._written.get(slot, [])
            following = bisect_right(written, need.revision)
            first = bisect_right(orphans, need.revision)
            limit = written[following] if following < len(written) else math.inf
            return first == len(orphans) or orphans[first] >= limit
        return need.code in (Is.PRESENT, Is.VALUE) and not orphans


def _without_unseen_value(atom: Atom, mentioned: set[tuple[int, str | None]], counted: set[int]) -> Atom:
    is_seen = (atom.slot, atom.effect.value) in mentioned or atom.slot in counted
    if atom.effect.code != Does.SET or is_seen:
        return atom
    return Atom(atom.slot, atom.need, Effect(Does.SET, UNSEEN, atom.effect.revision))


def _order_by_revision(steps: list[Step]) -> None:
    """Fill `before`: a write follows the previous known write of its key and all reads of that."""
    at: dict[int, dict[int, tuple[list[Step], list[Step]]]] = defaultdict(dict)
    for step in steps:
        if len(step.variants) > 1:
            continue
        for atom in step.variants[0]:
            if atom.effect.revision is not None:
                at[atom.slot].setdefault(atom.effect.revision, ([], []))[0].append(step)
            revision = _revision_seen(atom.need)
            if revision is not None:
                at[atom.slot].setdefault(revision, ([], []))[1].append(step)
    for by_revision in at.values():
        earlier: list[Step] = []
        for revision in sorted(by_revision):
            writers, readers = by_revision[revision]
            for writer in writers:
                writer.before.extend(step for step in earlier if step is not writer)
            earlier = [*writers, *readers] if writers else [*earlier, *readers]


def _revision_seen(need: Need) -> int | None:
    return need.revision if need.code in (Is.VALUE, Is.REVISION) else None


def _counter_slots(steps: Iterable[Step]) -> set[int]:
    """Keys whose values come from arithmetic, so that a value does not name its writer."""
    return {
        atom.slot
        for step in steps
        for atom in _atoms(step)
        if atom.effect.code == Does.ADD or atom.need.code == Is.NUMBER
    }


def _atoms(step: Step) -> Iterable[Atom]:
    return (atom for variant in step.variants for atom in variant)
