"""The same log gives the same tablet, whatever each replica's disk and timing were like."""

import random
from pathlib import Path

import pytest

from kvstore.raft.messages import Configuration, Entry
from kvstore.store import (
    Machine,
    StoreLimits,
    commands,
    lease_commands,
    lock_commands,
    sessions,
    txn_commands,
)
from kvstore.store.commands import Identity, Op
from kvstore.types import ReplicaId
from tests.support.tablets import MakeTablet, Tablet

LIMITS = StoreLimits(
    history_revisions=150,
    history_ms=40_000,
    session_lifetime_ms=20_000,
    session_window=8,
    result_bytes_max=1024,
)


def random_op(dice: random.Random) -> Op:
    key = b"k%d" % dice.randrange(40)
    match dice.randrange(10):
        case 0 | 1 | 2 | 3:
            return commands.put(key, b"%d" % dice.randrange(1000))
        case 4:
            return commands.put(key, dice.randbytes(dice.choice([10, 2000])), prev=True, content_type="a/b")
        case 5:
            return commands.put(key, b"1", if_absent=dice.random() < 0.5, if_revision=dice.randrange(5))
        case 6:
            return commands.delete(key, prev=True)
        case 7:
            return commands.delete_range(key, b"k%d" % dice.randrange(40), limit=dice.choice([1, 100]))
        case _:
            return commands.incr(b"n%d" % dice.randrange(5), dice.randrange(-3, 4), -10, 10)


def random_timed_op(dice: random.Random, writer: Tablet) -> Op:
    """What ends by the clock, and what carries that out."""
    name, claim = b"_locks/%d" % dice.randrange(3), b"%016d" % dice.randrange(6)
    until_ms = writer.clock_ms + dice.choice([0, 5_000, 20_000])
    match dice.randrange(9):
        case 6 | 7 | 8:
            return random_lease_op(dice, writer)
        case 0 | 1:
            wait_ms = dice.choice([0, 3_000])
            return lock_commands.enter(name, claim, 1, ttl_ms=2_000, wait_ms=wait_ms, not_after_ms=until_ms)
        case 2:
            return lock_commands.give_up(name, claim, 1, not_after_ms=until_ms, keeps_grant=False)
        case 3:
            return dice.choice([lock_commands.release, lock_commands.renew])(name, claim)
        case 4:
            return commands.put(b"k%d" % dice.randrange(40), b"t", ttl_ms=dice.randrange(1, 9_000))
        case _:
            return commands.expire(writer.term, dice.choice([1, 100]))


def random_lease_op(dice: random.Random, writer: Tablet) -> Op:
    """Grants, ties and ends of few ids, of grants that exist and that do not."""
    lease, generation = b"l%d" % dice.randrange(3), dice.randrange(1, 12)
    match dice.randrange(9):
        case 0 | 1:
            return lease_commands.grant(lease, dice.randrange(1, 9_000))
        case 2:
            return lease_commands.renew([lease, b"l0"])
        case 3:
            return lease_commands.revoke(lease, generation)
        case 4:
            return lease_commands.attach(lease, generation, dice.randrange(4))
        case 5:
            grants = [[b"l%d" % dice.randrange(3), number, dice.choice((1, 2))] for number in (generation, 3)]
            return lease_commands.ended(grants, dice.choice((1, 2, 100)))
        case 6:
            return lease_commands.shard_done([[generation, dice.choice((0, 1, 2, 3, (1 << 32) - 1))]])
        case _:
            options: dict[str, object] = {"lease": lease}
            if dice.random() < 0.6:
                until_ms = writer.clock_ms + dice.choice((0, 1_000, 70_000))
                options |= {"lease_generation": generation, "lease_until_ms": until_ms}
            if dice.random() < 0.3:
                options["ttl_ms"] = dice.randrange(1, 9_000)
            return [commands.PUT, b"k%d" % dice.randrange(40), b"tied", options]


def random_txn_op(dice: random.Random, writer: Tablet) -> Op:
    """Transactions that are prepared, decided, asked for and finished, in any order."""
    txid = b"t%d" % dice.randrange(30)
    until_ms = writer.clock_ms + dice.choice((-1, 500, 5_000, 70_000))
    match dice.randrange(8):
        case 0 | 1 | 2:
            whose = None
            if dice.random() < 0.5:
                whose = [b"s%d" % dice.randrange(30), dice.randrange(1, 60), 0, None, None, b"p"]
            shards = [[0, until_ms], [1, until_ms]]
            waits = dice.random() < 0.3
            return txn_commands.prepare(txid, until_ms, shards, random_parts(dice), whose, waits=waits)
        case 3 | 4:
            return txn_commands.decide(txid, commit=dice.random() < 0.7, branch=dice.random() < 0.7)
        case 5:
            return txn_commands.ask(txid, until_ms, force=dice.random() < 0.5)
        case 6:
            return txn_commands.finish([txid, b"t%d" % dice.randrange(30)])
        case _:
            return txn_commands.txn(random_parts(dice))


def random_parts(dice: random.Random) -> txn_commands.Parts:
    branches = []
    for _ in range(2):
        keys = dice.sample([b"k%d" % number for number in range(40)], 3)
        ops = [commands.put(keys[0], dice.randbytes(dice.choice((5, 1500))), prev=True), [0, keys[1]]]
        branches.append(
            [*ops, commands.delete(keys[2]), commands.incr(b"n%d" % dice.randrange(5), 1, -10, 10)]
        )
    compare = [b"k%d" % dice.randrange(40), dice.randrange(3), dice.randrange(6), dice.randrange(400)]
    return [compare], branches[0], branches[1]


def random_log(seed: int, count: int, writer: Tablet) -> list[Entry]:
    """Entries made as a leader would: identified and plain commands, retries, changes of the clock."""
    dice = random.Random(seed)
    sent: list[bytes] = []
    sequence = 0
    for number in range(count):
        writer.clock_ms += dice.choice([0, 1, 50, 400])
        if number % 97 == 5:
            writer.configuration_entry(Configuration(voters=(ReplicaId(f"n{number}/1"),)))
            continue
        if number % 89 == 7:
            writer.clock_ms += 15_000
            writer.term += 1
            writer.empty_entry()
            continue
        packed = []
        for _ in range(dice.choice([1, 1, 1, 2, 5])):
            ops = [random_op(dice) for _ in range(dice.choice([1, 1, 3]))]
            if dice.random() < 0.3:
                packed.append(commands.encode(None, [random_timed_op(dice, writer)]))
            if dice.random() < 0.2:
                packed.append(commands.encode(None, [random_txn_op(dice, writer)]))
            if sent and dice.random() < 0.1:
                packed.append(dice.choice(sent[-20:]))
            elif dice.random() < 0.5:
                packed.append(commands.encode(None, ops))
            else:
                sequence += dice.choice([1, 1, 2])
                since = dice.choice([None, writer.clock_ms])
                name = b"s%d" % dice.randrange(30)
                identity = Identity(name, sequence, 0, max(0, sequence - 20), since, None, b"p")
                sent.append(commands.encode(identity, ops))
                packed.append(sent[-1])
        writer.entry(packed)
    return writer.log[1:]


def assert_alike(tablets: list[Tablet]) -> None:
    first = tablets[0]
    for other in tablets[1:]:
        assert other.machine.state_hash == first.machine.state_hash, f"at {first.machine.applied}"
        assert other.machine.snapshot_meta() == first.machine.snapshot_meta()
        assert other.pairs() == first.pairs()


@pytest.mark.parametrize("seed", [1, 2])
def test_pitfall_25_one_log_on_three_stores_with_different_timing_stays_equal(
    make_tablet: MakeTablet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(sessions, "MIRRORED_MAX", 60)
    writer = make_tablet(limits=LIMITS)
    steady, restless, moved = (make_tablet(kind, LIMITS) for kind in ("memory", "rocks", "rocks"))
    log = random_log(seed, 1500, writer)
    dice = random.Random(seed)
    answers: dict[int, list[object]] = {index: [] for index in range(len(log))}
    for begin in range(0, len(log), 250):
        part = log[begin : begin + 250]
        for offset, entry in enumerate(part):
            answers[begin + offset].append(steady.machine.apply([entry]))
            answers[begin + offset].append(restless.machine.apply([entry]))
            if dice.random() < 0.02:
                restless.machine.flush()()
            if dice.random() < 0.01:
                restless.reopen()
        at = 0
        while at < len(part):
            size = dice.choice([1, 3, 40])
            is_asked = dice.random() < 0.7
            for offset, result in enumerate(moved.machine.apply(part[at : at + size], is_asked=is_asked)):
                answers[begin + at + offset].append([result] if is_asked else answers[begin + at + offset][0])
            at += size
        copy = str(tmp_path / f"copy-{begin}")
        moved.machine.checkpoint(copy)
        moved.machine.close()
        moved.machine = Machine(moved.engines.open(copy))
        assert_alike([steady, restless, moved])
    assert steady.machine.compacted > 100, "the log must have made compaction work"
    for index, given in answers.items():
        assert given[0] == given[1] == given[2], f"answers to entry {index}"


def test_pitfall_25_a_replica_that_compacts_by_limits_of_its_own_is_found_out(
    make_tablet: MakeTablet,
) -> None:
    """The guard is that limits come from the tablet: a machine that used its node's would diverge."""
    honest, other = make_tablet(limits=LIMITS), make_tablet(limits=LIMITS)
    log = random_log(3, 400, make_tablet(limits=LIMITS))
    other.machine.limits = StoreLimits()
    for entry in log:
        honest.machine.apply([entry])
        other.machine.apply([entry])
    assert honest.machine.state_hash != other.machine.state_hash
