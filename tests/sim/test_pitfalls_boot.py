"""Nodes that come back without what they knew, on whole clusters: bad schedules and their guards.

Each schedule runs twice: as it ships, and with its guard taken away. It must fail then, or it proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from kvstore.node.boot import Boot, ClusterKnowsMe
from kvstore.node.node import Node
from kvstore.types import NodeId
from kvstore.wal import RecoveredReplica
from kvstore.wire.boot_messages import MEMBER, BootState
from tests.sim.script import N1, N2, N3, Script
from tests.support.sim_files import SimFiles


def _empty(script: Script, *names: NodeId) -> None:
    for number, name in enumerate(names):
        script.cluster.machines[name].files = SimFiles(1000 + number)


def _assert_kept(script: Script, at: NodeId, written: dict[str, str]) -> None:
    for key, value in written.items():
        assert script.value(at, key) == value, f"{key} was acknowledged and is gone"


def _written_by_n2_and_n3() -> tuple[Script, dict[str, str]]:
    """n1 lacks what the other two have acknowledged."""
    script = Script()
    script.start()
    script.lead(N2)
    script.part(N1)
    written = script.fill(N2, 8)
    script.run(0.5)
    return script, written


# --- 20: an emptied node votes again


def emptied_node_meets_one_that_lags() -> None:
    script, written = _written_by_n2_and_n3()
    script.kill(N2, N3)
    _empty(script, N3)
    script.mend()
    script.restart(N3)
    script.run(12.0)
    if script.leader() is not None:
        _assert_kept(script, N1, written)
    [(name, error)] = script.exits
    assert (name, type(error)) == (N3, ClusterKnowsMe)
    assert "kvctl node rm n3" in str(error), "it says what to run"
    script.start(N2)
    _assert_kept(script, N1, written)
    script.check()


def node_that_lost_its_log_meets_one_that_lags() -> None:
    script, written = _written_by_n2_and_n3()
    script.kill(N2, N3)
    files = script.cluster.machines[N3].files
    files.remove_tree("/data/wal")
    files.remove_tree("/data/tablets")
    script.mend()
    script.restart(N3)
    script.run(12.0)
    if script.leader() is not None:
        _assert_kept(script, N1, written)
    assert script.damaged()[N3]
    script.start(N2)
    _assert_kept(script, N3, written)
    script.check()


def _take_the_word_of_any_member(patch: pytest.MonkeyPatch) -> None:
    def on_member(boot: Boot, theirs: BootState) -> None:
        boot._want(replace(boot._newest(), stage=MEMBER, accepted=theirs.accepted))

    patch.setattr(Boot, "_on_member", on_member)


def _make_what_is_missing(patch: pytest.MonkeyPatch) -> None:
    host_replicas = Node._host_replicas

    def make_and_host(node: Node) -> None:
        accepted = node.boot.identity.accepted
        assert accepted is not None
        for record in node.tablets.planned(accepted.plan, node.recovered):
            node.host.log.add([record], None)
            node.recovered.replicas[record.shard, record.incarnation] = RecoveredReplica(created=record)
        host_replicas(node)

    patch.setattr(Node, "_host_replicas", make_and_host)


def test_pitfall_20_an_emptied_node_neither_votes_nor_serves_and_says_what_to_run() -> None:
    emptied_node_meets_one_that_lags()


def test_pitfall_20_an_emptied_node_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _take_the_word_of_any_member(monkeypatch)
    with pytest.raises(AssertionError, match="was acknowledged and is gone"):
        emptied_node_meets_one_that_lags()


def test_pitfall_20_a_node_that_lost_its_log_does_not_vote_as_if_it_were_new() -> None:
    node_that_lost_its_log_meets_one_that_lags()


def test_pitfall_20_a_lost_log_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _make_what_is_missing(monkeypatch)
    with pytest.raises(AssertionError, match="was acknowledged and is gone"):
        node_that_lost_its_log_meets_one_that_lags()


# --- 26: two emptied nodes begin a second history beside the living one


def two_nodes_are_emptied_while_the_third_is_cut_off(
    before_return: Callable[[], None] = lambda: None,
) -> None:
    script = Script()
    script.start()
    script.lead(N1)
    written = script.fill(N1, 5)
    script.run(0.5)
    script.part(N1)
    script.kill(N2, N3)
    _empty(script, N2, N3)
    before_return()
    script.restart(N2, N3)
    script.run(8.0)
    answer = script.put(N2, "k0", "second history")
    assert answer.status == 503, "a second history has begun"
    script.mend()
    script.run(3.0)
    assert sorted(name for name, _error in script.exits) == [N2, N3]
    assert all(isinstance(error, ClusterKnowsMe) for _name, error in script.exits)
    assert script.value(N1, "k0", "stale") == written["k0"], "what was acknowledged is still there"
    script.check()


def _agree_among_those_who_are_there(patch: pytest.MonkeyPatch) -> None:
    create = Boot.__init__

    def create_without_n1(boot: Boot, identity: Any, seeds: Any, *arguments: Any, **more: Any) -> None:
        create(boot, identity, [seed for seed in seeds if seed != N1], *arguments, **more)

    patch.setattr(Boot, "__init__", create_without_n1)


def test_pitfall_26_two_emptied_nodes_begin_no_second_history() -> None:
    two_nodes_are_emptied_while_the_third_is_cut_off()


def test_pitfall_26_a_second_history_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="a second history has begun"):
        two_nodes_are_emptied_while_the_third_is_cut_off(
            lambda: _agree_among_those_who_are_there(monkeypatch),
        )
