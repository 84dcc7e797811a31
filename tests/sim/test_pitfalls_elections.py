"""Who may lead, and when, on whole clusters: bad schedules and their guards.

Each schedule runs twice: as it ships, and with its guard taken away. It must fail then, or it proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from kvstore.node.beats import Beats, Led
from kvstore.raft import Core, candidate, leader, quorum
from kvstore.raft.messages import AppendRequest, Heartbeat, Message, VoteReply, VoteRequest
from kvstore.types import LogIndex, NodeId, Term
from tests.sim.guards import promise_before_the_sync
from tests.sim.script import N1, N2, N3, Script

N4, N5 = NodeId("n4"), NodeId("n5")


def _led_by_n1(**options: int) -> Script:
    script = Script(**options)  # type: ignore[arg-type]
    script.start()
    script.lead(N1)
    assert script.put(N1, "a", "first").status == 201
    script.run(0.5)
    return script


def _term(script: Script, name: NodeId) -> Term:
    return script.replica(name).core.term


# --- 8: entries of an older term committed by counting (Raft figure 8; logcabin #44)


class Figure8:
    """The letters are those of the figure; S1 to S5 are n1 to n5."""

    def __init__(self) -> None:
        self.script = _led_by_n1(nodes=5, replication=5)
        self.term = _term(self.script, N1)
        self.old_index = self.script.replica(N1).core.last_index + 1

    def a_n1_reaches_only_n2(self) -> None:
        script = self.script
        script.sift(lambda source, target, message: source != N1 or target == N2)
        script.send(N1, "PUT", "/v1/kv/a", b"old")
        script.run_until(lambda: self._has_old(N2), 1.0, "n2 has the entry")
        script.kill(N1)

    def b_n5_leads_and_reaches_nobody(self) -> None:
        self._only_campaigns(N5, reaches=())
        core = self.script.replica(N5).core
        self.script.run_until(lambda: core.is_leader and core.synced == core.last_index, 9.0, "n5 leads")
        self.script.kill(N5)

    def c_n1_goes_on_with_the_old_entry(self) -> None:
        """It brings the entry of its first term to n3 as well, but nothing of its new term to anybody."""
        self.script.restart(N1)
        self._only_campaigns(N1, reaches=(N2, N3))
        script = self.script
        script.run_until(lambda: script.replica(N1).led_term is not None, 15.0, "n1 leads again")
        script.run_until(lambda: self._has_old(N3), 3.0, "n3 has the entry")
        script.run(0.5)

    def d_n5_leads_and_overwrites(self) -> None:
        self.script.kill(N1)
        self.script.restart(N5)
        self._only_campaigns(N5, reaches=(N2, N3, N4))
        self.script.run_until(lambda: self.script.leader() == N5, 15.0, "n5 leads again")
        self.script.mend()

    def _has_old(self, name: NodeId) -> bool:
        return self.script.replica(name).core.log.matches(self.old_index, self.term)

    def _only_campaigns(self, name: NodeId, reaches: Sequence[NodeId]) -> None:
        """Nobody else asks for votes; `name`'s first entry in its new term reaches nobody before (d)."""

        def change(source: NodeId, target: NodeId, message: Message) -> Message | None:
            if isinstance(message, VoteRequest) and source != name:
                return None
            if isinstance(message, AppendRequest) and source == name:
                if target not in reaches:
                    return None
                if name == N1:
                    entries = tuple(entry for entry in message.entries if entry.term == self.term)
                    commit = min(message.commit, LogIndex(self.old_index - 1))
                    return msgspec.structs.replace(message, entries=entries, commit=commit)
            if isinstance(message, Heartbeat) and message.commit >= self.old_index:
                return None
            return message

        self.script.edit(change)


def figure_8() -> None:
    figure = Figure8()
    script = figure.script
    figure.a_n1_reaches_only_n2()
    figure.b_n5_leads_and_reaches_nobody()
    figure.c_n1_goes_on_with_the_old_entry()
    # What n1 has applied is what it would show; how old that is, it cannot know in this schedule.
    script.replica(N1).heard_at = script.process(N1).runtime.now()
    shown = script.value(N1, "a", "stale")
    figure.d_n5_leads_and_overwrites()
    assert script.value(N5, "a") == "first"
    assert shown == "first", f"{shown!r} was shown and then taken back"
    script.restart(N1)
    script.run(2.0)
    script.check()


def _count_from_any_term(patch: pytest.MonkeyPatch) -> None:
    def advance_commit(core: Core) -> None:
        index = quorum.agreed([peer.match for peer in core.voter_progress])
        if index > core.commit:
            core.commit_to(LogIndex(index))
            core.flush_wanted = True

    patch.setattr(leader, "advance_commit", advance_commit)


def test_pitfall_08_an_entry_of_an_older_term_is_shown_only_once_it_cannot_be_taken_back() -> None:
    figure_8()


def test_pitfall_08_counting_old_entries_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _count_from_any_term(monkeypatch)
    with pytest.raises(AssertionError, match="'old' was shown and then taken back"):
        figure_8()


# --- 9: a vote that is not persisted (PySyncObj #84 #98 #202)


def voter_loses_power_when_its_vote_has_left() -> None:
    script = _led_by_n1()
    script.kill(N1)
    term = _term(script, N2) + 1
    has_voted: list[Message] = []

    def lets_n2_win_with_the_vote_of_n3(source: NodeId, target: NodeId, message: Message) -> bool:
        if isinstance(message, VoteReply) and source == N3 and message.is_granted and not message.is_pre_vote:
            if not has_voted:
                script.world.after(0.0, script.cut_power, N3)
            has_voted.append(message)
        return not isinstance(message, VoteRequest) or source == N2

    script.sift(lets_n2_win_with_the_vote_of_n3)
    script.run_until(lambda: script.leader() == N2, 6.0, "n2 leads")
    assert has_voted
    assert _term(script, N2) == term
    script.mend()
    script.part(N2)
    script.restart(N1, N3)
    script.run_until(lambda: script.replica(N1).core.leader in ("n1/1", "n3/1"), 9.0, "n1 and n3 elect")
    elected = _term(script, N1)
    assert elected > term, f"n3 gave two votes in term {term}"
    script.mend()
    script.run(3.0)
    assert script.value(N2, "a") == "first"
    script.check()


def test_pitfall_09_a_vote_leaves_only_when_it_survives_a_power_cut() -> None:
    voter_loses_power_when_its_vote_has_left()


def test_pitfall_09_a_forgotten_vote_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    promise_before_the_sync(monkeypatch)
    with pytest.raises(AssertionError, match="n3 gave two votes in term"):
        voter_loses_power_when_its_vote_has_left()


# --- 21: partial partitions (Cloudflare 2020-11-02; hashicorp/raft #524)


def _goes_on_undisturbed(script: Script, term: Term, seconds: int) -> None:
    for number in range(seconds):
        started = script.world.now
        assert script.put(N1, "a", str(number)).status == 200, "a write found no leader"
        assert script.world.now - started < 0.5, "a write had to wait"
        script.run(1.0)
    assert (script.leader(), _term(script, N1)) == (N1, term), "the leader was disturbed"


def one_node_sees_the_other_follower_but_not_the_leader() -> None:
    script = _led_by_n1()
    term = _term(script, N1)
    script.part(N1, N3)
    # Nothing is written, so its log is as good as anybody's.
    script.run(5.0)
    _goes_on_undisturbed(script, term, 5)
    script.mend()
    _goes_on_undisturbed(script, term, 3)
    assert script.value(N3, "a") == "2"
    script.check()


def one_node_hears_nobody_and_comes_back() -> None:
    script = _led_by_n1()
    term = _term(script, N1)
    script.cut(N1, N3)
    script.cut(N2, N3)
    _goes_on_undisturbed(script, term, 8)
    script.mend()
    _goes_on_undisturbed(script, term, 3)
    script.check()


def leader_is_heard_but_hears_nobody() -> None:
    script = _led_by_n1()
    script.cut(N2, N1)
    script.cut(N3, N1)
    # The first must find out that n1 leads no more; the second finds the new leader.
    script.send(N2, "PUT", "/v1/kv/a", b"lost")
    script.run_until(lambda: script.leader() in (N2, N3), 8.0, "somebody leads who is heard")
    assert script.put(N2, "a", "second").status == 200
    script.mend()
    script.run(2.0)
    assert script.value(N1, "a") == "second"
    script.check()


def _vote_at_any_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(candidate, "_is_bound", lambda _core, _message: False)


def _campaign_without_asking_first(patch: pytest.MonkeyPatch) -> None:
    ask = candidate.campaign
    patch.setattr(candidate, "campaign", lambda core, is_transfer: ask(core, is_transfer=True))


def _never_look_for_a_quorum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(leader, "_check_quorum", lambda _core: True)


def test_pitfall_21_a_node_that_cannot_see_the_leader_disturbs_nobody() -> None:
    one_node_sees_the_other_follower_but_not_the_leader()


def test_pitfall_21_a_node_that_cannot_see_the_leader_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _vote_at_any_time(monkeypatch)
    with pytest.raises(AssertionError, match="the leader was disturbed|a write found no leader"):
        one_node_sees_the_other_follower_but_not_the_leader()


def test_pitfall_21_a_node_that_heard_nobody_disturbs_nobody_when_it_returns() -> None:
    one_node_hears_nobody_and_comes_back()


def test_pitfall_21_a_returning_node_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _campaign_without_asking_first(monkeypatch)
    with pytest.raises(AssertionError, match="the leader was disturbed|a write had to wait"):
        one_node_hears_nobody_and_comes_back()


def test_pitfall_21_a_leader_that_hears_nobody_makes_way() -> None:
    leader_is_heard_but_hears_nobody()


def test_pitfall_21_a_deaf_leader_is_caught_without_its_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    _never_look_for_a_quorum(monkeypatch)
    with pytest.raises(AssertionError, match="not within 8.0 s: somebody leads who is heard"):
        leader_is_heard_but_hears_nobody()


# --- 31: one shard loses its leader while the leader's node goes on


def node_goes_on_without_leading_one_of_its_quiet_shards() -> None:
    script = Script(shards=2)
    script.start()
    script.lead(N1, 0, 1)
    replicas = [script.replica(N1, shard) for shard in (0, 1)]
    script.run_until(lambda: all(each.core.quiet for each in replicas), 5.0, "both shards are quiet")
    script.process(N1).node.host.halt(replicas[0], "its tablet is damaged")
    script.run_until(lambda: script.leader(0) in (N2, N3), 6.0, "another node leads shard 0")
    assert script.leader(1) == N1
    script.run(1.0)
    script.check()


def _name_shards_for_ever(patch: pytest.MonkeyPatch) -> None:
    send = Beats._send

    def send_all_ever_led(beats: Beats, node: NodeId, led: Led, *more: Any) -> None:
        before = beats._sent.get(node)
        named = {shard for shard, _me, _term in led}
        kept = () if before is None else tuple(each for each in before.led if each[0] not in named)
        send(beats, node, (*led, *kept), *more)

    patch.setattr(Beats, "_send", send_all_ever_led)


def test_pitfall_31_quiet_followers_elect_when_their_leaders_node_leads_only_other_shards() -> None:
    node_goes_on_without_leading_one_of_its_quiet_shards()


def test_pitfall_31_a_node_that_names_what_it_does_not_lead_is_caught_without_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _name_shards_for_ever(monkeypatch)
    with pytest.raises(AssertionError, match="not within 6.0 s: another node leads shard 0"):
        node_goes_on_without_leading_one_of_its_quiet_shards()
