"""Watches: streams of what changes, fed from the shards' change logs, see `feed` for how."""

from kvstore.node.watch.hub import Watches
from kvstore.node.watch.interests import Interest

__all__ = ["Interest", "Watches"]
