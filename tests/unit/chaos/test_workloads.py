"""Workloads are found by their files, and each is complete."""

import pkgutil
from collections import Counter
from collections.abc import Sequence

import pytest

import chaos.workloads
from chaos.history import Operation
from chaos.linearizability import check
from chaos.run import Outcome, Plan, judge
from chaos.workloads import WORKLOADS, Workload


def test_every_file_of_the_folder_is_a_workload_of_its_name() -> None:
    files = {module.name for module in pkgutil.iter_modules(chaos.workloads.__path__)}
    assert files - {"base", "keys"} == set(WORKLOADS)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_a_workload_says_what_it_does_and_finds_nothing_in_an_empty_history(name: str) -> None:
    assert WORKLOADS[name].__doc__
    assert WORKLOADS[name]().check([]) == []


def test_operations_that_the_checker_does_not_know_are_left_to_the_workload() -> None:
    assert check([Operation(0, "lock", "k", None, 0, 1, "ok", {"holder": 1})]).valid


def test_what_a_workload_finds_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoHolders(Workload):
        def check(self, history: Sequence[Operation]) -> list[str]:
            return [f"{len(history)} holders"]

    monkeypatch.setitem(WORKLOADS, "holders", TwoHolders)
    plan = Plan(workload="holders", nemeses=(), faults_s=1, seed=1)
    history = [Operation(0, "lock", "k", None, 0, 1, "ok"), Operation(1, "lock", "k", None, 2, 3, "ok")]
    outcome = Outcome(plan, history, [], [], check(history), {}, Counter())
    judge(outcome)
    assert outcome.wrong == ["2 holders"]
