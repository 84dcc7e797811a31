"""When history is forgotten, and that nothing else is."""

import pytest

from kvstore.store import StoreLimits, commands, compaction
from kvstore.store.compaction import CHANGES_PER_ENTRY
from tests.support.tablets import MakeTablet, Tablet

MINUTE = 60_000


def records_under(tablet: Tablet, prefix: bytes) -> int:
    return sum(key.startswith(prefix) for key, _ in tablet.pairs())


def test_history_is_kept_for_the_configured_revisions(make_tablet: MakeTablet) -> None:
    tablet = make_tablet(limits=StoreLimits(history_revisions=5))
    for number in range(1, 21):
        tablet.put(b"a", b"%d" % number)
    assert tablet.machine.compacted == 15
    assert [tablet.value(b"a", revision) for revision in range(15, 21)] == [
        b"%d" % number for number in range(15, 21)
    ]


def test_history_is_kept_for_the_configured_time_of_the_shard_clock(make_tablet: MakeTablet) -> None:
    tablet = make_tablet(limits=StoreLimits(history_ms=10 * MINUTE))
    tablet.put(b"a", b"1")
    tablet.clock_ms += 5 * MINUTE
    tablet.put(b"a", b"2")
    tablet.clock_ms += 10 * MINUTE
    tablet.put(b"b", b"")
    assert tablet.value(b"a", 1) == b"1", "replaced ten minutes ago, not longer"
    tablet.clock_ms += 1
    tablet.put(b"b", b"")
    assert tablet.machine.compacted == 2


def test_the_newest_state_can_always_be_read(make_tablet: MakeTablet) -> None:
    tablet = make_tablet(limits=StoreLimits(history_revisions=0, history_ms=0))
    for number in range(5):
        tablet.clock_ms += MINUTE
        tablet.put(b"a", b"%d" % number)
        assert tablet.machine.compacted == (tablet.machine.revision if number else 0)
        assert tablet.value(b"a", tablet.machine.revision) == b"%d" % number
        assert len(tablet.scan(revision=tablet.machine.revision)[0]) == 1


def test_entries_without_writes_compact_too(make_tablet: MakeTablet) -> None:
    tablet = make_tablet(limits=StoreLimits(history_ms=MINUTE))
    tablet.put(b"a", b"1")
    tablet.put(b"a", b"2")
    tablet.clock_ms += 2 * MINUTE
    tablet.run(commands.delete(b"absent"))
    assert tablet.machine.compacted == 2


def test_work_per_entry_is_bounded_and_catches_up(make_tablet: MakeTablet) -> None:
    tablet = make_tablet()
    for _ in range(10 * CHANGES_PER_ENTRY):
        tablet.put(b"a", b"")
    tablet.run(commands.set_limits(StoreLimits(history_revisions=0)))
    assert CHANGES_PER_ENTRY <= tablet.machine.compacted < 2 * CHANGES_PER_ENTRY
    for _ in range(10):
        tablet.put(b"a", b"")
    assert tablet.machine.compacted == tablet.machine.revision


def test_compaction_leaves_nothing_behind(make_tablet: MakeTablet) -> None:
    """Marks and large old versions go with the change that they belong to."""
    tablet = make_tablet(limits=StoreLimits(history_revisions=0))
    for number in range(40):
        tablet.put(b"a", b"x" * 5000)
        tablet.put(b"gone%d" % (number % 3), b"y")
        tablet.run(commands.delete(b"gone%d" % (number % 3)))
    tablet.put(b"last", b"")
    assert records_under(tablet, b"c") == 1
    assert records_under(tablet, b"v") == 0
    assert records_under(tablet, b"o") == 0
    assert records_under(tablet, b"h") == 2


def test_compaction_goes_on_after_a_restart(make_tablet: MakeTablet) -> None:
    tablet = make_tablet("rocks", StoreLimits(history_revisions=3))
    for number in range(10):
        tablet.put(b"a", b"%d" % number)
    tablet.reopen()
    for number in range(10):
        tablet.put(b"a", b"%d" % number)
    assert tablet.machine.compacted == 17
    assert records_under(tablet, b"c") == 4


def test_pitfall_24_a_deleted_key_stays_deleted_at_every_readable_revision(make_tablet: MakeTablet) -> None:
    tablet = make_tablet(limits=StoreLimits(history_revisions=4))
    tablet.put(b"a", b"1")
    tablet.run(commands.delete(b"a"))
    for number in range(12):
        for revision in range(max(2, tablet.machine.compacted), tablet.machine.revision + 1):
            assert tablet.value(b"a", revision) is None
            assert b"a" not in [found[0] for found in tablet.scan(revision=revision)[0]]
        tablet.put(b"other", b"%d" % number)


@pytest.mark.parametrize("kept", [0, 3, 1024])
def test_what_is_remembered_of_the_change_log_decides_nothing(
    make_tablet: MakeTablet, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    def fill(tablet: Tablet, *, reopens: bool) -> int:
        for number in range(60):
            tablet.clock_ms += 1000
            keys = [b"a", b"b%d" % number, b"large"][: 1 + number % 3]
            tablet.run(*[commands.put(key, b"v" * (1 if key != b"large" else 2000)) for key in keys])
            if reopens and number % 7 == 0:
                tablet.reopen()
        return tablet.machine.state_hash

    limits = StoreLimits(history_revisions=20, history_ms=15_000)
    plain = fill(make_tablet(limits=limits), reopens=False)
    monkeypatch.setattr(compaction, "_RECORDS_KEPT", kept)
    tablet = make_tablet(limits=limits)
    assert fill(tablet, reopens=True) == plain
    assert len(tablet.machine._compaction._oldest) <= max(kept, compaction._RECORDS_AHEAD)
