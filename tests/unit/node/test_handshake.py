"""Who is believed, and which address wins."""

import pytest

from kvstore.node.handshake import Addresses, Handshake
from kvstore.node.runtime import Lane
from kvstore.types import NodeId
from kvstore.wire.peer import PROTOCOL, Hello, NodeAddress

N1, N2, N3 = NodeId("n1"), NodeId("n2"), NodeId("n3")


def handshake_of(node: NodeId, cluster_id: bytes | None = None, cluster: str = "demo") -> Handshake:
    addresses = Addresses()
    addresses.announce(node, "host:1", "host:2")
    handshake = Handshake(cluster, node, 5, b"hash", addresses, is_known=lambda other: other in (N1, N2))
    handshake.cluster_id = cluster_id
    return handshake


def test_a_peer_of_the_same_cluster_is_accepted_whether_it_is_a_member_yet_or_not() -> None:
    mine = handshake_of(N1, b"a" * 16)
    assert mine.refusal(handshake_of(N2, b"a" * 16).hello(Lane.CONTROL)) is None
    assert mine.refusal(handshake_of(N2).hello(Lane.APPEND)) is None
    assert handshake_of(N1).refusal(handshake_of(N2, b"b" * 16).hello(Lane.SNAPSHOT)) is None


@pytest.mark.parametrize(
    ("theirs", "complaint"),
    [
        (handshake_of(N2, cluster="other").hello(Lane.CONTROL), "belongs to cluster 'other'"),
        (handshake_of(N2, b"b" * 16).hello(Lane.CONTROL), f"its id is {(b'b' * 16).hex()}"),
        (handshake_of(N1).hello(Lane.CONTROL), "another process calls itself n1"),
        (handshake_of(N3).hello(Lane.CONTROL), "n3 is not known"),
        (Hello(PROTOCOL + 1, "demo", None, N2, 0, 0, b"", NodeAddress(N2, 1, "", "")), "peer protocol"),
        (Hello(PROTOCOL, "demo", None, N2, 0, 9, b"", NodeAddress(N2, 1, "", "")), "lane 9"),
    ],
)
def test_whoever_does_not_belong_is_refused_by_a_reason_that_names_it(theirs: Hello, complaint: str) -> None:
    refusal = handshake_of(N1, b"a" * 16).refusal(theirs)
    assert refusal is not None
    assert complaint in refusal


def test_announcing_the_same_address_keeps_its_version_and_another_raises_it() -> None:
    addresses = Addresses()
    assert addresses.announce(N1, "a:1", "a:2").version == 1
    assert addresses.announce(N1, "a:1", "a:2").version == 1
    assert addresses.announce(N1, "b:1", "a:2").version == 2


def test_the_newer_announcement_wins_in_any_order_of_arrival() -> None:
    old, new = NodeAddress(N2, 3, "a:1", "a:2"), NodeAddress(N2, 4, "b:1", "b:2")
    for order in ([old, new], [new, old]):
        addresses = Addresses()
        for address in order:
            addresses.merge([address], me=N1)
        assert addresses.get(N2) == new
    assert not Addresses([new]).merge([old, new], me=N1)


def test_a_node_wins_against_its_own_past_that_others_remember() -> None:
    addresses = Addresses()
    addresses.announce(N1, "now:1", "now:2")
    assert addresses.merge([NodeAddress(N1, 9, "past:1", "past:2")], me=N1)
    assert addresses.get(N1) == NodeAddress(N1, 10, "now:1", "now:2")


def test_a_past_address_of_the_same_version_loses_too() -> None:
    addresses = Addresses()
    addresses.announce(N1, "now:1", "now:2")
    assert addresses.merge([NodeAddress(N1, 1, "past:1", "past:2")], me=N1)
    assert addresses.get(N1) == NodeAddress(N1, 2, "now:1", "now:2")
    assert not addresses.merge([NodeAddress(N1, 2, "now:1", "now:2")], me=N1)


def test_a_seed_list_is_dialled_until_the_node_itself_is_heard() -> None:
    addresses = Addresses([NodeAddress(node, 0, f"{node}:1", f"{node}:2") for node in (N1, N2, N3)])
    assert addresses.announce(N1, "n1:1", "n1:2").version == 1
    assert addresses.merge([NodeAddress(N2, 1, "moved:1", "moved:2")], me=N1)
    assert addresses.peers(but=N1) == {N2: "moved:1", N3: "n3:1"}


def test_peers_are_everybody_but_me() -> None:
    addresses = Addresses([NodeAddress(N1, 1, "a:1", ""), NodeAddress(N2, 1, "b:1", "")])
    assert addresses.peers(but=N1) == {N2: "b:1"}
    assert [each.node for each in addresses.as_message().addresses] == [N1, N2]
