import pytest

from kvstore import errors
from kvstore.store import results


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([results.PRECONDITION_FAILED, 7], errors.Conflict),
        ([results.NOT_A_NUMBER], errors.NotANumber),
        ([results.OUT_OF_RANGE, 3], errors.OutOfRange),
        ([results.SESSION_UNKNOWN], errors.OutcomeUnknown),
        ([results.IDENTITY_MISMATCH], errors.IdempotencyMismatch),
        ([results.SESSION_CAP], errors.Overloaded),
    ],
)
def test_each_refusal_has_its_error(result: results.Result, expected: type[errors.KvError]) -> None:
    assert type(results.error_of(result)) is expected


def test_success_is_no_error() -> None:
    assert results.error_of([results.OK, 1, 1, True, None]) is None


def test_a_conflict_tells_the_current_revision() -> None:
    error = results.error_of([results.PRECONDITION_FAILED, 7])
    assert error is not None
    assert error.fields == {"current_revision": 7}


def test_a_code_without_a_meaning_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError):
        results.error_of([77])
