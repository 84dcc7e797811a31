"""Streams of the blocking client."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.client.sync_http import Chunks


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 50))
def test_chunks_come_out_as_they_were_put_in_however_they_are_cut(pieces: list[bytes], step: int) -> None:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    chunks, found = Chunks(), b""
    for at in range(0, len(framed), step):
        assert not chunks.is_over or at >= len(framed) - 4
        found += chunks.feed(framed[at : at + step])
    assert found == b"".join(pieces)
    assert chunks.is_over


def test_a_chunk_is_given_out_before_the_next_one_begins() -> None:
    chunks = Chunks()
    assert chunks.feed(b"3;name=value\r\nabc") == b"abc"
    assert chunks.feed(b"\r\n") == b""
    assert chunks.feed(b"1\r\nd") == b"d"
    assert not chunks.is_over


@pytest.mark.parametrize("nonsense", [b"hello\r\n", b"x" * 100, b"\r\n"])
def test_what_is_no_chunk_is_refused(nonsense: bytes) -> None:
    with pytest.raises(ValueError, match="chunk|literal"):
        Chunks().feed(nonsense)
