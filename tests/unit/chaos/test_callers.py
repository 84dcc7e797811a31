"""What a client of the chaos runs may claim about an operation, from the answers that it got."""

import json

import pytest

from chaos.callers import Caller, Piece
from chaos.history import History
from tests.unit.chaos.scripted_server import HANG_UP, Answer, Arrived, Script, problem, scripted

WRITTEN = Answer(201, {"revision": 7, "version": 1, "created": True}, {"KV-Clock": "99"})


def in_turn(*answers: Answer) -> Script:
    """The answers one after the other, the last one for ever."""
    remaining = list(answers)
    return lambda arrived: remaining.pop(0) if len(remaining) > 1 else remaining[0]


async def test_a_put_is_recorded_with_its_revision() -> None:
    async with scripted(in_turn(WRITTEN)) as server:
        history = History()
        operation = await Caller(0, {"n1": server.address}, history).put("a/b", "v1", if_revision=6)
    assert operation.outcome == "ok"
    assert operation.result == {"revision": 7, "version": 1, "created": True}
    assert operation.argument == {"value": "v1", "if_revision": 6}
    (arrived,) = server.arrived
    assert (arrived.method, arrived.target, arrived.body) == ("PUT", "/v1/kv/a%2Fb", b"v1")
    assert arrived.headers["If-Match"] == '"6"'
    assert history.operations == [operation]


async def test_an_identified_write_is_sent_again_under_the_same_identity() -> None:
    async with scripted(in_turn(HANG_UP, problem(504, "outcome-unknown"), WRITTEN)) as server:
        caller = Caller(0, {"n1": server.address}, History())
        operation = await caller.put("k", "v")
        await caller.put("k", "w")
    assert operation.outcome == "ok"
    identities = [(item.headers["KV-Session"], item.headers["KV-Sequence"]) for item in server.arrived]
    assert identities[0] == identities[1] == identities[2]
    assert identities[3] == (identities[0][0], "2")
    assert server.arrived[3].headers["KV-Since"] == "99"


async def test_an_unidentified_write_that_was_lost_is_unknown_and_never_sent_again() -> None:
    async with scripted(in_turn(HANG_UP, WRITTEN)) as server:
        operation = await Caller(0, {"n1": server.address}, History(), is_identified=False).put("k", "v")
    assert operation.outcome == "unknown"
    assert operation.returned is None
    assert len(server.arrived) == 1
    assert "KV-Session" not in server.arrived[0].headers


async def test_an_unidentified_write_is_sent_again_when_it_surely_was_not_proposed() -> None:
    async with scripted(in_turn(problem(503, "no-leader"), problem(429, "overloaded"), WRITTEN)) as server:
        operation = await Caller(0, {"n1": server.address}, History(), is_identified=False).put("k", "v")
    assert operation.outcome == "ok"
    assert len(server.arrived) == 3


async def test_a_write_that_no_node_takes_until_its_deadline_is_refused() -> None:
    async with scripted(in_turn(problem(503, "no-leader"))) as server:
        operation = await Caller(0, {"n1": server.address}, History(), timeout_s=0.3).put("k", "v")
    assert operation.outcome == "refused"
    assert operation.error == "no-leader"


async def test_a_write_that_was_lost_once_stays_unknown_though_later_attempts_are_refused() -> None:
    async with scripted(in_turn(HANG_UP, problem(503, "no-leader"))) as server:
        operation = await Caller(0, {"n1": server.address}, History(), timeout_s=0.3).put("k", "v")
    assert operation.outcome == "unknown"


async def test_a_node_that_is_down_is_left_for_another() -> None:
    async with scripted(in_turn(WRITTEN)) as server:
        nodes = {"down": "127.0.0.1:1", "up": server.address}
        operation = await Caller(3, nodes, History(), is_identified=False).put("k", "v")
    assert operation.outcome == "ok"
    assert operation.node == "up"


async def test_a_server_error_counts_as_an_answer_that_nobody_may_get() -> None:
    async with scripted(in_turn(problem(500, "internal"))) as server:
        caller = Caller(0, {"n1": server.address}, History())
        operation = await caller.put("k", "v")
    assert operation.outcome == "unknown"
    assert caller.unexpected == {"PUT 500 internal": 1}


async def test_a_failed_precondition_is_an_observation() -> None:
    refused = Answer(412, {"code": "precondition-failed", "current_revision": 9})
    async with scripted(in_turn(refused)) as server:
        operation = await Caller(0, {"n1": server.address}, History()).put("k", "v", if_revision=3)
    assert operation.outcome == "conflict"
    assert operation.result == {"current_revision": 9}


async def test_reads_tell_value_and_revision_or_absence() -> None:
    found = Answer(200, headers={"KV-Revision": "4"}, body=b"v")
    async with scripted(in_turn(found, problem(404, "key-not-found"))) as server:
        caller = Caller(0, {"n1": server.address}, History())
        assert (await caller.get("k")).result == {"value": "v", "revision": 4}
        absent = await caller.get("k")
    assert (absent.outcome, absent.result) == ("ok", None)


async def test_each_piece_of_a_batch_is_an_operation_of_its_own() -> None:
    def answer(arrived: Arrived) -> Answer:
        assert [piece["op"] for piece in json.loads(arrived.body)["ops"]] == ["put", "incr", "get", "put"]
        results = [
            {"status": 201, "revision": 3, "version": 1, "created": True},
            {"status": 200, "value": 2, "revision": 4},
            {"status": 404, "code": "key-not-found"},
            {"status": 503, "code": "no-leader"},
        ]
        return Answer(200, {"results": results})

    pieces: list[Piece] = [
        ("put", "a", {"value": "1"}),
        ("incr", "n", {"by": 1}),
        ("get", "b", None),
        ("put", "c", {"value": "1"}),
    ]
    async with scripted(answer) as server:
        put, incr, get, refused = await Caller(0, {"n1": server.address}, History(), timeout_s=0.5).batch(
            pieces
        )
    assert put.result == {"revision": 3, "version": 1, "created": True}
    assert incr.result == {"value": 2, "revision": 4}
    assert (get.outcome, get.result) == ("ok", None)
    assert (refused.outcome, refused.error) == ("refused", "no-leader")


async def test_a_piece_that_is_refused_after_a_lost_attempt_stays_unknown() -> None:
    partly = Answer(200, {"results": [{"status": 503, "code": "no-leader"}]})
    async with scripted(in_turn(HANG_UP, partly)) as server:
        (piece,) = await Caller(0, {"n1": server.address}, History(), timeout_s=0.5).batch(
            [("put", "a", {"value": "1"})]
        )
    assert piece.outcome == "unknown"


async def test_a_batch_is_repeated_until_every_piece_has_its_answer() -> None:
    late = Answer(200, {"results": [{"status": 504, "code": "outcome-unknown"}]})
    done = Answer(200, {"results": [{"status": 201, "revision": 3, "version": 1, "created": True}]})
    async with scripted(in_turn(late, done)) as server:
        (piece,) = await Caller(0, {"n1": server.address}, History()).batch([("put", "a", {"value": "1"})])
    assert piece.outcome == "ok"
    assert [item.headers["KV-Sequence"] for item in server.arrived] == ["1", "1"]


async def test_a_piece_without_answer_at_the_deadline_stays_unknown() -> None:
    late = Answer(200, {"results": [{"status": 504, "code": "outcome-unknown"}]})
    refused = Answer(200, {"results": [{"status": 503, "code": "no-leader"}]})
    async with scripted(in_turn(late, refused)) as server:
        caller = Caller(0, {"n1": server.address}, History(), timeout_s=0.3)
        (piece,) = await caller.batch([("put", "a", {"value": "1"})])
    assert piece.outcome == "unknown"


async def test_any_other_request_is_an_operation_whose_answer_the_asker_reads() -> None:
    granted = Answer(200, {"holder": "me"})
    async with scripted(in_turn(problem(503, "no-leader"), granted)) as server:
        caller = Caller(0, {"n1": server.address}, History())
        operation = await caller.call(
            "lock", "l", {"for": 1}, "POST", "/v1/any", lambda reply: json.loads(reply.body)["holder"]
        )
    assert (operation.kind, operation.outcome, operation.result) == ("lock", "ok", "me")
    assert server.arrived[1].headers["KV-Session"]


async def test_a_refusal_that_is_an_answer_is_a_conflict_and_nothing_unexpected() -> None:
    async with scripted(in_turn(problem(409, "held"))) as server:
        caller = Caller(0, {"n1": server.address}, History())
        operation = await caller.call(
            "lock", "l", None, "POST", "/v1/any", lambda reply: reply.status, conflicts=frozenset({"held"})
        )
    assert (operation.outcome, operation.error, operation.result) == ("conflict", "held", 409)
    assert not caller.unexpected


@pytest.mark.parametrize(("conflicts", "outcome"), [(frozenset(), "ok"), (frozenset({"gone"}), "conflict")])
async def test_a_404_is_an_answer_and_a_conflict_where_its_code_is_named(
    conflicts: frozenset[str], outcome: str
) -> None:
    async with scripted(in_turn(problem(404, "gone"))) as server:
        caller = Caller(0, {"n1": server.address}, History())
        operation = await caller.call(
            "renew", "l", None, "PUT", "/v1/any", lambda reply: reply.status, conflicts=conflicts
        )
    assert (operation.outcome, operation.result) == (outcome, 404)
    assert not caller.unexpected


async def test_a_piece_that_was_done_once_is_done_though_a_later_attempt_finds_no_leader() -> None:
    done = {"status": 201, "revision": 3, "version": 1, "created": True}
    refused = {"status": 503, "code": "no-leader"}
    first = Answer(200, {"results": [done, refused]})
    later = Answer(200, {"results": [refused, refused]})
    async with scripted(in_turn(first, later)) as server:
        caller = Caller(0, {"n1": server.address}, History(), timeout_s=0.3)
        pieces = await caller.batch([("put", "a", {"value": "1"}), ("put", "b", {"value": "2"})])
    assert [piece.outcome for piece in pieces] == ["ok", "refused"]
