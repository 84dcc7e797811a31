"""The log for human eyes: every segment, batch and record in order, with what is wrong with it.

Works on the files of a node that is stopped, or on a copy; never changes anything. What a restart would
make of damage is for `recovery.py` to say.
"""

from collections.abc import Iterator
from typing import Any

from kvstore.errors import Corrupt
from kvstore.files import Files, OsFiles, join
from kvstore.wal.batch import Batch, Row, find, parse, payloads, record_of
from kvstore.wal.record import (
    KIND_NAMES,
    ClockRecord,
    Entries,
    HardStateRecord,
    Inventory,
    Quarantined,
    Record,
    Relocated,
    ShardCreated,
    SnapshotInstalled,
)
from kvstore.wal.segment import HEADER_BYTES, name_of, number_of, parse_header


def dump(directory: str, files: Files | None = None) -> Iterator[dict[str, Any]]:
    """Describe the log in `directory`: dicts whose `is` says segment, batch, record or damage.

    Raises: OSError, if there is no such directory; Corrupt, if the log's version is not known.
    """
    files = files or OsFiles()
    numbers = sorted(n for n in map(number_of, files.list(directory)) if n is not None)
    for number in numbers:
        content = files.read(join(directory, name_of(number)))
        header = parse_header(content, number)
        row: dict[str, Any] = {"is": "segment", "segment": number, "bytes": len(content)}
        if header is None:
            yield row | {"state": "unreadable"}
            continue
        identity = None if header.identity is None else header.identity.decode("utf-8", "backslashreplace")
        state = "header damaged" if header.is_damaged else "ok"
        if len(content) < header.capacity:
            state = f"{header.capacity - len(content)} bytes are gone"
        yield row | {"state": state, "identity": identity, "first_sequence": header.first_sequence}
        yield from _batches(content, number, header.nonce, header.first_sequence, number == numbers[-1])


def _batches(
    content: bytes, segment: int, nonce: int, expected: int, is_last: bool
) -> Iterator[dict[str, Any]]:
    offset = HEADER_BYTES
    while True:
        batch = parse(content, offset, nonce)
        if batch is None or batch.sequence != expected:
            batch = find(content, offset, nonce)
            if batch is None:
                return
            yield {
                "is": "damage",
                "segment": segment,
                "offset": offset,
                "bytes": batch.offset - offset,
                "state": f"batches {expected} to {batch.sequence - 1} can't be read",
            }
        bodies = payloads(content, batch)
        state = "ok"
        if None in bodies:
            state = "torn" if is_last and find(content, batch.end, nonce) is None else "damaged"
        yield {
            "is": "batch",
            "segment": segment,
            "offset": batch.offset,
            "bytes": batch.end - batch.offset,
            "sequence": batch.sequence,
            "records": len(batch.rows),
            "state": state,
        }
        yield from _records(segment, batch, bodies)
        offset, expected = batch.end, batch.sequence + 1


def _records(segment: int, batch: Batch, bodies: list[bytes | None]) -> Iterator[dict[str, Any]]:
    for row, payload in zip(batch.rows, bodies, strict=True):
        kind, shard, incarnation, payload_bytes, number, _, _, _ = row
        described: dict[str, Any] = {
            "is": "record",
            "segment": segment,
            "sequence": batch.sequence,
            "type": KIND_NAMES.get(kind, str(kind)),
        }
        if number:
            described |= {"shard": shard, "incarnation": incarnation, "number": number}
        described |= {"bytes": payload_bytes, **_content(row, payload)}
        yield described


def _content(row: Row, payload: bytes | None) -> dict[str, Any]:
    term, index = row[5], row[6]
    if payload is None:
        return {"state": "checksum is wrong", "term": term, "index": index}
    try:
        return {"state": "ok", **_facts(record_of(row, payload), index)}
    except Corrupt as error:
        return {"state": str(error), "term": term, "index": index}


def _facts(record: Record, index: int) -> dict[str, Any]:
    match record:
        case Entries(_, _, entries):
            return {"first": entries[0].index, "last": entries[-1].index, "term": entries[-1].term}
        case Relocated(_, _, origin, entries):
            first, last = entries[0], entries[-1]
            return {"first": first.index, "last": last.index, "term": last.term, "origin": origin}
        case HardStateRecord(_, _, term, vote, commit):
            return {"term": term, "vote": vote, "commit": commit}
        case SnapshotInstalled(_, _, directory, meta, origin):
            facts = {"index": meta.index, "term": meta.term, "directory": directory}
            return facts | ({"origin": origin} if origin else {})
        case ShardCreated(_, _, directory, configuration):
            return {"directory": directory, "voters": list(configuration.voters)}
        case Quarantined(_, _, reason):
            return {"reason": reason}
        case ClockRecord(clocks):
            return {"clocks": len(clocks)}
        case Inventory(oldest_segment, _, replicas):
            return {"oldest_segment": oldest_segment, "replicas": len(replicas)}
        case _:
            return {"index": index} if index else {}
