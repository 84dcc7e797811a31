"""Each golden script of `tests/raft_scripts/` prints what it says.

After an intended change, `RAFT_SCRIPTS_REWRITE=1 pytest tests/unit/raft/test_scripts.py` rewrites them. The
difference is reviewed like code: every changed line must be understood.
"""

import os
from pathlib import Path

import pytest

from tests.support.raft_script import run_script

SCRIPTS = sorted((Path(__file__).parents[2] / "raft_scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_prints_what_it_says(path: Path) -> None:
    printed = run_script(path)
    if os.environ.get("RAFT_SCRIPTS_REWRITE"):
        path.write_text(printed, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == printed


def test_scripts_are_found() -> None:
    assert len(SCRIPTS) >= 20
