"""The coordinator against shards that answer as the test says."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.errors import (
    KvError,
    NoLeader,
    NotANumber,
    OutcomeUnknown,
    Overloaded,
    TxnConflict,
)
from kvstore.node.flow import Promise, spawn
from kvstore.node.transactions import FINISH_EVERY_S, NOT_AFTER_MS, RESEND_S, Done, Plan, Transactions
from kvstore.store import commands, txn_commands
from kvstore.store.commands import Identity
from kvstore.store.results import NOT_A_NUMBER, OK, REFUSED
from kvstore.store.transactions import COMMITTED, EARLIER, NO, UNDER_WAY, YES
from kvstore.store.txn_commands import DECIDE, FINISH, PREPARE
from kvstore.types import ShardId
from tests.support.api_node import PaperRuntime
from tests.support.scripted_shards import CLOCK_MS, Shards, X, Y, Z, results_of


class Ties:
    """Leases whose homes say what the test wants."""

    def __init__(self) -> None:
        self.error: KvError | None = None
        self.asked: list[tuple[bytes, ShardId, bool]] = []

    async def tie(
        self, lease_id: bytes, shard: ShardId, deadline: float, *, is_again: bool = False
    ) -> dict[str, Any]:
        self.asked.append((lease_id, shard, is_again))
        if self.error is not None:
            raise self.error
        return {"lease": lease_id, "lease_generation": len(self.asked), "lease_until_ms": CLOCK_MS}


class Desk:
    def __init__(self) -> None:
        self.runtime = PaperRuntime()
        self.shards = Shards(self.runtime)
        self.ties = Ties()
        self.transactions = Transactions(self.shards, self.runtime, self.ties)  # type: ignore[arg-type]

    def run(
        self,
        *shards: ShardId,
        who: Identity | None = None,
        seconds: float = 5.0,
        lease: bytes | None = None,
    ) -> Promise[Done]:
        """A put on each shard, in the order given; time goes on until well past the deadline."""
        plan = Plan()
        for shard in shards or (X, Y):
            plan.add_op(shard, True, commands.put(b"k%d" % shard, b"", lease=lease))
        done = spawn(self.transactions.run(plan, who, self.runtime.time_s + seconds))
        self.runtime.run(seconds + 1.0)
        assert done.is_done
        return done


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_votes_then_decisions_then_a_late_finish(desk: Desk) -> None:
    done = desk.run(Y, X, Z).result()
    assert [result[1] for result in done.results] == [103, 100, 107], "in the order of the request"
    assert done.revisions == {X: 100, Y: 103, Z: 107}
    assert done.clock_ms == CLOCK_MS
    assert [op[0] for _, op, _ in desk.shards.asked] == [PREPARE] * 3 + [DECIDE] * 3 + [FINISH] * 3
    assert desk.shards.asked[-1][2] - desk.shards.asked[0][2] == pytest.approx(FINISH_EVERY_S)


def test_every_prepare_names_all_shards_and_their_not_afters(desk: Desk) -> None:
    desk.run(X, Y)
    limits = [[shard, CLOCK_MS + shard + NOT_AFTER_MS] for shard in (X, Y)]
    for (shard, op), limit in zip(desk.shards.ops(PREPARE), limits, strict=True):
        assert (op[2], op[3]) == (limit[1], limits), shard


def test_no_of_one_shard_lets_the_others_go_before_the_next_try(desk: Desk) -> None:
    tries: list[bytes] = []

    def refuse_twice(shard: ShardId, op: list[Any]) -> list[Any] | None:
        if op[0] == PREPARE and shard == Y:
            tries.append(op[1])
            return [OK, NO] if len(tries) < 3 else None
        return None

    desk.shards.says = refuse_twice
    assert desk.run(X, Y).error is None
    assert len(set(tries)) == 3, "an id is used once"
    told = [(shard, op[1:3]) for shard, op in desk.shards.ops(DECIDE)]
    assert told == [
        (X, [tries[0], False]),
        (X, [tries[1], False]),
        (X, [tries[2], True]),
        (Y, [tries[2], True]),
    ]


def test_first_tries_ask_at_once_and_later_ones_in_order(desk: Desk) -> None:
    desk.shards.says = lambda shard, op: [OK, NO] if op[0] == PREPARE and shard == Y else None
    assert isinstance(desk.run(Z, Y, X).error, TxnConflict)
    asked = [(shard, op[8]) for shard, op in desk.shards.ops(PREPARE)]
    assert asked[:6] == [(X, False), (Y, False), (Z, False)] * 2
    assert set(asked[6:]) == {(X, True), (Y, True)}, "who comes behind the no is not asked"


def test_missing_vote_decides_nothing(desk: Desk) -> None:
    desk.shards.is_silent = lambda shard, op: shard == Y
    assert isinstance(desk.run(X, Y).error, OutcomeUnknown)
    assert desk.shards.ops(DECIDE) == []
    again = [time for shard, op, time in desk.shards.asked if shard == Y]
    assert again[1] - again[0] == pytest.approx(RESEND_S)
    assert len({op[1] for _, op in desk.shards.ops(PREPARE)}) == 1, "it is asked for the same thing"


def test_vote_that_came_after_all_is_a_vote(desk: Desk) -> None:
    desk.shards.is_silent = lambda shard, op: shard == Y and desk.runtime.time_s < 101.5
    assert desk.run(X, Y).error is None


def test_no_after_a_lost_answer_may_be_anything(desk: Desk) -> None:
    """The first copy of the prepare may have been taken: only what a shard has recorded is final."""
    desk.shards.is_silent = lambda shard, op: shard == Y and desk.runtime.time_s < 101.5
    desk.shards.says = lambda shard, op: Overloaded("full") if shard == Y and op[0] == PREPARE else None
    assert isinstance(desk.run(X, Y).error, OutcomeUnknown)
    assert desk.shards.ops(DECIDE) == []


def test_one_no_is_enough_whatever_others_did_not_say(desk: Desk) -> None:
    desk.shards.is_silent = lambda shard, op: shard == Y
    desk.shards.says = lambda shard, op: [OK, NO] if shard == X and op[0] == PREPARE else None
    assert isinstance(desk.run(X, Y).error, TxnConflict)
    assert {(shard, op[2]) for shard, op in desk.shards.ops(DECIDE)} == {(Y, False)}


@pytest.mark.parametrize("error", [NoLeader("gone"), Overloaded("full")])
def test_shard_that_surely_did_not_take_it_ends_it_with_its_error(desk: Desk, error: KvError) -> None:
    desk.shards.says = lambda shard, op: error if shard == Y and op[0] == PREPARE else None
    assert type(desk.run(X, Y).error) is type(error)
    assert [(shard, op[2]) for shard, op in desk.shards.ops(DECIDE)] == [(X, False)]


def test_fault_of_one_shard_aborts_all_and_names_the_op(desk: Desk) -> None:
    fault = [OK, YES, [True, [0, [NOT_A_NUMBER]], None]]
    desk.shards.says = lambda shard, op: fault if shard == X and op[0] == PREPARE else None
    error = desk.run(Z, X, Y).error
    assert isinstance(error, NotANumber)
    assert error.fields == {"op": 1, "succeeded": True}
    assert {(shard, op[2]) for shard, op in desk.shards.ops(DECIDE)} == {(X, False), (Y, False), (Z, False)}


def test_who_was_decided_by_recovery_is_told_to_the_others(desk: Desk) -> None:
    said = [OK, COMMITTED, results_of(X)]
    desk.shards.says = lambda shard, op: said if shard == X and op[0] == PREPARE else None
    desk.shards.is_silent = lambda shard, op: shard == Y and op[0] == PREPARE and desk.runtime.time_s < 101.5
    assert desk.run(X, Y).error is None
    assert {(shard, op[2]) for shard, op in desk.shards.ops(DECIDE)} == {(X, True), (Y, True)}


def test_decision_without_all_answers_is_an_unknown_outcome(desk: Desk) -> None:
    desk.shards.is_silent = lambda shard, op: shard == Y and op[0] == DECIDE
    assert isinstance(desk.run(X, Y).error, OutcomeUnknown)
    assert desk.shards.ops(FINISH) == [], "a shard that may not have carried it out must be told by somebody"


def test_reads_that_were_not_kept_for_a_late_answer_are_not_made_up(desk: Desk) -> None:
    slim = [OK, 5, [[OK, [None, 3, 3, 1, None, None, None]]], True]
    desk.shards.says = lambda shard, op: [OK, COMMITTED, slim] if op[0] == DECIDE else None
    assert isinstance(desk.run(X, Y).error, OutcomeUnknown)


def test_refused_for_its_clock_is_tried_again(desk: Desk) -> None:
    def refuse_once(shard: ShardId, op: list[Any]) -> list[Any] | None:
        return [REFUSED] if op[0] == PREPARE and len(desk.shards.ops(PREPARE)) <= 2 else None

    desk.shards.says = refuse_once
    assert desk.run(X, Y).error is None


def test_ties_are_asked_for_before_each_try_and_anew_after_a_refusal(desk: Desk) -> None:
    def refuse_once(shard: ShardId, op: list[Any]) -> list[Any] | None:
        return [REFUSED] if op[0] == PREPARE and shard == Y and len(desk.shards.ops(PREPARE)) <= 2 else None

    desk.shards.says = refuse_once
    assert desk.run(X, Y, lease=b"l").error is None
    assert desk.ties.asked == [(b"l", shard, again) for again in (False, True) for shard in (X, Y)]
    generations = [op[5][0][3]["lease_generation"] for _, op in desk.shards.ops(PREPARE)]
    assert generations == [1, 2, 3, 4]


def test_lease_without_a_home_ends_it_before_anything_is_held(desk: Desk) -> None:
    desk.ties.error = NoLeader("gone")
    assert isinstance(desk.run(X, Y, lease=b"l").error, NoLeader)
    assert desk.shards.asked == []


def test_lease_without_a_home_behind_a_doubtful_try_is_no_plain_failure(desk: Desk) -> None:
    def says(shard: ShardId, op: list[Any]) -> Any:
        if op[0] != PREPARE:
            return None
        desk.ties.error = NoLeader("gone")
        return [OK, EARLIER, results_of(shard)] if shard == X else [OK, UNDER_WAY]

    desk.shards.says = says
    assert isinstance(desk.run(X, Y, who=TestIdentified.WHO, lease=b"l").error, OutcomeUnknown)


class TestIdentified:
    WHO = Identity(b"s", 7, 0, 5, None, None, b"ann")

    def test_prepares_carry_the_identity(self, desk: Desk) -> None:
        desk.run(X, Y, who=self.WHO)
        assert all(op[7] == [b"s", 7, 5, None, None, b"ann"] for _, op in desk.shards.ops(PREPARE))

    def test_result_of_an_earlier_try_is_the_answer(self, desk: Desk) -> None:
        desk.shards.says = lambda shard, op: [OK, EARLIER, results_of(shard)] if op[0] == PREPARE else None
        done = desk.run(X, Y, who=self.WHO).result()
        assert done.replayed
        assert done.revisions == {X: 100, Y: 103}

    def test_earlier_try_that_is_not_over_everywhere_is_waited_for(self, desk: Desk) -> None:
        def says(shard: ShardId, op: list[Any]) -> list[Any] | None:
            if op[0] != PREPARE:
                return None
            is_over = shard == X or desk.runtime.time_s > 101.0
            return [OK, EARLIER, results_of(shard)] if is_over else [OK, UNDER_WAY]

        desk.shards.says = says
        assert desk.run(X, Y, who=self.WHO).result().replayed

    @pytest.mark.parametrize("said", [[OK, UNDER_WAY], NoLeader("gone")])
    def test_earlier_try_that_does_not_end_is_no_conflict(self, desk: Desk, said: Any) -> None:
        """It was carried out on one shard: nobody may be told that nothing happened."""

        def says(shard: ShardId, op: list[Any]) -> Any:
            if op[0] != PREPARE:
                return None
            return [OK, EARLIER, results_of(shard)] if shard == X else said

        desk.shards.says = says
        assert isinstance(desk.run(X, Y, who=self.WHO).error, OutcomeUnknown)

    def test_body_is_marked_where_any_repetition_meets_it(self, desk: Desk) -> None:
        who = Identity(b"k", 0, 0, 0, None, b"hash")
        desk.run(Y, Z, who=who)
        shard, op, _ = desk.shards.asked[0]
        assert (shard, op[0]) == (X, commands.DELETE_RANGE)
        desk.shards.asked.clear()
        desk.shards.says = lambda shard, op: [OK, 1, [[OK, 1, 1, True, None]], True]
        desk.run(X, who=who)
        assert [op[0] for _, op, _ in desk.shards.asked] == [txn_commands.TXN], (
            "its own shard keeps the hash anyway"
        )
