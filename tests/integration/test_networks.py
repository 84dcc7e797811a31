"""The networks of the chaos targets do to packets what they are told, and count it. Needs root."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from chaos.catalogue import NETWORKS
from chaos.network import Network, can_make_networks

A, B = "10.77.0.1", "10.77.0.2"
SENT = 60

_SEND = """
import socket, struct, sys, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(60):
    sender.sendto(struct.pack("!Id", number, time.monotonic()) + bytes(1000), (sys.argv[1], 9))
    time.sleep(0.004)
"""
_RECEIVE = """
import json, select, socket, struct, sys, time
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("0.0.0.0", 9))
print(flush=True)
numbers, waits = [], []
sources, silence_s = [receiver, sys.stdin], None
while ready := select.select(sources, [], [], silence_s)[0]:
    if receiver in ready:
        number, sent = struct.unpack("!Id", receiver.recv(2000)[:12])
        numbers.append(number)
        waits.append(time.monotonic() - sent)
    else:
        sources, silence_s = [receiver], 0.7
print(json.dumps([numbers, waits]))
"""


class Link:
    """Datagrams from A to B."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def carry(self, rule: dict[str, object]) -> tuple[list[int], list[float], dict[str, int]]:
        """Numbers of the datagrams in order of arrival, how long each took, and what was counted of them."""
        before = self.network.counters()
        self.network.set_links({f"{A}>{B}": rule})
        receive = [sys.executable, "-c", _RECEIVE]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(self._at(B, receive), text=True, **pipes) as receiver:
            assert receiver.stdin is not None
            assert receiver.stdout is not None
            receiver.stdout.readline()
            subprocess.run(self._at(A, [sys.executable, "-c", _SEND, B]), check=True)
            receiver.stdin.close()
            numbers, waits = json.loads(receiver.stdout.readline())
        after = self.network.counters()
        own = {
            name.partition(" ")[2]: count - before.get(name, 0)
            for name, count in after.items()
            if name.startswith(f"{A}>{B} ")
        }
        return numbers, waits, own

    def _at(self, address: str, command: list[str]) -> list[str]:
        return ["nsenter", f"--net={self.network.namespaces[address]}", *command]


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    missing = can_make_networks(request.param)
    if missing:
        pytest.skip(missing)
    network = Network([A, B], NETWORKS[request.param])
    yield Link(network)
    network.close()


def test_a_whole_link_loses_nothing_and_keeps_the_order(link: Link) -> None:
    numbers, _, _ = link.carry({})
    assert numbers == list(range(SENT))


def test_a_cut_is_one_way(link: Link) -> None:
    numbers, _, counted = link.carry({"cut": True})
    assert numbers == []
    assert counted["dropped"] == SENT


def test_a_lossy_link_loses_about_its_share(link: Link) -> None:
    numbers, _, counted = link.carry({"loss": 0.5})
    assert 5 < len(numbers) < 55
    assert counted["dropped"] == SENT - len(numbers)


def test_unequal_delays_let_packets_overtake(link: Link) -> None:
    numbers, waits, counted = link.carry({"delay_ms": [1, 80]})
    assert sorted(numbers) == list(range(SENT))
    assert numbers != sorted(numbers)
    assert max(waits) > 0.04
    assert counted["delayed"] == SENT


def test_some_packets_arrive_twice(link: Link) -> None:
    numbers, _, counted = link.carry({"duplicate": 0.5})
    assert set(numbers) == set(range(SENT))
    assert counted["duplicated"] == len(numbers) - SENT > 5


def test_a_narrow_link_holds_packets_up(link: Link) -> None:
    numbers, waits, counted = link.carry({"bytes_per_s": 40_000})
    assert numbers == sorted(numbers)
    assert max(waits) > 0.3
    assert counted["delayed"] > 10
