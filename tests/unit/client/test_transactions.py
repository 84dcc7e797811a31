"""Transactions: what is asked, how the answer reads, what an optimistic one compares."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from kvstore.client import Conflict, InvalidArgument, NotANumber, TxnConflict, op, when
from kvstore.client.plan import Kind
from kvstore.client.results import IncrResult, Item, PutResult
from kvstore.client.transactions import Committed, Draft, commit, read_all, rerun_s
from tests.support.client_script import Script, known_core


def body_of(script: Script) -> Any:
    return msgpack.unpackb(script.send.request.body)


def test_compares_and_operations_travel_as_the_contract_says() -> None:
    compares = [when("a").absent(), when("b").value.eq("x"), when("c").version.gt(1), when("d").exists()]
    call = commit(compares, [op.put("a", "1", ttl=30), op.incr("n", 2)], [op.get("a"), op.delete("b")])
    script = Script(known_core(), call)
    assert script.send.request.target == "/v1/txn"
    assert body_of(script) == {
        "if": [
            {"key": b"a", "revision": {"eq": 0}},
            {"key": b"b", "value": {"eq": b"x"}},
            {"key": b"c", "version": {"gt": 1}},
            {"key": b"d", "revision": {"gt": 0}},
        ],
        "then": [
            {"op": "put", "key": b"a", "value": b"1", "ttl": "30000ms"},
            {"op": "incr", "key": b"n", "by": 2},
        ],
        "else": [{"op": "get", "key": b"a"}, {"op": "delete", "key": b"b"}],
    }
    assert {"KV-Session", "KV-Sequence"} <= set(script.header)


def test_results_are_those_of_the_branch_that_was_taken() -> None:
    script = Script(known_core(), commit([when("a").absent()], [op.put("a", "1"), op.incr("n")], []))
    put = {"status": 201, "revision": 3, "version": 1, "created": True}
    incr = {"status": 200, "revision": 4, "value": 1}
    script.reply(200, {"succeeded": True, "results": [put, incr], "revisions": {"0": 3, "2": 4}})
    expected = (PutResult(3, 1, True), IncrResult(1, 4))
    assert script.result == Committed(True, expected, {0: 3, 2: 4})
    script = Script(known_core(), commit([when("a").absent()], [op.put("a", "1")], [op.get("a")]))
    item = {"status": 200, "key": "a", "value": "0", "revision": 2, "create_revision": 2, "version": 1}
    script.reply(200, {"succeeded": False, "results": [item], "revision": 9}, kv_shard="1")
    assert not script.result.succeeded
    assert script.result.results[0].value == b"0"
    assert script.result.revisions == {1: 9}


def test_a_collision_is_tried_again_with_the_same_identity_until_the_deadline() -> None:
    script = Script(known_core(), commit([], [op.put("a", "1")], []), 2.0)
    identities = set()

    def collide() -> None:
        while True:
            if script.is_sleeping:
                script.wake()
            else:
                identities.add((script.header["KV-Session"], script.header["KV-Sequence"]))
                script.problem(409, "conflict", retryable=True)

    with pytest.raises(TxnConflict):
        collide()
    assert len(identities) == 1
    assert script.now == pytest.approx(2.0, abs=0.5)


def test_an_operation_that_cannot_be_done_fails_the_whole() -> None:
    script = Script(known_core(), commit([], [op.incr("a")], []))
    with pytest.raises(NotANumber):
        script.problem(409, "not-a-number")


def test_a_transaction_that_only_reads_needs_no_identity() -> None:
    call = read_all([b"a", b"b"])
    assert call.kind is Kind.READ
    script = Script(known_core(), call)
    assert "KV-Session" not in script.header
    item = {"status": 200, "key": "a", "value": "1", "revision": 2, "create_revision": 2, "version": 1}
    script.reply(200, {"succeeded": True, "results": [item, {"status": 404}], "revision": 9})
    assert [found and found.value for found in script.result] == [b"1", None]


def test_an_empty_transaction_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        commit([], [], [])


def test_an_optimistic_transaction_compares_what_it_has_read_and_writes_the_rest() -> None:
    draft = Draft()
    draft._remember(b"a", Item(b"a", b"1", 7, 7, 1))
    draft._remember(b"b", None)
    draft.put("a", "2")
    draft.put("a", "3")
    draft.delete("c")
    call = draft._call()
    assert call is not None
    assert body_of(Script(known_core(), call)) == {
        "if": [{"key": b"a", "revision": {"eq": 7}}, {"key": b"b", "revision": {"eq": 0}}],
        "then": [{"op": "put", "key": b"a", "value": b"3"}, {"op": "delete", "key": b"c"}],
        "else": [],
    }
    with pytest.raises(Conflict):
        draft._settle(Committed(False, (), {}))


def test_a_transaction_reads_what_it_has_written() -> None:
    draft = Draft()
    draft.put("a", "new")
    draft.delete("b")
    assert draft._known(b"a") == (Item(b"a", b"new", 0, 0, 0),)
    assert draft._known(b"b") == (None,)
    assert draft._known(b"c") is None


def test_a_single_read_needs_no_commit_but_two_reads_do() -> None:
    draft = Draft()
    assert draft._call() is None
    draft._remember(b"a", None)
    assert draft._call() is None, "one read is consistent with itself"
    draft._remember(b"b", None)
    assert draft._call() is not None


def test_pauses_between_runs_grow_and_end() -> None:
    pauses = [rerun_s(run, 1.0) for run in range(1, 30)]
    assert pauses == sorted(pauses)
    assert pauses[-1] <= 0.5


def test_a_write_over_several_shards_is_dated_by_the_latest_of_their_clocks() -> None:
    core = known_core()
    keys = {core.routes.shard_of(key): key for key in (f"k{number}".encode() for number in range(50))}
    core.routes.learn_clock(2, 5000, 0.0)
    script = Script(core, commit([], [op.put(keys[0], "1"), op.put(keys[2], "1")], []))
    assert script.header["KV-Since"] == "5000"
    core.routes.forget_clock(2)
    script = Script(core, commit([], [op.put(keys[0], "1"), op.put(keys[2], "1")], []))
    assert "KV-Since" not in script.header, "what is not known dates nothing"
