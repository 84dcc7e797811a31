"""The command line of a node: what is wrong is said before anything is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvstore import __version__
from kvstore.config import Config
from kvstore.node import __main__ as command
from kvstore.node import server

CONFIG = """
cluster: demo
replication: 1
shards: 2
nodes:
  - {id: n1, client: "127.0.0.1:1", peer: "127.0.0.1:2"}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(CONFIG)
    return path


def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """What `server.run` is called with instead of running."""
    calls: list[tuple[str, str, str]] = []

    def run(config: Config, me: str, data: str) -> int:
        calls.append((config.cluster, me, data))
        return 7

    monkeypatch.setattr(server, "run", run)
    return calls


def test_it_runs_the_node_and_passes_its_exit_code_on(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = started(monkeypatch)
    assert command.run(["--config", str(config), "--node", "n1", "--data", "/somewhere"]) == 7
    assert command.run(["--config", str(config), "--node", "n1"]) == 7
    assert calls == [("demo", "n1", "/somewhere"), ("demo", "n1", "data/n1")]


def test_main_exits_with_that_code(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch)
    with pytest.raises(SystemExit) as exit_:
        command.main(["--config", str(config), "--node", "n1"])
    assert exit_.value.code == 7


@pytest.mark.parametrize(
    ("content", "node", "said"),
    [
        (None, "n1", "No such file"),
        (CONFIG, "n9", "n9"),
        (CONFIG.replace("shards: 2", "shards: 3"), "n1", "shards"),
        ("{", "n1", "cluster.yaml"),
    ],
    ids=["missing", "unknown node", "bad value", "no yaml"],
)
def test_a_wrong_configuration_is_a_usage_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    node: str,
    said: str,
) -> None:
    calls = started(monkeypatch)
    path = tmp_path / "cluster.yaml"
    if content is not None:
        path.write_text(content)
    assert command.run(["--config", str(path), "--node", node]) == command.USAGE
    error = capsys.readouterr().err
    assert error.startswith("kvstored: ")
    assert said in error
    assert calls == []


def test_bytes_that_are_no_text_are_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert command.run(["--config", str(path), "--node", "n1"]) == command.USAGE


def test_missing_arguments_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.run([])
    assert exit_.value.code == command.USAGE
    assert "--config" in capsys.readouterr().err


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.run(["--version"])
    assert exit_.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_it_refuses_to_run_without_assertions(config: Path) -> None:
    arguments = [sys.executable, "-O", "-m", "kvstore.node", "--config", str(config), "--node", "n1"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == command.USAGE
    assert "without assertions" in done.stderr
