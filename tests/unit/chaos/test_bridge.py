"""Rules for the kernel: each where it bites, and what is counted belongs to a link again."""

import struct
from collections import Counter

from chaos.bridge import _packets, counted, narrow_of, tables_of
from chaos.network import both
from chaos.switch import Rule

A, B, C = "10.77.0.1", "10.77.0.2", "10.77.0.3"


def test_a_cut_is_made_at_the_receiver_for_one_sender() -> None:
    rules = {(A, B): Rule(cut=True)}
    assert f"-A INPUT -s {A} -j DROP" in tables_of(B, rules)
    assert "-A" not in tables_of(A, rules)
    assert "-A" not in tables_of(C, rules)


def test_loss_comes_before_delay_so_that_nothing_lost_is_held() -> None:
    text = tables_of(B, {(A, B): Rule(loss=0.25, delay_ms=(1, 50))})
    assert text.index("--probability 0.25 -j DROP") < text.index("NFQUEUE")


def test_packets_are_doubled_at_the_sender() -> None:
    rules = {(A, B): Rule(duplicate=0.05, delay_ms=(1, 20))}
    assert f"--probability 0.05 -j TEE --gateway {B}" in tables_of(A, rules)
    assert "TEE" not in tables_of(B, rules)


def test_narrow_links_are_those_that_the_address_sends_on() -> None:
    rules = {(A, B): Rule(bytes_per_s=20_000), (B, A): Rule(bytes_per_s=1), (A, C): Rule(cut=True)}
    assert narrow_of(A, rules) == [(B, 20_000)]


def test_counters_are_told_by_link_and_fate() -> None:
    saved = f"""*mangle
[7:700] -A OUTPUT -d {C}/32 -m statistic --mode random --probability 0.05000000028 -j TEE --gateway {C}
COMMIT
*filter
:INPUT ACCEPT [90:9000]
[60:61680] -A INPUT -s {A}/32 -j DROP
[5:500] -A INPUT -s {A}/32 -m statistic --mode random --probability 0.25000000000 -j DROP
[4:400] -A INPUT -s {C}/32 -j NFQUEUE --queue-num 0
COMMIT
"""
    assert counted(B, saved) == Counter({f"{A}>{B} dropped": 65, f"{B}>{C} duplicated": 7})


def test_every_packet_of_a_datagram_from_the_kernel_is_seen() -> None:
    def message(number: int, header: bytes) -> bytes:
        attributes = struct.pack("=HH", 11, 1) + struct.pack("!IHB", number, 0x0800, 1) + b"\0"
        attributes += struct.pack("=HH", 4 + len(header), 10) + header
        return struct.pack("=IHHIIBBH", 20 + len(attributes), 0x300, 0, 0, 0, 2, 0, 0) + attributes

    header = bytes(range(20))
    assert list(_packets(message(7, header) + message(8, header))) == [(7, header), (8, header)]


def test_two_rules_of_one_link_hold_at_once() -> None:
    assert both({"cut": True}, {"delay_ms": [1, 20]}) == {"cut": True, "delay_ms": [1, 20]}
    assert both({"loss": 0.5}, {"loss": 0.5})["loss"] == 0.75
    assert both({"bytes_per_s": 9}, {"bytes_per_s": 5})["bytes_per_s"] == 5
