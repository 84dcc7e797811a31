"""Does the simulator find planted bugs? `python -m tests.sim.planted [--names A,B] [--seeds 1-200]`.

For each mutation of `mutations.py` the first seed that notices anything: an exception, a node that stops
for no reason, an invariant, a history that is not linearizable, replicas that differ. With
`--no-invariants` only client histories and state hashes count. Exit 1 if a mutation survives.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from tests.sim.__main__ import run_seed
from tests.sim.mutations import MUTATIONS, Mutation

SEEN_FROM_OUTSIDE = ("not linearizable", "replicas of shard", "tablets of shard")


class Finding(NamedTuple):
    name: str
    pitfall: int
    seed: int | None
    """The first that caught it, None if it survived."""
    what: str
    seconds: float


def hunt(mutation: Mutation, seeds: Iterable[int], *, check_invariants: bool = True) -> Finding:
    """Run seeds with the bug planted until one notices it."""
    started = time.monotonic()
    for seed in seeds:
        with mutation.plant():
            failures = run_seed(seed, check_invariants=check_invariants).failures
        if not check_invariants:
            failures = [failure for failure in failures if failure.startswith(SEEN_FROM_OUTSIDE)]
        if failures:
            what = failures[0].splitlines()[0]
            return Finding(mutation.name, mutation.pitfall, seed, what, time.monotonic() - started)
    return Finding(mutation.name, mutation.pitfall, None, "SURVIVED", time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.planted")
    parser.add_argument("--names", help="only these, separated by commas")
    parser.add_argument("--seeds", default="1-200", help="FIRST-LAST (default 1-200)")
    parser.add_argument("--no-invariants", action="store_true", help="only client histories and state hashes")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    names = options.names.split(",") if options.names else list(MUTATIONS)
    first, _, last = options.seeds.partition("-")
    survived = 0
    print(f"{'mutation':40} {'pitfall':>7} {'seed':>5} {'wall s':>7}  first sign", flush=True)
    for name in names:
        seeds = range(int(first), int(last or first) + 1)
        found = hunt(MUTATIONS[name], seeds, check_invariants=not options.no_invariants)
        survived += found.seed is None
        seed = found.seed if found.seed is not None else "-"
        print(f"{name:40} {found.pitfall:>7} {seed:>5} {found.seconds:>7.1f}  {found.what[:110]}", flush=True)
    print(f"{len(names) - survived} of {len(names)} were found")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
