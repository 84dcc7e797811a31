"""Who we are, whom we believe, and where everybody is: the Hello of a link and the address book.

A link is refused unless both ends speak the same protocol, mean the same cluster and are who the other
end takes them for. Nodes announce their own addresses and pass on what they heard, so that a changed
address needs neither an edited seed list nor a working meta shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kvstore.node.runtime import Lane
from kvstore.types import NodeId
from kvstore.wire.peer import PROTOCOL, AddressBook, Hello, NodeAddress


class Addresses:
    """The newest address of each node. Only a node itself raises the version of its entry.

    Version 0 is what a seed list says, so that a peer can be dialled before it was ever heard.
    """

    def __init__(self, known: Iterable[NodeAddress] = ()) -> None:
        self._newest = {address.node: address for address in known}

    def announce(self, node: NodeId, peer: str, client: str) -> NodeAddress:
        """Enter our own address, as a new version if it differs from what the book holds."""
        held = self._newest.get(node)
        if held is None or held.version == 0 or (held.peer, held.client) != (peer, client):
            held = NodeAddress(node, (held.version if held else 0) + 1, peer, client)
            self._newest[node] = held
        return held

    def merge(self, heard: Iterable[NodeAddress], *, me: NodeId) -> bool:
        """Take over what is newer; True if anything changed (then persist and tell the links).

        Once we have announced ourselves, what others say about us only raises our version above it: a
        node whose directory lost or never had its last version must win against its own past.
        """
        changed = False
        for address in heard:
            held = self._newest.get(address.node)
            if held is not None and held.version and address.node == me:
                if address.version < held.version or address == held:
                    continue
                address = NodeAddress(me, address.version + 1, held.peer, held.client)
            elif held is not None and address.version <= held.version:
                continue
            self._newest[address.node] = address
            changed = True
        return changed

    def get(self, node: NodeId) -> NodeAddress | None:
        return self._newest.get(node)

    def all(self) -> tuple[NodeAddress, ...]:
        return tuple(sorted(self._newest.values(), key=lambda address: address.node))

    def as_message(self) -> AddressBook:
        return AddressBook(self.all())

    def peers(self, *, but: NodeId) -> dict[NodeId, str]:
        """`host:port` of every other node's peer address, for `PeerLinks.set_addresses`."""
        return {address.node: address.peer for address in self.all() if address.node != but}


class Handshake:
    """Builds our Hello and judges theirs. `cluster_id` is set once this node is a member."""

    def __init__(
        self,
        cluster: str,
        node: NodeId,
        epoch: int,
        config_hash: bytes,
        addresses: Addresses,
        is_known: Callable[[NodeId], bool],
    ) -> None:
        self.cluster_id: bytes | None = None
        self._cluster = cluster
        self._node = node
        self._epoch = epoch
        self._config_hash = config_hash
        self._addresses = addresses
        self._is_known = is_known

    def hello(self, lane: Lane) -> Hello:
        address = self._addresses.get(self._node)
        assert address is not None, "a node announces its own address before it dials"
        return Hello(
            PROTOCOL,
            self._cluster,
            self.cluster_id,
            self._node,
            self._epoch,
            lane,
            self._config_hash,
            address,
        )

    def refusal(self, theirs: Hello) -> str | None:
        """Why the sender of `theirs` may not be talked to; None: it may."""
        if theirs.protocol != PROTOCOL:
            return f"node {theirs.node} speaks peer protocol {theirs.protocol}, this node {PROTOCOL}"
        if theirs.cluster != self._cluster:
            return f"node {theirs.node} belongs to cluster {theirs.cluster!r}, this node to {self._cluster!r}"
        if theirs.cluster_id and self.cluster_id and theirs.cluster_id != self.cluster_id:
            return (
                f"node {theirs.node} belongs to another cluster of the name {self._cluster!r}: its id is "
                f"{theirs.cluster_id.hex()}, this node's {self.cluster_id.hex()}"
            )
        if theirs.node == self._node:
            return f"another process calls itself {self._node}"
        if not self._is_known(theirs.node):
            return f"node {theirs.node} is not known to this node"
        if theirs.lane not in Lane.__members__.values():
            return f"node {theirs.node} asks for a lane {theirs.lane} that does not exist"
        return None
