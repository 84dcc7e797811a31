"""What the switch does to packets, and that it counts it."""

import random

from chaos.switch import QUEUE_S, Fates


def fates(**links: object) -> Fates:
    made = Fates(random.Random(1))
    made.replace({name.replace("_to_", ">"): rule for name, rule in links.items()})
    return made


def test_a_link_without_a_rule_delivers_at_once() -> None:
    assert list(fates().delays("a", "b", 100, 0.0)) == [0.0]


def test_a_cut_drops_one_direction_only_and_counts() -> None:
    network = fates(a_to_b={"cut": True})
    assert list(network.delays("a", "b", 100, 0.0)) == []
    assert list(network.delays("b", "a", 100, 0.0)) == [0.0]
    assert network.counters == {"a>b dropped": 1}


def test_loss_drops_about_its_share() -> None:
    network = fates(a_to_b={"loss": 0.3})
    arrived = sum(len(list(network.delays("a", "b", 100, 0.0))) for _ in range(2_000))
    assert 1_300 < arrived < 1_500


def test_delays_are_drawn_within_their_bounds_so_that_packets_overtake() -> None:
    network = fates(a_to_b={"delay_ms": [5, 50]})
    drawn = [next(iter(network.delays("a", "b", 100, 0.0))) for _ in range(200)]
    assert all(0.005 <= delay <= 0.05 for delay in drawn)
    assert drawn != sorted(drawn)
    assert network.counters["a>b delayed"] == 200


def test_some_packets_arrive_twice() -> None:
    network = fates(a_to_b={"duplicate": 0.5, "delay_ms": [1, 2]})
    copies = [len(list(network.delays("a", "b", 100, 0.0))) for _ in range(200)]
    assert set(copies) == {1, 2}
    assert network.counters["a>b duplicated"] == copies.count(2)


def test_a_narrow_link_queues_packets_and_drops_what_would_wait_too_long() -> None:
    network = fates(a_to_b={"bytes_per_s": 1_000})
    waits = [list(network.delays("a", "b", 100, 0.0)) for _ in range(30)]
    arrived = [wait[0] for wait in waits if wait]
    assert arrived == sorted(arrived)
    assert abs(arrived[0] - 0.1) < 1e-9
    assert max(arrived) <= QUEUE_S + 0.2
    assert network.counters["a>b dropped"] > 15


def test_new_rules_replace_all_earlier_ones() -> None:
    network = fates(a_to_b={"cut": True})
    network.replace({})
    assert list(network.delays("a", "b", 100, 0.0)) == [0.0]
