"""A violation is explained by as few operations as can contradict each other."""

from chaos.explain import core_of, describe, explanation
from chaos.history import Operation
from chaos.linearizability import check
from tests.unit.chaos.busy_store import busy_history


def test_a_stale_read_in_a_long_history_is_explained_by_a_handful_of_operations() -> None:
    history = busy_history(operations=2_000, keys=4, clients=10, unknown=0.02, seed=3)
    reads = [item for item in history if item.kind == "get" and item.outcome == "ok" and item.result]
    stale = reads[len(reads) // 2]
    stale.result = next(item for item in reads if item.key == stale.key).result
    (violation,) = check(history).violations
    core = core_of(violation)
    assert 2 <= len(core) <= 4
    assert stale in core


def test_the_core_of_a_lost_write_is_the_write_and_the_read() -> None:
    history = [
        Operation(0, "put", "k", {"value": "a"}, 0, 1, "ok", {"revision": 1}),
        Operation(0, "put", "k", {"value": "b"}, 2, 3, "ok", {"revision": 2}),
        Operation(1, "get", "other", None, 2, 3, "ok", None),
        Operation(1, "get", "k", None, 4, 5, "ok", None, node="n2"),
    ]
    (violation,) = check(history).violations
    core = core_of(violation)
    assert history[3] in core
    assert len(core) == 2
    told = explanation(core)
    assert "client 1 at n2: get k -> absent" in told
    assert "cannot all be true" in told


def test_operations_are_described_in_one_line() -> None:
    swap = Operation(
        0, "put", "k", {"value": "b", "if_revision": 3}, 0, 1, "conflict", {"current_revision": 4}
    )
    assert describe(swap) == "put k = b if_revision=3 -> conflict current_revision=4"
    assert describe(Operation(0, "incr", "n", {"by": 2}, 0, None)) == "incr n by 2 -> unknown"
    read = Operation(0, "get", "k", None, 0, 1, "ok", {"value": "v", "revision": 7})
    assert describe(read) == "get k -> value=v revision=7"


def test_an_increment_applied_twice_is_explained_by_its_neighbours() -> None:
    values = [1, 2, 3, 5, 6]
    history = [
        Operation(
            number,
            "incr",
            "n",
            {"by": 1},
            number,
            number + 0.5,
            "ok",
            {"value": value, "revision": number + 1},
        )
        for number, value in enumerate(values)
    ]
    (violation,) = check(history).violations
    assert core_of(violation) == history[2:4]
