"""Verdicts: a run that tested nothing is inconclusive, never good."""

from collections import Counter
from pathlib import Path

from chaos.history import Operation
from chaos.linearizability import check
from chaos.nemeses import Fault
from chaos.report import page, write_report
from chaos.run import INCONCLUSIVE, OK, VIOLATION, Outcome, Plan, judge, successes_by_phase

PHASES = [("before", 0.0, 5.0), ("faults", 5.0, 10.0), ("after", 10.0, 15.0), ("final reads", 15.0, 16.0)]


def reads(count: int) -> list[Operation]:
    """Reads of absent keys, spread over the phases before the final reads."""
    return [
        Operation(0, "get", f"k{number}", None, begun, begun + 0.001, "ok")
        for number, begun in ((number, 14.9 * number / count) for number in range(count))
    ]


def outcome(
    history: list[Operation], faults: list[Fault], *, unexpected: Counter[str] | None = None
) -> Outcome:
    plan = Plan(workload="register", nemeses=("kill",), faults_s=5, seed=1, successes_min=10)
    judged = Outcome(
        plan,
        history,
        faults,
        PHASES,
        check(history),
        successes_by_phase(history, PHASES),
        unexpected or Counter(),
    )
    judge(judged)
    return judged


def bitten(kind: str = "kill") -> Fault:
    return Fault(kind, ["n1"], 6.0, 8.0, bites=1, proof="1 processes replaced by new ones")


def test_a_run_with_load_in_every_phase_and_faults_that_bit_is_good() -> None:
    judged = outcome(reads(60), [bitten()])
    assert (judged.exit_code, judged.wrong, judged.reasons) == (OK, [], [])


def test_a_fault_that_did_nothing_makes_the_run_inconclusive() -> None:
    judged = outcome(reads(60), [Fault("kill", ["n1"], 6.0, 8.0)])
    assert judged.exit_code == INCONCLUSIVE
    assert judged.reasons == ["kill did nothing 1 of 1 times"]


def test_a_fault_that_never_happened_makes_the_run_inconclusive() -> None:
    assert outcome(reads(60), []).reasons == ["kill never happened"]


def test_a_phase_without_successes_makes_the_run_inconclusive() -> None:
    history = [item for item in reads(60) if not 5 <= item.invoked < 10]
    assert outcome(history, [bitten()]).reasons == ["only 0 operations succeeded in 'faults'"]


def test_a_final_read_without_answer_makes_the_run_inconclusive() -> None:
    history = [*reads(60), Operation(0, "get", "k1", None, 15.1, 15.5, "refused")]
    assert outcome(history, [bitten()]).reasons == ["1 of 1 final reads got no answer"]


def test_a_contradiction_is_a_violation_even_if_the_run_was_inconclusive() -> None:
    written = Operation(1, "put", "x", {"value": "a"}, 1.0, 1.1, "ok", {"revision": 1})
    absent = Operation(2, "get", "x", None, 2.0, 2.1, "ok", None)
    judged = outcome([*reads(60), written, absent], [])
    assert judged.exit_code == VIOLATION
    assert "get x -> absent" in judged.wrong[0]
    told = page(judged)
    assert "violation" in told
    assert "<svg" in told
    assert "put x = a" in told


def test_an_answer_that_no_client_may_get_is_a_violation() -> None:
    judged = outcome(reads(60), [bitten()], unexpected=Counter({"PUT 500 internal": 2}))
    assert judged.exit_code == VIOLATION


def test_the_report_of_a_good_run_shows_its_faults_and_phases(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", outcome(reads(60), [bitten()]))
    told = (tmp_path / "report.html").read_text()
    assert "1 processes replaced by new ones" in told
    assert "final reads" in told
    assert "http" not in told.replace("http-equiv", ""), "nothing is loaded from outside"
