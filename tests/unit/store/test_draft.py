from pathlib import Path

import pytest

from kvstore.store import Engines, StoreLimits
from kvstore.store.deadlines import Deadlines
from kvstore.store.draft import Draft
from kvstore.store.engine import Engine
from kvstore.store.intents import Intents
from kvstore.store.records import Meta
from kvstore.store.sessions import Sessions


def _draft_on(engine: Engine) -> Draft:
    return Draft(engine, Meta(), StoreLimits(), {}, Deadlines(engine), Intents(engine), Sessions(engine))


@pytest.fixture
def draft(engines: Engines, tmp_path: Path) -> Draft:
    engine = engines.open(str(tmp_path / "t"))
    engine.write({b"za": b"engine", b"zb": b"engine", b"zd": b"engine"})
    return _draft_on(engine)


def write_over(draft: Draft) -> None:
    draft.pending = {b"zb": None, b"zc": b"pending", b"ze": b"pending"}
    draft.writes = {b"za": b"writes", b"ze": None, b"zbb": b"writes"}


def test_reads_see_the_newest_layer(draft: Draft) -> None:
    write_over(draft)
    found = {key: draft.get(key) for key in (b"za", b"zb", b"zc", b"zd", b"ze", b"zf")}
    assert found == {
        b"za": b"writes",
        b"zb": None,
        b"zc": b"pending",
        b"zd": b"engine",
        b"ze": None,
        b"zf": None,
    }


def test_scans_merge_the_layers_in_order(draft: Draft) -> None:
    write_over(draft)
    assert list(draft.scan(b"z", b"{")) == [
        (b"za", b"writes"),
        (b"zbb", b"writes"),
        (b"zc", b"pending"),
        (b"zd", b"engine"),
    ]
    assert [key for key, _ in draft.scan(b"zb", b"zd")] == [b"zbb", b"zc"]
    assert [key for key, _ in draft.scan(b"ze", b"{")] == []


def test_a_head_is_looked_up_once(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    get = draft.engine.get
    monkeypatch.setattr(draft.engine, "get", lambda key: asked.append(key) or get(key))
    assert draft.head(b"za") == b"engine"
    assert draft.head(b"za") == b"engine"
    assert draft.head(b"absent") is None
    assert draft.head(b"absent") is None
    assert asked == [b"za", b"absent"]


def test_the_hash_depends_on_what_is_written_not_on_how_entries_are_grouped(draft: Draft) -> None:
    twin = _draft_on(draft.engine)
    for one in (draft, twin):
        for index in (1, 2):
            one.writes[b"k%d" % index] = None if index == 2 else b"v"
            one.finish_entry(index, 1)
            if one is twin:
                one.pending = {}
    assert draft.state_hash == twin.state_hash != 0
