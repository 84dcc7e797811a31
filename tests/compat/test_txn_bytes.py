"""The bytes of transactions: their ops, and what a tablet keeps of one in each of its states.

A line that changes here means that a prepare in somebody's log is read wrongly: keep reading the old form.
With KV_REWRITE_GOLDEN=1 the file is written anew.
"""

from pathlib import Path

from kvstore.store import MemoryEngines, commands, txn_commands
from kvstore.store.intents import Committed, Intents, Prepared, Refused, decode_record
from kvstore.store.transactions import COMMITTED, YES
from tests.support.sim_files import SimFiles
from tests.support.tablets import Tablet

GOLDEN = Path(__file__).with_name("txn_records.txt")
LIMIT = 6_000
SHARDS = [[0, LIMIT], [3, 7_000]]
PARTS = (
    [[b"a", 0, 0, 0], [b"a", 3, 1, b"x"], [b"b", 4, 0, None]],
    [commands.put(b"a", b"1"), [0, b"c"], commands.incr(b"n", 2)],
    [commands.delete(b"a")],
)
WHOSE = [b"\x01\x02", 7, 5, 999, b"hash", b"ann"]
OPS = {
    "txn": txn_commands.txn(PARTS),
    "prepare": txn_commands.prepare(b"held", LIMIT, SHARDS, PARTS, WHOSE, waits=True),
    "decide": txn_commands.decide(b"held", commit=True, branch=True),
    "ask": txn_commands.ask(b"held", LIMIT, force=True),
    "finish": txn_commands.finish([b"held", b"done"]),
}


def sample() -> Tablet:
    """A tablet that holds a transaction in each state."""
    tablet = Tablet(MemoryEngines(SimFiles()), "tablet")
    tablet.clock_ms = 5_000
    tablet.put(b"c", b"seen")
    done = txn_commands.prepare(b"done", LIMIT, SHARDS, ([], [commands.put(b"d", b""), [0, b"c"]], []))
    assert tablet.run(done)[0][1] == YES
    assert tablet.run(txn_commands.decide(b"done", commit=True, branch=True))[0][1] == COMMITTED
    tablet.run(txn_commands.ask(b"refused", LIMIT, force=True))
    assert tablet.run(OPS["prepare"])[0][1] == YES
    return tablet


def current() -> dict[str, str]:
    lines = {f"op:{name}": commands.encode(None, [op]).hex() for name, op in OPS.items()}
    kept = [pair for pair in sample().pairs() if pair[0][:1] in (b"p", b"f", b"d")]
    return lines | {f"record:{key.hex()}": value.hex() or "-" for key, value in kept}


def golden() -> dict[str, str]:
    return dict(line.split() for line in GOLDEN.read_text().splitlines())


def test_everything_is_written_as_the_golden_bytes() -> None:
    assert current() == golden()


def test_ops_of_the_golden_bytes_are_read_as_they_were_meant() -> None:
    for name, op in OPS.items():
        command = bytes.fromhex(golden()[f"op:{name}"])
        commands.check(command)
        assert commands.decode(command) == commands.decode(commands.encode(None, [op]))


def test_records_of_the_golden_bytes_are_read_as_they_were_meant() -> None:
    stored = {
        bytes.fromhex(name.partition(":")[2]): bytes.fromhex("" if content == "-" else content)
        for name, content in golden().items()
        if name.startswith("record:")
    }
    engine = MemoryEngines(SimFiles()).open("t")
    engine.write(stored)
    intents = Intents(engine)
    assert {key: lock.is_exclusive for key, lock in intents.locks.items()} == {
        b"a": True,
        b"b": False,
        b"c": False,
        b"n": True,
    }
    assert {txid: pending.is_committed for txid, pending in intents.pending.items()} == {
        b"done": True,
        b"held": False,
    }
    assert intents.is_under_way(WHOSE)
    kinds = {type(decode_record(record)) for key, record in stored.items() if key[:1] == b"p"}
    assert kinds == {Prepared, Committed, Refused}
