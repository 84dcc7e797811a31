"""Judges watches: the events of each watcher are the history of every key that it watches.

A watcher's reading is cut into operations of kind `watch`, one for each stream that it read, each from where
the one before had ended. Result: `{"events": [[type, key, value, revision, version, create revision], ...]}`;
an event of type `gap` stands where history was gone. The last one has `"is_final": true` in its argument and
goes on until everything has been seen that the shards then held.

What is asked, key by key: revisions only rise (nothing repeated, nothing reordered); versions follow on each
other and begin anew only behind a deletion (nothing is missing in between); watchers tell the same of the
same revision; everything that was acknowledged after the watcher had begun was told; the last event is what
the key holds in the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from chaos.history import Operation

GAP = "gap"
_GONE = ("delete", "expire")

Event = Sequence[Any]


def check_watches(history: Iterable[Operation]) -> list[str]:
    """What is wrong, in words."""
    operations = list(history)
    faults: list[str] = []
    told: dict[tuple[str, int], tuple[Event, int]] = {}
    for process in sorted({each.process for each in operations if each.kind == "watch"}):
        streams = [each for each in operations if each.kind == "watch" and each.process == process]
        events = _by_key([event for each in streams for event in (each.result or {}).get("events", ())])
        for key, own in events.items():
            faults += [f"watcher {process}, {key}: {fault}" for fault in _chain(own)]
            faults += _agreement(process, key, own, told)
        faults += _complete(process, streams, events, operations)
    return faults


def _by_key(events: Iterable[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for event in events:
        if event[0] == GAP:
            for own in found.values():
                own.append(event)
        else:
            found.setdefault(event[1], []).append(event)
    return found


def _chain(events: list[Event]) -> list[str]:
    """Whether each event of one key follows on the one before."""
    faults = []
    last: Event | None = None
    for event in events:
        if event[0] == GAP:
            last = None
            continue
        kind, _key, _value, revision, version, created = event
        if last is not None:
            was_gone = last[0] in _GONE
            if revision <= last[3]:
                faults.append(f"revision {revision} was told after {last[3]}")
            elif kind in _GONE:
                if was_gone:
                    faults.append(f"gone at revision {last[3]} and again at {revision}: a put is missing")
            elif was_gone != (version == 1):
                faults.append(f"version {version} at revision {revision} follows on {last[0]} at {last[3]}")
            elif not was_gone and (version != last[4] + 1 or created != last[5]):
                faults.append(f"version {version} at revision {revision} follows on version {last[4]}")
        last = event
    return faults


def _agreement(
    process: int, key: str, events: list[Event], told: dict[tuple[str, int], tuple[Event, int]]
) -> list[str]:
    faults = []
    for event in events:
        if event[0] == GAP:
            continue
        known, other = told.setdefault((key, event[3]), (event, process))
        if list(known) != list(event):
            faults.append(f"{key} at {event[3]}: watcher {other} was told {known}, watcher {process} {event}")
    return faults


def _complete(
    process: int, streams: list[Operation], events: dict[str, list[Event]], operations: list[Operation]
) -> list[str]:
    """Whether all was told that was acknowledged since the watcher began, and that is there in the end."""
    begun = next((each.result["begun"] for each in streams if (each.result or {}).get("begun")), None)
    final = [each for each in streams if each.argument.get("is_final") and each.outcome == "ok"]
    if begun is None or not final:
        return []
    faults = []
    prefix = streams[0].key
    for operation in operations:
        if operation.invoked < begun or operation.outcome != "ok" or not operation.key.startswith(prefix):
            continue
        if not _changed_something(operation) or not operation.result:
            continue
        revision = operation.result["revision"]
        own = events.get(operation.key, [])
        if not any(event[0] == GAP for event in own) and all(event[3] != revision for event in own):
            what = f"{operation.kind} of {operation.key} at revision {revision}"
            faults.append(f"watcher {process}: {what} was never told")
    held = final[-1].result["held"]
    for key, own in events.items():
        last = own[-1]
        if last[0] != GAP and held.get(key) != (None if last[0] in _GONE else last[3]):
            faults.append(f"watcher {process}: {key} ends at {held.get(key)}, the last it was told is {last}")
    return faults


def _changed_something(operation: Operation) -> bool:
    if operation.kind == "delete":
        return bool(operation.result and operation.result.get("deleted"))
    return operation.kind in ("put", "incr")
