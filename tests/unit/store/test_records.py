import pytest

from kvstore.errors import Corrupt
from kvstore.store import records
from kvstore.store.records import SAME_REVISION, Attributes, Change, ChangeHead, Meta, SessionHeader


@pytest.mark.parametrize(
    "attributes",
    [Attributes(), Attributes("text/plain"), Attributes(None, b"generati" + b"lease", 99)],
)
@pytest.mark.parametrize("value", [b"", b"v", b"\x00" * 3000])
def test_a_head_keeps_value_and_attributes(value: bytes, attributes: Attributes) -> None:
    record = records.pack_head(7, 3, 2, value, attributes)
    lease_id = attributes.lease and attributes.lease[8:]
    expected = [value, 7, 3, 2, attributes.content_type, lease_id, attributes.deadline_ms]
    assert records.item(record) == expected
    assert records.value_and_attributes(record) == (value, attributes)


def test_a_head_with_unknown_flags_is_not_guessed_at() -> None:
    record = b"\x80" + records.pack_head(1, 1, 1, b"v")[1:]
    with pytest.raises(Corrupt):
        records.item(record)


def test_changes_count_revisions_and_share_them_where_flagged() -> None:
    flat = [b"a", 0, 0, None, b"b", 3, 1, b"old", b"c", 4, 1 | SAME_REVISION, True, b"d", 0, 0, None]
    record = records.pack_change(99, 12, [b"vb", b"oc"], flat)
    assert records.unpack_change_head(record) == ChangeHead(99, 12, 4, [b"vb", b"oc"])
    changes = records.unpack_changes(10, record)
    assert changes == [
        Change(10, b"a", 0, 0, None),
        Change(11, b"b", 3, 1, b"old"),
        Change(11, b"c", 4, 1, True),
        Change(12, b"d", 0, 0, None),
    ]
    for change in changes:
        assert records.find_change(10, record, change.revision, change.key) == change
    assert records.find_change(10, record, 10, b"b") is None


def test_meta_is_read_back_and_another_format_or_length_refused() -> None:
    meta = Meta(1, 2, 3, 4, 5, 6, 7, 0xFFFFFFFF)
    assert Meta.unpack(meta.pack()) == meta
    for damaged in (b"", b"\x02" + meta.pack()[1:], meta.pack()[:-1]):
        with pytest.raises(Corrupt):
            Meta.unpack(damaged)


def test_session_header_is_read_back() -> None:
    header = SessionHeader(1, 2, 3, 4, b"ann")
    assert SessionHeader.unpack(header.pack()) == header


def test_results_are_read_back() -> None:
    runs = [[0, [[0, 1, 1, True, None]]], [5, [[1, 9]]]]
    assert records.unpack_result(records.pack_result(5, b"hash", runs)) == (5, b"hash", runs)
