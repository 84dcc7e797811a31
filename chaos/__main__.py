"""`python -m chaos run`: break a cluster under load and say whether it kept its promises.

    python -m chaos run --workload mixed --nemesis kill-leader,pause --minutes 2
    python -m chaos run --target all --nemesis all --minutes 30 --think 150
    python -m chaos check HISTORY.jsonl        judge a history again

Exit codes: 0 nothing found and everything was tested; 1 a promise was broken; 7 inconclusive (a fault that
did not bite, too few operations, a group of keys that could not be decided, a target that is not here).
"""

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from chaos.catalogue import TARGETS, Target, describe, faults_of, missing_for, misuse
from chaos.cluster import TargetError
from chaos.explain import core_of, explanation
from chaos.history import load
from chaos.linearizability import check
from chaos.report import write_report
from chaos.run import INCONCLUSIVE, OK, VIOLATION, Outcome, Plan, run
from chaos.workloads import WORKLOADS

USAGE = 2
START_S = 120.0
WORDS = {OK: "ok", VIOLATION: "violation", INCONCLUSIVE: "inconclusive or not done, see above"}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "check":
        return _check(options.history, options.workload)
    if options.command == "list":
        print(describe())
        return OK
    if len(options.target) > 1:
        return _run_in_turn(options, list(sys.argv[1:] if arguments is None else arguments))
    return _run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="break a cluster under load")
    runs.add_argument("--workload", choices=sorted(WORKLOADS), default="mixed")
    runs.add_argument("--nemesis", default="kill-leader,pause", help="separated by commas, or all, or none")
    runs.add_argument("--minutes", type=float, default=1.0, help="of faults")
    runs.add_argument("--target", type=_targets, default=("local",), help="separated by commas, or all")
    runs.add_argument("--nodes", type=int, default=3)
    runs.add_argument("--shards", type=int, default=16)
    runs.add_argument("--clients", type=int, default=16)
    runs.add_argument(
        "--think", type=float, default=0.0, metavar="MS", help="mean pause of a client between rounds"
    )
    runs.add_argument("--seed", type=int, default=None, help="of the schedule of faults; random by default")
    runs.add_argument("--fault", type=_span, default=(1.0, 6.0), metavar="A-B", help="seconds a fault lasts")
    runs.add_argument("--pause", type=_span, default=(1.0, 4.0), metavar="A-B", help="seconds between faults")
    runs.add_argument("--at-once", type=int, default=2, help="faults at the same time, at most")
    runs.add_argument("--mutant", default="", help="plant a known bug (chaos/mutants): the run must find it")
    runs.add_argument("--directory", type=Path, default=None, help="for data, logs, history and report.html")
    commands.add_parser("list", help="show every nemesis, what it does and what it needs")
    checks = commands.add_parser("check", help="judge a history that an earlier run wrote")
    checks.add_argument("history", type=Path)
    checks.add_argument("--workload", choices=sorted(WORKLOADS), default="mixed", help="that made it")
    return parser


def _targets(text: str) -> tuple[str, ...]:
    targets = ("local", "compose", "hosts") if text == "all" else tuple(text.split(","))
    if unknown := [target for target in targets if target not in TARGETS]:
        raise argparse.ArgumentTypeError(f"unknown target {', '.join(unknown)}; known: {', '.join(TARGETS)}")
    return targets


def _names(nemesis: str, target: str) -> tuple[str, ...]:
    if nemesis == "all":
        return tuple(faults_of(target))
    return tuple(name for name in nemesis.split(",") if name and name != "none")


def _span(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    return float(low), float(high or low)


def _run(options: argparse.Namespace) -> int:
    (target_name,) = options.target
    names = _names(options.nemesis, target_name)
    if complaint := misuse(names, target_name):
        print(complaint, file=sys.stderr)
        return USAGE
    if missing := missing_for(names, target_name):
        print(f"not done: {missing}")
        return INCONCLUSIVE
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    plan = Plan(
        workload=options.workload,
        nemeses=names,
        faults_s=options.minutes * 60,
        seed=seed,
        clients=options.clients,
        fault_s=options.fault,
        pause_s=options.pause,
        at_once_max=options.at_once,
        think_s=options.think / 1000,
    )
    # So that containers, mounts and namespaces are cleared away however the run ends.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    directory = options.directory or Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"seed {seed}, everything in {directory}", flush=True)
    try:
        outcome = _carry_out(options, target_name, names, plan, directory)
    except (TargetError, OSError) as error:
        print(f"inconclusive: the run could not be carried out\n{error}")
        return INCONCLUSIVE
    write_report(directory / "report.html", outcome)
    _print(outcome)
    print(f"report: {directory / 'report.html'}")
    return outcome.exit_code


def _carry_out(
    options: argparse.Namespace, target_name: str, names: tuple[str, ...], plan: Plan, directory: Path
) -> Outcome:
    with Target(target_name, directory, names, options.nodes, options.shards, options.mutant) as target:
        target.cluster.start()
        target.cluster.wait_until_served(START_S)
        nemeses = target.nemeses(names, random.Random(plan.seed))
        return asyncio.run(run(target.cluster, plan, nemeses, directory / "history.jsonl", _say))


def _run_in_turn(options: argparse.Namespace, arguments: list[str]) -> int:
    """The same run on each target, in a process of its own; each has the faults that it can have."""
    directory = options.directory or Path(tempfile.mkdtemp(prefix="chaos-"))
    codes = {}
    for target in options.target:
        own = [name for name in _names(options.nemesis, target) if name in faults_of(target)]
        command = [sys.executable, "-m", "chaos", *arguments, "--target", target]
        command += ["--nemesis", ",".join(own) or "none", "--directory", str(directory / target)]
        print(f"== {target}", flush=True)
        codes[target] = subprocess.run(command, check=False).returncode
    print("==")
    for target, code in codes.items():
        print(f"{target}: {WORDS.get(code, f'ended with {code}')}")
    return next((code for code in (VIOLATION, INCONCLUSIVE) if code in codes.values()), max(codes.values()))


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


def _print(outcome: Outcome) -> None:
    for text in (*outcome.wrong, *outcome.reasons):
        print(text)
    told = ", ".join(f"{name} {count}" for name, count in outcome.successes.items())
    print(
        f"{outcome.word}: {len(outcome.history)} operations, {len(outcome.faults)} faults; succeeded: {told}"
    )


def _check(path: Path, workload: str) -> int:
    history = load(path)
    verdict = check(history)
    for violation in verdict.violations:
        print(f"keys {', '.join(violation.keys)}: not linearizable")
        print(explanation(core_of(violation)))
    wrong = WORKLOADS[workload]().check(history)
    for text in wrong:
        print(text)
    for keys in verdict.undecided:
        print(f"keys {', '.join(keys[:3])}: not decided within the budget")
    valid = False if wrong else verdict.valid
    print(f"{verdict.operations} operations on {verdict.partitions} groups of keys: valid={valid}")
    return {True: OK, False: VIOLATION, None: INCONCLUSIVE}[valid]


if __name__ == "__main__":
    sys.exit(main())
