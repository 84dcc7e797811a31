"""One shard of several fails a request: the caller hears it, and the node goes on."""

from __future__ import annotations

import pytest

from kvstore.errors import Unavailable
from kvstore.store.machine import Machine
from tests.sim.script import N1, Script


def test_a_scan_that_one_shard_fails_before_another_answers_is_an_error_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found by reading: the answer that came last raised the first one's error out of the host's loop, which
    ended the process."""
    script = Script(shards=2)
    script.start()
    script.lead(N1, 0, 1)
    script.fill(N1, 8)
    failing = script.replica(N1, 0).machine
    query = Machine.query

    def query_or_fail(machine: Machine, asked: list[object]) -> object:
        if machine is failing:
            raise Unavailable("damaged")
        return query(machine, asked)

    monkeypatch.setattr(Machine, "query", query_or_fail)
    assert script.ask(N1, "GET", "/v1/kv?prefix=k").status == 503
    monkeypatch.undo()
    assert script.ask(N1, "GET", "/v1/kv?prefix=k").status == 200
    assert not script.exits
