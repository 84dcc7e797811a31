"""Judges a bank: transfers between accounts of several shards, and reads of all accounts at one moment.

| kind | argument |
|---|---|
| open | `{"accounts": {key: balance}}` |
| transfer | `{"deltas": {key: by}, "receipt": key, "leaders": [node, ...]}` |
| snapshot | `{"accounts": [key, ...]}` |
| receipt | |
| rest | |

The result of each is `{"items": {key: [balance or count, revision]}}`, of a rest `{"intents": count}`: how
many transactions a node held prepared when all was over.

A search over all orders would be hopeless here: every snapshot joins all accounts into one object. It is not
needed either, since every answer tells revisions, which give each account's order. What is checked:

- each snapshot has the sum that was opened with, and so has every other one;
- what two answers say of one account at one revision agrees, and no two transfers share one;
- snapshots lie in one line, and each transfer lies before or behind each of them as a whole;
- an answer is not older than what was known before it was asked for;
- a client's receipts count its transfers: none lost, none done twice;
- no transaction is left prepared.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence

from chaos.history import Operation

KINDS = frozenset({"open", "transfer", "snapshot", "receipt"})
SPANNING_MIN = 0.9
"""Share of the transfers that must lie in shards led by different nodes, or the run shows little."""

Items = dict[str, list[int]]


def check_bank(history: Iterable[Operation]) -> list[str]:
    """What is wrong, in words."""
    history = list(history)
    operations = [operation for operation in history if operation.kind in KINDS]
    done = [each for each in operations if each.outcome == "ok" and each.result is not None]
    return [
        *_sums(operations, done),
        *_balances(done),
        *_real_time(done),
        *_line(done),
        *_receipts(operations),
        *_left_prepared(history),
    ]


def _left_prepared(history: Sequence[Operation]) -> list[str]:
    """Judged by the last look, which was taken as late as it may be."""
    looks = [each for each in history if each.kind == "rest" and each.result is not None]
    if looks and looks[-1].result["intents"]:
        return [f"{looks[-1].result['intents']} transactions were left prepared when all had been healed"]
    return []


def _items(operation: Operation) -> Items:
    items: Items = operation.result["items"]
    return items


def _sums(operations: Sequence[Operation], done: Sequence[Operation]) -> list[str]:
    total = sum(sum(each.argument["accounts"].values()) for each in operations if each.kind == "open")
    faults = []
    for snapshot in done:
        if snapshot.kind == "snapshot":
            found = sum(balance for balance, _ in _items(snapshot).values())
            if found != total or len(_items(snapshot)) != len(snapshot.argument["accounts"]):
                faults.append(f"snapshot of client {snapshot.process} at {snapshot.invoked:.3f}: {found}")
    return [f"sums differ from {total}: {'; '.join(faults[:5])} ({len(faults)} in all)"] if faults else []


def _balances(done: Sequence[Operation]) -> list[str]:
    """One balance at each revision of an account, and one transfer."""
    known: dict[tuple[str, int], int] = {}
    faults = []
    for operation in done:
        for key, (balance, revision) in _items(operation).items():
            if known.setdefault((key, revision), balance) != balance:
                faults.append(f"{key} at revision {revision} is {known[key, revision]} and {balance}")
    changed: set[tuple[str, int]] = set()
    for operation in done:
        for key, (_, revision) in _items(operation).items() if operation.kind == "transfer" else ():
            if (key, revision) in changed:
                faults.append(f"two transfers changed {key} at revision {revision}")
            changed.add((key, revision))
    return faults[:10]


def _real_time(done: Sequence[Operation]) -> list[str]:
    """What was answered before something was asked for is not unknown to its answer."""
    events: list[tuple[float, int, Operation]] = []
    for operation in done:
        events.append((operation.invoked, 0, operation))
        events.append((operation.returned or operation.invoked, 1, operation))
    newest: dict[str, int] = {}
    at_least: dict[int, dict[str, int]] = {}
    faults = []
    for _, order, operation in sorted(events, key=lambda event: event[:2]):
        items = _items(operation)
        if order == 0:
            at_least[id(operation)] = {key: newest[key] for key in items if key in newest}
            continue
        for key, (_, revision) in items.items():
            floor = at_least[id(operation)].get(key, 0)
            if revision < floor or (operation.kind == "transfer" and revision == floor):
                faults.append(
                    f"{operation.kind} of client {operation.process} at {operation.invoked:.3f} is at "
                    f"revision {revision} of {key}, and {floor} had been answered before it was asked for"
                )
            newest[key] = max(newest.get(key, 0), revision)
    return faults[:10]


def _line(done: Sequence[Operation]) -> list[str]:
    snapshots = sorted(
        (each for each in done if each.kind == "snapshot"),
        key=lambda each: sum(revision for _, revision in _items(each).values()),
    )
    faults = []
    for before, after in zip(snapshots, snapshots[1:], strict=False):
        if any(_items(after)[key][1] < revision for key, (_, revision) in _items(before).items()):
            faults.append(
                f"snapshots at {before.invoked:.3f} and {after.invoked:.3f} each lack what the other shows"
            )
    if faults or not snapshots:
        return faults[:5]
    columns = {
        key: [_items(snapshot)[key][1] for snapshot in snapshots] for key in snapshots[0].argument["accounts"]
    }
    for transfer in done:
        if transfer.kind != "transfer":
            continue
        places = {
            bisect_left(columns[key], revision)
            for key, (_, revision) in _items(transfer).items()
            if key in columns
        }
        if len(places) > 1:
            faults.append(
                f"snapshots show a part of what client {transfer.process} moved at {transfer.invoked:.3f}"
            )
    return faults[:5]


def _receipts(operations: Sequence[Operation]) -> list[str]:
    """Each transfer adds one to its client's receipt: it tells how many there were."""
    by_receipt: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind == "transfer":
            by_receipt[operation.argument["receipt"]].append(operation)
        elif operation.kind == "receipt":
            by_receipt[operation.key].append(operation)
    faults = []
    for receipt, own in by_receipt.items():
        acknowledged = doubtful = 0
        for operation in own:
            if operation.outcome == "unknown":
                doubtful += operation.kind == "transfer"
                continue
            if operation.outcome != "ok" or operation.result is None:
                continue
            acknowledged += operation.kind == "transfer"
            count = _items(operation)[receipt][0] if receipt in _items(operation) else 0
            if not acknowledged <= count <= acknowledged + doubtful:
                faults.append(
                    f"{receipt} counts {count} at {operation.invoked:.3f}: {acknowledged} transfers were "
                    f"acknowledged, {doubtful} are unknown"
                )
                break
    return faults[:5]


def doubts_of_bank(history: Iterable[Operation]) -> list[str]:
    """What keeps the run from proving anything: transfers that stayed on one node."""
    transfers = [each for each in history if each.kind == "transfer" and each.outcome == "ok"]
    spanning = sum(len(set(each.argument["leaders"])) > 1 for each in transfers)
    if transfers and spanning < SPANNING_MIN * len(transfers):
        return [f"only {spanning} of {len(transfers)} transfers spanned shards of different leaders"]
    return []
