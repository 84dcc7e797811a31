"""One file of the log: a header sector, then batches.

    wal-<number>.log   part of the log; the numbers have no gaps
    spare-<number>.log space for the next segment, content meaningless
    reserve.log        the same, kept for the log's own needs when the disk is full
    *.new              a segment being made, never part of the log

A segment gets its name only after its header is synced, and only after the last batch of the segment
before it was synced. So a named segment with a broken header is damage, never an unfinished step, and
its `first_sequence` says where the segment before it ends.

Space is reserved with fallocate, and zeros are written ahead of the batches, 1 MiB at a time, by the
write that gets there. Without that each fdatasync also commits the conversion of unwritten extents to
the file system's journal: measured here (ext4, virtio) 512-byte batches cost 128 µs, with zeros ahead
81 µs, the same as in a file zeroed whole beforehand, which would cost a start 64 MiB of writing.
"""

import re
import struct
from typing import Final

import msgspec
from google_crc32c import value as crc32c

from kvstore.errors import Corrupt
from kvstore.files import File
from kvstore.wal.batch import SECTOR_BYTES, nonce_of, parse

HEADER_BYTES: Final = SECTOR_BYTES
FORMAT_VERSION: Final = 1
IDENTITY_BYTES_MAX: Final = 400
RESERVE_NAME: Final = "reserve.log"
UNFINISHED: Final = ".new"

_MAGIC: Final = b"KVSTWAL\n"
_HEADER = struct.Struct("<8sHHH2xQQQQ")
"""magic, version, flags, identity bytes, number, nonce, first sequence, capacity."""
_CHECKSUM = struct.Struct("<I")
_CHECKSUM_AT: Final = HEADER_BYTES - _CHECKSUM.size
_WRITTEN_BEFORE: Final = 1
"""Flag: every block of the file has been written, so zeros ahead would buy nothing."""

_NAME = re.compile(r"wal-(\d{16})\.log")
_SPARE = re.compile(r"spare-(\d{16})\.log")


def name_of(number: int) -> str:
    return f"wal-{number:016d}.log"


def spare_name_of(number: int) -> str:
    return f"spare-{number:016d}.log"


def number_of(name: str) -> int | None:
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def is_spare(name: str) -> bool:
    return _SPARE.fullmatch(name) is not None


class Header(msgspec.Struct, frozen=True):
    number: int
    nonce: int
    """Random, in every batch of the segment: bytes of an older life of the file can't pass for it."""
    first_sequence: int
    capacity: int
    identity: bytes | None
    """None: the header was rebuilt from the first batch."""
    is_written_before: bool
    is_damaged: bool = False


def encode_header(header: Header) -> bytes:
    identity = header.identity or b""
    assert len(identity) <= IDENTITY_BYTES_MAX, "identity is too long for a segment header"
    flags = _WRITTEN_BEFORE if header.is_written_before else 0
    fixed = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        flags,
        len(identity),
        header.number,
        header.nonce,
        header.first_sequence,
        header.capacity,
    )
    covered = (fixed + identity).ljust(_CHECKSUM_AT, b"\0")
    return covered + _CHECKSUM.pack(crc32c(covered))


def parse_header(content: bytes, number: int) -> Header | None:
    """The header of segment `number`; rebuilt if only its own sector is damaged; None if neither header
    nor first batch can be read.

    Raises: Corrupt, for a version this program does not know.
    """
    header = _parse_own(content)
    if header is not None and header.number == number:
        return header
    first = parse(content, HEADER_BYTES, None)
    if first is None:
        return None
    nonce = nonce_of(content, HEADER_BYTES)
    return Header(number, nonce, first.sequence, len(content), None, True, is_damaged=True)


def _parse_own(content: bytes) -> Header | None:
    if len(content) < HEADER_BYTES:
        return None
    (checksum,) = _CHECKSUM.unpack_from(content, _CHECKSUM_AT)
    fields = _HEADER.unpack_from(content)
    if fields[0] != _MAGIC or crc32c(content[:_CHECKSUM_AT]) != checksum:
        return None
    _, version, flags, identity_bytes, number, nonce, first_sequence, capacity = fields
    if version != FORMAT_VERSION:
        raise Corrupt(f"log format {version} is not known to this version, which writes {FORMAT_VERSION}")
    identity = content[_HEADER.size : _HEADER.size + identity_bytes]
    return Header(number, nonce, first_sequence, capacity, identity, bool(flags & _WRITTEN_BEFORE))


class Segment:
    """The file that batches are appended to."""

    __slots__ = ("_file", "_zero_ahead_bytes", "_zeroed_to", "header", "offset")

    def __init__(self, file: File, header: Header, offset: int, zero_ahead_bytes: int) -> None:
        self._file = file
        self.header = header
        self.offset = offset
        """Where the next batch goes."""
        self._zero_ahead_bytes = zero_ahead_bytes
        self._zeroed_to = header.capacity if header.is_written_before else offset

    def has_room(self, count: int) -> bool:
        return self.offset + count <= self.header.capacity

    def append(self, content: bytes) -> None:
        """Write and sync one batch; on an error the state of the file is unknown."""
        end = self.offset + len(content)
        assert end <= self.header.capacity, "batch does not fit into its segment"
        if end > self._zeroed_to:
            self._zeroed_to = min(end + self._zero_ahead_bytes, self.header.capacity)
            self._file.write_at(self.offset, content + bytes(self._zeroed_to - end))
        else:
            self._file.write_at(self.offset, content)
        self._file.datasync()
        self.offset = end

    def close(self) -> None:
        self._file.close()
