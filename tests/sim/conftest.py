"""Fixtures of the simulated cluster."""

import pytest

from tests.sim.rebuild_story import Story


@pytest.fixture
def story() -> Story:
    return Story()
