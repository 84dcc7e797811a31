"""Global options, contexts, help, errors, start-up."""

import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from kvstore import __version__
from kvstore.cli import exit_codes
from kvstore.cli.main import _COMMANDS, cli
from kvstore.errors import BY_CODE
from tests.support.fake_cluster import FakeCluster
from tests.unit.cli.conftest import Run

ROOT = Path(__file__).parents[3]


def all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        found.append(path)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                walk(child, (*path, name))

    walk(cli, ())
    return found


def test_global_options_are_taken_on_either_side_of_the_command(run: Run) -> None:
    run("put", "a", "1")
    assert run("-o", "json", "get", "a").stdout == run("get", "-o", "json", "a").stdout
    assert run("-o", "json", "get", "a", "-o", "raw").stdout == "1"


def test_flags_win_over_the_environment(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = ",".join(cluster.endpoints)
    monkeypatch.setenv("KVCTL_ENDPOINTS", "127.0.0.1:1")
    assert run("--endpoints", good, "put", "a", "1").exit_code == 0
    assert run("get", "a", "--endpoints", good).exit_code == 0
    monkeypatch.setenv("KVCTL_OUTPUT", "json")
    assert run("get", "a", "--endpoints", good).stdout.startswith("{")


def test_a_context_fills_in_what_is_not_given(
    run: Run, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KVCTL_ENDPOINTS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "kvctl").mkdir()
    file = tmp_path / "kvctl" / "contexts.toml"
    file.write_text(f'[lab]\nendpoints = ["{cluster.endpoints[0]}"]\ntimeout = "2s"\n[odd]\nend = 1\n')
    assert run("--context", "lab", "put", "a", "1").exit_code == 0
    monkeypatch.setenv("KVCTL_CONTEXT", "lab")
    assert run("get", "a").stdout == "1"
    unknown = run("get", "a", "--context", "prod")
    assert unknown.exit_code == 2
    assert "known: lab, odd" in unknown.stderr
    assert "unknown settings: end" in run("get", "a", "--context", "odd").stderr


def test_an_endpoint_that_refuses_is_named_with_one_next_step(run: Run, cluster: FakeCluster) -> None:
    for server in cluster.servers:
        server.stop()
    begun = time.monotonic()
    refused = run("--timeout", "60s", "get", "a")
    assert refused.exit_code == 6
    assert time.monotonic() - begun < 30.0, "nothing listens: waiting for the deadline helps nobody"
    for endpoint in cluster.endpoints:
        assert f"{endpoint}  not sent: refused" in refused.stderr
    assert refused.stderr.count("next:") == 1


@pytest.mark.parametrize(
    "arguments",
    [("--endpoints", "nowhere", "get", "a"), ("--timeout", "soon", "get", "a"), ("-o", "xml", "get", "a"),
     ("get", "a", "--frobnicate"), ("frobnicate",)],
)  # fmt: skip
def test_wrong_usage_exits_2_and_sends_nothing(
    run: Run, cluster: FakeCluster, arguments: tuple[str, ...]
) -> None:
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert not cluster.seen


def test_a_misspelt_command_is_guessed(run: Run) -> None:
    assert "Did you mean 'explain'?" in run("expalin").stderr


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(run: Run, path: tuple[str, ...]) -> None:
    shown = run(*path, "--help")
    assert shown.exit_code == 0
    is_group = isinstance(_command(path), click.Group)
    assert "Example" in shown.stdout or (is_group and path)


def _command(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    return command


def test_the_table_of_commands_says_what_the_commands_say() -> None:
    context = click.Context(cli)
    for name, (_, line) in _COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.get_short_help_str(200) == line


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").stdout == f"kvctl {__version__}\n"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("key-not-found", 3), ("precondition-failed", 4), ("locked", 4), ("denied", 5), ("unauthenticated", 5),
     ("no-leader", 6), ("outcome-unknown", 6), ("timeout", 6), ("overloaded", 6), ("not-ready", 6),
     ("invalid-argument", 2), ("too-large", 1), ("disk-full", 1), ("not-a-number", 1)],
)  # fmt: skip
def test_errors_have_the_exit_codes_of_the_contract(code: str, exit_code: int) -> None:
    assert exit_codes.of_error(BY_CODE[code]()) == exit_code


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(run: Run, shell: str) -> None:
    shown = run("completion", shell)
    assert shown.exit_code == 0
    assert "_KVCTL_COMPLETE" in shown.stdout


def test_completion_offers_commands() -> None:
    environment = {
        **os.environ,
        "_KVCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "kvctl cl",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from kvstore.cli.main import main; main()"],
        env=environment, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert "cluster" in done.stdout


@pytest.mark.parametrize(("command", "found"), [("put a 1", 0), ("get a", 3)])
def test_one_shot_commands_load_little_and_nothing_heavy(
    cluster: FakeCluster, command: str, found: int
) -> None:
    """They must start in under 150 ms; aiohttp alone takes longer. Counted, for a clock would tell more about
    the machine: Python, click and http.client come to about 117 modules, ours to 22."""
    code = (
        "import sys; already = set(sys.modules); from kvstore.cli.main import cli\n"
        f"try: cli({command.split()}, prog_name='kvctl')\n"
        f"except SystemExit as end: assert end.code == {found}, end.code\n"
        "added = set(sys.modules) - already\n"
        "ours = [name for name in added if name.startswith('kvstore')]\n"
        "assert len(ours) <= 25, sorted(ours)\n"
        "assert len(added) <= 150, (len(added), sorted(added))\n"
        "heavy = ('aiohttp', 'asyncio', 'msgspec', 'rich', 'yaml', 'mmh3', 'rocksdict', 'kvstore.config')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    environment = {**os.environ, "KVCTL_ENDPOINTS": cluster.endpoints[0]}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_output_that_nobody_reads_on_is_no_error(cluster: FakeCluster) -> None:
    for number in range(3000):
        cluster.keys[b"key%05d" % number] = _stored()
    environment = {**os.environ, "KVCTL_ENDPOINTS": cluster.endpoints[0]}
    command = f"{sys.executable} -m kvstore.cli ls -o jsonl | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def _stored() -> object:
    from tests.support.fake_cluster import Stored

    return Stored(b"v" * 100, 1, 1, 1)
