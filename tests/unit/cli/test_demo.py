"""demo: processes that start, are waited for, and are gone however it ends. The nodes are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvstore.cli import demo
from kvstore.cli.main import cli

ROOT = Path(__file__).parents[3]
FAKE_NODE = (sys.executable, str(ROOT / "tests" / "support" / "fake_node.py"))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where demo makes its directories; they must be gone at the end."""
    monkeypatch.setattr(demo, "NODE_COMMAND", FAKE_NODE)
    monkeypatch.setattr(demo, "STOP_S", 0.3)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    assert_gone(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["demo", *arguments], prog_name="kvctl")


def running(scratch: Path) -> list[int]:
    """Processes that were started for a demo in the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(scratch).encode() in command and b"\0--node\0" in command:
                found.append(int(entry.name))
    return found


def assert_gone(scratch: Path) -> None:
    """The kernel tells children of their parent's death a moment later."""
    deadline = time.monotonic() + 30
    while running(scratch) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running(scratch) == []


def test_the_commands_exit_code_is_ours(scratch: Path) -> None:
    assert run("--exec", "true").exit_code == 0
    assert run("--exec", "exit 7").exit_code == 7
    assert run("--exec", "kill -9 $$").exit_code == 137
    assert list(scratch.iterdir()) == []


def test_the_command_sees_the_endpoints_and_kvctl(scratch: Path) -> None:
    output = scratch.parent / "seen"
    command = f'echo "$KVCTL_ENDPOINTS" > {output}; {sys.executable} -c "import kvstore" && exit 0'
    assert run("--nodes", "5", "--exec", command).exit_code == 0
    endpoints = output.read_text().strip().split(",")
    assert len(set(endpoints)) == 5
    assert all(endpoint.startswith("127.0.0.1:") for endpoint in endpoints)


def test_with_a_command_stdout_is_the_commands_alone(scratch: Path) -> None:
    done = run("--exec", "true")
    assert done.stdout == ""


def test_a_node_that_ends_at_once_is_named_with_its_log(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_NODE", "crash")
    failed = run("--exec", "true")
    assert failed.exit_code == 1
    assert "ended with exit code 1" in failed.stderr
    assert "the disk is upside down" in failed.stderr


def test_nodes_that_never_become_ready_are_given_up(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NODE", "never")
    failed = run("--nodes", "1", "--wait", "500ms", "--exec", "true")
    assert failed.exit_code == 6
    assert "not ready after 0.5 s: n1" in failed.stderr


def test_a_node_that_ignores_sigterm_is_killed(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NODE", "stubborn")
    assert run("--nodes", "1", "--exec", "true").exit_code == 0


def test_data_is_kept_on_demand(scratch: Path) -> None:
    done = run("--nodes", "1", "--keep", "--exec", "true")
    [directory] = scratch.iterdir()
    assert f"kept {directory}" in done.stderr
    assert {"cluster.yaml", "n1", "n1.log"} <= {path.name for path in directory.iterdir()}


def test_a_shard_count_that_is_no_power_of_two_is_wrong_usage(scratch: Path) -> None:
    assert run("--shards", "12").exit_code == 2


def start(scratch: Path, *arguments: str) -> subprocess.Popen[str]:
    """Run a demo as a process of its own."""
    code = (
        "import sys, tempfile; from kvstore.cli import demo; from kvstore.cli.main import main;"
        f"tempfile.tempdir = {str(scratch)!r}; demo.NODE_COMMAND = {FAKE_NODE!r};"
        f"sys.argv = ['kvctl', 'demo', *{arguments!r}]; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


@pytest.fixture
def interactive(scratch: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(scratch, "-o", "jsonl")
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_in_an_orderly_way(
    interactive: subprocess.Popen[str], scratch: Path, number: signal.Signals
) -> None:
    assert interactive.stdout is not None
    shown = json.loads(interactive.stdout.readline())
    assert len(shown["endpoints"]) == 3
    assert sorted(node["pid"] for node in shown["nodes"]) == sorted(running(scratch))
    interactive.send_signal(number)
    assert interactive.wait(60) == 0
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_interrupted_is_ended_too(scratch: Path, number: signal.Signals, code: int) -> None:
    process = start(scratch, "--exec", "echo $$ && exec sleep 60")
    assert process.stdout is not None
    command = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(60) == code
    process.communicate()
    with pytest.raises(ProcessLookupError):
        os.kill(command, 0)
    assert list(scratch.iterdir()) == []


def test_a_node_that_is_killed_is_reported_and_the_rest_goes_on(interactive: subprocess.Popen[str]) -> None:
    assert interactive.stdout is not None
    assert interactive.stderr is not None
    victim = json.loads(interactive.stdout.readline())["nodes"][1]
    os.kill(victim["pid"], signal.SIGKILL)
    assert "node n2 ended with signal SIGKILL" in interactive.stderr.readline()
    assert interactive.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_nodes_end_even_if_kvctl_is_killed(interactive: subprocess.Popen[str], scratch: Path) -> None:
    assert interactive.stdout is not None
    interactive.stdout.readline()
    interactive.kill()
    interactive.wait()
    assert_gone(scratch)
