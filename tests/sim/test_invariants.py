"""The checks themselves, where one of them was wrong."""

from __future__ import annotations

import builtins

import pytest

from tests.sim.script import N1, N2, N3, Script


def test_a_new_life_of_a_node_is_not_compared_with_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may get the memory of one that was killed: what it had committed looked like taken back."""
    monkeypatch.setattr(builtins, "id", lambda each: 1)
    script = Script()
    script.start(N1, N2, N3)
    script.fill(N1, 5)
    script.cut_power(N3)
    script.restart(N3)
    script.run(2.0)
    script.check()
