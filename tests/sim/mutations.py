"""Planted bugs: what the simulator must find, or it would not find the real ones either.

Each mutation takes one guard away or gets one step wrong, by patching a function of the shipped code for
as long as a `with` lasts. `pitfall` is the number of the entry of the list of pitfalls that it falls into.
"""

from tests.sim import mutations_locks, mutations_raft, mutations_storage, mutations_time, mutations_txn
from tests.sim.plant import MUTATIONS, Mutation

__all__ = [
    "MUTATIONS",
    "Mutation",
    "mutations_locks",
    "mutations_raft",
    "mutations_storage",
    "mutations_time",
    "mutations_txn",
]
