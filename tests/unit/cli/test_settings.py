"""Durations and where settings come from."""

import click
import pytest

from kvstore.cli.settings import DEFAULT_ENDPOINTS, DURATION, Settings


@pytest.mark.parametrize(
    ("text", "seconds"), [("750ms", 0.75), ("5s", 5), ("1.5m", 90), ("2h", 7200), ("3", 3), (4, 4)]
)
def test_durations_are_read(text: object, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "soon", "0", "-1s", "inf", "nan", "1d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="duration"):
        DURATION.convert(text, None, None)


def test_without_settings_the_first_demo_node_is_asked() -> None:
    assert Settings().endpoint_list() == [DEFAULT_ENDPOINTS]
    assert Settings().timeout() == 5.0


def test_endpoints_are_a_list_with_commas() -> None:
    assert Settings(endpoints="a:1, b:2,,").endpoint_list() == ["a:1", "b:2"]
