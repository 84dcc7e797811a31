"""Writes that clients repeat and nodes pass on apply once: schedules on whole clusters, and their guards.

Each schedule runs twice: as it ships, and with its guard taken away. It must fail then, or it proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest

from kvstore.node.router import Router
from kvstore.types import NodeId
from kvstore.wire import peer
from tests.sim.guards import execute_every_time
from tests.sim.script import N1, N2, N3, Pending, Script

NODES = (N1, N2, N3)


def _identity(session: int, sequence: int) -> dict[str, str]:
    return {"KV-Session": f"{session:032x}", "KV-Sequence": str(sequence), "KV-Timeout": "1s"}


def _incr(script: Script, at: NodeId, key: str, headers: dict[str, str]) -> Pending:
    return script.send(at, "POST", f"/v1/kv/{key}?op=incr", b'{"by":1}', headers)


def _count(script: Script, key: str) -> int:
    return int(script.value(N1, key) or 0)


def _is_any_ok(answers: list[Pending]) -> bool:
    return any(answer.status == 200 for answer in answers)


def _key_of_shard(script: Script, shard: int, prefix: str) -> str:
    shard_of = script.process(N1).node.router.shard_of
    return next(key for number in range(99) if shard_of((key := f"{prefix}{number}").encode()) == shard)


def _lose_answers(script: Script, dice: Random, share: float) -> None:
    def pass_most(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        return None if isinstance(message, peer.ForwardReply) and dice.random() < share else message

    script.network.sift = pass_most


# --- 23: a client's retry is a second write (etcd #14890 #18424; Jepsen jetcd)


def answers_are_lost_and_clients_try_again() -> None:
    script = Script()
    script.start()
    script.lead(N1)
    dice = Random(23)
    _lose_answers(script, dice, 0.4)
    script.network.faults.loss = 0.05
    for sequence in range(1, 21):
        for _attempt in range(30):
            answer = _incr(script, dice.choice(NODES), "n", _identity(7, sequence))
            script.run_until(lambda answer=answer: answer.is_done, 2.0, "an answer")  # type: ignore[misc]
            if answer.status == 200:
                break
            assert answer.status in (503, 504), answer.response
        else:
            raise AssertionError("never answered")
    script.mend()
    script.network.faults.loss = 0.0
    assert _count(script, "n") == 20, "an increment that was tried again counted twice"
    script.check()


def unidentified_writes_are_passed_on() -> None:
    """They may be lost on the way, with their answers, and the network delivers frames twice."""
    script = Script()
    script.start()
    script.lead(N1)
    _lose_answers(script, Random(24), 0.2)
    script.network.faults.loss = 0.1
    script.network.faults.repeat = 0.3
    answers: list[Pending] = []
    for _ in range(30):
        answers.append(_incr(script, N2, "n", {"KV-Timeout": "2s"}))
        script.run(0.05)
    # The leader changes while some have no answer: whoever sends these again may do them twice.
    script.process(N1).node.ask_transfer(script.replica(N1).shard, N3)
    script.run(5.0)
    script.mend()
    script.network.faults.loss = script.network.faults.repeat = 0.0
    acknowledged = sum(answer.status == 200 for answer in answers)
    unknown = sum(answer.status == 504 for answer in answers)
    count = _count(script, "n")
    assert acknowledged <= count <= acknowledged + unknown, "a write that nobody repeated counted twice"
    assert unknown, "nothing was lost"
    script.check()


def _take_every_frame(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Router, "_is_first", lambda router, node, number: True)


def _send_again_whatever_it_is(patch: pytest.MonkeyPatch) -> None:
    sweep = Router._sweep_forwards

    def sweep_eagerly(router: Router, now: float) -> None:
        sweep(router, now)
        for number, (call, *_rest) in list(router._forwards.items()):
            if call.deadline - now < 1.5:
                del router._forwards[number]
                call.deadline += 1.0
                router.dispatch(call)

    patch.setattr(Router, "_sweep_forwards", sweep_eagerly)


def test_pitfall_23_a_write_tried_again_with_its_identity_counts_once() -> None:
    answers_are_lost_and_clients_try_again()


def test_pitfall_23_a_repeated_write_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    execute_every_time(monkeypatch)
    with pytest.raises(AssertionError, match="tried again counted twice"):
        answers_are_lost_and_clients_try_again()


def test_pitfall_23_no_node_does_a_write_without_identity_twice() -> None:
    unidentified_writes_are_passed_on()


@pytest.mark.parametrize("remove", [_take_every_frame, _send_again_whatever_it_is])
def test_pitfall_23_a_write_done_twice_by_nodes_is_caught_without_its_guard(
    remove: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch)
    with pytest.raises(AssertionError, match="that nobody repeated counted twice"):
        unidentified_writes_are_passed_on()


# --- 38: sequences over shards, many sessions, requests in parts


def one_session_writes_to_two_shards_while_leaders_change() -> None:
    script = Script(shards=2)
    script.start()
    keys = [_key_of_shard(script, shard, "n") for shard in (0, 1)]
    dice = Random(38)
    for sequence in range(1, 17):
        key, sent = keys[sequence % 2], [NODES[sequence % 3], NODES[(sequence + 1) % 3]]
        for attempt in range(20):
            answers = [_incr(script, node, key, _identity(9, sequence)) for node in sent]
            if sequence % 5 == 0 and attempt == 0:
                victim = script.leader(sequence % 2) or N1
                script.run(dice.uniform(0, 0.006))
                script.kill(victim)
                script.restart(victim)
            script.world.run_while(lambda answers=answers: not _is_any_ok(answers), 1.2)  # type: ignore[misc]
            if _is_any_ok(answers):
                break
            sent = [dice.choice(NODES)]
        else:
            raise AssertionError("never answered")
    script.run(2.0)
    assert [_count(script, key) for key in keys] == [8, 8], "a sequence number counted twice or not at all"
    script.check()


def many_sessions_write_once_each() -> None:
    script = Script()
    script.start()
    script.lead(N1)
    answers = []
    for session in range(150):
        for node in (N2, N3):
            answers.append(_incr(script, node, "n", _identity(session, 1) | {"KV-Timeout": "5s"}))
        if session == 75:
            script.process(N1).node.ask_transfer(script.replica(N1).shard, N2)
        script.run(0.002)
    script.run(2.0)
    assert all(answer.status == 200 for answer in answers)
    values = sorted(
        msgspec.json.decode(answer.response.body)["value"] for answer in answers if answer.response
    )
    assert values == sorted([*range(1, 151), *range(1, 151)]), "a session was answered in two ways"
    assert _count(script, "n") == 150
    script.check()


def batch_over_two_shards_loses_one_of_them_half_way() -> None:
    script = Script(shards=2)
    script.start()
    script.lead(N1, 0)
    script.lead(N2, 1)
    keys = [_key_of_shard(script, shard, "n") for shard in (0, 1)]
    ops = [{"op": "incr", "key": key, "by": 1} for key in keys for _ in range(2)]
    body = msgspec.json.encode({"ops": ops})
    headers = _identity(11, 1) | {"Content-Type": "application/json"}
    script.part(N2)
    first = script.send(N1, "POST", "/v1/batch", body, headers)
    script.run_until(lambda: first.is_done, 3.0, "an answer")
    assert _count(script, keys[0]) == 2, "the first part is done"
    script.mend()
    for _attempt in range(3):
        again = script.send(N3, "POST", "/v1/batch", body, headers | {"KV-Timeout": "5s"})
        script.run_until(lambda again=again: again.is_done, 6.0, "an answer")  # type: ignore[misc]
        assert again.status == 200, again.response
    assert [_count(script, key) for key in keys] == [2, 2], "a part of the batch was done twice"
    script.check()


@pytest.mark.parametrize(
    "schedule",
    [
        one_session_writes_to_two_shards_while_leaders_change,
        many_sessions_write_once_each,
        batch_over_two_shards_loses_one_of_them_half_way,
    ],
)
class TestPitfall38:
    def test_pitfall_38_each_write_applies_exactly_once(self, schedule: Callable[[], None]) -> None:
        schedule()

    def test_pitfall_38_each_write_is_caught_without_its_guard(
        self, schedule: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        execute_every_time(monkeypatch)
        with pytest.raises(AssertionError, match="counted twice|answered in two ways|done twice"):
            schedule()
