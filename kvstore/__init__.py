"""A strongly consistent, sharded key-value store: Raft groups on a consistent-hash ring."""

__version__ = "0.1.0"
