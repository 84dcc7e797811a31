"""A network of the kernel's own making for a cluster: namespaces joined by veth pairs and a bridge.

    python -m chaos.bridge 10.77.0.1 10.77.0.2 10.77.0.3 10.77.0.254

Speaks what `chaos/switch.py` speaks, on standard input and output, but leaves the packets to the kernel: the
bridge is in a namespace of its own, and each address in one, where iptables drops (`-j DROP`, all or a random
share), doubles (`TEE`) and hands over (`NFQUEUE`) and tbf holds back. Only what is queued passes through this
process, which lets it go on late, and so out of order. Needs no netem. Rules are made where they bite: losses
and delays at the receiver, doubles and narrow links at the sender.
"""

import ctypes
import heapq
import json
import os
import random
import re
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from chaos.switch import CLONE_NEWNET, QUEUE_S, Rule

NETLINK_NETFILTER = 12
QUEUE_PACKET, QUEUE_VERDICT, QUEUE_CONFIG = 0x300, 0x301, 0x302
ACCEPT = 1
HEADER = 20
"""Bytes of each queued packet that are copied here: the IPv4 header."""
HELD_MAX = 16_384
BURST_BYTES = 5_000

_COUNTED = re.compile(r"\[(\d+):\d+\] -A (\w+) -([sd]) ([\d.]+)/32 .*-j (\w+)")
_FATES = {"DROP": "dropped", "TEE": "duplicated"}
_LIMITED = re.compile(r"qdisc tbf ([0-9a-f]+):.*?dropped (\d+), overlimits (\d+)", re.DOTALL)


class Queue:
    """NFQUEUE 0 of the namespace that this thread is in: packets wait in the kernel for their verdict."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind((0, 0))
        self._send(QUEUE_CONFIG, _attribute(1, struct.pack("!BxH", 1, socket.AF_INET)))
        self._send(QUEUE_CONFIG, _attribute(2, struct.pack("!IB", HEADER, 2)))
        self._send(QUEUE_CONFIG, _attribute(3, struct.pack("!I", HELD_MAX)))
        whole_segments = struct.pack("!I", 1 << 2)
        self._send(QUEUE_CONFIG, _attribute(4, whole_segments) + _attribute(5, whole_segments))
        self.socket.setblocking(False)

    def arrived(self) -> Iterator[tuple[int, bytes]]:
        """Number and IPv4 header of each packet that waits."""
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                continue  # the kernel tells that it had no room for more: those packets are lost
            yield from _packets(data)

    def release(self, number: int) -> None:
        self._send(QUEUE_VERDICT, _attribute(2, struct.pack("!II", ACCEPT, number)))

    def _send(self, kind: int, attributes: bytes) -> None:
        body = struct.pack("!BBH", 0, 0, 0) + attributes
        self.socket.send(struct.pack("=IHHII", 16 + len(body), kind, 1, 0, 0) + body)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, place)
        if kind == QUEUE_PACKET:
            number, header, attribute = 0, b"", place + 20
            while attribute + 4 <= place + length:
                size, name = struct.unpack_from("=HH", data, attribute)
                if name == 1:
                    (number,) = struct.unpack_from("!I", data, attribute + 4)
                elif name == 10:
                    header = data[attribute + 4 : attribute + size]
                attribute += max(4, size + -size % 4)
            yield number, header
        place += max(16, length + -length % 4)


class Bridge:
    """The namespaces and their rules, until standard input ends."""

    def __init__(self, addresses: list[str]) -> None:
        self._dice = random.Random()
        self._middle = _new_namespace()
        _tool("ip link add br0 type bridge")
        _tool("ip link set br0 up")
        self._namespaces: dict[str, int] = {}
        self._queues: dict[str, Queue] = {}
        self._rules: dict[tuple[str, str], Rule] = {}
        self._texts: dict[str, str] = {}
        self._narrow: dict[str, list[tuple[str, int]]] = {}
        self._counters: Counter[str] = Counter()
        """What happened under rules that hold no more, and what this process did."""
        self._late: list[tuple[float, int, str, int]] = []
        self._count = 0
        for number, address in enumerate(addresses):
            self._add(number, address)

    def _add(self, number: int, address: str) -> None:
        own = _new_namespace()
        _enter(self._middle)
        _tool(f"ip link add p{number} type veth peer name eth0 netns {_path(own)}")
        _tool(f"ip link set p{number} master br0 up")
        _enter(own)
        _tool("ip link set lo up")
        _tool(f"ip addr add {address}/24 dev eth0")
        _tool("ip link set eth0 up")
        self._namespaces[address], self._queues[address] = own, Queue()

    def run(self) -> None:
        print(json.dumps({"namespaces": {a: _path(own) for a, own in self._namespaces.items()}}), flush=True)
        poll = select.epoll()
        poll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
        receivers = {queue.socket.fileno(): address for address, queue in self._queues.items()}
        for handle in receivers:
            poll.register(handle, select.EPOLLIN)
        while True:
            patience_s = max(0.0, self._late[0][0] - time.monotonic()) if self._late else -1
            for ready, _ in poll.poll(patience_s):
                if ready in receivers:
                    self._hold(receivers[ready])
                    continue
                line = sys.stdin.readline()
                if not line:
                    return
                print(json.dumps(self._obey(json.loads(line))), flush=True)
            self._release()

    def _hold(self, target: str) -> None:
        for number, header in self._queues[target].arrived():
            source = ".".join(map(str, header[12:16]))
            rule = self._rules.get((source, target))
            low, high = rule.delay_ms if rule else (0.0, 0.0)
            self._count += 1
            due = time.monotonic() + self._dice.uniform(low, high) / 1000
            heapq.heappush(self._late, (due, self._count, target, number))
            self._counters[f"{source}>{target} delayed"] += 1

    def _release(self) -> None:
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, target, number = heapq.heappop(self._late)
            self._queues[target].release(number)

    def _obey(self, command: Mapping[str, Any]) -> Any:
        if "links" in command:
            rules = {}
            for name, rule in command["links"].items():
                source, _, target = name.partition(">")
                rules[source, target] = msgspec.convert(rule, Rule)
            self._replace(rules)
            return {"links": len(rules)}
        now = Counter(self._counters)
        for address, namespace in self._namespaces.items():
            _enter(namespace)
            now += self._dropped(address) + self._held_back(address)
        return dict(now)

    def _replace(self, rules: dict[tuple[str, str], Rule]) -> None:
        self._rules = rules
        for address, namespace in self._namespaces.items():
            text, narrow = tables_of(address, rules), narrow_of(address, rules)
            if text == self._texts.get(address, "") and narrow == self._narrow.get(address, []):
                continue
            # New rules begin to count at zero.
            _enter(namespace)
            if text != self._texts.get(address, ""):
                self._counters += self._dropped(address)
                _tool("iptables-restore", text)
                self._texts[address] = text
            if narrow != self._narrow.get(address, []):
                self._counters += self._held_back(address)
                self._limit(narrow)
                self._narrow[address] = narrow

    @staticmethod
    def _limit(narrow: list[tuple[str, int]]) -> None:
        subprocess.run(["tc", "qdisc", "del", "dev", "eth0", "root"], capture_output=True, check=False)
        if not narrow:
            return
        _tool("tc qdisc add dev eth0 root handle 1: htb default 1")
        _tool("tc class add dev eth0 parent 1: classid 1:1 htb rate 10gbit quantum 60000")
        for number, (target, bytes_per_s) in enumerate(narrow, 2):
            _tool(f"tc class add dev eth0 parent 1: classid 1:{number} htb rate 10gbit quantum 60000")
            limit = f"rate {bytes_per_s * 8} burst {BURST_BYTES} latency {int(QUEUE_S * 1000)}ms"
            _tool(f"tc qdisc add dev eth0 parent 1:{number} handle {number}0: tbf {limit}")
            choice = f"u32 match ip dst {target}/32 flowid 1:{number}"
            _tool(f"tc filter add dev eth0 protocol ip parent 1: prio 1 {choice}")

    def _dropped(self, address: str) -> Counter[str]:
        """What iptables counted in the namespace of `address`, which this thread must be in."""
        return counted(address, _tool("iptables-save --counters") if self._texts.get(address) else "")

    def _held_back(self, address: str) -> Counter[str]:
        """What tbf counted there."""
        counters: Counter[str] = Counter()
        narrow = self._narrow.get(address, [])
        told = _tool("tc -statistics qdisc show dev eth0") if narrow else ""
        for handle, dropped, held in _LIMITED.findall(told):
            target, _ = narrow[int(handle, 16) // 16 - 2]
            counters[f"{address}>{target} dropped"] += int(dropped)
            counters[f"{address}>{target} delayed"] += int(held)
        return counters


def tables_of(address: str, rules: Mapping[tuple[str, str], Rule]) -> str:
    """What iptables-restore is to read in the namespace of `address`."""
    received, sent = [], []
    for (source, target), rule in sorted(rules.items()):
        if target == address:
            if rule.cut:
                received.append(f"-A INPUT -s {source} -j DROP")
            if rule.loss:
                received.append(f"-A INPUT -s {source} {_share(rule.loss)} -j DROP")
            if any(rule.delay_ms):
                received.append(f"-A INPUT -s {source} -j NFQUEUE --queue-num 0")
        if source == address and rule.duplicate:
            once = "-m conntrack ! --ctstate UNTRACKED"  # a copy passes here too
            sent.append(f"-A OUTPUT -d {target} {once} {_share(rule.duplicate)} -j TEE --gateway {target}")
    return "\n".join(["*filter", *received, "COMMIT", "*mangle", *sent, "COMMIT", ""])


def narrow_of(address: str, rules: Mapping[tuple[str, str], Rule]) -> list[tuple[str, int]]:
    """Targets that `address` sends to at a limited rate, in bytes per second."""
    return [(target, rule.bytes_per_s) for (source, target), rule in sorted(rules.items())
            if source == address and rule.bytes_per_s]  # fmt: skip


def counted(address: str, saved: str) -> Counter[str]:
    """Packets by link and fate, out of what iptables-save tells."""
    counters: Counter[str] = Counter()
    for packets, _, side, other, action in _COUNTED.findall(saved):
        link = f"{other}>{address}" if side == "s" else f"{address}>{other}"
        if action in _FATES:
            counters[f"{link} {_FATES[action]}"] += int(packets)
    return counters


def _share(probability: float) -> str:
    return f"-m statistic --mode random --probability {probability}"


def _new_namespace() -> int:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot make a network namespace (are you root?)")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")


def _path(namespace: int) -> str:
    return f"/proc/{os.getpid()}/fd/{namespace}"


def _tool(command: str, text: str | None = None) -> str:
    done = subprocess.run(command.split(), input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    Bridge(sys.argv[1:]).run()
