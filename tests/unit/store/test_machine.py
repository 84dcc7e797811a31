"""Apply, failure, durability and copies of one replica's state."""

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore.errors import Corrupt, DiskFull, Fatal
from kvstore.raft.messages import Configuration, Entry, SnapshotMeta
from kvstore.store import Engines, Machine, StoreLimits, commands, keys, read_snapshot_meta
from kvstore.store.commands import Identity
from kvstore.types import LogIndex, ReplicaId, Term
from tests.support.tablets import VOTERS, MakeTablet, Tablet, make_engines

OTHERS = Configuration(voters=(ReplicaId("n4/1"), ReplicaId("n5/2")), learners=(ReplicaId("n6/1"),))


def put(key: bytes, value: bytes = b"") -> bytes:
    return commands.encode(None, [commands.put(key, value)])


class TestOrder:
    def test_results_come_per_entry_and_per_command(self, tablet: Tablet) -> None:
        entries = [tablet.empty_entry(), tablet.entry([put(b"a"), put(b"b")]), tablet.entry([])]
        results = tablet.machine.apply(entries)
        assert [[one.results for one in answers] for answers in results] == [
            [],
            [[[0, 1, 1, True, None]], [[0, 2, 1, True, None]]],
            [],
        ]
        assert tablet.machine.applied == 3

    def test_nothing_to_apply_changes_nothing(self, tablet: Tablet) -> None:
        before = tablet.pairs()
        assert tablet.machine.apply([]) == []
        assert tablet.pairs() == before

    def test_pitfall_37_an_entry_out_of_order_is_refused_untouched(self, tablet: Tablet) -> None:
        """The tablet holds exactly the entries up to `applied`: no gap, no repetition, no older term."""
        tablet.term = 2
        first, second, third = (tablet.entry([put(key)]) for key in (b"a", b"b", b"c"))
        tablet.machine.apply([first])
        before = tablet.pairs()
        older = Entry(LogIndex(2), Term(1), 0, second.payload)
        for wrong in ([first], [third], [second, second], [third, second], [older]):
            with pytest.raises(Fatal):
                tablet.machine.apply(wrong)
        assert tablet.pairs() == before
        tablet.machine.apply([second, third])
        assert tablet.machine.applied == 3

    def test_the_clock_is_the_highest_an_entry_carried(self, tablet: Tablet) -> None:
        tablet.put(b"a", b"")
        tablet.clock_ms = 500
        tablet.put(b"a", b"")
        assert tablet.machine.clock_ms == 1_000
        tablet.clock_ms = 7_000
        tablet.apply()
        assert tablet.machine.clock_ms == 7_000

    def test_a_configuration_entry_is_in_force_with_its_index(self, make_tablet: MakeTablet) -> None:
        tablet = make_tablet("rocks")
        tablet.machine.apply([tablet.entry([put(b"a")]), tablet.configuration_entry(OTHERS)])
        assert tablet.machine.configuration == OTHERS
        tablet.reopen()
        assert tablet.machine.configuration == OTHERS
        assert tablet.machine.snapshot_meta() == SnapshotMeta(LogIndex(2), Term(1), OTHERS)


class TestFailure:
    def test_a_failure_while_applying_rolls_back_and_stops_the_replica(self, tablet: Tablet) -> None:
        tablet.put(b"a", b"1")
        before, meta = tablet.pairs(), tablet.machine.snapshot_meta()
        good = tablet.entry([commands.encode(Identity(b"s", 1), [commands.put(b"a", b"2")])])
        bad = tablet.entry([commands.encode(None, [commands.put(b"b", b""), [99]])])
        with pytest.raises(Fatal, match="op 99"):
            tablet.machine.apply([good, bad])
        assert tablet.pairs() == before
        assert tablet.machine.snapshot_meta() == meta
        assert tablet.value(b"a") == b"1"
        with pytest.raises(Fatal):
            tablet.machine.apply([good])

    @pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91", b"\x92\x01\x05", b"\x92\x01\x92\xc0\x91\x01"])
    def test_a_malformed_entry_stops_the_replica_and_nothing_else(
        self, tablet: Tablet, payload: bytes
    ) -> None:
        before = tablet.pairs()
        with pytest.raises(Fatal):
            tablet.machine.apply([Entry(LogIndex(1), Term(1), 0, payload)])
        assert tablet.pairs() == before

    def test_a_full_disk_leaves_everything_as_it_was_and_may_be_tried_again(
        self, tablet: Tablet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tablet.run_as(Identity(b"s", 1), commands.incr(b"n"))
        engine = tablet.machine._engine
        write = engine.write

        def refuse(writes: Mapping[bytes, bytes | None]) -> None:
            raise DiskFull("no space")

        entry = tablet.entry([commands.encode(Identity(b"s", 2), [commands.incr(b"n")])])
        monkeypatch.setattr(engine, "write", refuse)
        for _ in range(2):
            with pytest.raises(DiskFull):
                tablet.machine.apply([entry])
        assert tablet.value(b"n") == b"1"
        monkeypatch.setattr(engine, "write", write)
        assert tablet.machine.apply([entry])[0][0].results == [[0, 2, 2]]
        assert tablet.run_as(Identity(b"s", 2), commands.incr(b"n")).replayed is True

    def test_a_tablet_of_another_format_is_refused(self, engines: Engines, tmp_path: Path) -> None:
        engine = engines.open(str(tmp_path / "tablet"))
        engine.write({keys.META: b"\x02" + b"\x00" * 60})
        with pytest.raises(Corrupt, match="format"):
            Machine(engine)
        engine.close()


class TestDurability:
    def test_only_a_flush_moves_what_the_log_may_be_cut_to(self, make_tablet: MakeTablet) -> None:
        tablet = make_tablet("rocks")
        tablet.put(b"a", b"")
        assert tablet.machine.durable_applied == 0
        work = tablet.machine.flush()
        tablet.put(b"b", b"")
        work()
        assert tablet.machine.durable_applied == 1, "what came after the call may have missed the flush"
        tablet.machine.flush()()
        assert tablet.machine.durable_applied == 2

    def test_a_failed_flush_moves_nothing(self, tablet: Tablet, monkeypatch: pytest.MonkeyPatch) -> None:
        tablet.put(b"a", b"")

        def refuse() -> None:
            raise DiskFull("no space")

        monkeypatch.setattr(tablet.machine._engine, "flush", refuse)
        with pytest.raises(DiskFull):
            tablet.machine.flush()()
        assert tablet.machine.durable_applied == 0

    @pytest.mark.parametrize("kind", ["memory", "rocks"])
    def test_a_reopened_tablet_is_durable_as_far_as_it_goes(self, make_tablet: MakeTablet, kind: str) -> None:
        tablet = make_tablet(kind)
        for number in range(5):
            tablet.put(b"%d" % number, b"")
        before, state_hash = tablet.pairs(), tablet.machine.state_hash
        tablet.reopen()
        assert tablet.pairs() == before
        assert tablet.machine.state_hash == state_hash
        assert (tablet.machine.applied, tablet.machine.durable_applied) == (5, 5)

    def test_replay_after_a_crash_leads_to_the_same_state(self, make_tablet: MakeTablet) -> None:
        tablet = make_tablet("memory")
        for number in range(30):
            tablet.run_as(Identity(b"s", number), commands.incr(b"n"), commands.put(b"%d" % number, b""))
            if number == 10:
                tablet.machine.flush()()
        log, before, state_hash = list(tablet.log), tablet.pairs(), tablet.machine.state_hash
        tablet.crash()
        assert tablet.machine.applied == 11
        tablet.machine.apply(log[11:])
        assert tablet.pairs() == before
        assert tablet.machine.state_hash == state_hash


class TestCheckpoint:
    @pytest.mark.parametrize("kind", ["memory", "rocks"])
    def test_a_checkpoint_opens_as_the_same_replica_state(
        self, make_tablet: MakeTablet, kind: str, tmp_path: Path
    ) -> None:
        tablet = make_tablet(kind)
        tablet.put(b"a", b"1")
        tablet.run_as(Identity(b"s", 1), commands.put(b"a", b"2"))
        meta = tablet.machine.checkpoint(str(tmp_path / "copy"))
        assert meta == SnapshotMeta(LogIndex(2), Term(1), VOTERS)
        copy = Tablet(tablet.engines, str(tmp_path / "copy"))
        assert copy.pairs() == tablet.pairs()
        assert copy.machine.state_hash == tablet.machine.state_hash
        assert copy.machine.durable_applied == 2
        copy.machine.close()

    @pytest.mark.parametrize("kind", ["memory", "rocks"])
    def test_pitfall_16_a_snapshot_names_the_configuration_of_its_own_index(
        self, make_tablet: MakeTablet, kind: str, tmp_path: Path
    ) -> None:
        """Membership churns while checkpoints are made in a thread; index, term and configuration of each
        must fit each other and the copy's data."""
        tablet = make_tablet(kind)
        metas: list[SnapshotMeta] = []

        def copy() -> None:
            for number in range(4):
                metas.append(tablet.machine.checkpoint(str(tmp_path / f"copy-{number}")))

        def configuration_at(index: int) -> Configuration:
            return Configuration(voters=(ReplicaId(f"n{index}/1"),))

        thread = threading.Thread(target=copy)
        thread.start()
        while thread.is_alive() and tablet.index < 20_000:
            entry = tablet.configuration_entry(configuration_at(tablet.index + 1))
            tablet.machine.apply([entry])
        thread.join()
        assert len(metas) == 4
        for number, meta in enumerate(metas):
            expected = VOTERS if meta.index == 0 else configuration_at(meta.index)
            assert meta.configuration == expected
            assert read_snapshot_meta(tablet.engines, str(tmp_path / f"copy-{number}")) == meta

    def test_pitfall_16_configuration_after_install_is_that_of_snapshot_and_remaining_log(
        self, make_tablet: MakeTablet, tmp_path: Path
    ) -> None:
        tablet = make_tablet("rocks")
        tablet.put(b"a", b"")
        tablet.machine.checkpoint(str(tmp_path / "copy"))
        rest = [tablet.configuration_entry(OTHERS), tablet.entry([put(b"b")])]
        tablet.machine.apply(rest)
        installed = Tablet(tablet.engines, str(tmp_path / "copy"))
        assert installed.machine.configuration == VOTERS
        installed.machine.apply(rest)
        assert installed.machine.configuration == OTHERS
        assert installed.machine.state_hash == tablet.machine.state_hash
        installed.machine.close()

    def test_pitfall_17_the_index_is_read_from_the_copy_itself(
        self, make_tablet: MakeTablet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The replica goes on while the copy is made: its own index in memory says nothing about it."""
        tablet = make_tablet("rocks")
        tablet.put(b"a", b"")
        engine = tablet.machine._engine
        make = engine.checkpoint

        def slowly(directory: str) -> None:
            make(directory)
            tablet.put(b"b", b"")

        monkeypatch.setattr(engine, "checkpoint", slowly)
        assert tablet.machine.checkpoint(str(tmp_path / "copy")).index == 1
        assert tablet.machine.applied == 2

    def test_pitfall_17_a_failed_checkpoint_leaves_the_replica_usable(
        self, make_tablet: MakeTablet, tmp_path: Path
    ) -> None:
        tablet = make_tablet("rocks")
        tablet.put(b"a", b"")
        (tmp_path / "occupied").write_bytes(b"")
        with pytest.raises(Fatal):
            tablet.machine.checkpoint(str(tmp_path / "occupied"))
        tablet.put(b"b", b"")
        assert tablet.machine.checkpoint(str(tmp_path / "copy")).index == 2

    def test_pitfall_17_a_directory_without_a_whole_tablet_is_refused(
        self, engines: Engines, tmp_path: Path
    ) -> None:
        empty = engines.open(str(tmp_path / "empty"))
        empty.write({b"x": b""})
        empty.flush()
        empty.close()
        with pytest.raises(Corrupt):
            read_snapshot_meta(engines, str(tmp_path / "empty"))


class TestLimits:
    def test_a_replica_starts_with_the_defaults_whatever_its_node_is_configured_for(
        self, engines: Engines, tmp_path: Path
    ) -> None:
        machine = Machine(engines.open(str(tmp_path / "t")), StoreLimits(history_revisions=7))
        machine.bootstrap(VOTERS)
        assert machine.limits == StoreLimits()
        machine.close()

    def test_a_leader_proposes_its_limits_until_they_are_in_force(
        self, engines: Engines, tmp_path: Path
    ) -> None:
        wanted = StoreLimits(history_revisions=7, session_window=9)
        engine = engines.open(str(tmp_path / "t"))
        machine = Machine(engine, wanted)
        machine.bootstrap(VOTERS)
        command = machine.limits_to_propose()
        assert command is not None
        commands.check(command)
        machine.apply([Entry(LogIndex(1), Term(1), 0, commands.payload(1, [command]))])
        assert machine.limits == wanted
        assert machine.limits_to_propose() is None
        machine.flush()()
        machine.close()
        again = Machine(engines.open(str(tmp_path / "t")), wanted)
        assert again.limits == wanted
        again.close()


class TestStateHash:
    def test_every_entry_moves_the_hash(self, tablet: Tablet) -> None:
        seen = {tablet.machine.state_hash}
        for step in (
            lambda: tablet.put(b"a", b"1"),
            lambda: tablet.put(b"a", b"1"),
            lambda: tablet.run(commands.delete(b"absent")),
            lambda: tablet.machine.apply([tablet.empty_entry()]),
            lambda: tablet.machine.apply([tablet.configuration_entry(OTHERS)]),
            lambda: tablet.run_as(Identity(b"s", 1)),
        ):
            step()
            seen.add(tablet.machine.state_hash)
        assert len(seen) == 7

    @pytest.mark.parametrize("change", ["value", "key", "content type", "order", "identity", "clock"])
    def test_different_entries_give_different_hashes(self, make_tablet: MakeTablet, change: str) -> None:
        left, right = make_tablet(), make_tablet()
        left.apply(commands.encode(Identity(b"s", 1), [commands.put(b"a", b"1"), commands.put(b"b", b"2")]))
        second = commands.put(b"b", b"2", content_type="x" if change == "content type" else None)
        ops = [commands.put(b"c" if change == "key" else b"a", b"9" if change == "value" else b"1"), second]
        right.clock_ms += change == "clock"
        right.apply(
            commands.encode(
                Identity(b"t" if change == "identity" else b"s", 1), ops[::-1] if change == "order" else ops
            )
        )
        assert left.machine.state_hash != right.machine.state_hash

    def test_a_replica_that_lost_a_version_is_found_out_when_the_key_is_written_again(
        self, make_tablet: MakeTablet
    ) -> None:
        left, right = make_tablet(), make_tablet()
        for one in (left, right):
            one.put(b"a", b"1")
        right.machine._engine.write({b"ha": None})
        right.machine._heads.clear()
        for one in (left, right):
            one.put(b"a", b"2")
        assert left.machine.state_hash != right.machine.state_hash


KEY = st.sampled_from([b"a", b"b", b"c\x00", b"c"])
VALUE = st.binary(max_size=3) | st.integers(-5, 5).map(lambda number: b"%d" % number)


class AgainstModel(RuleBasedStateMachine):
    """A machine on RocksDB beside a plain dict; flushes, restarts and entry sizes must not show."""

    @initialize()
    def start(self) -> None:
        self.home = tempfile.TemporaryDirectory()
        self.tablet = Tablet(
            make_engines("rocks"), self.home.name + "/tablet", StoreLimits(history_revisions=30)
        )
        self.model: dict[bytes, bytes] = {}
        self.states: dict[int, dict[bytes, bytes]] = {0: {}}

    def expect(self, op: commands.Op, outcome: object) -> None:
        result = self.tablet.run(op)[0]
        assert result[0] == 0
        if outcome is not None:
            assert result[2] == outcome
        self.states[self.tablet.machine.revision] = dict(self.model)

    @rule(key=KEY, value=VALUE)
    def put(self, key: bytes, value: bytes) -> None:
        self.model[key] = value
        self.expect(commands.put(key, value), None)

    @rule(key=KEY)
    def delete(self, key: bytes) -> None:
        was_there = self.model.pop(key, None) is not None
        self.expect(commands.delete(key), int(was_there))

    @rule(key=KEY, by=st.integers(-3, 3))
    def incr(self, key: bytes, by: int) -> None:
        old = self.model.get(key, b"0")
        try:
            is_number = b"%d" % int(old) == old
        except ValueError:
            is_number = False
        if is_number:
            self.model[key] = b"%d" % (int(old) + by)
            self.expect(commands.incr(key, by), int(old) + by)
        else:
            assert self.tablet.run(commands.incr(key, by)) == [[2]]

    @rule(start=KEY, end=KEY)
    def delete_range(self, start: bytes, end: bytes) -> None:
        doomed = [key for key in self.model if start <= key < end]
        for key in doomed:
            del self.model[key]
        self.expect(commands.delete_range(start, end), len(doomed))

    @rule(keys_of_entry=st.lists(KEY, min_size=1, max_size=5), value=VALUE)
    def several_in_one_entry(self, keys_of_entry: list[bytes], value: bytes) -> None:
        first = self.tablet.machine.revision
        self.tablet.apply(*(put(key, value) for key in keys_of_entry))
        for offset, key in enumerate(keys_of_entry):
            self.model[key] = value
            self.states[first + offset + 1] = dict(self.model)

    @rule()
    def restart(self) -> None:
        self.tablet.reopen()

    @rule()
    def flush(self) -> None:
        self.tablet.machine.flush()()

    @invariant()
    def newest_state_agrees(self) -> None:
        found = {entry[0]: entry[1] for entry in self.tablet.scan()[0]}
        assert found == self.model
        assert self.tablet.machine.key_count == len(self.model)
        for key in (b"a", b"c"):
            assert self.tablet.value(key) == self.model.get(key)

    @invariant()
    def oldest_state_agrees(self) -> None:
        oldest = max(self.tablet.machine.compacted, self.tablet.machine.revision - 12, 0)
        if oldest in self.states:
            found = {entry[0]: entry[1] for entry in self.tablet.scan(revision=oldest)[0]}
            assert found == self.states[oldest]

    def teardown(self) -> None:
        self.tablet.machine.close()
        self.home.cleanup()


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


def test_the_configuration_record_is_the_entry_s_payload(tablet: Tablet) -> None:
    entry = tablet.configuration_entry(OTHERS)
    tablet.machine.apply([entry])
    assert dict(tablet.pairs())[keys.CONFIGURATION] == entry.payload == msgspec.msgpack.encode(OTHERS)
