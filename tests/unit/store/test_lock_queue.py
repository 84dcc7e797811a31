"""The lock queue: one holder at a time, in order, known to its caller, with fences that only grow."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.errors import InvalidArgument
from kvstore.store import Engines, commands, lock_commands, lock_queue
from kvstore.store.commands import Op
from tests.support.tablets import Tablet

NAME = b"_locks/jobs"
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
OK, LOST, REFUSED, FULL, MISMATCH = 0, 9, 10, 20, 5


def enter(
    tablet: Tablet,
    claim: bytes,
    *,
    attempt: int = 1,
    ttl_ms: int = 10_000,
    wait_ms: int = 5_000,
    not_after_ms: int | None = None,
    value: bytes = b"",
    name: bytes = NAME,
) -> Op:
    if not_after_ms is None:
        not_after_ms = tablet.clock_ms + wait_ms + 10_000
    return lock_commands.enter(
        name, claim, attempt, ttl_ms=ttl_ms, wait_ms=wait_ms, not_after_ms=not_after_ms, value=value
    )


def run(tablet: Tablet, op: Op) -> list[Any]:
    commands.check(commands.encode(None, [op]))
    result: list[Any] = tablet.run(op)[0]
    return result


def take(tablet: Tablet, claim: bytes, **options: Any) -> list[Any]:
    return run(tablet, enter(tablet, claim, **options))


def release(tablet: Tablet, claim: bytes) -> list[Any]:
    return run(tablet, lock_commands.release(NAME, claim))


def give_up(
    tablet: Tablet, claim: bytes, not_after_ms: int, *, attempt: int = 1, keeps_grant: bool = False
) -> list[Any]:
    op = lock_commands.give_up(NAME, claim, attempt, not_after_ms=not_after_ms, keeps_grant=keeps_grant)
    return run(tablet, op)


def renew(tablet: Tablet, claim: bytes) -> list[Any]:
    return run(tablet, lock_commands.renew(NAME, claim))


def pass_ms(tablet: Tablet, ms: int) -> None:
    """Let time pass, with a leader that carries out what is due."""
    tablet.clock_ms += ms
    tablet.run(commands.expire(tablet.term, 1000))


def holder(tablet: Tablet, name: bytes = NAME) -> Any:
    return tablet.machine.query(["holder", name])


def key_revision(tablet: Tablet) -> int:
    item = tablet.get(NAME)
    return 0 if item is None else int(item[1])


def leftovers(tablet: Tablet) -> list[bytes]:
    return [key for key, _ in tablet.pairs() if key[:1] in (b"q", b"u", b"d")]


def test_who_comes_first_holds_and_the_put_of_the_key_is_the_fence(tablet: Tablet) -> None:
    tablet.put(b"x", b"1")
    assert take(tablet, A, value=b"me") == [OK, True, 2, 10_000]
    assert tablet.get(NAME)[:2] == [b"me", 2]
    assert holder(tablet) == [b"me", 2, tablet.clock_ms + 10_000, 0]


def test_the_others_wait_and_get_it_in_the_order_in_which_they_came(tablet: Tablet) -> None:
    assert take(tablet, A)[1]
    assert take(tablet, B) == [OK, False, 1, 10_000]
    assert take(tablet, C) == [OK, False, 1, 10_000]
    assert release(tablet, A) == [OK, False, 2, 0, True]
    assert take(tablet, B) == [OK, True, 2, 10_000]
    assert release(tablet, B)[2] == 3
    assert take(tablet, C)[1:3] == [True, 3]
    assert release(tablet, C) == [OK, False, 0, 0, True]
    assert tablet.get(NAME) is None
    assert holder(tablet) is None


def test_a_handover_is_one_change_of_the_key(tablet: Tablet) -> None:
    take(tablet, A)
    take(tablet, B)
    release(tablet, A)
    release(tablet, B)
    events = tablet.machine.query(["changes", 1, {}])[0]
    assert [event[:2] for event in events] == [[1, 0], [2, 0], [3, 1]]


def test_names_that_begin_alike_have_queues_of_their_own(tablet: Tablet) -> None:
    assert take(tablet, A, name=b"_locks/a")[1]
    assert take(tablet, A, name=b"_locks/ab")[1]
    assert take(tablet, A, name=b"_locks/a\x00")[1]
    run(tablet, lock_commands.release(b"_locks/a", A))
    assert holder(tablet, b"_locks/a") is None
    assert holder(tablet, b"_locks/ab") is not None
    assert holder(tablet, b"_locks/a\x00") is not None


def test_a_repeated_request_finds_its_entry_and_its_present_state(tablet: Tablet) -> None:
    take(tablet, A)
    take(tablet, B)
    assert take(tablet, B, attempt=2, not_after_ms=tablet.clock_ms + 20_000) == [OK, False, 1, 10_000]
    assert holder(tablet)[3] == 1
    release(tablet, A)
    assert take(tablet, B, attempt=3, not_after_ms=tablet.clock_ms + 30_000) == [OK, True, 2, 10_000]


def test_a_repeated_request_with_other_terms_is_refused(tablet: Tablet) -> None:
    take(tablet, A)
    assert take(tablet, A, ttl_ms=20_000) == [MISMATCH]
    assert take(tablet, A, value=b"other") == [MISMATCH]


def test_renewing_counts_the_ttl_from_now(tablet: Tablet) -> None:
    take(tablet, A)
    pass_ms(tablet, 9_000)
    assert renew(tablet, A) == [OK, True, 1, 10_000]
    pass_ms(tablet, 9_999)
    assert holder(tablet) is not None
    pass_ms(tablet, 1)
    assert holder(tablet) is None
    assert renew(tablet, A) == [LOST]
    assert tablet.machine.query(["changes", 1, {}])[0][-1][1:3] == [2, NAME]


def test_who_waits_can_not_renew(tablet: Tablet) -> None:
    take(tablet, A)
    take(tablet, B)
    assert renew(tablet, B) == [LOST]


def test_an_expired_holder_is_followed_by_the_next(tablet: Tablet) -> None:
    take(tablet, A, ttl_ms=2_000)
    take(tablet, B)
    pass_ms(tablet, 2_000)
    assert key_revision(tablet) == 2
    assert take(tablet, B)[1:3] == [True, 2]


def test_an_expired_holder_that_asks_again_learns_that_it_lost(tablet: Tablet) -> None:
    take(tablet, A, ttl_ms=2_000)
    pass_ms(tablet, 2_000)
    assert take(tablet, A, ttl_ms=2_000, attempt=2, not_after_ms=tablet.clock_ms + 30_000) == [LOST]
    assert holder(tablet) is None


def test_a_waiter_that_is_gone_is_passed_over(tablet: Tablet) -> None:
    take(tablet, A, ttl_ms=10_000)
    take(tablet, B, wait_ms=1_000)
    take(tablet, C, wait_ms=60_000)
    tablet.clock_ms += 10_000
    assert tablet.run(commands.expire(1, 1000))[0][2] == 2
    assert take(tablet, C, wait_ms=60_000)[1]
    assert take(tablet, B, not_after_ms=12_000) == [REFUSED, 12_000]


def test_a_release_passes_over_who_should_have_gone_already(tablet: Tablet) -> None:
    take(tablet, A, ttl_ms=60_000)
    take(tablet, B, wait_ms=1_000)
    take(tablet, C, wait_ms=60_000)
    tablet.clock_ms += 10_000
    release(tablet, A)
    assert take(tablet, C, wait_ms=60_000)[1]


def test_a_grant_that_nobody_takes_goes_to_the_next_after_the_pickup_time(tablet: Tablet) -> None:
    take(tablet, A)
    take(tablet, B, ttl_ms=3_600_000, wait_ms=60_000)
    take(tablet, C, wait_ms=60_000)
    release(tablet, A)
    pass_ms(tablet, lock_queue.PICKUP_MS - 1)
    assert holder(tablet)[1] == 2
    pass_ms(tablet, 1)
    assert take(tablet, C, wait_ms=60_000)[1:3] == [True, 3]


def test_a_grant_that_was_taken_lasts_its_ttl_from_then(tablet: Tablet) -> None:
    take(tablet, A)
    take(tablet, B, ttl_ms=60_000)
    release(tablet, A)
    pass_ms(tablet, 5_000)
    assert take(tablet, B, ttl_ms=60_000, not_after_ms=16_000) == [OK, True, 2, 60_000]
    pass_ms(tablet, 40_000)
    assert take(tablet, B, ttl_ms=60_000, not_after_ms=16_000) == [OK, True, 2, 20_000]


# --- giving up: pitfall 44


def test_trying_once_takes_no_place(tablet: Tablet) -> None:
    take(tablet, A)
    assert take(tablet, B, wait_ms=0) == [OK, False, 1, 0]
    release(tablet, A)
    assert holder(tablet) is None


def test_pitfall_44_a_second_copy_of_a_failed_try_does_not_take_the_free_lock(tablet: Tablet) -> None:
    take(tablet, A)
    tried = enter(tablet, B, wait_ms=0)
    assert run(tablet, tried)[1] is False
    release(tablet, A)
    assert run(tablet, tried)[0] == REFUSED
    pass_ms(tablet, 60_000)
    assert run(tablet, tried)[0] == REFUSED
    assert holder(tablet) is None


def test_pitfall_44_a_late_copy_of_an_enter_does_not_come_back_once_its_waiter_has_gone(
    tablet: Tablet,
) -> None:
    take(tablet, A)
    waits = enter(tablet, B)
    run(tablet, waits)
    give_up(tablet, B, waits[6])
    release(tablet, A)
    for _ in range(5):
        assert run(tablet, waits)[0] == REFUSED
        pass_ms(tablet, 4_000)
    assert holder(tablet) is None


def test_pitfall_44_an_enter_that_is_overtaken_by_its_withdrawal_is_void(tablet: Tablet) -> None:
    waits = enter(tablet, B)
    assert give_up(tablet, B, waits[6]) == [OK, False, 0, 0, False]
    for _ in range(5):
        assert run(tablet, waits)[0] == REFUSED
        pass_ms(tablet, 4_000)
    assert holder(tablet) is None


def test_pitfall_44_a_late_copy_does_not_take_again_what_was_released(tablet: Tablet) -> None:
    took = enter(tablet, A)
    run(tablet, took)
    release(tablet, A)
    assert run(tablet, took) == [LOST]
    assert take(tablet, A, attempt=2, not_after_ms=tablet.clock_ms + 40_000) == [LOST]
    pass_ms(tablet, 100_000)
    assert run(tablet, took)[0] == REFUSED
    assert holder(tablet) is None


def test_pitfall_44_a_not_after_too_far_ahead_is_refused(tablet: Tablet) -> None:
    latest = tablet.clock_ms + 5_000 + 60_000
    assert take(tablet, A, not_after_ms=latest + 1) == [REFUSED, 0]
    assert take(tablet, A, not_after_ms=tablet.clock_ms - 1) == [REFUSED, 0]
    assert take(tablet, A, not_after_ms=latest)[1]


def test_a_request_that_was_given_up_may_come_again(tablet: Tablet) -> None:
    take(tablet, A)
    waits = enter(tablet, B)
    run(tablet, waits)
    give_up(tablet, B, waits[6])
    assert take(tablet, B, attempt=2, not_after_ms=waits[6]) == [REFUSED, waits[6]]
    assert take(tablet, B, attempt=2, not_after_ms=waits[6] + 1)[0] == OK
    release(tablet, A)
    assert holder(tablet)[1] == 2


def test_giving_up_does_not_take_the_entry_of_a_later_attempt(tablet: Tablet) -> None:
    take(tablet, A)
    first = enter(tablet, B)
    run(tablet, first)
    take(tablet, B, attempt=2, not_after_ms=first[6] + 5)
    assert give_up(tablet, B, first[6])[4] is False
    assert holder(tablet)[3] == 1
    # Nor does an attempt of the same moment at another node.
    assert take(tablet, B, attempt=9, not_after_ms=first[6] + 5) == [REFUSED, first[6] + 5]
    assert give_up(tablet, B, first[6] + 5, attempt=2)[4] is True


def test_giving_up_takes_nothing_from_an_attempt_with_a_lower_not_after(tablet: Tablet) -> None:
    """Seed 163: the second attempt came by a node that had just started and knew no clock."""
    assert take(tablet, A, attempt=2, not_after_ms=tablet.clock_ms + 1_000)[1] is True
    assert give_up(tablet, A, tablet.clock_ms + 30_000, attempt=1) == [OK, False, 1, 0, False]
    assert holder(tablet)[1] == 1
    assert take(tablet, A, attempt=1, not_after_ms=tablet.clock_ms + 30_000)[0] == REFUSED
    assert give_up(tablet, A, tablet.clock_ms + 1_000, attempt=2)[4] is True
    assert holder(tablet) is None


def test_an_entry_goes_with_the_last_attempt_that_joined_it(tablet: Tablet) -> None:
    """Whichever of them came first, and whoever was told of the grant."""
    for first_to_leave in (1, 2):
        clock_ms = tablet.clock_ms
        take(tablet, A, attempt=1, not_after_ms=clock_ms + 10_000)
        assert take(tablet, A, attempt=2, not_after_ms=clock_ms + 20_000)[1] is True
        not_after_ms = {1: clock_ms + 10_000, 2: clock_ms + 20_000}
        assert give_up(tablet, A, not_after_ms.pop(first_to_leave), attempt=first_to_leave)[4] is False
        assert holder(tablet) is not None
        ((last, last_ms),) = not_after_ms.items()
        assert give_up(tablet, A, last_ms, attempt=last)[4] is True
        assert holder(tablet) is None
        pass_ms(tablet, 100_000)


def test_of_many_attempts_the_oldest_are_forgotten(tablet: Tablet) -> None:
    start = tablet.clock_ms + 5_000
    for attempt in range(lock_queue.ATTEMPTS_MAX + 1):
        assert take(tablet, A, attempt=attempt, not_after_ms=start + attempt)[1] is True
    for attempt in range(1, lock_queue.ATTEMPTS_MAX):
        assert give_up(tablet, A, start + attempt, attempt=attempt)[4] is False
    assert give_up(tablet, A, start + 16, attempt=lock_queue.ATTEMPTS_MAX)[4] is True


def test_giving_up_keeps_what_was_granted_meanwhile_if_asked_to(tablet: Tablet) -> None:
    take(tablet, A)
    waits = enter(tablet, B)
    run(tablet, waits)
    release(tablet, A)
    assert give_up(tablet, B, waits[6], keeps_grant=True) == [OK, True, 2, 10_000, False]
    assert give_up(tablet, B, waits[6], keeps_grant=False) == [OK, False, 0, 0, True]
    assert holder(tablet) is None


def test_releasing_again_does_nothing_and_says_the_same(tablet: Tablet) -> None:
    take(tablet, A)
    take(tablet, B)
    assert release(tablet, A)[4] is True
    assert release(tablet, A) == [OK, False, 2, 0, True]
    assert release(tablet, C) == [OK, False, 2, 0, False]
    assert holder(tablet)[1] == 2


def test_a_waiter_can_be_withdrawn_by_its_token(tablet: Tablet) -> None:
    take(tablet, A)
    take(tablet, B)
    assert release(tablet, B)[4] is True
    release(tablet, A)
    assert holder(tablet) is None


def test_the_queue_is_bounded(tablet: Tablet) -> None:
    for number in range(lock_queue.ENTRIES_MAX):
        assert take(tablet, b"%016d" % number)[0] == OK
    assert take(tablet, A) == [FULL, lock_queue.ENTRIES_MAX]
    assert take(tablet, A, wait_ms=0)[0] == OK
    release(tablet, b"%016d" % 7)
    assert take(tablet, A, not_after_ms=tablet.clock_ms + 40_000)[0] == OK


def test_nothing_stays_behind(tablet: Tablet) -> None:
    take(tablet, A)
    take(tablet, B)
    take(tablet, C, wait_ms=0)
    waits = enter(tablet, b"d" * 16)
    give_up(tablet, b"d" * 16, waits[6])
    pass_ms(tablet, 5_000)
    release(tablet, A)
    for _ in range(3):
        pass_ms(tablet, 100_000)
    assert leftovers(tablet) == []
    assert tablet.machine.next_deadline_ms is None


def test_queues_survive_reopening(engines: Engines, tmp_path: Any) -> None:
    tablet = Tablet(engines, str(tmp_path / "t"))
    take(tablet, A, ttl_ms=5_000)
    take(tablet, B, wait_ms=20_000)
    tablet.reopen()
    assert holder(tablet)[3] == 1
    pass_ms(tablet, 5_000)
    assert take(tablet, B, wait_ms=20_000, not_after_ms=31_000)[1:3] == [True, 2]
    tablet.machine.close()


def test_a_claim_tells_where_it_stands(tablet: Tablet) -> None:
    take(tablet, A)
    take(tablet, B)
    assert tablet.machine.query(["claim", NAME, A]) == [1]
    assert tablet.machine.query(["claim", NAME, B]) == [0]
    assert tablet.machine.query(["claim", NAME, C]) is None
    release(tablet, A)
    assert tablet.machine.query(["claim", NAME, A]) is None
    assert tablet.machine.query(["claim", NAME, B]) == [2]


@pytest.mark.parametrize(
    "op",
    [
        [24, NAME, A, 1, 10_000, 0, 5],
        [24, NAME, b"short", 1, 10_000, 0, 5, b""],
        [24, b"", A, 1, 10_000, 0, 5, b""],
        [24, NAME, A, 1, 999, 0, 5, b""],
        [24, NAME, A, 1, 10_000, 600_000, 5, b""],
        [24, NAME, A, -1, 10_000, 0, 5, b""],
        [24, NAME, A, 1, 10_000, 0, 5, b"x" * 5000],
        [24, NAME, A, 1, 10_000, 0, None, b""],
        [25, NAME, A, 1, None, 1],
        [25, NAME, A, 1, -1, True],
        [25, NAME, A],
        [26, NAME],
        [26, NAME, 5],
    ],
)
def test_ops_that_are_not_well_formed_are_refused(op: Op) -> None:
    with pytest.raises(InvalidArgument):
        commands.check(commands.encode(None, [op]))
