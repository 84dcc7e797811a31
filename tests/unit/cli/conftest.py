from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from kvstore.cli.main import cli
from tests.support.fake_cluster import FakeCluster

Run = Callable[..., Result]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster(3) as made:
        yield made


@pytest.fixture
def run(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call kvctl in this process, with the fake cluster as its endpoints."""
    for name in ("KVCTL_TIMEOUT", "KVCTL_OUTPUT", "KVCTL_CONTEXT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KVCTL_ENDPOINTS", ",".join(cluster.endpoints))

    def call(*arguments: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(cli, list(arguments), input=stdin, prog_name="kvctl")

    return call
