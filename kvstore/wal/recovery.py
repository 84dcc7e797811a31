"""Reading the log at start: what each replica held, and what damage took.

Records are replayed in the order they were written. Three kinds of bad bytes are told apart (pitfall 12):

- At the end of the last segment, with no batch begun after them: the write that a crash tore. It was never
  acknowledged, so it is cut. Rot of exactly the last batch looks the same; no log can tell.
- Anywhere else: damage. If the batch's table is whole it names the replicas that are hurt. If not, record
  numbers decide: a replica whose next record, or whose line in the next inventory, follows on without a gap
  lost nothing. Whoever can't be cleared is hurt.
- In a segment's header only: noted, nobody is hurt.

A hurt replica is quarantined and says why; its entries end before the damage. This module reads segments
and finds their bad places, `replay.py` works out what the records mean. Neither changes a file.
"""

import errno
from typing import Final, NamedTuple

from kvstore.errors import Corrupt
from kvstore.files import Files, join
from kvstore.types import LogIndex
from kvstore.wal.batch import MAGIC, Batch, find, nonce_of, parse, payloads, record_of, starts
from kvstore.wal.index import Index, Place
from kvstore.wal.record import INVENTORY, Inventory, Key
from kvstore.wal.replay import Recovered, Replay
from kvstore.wal.segment import HEADER_BYTES, Header, name_of, number_of, parse_header

INVENTORY_BYTES_MAX: Final = 1 << 20
"""How far to look for a segment's inventory; longer ones only cost time."""


class Tail(NamedTuple):
    """Where the log ends."""

    header: Header | None
    """Of the segment to go on in. None: there is none, or nothing more should be written to it."""
    segment: int
    """Number of the last segment, 0 if there is none."""
    offset: int
    next_sequence: int
    checksum: int | None
    """Of the last batch, None if that is not known."""
    last_batch: tuple[int, bytes] | None
    """Offset and bytes of the last batch if it lies in the last segment. It may never have been synced."""


def recover(files: Files, directory: str, identity: bytes) -> tuple[Recovered, Index, Tail, list[int]]:
    """Read the whole log. Changes nothing. Returns also the numbers of its segments.

    Raises: Corrupt, if the log belongs to someone else or to a newer version.
    """
    numbers = sorted(n for n in map(number_of, files.list(directory)) if n is not None)
    replay = Replay(_floors(files, directory, numbers))
    tail = Tail(None, 0, HEADER_BYTES, 1, None, None)
    for position, number in enumerate(numbers):
        if tail.segment and number != tail.segment + 1:
            replay.damaged(f"segments {tail.segment + 1} to {number - 1} are missing")
        name = name_of(number)
        content = _read(files, join(directory, name))
        header = parse_header(content, number)
        if header is None:
            replay.damaged(f"{name}: neither header nor first batch can be read")
            tail = Tail(None, number, 0, _beyond(tail.next_sequence, len(content)), None, None)
            continue
        if header.identity not in (None, identity):
            raise Corrupt(
                f"the log in {directory} belongs to {_text(header.identity)}, not to {_text(identity)}"
            )
        if header.is_damaged:
            replay.damage.append(f"{name}: header is damaged, no record is")
        is_last = position + 1 == len(numbers)
        until = None if is_last else _first_sequence(files, directory, numbers[position + 1])
        tail = _read_segment(replay, content, header, tail.checksum, until, is_last)
    replay.check_oldest(numbers)
    recovered = replay.finish()
    recovered.is_new = not numbers
    return recovered, replay.index, tail, numbers


def _floors(files: Files, directory: str, numbers: list[int]) -> dict[Key, LogIndex]:
    """What each replica still needs, as the newest segment's inventory says; nothing if that can't be read,
    or if the segment has no batch yet."""
    for number in numbers[-1:-3:-1]:
        file = files.open(join(directory, name_of(number)))
        try:
            content = file.read_at(0, INVENTORY_BYTES_MAX)
        except OSError:
            continue
        finally:
            file.close()
        header = parse_header(content, number)
        batch = None if header is None else parse(content, HEADER_BYTES, header.nonce)
        whole = [None] if batch is None else payloads(content, batch)
        # One bad payload can mean a torn batch, and that is void, inventory and all.
        if batch is not None and whole[0] is not None and None not in whole and batch.rows[0][0] == INVENTORY:
            record = record_of(batch.rows[0], whole[0])
            assert isinstance(record, Inventory)
            return {(line.shard, line.incarnation): line.first for line in record.replicas}
    return {}


def _read(files: Files, path: str) -> bytes:
    """The file's content, zeros where the disk can't read it."""
    try:
        return files.read(path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    file, parts = files.open(path), []
    try:
        for offset in range(0, files.byte_count(path), HEADER_BYTES * 8):
            try:
                parts.append(file.read_at(offset, HEADER_BYTES * 8))
            except OSError:
                parts.append(bytes(HEADER_BYTES * 8))
    finally:
        file.close()
    return b"".join(parts)


def _text(identity: bytes | None) -> str:
    return repr((identity or b"").decode("utf-8", "backslashreplace"))


def _first_sequence(files: Files, directory: str, number: int) -> int | None:
    """Of the given segment; None if that can't be read."""
    path = join(directory, name_of(number))
    file = files.open(path)
    try:
        content = file.read_at(0, HEADER_BYTES)
    except OSError:
        content = b""
    finally:
        file.close()
    header = parse_header(content, number) or parse_header(_read(files, path), number)
    return None if header is None else header.first_sequence


def _read_segment(
    replay: Replay, content: bytes, header: Header, checksum: int | None, until: int | None, is_last: bool
) -> Tail:
    """Replay one segment. `until` is the first sequence of the next one."""
    name = name_of(header.number)
    expected, offset = header.first_sequence, HEADER_BYTES
    newest: Batch | None = None
    while expected != until:
        batch = parse(content, offset, header.nonce)
        if batch is None or batch.sequence != expected:
            batch = _later(content, offset, header.nonce, expected)
            if batch is None:
                break
            replay.damaged(_lost(name, offset, expected, batch.sequence))
        elif checksum is not None and batch.previous_checksum != checksum:
            replay.damaged(f"{name} at {offset}: batch {expected} does not follow the batch before it")
        whole = payloads(content, batch)
        is_whole = None not in whole
        if not is_whole and is_last and not _is_begun(content, batch.end, header.nonce):
            break
        place = Place(header.number, batch.offset, batch.end, batch.sequence)
        replay.replay(batch, whole, place, is_whole=is_whole)
        newest, offset, expected, checksum = batch, batch.end, batch.sequence + 1, batch.checksum
    if until is not None and expected != until:
        replay.damaged(_lost(name, offset, expected, until))
        expected, checksum = until, None
    last_batch = None if newest is None else (newest.offset, content[newest.offset : newest.end])
    tail = Tail(header, header.number, offset, expected, checksum, last_batch)
    return _check_end(replay, content, tail, header) if is_last else tail


def _check_end(replay: Replay, content: bytes, tail: Tail, header: Header) -> Tail:
    """Judge what follows the last batch of the last segment."""
    if len(content) < header.capacity:
        # Made and synced at its full length: no crash shortens it.
        replay.damaged(
            f"{name_of(header.number)}: {header.capacity - len(content)} bytes at its end are gone"
        )
        return tail._replace(header=None, next_sequence=_beyond(tail.next_sequence, header.capacity))
    if _is_begun(content, tail.offset + 1, header.nonce):
        replay.damaged(
            f"{name_of(header.number)} at {tail.offset}: batches from {tail.next_sequence} on are damaged"
        )
        return tail._replace(header=None, next_sequence=_beyond(tail.next_sequence, header.capacity))
    replay.torn_bytes = _torn_bytes(content, tail.offset, header.nonce)
    return tail._replace(header=None) if header.is_damaged else tail


def _beyond(sequence: int, lost_bytes: int) -> int:
    """A sequence that no batch in a lost stretch of the log can have used."""
    return sequence + lost_bytes // HEADER_BYTES + 1


def _later(content: bytes, offset: int, nonce: int, above: int) -> Batch | None:
    """The next batch at or after `offset` whose sequence is higher: proof that `above` was once synced."""
    batch = find(content, offset, nonce)
    while batch is not None and batch.sequence <= above:
        batch = find(content, batch.offset + 1, nonce)
    return batch


def _is_begun(content: bytes, offset: int, nonce: int) -> bool:
    """Whether a batch was begun at or after `offset`, which proves that those before were synced."""
    return next(starts(content, offset, nonce), None) is not None


def _lost(name: str, offset: int, first: int, until: int) -> str:
    if until == first + 1:
        return f"{name} at {offset}: batch {first} is damaged"
    return f"{name} at {offset}: batches {first} to {until - 1} are damaged"


def _torn_bytes(content: bytes, offset: int, nonce: int) -> int:
    batch = parse(content, offset, nonce)
    if batch is not None:
        return batch.end - offset
    is_begun = content.startswith(MAGIC, offset) and nonce_of(content, offset) == nonce
    return HEADER_BYTES if is_begun else 0
