"""Verdicts: a run that tested nothing is inconclusive, never good."""

import random
from collections import Counter
from pathlib import Path

import pytest

from chaos.callers import Caller
from chaos.cluster import Cluster, TargetError
from chaos.history import Operation
from chaos.linearizability import check
from chaos.nemeses import Fault, Nemesis
from chaos.report import page, write_report
from chaos.run import INCONCLUSIVE, OK, VIOLATION, Outcome, Plan, judge, run, successes_by_phase
from chaos.workloads import WORKLOADS, Workload
from tests.unit.chaos.scripted_server import Answer, scripted

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
    assert "faults by node" in told
    assert "final reads" in told
    assert "http" not in told.replace("http-equiv", ""), "nothing is loaded from outside"


class Reading(Workload):
    name = "reading"

    async def step(self, caller: Caller) -> None:
        await caller.get(self.keys.draw(caller))


class Silent(Cluster):
    """Nodes with which nothing ever happens."""

    def is_running(self, name: str) -> bool:
        return True

    def wait_until_served(self, timeout_s: float = 30.0, names: object = None) -> float:
        return 0.0


class Scripted(Nemesis):
    """A fault whose tool fails, or whose node does not do what it must."""

    kind = "scripted"
    error: Exception = OSError("no such tool")

    def begin(self, now_s: float) -> Fault | None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (OSError("no such tool"), INCONCLUSIVE, "scripted did nothing"),
        (TargetError("it went on"), VIOLATION, "scripted: it went on"),
    ],
)
async def test_a_tool_that_fails_is_no_violation_and_a_node_that_misbehaves_is_one(
    error: Exception, code: int, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WORKLOADS, "reading", Reading)
    async with scripted(lambda arrived: Answer(404, {"code": "not-found"})) as server:
        cluster = Silent(Path(), ["n1"], {"n1": server.address}, shards=1)
        nemesis = Scripted(cluster, random.Random(1))
        nemesis.error = error
        plan = Plan(
            workload="reading", nemeses=("scripted",), faults_s=0.05, seed=1, clients=2, quiet_s=0.05,
            fault_s=(0, 0.01), pause_s=(0, 0.01), successes_min=1,
        )  # fmt: skip
        found = await run(cluster, plan, [nemesis], None, lambda text: None)
    assert found.exit_code == code
    assert word in "\n".join((*found.wrong, *found.reasons))
