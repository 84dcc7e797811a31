from pathlib import Path

import pytest

from kvstore.store import Engine, Engines
from kvstore.store.heads import RECORD_BYTES_MAX, Heads


@pytest.fixture
def engine(engines: Engines, tmp_path: Path) -> Engine:
    engine = engines.open(str(tmp_path / "t"))
    engine.write({b"ha": b"a", b"hb": b"b", b"hbig": b"x" * (RECORD_BYTES_MAX + 1)})
    return engine


def test_what_is_not_kept_is_looked_up(engine: Engine) -> None:
    heads = Heads(engine, 10)
    assert heads.get(b"ha") == b"a"
    assert heads.get(b"hz") is None
    assert heads.get_all([b"ha", b"hz", b"hb"]) == {b"ha": b"a", b"hz": None, b"hb": b"b"}
    assert heads.get_all([b"hz"]) == {b"hz": None}
    assert heads.get_all([]) == {}


def test_what_is_kept_needs_no_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Heads(engine, 10)
    heads.keep({b"ha": b"new", b"hb": b"b"})
    monkeypatch.setattr(engine, "get", None)
    monkeypatch.setattr(engine, "get_many", None)
    assert heads.get(b"ha") == b"new"
    assert heads.get_all([b"ha", b"hb"]) == {b"ha": b"new", b"hb": b"b"}


def test_a_removed_or_large_head_is_not_kept(engine: Engine) -> None:
    heads = Heads(engine, 10)
    heads.keep({b"ha": b"old", b"hbig": b"small"})
    heads.keep({b"ha": None, b"hbig": b"x" * (RECORD_BYTES_MAX + 1)})
    engine.write({b"ha": None})
    assert heads.get(b"ha") is None
    assert heads.get(b"hbig") == b"x" * (RECORD_BYTES_MAX + 1)


def test_an_aged_head_is_forgotten_when_it_is_removed(engine: Engine) -> None:
    heads = Heads(engine, 4)
    heads.keep({b"ha": b"a", b"hb": b"b", b"hc": b"c"})
    assert b"ha" in heads._old
    heads.keep({b"ha": None})
    engine.write({b"ha": None})
    assert heads.get(b"ha") is None


def test_the_number_kept_is_bounded_and_what_is_used_stays(engine: Engine) -> None:
    heads = Heads(engine, 100)
    for number in range(1000):
        heads.keep({b"h%d" % number: b"x", **heads.get_all([b"ha"])})
    assert len(heads._young) + len(heads._old) <= 102
    assert b"ha" in heads._young or b"ha" in heads._old
