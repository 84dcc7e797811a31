"""Batches: dividing, results of their own, and parts that need several attempts."""

from typing import Any

import msgpack
import pytest

from kvstore.client.batch import BATCH_BYTES_MAX, BATCH_OPS_MAX, Batch, divide
from kvstore.client.exchange import Fault
from kvstore.client.results import DeleteResult, IncrResult, Item, PutResult
from kvstore.client.routes import Routes
from kvstore.errors import Conflict, InvalidArgument, NoLeader, OutcomeUnknown
from tests.support.client_script import ENDPOINTS, Script, known_core, routes_document

PUT = {"status": 201, "revision": 3, "version": 1, "created": True}
NO_LEADER = {"status": 503, "code": "no-leader", "detail": "d"}
UNKNOWN = {"status": 504, "code": "outcome-unknown", "detail": "d"}


def known_routes() -> Routes:
    routes = Routes(ENDPOINTS)
    routes.learn(routes_document(), 0.0)
    return routes


def script_of(batch: Batch, timeout_s: float = 5.0) -> Script:
    core = known_core()
    chains = divide(batch.operations, Routes(ENDPOINTS))
    assert len(chains) == 1
    return Script(core, chains[0][0].call(), timeout_s)


def answer(script: Script, *results: dict[str, Any]) -> None:
    script.reply(200, {"results": list(results)})


def test_operations_are_grouped_by_shard_and_keep_their_order() -> None:
    batch, routes = Batch(), known_routes()
    for number in range(50):
        batch.put(f"key{number % 10}", str(number))
    chains = divide(batch.operations, routes)
    assert sum(len(part.members) for chain in chains for part in chain) == 50
    for chain in chains:
        members = [member for part in chain for member in part.members]
        assert len({routes.shard_of(member.key) for member in members}) == 1
        values = [int(member.fields["value"]) for member in members]
        assert values == sorted(values)


def test_without_routes_everything_goes_to_one_node() -> None:
    batch = Batch()
    for number in range(20):
        batch.get(f"key{number}")
    assert [len(chain) for chain in divide(batch.operations, Routes(ENDPOINTS))] == [1]


def test_large_batches_are_sent_in_pieces_that_follow_each_other() -> None:
    batch = Batch()
    for number in range(2 * BATCH_OPS_MAX + 1):
        batch.put("{tag}" + str(number), "v")
    [chain] = divide(batch.operations, known_routes())
    assert [len(part.members) for part in chain] == [BATCH_OPS_MAX, BATCH_OPS_MAX, 1]


def test_pieces_are_bounded_in_bytes_but_one_large_operation_goes_alone() -> None:
    batch = Batch()
    for size in (BATCH_BYTES_MAX // 2, BATCH_BYTES_MAX // 2, 2 * BATCH_BYTES_MAX, 1):
        batch.put("{tag}k", b"x" * size)
    [chain] = divide(batch.operations, known_routes())
    assert [len(part.members) for part in chain] == [1, 1, 1, 1]


def test_the_request_says_what_was_asked() -> None:
    batch = Batch()
    batch.put("a", "1", if_revision=4, prev=True, content_type="text/plain", ttl=1.5)
    batch.put("b", b"\xff", if_absent=True)
    batch.get("a", revision=2)
    batch.delete("a", if_revision=5)
    batch.incr("n", -2, min=0, max=9)
    ops = msgpack.unpackb(script_of(batch).send.request.body)["ops"]
    assert ops == [
        {"op": "put", "key": b"a", "value": b"1", "ttl": "1500ms", "if_revision": 4, "prev": True,
         "content_type": "text/plain"},
        {"op": "put", "key": b"b", "value": b"\xff", "if_absent": True},
        {"op": "get", "key": b"a", "revision": 2},
        {"op": "delete", "key": b"a", "if_revision": 5},
        {"op": "incr", "key": b"n", "by": -2, "min": 0, "max": 9},
    ]  # fmt: skip


def test_every_operation_gets_its_own_result() -> None:
    batch = Batch()
    batch.put("a", "1")
    batch.get("a")
    batch.get("b")
    batch.delete("a")
    batch.incr("n")
    batch.put("c", "1", if_revision=9)
    script = script_of(batch)
    answer(
        script,
        PUT,
        {"status": 200, "value": "1", "revision": 3, "create_revision": 3, "version": 1},
        {"status": 404},
        {"status": 200, "deleted": 1, "revision": 4},
        {"status": 200, "value": 1, "revision": 5},
        {"status": 412, "code": "precondition-failed", "detail": "d", "current_revision": 2},
    )
    put, item, absent, gone, counted, refused = script.result
    assert put == PutResult(3, 1, True)
    assert item == Item(b"a", b"1", 3, 3, 1)
    assert absent is None
    assert gone == DeleteResult(1, 4)
    assert counted == IncrResult(1, 5)
    assert isinstance(refused, Conflict)
    assert refused.fields["current_revision"] == 2


def test_reads_alone_carry_no_identity() -> None:
    batch = Batch()
    batch.get("a")
    assert "KV-Session" not in script_of(batch).header


def test_what_failed_is_tried_again_under_the_same_identity_and_what_succeeded_stays() -> None:
    batch = Batch()
    batch.put("a", "1")
    batch.put("b", "1")
    script = script_of(batch)
    first = script.header["KV-Sequence"]
    answer(script, PUT, NO_LEADER)
    script.wake()
    assert script.header["KV-Sequence"] == first
    answer(script, NO_LEADER, PUT | {"revision": 9})
    assert [result.revision for result in script.result] == [3, 9]


def test_a_read_behind_an_open_write_of_its_key_is_read_again() -> None:
    batch = Batch()
    batch.put("a", "new")
    batch.get("a")
    batch.get("other")
    script = script_of(batch)
    old = {"status": 200, "value": "old", "revision": 1, "create_revision": 1, "version": 1}
    new = {"status": 200, "value": "new", "revision": 3, "create_revision": 1, "version": 2}
    answer(script, NO_LEADER, old, old)
    script.wake()
    answer(script, PUT, new, new)
    assert [result.value for result in script.result[1:]] == [b"new", b"old"]


def test_at_the_deadline_each_operation_keeps_what_is_known_of_it() -> None:
    batch = Batch()
    batch.put("a", "1")
    batch.put("b", "1")
    batch.get("c")
    script = script_of(batch, timeout_s=0.4)
    while not script.is_over:
        if script.is_sleeping:
            script.wake()
        else:
            answer(script, PUT, NO_LEADER, NO_LEADER)
    settled, refused, unread = script.result
    assert settled.revision == 3
    assert isinstance(refused, NoLeader)
    assert isinstance(unread, NoLeader)


def test_an_open_write_is_unknown_once_any_attempt_may_have_applied_it() -> None:
    batch = Batch()
    batch.put("a", "1")
    batch.get("c")
    script = script_of(batch, timeout_s=1.0)
    answer(script, UNKNOWN, NO_LEADER)
    while not script.is_over:
        if script.is_sleeping:
            script.wake()
        elif script.send.request.target == "/v1/routes":
            script.fail(Fault.NOT_SENT)
        else:
            answer(script, NO_LEADER, NO_LEADER)
    write, read = script.result
    assert isinstance(write, OutcomeUnknown)
    assert isinstance(read, NoLeader)


def test_a_batch_the_store_cannot_date_starts_anew() -> None:
    batch = Batch()
    batch.put("a", "1")
    script = script_of(batch)
    answer(script, UNKNOWN | {"reason": "session-unknown"})
    assert script.header["KV-Sequence"] == "2"
    answer(script, PUT)
    assert script.result == [PutResult(3, 1, True)]


def test_a_batch_of_which_a_part_was_applied_never_starts_anew() -> None:
    batch = Batch()
    batch.put("a", "1")
    batch.put("b", "1")
    script = script_of(batch)
    answer(script, PUT, UNKNOWN | {"reason": "session-unknown"})
    script.wake()
    assert script.header["KV-Sequence"] == "1"


@pytest.mark.parametrize("results", [None, [], [1], [{}], [{"status": 201}], [{"status": "201"}]])
def test_results_that_do_not_fit_the_operations_count_as_lost(results: object) -> None:
    batch = Batch()
    batch.put("a", "1")
    script = script_of(batch)
    script.reply(200, {"results": results})
    assert not script.is_over


def test_settling_raises_the_gravest_error() -> None:
    batch = Batch()
    pending = [batch.put(name, "1") for name in "abc"]
    pending[0].fail(NoLeader())
    pending[1].fail(OutcomeUnknown())
    pending[2].resolve(PutResult(1, 1, True))
    with pytest.raises(OutcomeUnknown) as caught:
        batch.settle()
    assert caught.value.fields["failed_count"] == 2
    assert pending[2].result().revision == 1


def test_a_result_asked_for_too_early_says_so() -> None:
    with pytest.raises(RuntimeError, match="block"):
        Batch().get("a").result()


def test_an_empty_key_is_refused_when_it_is_added() -> None:
    with pytest.raises(InvalidArgument):
        Batch().put("", "1")
