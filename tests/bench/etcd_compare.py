"""Runs the same load against this cluster and against etcd on this machine, in turns, and prints the ratios.

    python -m tests.bench.etcd_compare --etcd /path/to/etcd --etcd /usr/bin/etcd --rounds 5 --seconds 5

Three processes each, default settings, on the disk of `--directory` (refused if that is in memory), wrk
with 64 connections, 64-byte values, 100,000 random keys that all exist. In each round every system is
started on an empty directory, filled, measured and stopped, so that neither works beside the other. A run
with a single answer outside 2xx is void and ends the comparison. The peer of a case is the best of the
given etcd binaries, by median over the rounds.

Cases: `put`, `get` (linearizable) and `batch` with 64 connections, `put-1` and `get-1` with one. etcd is
asked at its leader. This store is asked at the leader of its only shard, and again, with 16 shards, at one
node for keys of all shards. etcd has no batch of independent operations; its figure is a transaction of as
many puts. Syncs are counted by each system's own metrics and shown per second beside the operations.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.targets import LocalCluster
from tests.bench import wrk

CASES = {
    "put": ("put", 64),
    "get": ("get", 64),
    "batch": ("batch", 64),
    "put-1": ("put", 1),
    "get-1": ("get", 1),
}
"""Case to (kind of request, connections). All keys exist before the first case of a round."""

ETCD_PORTS = range(23_790, 23_800)
SYNCS = {"etcd": "etcd_disk_wal_fsync_duration_seconds_count", "ours": "kv_wal_fsyncs_total"}


@dataclass
class Sample:
    measured: wrk.Measured
    syncs_per_s: float
    cpu_us: float
    """Processor time of all three servers for one operation: comparable also where others use the machine."""


@dataclass(frozen=True)
class Running:
    """A system under test: where to ask it, and its processes."""

    address: str
    pids: tuple[int, ...]

    def cpu_s(self) -> float:
        """Processor time that its processes have used so far."""
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class System:
    """One thing that is compared: `name` for people, samples by case."""

    name: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def rates(self, case: str) -> list[float]:
        return [sample.measured.operations_per_s for sample in self.samples.get(case, [])]

    def cpu(self, case: str) -> list[float]:
        return [sample.cpu_us for sample in self.samples.get(case, [])]

    def p50s(self, case: str) -> list[float]:
        return [sample.measured.p50_ms for sample in self.samples.get(case, [])]


@contextmanager
def etcd_cluster(binary: str, directory: Path) -> Iterator[Running]:
    """Three members with default settings, asked at the leader."""
    names = ["e1", "e2", "e3"]
    client = {name: f"127.0.0.1:{ETCD_PORTS[2 * i]}" for i, name in enumerate(names)}
    peer = {name: f"http://127.0.0.1:{ETCD_PORTS[2 * i + 1]}" for i, name in enumerate(names)}
    seeds = ",".join(f"{name}={address}" for name, address in peer.items())
    processes = []
    try:
        for name in names:
            command = [
                binary, "--name", name, "--data-dir", str(directory / name),
                "--listen-client-urls", f"http://{client[name]}",
                "--advertise-client-urls", f"http://{client[name]}",
                "--listen-peer-urls", peer[name], "--initial-advertise-peer-urls", peer[name],
                "--initial-cluster", seeds, "--initial-cluster-state", "new",
            ]  # fmt: skip
            with (directory / f"{name}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        yield Running(_etcd_leader(client), tuple(process.pid for process in processes))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _etcd_leader(client: dict[str, str]) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for address in client.values():
            try:
                told = _post(f"http://{address}/v3/maintenance/status", {})
            except OSError:
                continue
            if told.get("leader") and told["leader"] == told["header"]["member_id"]:
                return address
        time.sleep(0.2)
    raise SystemExit("etcd elected no leader within 30 s")


def _post(url: str, document: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=2) as reply:
        return json.load(reply)


@contextmanager
def our_cluster(shards: int, directory: Path) -> Iterator[Running]:
    """Three nodes with default settings, asked at the leader, with many shards at any node."""
    with LocalCluster(directory, shards=shards) as cluster:
        cluster.start()
        cluster.wait_until_served(60)
        leader = cluster.leader_of(0) if shards == 1 else cluster.names[0]
        assert leader is not None, "served clusters have leaders"
        yield Running(cluster.client[leader], tuple(map(cluster.pid, cluster.names)))


class Bench:
    """Measures systems in turns. `seconds` is the length of each run."""

    def __init__(self, directory: Path, seconds: int, cases: Sequence[str]) -> None:
        self._directory = directory
        self._seconds = seconds
        self._cases = cases
        self._scripts: dict[str, Path] = {}
        for peer, loads, requests in (
            ("etcd", wrk.ETCD_LOADS, wrk.etcd_requests),
            ("ours", wrk.OUR_LOADS, wrk.our_requests),
        ):
            place = directory / f"scripts-{peer}"
            place.mkdir()
            for kind, load in loads.items():
                self._scripts[f"{peer}-{kind}"] = wrk.write_script(place, load, requests(kind))

    def measure(self, system: System, peer: str, running: Running, seed: int) -> None:
        """Fill the keys, then run every case once."""
        address = running.address
        self._fill(peer, address)
        loads = wrk.ETCD_LOADS if peer == "etcd" else wrk.OUR_LOADS
        for case in self._cases:
            kind, connections = CASES[case]
            before, begun, cpu_s = self._syncs(peer, address), time.monotonic(), running.cpu_s()
            measured = wrk.run(
                self._scripts[f"{peer}-{kind}"], loads[kind], address, connections, self._seconds, seed
            )
            length_s = time.monotonic() - begun
            syncs = (self._syncs(peer, address) - before) / length_s
            cpu_us = (running.cpu_s() - cpu_s) / (measured.operations_per_s * self._seconds) * 1e6
            system.samples.setdefault(case, []).append(Sample(measured, syncs, cpu_us))
            rate = f"{measured.operations_per_s:>10,.0f}/s"
            latency = f"p50 {measured.p50_ms:8.2f} ms  p99 {measured.p99_ms:8.2f} ms"
            cost = f"{syncs:7,.0f} syncs/s  {cpu_us:6.0f} us CPU"
            print(f"  {system.name:<14} {case:<6} {rate}  {latency}  {cost}", flush=True)

    def _fill(self, peer: str, address: str) -> None:
        requests = wrk.etcd_requests("batch") if peer == "etcd" else wrk.our_requests("batch")
        content_type = (wrk.ETCD_LOADS if peer == "etcd" else wrk.OUR_LOADS)["batch"].content_type
        for target, body in requests:
            request = urllib.request.Request(
                f"http://{address}{target}", body, {"Content-Type": content_type}, method="POST"
            )
            with urllib.request.urlopen(request, timeout=30) as reply:
                reply.read()

    def _syncs(self, peer: str, address: str) -> float:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith(SYNCS[peer]):
                    return float(line.rpartition(" ")[2])
        return float("nan")


def report(ours: Sequence[System], peers: Sequence[System], cases: Sequence[str]) -> None:
    """Medians with their spread, and ratios to the better peer, paired round by round."""
    columns = f"{'median':>11} {'min':>10} {'max':>10} {'p50 ms':>8} {'CPU us':>7} {'ratio':>6}  spread"
    print(f"\n{'system':<14} {'case':<6} {columns}")
    for case in cases:
        best = max(peers, key=lambda peer: _median(peer.rates(case)), default=None)
        for system in (*peers, *ours):
            rates, p50s = system.rates(case), system.p50s(case)
            if not rates:
                continue
            line = f"{system.name:<14} {case:<6} {_median(rates):>11,.0f} {min(rates):>10,.0f}"
            line += f" {max(rates):>10,.0f} {_median(p50s):>8.2f} {_median(system.cpu(case)):>7.0f}"
            if best and system in ours:
                ratios = [own / other for own, other in zip(rates, best.rates(case), strict=False)]
                line += f" {_median(ratios):>5.2f}x  {min(ratios):.2f}..{max(ratios):.2f} of {best.name}"
            print(line)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def machine(directory: Path) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "unknown CPU")
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores {model}, {system}, {filesystem_of(directory)}"


def filesystem_of(directory: Path) -> str:
    """Type of the file system that holds `directory`."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    resolved = str(directory.resolve())
    inside = [(point, kind) for point, kind in mounts if (resolved + "/").startswith(point.rstrip("/") + "/")]
    return max(inside, key=lambda mount: len(mount[0]))[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--etcd", action="append", default=[], metavar="BINARY", help="may be repeated")
    parser.add_argument(
        "--shards", type=int, nargs="*", default=[1, 16], help="clusters of this store to run"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk to be used")
    parser.add_argument("--json", type=Path, help="write all samples here")
    options = parser.parse_args()
    if filesystem_of(options.directory) in ("tmpfs", "ramfs"):
        raise SystemExit(f"{options.directory} is in memory; name a directory on a disk")
    print(machine(options.directory))
    peers = [System(_version(binary)) for binary in options.etcd]
    ours = [System(f"kvstore/{shards}") for shards in options.shards]
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="compare-") as name:
        scratch = Path(name)
        bench = Bench(scratch, options.seconds, options.cases)
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            _round(
                bench,
                scratch,
                number,
                list(zip(peers, options.etcd, strict=True)),
                list(zip(ours, options.shards, strict=True)),
            )
    report(ours, peers, options.cases)
    if options.json:
        options.json.write_text(
            json.dumps({system.name: _plain(system) for system in (*peers, *ours)}, indent=1)
        )


def _round(
    bench: Bench, scratch: Path, number: int, peers: list[tuple[System, str]], ours: list[tuple[System, int]]
) -> None:
    turns: list[tuple[System, str | int]] = [*peers, *ours]
    # The order turns around each round, so that a disk or a neighbour that gets slower favours nobody.
    for system, what in turns if number % 2 == 0 else reversed(turns):
        with tempfile.TemporaryDirectory(dir=scratch) as place:
            if isinstance(what, str):
                with etcd_cluster(what, Path(place)) as running:
                    bench.measure(system, "etcd", running, number)
            else:
                with our_cluster(what, Path(place)) as running:
                    bench.measure(system, "ours", running, number)


def _version(binary: str) -> str:
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return f"etcd/{told.split()[2]}"


def _plain(system: System) -> dict[str, list[dict[str, float]]]:
    return {
        case: [
            {**vars(sample.measured), "syncs_per_s": sample.syncs_per_s, "cpu_us": sample.cpu_us}
            for sample in samples
        ]
        for case, samples in system.samples.items()
    }


if __name__ == "__main__":
    main()
