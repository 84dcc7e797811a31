"""Histories survive the disk, and what never came back stays open."""

from pathlib import Path

import pytest

from chaos.history import History, Operation, load, save


def test_a_history_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    first = history.invoke(1, "put", "k", {"value": "a"}, 0.5, node="n1")
    second = history.invoke(2, "get", "k", None, 0.6)
    history.complete(second, "ok", 0.7, {"value": "a", "revision": 3})
    history.complete(first, "unknown", 0.8, error="outcome-unknown")
    history.close()
    assert load(path) == [second, first]
    assert first.returned is None


def test_operations_that_are_open_at_the_end_are_written_as_unknown(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    history.invoke(1, "put", "k", {"value": "a"}, 0.5)
    history.close()
    (operation,) = load(path)
    assert operation.outcome == "unknown"
    assert operation.error == "open at the end"


def test_a_torn_last_line_is_ignored_and_damage_before_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    save(path, [Operation(1, "get", "k", None, 0, 1, "ok")] * 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert len(load(path)) == 1
    path.write_bytes(whole[:10] + whole[15:])
    with pytest.raises(ValueError, match=r"."):
        load(path)
