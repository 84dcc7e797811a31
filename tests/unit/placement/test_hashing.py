import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.placement.hashing import ShardMap, hash_tag, token_of
from kvstore.types import META_SHARD, ShardId, Token


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        (b"plain", b"plain"),
        (b"", b""),
        (b"cart{ann}", b"ann"),
        (b"{ann}cart{bob}", b"ann"),
        (b"a{}b", b"a{}b"),
        (b"a{}{bob}", b"bob"),
        (b"a{bob", b"a{bob"),
        (b"}{bob}", b"bob"),
        (b"{{bob}}", b"{bob"),
        (b"\xff{\x00}", b"\x00"),
    ],
)
def test_tag_is_the_first_one_that_is_not_empty(key: bytes, tag: bytes) -> None:
    assert hash_tag(key) == tag


def test_keys_with_the_same_tag_share_a_shard() -> None:
    shard_of = ShardMap(1024).shard_of
    assert shard_of(b"cart/{ann}") == shard_of(b"{ann}/orders") == shard_of(b"ann")


def test_tag_of_a_hostile_key_takes_linear_time() -> None:
    key = b"{" * 1_000_000
    assert hash_tag(key) == key


def test_tokens_never_change_between_versions() -> None:
    # Written down from mmh3 x64-128, seed 0, first half: another value would lose every stored key.
    assert token_of(b"") == 0
    assert token_of(b"a") == 0x85555565F6597889
    assert token_of(b"user/123456") == 0xCA9D6998C45E2DED
    assert token_of(b"x{user/123456}") == 0xCA9D6998C45E2DED


@given(st.binary(max_size=64), st.integers(0, 12))
def test_shard_is_the_one_whose_range_holds_the_token(key: bytes, bits: int) -> None:
    shard_map = ShardMap(1 << bits)
    start, end = shard_map.range_of(shard_map.shard_of(key))
    assert start <= f"{token_of(key):016x}" <= end
    assert shard_map.shard_of_token(token_of(key)) == shard_map.shard_of(key)


@pytest.mark.parametrize("count", [1, 2, 16, 4096])
def test_ranges_cover_the_token_space_without_gap_or_overlap(count: int) -> None:
    shard_map = ShardMap(count)
    ranges = [shard_map.range_of(shard) for shard in shard_map.shards]
    assert ranges[0][0] == "0" * 16
    assert ranges[-1][1] == "f" * 16
    for (_, end), (start, _) in zip(ranges, ranges[1:], strict=False):
        assert int(start, 16) == int(end, 16) + 1


def test_doubling_the_shards_splits_ranges_and_moves_nothing_across() -> None:
    coarse, fine = ShardMap(16), ShardMap(32)
    for number in range(1000):
        key = f"key/{number}".encode()
        assert fine.shard_of(key) // 2 == coarse.shard_of(key)


def test_keys_spread_evenly_over_shards() -> None:
    shard_map = ShardMap(16)
    counts = [0] * 16
    for number in range(16_000):
        counts[shard_map.shard_of(f"user/{number}".encode())] += 1
    assert all(850 <= count <= 1150 for count in counts), counts


@pytest.mark.parametrize("count", [0, 3, 12, META_SHARD + 1])
def test_shard_count_must_be_a_power_of_two_below_the_meta_shard(count: int) -> None:
    with pytest.raises(AssertionError):
        ShardMap(count)


def test_meta_shard_has_a_place_on_the_ring_but_no_range() -> None:
    shard_map = ShardMap(16)
    assert 0 <= shard_map.start_of(META_SHARD) < 1 << 64
    with pytest.raises(AssertionError):
        shard_map.range_of(META_SHARD)


def test_one_shard_owns_everything() -> None:
    shard_map = ShardMap(1)
    assert shard_map.shards == (ShardId(0),)
    assert shard_map.range_of(ShardId(0)) == ("0" * 16, "f" * 16)
    assert shard_map.shard_of_token(Token((1 << 64) - 1)) == 0
