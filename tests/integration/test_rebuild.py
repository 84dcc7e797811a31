"""Real processes with RocksDB: a byte of a node's log rots, `kvctl shard rebuild` brings the replica back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kvstore.client import Client
from tests.support.local_cluster import LocalCluster, served_cluster

PROJECT = Path(__file__).resolve().parents[2]
NEEDLE = b"needle-in-the-log-0150"


def kvctl(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"KVCTL_ENDPOINTS": ",".join(cluster.client.values())}
    command = [sys.executable, "-m", "kvstore.cli", *arguments]
    return subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=60)


def rot(data: Path) -> None:
    for path in sorted((data / "wal").iterdir()):
        content = path.read_bytes()
        offset = content.find(NEEDLE)
        if offset >= 0:
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(b"N")
            return
    raise AssertionError("the needle is not in the log")


def roles(cluster: LocalCluster, node: str) -> dict[int, list[str]]:
    shown = kvctl(cluster, "shard", "ls", "-o", "json")
    rows: list[dict[str, Any]] = json.loads(shown.stdout)["shards"]
    return {row["id"]: [each["role"] for each in row["replicas"] if each["node"] == node] for row in rows}


def test_a_rotten_replica_comes_back_by_one_command(tmp_path: Path) -> None:
    with served_cluster(tmp_path, shards=2) as cluster:
        with Client(*cluster.client.values()) as client:
            for number in range(300):
                client.put(f"key-{number}", f"needle-in-the-log-{number:04}")
        cluster.kill("n1")
        rot(cluster.data["n1"])
        cluster.start("n1")
        deadline = time.monotonic() + 30
        while ["quarantined"] not in roles(cluster, "n1").values():
            assert time.monotonic() < deadline, roles(cluster, "n1")
            time.sleep(0.2)
        (shard,) = [shard for shard, mine in roles(cluster, "n1").items() if mine == ["quarantined"]]
        done = kvctl(cluster, "shard", "rebuild", str(shard), "n1", "--timeout", "30s")
        assert done.returncode == 0, done.stderr
        assert roles(cluster, "n1")[shard] in (["follower"], ["leader"])
        cluster.kill("n2")
        with Client(*cluster.client.values(), timeout=20) as client:
            for number in range(300):
                found = client.get(f"key-{number}")
                assert found is not None
                assert found.value == f"needle-in-the-log-{number:04}".encode()
        deadline = time.monotonic() + 15
        while any((cluster.data["n1"] / "tablets").glob(f"{shard}-1-*")):
            assert time.monotonic() < deadline, "the damaged tablet is still there"
            time.sleep(0.2)
        assert cluster.metrics("n1")["kv_quarantined_replicas"] == 0
