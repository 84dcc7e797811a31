"""Faults of the machine under a node: slow and failing disk, lost power, another clock.

They need root. Disks are tampered with by strace (`injection.py`) or are loop devices of their own
(`disks.py`). Monotonic clocks are shifted by a time namespace, so that a node comes back with one that has
nothing to do with the one it had; wall clocks jump under a running node (`clocks.py`).
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from chaos.clocks import FakedClocks
from chaos.cluster import TargetError
from chaos.disks import LoopDisk
from chaos.injection import Injection
from chaos.nemeses import Fault, Kill, Nemesis
from chaos.targets import LocalCluster

DISK_BYTES = 2 << 30
EXIT_S = 20.0


class SlowDisk(Nemesis):
    """Every sync of one node takes long: sometimes longer than the election timeout."""

    kind = "slow-disk"

    def __init__(self, cluster: LocalCluster, dice: random.Random) -> None:
        super().__init__(cluster, dice)
        self._open: dict[int, Injection] = {}

    def begin(self, now_s: float) -> Fault | None:
        name = self._any()
        if name is None:
            return None
        delay_ms = self.dice.choice([50, 300, 1500])
        record = self.cluster.directory / name / f"strace-{len(self.faults)}"
        # In microseconds, after the call: the sync is done but nobody hears of it.
        injection = Injection(self.cluster.pid(name), "fdatasync", f"delay_exit={delay_ms * 1000}", record)
        try:
            injection.begin()
        except OSError:
            return None  # another fault ended the node meanwhile
        fault = self._fault(now_s, name)
        fault.proof = f"syncs delayed by {delay_ms} ms"
        self._open[id(fault)] = injection
        return fault

    def has_bitten(self, fault: Fault) -> bool:
        return self._open[id(fault)].bites > 0

    def end(self, fault: Fault, now_s: float) -> None:
        injection = self._open.pop(id(fault))
        injection.end()
        fault.bites = injection.bites
        fault.proof = f"{fault.bites} {fault.proof}"
        fault.ended = now_s


class FailDisk(Nemesis):
    """Syncs of one node fail: it must end by itself. It is started again when the fault ends."""

    kind = "fail-disk"

    def __init__(self, cluster: LocalCluster, dice: random.Random) -> None:
        super().__init__(cluster, dice)
        self._processes = cluster

    def begin(self, now_s: float) -> Fault | None:
        name = self._any()
        if name is None or len(self._whole()) < len(self.cluster.names):
            return None  # one that leaves for good beside another that is away would only stop the cluster
        record = self.cluster.directory / name / f"strace-failing-{len(self.faults)}"
        injection = Injection(self.cluster.pid(name), "fdatasync", "error=EIO", record)
        try:
            injection.begin()
        except OSError:
            return None  # it is being traced already, or has just ended
        try:
            fault = self._fault(now_s, name)
            # Only a node that syncs can notice.
            deadline = time.monotonic() + EXIT_S
            while not injection.bites and time.monotonic() < deadline:
                time.sleep(0.05)
            if not injection.bites:
                fault.proof = "the node synced nothing meanwhile"
                return fault
            code = self._processes.wait_for_exit(name, EXIT_S)
        finally:
            injection.end()
        if code == 0:
            raise TargetError(f"{name} ended with code 0 after a failed sync")
        fault.bites = injection.bites
        fault.proof = f"{fault.bites} failed syncs, the node ended with {code}"
        return fault

    def end(self, fault: Fault, now_s: float) -> None:
        for name in fault.nodes:
            if not self.cluster.is_running(name):
                self.cluster.start(name)
        fault.ended = now_s


class PoweredCluster:
    """Gives each node of a cluster a disk of its own, whose power can be cut."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.of = {name: LoopDisk(cluster.directory / "disks" / name, DISK_BYTES) for name in cluster.names}
        for name, disk in self.of.items():
            cluster.data[name] = disk.path / "data"

    def close(self) -> None:
        for disk in self.of.values():
            disk.close()


class Power(Nemesis):
    """All nodes lose power at one moment: everything that was not synced is gone."""

    kind = "power"
    disks: PoweredCluster

    def begin(self, now_s: float) -> Fault | None:
        fault = self._fault(now_s, *self.cluster.names)
        for disk in self.disks.of.values():
            disk.cut_power()
        fault.bites = sum(_is_dead(disk.path) for disk in self.disks.of.values())
        fault.proof = f"{fault.bites} disks refused writes"
        for name in self.cluster.running():
            self.cluster.kill(name)
        for disk in self.disks.of.values():
            disk.restore_power()
        return fault

    def end(self, fault: Fault, now_s: float) -> None:
        for name in fault.nodes:
            if not self.cluster.is_running(name):
                self.cluster.start(name)
        fault.ended = now_s


class Clock(Kill):
    """A node is killed and comes back on a monotonic clock that is ahead of or behind its old one."""

    kind = "clock"

    def __init__(self, cluster: LocalCluster, dice: random.Random) -> None:
        super().__init__(cluster, dice)
        self._processes = cluster

    def end(self, fault: Fault, now_s: float) -> None:
        (name,) = fault.nodes
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        shift_s = int(self.dice.choice([-0.5 * uptime_s, 60, 3_600, 86_400 * 30]))
        self._processes.prefix[name] = [
            "unshare", "--time", f"--boottime={shift_s}", f"--monotonic={shift_s}", "--fork", "--kill-child",
        ]  # fmt: skip
        super().end(fault, now_s)
        fault.proof = f"{fault.proof}, clock shifted by {shift_s} s"


class ClockJump(Nemesis):
    """The wall clock of a running node jumps forth or back, and back again."""

    kind = "clock-jump"
    clocks: FakedClocks

    def begin(self, now_s: float) -> Fault | None:
        name = self._any()
        if name is None or not self.cluster.is_serving(name):
            return None
        shift_s = self.dice.choice([-86_400, -3_600, 3_600, 86_400 * 30])
        fault = self._fault(now_s, name)
        self.clocks.move(name, shift_s)
        fault.bites = int(self.clocks.is_moved(name, shift_s))
        fault.proof = f"its date {'moved' if fault.bites else 'did not move'} by {shift_s} s"
        return fault

    def end(self, fault: Fault, now_s: float) -> None:
        for name in fault.nodes:
            self.clocks.move(name, 0)
        fault.ended = now_s


def _is_dead(directory: Path) -> bool:
    try:
        probe = os.open(directory / "probe", os.O_WRONLY | os.O_CREAT)
        try:
            os.write(probe, b"x")
            os.fsync(probe)
        finally:
            os.close(probe)
    except OSError:
        return True
    return False


MACHINE_NEMESES: dict[str, Callable[[LocalCluster, random.Random], Nemesis]] = {
    kind.kind: kind for kind in (SlowDisk, FailDisk, Power, Clock, ClockJump)
}
