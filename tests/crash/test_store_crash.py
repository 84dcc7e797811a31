"""RocksDB tablets under SIGKILL: what is left is the state after some entry, and says after which one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvstore.files import OsFiles
from kvstore.raft.messages import NORMAL, Entry
from kvstore.store import Machine, RocksEngines, commands, keys
from kvstore.store.commands import Identity
from kvstore.store.records import Meta
from kvstore.types import LogIndex, Term
from tests.support.tablets import Tablet, make_engines

WORKER = """
import sys, threading
from tests.crash.test_store_crash import entry_at, open_machine
machine = open_machine(sys.argv[1])
print(machine.applied, flush=True)
def flush_for_ever():
    while True:
        machine.flush()()
if sys.argv[2] == "flushing":
    threading.Thread(target=flush_for_ever, daemon=True).start()
while True:
    machine.apply([entry_at(machine.applied + offset) for offset in (1, 2, 3)])
"""


def open_machine(directory: str) -> Machine:
    engines = RocksEngines(OsFiles(), block_cache_bytes=1 << 20, write_buffer_bytes=256 << 10)
    machine = Machine(engines.open(directory))
    if machine.is_empty:
        machine.bootstrap(machine.configuration)
    return machine


def entry_at(index: int) -> Entry:
    """The log's entry, the same in every process."""
    packed = [
        commands.encode(None, [commands.put(b"k%d" % (index % 97), b"%d" % index * 20)]),
        commands.encode(Identity(b"s%d" % (index % 5), index, 0, index - 9), [commands.incr(b"n")]),
        commands.encode(None, [commands.delete(b"k%d" % (index * 7 % 97))]),
    ]
    return Entry(LogIndex(index), Term(1), NORMAL, commands.payload(index * 10, packed))


def check_is_whole(machine: Machine, reference: Tablet) -> None:
    """Bring `reference` to the machine's index and compare every record."""
    assert machine.applied >= reference.machine.applied, "an index that was durable is gone"
    while reference.machine.applied < machine.applied:
        reference.machine.apply([entry_at(reference.machine.applied + 1)])
    assert machine.state_hash == reference.machine.state_hash
    expected = dict(reference.pairs())
    expected[keys.CONFIGURATION] = dict(machine._engine.scan(b"mc", b"md"))[keys.CONFIGURATION]
    assert dict(machine._engine.scan(b"", b"\xff")) == expected


@pytest.mark.parametrize("mode", ["flushing", "filling"])
def test_pitfall_01_data_and_applied_index_agree_after_every_kill(tmp_path: Path, mode: str) -> None:
    directory = str(tmp_path / "tablet")
    reference = Tablet(make_engines("memory"), str(tmp_path / "reference"))
    dice = random.Random(mode)
    applied = []
    for _ in range(4):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, directory, mode],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(dice.uniform(0.15, 0.35))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        machine = open_machine(directory)
        check_is_whole(machine, reference)
        applied.append(machine.applied)
        machine.close()
    assert applied == sorted(applied)
    assert applied[-1] > 0, "nothing ever became durable: the test proves nothing"


def test_pitfall_01_an_index_saved_apart_from_its_data_is_found_out(tmp_path: Path) -> None:
    """What etcd 3.5 did: the guard is that both are in one write."""
    reference = Tablet(make_engines("memory"), str(tmp_path / "reference"))
    machine = open_machine(str(tmp_path / "tablet"))
    machine.apply([entry_at(1)])
    meta = Meta.unpack(machine._engine.get(keys.META) or b"")
    machine._engine.write({keys.META: meta._replace(applied=2).pack()})
    machine.close()
    machine = open_machine(str(tmp_path / "tablet"))
    with pytest.raises(AssertionError):
        check_is_whole(machine, reference)
    machine.close()
