from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.store import Engines, StoreLimits
from tests.support.tablets import MakeTablet, Tablet, make_engines


@pytest.fixture(params=["memory", "rocks"])
def engines(request: pytest.FixtureRequest) -> Engines:
    return make_engines(request.param)


@pytest.fixture
def make_tablet(tmp_path: Path) -> Iterator[MakeTablet]:
    """Makes tablets on the memory engine, or on the one named, and closes them."""
    made: list[Tablet] = []

    def make(kind: str = "memory", limits: StoreLimits | None = None) -> Tablet:
        tablet = Tablet(make_engines(kind), str(tmp_path / f"tablet-{len(made)}"), limits)
        made.append(tablet)
        return tablet

    yield make
    for tablet in made:
        tablet.machine.close()


@pytest.fixture
def tablet(make_tablet: MakeTablet) -> Tablet:
    return make_tablet()
