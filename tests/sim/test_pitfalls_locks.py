"""Nobody unknown holds a lock, and nobody waits for one that is free: schedules on whole clusters.

Each schedule runs twice: as it ships, and with its guard taken away. It must fail then, or it proves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kvstore.node.api.locks import Taking
from kvstore.node.calls import Call, ReadAnswer
from kvstore.node.replica import Replica
from kvstore.raft.messages import AppendRequest
from kvstore.store import apply, commands, lock_commands, lock_queue
from kvstore.store.draft import Draft
from kvstore.store.lock_queue import Queue
from kvstore.types import NodeId
from kvstore.wire import peer
from tests.sim.guards import Remove
from tests.sim.script import N1, N2, N3, Pending, Script, unremembered

NAME = b"_locks/jobs"
PATH = "/v1/locks/jobs"
JSON = {"Content-Type": "application/json"}


def started() -> Script:
    script = Script()
    script.start()
    script.lead(N1)
    return script


def ask_for(script: Script, at: NodeId, *, ttl_s: float = 60, wait_s: float = 0, **headers: str) -> Pending:
    body = json.dumps({"ttl": ttl_s, "wait": wait_s}).encode()
    return script.send(
        at, "POST", PATH, body, JSON | {key.replace("_", "-"): v for key, v in headers.items()}
    )


def answer(script: Script, pending: Pending, limit_s: float = 7.0) -> Any:
    script.run_until(lambda: pending.is_done, limit_s, "an answer")
    assert pending.response is not None, "the node is down"
    return json.loads(pending.response.body)


def take(script: Script, at: NodeId, *, limit_s: float = 7.0, **options: Any) -> dict[str, Any]:
    """Take the lock; only a grant will do."""
    pending = ask_for(script, at, **options)
    content = answer(script, pending, limit_s)
    assert pending.status == 200, f"not granted: {content}"
    assert isinstance(content, dict)
    return content


def release(script: Script, at: NodeId, token: str) -> None:
    response = script.ask(at, "DELETE", f"{PATH}/{token}")
    assert response.status == 200, response


def holder(script: Script, at: NodeId = N1) -> Any:
    return script.replica(at).machine.query(["holder", NAME])


def waiters(script: Script, at: NodeId = N1) -> int:
    found = holder(script, at)
    return 0 if found is None else int(found[3])


# --- 44: a waiter goes, and a late copy of its request comes


def _op_of(message: peer.PeerMessage) -> list[Any]:
    return commands.decode(message.command)[1][0] if isinstance(message, peer.ForwardWrite) else [0]


def a_late_copy_of_a_waiter_s_request_arrives() -> None:
    """The copy was made by the network, or by a node that had no answer: ENTER repeats harmlessly."""
    script = started()
    held = take(script, N1)
    copies: list[peer.PeerMessage] = []

    def copy(source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage:
        if _op_of(message)[0] == lock_commands.ENTER:
            copies.append(message)
        return message

    script.network.sift = copy
    waits = ask_for(script, N2, wait_s=1)
    answer(script, waits)
    assert waits.status == 409
    assert copies, "the request was not passed on"
    script.mend()
    release(script, N1, held["token"])
    for _ in range(8):
        for message in copies:
            script.network.inject(N2, N1, unremembered(message))
        script.run(2.0)
        assert holder(script) is None, "a request that nobody waits for took the lock"
    take(script, N3)
    script.check()


def _keep_no_marks(patch: pytest.MonkeyPatch) -> None:
    """A claim without an entry is forgotten at once."""
    write_mark = Queue.write_mark

    def write(queue: Queue, claim: bytes, old: Any, new: Any) -> None:
        write_mark(queue, claim, old, new if new is not None and new.order else None)

    patch.setattr(Queue, "write_mark", write)


def _forget_not_after(patch: pytest.MonkeyPatch) -> None:
    """Marks are kept as long as they should be, and a late ENTER is taken for a new one."""
    enter = apply.APPLY[lock_commands.ENTER]

    def late_is_fine(draft: Draft, op: list[Any]) -> Any:
        return enter(draft, [*op[:6], max(op[6], draft.clock_ms), *op[7:]])

    patch.setitem(apply.APPLY, lock_commands.ENTER, late_is_fine)


# --- 44: the caller hangs up


def a_caller_hangs_up_while_it_waits() -> None:
    script = started()
    held = take(script, N1)
    waits = ask_for(script, N2, wait_s=30)
    script.run(0.5)
    assert waiters(script) == 1
    script.cluster.hang_up(N2, waits.request)
    script.run(0.5)
    assert waiters(script) == 0, "an entry of nobody waits"
    release(script, N1, held["token"])
    take(script, N3)
    script.check()


def _do_not_withdraw(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Taking, "_withdraw", lambda taking: None)


# --- 44: the node of a waiter dies


def the_node_of_a_waiter_dies() -> None:
    """Its entry is the next. What was granted to nobody goes to who waits behind it."""
    script = started()
    held = take(script, N1)
    ask_for(script, N3, ttl_s=3600, wait_s=300)
    script.run(0.5)
    behind = ask_for(script, N2, wait_s=30)
    script.run(0.5)
    script.kill(N3)
    release(script, N1, held["token"])
    content = answer(script, behind, 25.0)
    assert behind.status == 200, f"it waits behind somebody dead: {content}"
    script.check()


def _leave_grants_lying(patch: pytest.MonkeyPatch) -> None:
    """A grant lasts its TTL, taken or not."""
    patch.setattr(lock_queue, "PICKUP_MS", 1 << 40)


def a_waiter_that_died_is_passed_over_later() -> None:
    """The holder outlives the dead one's wait: then its turn never comes."""
    script = started()
    held = take(script, N1)
    ask_for(script, N3, ttl_s=3600, wait_s=1)
    script.run(0.3)
    behind = ask_for(script, N2, wait_s=30)
    script.run(0.3)
    script.kill(N3)
    script.run(7.0)
    assert waiters(script) == 1, "the dead one still waits"
    release(script, N1, held["token"])
    content = answer(script, behind, 1.0)
    assert behind.status == 200, content
    script.check()


def _let_waiters_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lock_queue, "LATE_MS", 1 << 40)


# --- 44: the request comes again while its first try is given up


def a_request_comes_again_elsewhere_and_the_first_try_is_given_up() -> None:
    script = started()
    held = take(script, N1)
    session = {"KV_Session": "s", "KV_Sequence": "1"}
    first = ask_for(script, N2, wait_s=30, **session)
    script.run(0.3)
    again = ask_for(script, N3, wait_s=30, **session)
    script.run(0.3)
    script.cluster.hang_up(N2, first.request)
    script.run(0.3)
    release(script, N1, held["token"])
    script.run(0.5)
    granted = answer(script, again)
    assert again.status == 200, f"the place of the living try was given up: {granted}"
    assert holder(script)[1] == granted["fence"]
    script.check()


def _let_any_attempt_give_up(patch: pytest.MonkeyPatch) -> None:
    leave = apply.APPLY[lock_commands.LEAVE]

    def whose_ever(draft: Draft, op: list[Any]) -> Any:
        return leave(draft, [*op[:4], None, op[5]])

    patch.setitem(apply.APPLY, lock_commands.LEAVE, whose_ever)


SCHEDULES: dict[str, tuple[Callable[[], None], tuple[Remove, ...]]] = {
    "a late copy of a waiter's request": (
        a_late_copy_of_a_waiter_s_request_arrives,
        (_keep_no_marks, _forget_not_after),
    ),
    "a caller hangs up": (a_caller_hangs_up_while_it_waits, (_do_not_withdraw,)),
    "the node of the next one dies": (the_node_of_a_waiter_dies, (_leave_grants_lying,)),
    "a waiter died long ago": (a_waiter_that_died_is_passed_over_later, (_let_waiters_stay,)),
    "a request comes again": (
        a_request_comes_again_elsewhere_and_the_first_try_is_given_up,
        (_let_any_attempt_give_up,),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_pitfall_44_nobody_unknown_comes_to_hold_a_lock(name: str) -> None:
    SCHEDULES[name][0]()


@pytest.mark.parametrize(
    ("name", "remove"), [(name, remove) for name, (_, guards) in SCHEDULES.items() for remove in guards]
)
def test_pitfall_44_shows_without_each_guard(
    name: str, remove: Remove, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(monkeypatch)
    with pytest.raises(AssertionError):
        SCHEDULES[name][0]()


# --- 44: fences only grow, through failovers


def holders_follow_each_other_through_failovers() -> None:
    script = started()
    fences = []
    for turn in range(6):
        leader = script.leader()
        assert leader is not None
        other = next(name for name in (N1, N2, N3) if name != leader)
        held = take(script, other, ttl_s=2, wait_s=15, limit_s=21.0)
        fences.append(held["fence"])
        if turn % 2:
            script.kill(leader)
            script.run_until(lambda leader=leader: script.leader() not in (None, leader), 15.0, "a leader")  # type: ignore[misc]
            script.restart(leader)
        else:
            release(script, other, held["token"])
    assert fences == sorted(set(fences)), f"fences do not grow: {fences}"
    script.check()


def _fence_by_a_count_of_the_queue(patch: pytest.MonkeyPatch) -> None:
    """As if the order in the queue were the fence: it begins anew when the queue was empty."""
    stand = Queue.stand

    def by_order(queue: Queue, order: int, entry: Any) -> Any:
        result = stand(queue, order, entry)
        return [*result[:2], order, *result[3:]] if result[1] else result

    patch.setattr(Queue, "stand", by_order)


def test_pitfall_44_fences_only_grow_through_failovers() -> None:
    """The other half of the claim, restoring a backup, comes with backups."""
    holders_follow_each_other_through_failovers()


def test_pitfall_44_shows_when_fences_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    _fence_by_a_count_of_the_queue(monkeypatch)
    with pytest.raises(AssertionError, match="do not grow"):
        holders_follow_each_other_through_failovers()


# --- 40: a clock's opinion frees a lock


def an_overdue_lock_is_held_until_an_entry_ends_it() -> None:
    script = started()
    held = take(script, N1, ttl_s=1)
    # What would end it reaches nobody: the leader knows that it is due, and may not say so.
    script.sift(lambda source, target, message: not (type(message) is AppendRequest and message.entries))
    script.run(1.5)
    found = script.ask(N1, "GET", PATH)
    assert found.status == 200, "what is held for who wants it is held for who looks"
    script.kill(N1)
    script.mend()
    script.run_until(lambda: script.leader() not in (None, N1), 15.0, "another leader")
    other = script.leader()
    assert other is not None
    taken = take(script, other, wait_s=4)
    assert taken["fence"] > held["fence"]
    kept = script.ask(other, "PUT", f"{PATH}/{held['token']}/keepalive")
    assert kept.status == 404, "who lost a lock is told so"
    script.check()


def _hide_overdue_holders(patch: pytest.MonkeyPatch) -> None:
    """As if a replica's own clock could say that a lock is free."""
    serve = Replica.serve

    def hide(replica: Replica, call: Call, staleness_s: float | None = None) -> None:
        done = call.done

        def judged(found: Any, error: BaseException | None) -> None:
            assert done is not None
            if call.payload[0] == "holder" and found.value and found.value[2] <= replica.known_clock_ms:
                found = ReadAnswer(found.shard, None, found.clock_ms, found.staleness_s)
            done(found, error)

        call.done = judged
        serve(replica, call, staleness_s)

    patch.setattr(Replica, "serve", hide)


def test_pitfall_40_a_lock_is_held_until_an_entry_ends_it() -> None:
    an_overdue_lock_is_held_until_an_entry_ends_it()


def test_pitfall_40_shows_when_a_clock_hides_the_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide_overdue_holders(monkeypatch)
    with pytest.raises(AssertionError, match="for who looks"):
        an_overdue_lock_is_held_until_an_entry_ends_it()


# --- waiting


def test_a_waiter_at_any_node_gets_the_lock_within_moments() -> None:
    script = started()
    held = take(script, N1)
    waits = []
    for at in (N3, N2, N1):
        waits.append(ask_for(script, at, wait_s=20))
        script.run(0.5)
    token = held["token"]
    fence = held["fence"]
    for pending in waits:
        release(script, N2, token)
        content = answer(script, pending, 0.3)
        assert pending.status == 200, content
        assert content["fence"] > fence
        token, fence = content["token"], content["fence"]
    script.check()


def test_waiting_outlives_the_leader() -> None:
    script = started()
    held = take(script, N2)
    waits = ask_for(script, N2, wait_s=30)
    script.run(0.5)
    script.kill(N1)
    script.run_until(lambda: script.leader() not in (None, N1), 15.0, "another leader")
    release(script, N2, held["token"])
    content = answer(script, waits, 2.0)
    assert waits.status == 200, content
    script.check()


def test_an_elected_leader_is_seen_by_a_watch_of_its_key() -> None:
    script = started()
    office = "/v1/elections/boss"
    body = json.dumps({"value": "a", "ttl": 10}).encode()
    first = script.ask(N2, "POST", office, body, JSON)
    assert first.status == 200
    observer = script.send(
        N3,
        "GET",
        "/v1/kv/_elections%2Fboss?wait=10s",
        b"",
        {"If-None-Match": f'"{json.loads(first.body)["fence"]}"'},
    )
    second = script.send(N1, "POST", office, json.dumps({"value": "b", "ttl": 10, "wait": 20}).encode(), JSON)
    script.run(0.5)
    assert not observer.is_done
    script.ask(N3, "DELETE", f"{office}/{json.loads(first.body)['token']}")
    script.run_until(lambda: observer.is_done and second.is_done, 1.0, "both hear of it")
    assert observer.response is not None
    assert (observer.status, observer.response.body) == (200, b"b")
    assert second.status == 200
