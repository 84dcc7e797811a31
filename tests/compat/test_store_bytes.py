"""The bytes of commands, of every record in a tablet, of the memory engine's file and the state hash.

A line that changes here means that tablets or entries of an older version are read wrongly, or that
replicas of two versions would diverge: keep reading the old form, and raise `records.FORMAT` for a new one.
With KV_REWRITE_GOLDEN=1 the file is written anew.
"""

from pathlib import Path

import pytest

from kvstore.raft.messages import Configuration
from kvstore.store import Machine, MemoryEngines, StoreLimits, commands
from kvstore.store.commands import Identity
from kvstore.store.memory import FILE
from kvstore.types import ReplicaId
from tests.support.sim_files import SimFiles
from tests.support.tablets import Tablet

GOLDEN = Path(__file__).with_name("tablet_records.txt")
IDENTITY = Identity(b"\x01\x02", 7, 2, 5, 999, b"hash", b"ann")
COMMANDS = {
    "put": commands.encode(None, [commands.put(b"k", b"v")]),
    "put-options": commands.encode(
        None,
        [
            commands.put(
                b"k", b"v", content_type="a/b", if_revision=3, if_absent=True, if_present=True, prev=True
            )
        ],
    ),
    "delete": commands.encode(None, [commands.delete(b"k", if_revision=1, if_present=True, prev=True)]),
    "incr": commands.encode(IDENTITY, [commands.incr(b"k", -1, None, 9)]),
    "delete-range": commands.encode(None, [commands.delete_range(b"a", None, limit=3)]),
    "limits": commands.encode(None, [commands.set_limits(StoreLimits())]),
}


def sample(files: SimFiles) -> Tablet:
    """A tablet that holds every kind of record."""
    tablet = Tablet(MemoryEngines(files), "tablet", StoreLimits(history_revisions=50))
    tablet.clock_ms = 5_000
    tablet.run(
        commands.put(b"a\x00", b"1"),
        commands.put(b"a\x00", b"2", content_type="a/b"),
        commands.put(b"b", b"x"),
    )
    tablet.run(
        commands.put(b"big", b"x" * 1001), commands.put(b"big", b""), commands.delete_range(b"b", None)
    )
    for _ in range(16):
        tablet.run(commands.incr(b"n", 2))
    tablet.run_as(IDENTITY, commands.put(b"k", b"v", prev=True), commands.delete(b"absent"))
    tablet.machine.apply(
        [tablet.configuration_entry(Configuration((ReplicaId("n1/1"),), (), (ReplicaId("n2/1"),)))]
    )
    tablet.term = 3
    tablet.machine.apply([tablet.empty_entry()])
    return tablet


def current() -> dict[str, str]:
    files = SimFiles()
    tablet = sample(files)
    tablet.machine.flush()()
    lines = {f"command:{name}": command.hex() for name, command in COMMANDS.items()}
    lines["payload"] = commands.payload(1_000_000, [COMMANDS["put"], COMMANDS["delete"]]).hex()
    lines |= {f"record:{key.hex()}": value.hex() or "-" for key, value in tablet.pairs()}
    lines["file"] = files.read(f"tablet/{FILE}").hex()
    lines["hash"] = f"{tablet.machine.state_hash:08x}"
    return lines


def golden() -> dict[str, str]:
    return dict(line.split() for line in GOLDEN.read_text().splitlines())


def test_everything_is_written_as_the_golden_bytes() -> None:
    assert current() == golden()


def test_the_sample_holds_every_kind_of_record() -> None:
    kinds = {bytes.fromhex(name.partition(":")[2])[:1] for name in golden() if name.startswith("record:")}
    assert kinds == {b"m", b"h", b"c", b"o", b"v", b"s", b"r", b"e"}


def test_a_tablet_of_golden_bytes_opens_and_goes_on() -> None:
    files = SimFiles()
    files.mkdirs("tablet")
    files.write_atomic(f"tablet/{FILE}", bytes.fromhex(golden()["file"]))
    machine = Machine(MemoryEngines(files).open("tablet"))
    assert f"{machine.state_hash:08x}" == golden()["hash"]
    assert (machine.applied, machine.applied_term, machine.key_count) == (22, 3, 3)
    assert machine.query(["get", b"a\x00", 1])[0] == b"1"
    assert machine.query(["get", b"a\x00", None]) == [b"2", 2, 1, 2, "a/b", None, None]
    assert machine.query(["get", b"big", 4])[0] == b"x" * 1001
    assert machine.query(["get", b"n", 10])[0] == b"8"
    tablet = Tablet(MemoryEngines(files), "tablet")
    tablet.term = 3
    assert tablet.run_as(IDENTITY, commands.put(b"k", b"v", prev=True), commands.delete(b"absent")).replayed


@pytest.mark.parametrize("name", COMMANDS)
def test_golden_commands_pass_the_check(name: str) -> None:
    commands.check(bytes.fromhex(golden()[f"command:{name}"]))
