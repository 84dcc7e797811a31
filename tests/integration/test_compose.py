"""The cluster of docker-compose.yml: up, down and up again, and a container that is replaced, lose nothing.

Run with `pytest -m compose tests/integration/test_compose.py`; skipped where no container engine answers.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = "kvstore-compose-test"
NODES = ("n1", "n2", "n3")
READY_S_MAX = 90.0

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]


def _has_engine() -> bool:
    if shutil.which("docker") is None or not _compose_command():
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def _compose_command() -> list[str]:
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    plugin = ["docker", "compose", "version"]
    if shutil.which("docker") and subprocess.run(plugin, capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    return []


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Compose:
    def __init__(self) -> None:
        self.ports = dict(zip(NODES, _free_ports(len(NODES)), strict=True))
        published = {f"KVSTORE_{node.upper()}_PORT": str(port) for node, port in self.ports.items()}
        self._environment = {**os.environ, **published, "KVSTORE_IMAGE": "kvstore:test"}

    def build(self) -> None:
        # The classic builder and the host's network: both work on engines that have no other.
        subprocess.run(
            ["docker", "build", "--quiet", "--network", "host", "--tag", "kvstore:test", "."],
            cwd=ROOT,
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
            check=True,
        )

    def __call__(self, *arguments: str) -> str:
        command = [*_compose_command(), "--project-name", PROJECT, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def request(self, node: str, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[node]}{path}", data=body, method=method
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def container_of(self, node: str) -> str:
        return self("ps", "--quiet", node).strip()

    def wait_until_ready(self) -> None:
        """All containers are healthy by their own health check, and answer from here."""
        deadline = time.monotonic() + READY_S_MAX
        while not all(self._is_ready(node) for node in NODES):
            assert time.monotonic() < deadline, f"not ready\n{self._findings()}"
            time.sleep(0.5)

    def _is_ready(self, node: str) -> bool:
        try:
            self.request(node, "GET", "/readyz")
        except OSError:
            return False
        inspect = ["docker", "inspect", "--format", "{{json .State.Health}}", self.container_of(node)]
        done = subprocess.run(inspect, capture_output=True, text=True, check=True)
        return bool(json.loads(done.stdout)["Status"] == "healthy")

    def _findings(self) -> str:
        found = [self("ps")]
        for node in NODES:
            try:
                found.append(f"{node}: {self.request(node, 'GET', '/readyz?verbose=1').decode()}")
            except urllib.error.HTTPError as error:
                found.append(f"{node}: {error.read().decode()}")
            except OSError as error:
                found.append(f"{node}: {error}")
            found.append(self("logs", "--no-color", "--timestamps", "--tail=60", node))
        return "\n".join(found)


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    if not _has_engine():
        pytest.skip("no container engine answers")
    cluster = Compose()
    cluster.build()
    cluster("down", "--volumes", "--remove-orphans")
    cluster("up", "--detach", "--no-build")
    try:
        cluster.wait_until_ready()
        yield cluster
    finally:
        cluster("down", "--volumes", "--remove-orphans")


def test_a_value_put_at_any_node_is_read_at_every_node(compose: Compose) -> None:
    for node in NODES:
        compose.request(node, "PUT", f"/v1/kv/from-{node}", node.encode())
    for reader in NODES:
        for writer in NODES:
            assert compose.request(reader, "GET", f"/v1/kv/from-{writer}") == writer.encode()


def test_a_value_survives_down_and_up(compose: Compose) -> None:
    for number in range(50):
        compose.request("n1", "PUT", f"/v1/kv/down-{number}", str(number).encode())
    compose("down")
    compose("up", "--detach", "--no-build")
    compose.wait_until_ready()
    for number in range(50):
        assert compose.request("n2", "GET", f"/v1/kv/down-{number}") == str(number).encode()


def test_a_replaced_container_takes_its_place_again(compose: Compose) -> None:
    before = compose.container_of("n2")
    compose("rm", "--stop", "--force", "n2")
    compose.request("n1", "PUT", "/v1/kv/while-away", b"kept")
    compose("up", "--detach", "--no-build")
    compose.wait_until_ready()
    assert compose.container_of("n2") != before
    assert compose.request("n2", "GET", "/v1/kv/while-away") == b"kept"


def test_a_killed_container_comes_back_with_what_it_acknowledged(compose: Compose) -> None:
    compose.request("n3", "PUT", "/v1/kv/before-kill", b"kept")
    compose("kill", *NODES)
    compose("up", "--detach", "--no-build")
    compose.wait_until_ready()
    assert compose.request("n1", "GET", "/v1/kv/before-kill") == b"kept"


def test_nodes_run_as_an_ordinary_user(compose: Compose) -> None:
    assert compose("exec", "-T", "n1", "id", "-u").strip() == "10001"


def test_a_clean_stop_is_quick_and_exits_with_zero(compose: Compose) -> None:
    container = compose.container_of("n1")
    started = time.monotonic()
    compose("stop", "n1")
    took_s = time.monotonic() - started
    status = subprocess.run(
        ["docker", "inspect", "--format", "{{.State.ExitCode}}", container],
        capture_output=True,
        text=True,
        check=True,
    )
    compose("start", "n1")
    compose.wait_until_ready()
    assert status.stdout.strip() == "0"
    assert took_s < 25
