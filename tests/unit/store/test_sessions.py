"""Exactly once: what a retry gets, what is forgotten and when, and that nothing happens twice."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.store import CommandResult, StoreLimits, commands, sessions
from kvstore.store.commands import Identity
from kvstore.store.results import IDENTITY_MISMATCH, SESSION_CAP, SESSION_UNKNOWN
from tests.support.tablets import MakeTablet, Tablet, make_engines

MINUTE = 60_000
SESSION = b"session-1"


def incr_as(tablet: Tablet, sequence: int, session: bytes = SESSION, **identity: Any) -> CommandResult:
    return tablet.run_as(Identity(session, sequence, **identity), commands.incr(b"n"))


def counter(tablet: Tablet) -> int:
    return int(tablet.value(b"n") or b"0")


def codes(result: CommandResult) -> list[int]:
    return [one[0] for one in result.results]


def session_records(tablet: Tablet) -> list[bytes]:
    return [key for key, _ in tablet.pairs() if key[:1] in (b"s", b"r", b"e")]


def test_a_retry_gets_the_first_answer_and_does_nothing(tablet: Tablet) -> None:
    first = incr_as(tablet, 1)
    assert first == CommandResult(False, [[0, 1, 1]])
    tablet.put(b"n", b"50")
    assert incr_as(tablet, 1) == CommandResult(True, [[0, 1, 1]])
    assert counter(tablet) == 50


def test_a_retry_within_the_same_entry_gets_the_first_answer(tablet: Tablet) -> None:
    command = commands.encode(Identity(SESSION, 1), [commands.incr(b"n")])
    first, second = tablet.apply(command, command)
    assert (first.replayed, second.replayed) == (False, True)
    assert first.results == second.results
    assert counter(tablet) == 1


def test_a_refused_condition_is_a_recorded_result(tablet: Tablet) -> None:
    """A retry must not succeed where the first try was told no."""
    identity = Identity(SESSION, 1)
    assert tablet.run_as(identity, commands.put(b"a", b"1", if_revision=9)).results == [[1, 0]]
    tablet.put(b"a", b"x")
    for _ in range(8):
        tablet.put(b"a", b"x")
    assert tablet.machine.revision == 9
    assert tablet.run_as(identity, commands.put(b"a", b"1", if_revision=9)) == CommandResult(True, [[1, 0]])


def test_sequences_may_come_in_any_order_and_with_gaps(tablet: Tablet) -> None:
    for sequence in (9, 3, 700, 5, 1):
        assert incr_as(tablet, sequence).replayed is False
    for sequence in (1, 3, 5, 9, 700):
        assert incr_as(tablet, sequence).replayed is True
    assert counter(tablet) == 5


def test_sessions_do_not_know_of_each_other(tablet: Tablet) -> None:
    incr_as(tablet, 1, b"a")
    incr_as(tablet, 1, b"b")
    incr_as(tablet, 1, b"a\x00")
    assert counter(tablet) == 3


def test_an_acknowledged_result_is_freed_and_never_executed_again(tablet: Tablet) -> None:
    for sequence in range(1, 6):
        incr_as(tablet, sequence, acked_below=sequence)
    assert sum(key[:1] == b"r" for key in session_records(tablet)) == 1
    assert codes(incr_as(tablet, 3)) == [SESSION_UNKNOWN]
    assert counter(tablet) == 5


def test_an_acknowledgement_alone_frees_everything_but_the_floor(tablet: Tablet) -> None:
    incr_as(tablet, 1)
    incr_as(tablet, 2)
    assert tablet.run_as(Identity(SESSION, 0, 0, 3)) == CommandResult(False, [])
    assert [key[:1] for key in session_records(tablet)] == [b"e", b"s"]
    assert codes(incr_as(tablet, 2)) == [SESSION_UNKNOWN]
    assert incr_as(tablet, 3).results == [[0, 3, 3]]


def test_an_acknowledgement_of_an_unknown_session_leaves_no_record(tablet: Tablet) -> None:
    tablet.run_as(Identity(b"never seen", 0, 0, 3))
    assert session_records(tablet) == []


def test_a_command_that_acknowledges_itself_is_not_executed(tablet: Tablet) -> None:
    assert codes(incr_as(tablet, 1, acked_below=2)) == [SESSION_UNKNOWN]
    assert counter(tablet) == 0


def test_a_sequence_that_fell_out_of_the_window_is_not_executed(make_tablet: MakeTablet) -> None:
    tablet = make_tablet(limits=StoreLimits(session_window=4))
    for sequence in range(1, 9):
        assert incr_as(tablet, sequence).replayed is False
    assert incr_as(tablet, 5).replayed is True
    assert codes(incr_as(tablet, 4)) == [SESSION_UNKNOWN]
    assert sum(key[:1] == b"r" for key in session_records(tablet)) == 4
    incr_as(tablet, 10**12)
    assert sum(key[:1] == b"r" for key in session_records(tablet)) == 1
    assert codes(incr_as(tablet, 8)) == [SESSION_UNKNOWN]
    assert counter(tablet) == 9


def test_the_window_holds_1024_open_sequences(tablet: Tablet) -> None:
    for sequence in range(1024):
        incr_as(tablet, sequence)
    assert incr_as(tablet, 0).replayed is True
    incr_as(tablet, 1024)
    assert codes(incr_as(tablet, 0)) == [SESSION_UNKNOWN]


def test_results_live_for_their_lifetime_and_not_less(tablet: Tablet) -> None:
    incr_as(tablet, 1)
    tablet.clock_ms += 10 * MINUTE
    assert incr_as(tablet, 1).replayed is True
    for _ in range(3):
        tablet.clock_ms += 4 * MINUTE
        incr_as(tablet, 1_000 + tablet.clock_ms)
    assert sum(key[:1] == b"r" for key in session_records(tablet)) < 4, "old results of a live session go too"


def test_an_idle_session_goes_after_its_lifetime_with_all_its_records(tablet: Tablet) -> None:
    incr_as(tablet, 1)
    incr_as(tablet, 2)
    tablet.clock_ms += 6 * MINUTE
    incr_as(tablet, 3)
    tablet.clock_ms += 10 * MINUTE
    tablet.put(b"x", b"")
    assert len(session_records(tablet)) > 0, "used ten minutes ago, not longer"
    tablet.clock_ms += 1
    tablet.put(b"x", b"")
    assert session_records(tablet) == []
    assert tablet.machine._meta.session_bytes == 0


def test_expiry_is_paced(tablet: Tablet) -> None:
    for number in range(3 * sessions.EXPIRED_PER_ENTRY):
        incr_as(tablet, 1, b"s%d" % number)
    tablet.clock_ms += 11 * MINUTE
    left = []
    for _ in range(4):
        tablet.put(b"x", b"")
        left.append(sum(key[:1] == b"s" for key in session_records(tablet)))
    assert left == [16, 8, 0, 0]


def test_a_session_that_expired_may_start_again(tablet: Tablet) -> None:
    incr_as(tablet, 1)
    tablet.clock_ms += 11 * MINUTE
    other = commands.encode(None, [commands.put(b"x", b"")])
    tablet.apply(other)
    assert incr_as(tablet, 1).replayed is False
    assert incr_as(tablet, 1).replayed is True
    assert counter(tablet) == 2


def test_a_session_expires_and_starts_again_within_one_batch(tablet: Tablet) -> None:
    """The engine still holds the old session while the batch already knows that it is gone."""
    incr_as(tablet, 1)
    tablet.machine._sessions.reset()
    tablet.clock_ms += 11 * MINUTE
    command = commands.encode(Identity(SESSION, 1), [commands.incr(b"n")])
    first = tablet.entry([commands.encode(None, [commands.put(b"x", b"")])])
    results = tablet.machine.apply([first, tablet.entry([command]), tablet.entry([command])])
    assert [one[0].replayed for one in results] == [False, False, True]
    assert counter(tablet) == 2


def test_a_missing_record_proves_nothing_past_half_a_lifetime(tablet: Tablet) -> None:
    since = tablet.clock_ms
    tablet.clock_ms += 5 * MINUTE
    assert codes(incr_as(tablet, 1, since_ms=since)) == [0], "within half the lifetime it proves: not applied"
    tablet.clock_ms += 1
    assert codes(incr_as(tablet, 2, since_ms=since)) == [SESSION_UNKNOWN]
    assert codes(incr_as(tablet, 1, b"other", since_ms=since)) == [SESSION_UNKNOWN]
    assert incr_as(tablet, 1, since_ms=since).replayed is True, "a record that is there answers at any age"
    assert codes(incr_as(tablet, 3)) == [0], "without since the first try is now"
    assert counter(tablet) == 2


def test_a_request_cut_in_two_resumes_where_it_stood(tablet: Tablet) -> None:
    ops = [commands.put(b"k%d" % number, b"", prev=True) for number in range(4)]
    part = tablet.run_as(Identity(SESSION, 7, 0), *ops[:2])
    whole = tablet.run_as(Identity(SESSION, 7, 0), *ops)
    assert whole.replayed is False
    assert whole.results[:2] == part.results
    assert [one[1] for one in whole.results] == [1, 2, 3, 4]
    again = tablet.run_as(Identity(SESSION, 7, 1), *ops[1:3])
    assert again == CommandResult(True, whole.results[1:3])
    assert tablet.machine.revision == 4


def test_parts_of_a_request_may_come_in_any_order(tablet: Tablet) -> None:
    ops = [commands.incr(b"n") for _ in range(9)]
    for first, last in ((6, 9), (0, 3), (2, 7), (0, 9)):
        tablet.run_as(Identity(SESSION, 1, first), *ops[first:last])
    assert counter(tablet) == 9
    assert tablet.run_as(Identity(SESSION, 1, 0), *ops).replayed is True


def test_another_body_under_the_same_identity_is_refused(tablet: Tablet) -> None:
    assert codes(incr_as(tablet, 0, body_hash=b"one")) == [0]
    assert codes(incr_as(tablet, 0, body_hash=b"two")) == [IDENTITY_MISMATCH]
    assert incr_as(tablet, 0, body_hash=b"one").replayed is True
    assert counter(tablet) == 1


def test_a_new_session_is_refused_at_the_cap_and_known_ones_go_on(make_tablet: MakeTablet) -> None:
    tablet = make_tablet(limits=StoreLimits(sessions_bytes_max=5 * sessions.SESSION_BYTES))
    made = 0
    while codes(incr_as(tablet, 1, b"s%d" % made)) == [0]:
        made += 1
    assert 1 < made < 6
    assert codes(incr_as(tablet, 1, b"one more")) == [SESSION_CAP]
    assert codes(incr_as(tablet, 2, b"s0")) == [0]
    assert incr_as(tablet, 1, b"s0").replayed is True
    assert counter(tablet) == made + 1
    tablet.clock_ms += 11 * MINUTE
    tablet.put(b"x", b"")
    assert codes(incr_as(tablet, 1, b"one more")) == [0], "room again once others have expired"


def test_one_principal_can_not_take_the_room_of_others(make_tablet: MakeTablet) -> None:
    tablet = make_tablet(limits=StoreLimits(session_share_bytes_max=3 * sessions.SESSION_BYTES))
    outcomes = [codes(incr_as(tablet, 1, b"g%d" % number, principal=b"greedy")) for number in range(5)]
    assert outcomes[0] == [0]
    assert outcomes[-1] == [SESSION_CAP]
    assert codes(incr_as(tablet, 1, b"m", principal=b"modest")) == [0]
    tablet.reopen()
    assert codes(incr_as(tablet, 1, b"g9", principal=b"greedy")) == [SESSION_CAP]
    assert codes(incr_as(tablet, 1, b"m2", principal=b"modest")) == [0]


def test_a_result_too_large_to_keep_loses_its_previous_value_only(make_tablet: MakeTablet) -> None:
    tablet = make_tablet(limits=StoreLimits(result_bytes_max=1024))
    tablet.put(b"a", b"x" * 2000)
    identity = Identity(SESSION, 1)
    ops = [commands.put(b"a", b"y", prev=True), commands.incr(b"n"), commands.delete(b"a", prev=True)]
    first = tablet.run_as(identity, *ops)
    assert first.results[0][4][0] == b"x" * 2000
    again = tablet.run_as(identity, *ops)
    assert again.replayed is True
    assert again.results == [
        [0, 2, 2, False, [None, 1, 1, 1, None, None, None]],
        [0, 3, 1],
        [0, 4, 1, [None, 2, 1, 2, None, None, None]],
    ]


@pytest.mark.parametrize("kind", ["memory", "rocks"])
def test_sessions_survive_a_restart_and_travel_with_a_checkpoint(
    make_tablet: MakeTablet, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tablet = make_tablet(kind)
    incr_as(tablet, 1)
    incr_as(tablet, 5, acked_below=3)
    tablet.reopen()
    assert incr_as(tablet, 5).replayed is True
    assert codes(incr_as(tablet, 2)) == [SESSION_UNKNOWN]
    copy = str(tmp_path_factory.mktemp("copy") / "tablet")
    tablet.machine.checkpoint(copy)
    elsewhere = Tablet(tablet.engines, copy)
    assert incr_as(elsewhere, 5).replayed is True
    assert incr_as(elsewhere, 6).results == [[0, 3, 3]]
    elsewhere.machine.close()


def test_mirrors_are_dropped_when_there_are_many_and_nothing_changes(
    tablet: Tablet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MIRRORED_MAX", 5)
    for _ in range(2):
        for number in range(10):
            incr_as(tablet, number % 3, b"s%d" % number)
    assert counter(tablet) == 10
    assert len(tablet.machine._sessions._mirrors) <= 5


def test_pitfall_38_each_write_applies_exactly_once(make_tablet: MakeTablet) -> None:
    """One shard's part: gaps left by other shards, many one-shot clients, a request split at a failover."""
    tablet = make_tablet("rocks", StoreLimits(session_share_bytes_max=1 << 30))
    for sequence in (1, 4, 9):
        incr_as(tablet, sequence)
    one_shot = [
        commands.encode(Identity(b"client %d" % number, 1, 0, 0, tablet.clock_ms), [commands.incr(b"n")])
        for number in range(10_000)
    ]
    for at in range(0, len(one_shot), 500):
        tablet.apply(*one_shot[at : at + 500])
    tablet.run_as(Identity(SESSION, 10, 0), *([commands.incr(b"n")] * 3))
    tablet.reopen()
    for sequence in (1, 4, 9):
        assert incr_as(tablet, sequence).replayed is True
    replayed = [result.replayed for result in tablet.apply(*one_shot[:300], *one_shot[-300:])]
    assert all(replayed)
    resumed = tablet.run_as(Identity(SESSION, 10, 0), *([commands.incr(b"n")] * 5))
    assert len(resumed.results) == 5
    assert counter(tablet) == 3 + 10_000 + 5


request = st.tuples(
    st.sampled_from([b"a", b"b", b"ab"]), st.integers(0, 12), st.integers(0, 3), st.integers(1, 4)
)
step = st.one_of(
    st.tuples(st.just("send"), request, st.integers(0, 6)),
    st.tuples(st.just("wait"), st.integers(1, 8 * MINUTE)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("forget")),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(step, max_size=40))
def test_no_op_of_a_request_happens_twice_while_since_is_honest(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    """Each (session, sequence, index) adds to a key of its own, so that the value counts executions."""
    tablet = Tablet(
        make_engines("memory"),
        str(tmp_path_factory.mktemp("once")),
        StoreLimits(session_window=6, history_revisions=3),
    )
    first_tried: dict[tuple[bytes, int], int] = {}
    answered: dict[bytes, list[Any]] = {}
    for one in steps:
        if one[0] == "wait":
            tablet.clock_ms += one[1]
        elif one[0] == "restart":
            tablet.reopen()
        elif one[0] == "forget":
            tablet.machine._sessions.reset()
        else:
            session, sequence, first, count = one[1]
            since = first_tried.setdefault((session, sequence), tablet.clock_ms)
            names = [b"%b/%d/%d" % (session, sequence, index) for index in range(first, first + count)]
            identity = Identity(session, sequence, first, max(0, sequence - one[2]), since)
            result = tablet.run_as(identity, *(commands.incr(name) for name in names))
            for name, answer in zip(names, result.results, strict=True):
                if answer[0] == 0:
                    assert answered.setdefault(name, answer) == answer, "a retry got another answer"
    for key, value in ((found[0], found[1]) for found in tablet.scan()[0]):
        assert value == b"1", f"{key!r} happened {value!r} times"
