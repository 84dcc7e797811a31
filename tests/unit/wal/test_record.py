"""Every record comes back as it was written; what makes no sense is refused."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import Corrupt
from kvstore.raft.messages import Configuration, Entry, SnapshotMeta
from kvstore.types import ReplicaId
from kvstore.wal.record import (
    KIND_NAMES,
    ClockRecord,
    Entries,
    HardStateRecord,
    Inventory,
    InventoryLine,
    Quarantined,
    Record,
    Relocated,
    ShardCreated,
    ShardDestroyed,
    SnapshotInstalled,
    Truncate,
    decode,
    encode,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=20)
REPLICAS = st.lists(TEXT.map(ReplicaId), max_size=3).map(tuple)
CONFIGURATIONS = st.builds(Configuration, REPLICAS, REPLICAS, REPLICAS, REPLICAS)
ENTRIES = st.lists(
    st.builds(Entry, U64, U64, st.integers(0, 2), st.binary(max_size=50)), min_size=1, max_size=4
)
ENTRY_TUPLES = ENTRIES.map(tuple)
RECORDS = st.one_of(
    st.builds(Entries, U32, U32, ENTRY_TUPLES),
    st.builds(HardStateRecord, U32, U32, U64, st.none() | TEXT.map(ReplicaId), U64),
    st.builds(Truncate, U32, U32, U64),
    st.builds(SnapshotInstalled, U32, U32, TEXT, st.builds(SnapshotMeta, U64, U64, CONFIGURATIONS), U64),
    st.builds(ShardCreated, U32, U32, TEXT, CONFIGURATIONS),
    st.builds(ShardDestroyed, U32, U32),
    st.builds(Quarantined, U32, U32, TEXT),
    st.builds(Relocated, U32, U32, U64, ENTRY_TUPLES),
    st.builds(ClockRecord, st.lists(st.tuples(U32, U64), max_size=3).map(tuple)),
    st.builds(
        Inventory,
        U64,
        st.booleans(),
        st.lists(st.builds(InventoryLine, U32, U32, U64, U64, U64, st.booleans()), max_size=3).map(tuple),
    ),
)


@settings(max_examples=200, deadline=None)
@given(RECORDS)
def test_record_decodes_to_what_was_encoded(record: Record) -> None:
    kind, shard, incarnation, term, index, payload = encode(record)
    assert decode(kind, shard, incarnation, term, index, payload) == record


def test_every_record_type_has_a_code_of_its_own_and_a_name() -> None:
    assert sorted(KIND_NAMES) == list(range(1, 11))
    assert len(set(KIND_NAMES.values())) == 10


def test_record_of_an_unknown_type_is_refused_and_says_who_may_have_written_it() -> None:
    with pytest.raises(Corrupt, match="newer version"):
        decode(200, 1, 1, 0, 0, b"")


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10), st.binary(max_size=30))
def test_payload_that_makes_no_sense_is_corrupt_and_nothing_else(kind: int, payload: bytes) -> None:
    try:
        record = decode(kind, 1, 1, 1, 1, payload)
    except Corrupt:
        return
    assert msgspec.structs.fields(record) is not None
