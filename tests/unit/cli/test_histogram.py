"""The latency histogram against the plain list of its values."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.cli.histogram import Histogram

VALUES = st.lists(st.integers(0, 10_000_000), min_size=1, max_size=300)


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@settings(max_examples=150, deadline=None)
@given(VALUES, st.floats(0.1, 100))
def test_a_percentile_is_the_exact_one_within_two_percent(values: list[int], percent: float) -> None:
    ranked = sorted(values)
    exact = ranked[max(0, -(-len(ranked) * percent // 100).__int__() - 1)]
    found = filled(values).percentile(percent)
    assert exact <= found <= exact * (1 + 1 / 64) + 1


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_the_ends_and_the_mean_are_exact(values: list[int]) -> None:
    histogram = filled(values)
    assert histogram.percentile(100) == histogram.largest == max(values)
    assert histogram.mean == sum(values) / len(values)


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_doublings_cover_all_values_without_gaps(values: list[int]) -> None:
    rows = list(filled(values).doublings())
    assert sum(count for _, _, count in rows) == len(values)
    for (_, high, _), (low, _, _) in zip(rows, rows[1:], strict=False):
        assert low == high + 1


def test_an_empty_histogram_has_zeros() -> None:
    histogram = Histogram()
    assert (histogram.percentile(99), histogram.mean, list(histogram.doublings())) == (0, 0.0, [])


def test_memory_is_bounded_by_the_range_and_not_by_the_count() -> None:
    histogram = filled([value % 1_000_000 for value in range(0, 40_000_000, 997)])
    assert len(histogram._counts) <= 64 * 20
