from pathlib import Path

import pytest

from kvstore.store import Engines, StoreLimits
from kvstore.store.deadlines import Deadlines
from kvstore.store.draft import Draft
from kvstore.store.records import Meta


@pytest.fixture
def draft(engines: Engines, tmp_path: Path) -> Draft:
    engine = engines.open(str(tmp_path / "t"))
    engine.write({b"xa": b"engine", b"xb": b"engine", b"xd": b"engine"})
    return Draft(engine, Meta(), StoreLimits(), {}, Deadlines(engine))


def write_over(draft: Draft) -> None:
    draft.pending = {b"xb": None, b"xc": b"pending", b"xe": b"pending"}
    draft.writes = {b"xa": b"writes", b"xe": None, b"xbb": b"writes"}


def test_reads_see_the_newest_layer(draft: Draft) -> None:
    write_over(draft)
    found = {key: draft.get(key) for key in (b"xa", b"xb", b"xc", b"xd", b"xe", b"xf")}
    assert found == {
        b"xa": b"writes",
        b"xb": None,
        b"xc": b"pending",
        b"xd": b"engine",
        b"xe": None,
        b"xf": None,
    }


def test_scans_merge_the_layers_in_order(draft: Draft) -> None:
    write_over(draft)
    assert list(draft.scan(b"x", b"y")) == [
        (b"xa", b"writes"),
        (b"xbb", b"writes"),
        (b"xc", b"pending"),
        (b"xd", b"engine"),
    ]
    assert [key for key, _ in draft.scan(b"xb", b"xd")] == [b"xbb", b"xc"]
    assert [key for key, _ in draft.scan(b"xe", b"y")] == []


def test_a_head_is_looked_up_once(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    get = draft.engine.get
    monkeypatch.setattr(draft.engine, "get", lambda key: asked.append(key) or get(key))
    assert draft.head(b"xa") == b"engine"
    assert draft.head(b"xa") == b"engine"
    assert draft.head(b"absent") is None
    assert draft.head(b"absent") is None
    assert asked == [b"xa", b"absent"]


def test_the_hash_depends_on_what_is_written_not_on_how_entries_are_grouped(draft: Draft) -> None:
    twin = Draft(draft.engine, Meta(), StoreLimits(), {}, Deadlines(draft.engine))
    for one in (draft, twin):
        for index in (1, 2):
            one.writes[b"k%d" % index] = None if index == 2 else b"v"
            one.finish_entry(index, 1)
            if one is twin:
                one.pending = {}
    assert draft.state_hash == twin.state_hash != 0
