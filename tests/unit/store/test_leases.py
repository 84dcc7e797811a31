"""Leases at home and on the shards of their keys: what each op does, early, late and twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvstore.errors import InvalidArgument
from kvstore.raft.messages import NORMAL, Configuration, Entry
from kvstore.store import Engines, commands, lease_commands, leases, txn_commands
from kvstore.store.lease_ends import MARK_MS
from kvstore.store.leases import AHEAD_MS_MAX, EXPIRED, REVOKED, TIED
from kvstore.store.machine import Machine
from kvstore.store.results import LEASE_NOT_FOUND, PRECONDITION_FAILED, REFUSED, TXN_FAILED
from kvstore.store.transactions import COMMITTED, NO, YES
from kvstore.types import LogIndex, Term

T = 10_000
L = b"lease-1"


class Tablet:
    """A machine that is fed one command per entry."""

    def __init__(self, engines: Engines, directory: Path) -> None:
        self.engines, self.directory = engines, str(directory)
        self.machine = Machine(engines.open(self.directory))
        self.machine.bootstrap(Configuration())

    def run(self, clock_ms: int, *ops: commands.Op, identity: Any = None) -> list[Any]:
        command = commands.encode(identity, ops)
        commands.check(command)
        payload = commands.payload(clock_ms, [command])
        entry = Entry(LogIndex(self.machine.applied + 1), Term(1), NORMAL, payload)
        return self.machine.apply([entry])[0][0].results

    def one(self, clock_ms: int, op: commands.Op) -> Any:
        return self.run(clock_ms, op)[0]

    def ask(self, *query: Any) -> Any:
        return self.machine.query(list(query))

    def keys(self) -> list[bytes]:
        return [row[0] for row in self.ask("scan", b"", None, {})[0]]

    def kinds(self) -> list[tuple[bytes, int]]:
        return [(event[2], event[1]) for event in self.ask("changes", self.machine.compacted, {})[0]]

    def record_kinds(self) -> set[bytes]:
        """First bytes of what is left about leases."""
        return {
            key[:2] if key[:1] == b"l" else key[:1] for key, _ in self.machine._engine.scan(b"k", b"o")
        } & {
            b"l\x00",
            b"l\x01",
            b"l\x03",
            b"k",
            b"n",
        }

    def reopen(self) -> None:
        self.machine.flush()()
        self.machine.close()
        self.machine = Machine(self.engines.open(self.directory))


@pytest.fixture
def home(engines: Engines, tmp_path: Path) -> Tablet:
    return Tablet(engines, tmp_path / "home")


@pytest.fixture
def other(engines: Engines, tmp_path: Path) -> Tablet:
    return Tablet(engines, tmp_path / "other")


def grant(tablet: Tablet, clock_ms: int = T, ttl_ms: int = 10_000) -> int:
    code, generation = tablet.one(clock_ms, lease_commands.grant(L, ttl_ms))
    assert code == 0
    return int(generation)


def put(key: bytes, generation: int | None = None, until_ms: int = T + 10_000, **options: Any) -> commands.Op:
    options["lease"] = L
    if generation is not None:
        options |= {"lease_generation": generation, "lease_until_ms": until_ms}
    return [commands.PUT, key, b"v", options]


def expire(tablet: Tablet, clock_ms: int) -> Any:
    return tablet.one(clock_ms, commands.expire(1, 100))


def ended(generation: int, kind: int = EXPIRED, limit: int = 100) -> commands.Op:
    return lease_commands.ended([[L, generation, kind]], limit)


# --- at home


def test_each_grant_of_an_id_has_a_generation_of_its_own(home: Tablet) -> None:
    first = grant(home)
    assert home.one(T, lease_commands.grant(L, 500)) == [PRECONDITION_FAILED, 0]
    home.one(T, lease_commands.revoke(L, first))
    home.reopen()
    assert grant(home) == first + 1


def test_a_lease_ends_at_its_deadline_and_leaves_nothing_when_it_held_nothing(home: Tablet) -> None:
    grant(home)
    assert expire(home, T + 9_999)[2] == 0
    assert home.ask("leases", [L, b"x"]) == [[1, 10_000, T + 10_000], None]
    assert expire(home, T + 10_000)[2] == 1
    assert home.ask("lease", L, None) is None
    assert home.record_kinds() == set()
    assert not home.machine.has_lease_ends


def test_a_renewal_moves_the_deadline_only_when_it_is_worth_it(home: Tablet) -> None:
    grant(home)
    assert home.one(T + 2_499, lease_commands.renew([L, b"x"])) == [0, [[10_000, 7_501], None]]
    assert home.one(T + 2_500, lease_commands.renew([L])) == [0, [[10_000, 10_000]]]
    assert expire(home, T + 10_000)[2] == 0
    assert expire(home, T + 12_500)[2] == 1


def test_a_revoke_names_the_grant_it_means(home: Tablet) -> None:
    first = grant(home)
    assert home.one(T, lease_commands.revoke(L, 0)) == [LEASE_NOT_FOUND]
    assert home.one(T, lease_commands.revoke(L, first)) == [0, first]
    second = grant(home)
    assert home.one(T, lease_commands.revoke(L, first)) == [0, first], "a repetition"
    assert home.ask("lease", L, None)[0] == second


def test_a_shard_is_registered_once_and_only_for_the_living_grant(home: Tablet) -> None:
    generation = grant(home)
    for _ in range(2):
        assert home.one(T, lease_commands.attach(L, generation, 7)) == [0, generation]
    assert home.one(T, lease_commands.attach(L, generation + 1, 8)) == [LEASE_NOT_FOUND]
    assert home.ask("lease", L, 7)[3] is True
    assert home.ask("lease", L, 8)[3] is False
    assert home.ask("lease_shards", generation) == [7]
    home.one(T, lease_commands.revoke(L, generation))
    assert home.one(T, lease_commands.attach(L, generation, 9)) == [LEASE_NOT_FOUND]
    assert home.ask("lease_ends", 0, 10) == [[generation, L, REVOKED, [7]]]


def test_an_end_stays_open_until_every_shard_has_done_it(home: Tablet) -> None:
    generation = grant(home)
    home.run(
        T, lease_commands.attach(L, generation, 7), lease_commands.attach(L, generation, 8), put(b"here")
    )
    home.one(T, lease_commands.revoke(L, generation))
    home.reopen()
    here = home.ask("lease_ends", 0, 10)[0][3][-1]
    for done in ([generation, 7], [generation, 7], [generation, here], [99, 8]):
        home.one(T, lease_commands.shard_done([done]))
        assert home.machine.has_lease_ends
    home.one(T, lease_commands.shard_done([[generation, 8]]))
    assert not home.machine.has_lease_ends
    home.reopen()
    assert not home.machine.has_lease_ends
    assert home.ask("lease_ends", 0, 10) == []


def test_leases_are_listed_in_pages(home: Tablet) -> None:
    for number in range(5):
        home.one(T, lease_commands.grant(b"l%d" % number, 1000 + number))
    assert home.ask("lease_list", b"", 3) == [[[b"l%d" % n, 1000 + n, T + 1000 + n] for n in range(3)], True]
    assert home.ask("lease_list", b"l2", 3)[1] is False
    assert [row[0] for row in home.ask("lease_list", b"l2", 3)[0]] == [b"l3", b"l4"]


# --- keys


def test_a_key_at_home_is_attached_if_the_lease_lives(home: Tablet) -> None:
    assert home.one(T, put(b"a")) == [LEASE_NOT_FOUND]
    assert home.keys() == []
    generation = grant(home)
    assert home.one(T, put(b"a"))[0] == 0
    assert home.ask("get", b"a")[5] == L
    assert home.ask("lease_keys", L, generation, b"", 10) == [[b"a"], False]


def test_a_key_elsewhere_is_attached_by_generation_and_within_its_not_after(other: Tablet) -> None:
    assert other.one(T, put(b"a", 3, T))[0] == 0, "up to and with the not-after"
    assert other.one(T, put(b"a", 3, T + AHEAD_MS_MAX))[0] == 0
    assert other.one(T, put(b"b", 3, T - 1)) == [REFUSED]
    assert other.one(T, put(b"b", 3, T + AHEAD_MS_MAX + 1)) == [REFUSED]
    assert other.one(T, put(b"b", 0)) == [LEASE_NOT_FOUND]
    assert other.keys() == [b"a"]


def test_conditions_count_before_the_lease(home: Tablet) -> None:
    assert home.one(T, put(b"a", if_revision=7)) == [PRECONDITION_FAILED, 0]


@pytest.mark.parametrize(
    "change",
    [
        commands.put(b"a", b"2"),
        commands.put(b"a", b"2", content_type="x"),
        commands.delete(b"a"),
        commands.delete_range(b"", None),
    ],
)
def test_what_replaces_or_deletes_a_key_unties_it(other: Tablet, change: commands.Op) -> None:
    other.run(T, put(b"a", 3), change)
    assert other.ask("lease_keys", L, 3, b"", 10) == [[], False]
    was_there = bool(other.keys())
    assert other.one(T, ended(3))[2:] == [0, [True]]
    assert bool(other.keys()) == was_there


def test_incr_keeps_the_tie(other: Tablet) -> None:
    other.run(T, [commands.PUT, b"n", b"1", {"lease": L, "lease_generation": 3, "lease_until_ms": T}])
    other.one(T, commands.incr(b"n", 1))
    assert other.ask("get", b"n")[5] == L
    assert other.one(T, ended(3))[2] == 1
    assert other.keys() == []


def test_a_key_goes_by_its_own_ttl_before_the_lease_does(other: Tablet) -> None:
    other.run(T, put(b"a", 3, ttl_ms=500))
    assert expire(other, T + 500)[2] == 1
    assert other.ask("lease_keys", L, 3, b"", 10) == [[], False]
    assert other.one(T + 600, ended(3))[2] == 0


# --- ends


@pytest.mark.parametrize(("kind", "change"), [(EXPIRED, 2), (REVOKED, 1)])
def test_watchers_are_told_each_key_of_an_ended_lease(other: Tablet, kind: int, change: int) -> None:
    other.run(T, put(b"a", 3), put(b"b", 3), commands.put(b"c", b"1"))
    assert other.one(T, ended(3, kind))[2:] == [2, [True]]
    assert other.kinds()[-2:] == [(b"a", change), (b"b", change)]
    assert other.keys() == [b"c"]


def test_an_end_takes_slices_and_says_when_it_is_finished(other: Tablet) -> None:
    other.run(T, *(put(b"k%d" % number, 3) for number in range(5)))
    two = lease_commands.ended([[L, 3, EXPIRED], [b"y", 1, EXPIRED]], 2)
    assert [other.one(T, two)[2:] for _ in range(4)] == [
        [2, [False, True]],
        [2, [False, True]],
        [1, [True, True]],
        [0, [True, True]],
    ]


def test_an_end_sees_what_was_attached_in_the_same_apply(other: Tablet) -> None:
    results = other.run(T, put(b"b", 3), ended(3, limit=1), ended(3, limit=1), put(b"c", 3))
    assert results[1][2:] == [1, [True]]
    assert results[2][2:] == [0, [True]]
    assert results[3] == [REFUSED]
    both = lease_commands.ended([[L, 4, EXPIRED], [L, 4, EXPIRED]], 9)
    assert other.run(T, put(b"b", 4), both)[1][2:] == [1, [True, True]]
    assert other.keys() == []


def test_pitfall_43_an_attach_that_the_end_has_passed_is_refused_as_long_as_it_can_come(
    other: Tablet,
) -> None:
    other.one(T, ended(3, REVOKED))
    assert other.one(T, put(b"a", 3)) == [REFUSED]
    last = T + MARK_MS - 1
    expire(other, last)
    assert other.one(last, put(b"a", 3, last)) == [REFUSED]
    expire(other, T + MARK_MS)
    assert other.record_kinds() == set(), "and then nothing is left of it"
    assert other.keys() == []


def test_pitfall_43_a_late_end_leaves_the_keys_of_a_new_grant(other: Tablet) -> None:
    other.run(T, put(b"old", 3), put(b"both", 3))
    other.run(T, put(b"new", 4), put(b"both", 4))
    for _ in range(2):
        other.one(T, ended(3, REVOKED))
        assert other.keys() == [b"both", b"new"]
    assert other.one(T, put(b"more", 4))[0] == 0


def test_a_longer_id_is_another_lease(other: Tablet) -> None:
    longer = L + b"\x00\x00\x00\x00\x00\x00\x00\x03"
    other.run(T, [commands.PUT, b"a", b"v", {"lease": longer, "lease_generation": 3, "lease_until_ms": T}])
    assert other.one(T, ended(3))[2] == 0
    assert other.keys() == [b"a"]


def test_refused_is_no_result_that_a_session_keeps(other: Tablet) -> None:
    late = put(b"a", 3, T - 1)
    plain = commands.put(b"b", b"1")
    identity = commands.Identity(b"s", 1)
    assert [result[0] for result in other.run(T, late, plain, identity=identity)] == [REFUSED, 0]
    revision = other.ask("get", b"b")[1]
    again = other.run(T, put(b"a", 3), plain, identity=identity)
    assert [result[0] for result in again] == [0, 0]
    assert again[1][1] == other.ask("get", b"b")[1] == revision, "what was done is not done again"
    assert other.run(T, late, plain, identity=identity) == again
    only = commands.Identity(b"s", 2)
    assert other.run(T, late, identity=only) == [[REFUSED]]
    assert other.run(T, put(b"c", 3), identity=only)[0][0] == 0


def test_the_absence_of_a_lease_is_a_result(home: Tablet) -> None:
    identity = commands.Identity(b"s", 1)
    assert home.run(T, put(b"a"), identity=identity) == [[LEASE_NOT_FOUND]]
    grant(home)
    assert home.run(T, put(b"a"), identity=identity) == [[LEASE_NOT_FOUND]]


# --- in transactions


def txn_put(tablet: Tablet, clock_ms: int, *puts: commands.Op, identity: Any = None) -> Any:
    return tablet.run(clock_ms, txn_commands.txn(([], list(puts), [])), identity=identity)[0]


def prepare(tablet: Tablet, clock_ms: int, then: Any, otherwise: Any = (), txid: bytes = b"t") -> Any:
    limit = clock_ms + 60_000
    parts = ([], list(then), list(otherwise))
    return tablet.one(clock_ms, txn_commands.prepare(txid, limit, [[0, limit], [1, 9]], parts))


def decide(tablet: Tablet, clock_ms: int, *, commit: bool = True, branch: bool = True) -> Any:
    return tablet.one(clock_ms, txn_commands.decide(b"t", commit=commit, branch=branch))


def keys_of(tablet: Tablet, generation: int = 1) -> list[bytes]:
    found: list[bytes] = tablet.ask("lease_keys", L, generation, b"", 100)[0]
    return found


def test_a_transaction_in_one_shard_ties_its_keys_to_a_lease_at_home(home: Tablet) -> None:
    assert txn_put(home, T, put(b"a"), put(b"b")) == [TXN_FAILED, 0, [LEASE_NOT_FOUND], True]
    grant(home)
    assert txn_put(home, T, put(b"a"), put(b"b"))[0] == 0
    assert home.ask("get", b"a", None)[5] == L
    assert keys_of(home) == [b"a", b"b"]
    expire(home, T + 10_000)
    assert home.one(T + 10_000, ended(1))[2:] == [2, [True]]
    assert home.keys() == []


def test_a_transaction_in_one_shard_is_built_anew_when_its_tie_comes_too_late(other: Tablet) -> None:
    late = put(b"a", generation=7, until_ms=T - 1)
    assert txn_put(other, T, put(b"x", generation=7), late, identity=commands.Identity(b"s", 1)) == [REFUSED]
    assert other.keys() == []
    fresh = [put(b"x", generation=7), put(b"a", generation=7)]
    assert txn_put(other, T, *fresh, identity=commands.Identity(b"s", 1))[0] == 0, (
        "no session keeps a refusal"
    )
    assert other.keys() == [b"a", b"x"]


def test_a_lease_that_is_gone_is_a_fault_of_its_branch_alone(other: Tablet) -> None:
    assert prepare(other, T, [put(b"a", generation=0)], [put(b"a", generation=7)]) == [
        0,
        YES,
        [True, [0, [LEASE_NOT_FOUND]], None],
    ]
    assert decide(other, T, branch=False)[1] == COMMITTED
    assert keys_of(other, 7) == [b"a"]


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_prepare_whose_tie_comes_too_late_is_refused_for_good(other: Tablet, is_marked: bool) -> None:
    if is_marked:
        other.one(T, ended(7))
    until_ms = T + 10_000 if is_marked else T + AHEAD_MS_MAX + 1
    then = [commands.put(b"x", b""), put(b"a", generation=7, until_ms=until_ms)]
    assert prepare(other, T, then) == [REFUSED]
    assert prepare(other, T + 2, then) == [0, NO], "not even when the clock has come nearer"
    assert other.one(T, commands.put(b"x", b"free"))[0] == 0


@pytest.mark.parametrize("kind", [REVOKED, EXPIRED])
def test_an_end_between_vote_and_decision_waits_and_takes_what_the_decision_puts(
    other: Tablet, kind: int
) -> None:
    assert prepare(other, T, [put(b"a", generation=7)])[1] == YES
    assert keys_of(other, 7) == [], "reserved is not tied"
    assert other.one(T, ended(7, kind))[2:] == [0, [False]]
    assert other.one(T + 30_000, ended(7, kind))[2:] == [0, [False]]
    assert decide(other, T + 50_000)[1] == COMMITTED, "the vote has settled the tie, however late this is"
    assert keys_of(other, 7) == [b"a"]
    assert other.one(T + 50_000, ended(7, kind))[2:] == [1, [True]]
    assert other.keys() == []
    assert other.record_kinds() <= {b"n"}


def test_an_end_passes_a_prepared_put_by_without_the_reservation(
    other: Tablet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reserve_nothing(draft: Any, key: bytes, options: Any) -> dict[str, Any]:
        return {TIED: leases._tie(draft, options)}

    monkeypatch.setattr(leases, "reserve", reserve_nothing)
    prepare(other, T, [put(b"a", generation=7)])
    assert other.one(T, ended(7))[2:] == [0, [True]], "home hears that all keys are gone"
    decide(other, T)
    assert keys_of(other, 7) == [b"a"], "and this one stays for ever"


@pytest.mark.parametrize("had_it", [True, False])
def test_a_transaction_that_is_dropped_ties_and_unties_nothing(other: Tablet, had_it: bool) -> None:
    if had_it:
        other.one(T, put(b"a", generation=7))
    assert prepare(other, T, [put(b"a", generation=7)], [put(b"a", generation=8)])[1] == YES
    decide(other, T, commit=False)
    assert keys_of(other, 7) == ([b"a"] if had_it else [])
    assert keys_of(other, 8) == []
    assert other.one(T, ended(8))[2:] == [0, [True]]
    assert other.one(T, ended(7))[2:] == [int(had_it), [True]]
    assert other.record_kinds() <= {b"n"}


def test_only_the_branch_that_is_carried_out_ties_its_key(other: Tablet) -> None:
    other.one(T, put(b"a", generation=6))
    assert prepare(other, T, [put(b"a", generation=7)], [put(b"a", generation=8)])[1] == YES
    other.reopen()
    decide(other, T, branch=False)
    assert [keys_of(other, generation) for generation in (6, 7, 8)] == [[], [], [b"a"]]
    assert other.ask("get", b"a", None)[5] == L


def test_a_lease_at_home_that_ends_between_vote_and_decision_takes_the_key_with_it(home: Tablet) -> None:
    grant(home)
    assert prepare(home, T, [put(b"a")])[1] == YES
    home.one(T, lease_commands.revoke(L, 1))
    assert grant(home) == 2, "a later grant of the same id is another"
    assert home.machine.has_lease_ends, "home itself must be told"
    assert home.one(T, ended(1, REVOKED))[3] == [False]
    decide(home, T)
    assert (keys_of(home, 1), keys_of(home, 2)) == ([b"a"], [])
    assert home.one(T, ended(1, REVOKED))[2:] == [1, [True]]
    assert home.keys() == []


def test_what_a_vote_has_settled_is_no_option_for_callers(other: Tablet) -> None:
    with pytest.raises(InvalidArgument):
        other.one(T, [commands.PUT, b"a", b"v", {TIED: b"\x00" * 8 + L}])
