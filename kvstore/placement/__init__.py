"""Where keys and shards live: key to token to shard, and shard to nodes by a consistent-hash ring.

Two steps that never mix. Key to shard (`hashing`) is fixed at the first boot: a ring change moves no key
to another shard. Shard to nodes (`planner`) follows the members; it is a wish, and the truth about a
shard is its own committed configuration. All functions are pure and give the same answer on every node.
"""

from kvstore.placement.hashing import ShardMap, hash_tag, token_of
from kvstore.placement.planner import Placement, place
from kvstore.placement.ring import Member, Ring

__all__ = ["Member", "Placement", "Ring", "ShardMap", "hash_tag", "place", "token_of"]
