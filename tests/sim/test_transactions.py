"""A transaction's coordinator dies at each step of it; what it left behind comes to an end by itself."""

from __future__ import annotations

import msgspec
import pytest

from kvstore.raft.messages import AppendReply, AppendRequest
from kvstore.types import NodeId
from kvstore.wire import peer
from tests.sim.bank import OPENING, Bank, get, incr, put
from tests.sim.script import N1, N2, N3, Pending

WHO = {"KV_Session": "c" * 32, "KV_Sequence": "1"}


def _is_step(message: peer.PeerMessage) -> bool:
    if isinstance(message, peer.ForwardWrite | peer.ForwardReply):
        return True
    return isinstance(message, peer.RaftMessages) and any(
        isinstance(each, AppendRequest | AppendReply) for each in message.messages
    )


class Assassin:
    """Kills a node when it has sent, or is about to be told, its so-manieth message. What it would have sent
    in the same turn after that is lost."""

    def __init__(self, bank: Bank, victim: NodeId, step: int) -> None:
        self.bank = bank
        self.victim = victim
        self.steps_left = step
        self.has_struck = False
        bank.script.network.sift = self.look

    def look(self, source: NodeId, target: NodeId, message: peer.PeerMessage) -> peer.PeerMessage | None:
        if self.has_struck and source == self.victim:
            return None
        if self.victim in (source, target) and _is_step(message):
            self.steps_left -= 1
            if self.steps_left == 0:
                self.has_struck = True
                self.bank.script.world.after(0.0, self.bank.script.kill, self.victim)
        return message


def _transfer_with_a_death(
    step: int, victim: NodeId, accounts: tuple[int, int], who: dict[str, str]
) -> tuple[Bank, Pending, bool]:
    bank = Bank(seed=step)
    assassin = Assassin(bank, victim, step)
    answer = bank.transfer(victim, *accounts, **who)
    bank.script.run(0.6)
    bank.script.network.sift = None
    if assassin.has_struck:
        bank.script.restart(victim)
        bank.script.run_until(bank.script.cluster.has_all_leaders, 10.0, "leaders")
    return bank, answer, assassin.has_struck


@pytest.mark.parametrize(
    ("victim", "accounts"),
    [(N3, (0, 1)), (N1, (0, 1)), (N2, (0, 1))],
    ids=["leads-none", "leads-the-first", "leads-the-second"],
)
@pytest.mark.parametrize("who", [{}, WHO], ids=["once", "again"])
def test_transfer_whose_coordinator_dies_happens_whole_or_not_at_all(
    victim: NodeId, accounts: tuple[int, int], who: dict[str, str]
) -> None:
    ends = set()
    for step in range(1, 200):
        bank, answer, was_killed = _transfer_with_a_death(step, victim, accounts, who)
        if who:
            # Another node is asked at once, while the dead one's prepares are still there.
            other = N2 if victim == N1 else N1
            again = bank.transfer(other, *accounts, KV_Timeout="8s", **who)
            bank.script.run_until(lambda again=again: again.is_done, 9.0, "the retry is answered")  # type: ignore[misc]
            assert again.status == 200, f"step {step}: {again.response}"
        bank.settle()
        moved = OPENING - bank.balances()[accounts[0]]
        assert bank.balances()[accounts[1]] == OPENING + moved, f"step {step}: torn"
        assert moved in (0, 1), f"step {step}: moved {moved}"
        if answer.status == 200 or who:
            assert moved == 1, f"step {step}: an acknowledged transfer is lost"
        ends.add((was_killed, moved))
        if not was_killed:
            break
    else:
        raise AssertionError("the transfer has no last step")
    assert (False, 1) in ends
    assert who or ends >= {(True, 0), (True, 1)}, "some deaths come before the decision and some after it"


def test_everybody_dies_after_the_votes() -> None:
    bank = Bank()
    answer = bank.transfer(N3)
    bank.wait_until_held(0, 1)
    bank.script.cut_power(N1, N2, N3)
    bank.script.restart(N1, N2, N3)
    bank.script.run_until(bank.script.cluster.has_all_leaders, 15.0, "leaders")
    bank.settle()
    assert answer.status != 200
    assert bank.balances() in ([OPENING, OPENING, OPENING], [OPENING - 1, OPENING + 1, OPENING])


def test_slow_participant_keeps_the_others_waiting_and_then_all_agree() -> None:
    """One shard has no quorum: nobody can know what it voted."""
    bank = Bank()
    script = bank.script
    bank.transfer(N3, KV_Timeout="1s")
    bank.wait_until_held(0, 1)
    script.kill(N2, N3)
    script.run(5.0)
    assert bank.open_intents(), "no vote, no decision"
    script.restart(N2, N3)
    script.run_until(script.cluster.has_all_leaders, 15.0, "leaders")
    bank.settle()
    assert sum(bank.balances()) == 3 * OPENING


def test_cut_off_coordinator_comes_back_to_a_decision() -> None:
    """It is cut off with its votes in hand; the others have decided when it returns."""
    bank = Bank()
    script = bank.script
    answer = bank.transfer(N3, KV_Timeout="8s")
    bank.wait_until_held(0, 1)
    script.part(N3)
    script.run(4.0)
    script.mend()
    script.run_until(lambda: answer.is_done, 6.0, "an answer")
    bank.settle()
    moved = OPENING - bank.balances()[0]
    assert bank.balances()[:2] == [OPENING - moved, OPENING + moved]
    assert answer.status != 200 or moved == 1


@pytest.mark.parametrize("seed", [2, 3])
def test_transfers_of_many_collide_and_none_is_torn(seed: int) -> None:
    bank = Bank(seed)
    script = bank.script
    answers = []
    for number in range(40):
        at, source = (N1, N2, N3)[number % 3], number % 3
        answers.append(bank.transfer(at, source, (source + 1 + number % 2) % 3, KV_Timeout="8s"))
        if number % 4 == 0:
            script.run(0.002)
    sums = []
    while not all(answer.is_done for answer in answers):
        sums.append(sum(bank.balances(N2)))
        script.run(0.05)
    assert set(sums) == {3 * OPENING}, "a snapshot shows half a transfer"
    assert all(answer.status in (200, 409) for answer in answers), [answer.response for answer in answers]
    assert sum(answer.status == 200 for answer in answers) >= 30, "hardly any came through"
    bank.settle()
    assert sum(bank.balances()) == 3 * OPENING


def test_compare_of_one_shard_decides_about_the_others() -> None:
    bank = Bank()
    a, b, c = bank.accounts
    poor = [{"key": b, "value": {"eq": "0"}}]
    response = bank.ask(N1, [incr(a, -1), incr(c, 1)], poor)
    assert msgspec.json.decode(response.body)["succeeded"] is False
    assert bank.balances() == [OPENING] * 3
    rich = [{"key": b, "value": {"eq": str(OPENING)}}, {"key": a, "version": {"eq": 1}}]
    response = bank.ask(N2, [incr(a, -1), incr(c, 1), get(b), put(b, "7")], rich)
    assert msgspec.json.decode(response.body)["succeeded"] is True
    assert bank.balances(N3) == [OPENING - 1, 7, OPENING + 1]
    bank.settle()


def test_shards_change_hands_between_prepare_and_decision() -> None:
    bank = Bank()
    script = bank.script
    answer = bank.transfer(N3, KV_Timeout="8s")
    bank.wait_until_held(0, 1)
    script.process(N1).node.ask_transfer(script.replica(N1, 0).shard, N2)
    script.process(N2).node.ask_transfer(script.replica(N2, 1).shard, N1)
    script.run_until(lambda: answer.is_done, 8.0, "an answer")
    assert answer.status == 200
    bank.settle()
    assert bank.balances() == [OPENING - 1, OPENING + 1, OPENING]
