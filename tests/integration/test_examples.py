"""Every example in kvctl's help, and every command of the README, run as a reader would copy them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kvstore.cli.main import cli
from kvstore.client import Client
from tests.support.local_cluster import LocalCluster, served_cluster

ROOT = Path(__file__).parents[2]
COORDINATION = ["put", "get", "del", "ls", "incr", "txn", "watch", "lock", "elect"]
LEASES = ["grant", "keepalive", "revoke", "get", "ls"]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp("examples")
    with served_cluster(directory / "cluster") as cluster:
        yield Shell(cluster, directory)


class Shell:
    """A shell in which `kvctl` is this kvctl and the cluster its default."""

    def __init__(self, cluster: LocalCluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        scripts = directory / "bin"
        scripts.mkdir(parents=True)
        kvctl = scripts / "kvctl"
        kvctl.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kvstore.cli "$@"\n')
        kvctl.chmod(0o755)
        (directory / "app.yaml").write_text("a: 1\n")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KVCTL_")},
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "KVCTL_ENDPOINTS": ",".join(cluster.client.values()),
            "HOSTNAME": "host",
        }

    def settle(self, example: str) -> None:
        """What the examples take for granted."""
        with Client(*self.cluster.client.values(), timeout=20.0) as kv:
            for key in ("user/1", "config", "image", "session/1", "cfg", "visits", "stock/42", "account/ann"):
                kv.put(key, "10")
            kv.put("account/bob", "10")
            # An example that makes the lease finds none, the others do.
            kv.revoke("worker-7")
            if "grant 1m --id worker-7" not in example:
                kv.grant(600.0, "worker-7")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            cwd=self.directory,
            env=self._environment,
        )


def examples_of(command: click.Command) -> list[str]:
    """The lines of the help's examples, without the remarks that follow after wide gaps."""
    found = re.search(r"Examples:\n(.*)", command.help or "", re.DOTALL)
    assert found is not None, f"{command.name} has no examples"
    lines = [line.strip() for line in found[1].split("\n\n")[0].splitlines()]
    return [re.split(r" {3,}", line)[0] for line in lines if line.startswith(("kvctl", "echo", "id="))]


def _command(*path: str) -> click.Command:
    found: click.Command = cli
    for name in path:
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), name)
        assert inner is not None
        found = inner
    return found


PATHS = [(name,) for name in COORDINATION] + [("lease", name) for name in LEASES]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_the_examples_of_the_help_run(shell: Shell, path: tuple[str, ...]) -> None:
    examples = examples_of(_command(*path))
    assert examples
    for example in examples:
        shell.settle(example)
        text = example.removesuffix("&").strip()
        if text != example:
            text = f"timeout --signal=INT 3 {text} || test $? -eq 124"
        done = shell.run(_fresh(text))
        assert done.returncode == 0, f"{example}\n{done.stdout}{done.stderr}"


def _fresh(example: str) -> str:
    """Revisions and positions of an example are those of its author's cluster: put in ours."""
    revision = "$(kvctl get user/1 -o json | grep -o '\"revision\": [0-9]*' | grep -o '[0-9]*')"
    return re.sub(r"(--(?:if-)?revision) 7", rf"\1 {revision}", example)


def test_every_command_has_help_with_examples() -> None:
    def walk(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        context = click.Context(group)
        for name in group.list_commands(context):
            inner = group.get_command(context, name)
            if isinstance(inner, click.Group):
                yield from walk(inner, (*path, name))
            else:
                yield (*path, name)

    for path in walk(cli, ()):
        text = _command(*path).help or ""
        assert "Examples:" in text or "Example:" in text, f"kvctl {' '.join(path)} has no examples"


README = (ROOT / "README.md").read_text()


def _blocks(language: str, after: str) -> list[str]:
    section = README.partition(f"\n## {after}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_the_curl_lines_of_the_readme_work(shell: Shell) -> None:
    (block,) = _blocks("sh", "Use")
    shell.run("kvctl del --prefix '' --yes")
    endpoint = shell.cluster.client[shell.cluster.names[0]]
    text = block.replace("127.0.0.1:7401", endpoint)
    text = text.replace("""'If-Match: "1"'""", """\"If-Match: \\"$REVISION\\"\"""")
    head = f"curl -s -o /dev/null -D - http://{endpoint}/v1/kv/user/1"
    find = f"REVISION=$({head} | grep -i ^kv-revision: | tr -dc 0-9)"
    lines = text.splitlines()
    lines.insert(2, find)
    done = shell.run(
        "set -e\n" + "\n".join(line.replace("curl ", "curl -sS --fail-with-body ", 1) for line in lines)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"succeeded":true' in done.stdout
    assert '"fence":' in done.stdout
    assert '"type":"start"' in done.stdout


def test_the_python_lines_of_the_readme_work(shell: Shell) -> None:
    (block,) = _blocks("python", "Use")
    first, second = list(shell.cluster.client.values())[:2]
    program = block.replace("127.0.0.1:7401", first).replace("127.0.0.1:7402", second)
    (shell.directory / "readme.py").write_text(program.replace("timeout=2.0", "timeout=20.0"))
    done = shell.run(f'"{sys.executable}" readme.py')
    assert done.returncode == 0, done.stderr
    assert "Resynced(" in done.stdout
