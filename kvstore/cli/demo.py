"""demo: a real cluster of processes in a temporary directory, gone when it ends."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

import kvstore
from kvstore.cli import exit_codes, output
from kvstore.cli.child import die_with_parent
from kvstore.cli.command import Command, pass_settings
from kvstore.cli.failures import Failure, Quiet
from kvstore.cli.init import cluster_yaml
from kvstore.cli.settings import DURATION, Settings

POLL_S = 0.05
STOP_S = 10.0
"""A process that has not ended cleanly after this is killed."""
LOG_TAIL_LINES = 15
NODE_COMMAND = (sys.executable, "-m", "kvstore.node")


@click.command(cls=Command, short_help="Run a real cluster of processes in a temporary directory.")
@click.option("--nodes", "node_count", type=click.IntRange(1, 15), default=3, show_default=True)
@click.option("--shards", type=click.IntRange(1, 4096), default=16, show_default=True, help="A power of two.")
@click.option("--exec", "command", metavar="CMD", help="Run CMD in a shell against the cluster, then stop.")
@click.option("--keep", is_flag=True, help="Leave the directory with data and logs behind.")
@click.option(
    "--wait", "ready_s", type=DURATION, default="30s", show_default=True, help="Time to become ready."
)
@pass_settings
def demo(
    settings: Settings, node_count: int, shards: int, command: str | None, keep: bool, ready_s: float
) -> None:
    """Start a cluster of real node processes on free ports, print its endpoints and run it until Ctrl-C.
    Its data goes when it ends.

    With --exec CMD the endpoints are put into KVCTL_ENDPOINTS, CMD runs in a shell, and its exit code is
    ours.

    \b
    Examples:
      kvctl demo
      kvctl demo --nodes 5 --shards 64
      kvctl demo --exec 'kvctl put a 1 && kvctl get a'
      kvctl demo --exec 'kvctl bench put --check "p99<50ms"'
    """
    if shards & (shards - 1):
        raise click.UsageError("--shards must be a power of two")
    directory = Path(tempfile.mkdtemp(prefix="kvctl-demo-"))
    try:
        with _signals(), _Cluster(directory, node_count, shards) as cluster:
            took_s = cluster.wait_until_ready(ready_s)
            output.hint(f"{node_count} nodes are ready after {took_s:.1f} s", is_quiet=settings.is_quiet)
            if command is not None:
                raise Quiet(_run(command, cluster))
            # To be stopped is how a demo ends: not a failure.
            with suppress(KeyboardInterrupt, Quiet):
                _show(settings, cluster)
                output.hint("Ctrl-C stops the cluster.", is_quiet=settings.is_quiet)
                cluster.watch()
            output.hint("stopping", is_quiet=settings.is_quiet)
    finally:
        if keep:
            click.echo(f"kept {directory}", err=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _show(settings: Settings, cluster: _Cluster) -> None:
    if settings.form() == "raw":
        click.echo(cluster.endpoints)
        return
    nodes = [
        {"id": node.id, "endpoint": node.endpoint, "pid": node.process.pid, "log": str(node.log)}
        for node in cluster.nodes
    ]
    if settings.form() == "table":
        output.show_rows("table", "nodes", nodes, ("id", "endpoint", "pid", "log"))
        click.echo(f"\nexport KVCTL_ENDPOINTS={cluster.endpoints}")
    else:
        output.show(settings.form(), {"endpoints": cluster.endpoints.split(","), "nodes": nodes})
    sys.stdout.flush()


_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def _run(command: str, cluster: _Cluster) -> int:
    """Run the command and return the exit code a shell would show for it."""
    scripts = [str(Path(sys.executable).parent)]
    if Path(sys.argv[0]).name == "kvctl":
        scripts.insert(0, str(Path(sys.argv[0]).resolve().parent))
    environment = {
        **_importable(),
        "PATH": os.pathsep.join([*scripts, os.environ.get("PATH", os.defpath)]),
        "KVCTL_ENDPOINTS": cluster.endpoints,
    }
    environment.pop("KVCTL_CONTEXT", None)
    # A signal between the start of the command and our holding it would leave it running alone.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    process = subprocess.Popen(
        command,
        shell=True,
        env=environment,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, held),
    )
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        code = process.wait()
    except BaseException:
        _end(process)
        raise
    return 128 - code if code < 0 else code


@contextmanager
def _signals() -> Iterator[None]:
    """A polite request to end is an orderly end: children and directory are cleaned up."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Quiet(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Node:
    id: str
    endpoint: str
    log: Path
    process: subprocess.Popen[bytes]
    is_reported: bool = False


class _Cluster:
    def __init__(self, directory: Path, node_count: int, shards: int) -> None:
        self._directory = directory
        self._shards = shards
        ports = _free_ports(2 * node_count)
        self._plan = [
            {"id": f"n{at + 1}", "client": f"127.0.0.1:{ports[2 * at]}",
             "peer": f"127.0.0.1:{ports[2 * at + 1]}", "host": f"h{at + 1}"}
            for at in range(node_count)
        ]  # fmt: skip
        self.nodes: list[_Node] = []

    @property
    def endpoints(self) -> str:
        return ",".join(node.endpoint for node in self.nodes)

    def __enter__(self) -> _Cluster:
        config = self._directory / "cluster.yaml"
        config.write_text(cluster_yaml("demo", self._plan, self._shards, 3 if len(self._plan) >= 3 else 1))
        try:
            for planned in self._plan:
                self.nodes.append(self._start(planned, config))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, planned: dict[str, str], config: Path) -> _Node:
        data = self._directory / planned["id"]
        log = self._directory / f"{planned['id']}.log"
        arguments = ["--config", str(config), "--node", planned["id"], "--data", str(data)]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*NODE_COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=_importable(),
                # Ctrl-C is for kvctl: it stops the nodes in an orderly way.
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        return _Node(planned["id"], planned["client"], log, process)

    def wait_until_ready(self, limit_s: float) -> float:
        """Return the seconds it took. Raises Failure if a node ends, or time runs out."""
        begun = time.monotonic()
        waiting = list(self.nodes)
        while waiting:
            for node in waiting:
                if node.process.poll() is not None:
                    raise _failure(node, f"node {node.id} ended with {_how(node.process.returncode)}")
            waiting = [node for node in waiting if not _is_ready(node.endpoint)]
            if waiting and time.monotonic() - begun > limit_s:
                names = ", ".join(node.id for node in waiting)
                raise _failure(waiting[0], f"not ready after {limit_s:g} s: {names}", exit_codes.UNAVAILABLE)
            if waiting:
                time.sleep(POLL_S)
        return time.monotonic() - begun

    def watch(self) -> None:
        """Wait for Ctrl-C. Say which nodes end: people try out what happens when they kill one."""
        while True:
            for node in self.nodes:
                if node.process.poll() is not None and not node.is_reported:
                    node.is_reported = True
                    click.echo(f"node {node.id} ended with {_how(node.process.returncode)}", err=True)
            time.sleep(0.2)

    def stop(self) -> None:
        _end(*(node.process for node in self.nodes))


def _end(*processes: subprocess.Popen[bytes]) -> None:
    """Ask processes to end, wait for them, and kill those that do not."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failure(node: _Node, message: str, exit_code: int = exit_codes.FAILURE) -> Failure:
    tail = node.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    shown = "".join(f"\n  {line}" for line in tail) or "\n  (its log is empty)"
    return Failure(f"{message}; log of {node.id}:{shown}", exit_code)


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _is_ready(endpoint: str) -> bool:
    connection = http.client.HTTPConnection(endpoint, timeout=1.0)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago. All are held until the last is known, so that none repeats."""
    sockets = []
    try:
        for _ in range(count):
            held = socket.socket()
            sockets.append(held)
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]
    finally:
        for held in sockets:
            held.close()


def _importable() -> dict[str, str]:
    """Our environment, in which child processes find this very package."""
    here = str(Path(kvstore.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}
