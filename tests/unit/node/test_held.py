"""Calls that wait for transactions: which go on when, and what they are told at their deadline."""

from typing import Any

import pytest

from kvstore.errors import KvError, Overloaded, TxnConflict
from kvstore.node import held
from kvstore.node.calls import Call, Stage
from kvstore.node.held import HeldCalls
from kvstore.store import MemoryEngines, commands, txn_commands
from kvstore.store.intents import Intents, Lock, Pending
from kvstore.types import ShardId
from tests.support.sim_files import SimFiles

SHARD = ShardId(0)


class Told:
    """What one caller was answered."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def __call__(self, answer: Any, error: BaseException | None) -> None:
        self.answers.append(answer if error is None else error)

    @property
    def error(self) -> KvError:
        (error,) = self.answers
        assert isinstance(error, KvError)
        return error


@pytest.fixture
def intents() -> Intents:
    """`t` is prepared and holds the key `a` alone."""
    made = Intents(MemoryEngines(SimFiles()).open("t"))
    made._set(b"a", Lock(True, (b"t",)))
    made.pending[b"t"] = Pending(0, [[0, 9]], [True, None, None], False)
    return made


def let_go(intents: Intents) -> None:
    intents._set(b"a", Lock(True, ()))
    del intents.pending[b"t"]
    intents.releases += 1


def put(key: bytes, told: Told, deadline: float = 10.0, *, is_forwarded: bool = False) -> Call:
    command = commands.encode(None, [commands.put(key, b"")])
    return Call(SHARD, command, deadline, told, is_forwarded=is_forwarded)


def get(key: bytes, told: Told) -> Call:
    return Call(SHARD, ["get", key, None], 10.0, told, consistency="linearizable")


def test_nothing_is_due_while_no_lock_went(intents: Intents) -> None:
    waiting = HeldCalls()
    assert not waiting.is_due(intents)
    waiting.hold_write(put(b"a", Told()))
    assert waiting.is_due(intents)
    assert waiting.take_free(intents) == ([], [])
    assert not waiting.is_due(intents)
    let_go(intents)
    assert waiting.is_due(intents)


def test_writes_go_on_when_their_keys_are_free(intents: Intents) -> None:
    waiting, first, second = HeldCalls(), put(b"a", Told()), put(b"b", Told())
    first.stage = Stage.PROPOSED
    waiting.hold_write(first)
    waiting.hold_write(second)
    assert first.stage is Stage.WAITING, "nothing of it has happened"
    assert waiting.take_free(intents) == ([second], [])
    let_go(intents)
    assert waiting.take_free(intents) == ([first], [])
    assert len(waiting) == 0


def test_reads_wait_for_the_writers_that_they_met_and_for_no_later_one(intents: Intents) -> None:
    waiting, read = HeldCalls(), get(b"a", Told())
    waiting.hold_read(read, frozenset((b"t",)))
    assert waiting.take_free(intents) == ([], [])
    let_go(intents)
    intents._set(b"a", Lock(True, (b"u",)))
    intents.pending[b"u"] = Pending(0, [[0, 9]], [True, None, None], False)
    assert waiting.take_free(intents) == ([], [read])


def test_deadline_is_a_conflict_that_may_be_tried_again(intents: Intents) -> None:
    waiting, told = HeldCalls(), Told()
    waiting.hold_write(put(b"a", told, deadline=2.0))
    waiting.hold_read(get(b"a", Told()), frozenset((b"t",)))
    waiting.expire(1.9)
    assert told.answers == []
    waiting.expire(2.0)
    assert isinstance(told.error, TxnConflict)
    assert told.error.retryable
    assert len(waiting) == 1


def test_forwarded_call_gives_up_early_enough_for_its_answer_to_arrive(intents: Intents) -> None:
    waiting, told = HeldCalls(), Told()
    waiting.hold_write(put(b"a", told, deadline=2.0, is_forwarded=True))
    waiting.expire(2.0 - held.EARLY_S)
    assert isinstance(told.error, TxnConflict)


def test_who_was_answered_elsewhere_is_forgotten() -> None:
    waiting, call = HeldCalls(), put(b"a", Told())
    waiting.hold_write(call)
    call.finish(None)
    waiting.expire(0.0)
    assert len(waiting) == 0
    waiting.hold_write(call)
    assert len(waiting) == 0


def test_too_many_are_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "CALLS_MAX", 2)
    waiting, told = HeldCalls(), [Told(), Told(), Told()]
    for each in told:
        waiting.hold_write(put(b"a", each))
    assert [len(each.answers) for each in told] == [0, 0, 1]
    assert isinstance(told[2].error, Overloaded)
    monkeypatch.setattr(held, "CALLS_MAX", 100)
    monkeypatch.setattr(held, "BYTES_MAX", 40)
    large = Told()
    waiting.hold_write(put(b"a" * 40, large))
    assert isinstance(large.error, Overloaded)


def test_other_leader_gets_the_writes_and_reads_stay() -> None:
    waiting, write, read = HeldCalls(), put(b"a", Told()), get(b"a", Told())
    waiting.hold_write(write)
    waiting.hold_read(read, frozenset((b"t",)))
    assert list(waiting) == [write, read]
    assert waiting.take_writes() == [write]
    assert list(waiting) == [read]
    assert waiting.take_reads() == [read]


# --- claims: who waits comes first


def prepare(key: bytes, told: Told, *, waits: bool, is_read: bool = False) -> Call:
    ops = [[txn_commands.GET, key]] if is_read else [commands.put(key, b"")]
    op = txn_commands.prepare(b"u", 9, [[0, 9]], ([], ops, []), waits=waits)
    return Call(SHARD, commands.encode(None, [op]), 10.0, told, identified=True)


def test_prepare_stands_back_for_whoever_waits_for_its_key(intents: Intents) -> None:
    waiting, told = HeldCalls(), Told()
    assert not waiting.must_stand_back(prepare(b"a", Told(), waits=False)), "nobody waits yet"
    waiting.hold_write(put(b"a", Told()))
    assert not waiting.must_stand_back(prepare(b"b", Told(), waits=False))
    assert waiting.must_stand_back(prepare(b"a", told, waits=False))
    assert isinstance(told.error, TxnConflict)
    assert not waiting.must_stand_back(put(b"a", Told())), "a single write holds nothing"


def test_prepare_that_may_wait_queues_behind_who_came_first(intents: Intents) -> None:
    waiting, first, second = HeldCalls(), put(b"a", Told()), prepare(b"a", Told(), waits=True)
    waiting.hold_write(first)
    assert waiting.must_stand_back(second)
    let_go(intents)
    assert waiting.take_free(intents) == ([first], []), "the second would take the key away"
    assert waiting.take_free(intents) == ([second], [])


def test_readers_of_a_key_do_not_stand_back_for_readers(intents: Intents) -> None:
    waiting, first = HeldCalls(), prepare(b"a", Told(), waits=True, is_read=True)
    waiting.hold_write(first)
    assert not waiting.must_stand_back(prepare(b"a", Told(), waits=False, is_read=True))
    assert waiting.must_stand_back(prepare(b"a", Told(), waits=False))


def test_claims_go_with_the_writes_that_made_them(intents: Intents) -> None:
    waiting = HeldCalls()
    waiting.hold_write(put(b"a", Told()))
    waiting.hold_write(put(b"b", Told()))
    assert len(waiting.take_free(intents)[0]) == 1, "of b"
    assert waiting.must_stand_back(prepare(b"a", Told(), waits=False))
    assert not waiting.must_stand_back(prepare(b"b", Told(), waits=False))
