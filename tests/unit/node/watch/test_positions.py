"""Positions: sealed and opened again, ordered as the changes are, refused when they are not ours."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import InvalidArgument
from kvstore.node.watch.positions import before, behind, revision_of, seal_all, seal_one, unseal
from kvstore.types import ShardId
from kvstore.wire import api

SHARDS = [ShardId(number) for number in range(4)]
ats = st.one_of(
    st.integers(0, 1 << 40).map(behind),
    st.builds(before, st.integers(1, 1 << 40), st.integers(0, 10_000)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ats, min_size=4, max_size=4))
def test_a_position_over_all_shards_is_read_as_it_was_written(stands: list[int]) -> None:
    assert unseal(seal_all(stands), SHARDS, SHARDS) == dict(zip(SHARDS, stands, strict=True))
    assert unseal(seal_all(stands), SHARDS, SHARDS[2:3]) == {SHARDS[2]: stands[2]}


@settings(max_examples=60, deadline=None)
@given(ats)
def test_a_position_in_one_shard_is_read_as_it_was_written(at: int) -> None:
    assert unseal(seal_one(SHARDS[3], at), SHARDS, [SHARDS[3]]) == {SHARDS[3]: at}


def test_positions_sort_as_changes_do() -> None:
    in_order = [behind(0), before(1, 1), before(1, 2), behind(1), before(2, 1), behind(2)]
    assert in_order == sorted(in_order)
    assert behind(1) == before(2)
    assert revision_of(before(7, 3)) == 7


def test_a_position_in_one_shard_does_not_do_for_others() -> None:
    sealed = seal_one(SHARDS[1], behind(4))
    for wanted in (SHARDS, SHARDS[:1]):
        with pytest.raises(InvalidArgument, match="narrower"):
            unseal(sealed, SHARDS, wanted)


@pytest.mark.parametrize(
    "content",
    [[], [1, 2], [1, 2, 3, -1], [1, 2, 3, None], [1, 2, 3, [4]], [1, 2, 3, [4, 0]], [1, 2, 3, [4, 1 << 24]]],
)
def test_what_was_sealed_but_is_no_position_is_refused(content: list[Any]) -> None:
    with pytest.raises(InvalidArgument):
        unseal(api.seal("pos", content), SHARDS, SHARDS)


def test_other_sealed_strings_are_no_positions() -> None:
    with pytest.raises(InvalidArgument):
        unseal(api.seal("cursor", [1, 2, 3, 4]), SHARDS, SHARDS)


def test_the_form_of_a_scans_position_stays() -> None:
    """Clients keep positions over upgrades."""
    assert seal_all([behind(1), behind(2)]) == api.seal("pos", [1, 2])
    assert seal_one(ShardId(3), before(6, 2)) == api.seal("pos", [{3: [5, 2]}])
