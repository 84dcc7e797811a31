"""Transactions as a tablet sees them: compares, branches, votes, decisions, locks."""

from typing import Any

import pytest

from kvstore.store import StoreLimits, commands, txn_commands
from kvstore.store.commands import Identity
from kvstore.store.results import (
    IDENTITY_MISMATCH,
    LOCKED,
    NOT_A_NUMBER,
    OK,
    OUT_OF_RANGE,
    READS_TOO_LARGE,
    REFUSED,
    SESSION_CAP,
    SESSION_UNKNOWN,
    TXN_FAILED,
)
from kvstore.store.transactions import (
    COMMITTED,
    EARLIER,
    GROUP_MAX,
    NO,
    PREPARED_MAX,
    UNDER_WAY,
    UNKNOWN,
    YES,
    outcome_of,
)
from kvstore.store.txn_commands import AHEAD_MS_MAX, OPERATORS
from tests.support.tablets import MakeTablet, Tablet
from tests.support.transactions import EXCHANGE, ask, compare, decide, expire, prepare, txn

# --- one shard


class TestOneShard:
    def test_branch_follows_the_compares(self, tablet: Tablet) -> None:
        tablet.put(b"a", b"1")
        holds = [compare(b"a", "revision", "eq", 1), compare(b"b", "revision", "eq", 0)]
        first = txn(tablet, holds, [commands.put(b"b", b"then")], [commands.put(b"b", b"else")])
        again = txn(tablet, holds, [commands.put(b"b", b"then")], [commands.put(b"b", b"else")])
        assert first == [OK, 2, [[OK, 2, 1, True, None]], True]
        assert again == [OK, 3, [[OK, 3, 2, False, None]], False]
        assert tablet.value(b"b") == b"else"

    def test_changes_of_a_transaction_share_a_revision(self, tablet: Tablet) -> None:
        tablet.put(b"c", b"x")
        result = txn(
            tablet,
            [],
            [
                commands.put(b"a", b"1"),
                commands.incr(b"n", 5),
                commands.delete(b"c"),
                commands.put(b"b", b"2"),
            ],
        )
        assert result == [
            OK,
            2,
            [[OK, 2, 1, True, None], [OK, 2, 5], [OK, 2, 1, None], [OK, 2, 1, True, None]],
            True,
        ]
        assert tablet.machine.revision == 2
        tablet.put(b"a", b"later")
        assert [tablet.value(key, 2) for key in (b"a", b"n", b"c", b"b")] == [b"1", b"5", None, b"2"]
        assert [tablet.value(key, 1) for key in (b"a", b"n", b"c", b"b")] == [None, None, b"x", None]
        events, following = tablet.machine.query(["changes", 2, {"limit": 1}])
        assert [event[:3] for event in events] == [[2, 0, b"a"], [2, 0, b"n"], [2, 1, b"c"], [2, 0, b"b"]]
        assert following == 3

    def test_ops_before_and_behind_a_transaction_have_revisions_of_their_own(self, tablet: Tablet) -> None:
        both = txn_commands.txn(([], [commands.put(b"a", b"1"), commands.put(b"b", b"1")], []))
        results = tablet.run(commands.put(b"x", b""), both, commands.put(b"y", b""), commands.delete(b"x"))
        assert [result[1] for result in results] == [1, 2, 3, 4]
        events, _ = tablet.machine.query(["changes", 1, {}])
        assert [event[0] for event in events] == [1, 2, 2, 3, 4]

    def test_read_sees_earlier_writes_of_its_branch(self, tablet: Tablet) -> None:
        tablet.put(b"a", b"old")
        result = txn(tablet, [], [[0, b"a"], commands.put(b"a", b"new"), [0, b"a"], [0, b"none"]])
        items = [each[1] for each in (result[2][0], result[2][2], result[2][3])]
        assert [item and item[0] for item in items] == [b"old", b"new", None]

    def test_transaction_without_a_change_keeps_the_revision(self, tablet: Tablet) -> None:
        tablet.put(b"a", b"1")
        assert txn(tablet, [], [[0, b"a"], commands.delete(b"none")])[1] == 1
        assert tablet.put(b"a", b"2")[1] == 2

    def test_put_options_of_a_branch_count(self, tablet: Tablet) -> None:
        tablet.put(b"a", b"old")
        result = txn(tablet, [], [commands.put(b"a", b"new", ttl_ms=500, prev=True, content_type="a/b")])
        assert result[2][0][4][0] == b"old"
        assert tablet.get(b"a")[4:] == ["a/b", None, tablet.clock_ms + 500]

    @pytest.mark.parametrize(
        ("op", "refusal"),
        [(commands.incr(b"text"), [NOT_A_NUMBER]), (commands.incr(b"n", -1, 0), [OUT_OF_RANGE, 0])],
    )
    def test_op_that_cannot_be_done_stops_its_whole_branch(
        self, tablet: Tablet, op: list[Any], refusal: list[Any]
    ) -> None:
        tablet.put(b"text", b"x")
        result = txn(tablet, [], [commands.put(b"a", b"1"), op])
        assert result == [TXN_FAILED, 1, refusal, True]
        assert tablet.value(b"a") is None
        assert tablet.machine.revision == 1

    def test_branch_that_is_not_chosen_may_hold_what_cannot_be_done(self, tablet: Tablet) -> None:
        impossible = [commands.incr(b"n", -1, 0)]
        assert txn(tablet, [compare(b"n", "version", "gt", 0)], impossible, [[0, b"n"]])[0] == OK

    def test_reads_of_a_branch_are_bounded(self, tablet: Tablet) -> None:
        for number in range(5):
            tablet.put(b"%d" % number, b"x" * (1 << 20))
        result = txn(tablet, [], [[0, b"%d" % number] for number in range(5)])
        assert result[:2] == [TXN_FAILED, 3]
        assert result[2][0] == READS_TOO_LARGE

    def test_retry_with_its_identity_is_answered_from_the_record(self, tablet: Tablet) -> None:
        op = txn_commands.txn(([], [commands.incr(b"n"), [0, b"n"]], []))
        first = tablet.run_as(Identity(b"s", 1), op)
        again = tablet.run_as(Identity(b"s", 1), op)
        assert not first.replayed
        assert again.replayed
        assert again.results == first.results
        assert tablet.value(b"n") == b"1"

    def test_large_reads_are_left_out_of_a_replay(self, tablet: Tablet) -> None:
        tablet.put(b"big", b"x" * 20_000)
        op = txn_commands.txn(([], [[0, b"big"], commands.put(b"a", b"1")], []))
        assert tablet.run_as(Identity(b"s", 1), op).results[0][2][0][1][0] == b"x" * 20_000
        replay = tablet.run_as(Identity(b"s", 1), op).results[0]
        assert replay[2][0][1][:2] == [None, 1]
        assert replay[2][1] == [OK, 2, 1, True, None]


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_compares_are_those_of_numbers_and_bytes(tablet: Tablet, operator: str) -> None:
    tablet.put(b"a", b"m")
    tablet.put(b"a", b"m")
    python = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}[operator]
    for field, found, operands in (
        ("revision", 2, (1, 2, 3)),
        ("create_revision", 1, (0, 1, 2)),
        ("version", 2, (1, 2, 3)),
        ("value", b"m", (b"", b"l", b"m", b"mm", b"n")),
    ):
        for operand in operands:
            expected = eval(f"{found!r} {python} {operand!r}")
            assert txn(tablet, [compare(b"a", field, operator, operand)], [])[3] is expected


@pytest.mark.parametrize(
    ("field", "operator", "operand", "holds"),
    [
        ("revision", "eq", 0, True),
        ("version", "lt", 1, True),
        ("create_revision", "gt", 0, False),
        ("value", "eq", b"", False),
        ("value", "ne", b"", True),
        ("value", "lt", b"z", False),
        ("value", "ge", b"", False),
        ("lease", "eq", None, True),
        ("lease", "ne", b"l", True),
        ("lease", "eq", b"l", False),
    ],
)
def test_absent_key_has_zero_revisions_and_no_value(
    tablet: Tablet, field: str, operator: str, operand: Any, holds: bool
) -> None:
    assert txn(tablet, [compare(b"none", field, operator, operand)], [])[3] is holds


# --- votes and decisions


class TestPrepare:
    def test_yes_holds_the_keys_and_changes_nothing(self, tablet: Tablet) -> None:
        tablet.put(b"a", b"old")
        assert prepare(tablet, b"t", EXCHANGE) == [OK, YES, [True, None, None]]
        assert tablet.value(b"a") == b"old"
        assert tablet.machine.revision == 1
        locks = tablet.machine.intents.locks
        assert {key: lock.is_exclusive for key, lock in locks.items()} == {b"a": True, b"b": False}

    def test_vote_tells_the_compares_and_what_cannot_be_done(self, tablet: Tablet) -> None:
        parts = ([compare(b"a", "version", "gt", 0)], [commands.incr(b"n", -1, 0)], [commands.put(b"z", b"")])
        assert prepare(tablet, b"t", parts) == [OK, YES, [False, [0, [OUT_OF_RANGE, 0]], None]]

    def test_again_gives_the_recorded_vote(self, tablet: Tablet) -> None:
        first = prepare(tablet, b"t", EXCHANGE)
        tablet.clock_ms += 5_000
        assert prepare(tablet, b"t", EXCHANGE, not_after_ms=1) == first
        assert len(tablet.machine.intents.pending) == 1

    def test_lock_of_another_is_a_no_for_good(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", EXCHANGE)
        assert prepare(tablet, b"u", EXCHANGE) == [OK, NO]
        decide(tablet, b"t", commit=False)
        assert prepare(tablet, b"u", EXCHANGE) == [OK, NO]
        assert prepare(tablet, b"v", EXCHANGE)[1] == YES

    def test_readers_share_a_key_and_a_writer_does_not(self, tablet: Tablet) -> None:
        read = ([compare(b"a", "version", "eq", 0)], [[0, b"a"]], [])
        assert prepare(tablet, b"r1", read)[1] == YES
        assert prepare(tablet, b"r2", read)[1] == YES
        assert prepare(tablet, b"w", EXCHANGE)[1] == NO
        decide(tablet, b"r1")
        assert prepare(tablet, b"w2", EXCHANGE)[1] == NO
        decide(tablet, b"r2")
        assert prepare(tablet, b"w3", EXCHANGE)[1] == YES
        assert prepare(tablet, b"r3", read)[1] == NO

    def test_one_that_waits_leaves_no_trace(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", EXCHANGE)
        met = tablet.machine.intents.met
        assert prepare(tablet, b"u", EXCHANGE, waits=True) == [LOCKED]
        assert tablet.machine.intents.met == met + 1
        decide(tablet, b"t")
        assert prepare(tablet, b"u", EXCHANGE, waits=True)[1] == YES

    def test_past_its_not_after_it_is_refused(self, tablet: Tablet) -> None:
        assert prepare(tablet, b"t", EXCHANGE, not_after_ms=tablet.clock_ms)[1:2] == [YES]
        assert prepare(tablet, b"u", EXCHANGE, not_after_ms=tablet.clock_ms - 1) == [REFUSED]
        assert b"pu" not in dict(tablet.pairs())

    def test_too_far_ahead_it_is_refused_for_good(self, tablet: Tablet) -> None:
        limit = tablet.clock_ms + AHEAD_MS_MAX
        assert prepare(tablet, b"t", EXCHANGE, not_after_ms=limit + 1) == [REFUSED]
        tablet.clock_ms += 1
        assert prepare(tablet, b"t", EXCHANGE, not_after_ms=limit + 1) == [OK, NO]

    def test_many_at_once_are_too_many(self, tablet: Tablet) -> None:
        tablet.machine.intents.prepared_count = PREPARED_MAX
        assert prepare(tablet, b"t", EXCHANGE) == [OK, NO]


class TestDecision:
    def test_commit_carries_out_the_branch_at_one_revision(self, tablet: Tablet) -> None:
        tablet.put(b"b", b"seen")
        prepare(tablet, b"t", EXCHANGE)
        state = decide(tablet, b"t")
        assert state[:2] == [OK, COMMITTED]
        assert state[2][:2] == [OK, 2]
        assert state[2][2][1][1][0] == b"seen"
        assert tablet.value(b"a") == b"new"
        assert tablet.machine.intents.locks == {}
        assert not [key for key, _ in tablet.pairs() if key.startswith(b"x")]

    def test_commit_may_choose_the_other_branch(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", ([], [commands.put(b"a", b"1")], [commands.put(b"z", b"2")]))
        assert decide(tablet, b"t", branch=False)[2][3] is False
        assert (tablet.value(b"a"), tablet.value(b"z")) == (None, b"2")

    def test_abort_lets_go_and_stays_a_no(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", EXCHANGE)
        assert decide(tablet, b"t", commit=False) == [OK, NO]
        assert tablet.machine.intents.locks == {}
        assert decide(tablet, b"t") == [OK, NO]
        assert tablet.value(b"a") is None

    def test_branch_that_was_voted_impossible_is_not_carried_out(self, tablet: Tablet) -> None:
        vote = prepare(tablet, b"t", ([], [commands.put(b"a", b""), commands.incr(b"n", -1, 0)], []))
        assert decide(tablet, b"t") == vote
        assert tablet.value(b"a") is None
        assert decide(tablet, b"t", branch=False)[1] == COMMITTED

    def test_decision_is_given_once(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", ([], [commands.incr(b"n")], []))
        first = decide(tablet, b"t")
        assert decide(tablet, b"t") == first
        assert decide(tablet, b"t", commit=False) == first
        assert prepare(tablet, b"t", ([], [commands.incr(b"n")], [])) == first
        assert tablet.value(b"n") == b"1"

    def test_decision_of_an_unknown_transaction_does_nothing(self, tablet: Tablet) -> None:
        before = tablet.pairs()
        assert decide(tablet, b"t") == [OK, UNKNOWN]
        assert [pair for pair in tablet.pairs() if pair[0] != b"m"] == [
            pair for pair in before if pair[0] != b"m"
        ]

    def test_large_reads_are_not_kept_with_the_decision(self, tablet: Tablet) -> None:
        for key in (b"1", b"2"):
            tablet.put(key, b"x" * (600 << 10))
        prepare(tablet, b"t", ([], [[0, b"1"], [0, b"2"]], []))
        assert decide(tablet, b"t")[2][2][0][1][0] == b"x" * (600 << 10)
        assert [each[1][0] for each in decide(tablet, b"t")[2][2]] == [None, None]

    def test_votes_decide(self) -> None:
        yes, other = [True, None, None], [False, None, None]
        assert outcome_of([yes, yes])[:2] == (True, True)
        assert outcome_of([yes, other])[:2] == (True, False)
        assert outcome_of([yes, [True, [0, [NOT_A_NUMBER]], None]]) == (False, True, (1, [0, [NOT_A_NUMBER]]))
        assert outcome_of([other, [True, [0, [NOT_A_NUMBER]], None]])[0] is True
        assert outcome_of([other, [True, None, [2, [NOT_A_NUMBER]]]])[0] is False


class TestAsk:
    def test_tells_vote_and_decision(self, tablet: Tablet) -> None:
        limit = tablet.clock_ms + 1_000
        assert ask(tablet, b"t", limit) == [OK, UNKNOWN]
        vote = prepare(tablet, b"t", EXCHANGE)
        assert ask(tablet, b"t", limit, force=True) == vote
        result = decide(tablet, b"t")
        assert ask(tablet, b"t", limit) == result

    def test_forced_no_stays_until_the_prepare_can_come_no_more(self, tablet: Tablet) -> None:
        limit = tablet.clock_ms + 1_000
        assert ask(tablet, b"t", limit, force=True) == [OK, NO]
        assert prepare(tablet, b"t", EXCHANGE, not_after_ms=limit) == [OK, NO]
        tablet.clock_ms = limit
        expire(tablet)
        assert prepare(tablet, b"t", EXCHANGE, not_after_ms=limit) == [OK, NO]
        assert tablet.machine.next_deadline_ms == 5_000, "many go together"

    def test_unknown_past_the_not_after_is_a_no_without_a_record(self, tablet: Tablet) -> None:
        assert ask(tablet, b"t", tablet.clock_ms - 1, force=True) == [OK, NO]
        assert not [key for key, _ in tablet.pairs() if key.startswith(b"p")]


def test_pitfall_33_prepare_that_comes_after_its_no_was_forgotten_is_refused(tablet: Tablet) -> None:
    limit = tablet.clock_ms + 10_000
    assert ask(tablet, b"t", limit, force=True) == [OK, NO]
    tablet.clock_ms += 660_000
    expire(tablet)
    assert not [key for key, _ in tablet.pairs() if key.startswith((b"p", b"d"))], "the no was cleaned up"
    assert prepare(tablet, b"t", EXCHANGE, not_after_ms=limit) == [REFUSED]
    assert tablet.machine.intents.locks == {}


class TestEndOfRecords:
    def test_unfinished_commit_is_kept_for_ever(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", EXCHANGE)
        result = decide(tablet, b"t")
        tablet.clock_ms += 10_000_000
        expire(tablet)
        assert ask(tablet, b"t", 1) == result
        assert tablet.machine.intents.pending[b"t"].is_committed

    def test_finished_commit_goes_behind_its_not_after(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", EXCHANGE, not_after_ms=tablet.clock_ms + 50_000)
        result = decide(tablet, b"t")
        tablet.run(txn_commands.finish([b"t", b"unknown"]))
        tablet.run(txn_commands.finish([b"t"]))
        assert tablet.machine.intents.pending == {}
        tablet.clock_ms += 50_000
        expire(tablet)
        assert decide(tablet, b"t") == result
        tablet.clock_ms = 55_000
        expire(tablet)
        assert not [key for key, _ in tablet.pairs() if key.startswith((b"p", b"d", b"f"))]

    def test_what_is_finished_together_goes_together(self, tablet: Tablet) -> None:
        txids = [b"%03d" % number for number in range(GROUP_MAX + 50)]
        for txid in txids:
            prepare(tablet, txid, EXCHANGE)
            decide(tablet, txid)
        for _ in range(2):
            tablet.run(txn_commands.finish(txids))
        assert [key for key, _ in tablet.pairs() if key.startswith(b"f")] == [b"f000", b"f100"]
        assert len([key for key, _ in tablet.pairs() if key.startswith(b"d")]) == 2
        tablet.clock_ms += 1_000_000
        expire(tablet)
        assert not [key for key, _ in tablet.pairs() if key.startswith((b"p", b"d", b"f"))]

    def test_finished_commit_stays_so_over_a_restart(self, tablet: Tablet) -> None:
        for txid in (b"t", b"u"):
            prepare(tablet, txid, EXCHANGE)
            result = decide(tablet, txid)
        tablet.run(txn_commands.finish([b"u"]))
        tablet.reopen()
        assert list(tablet.machine.intents.pending) == [b"t"]
        assert decide(tablet, b"u") == result
        tablet.clock_ms += 1_000_000
        expire(tablet)
        assert [key for key, _ in tablet.pairs() if key.startswith((b"p", b"d", b"f"))] == [b"pt"]

    def test_abort_behind_the_not_after_needs_no_record(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", EXCHANGE)
        tablet.clock_ms += 5_000
        decide(tablet, b"t", commit=False)
        assert not [key for key, _ in tablet.pairs() if key.startswith((b"p", b"d", b"f"))]


# --- sessions


WHOSE = [b"s", 7, 0, None, None, b"ann"]


class TestExactlyOnce:
    def test_committed_is_the_result_of_any_later_try(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", ([], [commands.incr(b"n")], []), whose=WHOSE)
        result = decide(tablet, b"t")[2]
        tablet.run(txn_commands.finish([b"t"]))
        tablet.clock_ms += 100_000
        expire(tablet)
        assert prepare(tablet, b"u", ([], [commands.incr(b"n")], []), whose=WHOSE) == [OK, EARLIER, result]
        assert tablet.value(b"n") == b"1"

    def test_only_committed_is_a_result(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", EXCHANGE, whose=WHOSE)
        decide(tablet, b"t", commit=False)
        assert prepare(tablet, b"u", EXCHANGE, whose=WHOSE)[1] == YES

    def test_same_request_is_prepared_once_at_a_time(self, tablet: Tablet) -> None:
        read = ([], [[0, b"a"]], [])
        prepare(tablet, b"t", read, whose=WHOSE)
        assert prepare(tablet, b"u", read, whose=WHOSE) == [OK, UNDER_WAY]
        assert prepare(tablet, b"u", read, whose=WHOSE) == [OK, NO]
        decide(tablet, b"t", commit=False)
        assert prepare(tablet, b"v", read, whose=WHOSE)[1] == YES

    def test_acknowledged_sequence_is_never_prepared_again(self, tablet: Tablet) -> None:
        tablet.run_as(Identity(b"s", 9, acked_below=8), commands.put(b"z", b""))
        assert prepare(tablet, b"t", EXCHANGE, whose=WHOSE) == [SESSION_UNKNOWN]
        assert prepare(tablet, b"t", EXCHANGE, whose=WHOSE) == [OK, NO]

    def test_lost_record_of_an_old_request_is_not_a_go_ahead(self, tablet: Tablet) -> None:
        tablet.clock_ms += 400_000
        assert prepare(tablet, b"t", EXCHANGE, whose=[b"s", 7, 0, 1_000, None, b""]) == [SESSION_UNKNOWN]

    def test_other_body_is_refused(self, tablet: Tablet) -> None:
        prepare(tablet, b"t", EXCHANGE, whose=[b"s", 7, 0, None, b"hash", b""])
        decide(tablet, b"t")
        assert prepare(tablet, b"u", EXCHANGE, whose=[b"s", 7, 0, None, b"other", b""]) == [IDENTITY_MISMATCH]

    def test_mark_of_the_body_does_not_hide_the_result(self, tablet: Tablet) -> None:
        whose = [b"s", 0, 0, None, b"hash", b""]
        mark = Identity(b"s", 0, 1 << 40, body_hash=b"hash")
        tablet.run_as(mark, commands.delete_range(b"", b"\x00"))
        assert prepare(tablet, b"t", EXCHANGE, whose=whose)[1] == YES
        result = decide(tablet, b"t")[2]
        assert tablet.run_as(mark, commands.delete_range(b"", b"\x00")).replayed
        assert prepare(tablet, b"u", EXCHANGE, whose=whose) == [OK, EARLIER, result]

    def test_result_of_another_kind_of_request_is_not_taken_for_its_own(self, tablet: Tablet) -> None:
        tablet.run_as(Identity(b"s", 7), commands.put(b"z", b""))
        assert prepare(tablet, b"t", EXCHANGE, whose=WHOSE) == [IDENTITY_MISMATCH]

    def test_no_room_for_a_session_is_told_before_the_yes(self, make_tablet: MakeTablet) -> None:
        tablet = make_tablet(limits=StoreLimits(sessions_bytes_max=0))
        assert prepare(tablet, b"t", EXCHANGE, whose=WHOSE) == [SESSION_CAP]
