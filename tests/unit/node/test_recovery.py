"""What a leader does about transactions that its shard holds, against shards that answer as the test says."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.node import recovery
from kvstore.node.recovery import AGAIN_S_MAX, ASK_S, FORCE_S, LOOK_EVERY_S, REMIND_S, Recovery
from kvstore.store.intents import Pending
from kvstore.store.results import NOT_A_NUMBER, OK
from kvstore.store.transactions import COMMITTED, NO, UNKNOWN, YES
from kvstore.store.txn_commands import ASK, DECIDE, FINISH
from kvstore.types import ShardId, Term
from tests.support.api_node import PaperRuntime
from tests.support.scripted_shards import VOTE, Shards, X, Y, Z, results_of

TXID = b"t"
PREPARED = Pending(0, [[X, 9_000], [Y, 9_003], [Z, 9_007]], [True, None, None], False)
COMMITTED_HERE = Pending(0, PREPARED.participants, None, True)


class Post:
    """A node that leads a shard, X if not said, on which a transaction lies."""

    def __init__(self, pending: Pending, shard: ShardId = X) -> None:
        self.runtime = PaperRuntime()
        self.shards = Shards(self.runtime)
        self.pending = {TXID: pending}
        begun = self.begun = self.runtime.time_s
        self.replica = SimpleNamespace(
            shard=shard,
            led_term=Term(1),
            has_applied_all=True,
            machine=SimpleNamespace(intents=SimpleNamespace(pending=self.pending)),
            stamp_ms=lambda now: int((now - begun) * 1000),
        )
        host = SimpleNamespace(runtime=self.runtime, replicas={shard: self.replica}, is_stopped=False)
        self.host = host
        self.recovery = Recovery(host, self.shards)  # type: ignore[arg-type]
        self.recovery.start()

    def run(self, seconds: float) -> None:
        self.runtime.run(seconds)

    def begin(self, txid: bytes) -> float:
        """One more is prepared, now."""
        now = self.runtime.time_s
        self.pending[txid] = PREPARED._replace(since_ms=int((now - self.begun) * 1000))
        return now

    def told(self, code: int) -> set[tuple[ShardId, Any]]:
        return {(shard, op[2]) for shard, op in self.shards.ops(code) if len(op) > 2}


def says(**answers: list[Any]) -> Any:
    """Answers to ASK by shard; a commit and an abort are confirmed."""
    by_shard = {ShardId(int(name[1:])): answer for name, answer in answers.items()}
    return lambda shard, op: by_shard.get(shard) if op[0] == ASK else None


def test_young_prepare_is_left_to_its_coordinator() -> None:
    post = Post(PREPARED)
    post.run(ASK_S - 0.01)
    assert post.shards.asked == []


def test_votes_that_are_all_in_are_carried_out_and_finished() -> None:
    post = Post(PREPARED)
    post.shards.says = says(s3=VOTE, s7=VOTE)
    post.run(0.6)
    assert {shard for shard, _ in post.shards.ops(ASK)} == {Y, Z}
    assert post.told(DECIDE) == {(X, True), (Y, True), (Z, True)}
    assert {shard for shard, _ in post.shards.ops(FINISH)} == {X, Y, Z}
    assert post.recovery.finished >= 1


def test_branch_is_that_of_all_votes() -> None:
    post = Post(PREPARED)
    post.shards.says = says(s3=[OK, YES, [False, None, None]], s7=VOTE)
    post.run(0.6)
    assert {op[3] for _, op in post.shards.ops(DECIDE)} == {False}


def test_branch_that_cannot_be_done_somewhere_is_dropped() -> None:
    post = Post(PREPARED)
    post.shards.says = says(s3=[OK, YES, [True, [0, [NOT_A_NUMBER]], None]], s7=VOTE)
    post.run(0.6)
    assert post.told(DECIDE) == {(X, False), (Y, False), (Z, False)}


def test_one_no_drops_it_whatever_others_say() -> None:
    post = Post(PREPARED)
    post.shards.says = says(s3=[OK, NO], s7=VOTE)
    post.run(0.6)
    assert post.told(DECIDE) == {(X, False), (Y, False), (Z, False)}
    assert post.shards.ops(FINISH) == []


def test_decision_that_somebody_knows_is_spread() -> None:
    post = Post(PREPARED)
    post.shards.says = says(s3=[OK, COMMITTED, results_of(Y, branch=False)], s7=VOTE)
    post.run(0.6)
    assert post.told(DECIDE) == {(X, True), (Y, True), (Z, True)}
    assert {op[3] for _, op in post.shards.ops(DECIDE)} == {False}


def test_pitfall_45_nobody_is_made_to_say_no_before_its_time() -> None:
    post = Post(PREPARED)
    post.shards.says = says(s3=[OK, UNKNOWN], s7=VOTE)
    post.run(FORCE_S - 0.05)
    assert {op[3] for _, op in post.shards.ops(ASK)} == {False}
    assert post.shards.ops(DECIDE) == []
    post.run(0.5)
    assert {op[3] for _, op in post.shards.ops(ASK)} == {False, True}


def test_not_after_of_each_shard_goes_with_the_question() -> None:
    post = Post(PREPARED)
    post.run(0.3)
    assert {(shard, op[2]) for shard, op in post.shards.ops(ASK)} == {(Y, 9_003), (Z, 9_007)}


def test_shard_that_does_not_answer_is_waited_for() -> None:
    post = Post(PREPARED)
    post.shards.says = says(s7=VOTE)
    post.shards.is_silent = lambda shard, op: shard == Y
    post.run(4 * FORCE_S)
    assert post.shards.ops(DECIDE) == []
    assert len({time for shard, _, time in post.shards.asked if shard == Y}) > 2, "again and again"


def test_committed_record_reminds_the_others_and_finishes() -> None:
    post = Post(COMMITTED_HERE)
    post.shards.says = lambda shard, op: [OK, UNKNOWN] if op[0] == DECIDE and shard == Z else None
    post.run(REMIND_S - 0.01)
    assert post.shards.asked == [], "its coordinator will finish it"
    post.run(0.3)
    assert post.shards.ops(ASK) == []
    assert post.told(DECIDE) == {(X, True), (Y, True), (Z, True)}
    assert {shard for shard, _ in post.shards.ops(FINISH)} == {X, Y, Z}, (
        "Z knew it once, and was told that all have"
    )


def test_committed_record_stays_while_a_shard_was_not_reached() -> None:
    post = Post(COMMITTED_HERE)
    post.shards.is_silent = lambda shard, op: shard == Z
    post.run(5.0)
    assert post.shards.ops(FINISH) == []


@pytest.mark.parametrize("change", [{"led_term": None}, {"has_applied_all": False}])
def test_only_a_leader_that_knows_the_present_looks(change: dict[str, Any]) -> None:
    post = Post(PREPARED)
    vars(post.replica).update(change)
    post.run(5.0)
    assert post.shards.asked == []


def test_one_transaction_is_looked_at_once_at_a_time_and_few_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recovery, "AT_ONCE_MAX", 2)
    post = Post(PREPARED)
    post.pending.update({b"%d" % number: PREPARED for number in range(5)})
    post.shards.is_silent = lambda shard, op: True
    post.run(1.0)
    assert len({op[1] for _, op in post.shards.ops(ASK)}) == 2
    assert len(post.shards.ops(ASK)) == 4


def asked_at(post: Post) -> list[float]:
    return sorted({round(time - post.begun, 2) for _, op, time in post.shards.asked if op[0] == ASK})


def test_leaders_of_the_first_participants_ask_first() -> None:
    first, second, third = Post(PREPARED), Post(PREPARED, Y), Post(PREPARED, Z)
    for post in (first, second, third):
        post.shards.says = says(s0=[OK, UNKNOWN], s3=[OK, UNKNOWN], s7=[OK, UNKNOWN])
        post.run(1.9)
    assert [asked_at(post)[0] for post in (first, second, third)] == [ASK_S, 2 * ASK_S, 3 * ASK_S]


def test_those_that_were_asked_about_in_vain_are_asked_about_less_and_less() -> None:
    post = Post(PREPARED)
    post.shards.says = says(s3=[OK, UNKNOWN], s7=VOTE)
    post.run(FORCE_S - 0.05)
    assert asked_at(post) == [0.25, 0.5, 1.0]
    post.run(10.0)
    pauses = [late - early for early, late in itertools.pairwise(asked_at(post))]
    assert max(pauses) <= AGAIN_S_MAX + LOOK_EVERY_S
    assert min(pauses[3:]) >= FORCE_S


def test_asking_that_takes_long_is_not_begun_so_early() -> None:
    post = Post(PREPARED)
    post.shards.says = says(s3=[OK, UNKNOWN], s7=VOTE)
    post.shards.delay_s = 0.2
    post.run(1.0)
    begun = post.begin(b"young")
    post.run(1.4)
    assert min(time for _, op, time in post.shards.asked if op[1] == b"young") - begun > 3 * ASK_S
    post.shards.delay_s = 0.0
    post.pending.clear()
    post.run(10.0)
    post.begin(b"later")
    post.run(0.55)
    assert any(op[1] == b"later" for _, op, _ in post.shards.asked), "that was long ago"


def test_asking_in_vain_counts_as_asking_that_takes_long() -> None:
    """Or nodes that are too busy to answer are asked more the busier they are."""
    post = Post(PREPARED)
    post.shards.is_silent = lambda shard, op: shard == Y
    post.run(3.0)
    begun = post.begin(b"young")
    post.run(FORCE_S + 0.5)
    assert min(time for _, op, time in post.shards.asked if op[1] == b"young") - begun >= FORCE_S


def test_node_that_stops_looks_no_more() -> None:
    post = Post(PREPARED)
    post.host.is_stopped = True
    post.run(5.0)
    assert post.shards.asked == []
