"""A chaos run finds planted bugs, three on each target: otherwise that it finds nothing would prove nothing.

`pytest -m chaos tests/integration/test_mutants.py`; a target that is not available here is skipped.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from chaos.catalogue import missing_for
from chaos.run import OK, VIOLATION
from chaos.targets import PROJECT

ATTEMPTS = 3
"""Faults and load meet by chance: a bug may need more than one run."""

BUGS = [
    ("local", "retries-run-again", "kill-leader,pause", "counter", "2-5"),
    ("local", "reads-anywhere", "pause", "register", "2-5"),
    ("local", "acknowledged-before-sync", "power", "mixed", "0.5-1"),
    ("hosts", "reads-without-quorum", "cut-leader", "register", "3-5"),
    ("hosts", "acknowledged-by-one", "cut-leader", "mixed", "3-5"),
    ("hosts", "retries-run-again", "partition,flap", "counter", "2-5"),
    ("compose", "retries-run-again", "kill,pause", "counter", "2-5"),
    ("compose", "reads-anywhere", "pause,unplug", "register", "2-5"),
    ("compose", "acknowledged-by-one", "isolate", "mixed", "3-5"),
]

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def run(
    target: str, nemesis: str, workload: str, fault: str, directory: Path, mutant: str = ""
) -> tuple[int, str]:
    """Exit code and output of a run."""
    command = [sys.executable, "-m", "chaos", "run", "--target", target, "--nemesis", nemesis]
    command += ["--workload", workload, "--fault", fault, "--minutes", "0.5", "--directory", str(directory)]
    command += ["--think", "10", "--mutant", mutant]
    done = subprocess.run(command, cwd=PROJECT, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    return done.returncode, done.stdout


@pytest.mark.parametrize(("target", "mutant", "nemesis", "workload", "fault"), BUGS)
def test_a_planted_bug_is_found(
    target: str, mutant: str, nemesis: str, workload: str, fault: str, tmp_path: Path
) -> None:
    missing = missing_for(nemesis.split(","), target)
    if missing:
        pytest.skip(missing)
    codes = []
    for attempt in range(ATTEMPTS):
        code, told = run(target, nemesis, workload, fault, tmp_path / str(attempt), mutant)
        codes.append(code)
        # By its answers: a cluster that breaks down would be found out without any of this.
        if code == VIOLATION and "not linearizable" in told:
            return
    pytest.fail(f"{mutant} was not found; the runs ended with {codes}")


@pytest.mark.parametrize("target", ["local", "hosts", "compose"])
def test_the_same_runs_find_nothing_without_a_bug(target: str, tmp_path: Path) -> None:
    for number, (where, _, nemesis, workload, fault) in enumerate(BUGS):
        if where == target:
            missing = missing_for(nemesis.split(","), target)
            if missing:
                pytest.skip(missing)
            assert run(target, nemesis, workload, fault, tmp_path / str(number))[0] == OK
