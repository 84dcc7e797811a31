"""Run seeds: `python -m tests.sim --seeds 1-200`, `--minutes 10`, or one seed with its trace: `--seed 7`.

Prints a progress line to stderr, every failure with the command that replays it, and at the end what
the runs covered. Exit 1 if any seed failed.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from contextlib import nullcontext
from functools import partial
from tempfile import TemporaryDirectory

from tests.sim.coverage import Coverage
from tests.sim.scenario import FAULT_PHASE_S, Outcome, Scenario
from tests.sim.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seeds", default="1-50", help="FIRST-LAST (default 1-50)")
    parser.add_argument("--minutes", type=float, help="run seeds from FIRST on for this long instead")
    parser.add_argument("--seed", type=int, help="one seed, with its trace on stdout")
    parser.add_argument(
        "--raft-trace", metavar="FILE", help="with --seed: every Raft event, as docs/trace.md"
    )
    parser.add_argument("--no-invariants", action="store_true", help="only client histories and state hashes")
    parser.add_argument("--fault-s", type=float, default=FAULT_PHASE_S, help="simulated seconds of faults")
    parser.add_argument(
        "--rocksdb",
        action="store_true",
        help="tablets on RocksDB in a temporary directory, see real_tablets.py",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that run seeds (default 1)")
    parser.add_argument(
        "--aside",
        action="store_true",
        help="take only what processor others leave, as beside a chaos run",
    )
    options = parser.parse_args()
    if options.seed is not None:
        if options.aside or options.jobs != 1 or options.minutes is not None:
            parser.error("--seed runs one seed in this process: --aside, --jobs and --minutes are for many")
        with open(options.raft_trace or os.devnull, "wb", buffering=1 << 20) as file:
            raft_trace = file if options.raft_trace else None
            with TemporaryDirectory(prefix="sim-") if options.rocksdb else nullcontext() as root:
                scenario = Scenario(
                    options.seed,
                    check_invariants=not options.no_invariants,
                    trace=True,
                    fault_s=options.fault_s,
                    raft_trace=raft_trace,
                    tablets_root=root,
                )
                return _replay(scenario)
    if options.raft_trace:
        parser.error("--raft-trace needs --seed")
    started = time.monotonic()
    total = Coverage()
    for outcome in _outcomes(options):
        total.add(outcome)
        if outcome.failures:
            print(report(outcome, options.fault_s) + " --rocksdb" * options.rocksdb, flush=True)
        elapsed = time.monotonic() - started
        print(f"\r{total.line(elapsed)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    print(total.summary(time.monotonic() - started))
    return 1 if total.failed else 0


def _outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    """As the seeds end, which with `--jobs` is not their order."""
    run = partial(
        run_seed,
        fault_s=options.fault_s,
        check_invariants=not options.no_invariants,
        on_rocksdb=options.rocksdb,
        aside=options.aside,
    )
    seeds = _seeds(options.seeds, options.minutes)
    if options.jobs == 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(options.jobs) as pool:
        running: set[Future[Outcome]] = set()
        for seed in seeds:
            running.add(pool.submit(_without_history, run, seed))
            while len(running) >= 2 * options.jobs:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        yield from (each.result() for each in as_completed(running))


def _without_history(run: Callable[[int], Outcome], seed: int) -> Outcome:
    outcome = run(seed)
    outcome.history.clear()
    return outcome


def run_seed(
    seed: int,
    fault_s: float = FAULT_PHASE_S,
    *,
    check_invariants: bool = True,
    on_rocksdb: bool = False,
    aside: bool = False,
) -> Outcome:
    """One seed; an exception of the code under test is a failure like any other."""
    with TemporaryDirectory(prefix="sim-") if on_rocksdb else nullcontext() as root:
        scenario = Scenario(seed, check_invariants=check_invariants, fault_s=fault_s, tablets_root=root)
        if aside:
            _step_aside(scenario.world)
        gc.disable()
        try:
            return scenario.run()
        except Exception:  # noqa: BLE001 - recorded by the scenario
            return scenario.outcome()
        finally:
            del scenario
            gc.enable()
            gc.collect()


def _step_aside(world: World) -> None:
    """Ask after each event whether others want the processor: where the kernel does not preempt, who has
    waited for a disk would get it only with the next tick, and every sync would take 4 ms."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    after_event = world.after_event

    def stepped() -> None:
        after_event()
        os.sched_yield()

    world.after_event = stepped


def _replay(scenario: Scenario) -> int:
    try:
        outcome = scenario.run()
    finally:
        print("\n".join(scenario.world.trace or []))
    print(outcome.faults, outcome.states, outcome.counts)
    if outcome.failures:
        print(report(outcome, scenario.fault_s))
    return 1 if outcome.failures else 0


def _seeds(text: str, minutes: float | None) -> Iterator[int]:
    first, _, last = text.partition("-")
    seed, end = int(first), time.monotonic() + (minutes or 0) * 60
    while time.monotonic() < end if minutes else seed <= int(last or first):
        yield seed
        seed += 1


def report(outcome: Outcome, fault_s: float) -> str:
    """What went wrong, and how to see it again."""
    lines = [f"seed {outcome.seed} failed:", *(f"  {failure}" for failure in outcome.failures[:10])]
    return "\n".join([*lines, f"replay: python -m tests.sim --seed {outcome.seed} --fault-s {fault_s:g}"])


if __name__ == "__main__":
    sys.exit(main())
