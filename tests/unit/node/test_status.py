"""What nodes tell each other for people: all that answer in time, and no waiting for the rest."""

from __future__ import annotations

from kvstore.node.flow import Promise
from kvstore.node.status import ASK_S, Status
from kvstore.store import commands
from kvstore.types import NodeId, ReplicaId
from kvstore.wire.peer import StatusReply
from tests.support.host_group import N1, N2, N3, SHARD, HostGroup


class Told:
    def __init__(self, *, is_hosting: bool = True) -> None:
        self.group = HostGroup(shards=2)
        self.group.lead(N1, 0)
        self.group.lead(N2, 1)
        self.statuses = {
            name: Status(node.host, node.transport, lambda: is_hosting)
            for name, node in self.group.nodes.items()
        }

    def ask(self, name: NodeId = N1) -> Promise[dict[NodeId, StatusReply]]:
        return self.statuses[name].ask_all()


def test_everybody_names_what_it_leads_and_holds() -> None:
    told = Told()
    told.group.write(N1, commands.put(b"a", b"1")).wait()
    promise = told.ask(N3)
    told.group.run(0.1)
    answers = promise.result()
    assert set(answers) == {N1, N2, N3}
    assert [[led.shard for led in answers[name].led] for name in (N1, N2, N3)] == [[0], [1], []]
    [led] = answers[N1].led
    core = told.group[N1].replica().core
    assert (led.term, led.leader, led.keys) == (core.term, "n1/1", 1)
    assert led.voters == ("n1/1", "n2/1", "n3/1")
    assert dict(led.matches)[ReplicaId("n1/1")] == core.last_index
    assert answers[N3].hosted == ((0, "n3/1"), (1, "n3/1"))


def test_a_node_that_has_not_opened_its_tablets_names_none() -> None:
    assert Told(is_hosting=False).statuses[N1].mine().hosted is None


def test_damaged_replicas_are_named() -> None:
    told = Told()
    told.group[N2].host.damaged_replicas[SHARD] = ReplicaId("n2/1")
    promise = told.ask()
    told.group.run(0.1)
    assert promise.result()[N2].damaged == ((0, "n2/1"),)


def test_a_silent_node_costs_no_more_than_the_patience() -> None:
    told = Told()
    told.group.part(N3)
    promise = told.ask()
    told.group.run(ASK_S - 0.05)
    assert not promise.is_done
    told.group.run(0.1)
    assert set(promise.result()) == {N1, N2}


def test_a_node_that_is_down_is_not_waited_for() -> None:
    told = Told()
    told.group[N3].stop()
    promise = told.ask()
    told.group.run(0.05)
    assert set(promise.result()) == {N1, N2}


def test_alone_it_answers_at_once() -> None:
    group = HostGroup(nodes=1)
    group.lead(N1)
    answers = Status(group[N1].host, group[N1].transport, lambda: True).ask_all().result()
    assert list(answers) == [N1]


def test_late_answers_are_nobodys() -> None:
    told = Told()
    told.group.part(N3)
    promise = told.ask()
    told.group.run(2 * ASK_S)
    told.statuses[N1]._on_reply(N3, told.statuses[N3].mine(1))
    assert set(promise.result()) == {N1, N2}
    assert told.statuses[N1]._asked == {}
