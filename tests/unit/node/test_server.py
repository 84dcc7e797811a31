"""One node as a process of its own: it serves, stops cleanly, and says why it can't. Sockets are real."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvstore.config import parse_config
from kvstore.node import server

WAIT_S = 60.0


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Process:
    def __init__(self, directory: Path) -> None:
        self.client, peer = free_ports(2)
        self.directory = directory
        (directory / "cluster.yaml").write_text(
            "\n".join(
                [
                    "cluster: demo",
                    "replication: 1",
                    "shards: 2",
                    "storage: {engine: memory}",
                    "nodes:",
                    f'  - {{id: n1, client: "127.0.0.1:{self.client}", peer: "127.0.0.1:{peer}"}}',
                ]
            )
        )
        self.log = directory / "log"

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with self.log.open("wb") as log:
            arguments = [sys.executable, "-m", "kvstore.node", "--config", "cluster.yaml", "--node", "n1"]
            process = subprocess.Popen(arguments, cwd=self.directory, stdout=log, stderr=log)
            try:
                yield process
            finally:
                process.kill()
                process.wait(WAIT_S)

    def ask(self, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.client, timeout=10)
        try:
            connection.request(method, target, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            assert process.poll() is None, self.log.read_text()
            try:
                if self.ask("GET", "/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.log.read_text()}")


def test_it_serves_stops_cleanly_and_finds_its_data_again(tmp_path: Path) -> None:
    node = Process(tmp_path)
    for life in range(2):
        with node.running() as process:
            node.wait_until_ready(process)
            if life == 0:
                assert node.ask("PUT", "/v1/kv/a", b"kept")[0] == 201
            assert node.ask("GET", "/v1/kv/a") == (200, b"kept")
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0, node.log.read_text()
    assert "is stopping" in node.log.read_text()


def test_an_address_in_use_is_named_and_the_exit_code_is_1(tmp_path: Path) -> None:
    node = Process(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", node.client))
        taken.listen()
        with node.running() as process:
            assert process.wait(WAIT_S) == 1
    assert f"cannot listen on client address 127.0.0.1:{node.client}" in node.log.read_text()


def test_limits_of_the_http_server_come_from_the_configuration() -> None:
    config = parse_config(
        "\n".join(
            [
                "cluster: demo",
                "replication: 1",
                "limits: {connections_max: 17, connections_per_address_max: 5}",
                "timeouts: {idle_s: 3}",
                "nodes:",
                '  - {id: n1, client: "127.0.0.1:1", peer: "127.0.0.1:2"}',
            ]
        )
    )
    limits = server._http_limits(config)
    assert (limits.connections_max, limits.connections_per_address_max, limits.idle_s) == (17, 5, 3)
    assert limits.body_bytes_max == config.limits.batch_bytes_max


@pytest.mark.parametrize("name", ["n1", "west-2"])
def test_each_node_has_a_directory_of_its_own_by_default(name: str) -> None:
    assert server.default_data(name) == f"data/{name}"  # type: ignore[arg-type]
