"""Values that are fine alone and cannot work together."""

import re
from collections.abc import Iterator

from kvstore.config.addresses import split_address
from kvstore.config.settings import KIB, Config

RING_POINTS_MAX = 20_000
"""Per node; more slow every placement down and even nothing out."""


def contradictions(config: Config) -> Iterator[tuple[str, str]]:
    """Path and problem of each."""
    yield from _contradictions_of_nodes(config)
    if config.replication % 2 == 0:
        yield "replication", f"expected an odd number, found {config.replication}: an even one only adds cost"
    if config.replication > len(config.nodes):
        yield "replication", f"expected at most the {len(config.nodes)} nodes there are"
    if config.shards & (config.shards - 1):
        yield "shards", f"expected a power of two, found {config.shards}"
    limits, timeouts = config.limits, config.timeouts
    if timeouts.election_ms_max <= timeouts.election_ms_min:
        yield "timeouts.election_ms_max", f"expected more than election_ms_min ({timeouts.election_ms_min})"
    for name in ("heartbeat_ms", "election_ms_min", "election_ms_max"):
        if getattr(timeouts, name) % timeouts.tick_ms:
            yield f"timeouts.{name}", f"expected a multiple of tick_ms ({timeouts.tick_ms})"
    if timeouts.heartbeat_ms * 3 > timeouts.election_ms_min:
        yield (
            "timeouts.heartbeat_ms",
            f"expected at most a third of election_ms_min ({timeouts.election_ms_min})",
        )
    if timeouts.lease_ms * 10 > timeouts.election_ms_min * 9:
        yield "timeouts.lease_ms", f"expected at most 9/10 of election_ms_min ({timeouts.election_ms_min})"
    if limits.value_bytes_max > limits.batch_bytes_max:
        yield "limits.batch_bytes_max", f"expected at least value_bytes_max ({limits.value_bytes_max})"
    largest = limits.batch_bytes_max + limits.key_bytes_max
    if limits.shard_queue_bytes_max < largest:
        yield "limits.shard_queue_bytes_max", f"expected room for one whole batch: at least {largest}"
    if limits.header_bytes_max < 3 * limits.key_bytes_max + KIB:
        yield (
            "limits.header_bytes_max",
            "expected at least 3 x key_bytes_max + 1024: keys travel percent-encoded",
        )


def _contradictions_of_nodes(config: Config) -> Iterator[tuple[str, str]]:
    if not config.nodes:
        yield "nodes", "expected at least one node"
    used_ids: dict[str, str] = {}
    used_addresses: dict[tuple[str, int], str] = {}
    for number, node in enumerate(config.nodes):
        path = f"nodes[{number}]"
        if node.id in used_ids:
            yield f"{path}.id", f"expected an id of its own, found {node.id!r} as in {used_ids[node.id]}"
        used_ids[node.id] = path
        for name in ("client", "peer", "resp"):
            address = getattr(node, name)
            if address is None:
                continue
            where = split_address(address)
            if where in used_addresses:
                yield (
                    f"{path}.{name}",
                    f"expected an address of its own, found {address!r} as in {used_addresses[where]}",
                )
            used_addresses[where] = f"{path}.{name}"
        if node.weight * config.virtual_nodes > RING_POINTS_MAX:
            yield f"{path}.weight", f"expected at most {RING_POINTS_MAX} points on the ring (x virtual_nodes)"
        if node.bind is not None and not re.fullmatch(r"[0-9A-Fa-f.:]+", node.bind):
            yield f"{path}.bind", f"expected an IP address without a port, found {node.bind!r}"
