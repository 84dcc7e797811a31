"""The bytes of every peer message and of the identity file, fixed for ever.

A line that changes here means that two versions no longer understand each other: raise
`PROTOCOL`, or add fields at the end instead. With KV_REWRITE_GOLDEN=1 the file is written anew.
"""

from pathlib import Path

import pytest

from kvstore.node.identity import Identity, decode_identity, encode_identity
from kvstore.wire.boot_messages import MEMBER
from kvstore.wire.peer import decode, encode
from tests.compat.peer_samples import ADDRESS, BALLOT, ID, N1, PROPOSAL, SAMPLES

GOLDEN = Path(__file__).with_name("peer_frames.txt")
IDENTITY = Identity(1, "demo", N1, ID, MEMBER, BALLOT, PROPOSAL, (ADDRESS,))


def current() -> dict[str, str]:
    frames = {type(sample).__name__: encode([sample]).hex() for sample in SAMPLES}
    return frames | {"Identity": encode_identity(IDENTITY).hex()}


def golden() -> dict[str, str]:
    return dict(line.split() for line in GOLDEN.read_text().splitlines())


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_a_message_is_written_as_the_golden_bytes_and_read_from_them(sample: object) -> None:
    name = type(sample).__name__
    assert golden()[name] == current()[name]
    assert decode(bytes.fromhex(golden()[name])) == [sample]


def test_the_identity_file_is_written_as_the_golden_bytes_and_read_from_them() -> None:
    assert golden()["Identity"] == current()["Identity"]
    assert decode_identity(bytes.fromhex(golden()["Identity"]), "identity") == IDENTITY


def test_no_golden_line_was_dropped() -> None:
    assert set(golden()) == set(current())
