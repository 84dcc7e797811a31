"""Schedules of the list of pitfalls that are about transactions, each shown to fail without its guard."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest

from kvstore.errors import OutcomeUnknown
from kvstore.node import recovery
from kvstore.node.replica import Replica
from kvstore.store import apply, commands, deadlines, expiry, transactions, txn_commands
from kvstore.store.draft import Draft
from kvstore.store.intents import Intents
from kvstore.store.results import LOCKED, CommandResult
from kvstore.store.sessions import Sessions
from kvstore.types import NodeId
from kvstore.wire import peer
from tests.sim.bank import OPENING, Bank, get, incr, put
from tests.sim.script import N1, N2, N3, Pending, unremembered

Remove = Callable[[pytest.MonkeyPatch], None]
NODES = (N1, N2, N3)


def _who(sequence: int) -> dict[str, str]:
    return {"KV_Session": "d" * 32, "KV_Sequence": str(sequence)}


def _ops_in(message: peer.PeerMessage) -> list[commands.Op]:
    """The ops of a write on its way to a leader."""
    return commands.decode(message.command)[1] if isinstance(message, peer.ForwardWrite) else []


def _is(message: peer.PeerMessage, code: int) -> bool:
    return any(op[0] == code for op in _ops_in(message))


# --- 32: the coordinator loses a vote and somebody else finishes


def one_vote_is_lost_and_a_reader_finishes() -> None:
    bank = Bank()
    script = bank.script
    asked = {"votes": 0}

    def lose_the_vote(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        if (source, target) == (N2, N3) and isinstance(message, peer.ForwardReply) and asked["votes"] < 1:
            asked["votes"] += 1
            return None
        return message

    script.network.sift = lose_the_vote
    answer = bank.transfer(N3, KV_Timeout="6s", **_who(1))
    bank.wait_until_held(0, 1)
    read = script.send(N1, "GET", f"/v1/kv/{bank.accounts[0]}", headers={"KV-Timeout": "3s"})
    script.run_until(lambda: read.is_done, 3.0, "the reader is answered")
    assert read.response is not None
    assert read.response.body == b"99", "it was finished while the reader waited"
    assert not answer.is_done
    script.run_until(lambda: answer.is_done, 6.0, "the coordinator learns of it")
    assert answer.status == 200, f"the coordinator did not learn that it is committed: {answer.response}"
    for at in NODES:
        again = bank.transfer(at, KV_Timeout="6s", **_who(1))
        script.run_until(lambda again=again: again.is_done, 6.0, "the retry is answered")  # type: ignore[misc]
        assert again.status == 200, again.response
        assert "Idempotency-Replayed" in again.response.headers, "carried out again"  # type: ignore[union-attr]
        assert again.response.body == answer.response.body  # type: ignore[union-attr]
    assert bank.balances() == [OPENING - 1, OPENING + 1, OPENING], "a retry applied twice"
    bank.settle()


def _forget_what_was_carried_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sessions, "result_of", lambda sessions, draft, whose: None)


def test_pitfall_32_coordinator_learns_what_others_finished_and_a_retry_applies_nothing() -> None:
    one_vote_is_lost_and_a_reader_finishes()


def test_pitfall_32_second_application_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_what_was_carried_out(monkeypatch)
    with pytest.raises(AssertionError, match="carried out again"):
        one_vote_is_lost_and_a_reader_finishes()


# --- 33: prepares that arrive long after everything about them was forgotten


def copies_of_the_prepares_arrive_minutes_later() -> None:
    bank = Bank()
    script = bank.script
    copies: list[tuple[NodeId, NodeId, peer.PeerMessage]] = []

    def copy(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage:
        if _is(message, txn_commands.PREPARE):
            copies.append((source, target, message))
        return message

    script.network.sift = copy
    answer = bank.transfer(N3)
    script.run_until(lambda: answer.is_done, 5.0, "an answer")
    assert answer.status == 200
    assert len(copies) == 2
    script.run(120.0)
    assert not any(
        key.startswith(b"p") for key, _ in script.replica(N1, 0).machine._engine.scan(b"p", b"q")
    ), "what was carried out is forgotten"
    for source, target, message in copies:
        script.network.inject(source, target, unremembered(message))
    script.run(0.5)
    held = bank.open_intents()
    script.run(10.0)
    assert bank.balances() == [OPENING - 1, OPENING + 1, OPENING], "prepares from long ago moved money"
    assert held == []
    bank.settle()


def forced_no_is_forgotten_before_the_prepare_arrives() -> None:
    bank = Bank()
    script = bank.script
    late: list[tuple[NodeId, NodeId, peer.PeerMessage]] = []

    def hold_back(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        if target == N2 and _is(message, txn_commands.PREPARE):
            late.append((source, target, message))
            return None
        return message

    script.network.sift = hold_back
    answer = bank.transfer(N3, KV_Timeout="6s")
    script.run_until(lambda: answer.is_done, 7.0, "an answer")
    assert answer.status in (409, 504), answer.response
    script.network.sift = None
    script.run(120.0)
    for each in late:
        script.network.inject(*each)
    script.run(0.1)
    assert not bank.is_held(1), "a prepare took hold after its no was forgotten"
    bank.settle()
    assert bank.balances() == [OPENING] * 3


def _prepare_at_any_time(patch: pytest.MonkeyPatch) -> None:
    prepare = transactions.APPLY[txn_commands.PREPARE]

    def at_any_time(draft: Draft, op: commands.Op) -> Any:
        limit = draft.clock_ms + 5_000
        shards = [[shard, limit] for shard, _ in op[3]]
        return prepare(draft, [op[0], op[1], limit, shards, *op[4:]])

    patch.setitem(transactions.APPLY, txn_commands.PREPARE, at_any_time)
    patch.setitem(apply.APPLY, txn_commands.PREPARE, at_any_time)


@pytest.mark.parametrize(
    "schedule",
    [copies_of_the_prepares_arrive_minutes_later, forced_no_is_forgotten_before_the_prepare_arrives],
)
class TestPitfall33:
    def test_pitfall_33_late_prepare_is_refused(self, schedule: Callable[[], None]) -> None:
        schedule()

    def test_pitfall_33_late_prepare_is_caught_without_its_guard(
        self, schedule: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _prepare_at_any_time(monkeypatch)
        with pytest.raises(AssertionError, match="moved money|took hold"):
            schedule()


# --- 34: what was compared expires before the decision


def compared_key_is_due_before_the_decision() -> None:
    bank = Bank()
    script = bank.script
    mortal = bank.key_in(0, "mortal-")
    script.ask(N1, "PUT", f"/v1/kv/{mortal}?ttl=1s", b"alive")
    held: list[tuple[NodeId, NodeId, peer.PeerMessage]] = []

    def hold_back(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        is_late = _is(message, txn_commands.DECIDE) or _is(message, txn_commands.ASK)
        if is_late or (isinstance(message, peer.ForwardReply) and target == N3):
            held.append((source, target, message))
            return None
        return message

    script.network.sift = hold_back
    alive = [{"key": mortal, "value": {"eq": "alive"}}]
    answer = bank.send(N3, [put(bank.accounts[1], "seen alive")], alive, KV_Timeout="8s")
    bank.wait_until_held(1)
    script.run(1.6)
    stale = script.get(N1, mortal, "stale")
    assert stale.status == 200, "the key expired although a transaction holds it"
    script.network.sift = None
    script.run_until(lambda: answer.is_done, 8.0, "an answer")
    assert answer.status == 200
    assert script.value(N1, bank.accounts[1]) == "seen alive"
    script.run(2.5)
    assert script.get(N1, mortal).status == 404, "it goes once it is free"
    bank.settle()


def _expire_whatever_is_held(patch: pytest.MonkeyPatch) -> None:
    expire = expiry._HANDLERS[deadlines.KEY]

    def expire_anyway(draft: Draft, due_ms: int, key: bytes) -> bool:
        locks, draft.intents.locks = draft.intents.locks, {}
        try:
            return expire(draft, due_ms, key)
        finally:
            draft.intents.locks = locks

    patch.setitem(expiry._HANDLERS, deadlines.KEY, expire_anyway)


def test_pitfall_34_compared_key_stays_until_the_decision() -> None:
    compared_key_is_due_before_the_decision()


def test_pitfall_34_early_expiry_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _expire_whatever_is_held(monkeypatch)
    with pytest.raises(AssertionError, match="expired although a transaction holds it"):
        compared_key_is_due_before_the_decision()


# --- 35: a single write meets a held key


def put_meets_a_held_key() -> None:
    bank = Bank()
    script = bank.script
    decisions: list[tuple[NodeId, NodeId, peer.PeerMessage]] = []

    def hold_back(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        if _is(message, txn_commands.DECIDE) or _is(message, txn_commands.ASK):
            decisions.append((source, target, message))
            return None
        return message

    script.network.sift = hold_back
    answer = bank.transfer(N3, KV_Timeout="9s")
    bank.wait_until_held(0, 1)
    path, who = f"/v1/kv/{bank.accounts[0]}", {"KV-Session": "e" * 32, "KV-Sequence": "1"}
    refused = [script.send(at, "PUT", path, b"7", who | {"KV-Timeout": "300ms"}) for at in (N1, N2)]
    reads = [script.send(at, "GET", path, b"", {"KV-Timeout": "300ms"}) for at in NODES]
    script.run(0.5)
    for pending in (*refused, *reads):
        assert pending.status == 409, f"not a conflict but {pending.response}"
        assert pending.response is not None
        assert msgspec.json.decode(pending.response.body)["retryable"] is True
    assert script.value(N1, bank.accounts[0], "stale") == str(OPENING)
    waiting = script.send(N2, "PUT", path, b"7", who | {"KV-Timeout": "6s"})
    script.run(0.2)
    assert not waiting.is_done
    script.network.sift = None
    for each in decisions:
        script.network.inject(*each)
    script.run_until(lambda: answer.is_done and waiting.is_done, 8.0, "both are answered")
    assert answer.status == 200
    assert waiting.status == 200, f"the retry was answered with the conflict: {waiting.response}"
    assert "Idempotency-Replayed" not in waiting.response.headers  # type: ignore[union-attr]
    assert script.value(N1, bank.accounts[0]) == "7"
    bank.settle()


def _keep_conflicts_as_results(patch: pytest.MonkeyPatch) -> None:
    run = Sessions.run

    def run_and_keep(sessions: Sessions, draft: Draft, command: list[Any]) -> CommandResult:
        answer = run(sessions, draft, command)
        if answer.results and answer.results[0][0] == LOCKED:
            session_id, sequence = command[0][:2]
            session = sessions._find(draft, session_id, b"")
            if not session.exists:
                sessions._create(draft, session_id, session)
            sessions._keep(draft, session_id, session, sequence, None, [[0, answer.results]])
            sessions._settle(draft, session_id, session, 0, sequence)
        return answer

    patch.setattr(Sessions, "run", run_and_keep)
    # As it would then be: a result, which its caller gets.
    patch.setattr(Replica, "_hold_write", _answer_with_the_conflict)


def _answer_with_the_conflict(replica: Replica, call: Any) -> None:
    call.fail(OutcomeUnknown("locked"))


def _write_over_locks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Intents, "meets", lambda intents, draft, ops: False)


def test_pitfall_35_put_waits_or_conflicts_and_its_retry_is_done() -> None:
    put_meets_a_held_key()


@pytest.mark.parametrize("remove", [_keep_conflicts_as_results, _write_over_locks])
def test_pitfall_35_wrong_answer_is_caught_without_its_guard(
    remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch)
    with pytest.raises(AssertionError):
        put_meets_a_held_key()


# --- 38: over several shards, with answers lost and leaders changing


def transfers_are_tried_again_until_they_are_answered() -> None:
    bank = Bank()
    script = bank.script
    dice = Random(38)

    def pass_most(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        return None if isinstance(message, peer.ForwardReply) and dice.random() < 0.25 else message

    script.network.sift = pass_most
    for sequence in range(1, 13):
        for attempt in range(30):
            answer = bank.transfer(dice.choice(NODES), KV_Timeout="1500ms", **_who(sequence))
            if sequence % 4 == 0 and attempt == 0:
                victim = script.leader(sequence // 4 % 2) or N1
                script.run(dice.uniform(0, 0.01))
                script.kill(victim)
                script.restart(victim)
            script.world.run_while(lambda answer=answer: not answer.is_done, 3.0)  # type: ignore[misc]
            if answer.status == 200:
                break
            assert answer.status in (0, 409, 503, 504), answer.response
        else:
            raise AssertionError("never answered")
    script.network.sift = None
    script.run(3.0)
    assert bank.balances() == [OPENING - 12, OPENING + 12, OPENING], "a transfer counted twice or not at all"
    bank.settle()


def test_pitfall_38_transfers_over_shards_apply_exactly_once() -> None:
    transfers_are_tried_again_until_they_are_answered()


def test_pitfall_38_transfer_done_twice_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_what_was_carried_out(monkeypatch)
    with pytest.raises(AssertionError, match="counted twice"):
        transfers_are_tried_again_until_they_are_answered()


# --- 45: readers poll while a transaction takes its time


def readers_poll_while_a_prepare_takes_long(delay_s: float) -> None:
    bank = Bank()
    script = bank.script
    txids: set[bytes] = set()
    delayed: list[peer.PeerMessage] = []

    def slow_down(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        prepares = [op[1] for op in _ops_in(message) if op[0] == txn_commands.PREPARE]
        txids.update(prepares)
        if not prepares or target != N2 or delayed:
            return message
        delayed.append(message)
        script.world.after(delay_s, script.network.inject, source, target, message)
        return None

    script.network.sift = slow_down
    answer = bank.transfer(N3, KV_Timeout="8s")
    bank.wait_until_held(0)
    reads: list[Pending] = []
    while not answer.is_done:
        for at in NODES:
            reads.append(script.send(at, "GET", f"/v1/kv/{bank.accounts[0]}", b"", {"KV-Timeout": "3s"}))
        script.run(0.01)
    assert answer.status == 200, answer.response
    assert len(txids) == 1, "the readers made it start again"
    script.run_until(lambda: all(read.is_done for read in reads), 3.0, "all readers are answered")
    assert {read.response.body for read in reads if read.response} == {b"99"}
    script.network.sift = None
    assert bank.balances() == [OPENING - 1, OPENING + 1, OPENING]
    bank.settle()


def _kill_whatever_is_met(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "LOOK_EVERY_S", 0.01)
    patch.setattr(recovery, "ASK_S", 0.0)
    patch.setattr(recovery, "FORCE_S", 0.0)


@pytest.mark.parametrize("delay_s", [0.08, 0.8])
def test_pitfall_45_readers_do_not_abort_a_transaction_that_takes_its_time(delay_s: float) -> None:
    readers_poll_while_a_prepare_takes_long(delay_s)


def test_pitfall_45_impatience_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _kill_whatever_is_met(monkeypatch)
    with pytest.raises(AssertionError, match="start again"):
        readers_poll_while_a_prepare_takes_long(0.08)


def test_reads_of_other_keys_and_of_the_past_never_wait() -> None:
    bank = Bank()
    script = bank.script

    def hold_back(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        return None if _is(message, txn_commands.DECIDE) or _is(message, txn_commands.ASK) else message

    script.network.sift = hold_back
    bank.send(N3, [incr(bank.accounts[0], 1), get(bank.accounts[1])], KV_Timeout="3s")
    bank.wait_until_held(0, 1)
    quick = {"KV-Timeout": "200ms"}
    other = bank.key_in(0, "other-")
    assert script.ask(N1, "PUT", f"/v1/kv/{other}", b"1", quick).status == 201
    assert script.ask(N2, "GET", f"/v1/kv/{other}", b"", quick).status == 200
    assert script.ask(N1, "GET", f"/v1/kv/{bank.accounts[1]}", b"", quick).status == 200, "a read lock"
    assert script.ask(N1, "GET", f"/v1/kv/{bank.accounts[0]}?revision=1", b"", quick).status == 200
    assert script.ask(N1, "GET", "/v1/kv?prefix=other-", b"", quick).status == 200
    assert script.ask(N1, "GET", "/v1/kv?prefix=account-", b"", quick).status == 409
    script.network.sift = None
    bank.settle()
