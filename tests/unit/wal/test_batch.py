"""A batch is found whole, or its damage is."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.wal import batch
from kvstore.wal.record import Coded, Record, encode
from tests.support.wal_model import created, entries, hard_state

NONCE = 0x1122334455667788


def _encode(
    records: list[Record], sequence: int = 7, previous: int = 0xABCD, nonce: int = NONCE
) -> tuple[bytes, int]:
    coded: list[Coded] = [encode(record) for record in records]
    rows = [batch.row(each, number) for number, each in enumerate(coded, 1)]
    return batch.encode(nonce, sequence, previous, rows, [each[5] for each in coded])


SOME: list[Record] = [entries(1, 5, 3, payload=b"payload"), hard_state(2, 9), created(3)]


def test_batch_is_read_back_with_its_records_in_order() -> None:
    content, checksum = _encode(SOME)
    found = batch.parse(content, 0, NONCE)
    assert found is not None
    assert (found.sequence, found.previous_checksum, found.checksum) == (7, 0xABCD, checksum)
    bodies = batch.payloads(content, found)
    whole = [body for body in bodies if body is not None]
    assert [batch.record_of(row, body) for row, body in zip(found.rows, whole, strict=True)] == SOME
    assert [row[4] for row in found.rows] == [1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=5))
def test_batch_takes_whole_sectors_and_as_many_as_announced(counts: list[int]) -> None:
    records: list[Record] = [entries(1, 1, payload=bytes(count)) for count in counts]
    content, _ = _encode(records)
    payload_bytes = sum(len(encode(record)[5]) for record in records)
    assert len(content) == batch.byte_count(len(records), payload_bytes)
    assert len(content) % batch.SECTOR_BYTES == 0


def test_every_flipped_bit_of_head_and_table_hides_the_batch_and_of_a_payload_only_that_payload() -> None:
    content, _ = _encode(SOME)
    found = batch.parse(content, 0, NONCE)
    assert found is not None
    payload_end = found.payload_at + sum(row[3] for row in found.rows)
    for offset in range(payload_end):
        for bit in range(8):
            bad = bytearray(content)
            bad[offset] ^= 1 << bit
            damaged = batch.parse(bytes(bad), 0, NONCE)
            if offset < found.payload_at:
                assert damaged is None, offset
            else:
                assert damaged is not None
                assert batch.payloads(bytes(bad), damaged).count(None) == 1, offset


def test_batch_of_an_older_life_of_the_file_is_not_found() -> None:
    content, _ = _encode(SOME, nonce=NONCE ^ 1)
    assert batch.parse(content, 0, NONCE) is None
    assert batch.find(content, 0, NONCE) is None
    assert batch.parse(content, 0, None) is not None
    assert batch.nonce_of(content, 0) == NONCE ^ 1


def test_batch_cut_short_is_not_found_unless_only_padding_is_missing() -> None:
    content, _ = _encode(SOME)
    found = batch.parse(content, 0, NONCE)
    assert found is not None
    exact = found.payload_at + sum(row[3] for row in found.rows)
    for count in range(exact):
        assert batch.parse(content[:count], 0, NONCE) is None
    assert batch.parse(content[:exact], 0, NONCE) is not None


def test_search_passes_over_anything_to_the_next_batch_on_a_sector() -> None:
    content, _ = _encode(SOME)
    assert (found := batch.find(b"\xff" * 1024 + content, 0, NONCE)) is not None
    assert found.offset == 1024
    assert batch.find(b"\xff" * 1000 + content, 0, NONCE) is None, "not on a sector: no batch starts there"
    broken = bytearray(content)
    broken[20] ^= 1
    both = bytes(broken) + content
    assert (after := batch.find(both, 0, NONCE)) is not None
    assert after.offset == len(content)
    assert list(batch.starts(both, 0, NONCE)) == [0, len(content)], "begun, though it can't be read"


def test_empty_batch_is_a_batch() -> None:
    content, _ = _encode([])
    assert (found := batch.parse(content, 0, NONCE)) is not None
    assert found.rows == ()
    assert len(content) == 512


@pytest.mark.parametrize("offset", [0, 512, 5 * 512])
def test_batch_knows_where_the_next_one_starts(offset: int) -> None:
    content, _ = _encode(SOME)
    found = batch.parse(bytes(offset) + content, offset, NONCE)
    assert found is not None
    assert (found.offset, found.end) == (offset, offset + len(content))
