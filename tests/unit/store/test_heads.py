from pathlib import Path

import pytest

from kvstore.store import Engine, Engines
from kvstore.store.heads import RECORD_BYTES_MAX, HeadBudget, Heads

LARGE = b"x" * (RECORD_BYTES_MAX + 1)


@pytest.fixture
def engine(engines: Engines, tmp_path: Path) -> Engine:
    engine = engines.open(str(tmp_path / "t"))
    engine.write({b"ha": b"a", b"hb": b"b", b"hbig": LARGE})
    return engine


def kept(heads: Heads) -> set[bytes]:
    return {*heads.young, *heads._old}


def test_what_is_not_kept_is_looked_up(engine: Engine) -> None:
    heads = Heads(engine, HeadBudget(10))
    assert heads.get(b"ha") == b"a"
    assert heads.get(b"hz") is None
    assert heads.get_all([b"ha", b"hz", b"hb", b"ha"]) == [b"a", None, b"b", b"a"]
    assert heads.get_all([]) == []
    assert not kept(heads)


def test_what_is_kept_needs_no_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Heads(engine, HeadBudget(10))
    heads.fetch([b"ha", b"hz"])
    heads.young[b"hb"] = b"new"
    heads.settle(3, [])
    monkeypatch.setattr(engine, "get", None)
    monkeypatch.setattr(engine, "get_many", None)
    for _ in range(2):
        assert [heads.get(key) for key in (b"ha", b"hb", b"hz")] == [b"a", b"new", None]
        assert heads.get_all([b"ha", b"hb", b"hz"]) == [b"a", b"new", None]
        heads.age()


def test_an_aged_record_becomes_young_by_use_and_a_newer_one_wins(engine: Engine) -> None:
    heads = Heads(engine, HeadBudget(10))
    heads.young.update({b"ha": b"1", b"hb": b"2", b"hc": b"3"})
    heads.age()
    heads.fetch([b"ha"])
    assert heads.find(b"hb") == b"2"
    heads.young[b"hc"] = None
    assert heads.get(b"hc") is None
    heads.age()
    assert [heads.get(key) for key in (b"ha", b"hb", b"hc")] == [b"1", b"2", None]


def test_a_large_head_is_not_kept_longer_than_a_draft(engine: Engine) -> None:
    heads = Heads(engine, HeadBudget(10))
    heads.young.update({b"ha": b"a", b"hb": b"b"})
    heads.age()
    assert heads.find(b"hbig") == LARGE
    heads.young[b"ha"] = LARGE
    heads.settle(2, [b"ha"])
    assert kept(heads) == {b"hb"}
    heads.fetch([b"ha", b"hbig"])
    heads.settle(2, [])
    assert kept(heads) == {b"ha", b"hb"}


def test_nothing_of_a_failed_draft_is_kept(engine: Engine) -> None:
    budget = HeadBudget(10)
    heads = Heads(engine, budget)
    heads.fetch([b"ha"])
    heads.settle(1, [])
    heads.young[b"ha"] = b"never written"
    heads.clear()
    assert heads.get(b"ha") == b"a"
    assert budget._young_count == 0


def test_many_misses_ask_for_a_look_up_beforehand(engine: Engine) -> None:
    heads = Heads(engine, HeadBudget(1000))
    assert heads.is_cold
    heads.fetch([b"h%d" % number for number in range(100)])
    heads.settle(100, [])
    assert heads.is_cold
    heads.find(b"hother")
    heads.settle(100, [])
    assert not heads.is_cold


def test_the_number_kept_is_bounded_over_all_that_share_and_what_is_used_stays(engine: Engine) -> None:
    budget = HeadBudget(100)
    busy, quiet = Heads(engine, budget), Heads(engine, budget)
    quiet.fetch([b"h%d" % number for number in range(30)])
    quiet.settle(30, [])
    for number in range(1000):
        busy.fetch([b"h%d" % number, b"ha"])
        busy.settle(2, [])
        assert len(kept(busy)) + len(kept(quiet)) <= 102
        assert b"ha" in kept(busy)
    assert not kept(quiet)


def test_what_is_given_up_leaves_the_budget_to_others(engine: Engine) -> None:
    budget = HeadBudget(8)
    heads = Heads(engine, budget)
    heads.fetch([b"ha", b"hb"])
    heads.settle(2, [])
    heads.fetch([b"hbig"])
    heads.settle(1, [])
    assert budget._young_count == 2
