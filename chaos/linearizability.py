"""Decides whether some order of the operations, one at a time, explains every answer.

Just-in-time linearization: walk invocations and answers in time order and keep every *configuration*
that is still possible: the cells of the keys, which pending operations have taken effect, and how many
of each class of operations of unknown outcome were used. Operations are made to take effect only when
one of them returns, and only until that one has. No configuration left means: no order explains this
answer, and everything before it could be explained, so the failing operation is known exactly.

What keeps the number of configurations small:

- A pending read that agrees with the cells takes effect at once: it changes nothing and is then out of
  the way, so leaving it for later can only be worse.
- A write waits for what the revisions say came `before` it (`partitions.py`). When every answer tells
  its revision, nothing is left to choose, and the walk is a sort with a scan in real time.
- An operation of unknown outcome is used only right before one that cannot happen without it.
- Of two configurations that differ only in the classes used, the one that used less of everything is kept.

The problem is NP-complete in general (Gibbons and Korach, 1997), so a partition has a budget; one that
exceeds it is reported as undecided, never as good.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from chaos.atoms import EMPTY, Atom, Cell, Does, Is, Need, change, observe
from chaos.history import Operation
from chaos.partitions import Partition, Step, partitions

State = tuple[Cell, ...]
Used = tuple[int, ...]
Configurations = dict[tuple[State, int], list[Used]]

EXPANSIONS_MAX = 3_000_000


@dataclass
class Violation:
    """Operations on `keys` that nothing explains; `operation` is the first answer that cannot be placed."""

    keys: tuple[str, ...]
    operation: Operation
    operations: list[Operation]
    """The whole partition, for the report."""


@dataclass
class Verdict:
    """`valid` is None where nothing was found wrong but `undecided` partitions remain."""

    operations: int
    partitions: int
    violations: list[Violation] = field(default_factory=list)
    undecided: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def valid(self) -> bool | None:
        if self.violations:
            return False
        return None if self.undecided else True


class OverBudget(Exception):
    """The partition has too many configurations to be decided."""


def check(history: Iterable[Operation], expansions_max: int = EXPANSIONS_MAX) -> Verdict:
    """Check all partitions of a history, each within `expansions_max` attempted placements."""
    groups = partitions(history)
    verdict = Verdict(sum(len(group.operations) for group in groups), len(groups))
    for group in groups:
        try:
            failed = Search(group, expansions_max).run()
        except OverBudget:
            verdict.undecided.append(group.keys)
            continue
        if failed is not None:
            verdict.violations.append(Violation(group.keys, failed.operation, group.operations))
    return verdict


class Search:
    """One walk over one partition. Must be run once only: it marks the steps."""

    def __init__(self, partition: Partition, expansions_max: int = EXPANSIONS_MAX) -> None:
        self._definite = partition.definite
        self._optional = partition.optional
        self._available = [0] * len(partition.optional)
        self._budget = expansions_max
        start: State = (EMPTY,) * len(partition.keys)
        self._configurations: Configurations = {(start, 0): [(0,) * len(partition.optional)]}
        self._pending: list[Step] = []
        self._placed_by_all: set[int] = set()
        self._free_bits: list[int] = []
        self._bits_made = 0
        self._helpers: dict[int, list[int]] = {}
        self._spanning = self._spanning_classes()
        self._too_late: Step | None = None
        """A step that had to come first but had not even been asked for yet."""

    def run(self) -> Step | None:
        """The first step that cannot be placed, or None if all can."""
        for _, order, subject in sorted(self._events(), key=lambda event: event[:2]):
            if isinstance(subject, int):
                self._available[subject] += 1
            elif order == 0:
                self._invoke(subject)
            elif not self._return(subject):
                return self._too_late or subject
        return None

    def _events(self) -> Iterator[tuple[float, int, Step | int]]:
        # At the same instant invocations come first: touching intervals count as concurrent.
        for step in self._definite:
            yield (step.invoked, 0, step)
            yield (step.returned, 1, step)
        for number, alike in enumerate(self._optional):
            for step in alike:
                yield (step.invoked, 0, number)

    def _invoke(self, step: Step) -> None:
        if not self._free_bits:
            self._free_bits.append(1 << self._bits_made)
            self._bits_made += 1
        step.bit = self._free_bits.pop()
        self._pending.append(step)
        if step.pure:
            changed: Configurations = {}
            for (state, mask), uses in self._configurations.items():
                placed = mask | step.bit if _holds_already(step, state) else mask
                changed[state, placed] = uses
            self._configurations = changed

    def _return(self, step: Step) -> bool:
        bit = step.bit
        if not all(mask & bit for _, mask in self._configurations):
            self._configurations = self._place(step)
        remaining: Configurations = {}
        for (state, mask), uses in self._configurations.items():
            remaining[state, mask & ~bit] = uses
        self._configurations = remaining
        self._pending.remove(step)
        self._free_bits.append(bit)
        step.bit = 0
        self._placed_by_all.add(id(step))
        return bool(remaining)

    def _place(self, target: Step) -> Configurations:
        """All configurations in which `target` has taken effect, as little as possible besides it."""
        self._too_late = None
        done: Configurations = {}
        seen: Configurations = {}
        stack: list[tuple[State, int, Used]] = []
        for (state, mask), uses in self._configurations.items():
            for used in uses:
                if mask & target.bit:
                    _keep_least(done, (state, mask), used)
                elif _keep_least(seen, (state, mask), used):
                    stack.append((state, mask, used))
        candidates = self._related(target)
        while stack:
            state, mask, used = stack.pop()
            for step in candidates:
                if mask & step.bit or not self._may_follow(step, mask):
                    continue
                for next_state, next_used in self._reach(step, state, used):
                    next_mask = self._with_reads(next_state, mask | step.bit)
                    if next_mask & target.bit:
                        _keep_least(done, (next_state, next_mask), next_used)
                    elif _keep_least(seen, (next_state, next_mask), next_used):
                        stack.append((next_state, next_mask, next_used))
        return done

    def _related(self, target: Step) -> list[Step]:
        """Pending steps that share keys with `target`, directly or through others, itself first."""
        slots, related = set(target.slots), [target]
        for alike in self._optional:
            if len(alike[0].slots) > 1 and not slots.isdisjoint(alike[0].slots):
                slots |= alike[0].slots
        others = [step for step in self._pending if step is not target]
        grew = True
        while grew:
            joined = [step for step in others if not slots.isdisjoint(step.slots)]
            related += joined
            others = [step for step in others if slots.isdisjoint(step.slots)]
            grew = bool(joined)
            slots.update(*(step.slots for step in joined))
        return related

    def _may_follow(self, step: Step, mask: int) -> bool:
        for earlier in step.before:
            if not mask & earlier.bit and id(earlier) not in self._placed_by_all:
                if not earlier.bit:
                    self._too_late = earlier
                return False
        return True

    def _with_reads(self, state: State, mask: int) -> int:
        for step in self._pending:
            if step.pure and not mask & step.bit and _holds_already(step, state):
                mask |= step.bit
        return mask

    def _reach(self, step: Step, state: State, used: Used) -> Iterator[tuple[State, Used]]:
        """States after `step`, with steps of unknown outcome before it where it needs them."""
        self._budget -= 1
        if self._budget < 0:
            raise OverBudget
        direct = [after for after in (_apply(variant, state) for variant in step.variants) if after]
        for after in direct:
            yield after, used
        if not self._optional:
            return
        # What `step` overwrites is of no use before it, unless it also did something elsewhere.
        needs_help = not direct or _pins(step, state)
        helpers = self._helpers_of(step) if needs_help else self._spanning
        if helpers:
            yield from self._reach_with_help(step, state, used, helpers)

    def _reach_with_help(
        self, step: Step, state: State, used: Used, helpers: Sequence[int]
    ) -> Iterator[tuple[State, Used]]:
        seen: Configurations = {(state, 0): [used]}
        level = [(state, used)]
        while level:
            following: list[tuple[State, Used]] = []
            for before, spent in level:
                for number in helpers:
                    if spent[number] >= self._available[number]:
                        continue
                    now_spent = (*spent[:number], spent[number] + 1, *spent[number + 1 :])
                    self._budget -= 1
                    for variant in self._optional[number][0].variants:
                        between = _apply(variant, before)
                        if between is None or not _keep_least(seen, (between, 0), now_spent):
                            continue
                        after = [_apply(own, between) for own in step.variants]
                        yield from ((reached, now_spent) for reached in after if reached)
                        if self._spanning or not any(after) or _pins(step, between):
                            following.append((between, now_spent))
            if self._budget < 0:
                raise OverBudget
            level = following

    def _helpers_of(self, step: Step) -> list[int]:
        """Classes that can bring about what `step` needs, and what those need in turn."""
        known = self._helpers.get(id(step))
        if known is None:
            known = self._closure(set(self._spanning), _atoms(step))
            self._helpers[id(step)] = known
        return known

    def _spanning_classes(self) -> list[int]:
        """Classes over several keys: one may have to come before a step that destroys what it needs."""
        spanning = {number for number, alike in enumerate(self._optional) if len(alike[0].slots) > 1}
        return self._closure(
            spanning, [atom for number in spanning for atom in _atoms(self._optional[number][0])]
        )

    def _closure(self, found: set[int], wanted: list[Atom]) -> list[int]:
        while wanted:
            atom = wanted.pop()
            for number, alike in enumerate(self._optional):
                if number not in found and _helps(alike[0], atom):
                    found.add(number)
                    wanted += _atoms(alike[0])
        return sorted(found)


def _atoms(step: Step) -> list[Atom]:
    return [atom for variant in step.variants for atom in variant]


def _pins(step: Step, state: State) -> bool:
    """Whether the step tells the revision of a cell, so that no other write can have come before it."""
    return any(
        atom.need.code == Is.REVISION and not state[atom.slot][2]
        for variant in step.variants
        for atom in variant
    )


def _helps(step: Step, wanted: Atom) -> bool:
    for variant in step.variants:
        for atom in variant:
            if atom.slot == wanted.slot and _may_satisfy(atom, wanted.need, len(step.slots) > 1):
                return True
    return False


def _may_satisfy(atom: Atom, need: Need, reaches_further: bool) -> bool:
    effect = atom.effect
    if effect.code == Does.NOTHING:
        return False
    if reaches_further:
        return True
    match need.code:
        case Is.ANY:
            return False
        case Is.ABSENT:
            return effect.code == Does.CLEAR
        case Is.VALUE:
            return effect.code == Does.ADD or effect.value == need.value
        case Is.PRESENT | Is.REVISION:
            return effect.code != Does.CLEAR
        case _:
            return True


def _apply(variant: Sequence[Atom], state: State) -> State | None:
    if len(state) == 1 and len(variant) == 1:
        atom = variant[0]
        cell = observe(atom.need, state[0])
        if cell is None:
            return None
        after = change(atom.effect, cell)
        return None if after is None else (after,)
    cells = list(state)
    for slot, need, effect in variant:
        cell = observe(need, cells[slot])
        if cell is None:
            return None
        after = change(effect, cell)
        if after is None:
            return None
        cells[slot] = after
    return tuple(cells)


def _holds_already(step: Step, state: State) -> bool:
    """Whether a read agrees with the state and would teach us nothing about it."""
    for variant in step.variants:
        for atom in variant:
            cell = state[atom.slot]
            if observe(atom.need, cell) is not cell:
                break
        else:
            return True
    return False


def _keep_least(known: Configurations, place: tuple[State, int], used: Used) -> bool:
    """Keep the minimal elements of what was used at one place; False if `used` adds nothing."""
    uses = known.get(place)
    if uses is None:
        known[place] = [used]
        return True
    if not used:
        return False
    for other in uses:
        if all(map(int.__le__, other, used)):
            return False
    uses[:] = [other for other in uses if not all(map(int.__le__, used, other))]
    uses.append(used)
    return True
