"""Golden bytes: each module of tests names its file `GOLDEN` and says by `current()` what belongs there."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="module", autouse=True)
def _rewrite(request: pytest.FixtureRequest) -> None:
    if os.environ.get("KV_REWRITE_GOLDEN"):
        lines = request.module.current()
        request.module.GOLDEN.write_text("".join(f"{name} {content}\n" for name, content in lines.items()))
