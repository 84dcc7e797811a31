"""A network of its own for a cluster: namespaces joined by a switch that loses, delays and cuts as told.

    python -m chaos.switch 10.77.0.1 10.77.0.2 10.77.0.3 10.77.0.254

makes a network namespace for each address, with a TUN device in it, and carries packets between them. All
faults are made here, packet by packet and for each direction apart, so that nothing is needed of the kernel
but namespaces and TUN: no netem, no iptables, no bridge. The namespaces live as long as this process.

Standard output gets one JSON line when all is ready: `{"namespaces": {address: path}}`, for nsenter. Each
line on standard input is a command, answered by one line:

    {"links": {"10.77.0.1>10.77.0.2": {"cut": true}, ...}}     replaces all rules; links not named are whole
    {"counters": true}                                         packets by link and fate since the start
"""

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

CLONE_NEWNET = 0x4000_0000
TUNSETIFF = 0x4004_54CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MTU = 9000
QUEUE_S = 1.0
"""A link of limited rate drops what would wait longer than this."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to packets of one direction of one link."""

    cut: bool = False
    loss: float = 0.0
    duplicate: float = 0.0
    delay_ms: tuple[float, float] = (0.0, 0.0)
    """Drawn for each packet: unequal bounds reorder."""
    bytes_per_s: int = 0
    """0: as fast as it goes."""


class Fates:
    """Decides what becomes of packets, and counts it. Pure: the time and the dice come from outside."""

    def __init__(self, dice: random.Random) -> None:
        self.counters: Counter[str] = Counter()
        self.rules: dict[tuple[str, str], Rule] = {}
        self._dice = dice
        self._busy_until: dict[tuple[str, str], float] = {}

    def replace(self, links: Mapping[str, Any]) -> None:
        rules = {}
        for name, rule in links.items():
            source, _, target = name.partition(">")
            rules[source, target] = msgspec.convert(rule, Rule)
        self.rules = rules
        self._busy_until.clear()

    def delays(self, source: str, target: str, count: int, now_s: float) -> Iterable[float]:
        """Seconds after which copies of a packet of `count` bytes arrive; none: it is lost."""
        rule = self.rules.get((source, target))
        if rule is None:
            return (0.0,)
        link = f"{source}>{target}"
        if rule.cut or (rule.loss and self._dice.random() < rule.loss):
            self.counters[f"{link} dropped"] += 1
            return ()
        wait_s = self._transmission(rule, (source, target), count, now_s)
        if wait_s > QUEUE_S:
            self.counters[f"{link} dropped"] += 1
            return ()
        low, high = rule.delay_ms
        delay_s = wait_s + self._dice.uniform(low, high) / 1000
        if delay_s > 0:
            self.counters[f"{link} delayed"] += 1
        if rule.duplicate and self._dice.random() < rule.duplicate:
            self.counters[f"{link} duplicated"] += 1
            return (delay_s, delay_s + self._dice.uniform(low, high) / 1000)
        return (delay_s,)

    def _transmission(self, rule: Rule, link: tuple[str, str], count: int, now_s: float) -> float:
        if not rule.bytes_per_s:
            return 0.0
        begin = max(now_s, self._busy_until.get(link, 0.0))
        if begin - now_s > QUEUE_S:
            return begin - now_s
        self._busy_until[link] = begin + count / rule.bytes_per_s
        return self._busy_until[link] - now_s


class Switch:
    """Carries packets between TUN devices until standard input ends."""

    def __init__(self, addresses: list[str]) -> None:
        self.fates = Fates(random.Random())
        self._devices: dict[int, str] = {}
        self._by_address: dict[bytes, tuple[int, str]] = {}
        self._namespaces: dict[str, str] = {}
        self._late: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        for address in addresses:
            self._add(address)

    def _add(self, address: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot make a network namespace (are you root?)")
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22s", b"eth0", IFF_TUN | IFF_NO_PI, b""))
        for command in (
            "link set lo up",
            f"link set eth0 mtu {MTU} txqueuelen 4000 up",
            f"addr add {address}/24 dev eth0",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        self._devices[device] = address
        self._by_address[bytes(map(int, address.split(".")))] = (device, address)
        self._namespaces[address] = f"/proc/{os.getpid()}/fd/{namespace}"

    def run(self) -> None:
        print(json.dumps({"namespaces": self._namespaces}), flush=True)
        poll = select.epoll()
        poll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
        for device in self._devices:
            poll.register(device, select.EPOLLIN)
        while True:
            for ready, _ in poll.poll(self._patience_s()):
                if ready not in self._devices:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    print(json.dumps(self._obey(json.loads(line))), flush=True)
                else:
                    self._drain(ready)
            self._deliver_late()

    def _patience_s(self) -> float:
        return max(0.0, self._late[0][0] - time.monotonic()) if self._late else -1

    def _obey(self, command: Mapping[str, Any]) -> Any:
        if "links" in command:
            self.fates.replace(command["links"])
            return {"links": len(self.fates.rules)}
        return dict(self.fates.counters)

    def _drain(self, device: int) -> None:
        source = self._devices[device]
        for _ in range(64):
            try:
                packet = os.read(device, MTU + 64)
            except BlockingIOError:
                return
            known = self._by_address.get(packet[16:20])
            if known is None or packet[0] >> 4 != 4:
                continue
            target, address = known
            now = time.monotonic()
            for delay_s in self.fates.delays(source, address, len(packet), now):
                if delay_s <= 0:
                    _write(target, packet)
                else:
                    self._count += 1
                    heapq.heappush(self._late, (now + delay_s, self._count, target, packet))

    def _deliver_late(self) -> None:
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, target, packet = heapq.heappop(self._late)
            _write(target, packet)


def _write(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except (BlockingIOError, OSError):
        return  # a full queue loses packets, as switches do


if __name__ == "__main__":
    Switch(sys.argv[1:]).run()
