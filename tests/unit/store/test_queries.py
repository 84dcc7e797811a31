"""Reads at the newest and at older revisions, pages, counts, the change log."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.errors import Compacted, InvalidArgument, RevisionInFuture
from kvstore.store import StoreLimits, commands, queries
from tests.support.tablets import MakeTablet, Tablet


def keys_of(answer: list[Any]) -> list[bytes]:
    return [found[0] for found in answer[0]]


def fill(tablet: Tablet, keys: str) -> None:
    tablet.run(*(commands.put(key.encode(), key.encode() * 2) for key in keys))


def test_scan_is_ordered_both_ways_and_half_open(tablet: Tablet) -> None:
    fill(tablet, "dbace")
    assert keys_of(tablet.scan(b"b", b"e")) == [b"b", b"c", b"d"]
    assert keys_of(tablet.scan(b"b", b"e", reverse=True)) == [b"d", b"c", b"b"]
    assert tablet.scan()[0][0] == [b"a", b"aa", 3, 3, 1, None, None, None]


def test_scan_answers_more_revision_and_last_key(tablet: Tablet) -> None:
    fill(tablet, "abc")
    assert tablet.scan(limit=2)[1:] == [True, 3, b"b"]
    assert tablet.scan(limit=3)[1:] == [False, 3, b"c"]
    assert tablet.scan(b"x")[1:] == [False, 3, None]


def test_scan_stops_at_its_bytes_but_gives_at_least_one_item(tablet: Tablet) -> None:
    fill(tablet, "abcd")
    assert keys_of(tablet.scan(bytes=1)) == [b"a"]
    assert keys_of(tablet.scan(bytes=4)) == [b"a", b"b"]
    assert keys_of(tablet.scan(bytes=4, keys_only=True)) == [b"a", b"b", b"c", b"d"]


def test_keys_only_leaves_the_values_out(tablet: Tablet) -> None:
    fill(tablet, "a")
    assert tablet.scan(keys_only=True)[0] == [[b"a", None, 1, 1, 1, None, None, None]]


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_of_a_scan_show_one_snapshot(tablet: Tablet, reverse: bool) -> None:
    fill(tablet, "abcdef")
    expected = tablet.scan(reverse=reverse)[0]
    page = tablet.scan(limit=2, reverse=reverse)
    snapshot = page[2]
    items = page[0]
    while page[1]:
        tablet.run(
            commands.put(b"c", b"new"),
            commands.put(b"bb", b"new"),
            commands.delete(b"d"),
            commands.delete(b"e"),
            commands.put(b"e", b"again"),
        )
        page = tablet.scan(limit=2, reverse=reverse, after=page[3], revision=snapshot)
        items += page[0]
    assert items == expected


def test_count_counts_and_pages(tablet: Tablet) -> None:
    fill(tablet, "abcdef")
    assert tablet.machine.query(["count", b"b", b"e", {}]) == [3, False, 6, b"d"]
    assert tablet.machine.query(["count", b"", None, {"limit": 4}]) == [4, True, 6, b"d"]
    assert tablet.machine.query(["count", b"", None, {"after": b"d"}]) == [2, False, 6, b"f"]
    tablet.run(commands.delete_range(b"", None))
    assert tablet.machine.query(["count", b"", None, {}])[0] == 0
    assert tablet.machine.query(["count", b"", None, {"revision": 6}])[0] == 6


def test_a_key_with_a_long_past_is_read_at_every_revision_of_it(tablet: Tablet) -> None:
    for number in range(1, 101):
        tablet.put(b"hot", b"%d" % number)
    assert [tablet.value(b"hot", revision) for revision in range(1, 101)] == [
        b"%d" % number for number in range(1, 101)
    ]


def test_a_scan_passes_keys_with_many_marks(tablet: Tablet) -> None:
    for _ in range(20):
        fill(tablet, "ab")
        tablet.run(commands.delete_range(b"", None))
    fill(tablet, "c")
    for reverse in (False, True):
        found = tablet.scan(revision=2, reverse=reverse)
        assert sorted(keys_of(found)) == [b"a", b"b"]
        assert keys_of(tablet.scan(revision=3, reverse=reverse)) == []


def test_a_read_outside_the_history_says_which_way(make_tablet: MakeTablet) -> None:
    tablet = make_tablet(limits=StoreLimits(history_revisions=2))
    for number in range(10):
        tablet.put(b"a", b"%d" % number)
    oldest = tablet.machine.compacted
    assert oldest > 1
    with pytest.raises(Compacted) as compacted:
        tablet.get(b"a", oldest - 1)
    assert compacted.value.fields["compacted"] == oldest
    assert tablet.value(b"a", oldest) == b"%d" % (oldest - 1)
    for query in (["scan", b"", None, {"revision": oldest - 1}], ["count", b"", None, {"revision": 0}]):
        with pytest.raises(Compacted):
            tablet.machine.query(query)
    with pytest.raises(RevisionInFuture):
        tablet.get(b"a", 11)
    with pytest.raises(RevisionInFuture):
        tablet.scan(revision=11)


def test_gets_answers_in_order_with_gaps_and_repeats(tablet: Tablet) -> None:
    fill(tablet, "ab")
    answers = tablet.machine.query(["gets", [b"b", b"x", b"a", b"b"]])
    assert [one and one[0] for one in answers] == [b"bb", None, b"aa", b"bb"]
    assert answers == queries.run(
        tablet.machine._engine, tablet.machine._meta, ["gets", [b"b", b"x", b"a", b"b"]]
    )
    assert tablet.machine.query(["gets", []]) == []


def test_an_unknown_query_is_refused(tablet: Tablet) -> None:
    with pytest.raises(InvalidArgument):
        tablet.machine.query(["drop"])


def test_changes_are_given_in_order_with_their_versions(tablet: Tablet) -> None:
    fill(tablet, "ab")
    tablet.put(b"a", b"new")
    tablet.run(commands.delete_range(b"", None))
    events, following = tablet.machine.query(["changes", 1, {}])
    assert [(event[0], event[1], event[2], event[3] and event[3][0]) for event in events] == [
        (1, 0, b"a", b"aa"),
        (2, 0, b"b", b"bb"),
        (3, 0, b"a", b"new"),
        (4, 1, b"a", None),
        (4, 1, b"b", None),
    ]
    assert following == 5
    assert tablet.machine.query(["changes", 5, {}]) == [[], 5]


def test_pages_of_changes_never_split_a_revision(tablet: Tablet) -> None:
    fill(tablet, "abc")
    tablet.run(commands.delete_range(b"", None))
    tablet.put(b"z", b"")
    seen, position = [], 1
    while position <= tablet.machine.revision:
        events, position = tablet.machine.query(["changes", position, {"limit": 1}])
        seen.append([event[0] for event in events])
    assert seen == [[1], [2], [3], [4, 4, 4], [5]]


def test_pitfall_24_changes_from_the_compaction_point_include_its_deletion(make_tablet: MakeTablet) -> None:
    """The oldest readable revision may be a deletion: it must still be told, and one below must say so."""
    tablet = make_tablet(limits=StoreLimits(history_revisions=0))
    tablet.put(b"a", b"1")
    tablet.put(b"b", b"1")
    tablet.run(commands.delete(b"a"))
    oldest = tablet.machine.compacted
    assert oldest == 3
    events, _ = tablet.machine.query(["changes", oldest, {}])
    assert events == [[3, 1, b"a", None, None, 0, 0]]
    with pytest.raises(Compacted):
        tablet.machine.query(["changes", oldest - 1, {}])
    assert tablet.value(b"a", oldest) is None
    assert keys_of(tablet.scan(revision=oldest)) == [b"b"]


def test_info_counts(tablet: Tablet) -> None:
    fill(tablet, "abc")
    info = tablet.machine.query(["info"])
    assert info["key_count"] == 3
    assert info["revision"] == 3
    assert info["applied"] == tablet.index


key = st.sampled_from([b"a", b"a\x00", b"a\x00\xff", b"ab", b"b", b"\x00", b"\xff\xff"])
op = st.one_of(
    st.builds(lambda k, v: commands.put(k, v), key, st.binary(max_size=4)),
    st.builds(commands.delete, key),
    st.builds(lambda s, e: commands.delete_range(min(s, e), max(s, e)), key, key),
)


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(st.lists(op, min_size=1, max_size=6), min_size=1, max_size=25), data=st.data())
def test_scans_agree_with_a_model_of_every_revision(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[commands.Op]], data: st.DataObject
) -> None:
    from tests.support.tablets import make_engines

    tablet = Tablet(make_engines("memory"), str(tmp_path_factory.mktemp("scan")))
    states: dict[int, dict[bytes, bytes]] = {0: {}}
    for ops in batches:
        for one in ops:
            tablet.run(one)
            states[tablet.machine.revision] = {found[0]: found[1] for found in tablet.scan()[0]}
    revision = data.draw(st.sampled_from(sorted(states)))
    start, end = data.draw(key), data.draw(st.none() | key)
    reverse = data.draw(st.booleans())
    expected = sorted(
        (k for k in states[revision] if k >= start and (end is None or k < end)), reverse=reverse
    )
    found = tablet.scan(start, end, revision=revision, reverse=reverse)
    assert [(entry[0], entry[1]) for entry in found[0]] == [(k, states[revision][k]) for k in expected]
    for k, value in states[revision].items():
        assert tablet.value(k, revision) == value
