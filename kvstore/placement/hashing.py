"""From a key to its token and its shard.

A shard owns an equal, contiguous range of the 64-bit token space, so that the shard is the token's first
bits and a range can later be split without moving a key anywhere else.
"""

from mmh3 import mmh3_x64_128_utupledigest

from kvstore.types import META_SHARD, ShardId, Token

TOKEN_BITS = 64


def hash_tag(key: bytes) -> bytes:
    """Return what decides the key's shard: the first non-empty `{...}` in it, else the whole key."""
    start = key.find(b"{")
    while start >= 0:
        end = key.find(b"}", start + 1)
        if end < 0:
            return key
        if end > start + 1:
            return key[start + 1 : end]
        start = key.find(b"{", end + 1)
    return key


def token_of(key: bytes) -> Token:
    return Token(mmh3_x64_128_utupledigest(hash_tag(key) if b"{" in key else key)[0])


def token_of_name(name: str) -> Token:
    """Token of a point on the ring. Unlike a key, a name has no hash tag."""
    return Token(mmh3_x64_128_utupledigest(name.encode())[0])


class ShardMap:
    """The data shards and their ranges. `count` is a power of two and fixed for a cluster's life."""

    __slots__ = ("_shift", "count", "shards")

    def __init__(self, count: int) -> None:
        assert 0 < count < META_SHARD, "shard numbers stay below the meta shard's"
        assert count & (count - 1) == 0, "a power of two"
        self.count = count
        self.shards: tuple[ShardId, ...] = tuple(ShardId(number) for number in range(count))
        """In token order."""
        self._shift = TOKEN_BITS - (count.bit_length() - 1)

    def shard_of(self, key: bytes) -> ShardId:
        tag = hash_tag(key) if b"{" in key else key
        return mmh3_x64_128_utupledigest(tag)[0] >> self._shift  # type: ignore[return-value]

    def shard_of_token(self, token: Token) -> ShardId:
        return ShardId(token >> self._shift)

    def start_of(self, shard: ShardId) -> Token:
        """Return the first token of a data shard. The meta shard owns no range: its place on the ring is
        the token of its name."""
        if shard == META_SHARD:
            return token_of_name("meta")
        assert 0 <= shard < self.count, "one of this map's shards"
        return Token(shard << self._shift)

    def range_of(self, shard: ShardId) -> tuple[str, str]:
        """Return the first token and the last one, both inclusive, as 16 hex digits."""
        start = self.start_of(shard)
        assert shard != META_SHARD, "the meta shard owns no keys"
        return f"{start:016x}", f"{start + (1 << self._shift) - 1:016x}"
