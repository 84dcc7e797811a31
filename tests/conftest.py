"""What holds for every test, and how the whole suite is shared out.

`pytest` alone runs on three workers (pytest-xdist): one begins with what starts processes, and waits for them
half of the time, the others with what computes. A test, folder or marker that somebody chose runs in the
process that was asked, where output, debugger and figures are one's own; `-n` has the last word.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

# A shell starts background jobs with SIGINT ignored, and processes hand that on to those they start: then
# what is tested with Ctrl-C would not hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)

WORKERS = 3
"""For two processors."""
PROCESSES = "tests/integration/"
"""One after another on one worker: several clusters at once would have no core each."""
LONGEST = (PROCESSES, "tests/sim/test_seeds.py", "tests/sim/")
"""Begun first, so that no worker is left alone with them at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    option = config.option
    is_asked = getattr(option, "numprocesses", 0) is not None  # also where there is no such plugin
    is_whole = (
        config.args_source is pytest.Config.ArgsSource.TESTPATHS
        and option.markexpr in config.getini("addopts")
        and not option.keyword
    )
    if is_whole and not (is_asked or is_worker(config) or option.usepdb or option.capture == "no"):
        option.numprocesses = WORKERS


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        """Fixtures of modules are made once."""

        def _split_scope(self, nodeid: str) -> str:
            return PROCESSES if nodeid.startswith(PROCESSES) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_worker(config):
        items.sort(key=lambda item: _turn(item.nodeid))


def _turn(nodeid: str) -> int:
    return next((turn for turn, start in enumerate(LONGEST) if nodeid.startswith(start)), len(LONGEST))
