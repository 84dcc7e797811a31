"""The checker of what ends by time sees each way to get it wrong, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.history import Operation
from chaos.lives import check_lives


class Story:
    """Operations of one client, each half a second long."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def then(
        self, at: float, kind: str, key: str, argument: Any = None, result: Any = None, **more: Any
    ) -> Story:
        outcome = more.pop("outcome", "ok")
        returned = None if outcome == "unknown" else at + 0.5
        result = {} if result is None and outcome == "ok" else result
        result = None if outcome == "conflict" else result
        self.operations.append(
            Operation(1, kind, key, argument, at, returned, outcome=outcome, result=result, **more)
        )
        return self

    def keep(self, at: float, key: str = "k", **argument: Any) -> Story:
        return self.then(at, "keep", key, argument)

    def look(self, at: float, is_there: bool, key: str = "k", **argument: Any) -> Story:
        return self.then(at, "look", key, argument or None, {"is_there": is_there})

    def grant(self, at: float, ttl_s: float = 10.0, **more: Any) -> Story:
        return self.then(at, "grant", "l", {"ttl_s": ttl_s}, **more)

    def renew(self, at: float, left_s: float = 10.0, **more: Any) -> Story:
        return self.then(at, "renew", "l", None, {"left_s": left_s}, **more)

    def revoke(self, at: float, is_complete: bool = True, **more: Any) -> Story:
        return self.then(at, "revoke", "l", None, {"is_complete": is_complete}, **more)

    @property
    def faults(self) -> list[str]:
        return check_lives(self.operations)


FINE = {
    "a key lives and goes": Story().keep(0, ttl_s=10).look(5, True).look(12, False).look(13, False),
    "a key lives longer": Story().keep(0, ttl_s=10).look(60, True),
    "rewritten": Story().keep(0, ttl_s=1).look(2, False).keep(3, ttl_s=10).look(4, True),
    "kept alive": Story().grant(0).keep(1, lease="l").renew(8).look(17, True).look(20, False),
    "revoked": Story()
    .grant(0)
    .keep(1, lease="l")
    .revoke(2)
    .look(3, False)
    .grant(4)
    .keep(5, lease="l")
    .look(6, True),
    "revoked in part": Story()
    .grant(0)
    .keep(1, lease="l")
    .revoke(2, is_complete=False)
    .look(3, True)
    .look(4, False),
    "ended and said so": Story().grant(0).renew(11, outcome="conflict").grant(12),
    "nobody knows": Story()
    .grant(0)
    .keep(1, lease="l")
    .revoke(2, outcome="unknown")
    .look(3, True)
    .look(4, False),
    "untied": Story().grant(0).keep(1, lease="l").keep(2, ttl_s=60).revoke(3).look(4, True),
    "refused, perhaps rightly": Story().grant(0).renew(9.8, outcome="conflict"),
    "gone in the end": Story().keep(0, ttl_s=1).look(90, False, is_final=True),
}

WRONG = {
    "early": (Story().keep(0, ttl_s=10).look(8, False), "gone, although"),
    "back": (Story().keep(0, ttl_s=1).look(2, False).look(3, True), "is there again"),
    "early with its lease": (Story().grant(0).keep(1, lease="l").renew(8).look(12, False), "gone, although"),
    "lease early": (Story().grant(0).renew(5).renew(13, outcome="conflict"), "not found, although"),
    "survives a revoke": (Story().grant(0).keep(1, lease="l").revoke(2).look(3, True), "behind its end"),
    "tied to the dead": (Story().grant(0).revoke(1).keep(2, lease="l"), "which has ended"),
    "renewed when dead": (Story().grant(0).revoke(1).renew(2), "renewed, although"),
    "two of one id": (Story().grant(0).grant(2), "granted, although"),
    "no new one": (Story().grant(0).revoke(1).grant(2, outcome="conflict"), "refused, although"),
    "no lease to tie to": (
        Story().grant(0).then(2, "keep", "k", {"lease": "l"}, outcome="conflict"),
        "no lease l, although",
    ),
    "never goes": (Story().keep(0, ttl_s=1).look(90, True, is_final=True), "long after its time"),
}


@pytest.mark.parametrize("name", FINE)
def test_a_right_story_has_no_fault(name: str) -> None:
    assert FINE[name].faults == []


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_story_is_told(name: str) -> None:
    story, sign = WRONG[name]
    assert len(story.faults) == 1
    assert sign in story.faults[0]


def test_clocks_that_ran_ahead_excuse_an_early_end() -> None:
    story = Story().keep(0, ttl_s=10).look(8, False)
    assert check_lives(story.operations, lambda now: 2.0) == []
