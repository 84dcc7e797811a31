"""Schedule 29: what a damaged replica must not do while it is out of service."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.types import NodeId
from kvstore.wal import Recovered, Wal
from tests.sim.rebuild_story import N1, N2, N3, NEW, SHARD, Story, cut_logs

# ---- schedule 29


def lose_the_only_full_copy(story: Story, *, is_last_gone: bool) -> tuple[NodeId, NodeId, NodeId]:
    """L and F1 hold committed entries that F2 lacks; F1's log rots; L dies, before F1 is back or after."""
    story.lead_elsewhere(N1)
    leader = story.leader()
    assert leader is not None
    last, first, second = leader.name, N1, next(each for each in (N2, N3) if each != leader.name)
    links = {(a, second) for a in (last, first)}
    story.cluster.network.cut |= links | {(b, a) for a, b in links}
    for number in range(81, 101):
        story.put(f"late-{number}", f"late-{number}", last)
    story.stop(first)
    story.rot(first)
    if is_last_gone:
        story.stop(last)
        story.run(0.5)
    story.cluster.start(first)
    story.world.run_until(story.world.now + 0.5)
    if not is_last_gone:
        story.stop(last)
    story.cluster.network.cut.clear()
    story.world.run_until(story.world.now + 10.0)
    return last, first, second


@pytest.mark.parametrize("is_last_gone", [False, True])
def test_pitfall_29_a_damaged_replica_never_helps_to_elect(story: Story, is_last_gone: bool) -> None:
    last, first, second = lose_the_only_full_copy(story, is_last_gone=is_last_gone)
    assert story.leader() is None, "F1 and F2 must not elect each other"
    assert story.rebuild(first, via=second, timeout="3s").status == 503
    assert story.hosted(first) is None
    story.cluster.start(last)
    story.until(lambda: story.leader() is not None)
    story.run(2.0)
    assert story.rebuild(first, via=second).status == 202
    story.check_whole()
    for number in range(81, 101):
        assert story.reply(first, "GET", f"/v1/kv/late-{number}").body == f"late-{number}".encode()


def forget_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the guard away: a replica goes on with what damage has left of its log."""
    careful = Wal.open

    def careless(*arguments: Any) -> tuple[Wal, Recovered]:
        wal, recovered = careful(*arguments)
        for replica in recovered.replicas.values():
            replica.quarantined = None
        return wal, recovered

    monkeypatch.setattr(Wal, "open", careless)


def test_pitfall_29_happens_without_the_quarantine(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_marks(monkeypatch)
    _last, _first, second = lose_the_only_full_copy(story, is_last_gone=True)
    assert story.leader() is not None
    answers = story.ask(second, "GET", "/v1/kv/late-90")
    story.world.run_while(lambda: not answers, 5.0)
    assert answers[0] is not None
    assert answers[0].status == 404, "an acknowledged write is gone"
    assert story.failures, "the invariants see it too"


def test_a_replica_that_its_leader_proves_wrong_is_quarantined(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage that the log did not show is seen once the leader says what was acknowledged."""
    with monkeypatch.context() as patched:
        forget_marks(patched)
        story.lead_elsewhere(N1)
        story.stop(N1)
        story.rot(N1)
        story.cluster.start(N1)
        story.run(2.0)
    assert "contradicted by its group" in story.process(N1).node.host.damaged[SHARD]
    assert story.hosted() is None
    story.stop(N1)
    story.cluster.start(N1)
    story.run(2.0)
    assert story.hosted() is None, "no restart brings it back"
    assert story.rebuild().status == 202
    story.check_whole()


def test_a_damaged_replica_acknowledges_nothing_and_supports_no_leader(story: Story) -> None:
    story.lose_replica()
    leader = story.leader()
    assert leader is not None
    (other,) = {N2, N3} - {leader.name}
    story.stop(other)
    answers = story.ask(leader.name, "PUT", "/v1/kv/alone", b"x", timeout="3s")
    story.until(lambda: bool(answers))
    assert answers[0] is not None
    assert answers[0].status in (503, 504)
    story.run(3.0)
    assert story.leader() is None, "check-quorum counts no damaged replica"


def test_a_copy_in_the_making_answers_no_reads_of_its_own(story: Story) -> None:
    """An empty learner hears its leader; a stale read must not take that for knowing everything."""
    story.lose_replica()
    cut_logs(story)
    story.ask(N2, "POST", f"/v1/shards/{SHARD}/rebuild", b'{"node":"n1"}')
    story.until(lambda: story.hosted() == NEW)
    replica = story.process(N1).node.host.replicas[SHARD]
    while not replica.core.is_voter:
        for consistency in ("stale", "linearizable"):
            answer = story.reply(N1, "GET", f"/v1/kv/key-20?consistency={consistency}")
            assert (answer.status, answer.body) == (200, b"needle-20")
    story.check_whole()
