"""The bytes of leases: their ops, and every record that a tablet keeps of them.

A line that changes here means that a lease in somebody's tablet is read wrongly: keep reading the old form.
With KV_REWRITE_GOLDEN=1 the file is written anew.
"""

from pathlib import Path

import pytest

from kvstore.store import MemoryEngines, commands, lease_commands
from kvstore.store.leases import EXPIRED, REVOKED
from tests.support.sim_files import SimFiles
from tests.support.tablets import Tablet

GOLDEN = Path(__file__).with_name("lease_records.txt")
ELSEWHERE = {"lease": b"far", "lease_generation": 9, "lease_until_ms": 6_000}
OPS = {
    "grant": lease_commands.grant(b"near", 2_000),
    "renew": lease_commands.renew([b"near", b"none"]),
    "revoke": lease_commands.revoke(b"gone", 2),
    "attach": lease_commands.attach(b"near", 1, 7),
    "ended": lease_commands.ended([[b"late", 8, EXPIRED], [b"far", 4, REVOKED]], 100),
    "shard-done": lease_commands.shard_done([[2, 3]]),
    "put-here": commands.put(b"a", b"1", lease=b"near"),
    "put-elsewhere": [commands.PUT, b"b", b"2", ELSEWHERE],
    "put-ttl": commands.put(b"c", b"3", ttl_ms=500),
    "expire": commands.expire(3, 100),
}


def sample() -> Tablet:
    """A tablet with a living lease, one whose end is open, keys of both kinds of tie, and marks."""
    tablet = Tablet(MemoryEngines(SimFiles()), "tablet")
    tablet.clock_ms = 5_000
    tablet.run(OPS["grant"], lease_commands.grant(b"gone", 9_000), OPS["attach"])
    tablet.run(lease_commands.attach(b"gone", 2, 3), lease_commands.attach(b"gone", 2, 4))
    tablet.run(OPS["put-here"], OPS["put-elsewhere"], OPS["put-ttl"], OPS["revoke"], OPS["ended"])
    tablet.run(OPS["shard-done"])
    return tablet


def current() -> dict[str, str]:
    lines = {f"op:{name}": commands.encode(None, [op]).hex() for name, op in OPS.items()}
    kept = [pair for pair in sample().pairs() if pair[0][:1] in (b"l", b"k", b"n", b"d", b"h")]
    return lines | {f"record:{key.hex()}": value.hex() or "-" for key, value in kept}


def golden() -> dict[str, str]:
    return dict(line.split() for line in GOLDEN.read_text().splitlines())


def test_everything_is_written_as_the_golden_bytes() -> None:
    assert current() == golden()


def test_the_sample_holds_every_kind_of_record() -> None:
    kinds = {bytes.fromhex(name.partition(":")[2])[:2] for name in golden() if name.startswith("record:")}
    assert {kind for kind in kinds if kind[:1] == b"l"} == {b"l\x00", b"l\x01", b"l\x02", b"l\x03"}
    assert {kind[:1] for kind in kinds} == {b"l", b"k", b"n", b"d", b"h"}


@pytest.mark.parametrize("name", OPS)
def test_golden_ops_pass_the_check(name: str) -> None:
    commands.check(bytes.fromhex(golden()[f"op:{name}"]))
