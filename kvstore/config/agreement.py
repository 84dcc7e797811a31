"""What all seeds must agree on before they found a cluster."""

import hashlib
from typing import Any

import msgspec

from kvstore.config.settings import SINGLE_VALUES, Config


def agreed_facts(config: Config) -> dict[str, Any]:
    """What all seeds must have in common before a cluster is founded, by path: who is in it, how shards are
    placed, and every setting that a replicated decision or a promise to another node depends on.

    Addresses are left out: each node announces its own, and they may change.
    """
    facts: dict[str, Any] = {name: getattr(config, name) for name in SINGLE_VALUES}
    for node in sorted(config.nodes, key=lambda each: each.id):
        facts[f"nodes.{node.id}"] = {"host": node.host, "zone": node.zone, "weight": node.weight}
    facts["timeouts.election_ms_min"] = config.timeouts.election_ms_min
    facts["timeouts.lease_ms"] = config.timeouts.lease_ms
    for section in ("history", "sessions"):
        for name, value in msgspec.structs.asdict(getattr(config, section)).items():
            facts[f"{section}.{name}"] = value
    return facts


def config_hash(config: Config) -> bytes:
    """16 bytes over `agreed_facts`, equal on two nodes exactly when the facts are."""
    return hashlib.sha256(msgspec.json.encode(agreed_facts(config), order="deterministic")).digest()[:16]
