"""Headers bind a segment to its place and owner; appends keep ahead of unwritten space."""

import msgspec
import pytest

from kvstore.errors import Corrupt
from kvstore.wal import batch
from kvstore.wal.segment import (
    FORMAT_VERSION,
    HEADER_BYTES,
    Header,
    Segment,
    encode_header,
    is_spare,
    name_of,
    number_of,
    parse_header,
    spare_name_of,
)
from tests.support.sim_files import SimFiles

HEADER = Header(3, 0xFEDCBA9876543210, 41, 16384, b"cluster/n1", False)


def test_header_is_one_sector_and_reads_back() -> None:
    for header in (HEADER, msgspec.structs.replace(HEADER, is_written_before=True, identity=b"")):
        content = encode_header(header)
        assert len(content) == HEADER_BYTES
        assert parse_header(content, 3) == header


def test_any_damaged_byte_of_a_header_is_noticed() -> None:
    content = encode_header(HEADER)
    for offset in range(len(content)):
        bad = bytearray(content)
        bad[offset] ^= 0x10
        assert parse_header(bytes(bad), 3) is None, offset


def test_damaged_header_is_rebuilt_from_the_first_batch() -> None:
    first, _ = batch.encode(HEADER.nonce, 41, 0, [], [])
    rebuilt = parse_header(bytes(HEADER_BYTES) + first, 3)
    assert rebuilt is not None
    assert rebuilt.is_damaged
    assert (rebuilt.number, rebuilt.nonce, rebuilt.first_sequence) == (3, HEADER.nonce, 41)
    assert rebuilt.identity is None


def test_segment_under_a_wrong_name_is_not_taken_for_the_one_it_is_named() -> None:
    assert parse_header(encode_header(HEADER), 4) is None


def test_unknown_format_version_is_refused_and_named() -> None:
    content = bytearray(encode_header(HEADER))
    content[8:10] = (FORMAT_VERSION + 1).to_bytes(2, "little")
    fixed = bytes(content[:-4])
    from google_crc32c import value

    with pytest.raises(Corrupt, match=f"format {FORMAT_VERSION + 1}"):
        parse_header(fixed + value(fixed).to_bytes(4, "little"), 3)


def test_identity_that_does_not_fit_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="identity"):
        encode_header(msgspec.structs.replace(HEADER, identity=bytes(401)))


def test_names_and_numbers_belong_together() -> None:
    assert number_of(name_of(12)) == 12
    assert number_of(spare_name_of(12)) is None
    assert is_spare(spare_name_of(12))
    for name in ("wal-12.log", "reserve.log", "wal-0000000000000012.log.new", "LOCK"):
        assert number_of(name) is None
        assert not is_spare(name)
    assert sorted([name_of(10), name_of(9), name_of(100)]) == [name_of(9), name_of(10), name_of(100)]


def _segment(
    zero_ahead_bytes: int, *, is_written_before: bool = False
) -> tuple[SimFiles, Segment, list[int]]:
    disk = SimFiles()
    disk.mkdirs("/d")
    file = disk.create("/d/s", HEADER.capacity)
    file.write_at(HEADER_BYTES, b"\xff" * (HEADER.capacity - HEADER_BYTES))
    written: list[int] = []
    write_at = file.write_at

    class Counted:
        def write_at(self, offset: int, content: bytes) -> None:
            written.append(len(content))
            write_at(offset, content)

        def read_at(self, offset: int, count: int) -> bytes:
            return file.read_at(offset, count)

        def datasync(self) -> None:
            file.datasync()

        def close(self) -> None:
            file.close()

    header = msgspec.structs.replace(HEADER, is_written_before=is_written_before)
    return disk, Segment(Counted(), header, HEADER_BYTES, zero_ahead_bytes), written


def test_zeros_go_ahead_of_the_batches_in_few_large_steps() -> None:
    disk, segment, written = _segment(4096)
    for _ in range(10):
        segment.append(b"b" * 512)
    assert written == [512 + 4096, *[512] * 8, 512 + 4096]
    content = disk.read("/d/s")
    assert content[HEADER_BYTES : segment.offset] == b"b" * 5120
    assert content[segment.offset : segment.offset + 4096] == bytes(4096)
    assert content[segment.offset + 4096 : segment.offset + 4608] == b"\xff" * 512


def test_space_that_was_written_before_needs_no_zeros() -> None:
    _, segment, written = _segment(4096, is_written_before=True)
    segment.append(b"b" * 1024)
    assert written == [1024]


def test_zeros_end_with_the_segment_and_room_is_counted_exactly() -> None:
    disk, segment, _ = _segment(1 << 20)
    rest = HEADER.capacity - HEADER_BYTES
    assert segment.has_room(rest)
    assert not segment.has_room(rest + 1)
    segment.append(b"b" * 512)
    assert disk.byte_count("/d/s") == HEADER.capacity
    assert not segment.has_room(rest)
    with pytest.raises(AssertionError, match="fit"):
        segment.append(bytes(rest))
