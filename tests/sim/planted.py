"""Does the simulator find planted bugs? `python -m tests.sim.planted [--names A,B] [--seeds 1-200]`.

For each mutation of `mutations.py`: the first seed that notices anything (an exception, a node that stops
for no reason, an invariant, a history that is not linearizable, replicas that differ), and the first that
notices it from outside, by client histories and states of replicas alone. Invariants only look, so one
run tells both. With `--no-invariants` they are off, and only what is seen from outside counts. No seed is
left out. Exit 1 if a mutation survives.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple

from tests.sim.__main__ import run_seed
from tests.sim.mutations import MUTATIONS, Mutation
from tests.sim.scenario import FAULT_PHASE_S

SEEN_FROM_OUTSIDE = (
    "not linearizable",
    "replicas of shard",
    "tablets of shard",
    "lock ",
    "watch ",
    "life ",
    "a snapshot shows half a transfer",
    "half a transfer is left",
)


class Finding(NamedTuple):
    """Seeds are None where the mutation survived."""

    seed: int | None
    outside_seed: int | None
    sign: str
    outside_sign: str
    last_seed: int
    cpu_s: float


def hunt(
    mutation: Mutation,
    seeds: Iterable[int],
    *,
    check_invariants: bool = True,
    wants_outside: bool = False,
    limit_s: float = float("inf"),
    fault_s: float = FAULT_PHASE_S,
) -> Finding:
    """Run seeds with the bug planted until one notices it; with `wants_outside`, until one sees it from
    outside or, once one has noticed it, for `limit_s` of processor time. `fault_s` are simulated seconds."""
    started = time.process_time()
    found: Finding = Finding(None, None, "SURVIVED", "", 0, 0.0)
    for seed in seeds:
        with mutation.plant():
            failures = run_seed(seed, fault_s, check_invariants=check_invariants).failures
        outside = [failure for failure in failures if failure.startswith(SEEN_FROM_OUTSIDE)]
        signs = failures if check_invariants else outside
        if signs and found.seed is None:
            found = found._replace(seed=seed, sign=signs[0].splitlines()[0])
        if outside:
            found = found._replace(outside_seed=seed, outside_sign=outside[0])
        found = found._replace(last_seed=seed, cpu_s=time.process_time() - started)
        is_enough = found.outside_seed is not None or not wants_outside or found.cpu_s > limit_s
        if found.seed is not None and is_enough:
            break
    return found


def _hunt_named(name: str, **how: Any) -> tuple[str, Finding]:
    logging.disable(logging.CRITICAL)
    return name, hunt(MUTATIONS[name], **how)


def _findings(
    names: Sequence[str], search: Callable[[str], tuple[str, Finding]], jobs: int
) -> Iterator[tuple[str, Finding]]:
    """In the order of their ends."""
    if jobs == 1:
        yield from map(search, names)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from (each.result() for each in as_completed([pool.submit(search, name) for name in names]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.planted")
    parser.add_argument("--names", help="only these, separated by commas")
    parser.add_argument("--seeds", default="1-200", help="FIRST-LAST (default 1-200)")
    parser.add_argument("--no-invariants", action="store_true", help="only client histories and state hashes")
    parser.add_argument(
        "--quick", action="store_true", help="do not go on for the first seed seen from outside"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with a mutation (default 1)")
    parser.add_argument(
        "--limit-s",
        type=float,
        default=float("inf"),
        help="seconds of processor time after which a mutation that is found is not looked at from outside",
    )
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    names = options.names.split(",") if options.names else list(MUTATIONS)
    first, _, last = options.seeds.partition("-")
    survived = outside = 0
    print(f"{'mutation':40} pitfall  seed outside  last   cpu s  first sign", flush=True)
    search = partial(
        _hunt_named,
        seeds=range(int(first), int(last or first) + 1),
        check_invariants=not options.no_invariants,
        wants_outside=not options.quick,
        limit_s=options.limit_s,
    )
    for name, found in _findings(names, search, options.jobs):
        mutation = MUTATIONS[name]
        survived += found.seed is None
        outside += found.outside_seed is not None
        print(
            f"{name:40} {mutation.pitfall:>7} {found.seed or '-':>5} {found.outside_seed or '-':>7} "
            f"{found.last_seed:>5} {found.cpu_s:>7.1f}  {found.sign[:110]}",
            flush=True,
        )
    print(f"{len(names) - survived} of {len(names)} were found, {outside} from outside")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
