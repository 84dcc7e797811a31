"""Which faults go with which target, and that every scenario names only what exists."""

import shlex
from pathlib import Path

import pytest

from chaos import catalogue
from chaos.__main__ import _parser, main
from chaos.run import INCONCLUSIVE

SCENARIOS = Path(catalogue.__file__).parent / "scenarios"


@pytest.fixture(autouse=True)
def everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("can_make_networks", "can_inject", "can_mount", "can_compose", "can_fake_clocks"):
        monkeypatch.setattr(catalogue, name, lambda *_: None)


def test_an_unknown_fault_is_refused_with_those_that_are_known() -> None:
    told = catalogue.misuse(["kill", "meteor"], "local")
    assert told is not None
    assert "meteor" in told
    assert "kill-leader" in told


@pytest.mark.parametrize(
    ("fault", "target"),
    [("partition", "local"), ("unplug", "hosts"), ("power", "compose"), ("clock", "compose")],
)
def test_a_fault_that_a_target_cannot_have_is_refused(fault: str, target: str) -> None:
    assert catalogue.misuse([fault], target) is not None


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "can_inject", lambda: "needs strace")
    assert catalogue.missing_for(["slow-disk"], "local") == "slow-disk needs strace"


def test_every_fault_is_described() -> None:
    told = catalogue.describe()
    for name in ("kill", "power", "partition", "unplug"):
        assert f"  {name} " in told


@pytest.mark.parametrize("path", sorted(SCENARIOS.iterdir()), ids=lambda path: path.name)
def test_a_scenario_is_one_command_that_can_run(path: Path) -> None:
    first, comment, command = path.read_text().splitlines()
    assert first == "#!/bin/sh"
    assert comment.startswith("# ")
    words = shlex.split(command)
    assert words[:4] == ["exec", "python", "-m", "chaos"]
    options = _parser().parse_args([word for word in words[4:] if word != "$@"])
    (target,) = options.target
    assert catalogue.misuse(options.nemesis.split(","), target) is None


def test_a_target_that_is_not_here_is_told_as_not_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(catalogue, "can_compose", lambda: "needs docker")
    assert main(["run", "--target", "compose", "--nemesis", "kill"]) == INCONCLUSIVE
    assert "not done: the target compose needs docker" in capsys.readouterr().out


def test_all_faults_of_a_target_are_faults_that_it_can_have() -> None:
    for target in catalogue.TARGETS:
        assert catalogue.misuse(tuple(catalogue.faults_of(target)), target) is None
