"""Keys that a transaction holds, against everything else that would touch them."""

from typing import Any

import pytest

from kvstore.errors import DiskFull
from kvstore.store import commands, txn_commands
from kvstore.store.commands import Identity
from kvstore.store.results import LOCKED, OK, PRECONDITION_FAILED
from kvstore.store.transactions import COMMITTED, YES
from tests.support.tablets import Tablet
from tests.support.transactions import EXCHANGE, compare, decide, expire, prepare


class TestLocks:
    @pytest.fixture(autouse=True)
    def _prepared(self, tablet: Tablet) -> None:
        tablet.put(b"a", b"old")
        tablet.put(b"b", b"old")
        assert prepare(tablet, b"t", EXCHANGE)[1] == YES

    @pytest.mark.parametrize(
        "op",
        [
            commands.put(b"a", b"x"),
            commands.put(b"b", b"x"),
            commands.put(b"a", b"x", if_absent=True),
            commands.delete(b"b"),
            commands.incr(b"a"),
            commands.delete_range(b"", None),
            commands.delete_range(b"b", b"c"),
            txn_commands.txn(([], [[0, b"a"]], [])),
            txn_commands.txn(([compare(b"a", "version", "gt", 0)], [], [])),
            txn_commands.txn(([], [], [commands.put(b"b", b"")])),
        ],
    )
    def test_command_that_meets_a_lock_does_nothing_as_a_whole(self, tablet: Tablet, op: list[Any]) -> None:
        assert tablet.run(commands.put(b"free", b"x"), op) == [[LOCKED], [LOCKED]]
        assert tablet.value(b"free") is None
        assert tablet.machine.revision == 2

    @pytest.mark.parametrize(
        "op",
        [
            commands.put(b"free", b"x"),
            commands.delete_range(b"c", None),
            txn_commands.txn(([compare(b"b", "version", "gt", 0)], [[0, b"b"], commands.put(b"z", b"")], [])),
        ],
    )
    def test_command_beside_the_locks_goes_on(self, tablet: Tablet, op: list[Any]) -> None:
        assert tablet.run(op)[0][0] == OK

    def test_locked_command_goes_on_behind_the_decision(self, tablet: Tablet) -> None:
        releases = tablet.machine.intents.releases
        put = commands.encode(None, [commands.put(b"a", b"x")])
        first, _, second = tablet.apply(
            put, commands.encode(None, [txn_commands.decide(b"t", commit=True)]), put
        )
        assert first.results == [[LOCKED]]
        assert second.results[0][0] == OK
        assert tablet.machine.intents.releases > releases

    def test_reads_of_the_newest_state_know_whom_to_wait_for(self, tablet: Tablet) -> None:
        met = tablet.machine.intents.writers_met
        assert met(["get", b"a", None]) == {b"t"}
        assert met(["get", b"a"]) == {b"t"}
        assert met(["get", b"b", None]) == frozenset(), "a shared lock means that nothing is about to change"
        assert met(["get", b"a", 2]) == frozenset(), "the past does not change"
        assert met(["gets", [b"b", b"a"]]) == {b"t"}
        assert met(["scan", b"", None, {}]) == {b"t"}
        assert met(["scan", b"", b"a", {}]) == frozenset()
        assert met(["count", b"a", b"b", {}]) == {b"t"}
        assert met(["scan", b"", None, {"revision": 2}]) == frozenset()
        assert met(["info"]) == frozenset()

    def test_locks_and_votes_outlive_a_restart(self, tablet: Tablet) -> None:
        tablet.reopen()
        assert tablet.run(commands.put(b"a", b"x")) == [[LOCKED]]
        assert list(tablet.machine.intents.pending) == [b"t"]
        assert tablet.machine.intents.prepared_count == 1
        decide(tablet, b"t")
        assert tablet.value(b"a") == b"new"

    def test_readers_that_share_a_key_hold_it_over_a_restart(self, tablet: Tablet) -> None:
        for txid in (b"r1", b"r2"):
            prepare(tablet, txid, ([], [[txn_commands.GET, b"shared"]], []))
        tablet.reopen()
        decide(tablet, b"r1")
        assert tablet.run(commands.put(b"shared", b"x")) == [[LOCKED]]
        decide(tablet, b"r2")
        assert tablet.put(b"shared", b"x")[0] == OK

    def test_many_keys_are_held_and_let_go(self, tablet: Tablet) -> None:
        parts = ([], [commands.put(b"%04d" % number, b"") for number in range(500)], [])
        assert prepare(tablet, b"m", parts)[1] == YES
        assert tablet.machine.intents.exclusive_count == 501
        decide(tablet, b"m", commit=False)
        assert tablet.machine.intents.exclusive_count == 1
        assert len(tablet.machine.intents.locks) == 2


def test_pitfall_34_held_key_does_not_expire_before_the_decision(tablet: Tablet) -> None:
    tablet.put(b"a", b"1", ttl_ms=500)
    tablet.put(b"other", b"1", ttl_ms=500)
    parts = ([compare(b"a", "value", "eq", b"1")], [commands.put(b"b", b"seen")], [])
    assert prepare(tablet, b"t", parts, not_after_ms=tablet.clock_ms + 5_000)[2][0] is True
    tablet.clock_ms += 600
    expire(tablet)
    assert tablet.value(b"a") == b"1", "the compare that was voted on still holds"
    assert tablet.value(b"other") is None
    decide(tablet, b"t")
    expire(tablet)
    assert tablet.value(b"a") is None, "it goes with the first look behind the decision"


class TestPitfall35:
    def test_pitfall_35_locked_is_never_kept_as_a_result(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", EXCHANGE)
        who = Identity(b"s", 1)
        first = tablet.run_as(who, commands.put(b"a", b"x"))
        assert first.results == [[LOCKED]]
        assert not [key for key, _ in tablet.pairs() if key[:1] in (b"s", b"r", b"e")], "no trace of it"
        decide(tablet, b"t", commit=False)
        again = tablet.run_as(who, commands.put(b"a", b"x"))
        assert not again.replayed
        assert again.results == [[OK, 1, 1, True, None]]

    def test_pitfall_35_request_in_parts_keeps_what_was_done(self, tablet: Tablet) -> None:
        ops = [commands.incr(b"n"), commands.incr(b"a")]
        tablet.run_as(Identity(b"s", 1), ops[0])
        prepare(tablet, b"t", ([], [commands.put(b"a", b"5")], []))
        assert tablet.run_as(Identity(b"s", 1), *ops).results == [[LOCKED], [LOCKED]]
        assert tablet.run_as(Identity(b"s", 1), ops[0]).replayed, "what is done needs no lock"
        decide(tablet, b"t")
        result = tablet.run_as(Identity(b"s", 1), *ops)
        assert [each[2] for each in result.results] == [1, 6]

    def test_pitfall_35_conditions_are_judged_behind_the_decision(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", EXCHANGE)
        create = commands.put(b"a", b"x", if_absent=True)
        assert tablet.run(create) == [[LOCKED]]
        decide(tablet, b"t")
        assert tablet.run(create) == [[PRECONDITION_FAILED, 1]]


def test_failed_draft_leaves_the_mirror_as_the_tablet(
    tablet: Tablet, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tablet, b"t", EXCHANGE)
    write = tablet.machine._engine.write

    def fail(writes: Any) -> None:
        raise DiskFull("no space")

    monkeypatch.setattr(tablet.machine._engine, "write", fail)
    command = commands.encode(None, [txn_commands.decide(b"t", commit=True, branch=True)])
    entry = tablet.entry([command])
    with pytest.raises(DiskFull):
        tablet.machine.apply([entry])
    assert b"a" in tablet.machine.intents.locks
    assert b"t" in tablet.machine.intents.pending
    monkeypatch.setattr(tablet.machine._engine, "write", write)
    assert tablet.machine.apply([entry])[0][0].results[0][1] == COMMITTED
