"""Deadlines: set with the key, removed with it, carried out by EXPIRE and by nothing else."""

from pathlib import Path

import pytest

from kvstore.raft.messages import NORMAL, Configuration, Entry
from kvstore.store import Engines, commands
from kvstore.store.machine import Machine
from kvstore.types import LogIndex, Term


class Tablet:
    """A machine that is fed one command per entry."""

    def __init__(self, engines: Engines, directory: Path) -> None:
        self.engines, self.directory = engines, str(directory / "t")
        self.machine = Machine(engines.open(self.directory))
        self.machine.bootstrap(Configuration())
        self.term = 1

    def run(self, clock_ms: int, *ops: commands.Op) -> list[list[object]]:
        payload = commands.payload(clock_ms, [commands.encode(None, ops)])
        entry = Entry(LogIndex(self.machine.applied + 1), Term(self.term), NORMAL, payload)
        return self.machine.apply([entry])[0][0].results

    def get(self, key: bytes) -> object:
        return self.machine.query(["get", key])

    def changes(self) -> list[tuple[int, int, bytes]]:
        return [(event[0], event[1], event[2]) for event in self.machine.query(["changes", 1, {}])[0]]


@pytest.fixture
def tablet(engines: Engines, tmp_path: Path) -> Tablet:
    return Tablet(engines, tmp_path)


def test_a_key_is_there_until_expire_is_applied_however_late_the_clock(tablet: Tablet) -> None:
    tablet.run(1000, commands.put(b"a", b"1", ttl_ms=500))
    tablet.run(9000, commands.put(b"b", b"1"))
    assert tablet.get(b"a") is not None
    assert tablet.run(9000, commands.expire(1, 10)) == [[0, 3, 1, False]]
    assert tablet.get(b"a") is None


def test_a_key_never_dies_before_its_deadline(tablet: Tablet) -> None:
    tablet.run(1000, commands.put(b"a", b"1", ttl_ms=500))
    assert tablet.run(1499, commands.expire(1, 10)) == [[0, 1, 0, False]]
    assert tablet.get(b"a") is not None
    assert tablet.run(1500, commands.expire(1, 10)) == [[0, 2, 1, False]]
    assert tablet.get(b"a") is None
    assert tablet.changes() == [(1, 0, b"a"), (2, 2, b"a")]


def test_pitfall_03_expire_of_another_term_is_void(tablet: Tablet) -> None:
    tablet.run(1000, commands.put(b"a", b"1", ttl_ms=500))
    tablet.term = 2
    assert tablet.run(2000, commands.expire(1, 10)) == [[0, 1, 0, False]]
    assert tablet.get(b"a") is not None


@pytest.mark.parametrize("rewrite", [commands.put(b"a", b"2"), commands.put(b"a", b"2", content_type="x")])
def test_a_put_without_ttl_makes_the_key_stay(tablet: Tablet, rewrite: commands.Op) -> None:
    tablet.run(1000, commands.put(b"a", b"1", ttl_ms=500))
    tablet.run(1000, rewrite)
    assert tablet.run(5000, commands.expire(1, 10))[0][2] == 0
    assert tablet.get(b"a") is not None
    assert tablet.machine.next_deadline_ms is None


def test_a_new_ttl_replaces_the_old_one(tablet: Tablet) -> None:
    tablet.run(1000, commands.put(b"a", b"1", ttl_ms=500), commands.put(b"a", b"2", ttl_ms=2000))
    assert tablet.run(2999, commands.expire(1, 10))[0][2] == 0
    assert tablet.run(3000, commands.expire(1, 10))[0][2] == 1


def test_incr_keeps_the_deadline(tablet: Tablet) -> None:
    tablet.run(1000, commands.put(b"n", b"1", ttl_ms=500), commands.incr(b"n", 1))
    assert tablet.run(1500, commands.expire(1, 10))[0][2] == 1
    assert tablet.get(b"n") is None


@pytest.mark.parametrize("removal", [commands.delete(b"a"), commands.delete_range(b"", None)])
def test_a_deleted_key_leaves_no_deadline(tablet: Tablet, removal: commands.Op) -> None:
    tablet.run(1000, commands.put(b"a", b"1", ttl_ms=500), removal)
    tablet.run(1000, commands.put(b"a", b"again"))
    assert tablet.run(5000, commands.expire(1, 10))[0][2] == 0
    assert tablet.get(b"a") is not None


def test_expiry_is_paced_and_says_whether_more_is_due(tablet: Tablet) -> None:
    tablet.run(1000, *(commands.put(b"k%d" % number, b"1", ttl_ms=500) for number in range(5)))
    assert [tablet.run(2000, commands.expire(1, 2))[0][2:] for _ in range(3)] == [
        [2, True],
        [2, True],
        [1, False],
    ]


def test_the_bound_of_the_first_deadline_survives_reopening(tablet: Tablet) -> None:
    assert tablet.machine.next_deadline_ms is None
    tablet.run(1000, commands.put(b"a", b"1", ttl_ms=500), commands.put(b"b", b"1", ttl_ms=100))
    assert tablet.machine.next_deadline_ms == 1100
    tablet.machine.flush()()
    tablet.machine.close()
    assert Machine(tablet.engines.open(tablet.directory)).next_deadline_ms == 1100
