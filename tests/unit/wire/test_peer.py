"""Frames between nodes: whatever is sent arrives equal, whatever is not a frame is refused."""

from contextlib import suppress
from typing import Any, get_args

import google_crc32c
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.raft.messages import Configuration, Entry, Heartbeat, Message, SnapshotMeta, VoteReply
from kvstore.types import LogIndex, NodeId, ReplicaId, ShardId, Term
from kvstore.wire import peer
from kvstore.wire.boot_messages import Ballot, BootState, Directory, Proposal, ShardPlan
from kvstore.wire.peer import FRAME_BYTES_MAX, PeerMessage, PeerProtocolError, decode, encode
from kvstore.wire.snapshot_messages import SnapshotChunk, SnapshotFile, SnapshotManifest
from tests.compat.peer_samples import SAMPLES


def framed(body: bytes) -> bytes:
    return int(google_crc32c.value(body)).to_bytes(4, "big") + body


def test_every_kind_of_message_survives_the_wire() -> None:
    assert {type(sample) for sample in SAMPLES} == set(get_args(PeerMessage))
    assert decode(encode(SAMPLES)) == SAMPLES
    for sample in SAMPLES:
        assert decode(encode([sample])) == [sample]


def test_raft_messages_of_every_kind_survive_inside_their_envelope() -> None:
    (envelope,) = [sample for sample in SAMPLES if isinstance(sample, peer.RaftMessages)]
    assert {type(message) for message in envelope.messages} == set(get_args(Message))


def test_tags_are_never_shared() -> None:
    tags = [msgspec.inspect.type_info(kind).tag for kind in get_args(PeerMessage)]  # type: ignore[union-attr]
    assert len(set(tags)) == len(tags)


def test_every_flipped_bit_and_every_truncation_is_refused() -> None:
    frame = encode([peer.IndexRequest(7, ShardId(3)), peer.IndexReply(7, LogIndex(9), None)])
    for position in range(len(frame)):
        for bit in range(8):
            flipped = bytearray(frame)
            flipped[position] ^= 1 << bit
            with pytest.raises(PeerProtocolError):
                decode(bytes(flipped))
        with pytest.raises(PeerProtocolError):
            decode(frame[:position])
    with pytest.raises(PeerProtocolError):
        decode(frame + b"\0")


@pytest.mark.parametrize(
    "content",
    [
        {},
        None,
        7,
        [7],
        [[]],
        [[99, 1]],
        [["Beat", 1, 2, None, []]],
        [[8, -1, 3]],
        [[8, "7", 3]],
        [[8, 7]],
        [[8, 7, 3.5]],
        [[4, 3, [[9, "a", "b"]]]],
        [[4, 3, [[5, "a/1", "b/1", "five", 1, 1]]]],
        [[5, 1, 2, "text", True, 5]],
        [[5, 1, 2, b"bytes", 1, 5]],
        [[1, 1, "c" * 2000, None, "n1", 0, 0, b"", ["n1", 1, "", ""]]],
        [[1, 1, "c", b"short", "n1", 0, 0, b"", ["n1", 1, "", ""]]],
        [[1, 1, "c", None, "", 0, 0, b"", ["n1", 1, "", ""]]],
        [[16, 1, b"s" * 16, 0, -1, b""]],
        [[14, 1, b"s" * 16, [1, 1, [[], [], [], []]], 0, []]],
    ],
)
def test_a_well_formed_array_of_something_else_is_refused(content: Any) -> None:
    with pytest.raises(PeerProtocolError, match="malformed"):
        decode(framed(msgspec.msgpack.encode(content)))


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    with pytest.raises(PeerProtocolError):
        decode(framed(b"\x91" * 100_000 + b"\xc0"))


def test_a_later_version_may_add_fields_at_the_end() -> None:
    longer = framed(msgspec.msgpack.encode([[8, 7, 3, "new", 1]]))
    assert decode(longer) == [peer.IndexRequest(7, ShardId(3))]


def test_a_frame_above_the_bound_is_refused_on_both_sides() -> None:
    big = SnapshotChunk(ShardId(1), b"s" * 16, 0, 0, bytes(8 << 20))
    assert decode(encode([big]))
    with pytest.raises(PeerProtocolError, match="exceeds"):
        encode([big, big])
    with pytest.raises(PeerProtocolError, match="expected 5 to"):
        decode(bytes(FRAME_BYTES_MAX + 1))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_with_a_good_checksum_never_do_more_than_be_refused(body: bytes) -> None:
    with suppress(PeerProtocolError):
        decode(framed(body))


names = st.text(min_size=1, max_size=20)
numbers = st.integers(0, 2**63 - 1)
replicas = st.builds(lambda name, number: ReplicaId(f"{name}/{number}"), names, st.integers(1, 9))
configurations = st.builds(Configuration, *[st.tuples(replicas) | st.just(())] * 4)
metas = st.builds(SnapshotMeta, numbers, numbers, configurations)
entries = st.builds(Entry, numbers, numbers, st.integers(0, 2), st.binary(max_size=50))
raft_messages = st.one_of(
    st.builds(Heartbeat, replicas, replicas, numbers, numbers, numbers),
    st.builds(VoteReply, replicas, replicas, numbers, st.booleans(), st.booleans(), numbers),
)
ids = st.binary(min_size=16, max_size=16)
proposals = st.builds(
    Proposal,
    st.builds(Ballot, numbers, st.binary(max_size=16)),
    ids,
    st.binary(max_size=32),
    st.lists(st.builds(ShardPlan, st.integers(0, 65535), st.tuples(replicas)), max_size=3).map(tuple),
    st.lists(st.builds(Directory, names, ids), max_size=3).map(tuple),
)
messages = st.one_of(
    st.builds(peer.RaftMessages, numbers, st.lists(raft_messages, max_size=4).map(tuple)),
    st.builds(peer.ForwardWrite, numbers, numbers, st.binary(max_size=99), st.booleans(), numbers),
    st.builds(
        BootState,
        names.map(NodeId),
        ids,
        st.integers(0, 3),
        st.dictionaries(names, names, max_size=3),
        st.builds(Ballot, numbers, st.binary(max_size=16)),
        st.none() | proposals,
        st.booleans(),
    ),
    st.builds(
        SnapshotManifest,
        numbers,
        ids,
        metas,
        st.integers(1, 8 << 20),
        st.lists(
            st.builds(
                SnapshotFile, names, numbers, st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple)
            ),
            max_size=3,
        ).map(tuple),
    ),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(messages, max_size=4))
def test_what_is_encoded_is_decoded_equal(batch: list[PeerMessage]) -> None:
    assert decode(encode(batch)) == batch


def test_a_vote_of_an_older_node_without_a_clock_is_understood() -> None:
    body = msgspec.msgpack.encode([[4, 1, [[2, "a/1", "b/1", 5, True, False]]]])
    expected = VoteReply(ReplicaId("a/1"), ReplicaId("b/1"), Term(5), True, False, 0)
    assert decode(framed(body)) == [peer.RaftMessages(ShardId(1), (expected,))]
