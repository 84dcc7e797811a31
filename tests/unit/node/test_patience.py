"""When a log write counts as stuck."""

from kvstore.node.patience import Patience


def test_a_write_that_does_not_end_is_stuck_after_the_limit() -> None:
    patience = Patience(limit_s=30.0, period_s=1.0)
    assert [second for second in range(1, 40) if patience.is_over(float(second))][0] == 31


def test_a_process_that_was_stopped_is_not_stuck() -> None:
    """Woken after a minute, it finds the write under way that it was stopped in."""
    patience = Patience(limit_s=30.0, period_s=1.0)
    assert not patience.is_over(0.5)
    assert not patience.is_over(60.0)
    assert not patience.is_over(0.0)
    assert not patience.is_over(0.9)


def test_a_disk_that_hangs_beyond_that_is_noticed_all_the_same() -> None:
    patience = Patience(limit_s=30.0, period_s=1.0)
    assert not patience.is_over(0.5)
    looks = next(look for look in range(1, 60) if patience.is_over(60.0 + look))
    assert looks <= 15


def test_slow_writes_that_end_are_not_added_up() -> None:
    patience = Patience(limit_s=30.0, period_s=1.0)
    assert not any(patience.is_over(float(second % 20)) for second in range(200))
