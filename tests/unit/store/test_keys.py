from hypothesis import given
from hypothesis import strategies as st

from kvstore.store import keys

KEY = st.binary(min_size=1, max_size=6) | st.lists(st.sampled_from([0, 1, 255]), min_size=1).map(bytes)
REVISION = st.integers(0, keys.REVISION_MAX)


@given(first=KEY, second=KEY, low=REVISION, high=REVISION)
def test_marks_are_in_key_order_and_newest_first(first: bytes, second: bytes, low: int, high: int) -> None:
    if first < second:
        assert keys.mark(first, low) < keys.mark(second, high)
    elif first == second and low < high:
        assert keys.mark(first, low) > keys.mark(first, high)


@given(key=KEY, other=KEY, revision=REVISION)
def test_the_range_of_a_keys_marks_holds_them_and_no_others(key: bytes, other: bytes, revision: int) -> None:
    is_inside = keys.marks_of(key) <= keys.mark(other, revision) < keys.marks_end(key)
    assert is_inside == (key == other)


@given(key=KEY, revision=REVISION)
def test_a_mark_tells_its_key_and_revision(key: bytes, revision: int) -> None:
    assert keys.mark_parts(keys.mark(key, revision)) == (key, revision)


@given(first=KEY, second=KEY, one=REVISION, two=REVISION)
def test_results_of_one_session_never_lie_among_those_of_another(
    first: bytes, second: bytes, one: int, two: int
) -> None:
    prefix = keys.results_of(first)
    assert keys.result(second, two).startswith(prefix) == (first == second)
    if one < two:
        assert keys.result(first, one) < keys.result(first, two)


@given(session=KEY, due=REVISION)
def test_an_expiry_key_tells_when_and_who(session: bytes, due: int) -> None:
    assert keys.expiry_parts(keys.expiry(due, session)) == (due, session)


def test_kinds_of_records_have_ranges_of_their_own() -> None:
    ranges = sorted(
        [
            (keys.HEAD, keys.HEAD_END),
            (keys.MARK, keys.MARK_END),
            (keys.CHANGE, keys.CHANGE_END),
            (keys.SESSION, keys.SESSION_END),
            (keys.EXPIRY, keys.EXPIRY_END),
            (keys.OLD, b"p"),
            (keys.META, b"n"),
            (keys.RESULT, b"s"),
        ]
    )
    for (_, end), (start, _) in zip(ranges, ranges[1:], strict=False):
        assert end <= start
