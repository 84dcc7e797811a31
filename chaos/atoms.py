"""What an operation says about the keys it touched, in a form that one search can check.

An *atom* is (slot, need, effect): the key's number, what its cell must have looked like, and what was
done to it. An operation is a sequence of atoms that happen at one instant. A put that answered "created,
revision 7" is (k, absent, set to v at 7); a read is a need without effect; a failed compare-and-set is
an observation of whatever stood there instead.

A *cell* is (value or None, revision, exact). A write of unknown outcome has no known revision: it leaves
`exact` false and the last known revision as a lower bound, and a later read that tells the revision makes
it exact. So every claim that an answer makes is used, and none is invented.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from chaos.history import Operation

KINDS = frozenset({"put", "get", "delete", "incr", "cas", "scan", "txn"})
"""Kinds of operations that the checker knows."""

Cell = tuple[str | None, int, bool]
EMPTY: Cell = (None, 0, True)


class Is(IntEnum):
    """What a cell must be. The meaning of `Need.value` and `Need.revision` depends on it."""

    ANY = 0
    VALUE = 1
    """holds `value`, at `revision` if that is known"""
    ABSENT = 2
    PRESENT = 3
    REVISION = 4
    """holds something at `revision`"""
    NOT_VALUE = 5
    NOT_REVISION = 6
    NUMBER = 7
    """holds the number `value` (absent counts as 0); any number if None"""
    NEVER = 8
    """an answer that contradicts itself"""


class Need(NamedTuple):
    """An observation."""

    code: Is
    value: str | None = None
    revision: int | None = None


class Does(IntEnum):
    """What happens to a cell."""

    NOTHING = 0
    SET = 1
    CLEAR = 2
    ADD = 3


class Effect(NamedTuple):
    """A change; `revision` is None where no answer told it."""

    code: Does
    value: str | None = None
    revision: int | None = None
    by: int = 0


class Atom(NamedTuple):
    """One key's part in an operation."""

    slot: int
    need: Need
    effect: Effect


Variant = tuple[Atom, ...]
"""One way in which an operation may have happened: its atoms, in order."""

ANY = Need(Is.ANY)
ABSENT = Need(Is.ABSENT)
PRESENT = Need(Is.PRESENT)
NOTHING = Effect(Does.NOTHING)


def observe(need: Need, cell: Cell) -> Cell | None:
    """The cell as known after the observation, or None if it contradicts it."""
    code = need.code
    if code == Is.ANY:
        return cell
    if code == Is.VALUE:
        return _at_revision(need.revision, cell) if cell[0] == need.value else None
    if code == Is.ABSENT:
        return cell if cell[0] is None else None
    if code == Is.PRESENT:
        return cell if cell[0] is not None else None
    if code == Is.REVISION:
        return _at_revision(need.revision, cell) if cell[0] is not None else None
    if code == Is.NOT_VALUE:
        return cell if cell[0] != need.value else None
    if code == Is.NEVER:
        return None
    if code == Is.NOT_REVISION:
        return None if cell[0] is not None and cell[2] and cell[1] == need.revision else cell
    number = number_in(cell)
    return cell if number is not None and need.value in (None, str(number)) else None


def change(effect: Effect, cell: Cell) -> Cell | None:
    """The cell after the effect, or None where the effect cannot follow this cell."""
    code = effect.code
    if code == Does.NOTHING:
        return cell
    value: str | None = effect.value
    if code == Does.ADD:
        number = number_in(cell)
        if number is None:
            return None
        value = str(number + effect.by)
    if effect.revision is None:
        return (value, cell[1], False)
    return (value, effect.revision, True) if effect.revision > cell[1] else None


def number_in(cell: Cell) -> int | None:
    """The number that a counter would see, None if the value is not one."""
    if cell[0] is None:
        return 0
    try:
        return int(cell[0])
    except ValueError:
        return None


def _at_revision(revision: int | None, cell: Cell) -> Cell | None:
    if revision is None or (cell[2] and cell[1] == revision):
        return cell
    if cell[2] or revision <= cell[1]:
        return None
    return (cell[0], revision, True)


def variants_of(operation: Operation, slots: Mapping[str, int]) -> list[Variant]:
    """All ways in which the operation may have happened, given its answer; [] if it surely had no effect
    and its answer tells nothing. An operation of unknown outcome may also not have happened at all."""
    if operation.outcome == "refused":
        return []
    if operation.kind == "txn":
        return _of_txn(operation, slots)
    if operation.outcome == "unknown":
        return _without_idle([_unknown(operation.kind, slots[operation.touched()[0]], operation.argument)])
    if operation.kind == "scan":
        items = operation.result["items"]
        return [tuple(Atom(slots[key], _read(items.get(key)), NOTHING) for key in operation.touched())]
    argument, result = operation.argument or {}, operation.result
    slot = slots[operation.key]
    if operation.outcome == "conflict":
        return [(Atom(slot, _refutation(argument, result or {}), NOTHING),)]
    return [(_known(operation.kind, slot, argument, result),)]


def _known(kind: str, slot: int, argument: Mapping[str, Any], result: Any) -> Atom:
    if kind == "get":
        return Atom(slot, _read(result), NOTHING)
    result = result or {}
    revision = result.get("revision")
    if kind == "put":
        need = _put_need(argument, result.get("created"))
        return Atom(slot, need, Effect(Does.SET, argument["value"], revision))
    if kind == "delete":
        if not result.get("deleted", 1):
            return Atom(slot, ABSENT, NOTHING)
        return Atom(slot, _put_need(argument, created=False), Effect(Does.CLEAR, None, revision))
    if kind == "incr":
        value = int(result["value"])
        return Atom(
            slot, Need(Is.NUMBER, str(value - argument["by"])), Effect(Does.SET, str(value), revision)
        )
    if kind == "cas":
        return Atom(slot, _holds(argument["expected"]), Effect(Does.SET, argument["value"], revision))
    raise ValueError(f"unknown kind of operation {kind!r}")


def _unknown(kind: str, slot: int, argument: Mapping[str, Any] | None) -> Variant:
    argument = argument or {}
    if kind == "put":
        need = _put_need(argument, created=None)
        return (Atom(slot, need, Effect(Does.SET, argument["value"])),)
    if kind == "delete":
        return (Atom(slot, _put_need(argument, created=False), Effect(Does.CLEAR)),)
    if kind == "incr":
        return (Atom(slot, Need(Is.NUMBER), Effect(Does.ADD, by=argument["by"])),)
    if kind == "cas":
        return (Atom(slot, _holds(argument["expected"]), Effect(Does.SET, argument["value"])),)
    return ()


def _put_need(argument: Mapping[str, Any], created: bool | None) -> Need:
    if argument.get("if_revision"):
        return Need(Is.NEVER) if created else Need(Is.REVISION, None, argument["if_revision"])
    if argument.get("if_absent"):
        return Need(Is.NEVER) if created is False else ABSENT
    if created is True:
        return ABSENT
    return ANY if created is None else PRESENT


def _holds(value: str | None) -> Need:
    return ABSENT if value is None else Need(Is.VALUE, value)


def _read(item: Mapping[str, Any] | None) -> Need:
    return ABSENT if item is None else Need(Is.VALUE, item["value"], item.get("revision"))


def _refutation(argument: Mapping[str, Any], result: Mapping[str, Any]) -> Need:
    current = result.get("current_revision")
    if current is not None:
        return Need(Is.REVISION, None, current) if current else ABSENT
    if "expected" in argument:
        expected = argument["expected"]
        return PRESENT if expected is None else Need(Is.NOT_VALUE, expected)
    if argument.get("if_absent"):
        return PRESENT
    return Need(Is.NOT_REVISION, None, argument.get("if_revision"))


def _of_txn(operation: Operation, slots: Mapping[str, int]) -> list[Variant]:
    argument = operation.argument
    compares, then, other = argument.get("if", []), argument.get("then", []), argument.get("else", [])
    if operation.outcome == "unknown":
        chosen = [_branch(compares, then, None, slots)]
        chosen += [(*refuted, *_steps(other, None, slots)) for refuted in _refuted(compares, slots)]
        return _without_idle(chosen)
    if operation.outcome != "ok":
        return []
    results = operation.result["results"]
    if operation.result["succeeded"]:
        return [_branch(compares, then, results, slots)]
    return [(*refuted, *_steps(other, results, slots)) for refuted in _refuted(compares, slots)]


def _branch(
    compares: Sequence[Mapping[str, Any]],
    steps: Sequence[Mapping[str, Any]],
    results: Sequence[Any] | None,
    slots: Mapping[str, int],
) -> Variant:
    held = tuple(Atom(slots[compare["key"]], _compared(compare), NOTHING) for compare in compares)
    return (*held, *_steps(steps, results, slots))


def _steps(
    steps: Sequence[Mapping[str, Any]], results: Sequence[Any] | None, slots: Mapping[str, int]
) -> Variant:
    atoms: list[Atom] = []
    for number, step in enumerate(steps):
        kind, slot, argument = step["kind"], slots[step["key"]], step.get("argument") or {}
        if results is None:
            atoms.extend(_unknown(kind, slot, argument))
        else:
            atoms.append(_known(kind, slot, argument, results[number]))
    return tuple(atoms)


def _compared(compare: Mapping[str, Any]) -> Need:
    expected = compare["eq"]
    if compare["field"] == "revision":
        return Need(Is.REVISION, None, expected) if expected else ABSENT
    return _holds(expected)


def _refuted(compares: Sequence[Mapping[str, Any]], slots: Mapping[str, int]) -> list[Variant]:
    """One variant for each compare that may have been the false one."""
    found: list[Variant] = []
    for compare in compares:
        need, slot = _compared(compare), slots[compare["key"]]
        if need.code == Is.ABSENT:
            opposite = PRESENT
        elif need.code == Is.VALUE:
            opposite = Need(Is.NOT_VALUE, need.value)
        else:
            opposite = Need(Is.NOT_REVISION, None, need.revision)
        found.append((Atom(slot, opposite, NOTHING),))
    return found


def _without_idle(variants: list[Variant]) -> list[Variant]:
    """An operation of unknown outcome that changes nothing need not be considered."""
    return [variant for variant in variants if any(atom.effect.code != Does.NOTHING for atom in variant)]
