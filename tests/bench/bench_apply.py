"""CPU microseconds per op of `Machine.apply`, both engines. By hand: `python tests/bench/bench_apply.py`."""

import random
import sys
import tempfile
import time

from kvstore.files import OsFiles
from kvstore.raft.messages import NORMAL, Configuration, Entry
from kvstore.store import Engines, Machine, MemoryEngines, RocksEngines, commands
from kvstore.store.heads import HeadBudget
from kvstore.types import LogIndex, Term

KEYS = 100_000
VALUE = b"x" * 64
Case = tuple[str, list[Entry], int]


class Log:
    """Builds entries with running indexes."""

    def __init__(self) -> None:
        self.index = 0
        self.sequence = 0

    def entry(self, packed: list[bytes]) -> Entry:
        self.index += 1
        return Entry(LogIndex(self.index), Term(1), NORMAL, commands.payload(self.index, packed))


def cases(log: Log, keys: list[bytes]) -> list[Case]:
    dice = random.Random(7)

    def puts(chosen: list[bytes]) -> list[commands.Op]:
        return [commands.put(key, VALUE) for key in chosen]

    def identified(ops: list[commands.Op]) -> bytes:
        log.sequence += 1
        identity = commands.Identity(b"bench-session-16", log.sequence, 0, max(0, log.sequence - 32), 1)
        return commands.encode(identity, ops)

    batches = [keys[at : at + 100] for at in range(0, KEYS, 100)]
    mixed = [dice.choices(keys, k=100) for _ in range(1000)]
    return [
        ("100 puts of new keys", [log.entry([commands.encode(None, puts(b))]) for b in batches], KEYS),
        ("100 puts over keys", [log.entry([commands.encode(None, puts(b))]) for b in mixed], 100_000),
        (
            "100 commands of 1 put",
            [log.entry([commands.encode(None, puts([k])) for k in b]) for b in mixed],
            100_000,
        ),
        ("100 puts, identified", [log.entry([identified(puts(b))]) for b in mixed], 100_000),
        (
            "100 identified commands",
            [log.entry([identified(puts([k])) for k in b]) for b in mixed[:500]],
            50_000,
        ),
        (
            "1 put with options",
            [
                log.entry(
                    [commands.encode(None, [commands.put(k, VALUE, content_type="text/plain", prev=True)])]
                )
                for k in keys[:20_000]
            ],
            20_000,
        ),
        ("1 put", [log.entry([commands.encode(None, puts([k]))]) for k in keys[:20_000]], 20_000),
        ("1 identified put", [log.entry([identified(puts([k]))]) for k in keys[:20_000]], 20_000),
        (
            "1 incr",
            [log.entry([commands.encode(None, [commands.incr(b"counter")])]) for _ in range(20_000)],
            20_000,
        ),
        (
            "100 puts over keys, compacting",
            [log.entry([commands.encode(None, puts(b))]) for b in mixed],
            100_000,
        ),
    ]


def run(name: str, engines: Engines, directory: str) -> None:
    log = Log()
    dice = random.Random(1)
    keys = [b"key%016x" % dice.getrandbits(64) for _ in range(KEYS)]
    machine = Machine(engines.open(directory), budget=HeadBudget(4 * KEYS))
    machine.bootstrap(Configuration())
    for title, entries, ops in cases(log, keys):
        begun = time.thread_time()
        for entry in entries:
            machine.apply([entry])
        spent = time.thread_time() - begun
        print(
            f"{name:8} {title:32} {spent / ops * 1e6:7.2f} us/op {spent / len(entries) * 1e6:9.1f} us/entry"
        )
    begun = time.thread_time()
    for key in keys[:50_000]:
        machine.query(["get", key, None])
    print(f"{name:8} {'get':32} {(time.thread_time() - begun) / 50_000 * 1e6:7.2f} us/op")
    begun = time.thread_time()
    items = machine.query(["scan", b"", None, {"limit": 10_000}])[0]
    print(f"{name:8} {'scan':32} {(time.thread_time() - begun) / len(items) * 1e6:7.2f} us/item")
    begun = time.thread_time()
    machine.flush()()
    print(
        f"{name:8} {'flush':32} {(time.thread_time() - begun) * 1e3:7.1f} ms, hash {machine.state_hash:08x}"
    )
    machine.close()


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["rocks", "memory"]
    with tempfile.TemporaryDirectory(dir=".") as base:
        if "rocks" in chosen:
            run("rocks", RocksEngines(OsFiles()), base + "/rocks")
        if "memory" in chosen:
            run("memory", MemoryEngines(OsFiles()), base + "/memory")
