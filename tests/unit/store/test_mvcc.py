"""Every op, judged by its results and by what reads see afterwards."""

from typing import Any

import pytest

from kvstore.errors import Fatal
from kvstore.store import commands, mvcc
from kvstore.store.commands import INT64_MAX, INT64_MIN
from tests.support.tablets import MakeTablet, Tablet

ABSENT = None


def item(
    value: bytes, revision: int, create: int, version: int, content_type: str | None = None
) -> list[Any]:
    return [value, revision, create, version, content_type, None, None]


def test_put_creates_then_replaces_and_counts_versions(tablet: Tablet) -> None:
    assert tablet.put(b"a", b"1") == [0, 1, 1, True, None]
    assert tablet.put(b"b", b"2") == [0, 2, 1, True, None]
    assert tablet.put(b"a", b"3") == [0, 3, 2, False, None]
    assert tablet.get(b"a") == item(b"3", 3, 1, 2)
    assert tablet.machine.key_count == 2


def test_an_empty_value_is_a_value(tablet: Tablet) -> None:
    tablet.put(b"a", b"")
    assert tablet.get(b"a") == item(b"", 1, 1, 1)


def test_keys_are_any_bytes(tablet: Tablet) -> None:
    for key in (b"\x00", b"\x00\x00", b"\xff" * 9, b"a\x00\x00b"):
        tablet.put(key, key)
        tablet.put(key, key * 2)
        assert tablet.value(key) == key * 2
        assert tablet.value(key, tablet.machine.revision - 1) == key


def test_put_keeps_content_type_and_the_next_put_drops_it(tablet: Tablet) -> None:
    tablet.put(b"a", b"{}", content_type="application/json")
    assert tablet.get(b"a") == item(b"{}", 1, 1, 1, "application/json")
    tablet.put(b"a", b"x")
    assert tablet.get(b"a") == item(b"x", 2, 1, 2)
    assert tablet.get(b"a", 1) == item(b"{}", 1, 1, 1, "application/json")


def test_put_gives_back_what_it_replaced_when_asked(tablet: Tablet) -> None:
    assert tablet.put(b"a", b"1", prev=True) == [0, 1, 1, True, None]
    assert tablet.put(b"a", b"2", prev=True) == [0, 2, 2, False, item(b"1", 1, 1, 1)]


@pytest.mark.parametrize(
    ("options", "passes_absent", "passes_at_1"),
    [
        ({"if_revision": 1}, False, True),
        ({"if_revision": 0}, True, False),
        ({"if_revision": 7}, False, False),
        ({"if_absent": True}, True, False),
        ({"if_present": True}, False, True),
    ],
)
def test_put_conditions(
    tablet: Tablet, options: dict[str, Any], passes_absent: bool, passes_at_1: bool
) -> None:
    tablet.put(b"there", b"old")
    on_present = tablet.put(b"there", b"new", **options)
    assert on_present[0] == (0 if passes_at_1 else 1)
    if not passes_at_1:
        assert on_present == [1, 1]
        assert tablet.value(b"there") == b"old"
    on_absent = tablet.put(b"gone", b"new", **options)
    assert on_absent[0] == (0 if passes_absent else 1)
    if not passes_absent:
        assert on_absent == [1, 0]
        assert tablet.value(b"gone") is ABSENT


def test_a_refused_write_takes_no_revision(tablet: Tablet) -> None:
    tablet.put(b"a", b"1")
    tablet.put(b"a", b"2", if_absent=True)
    assert tablet.machine.revision == 1


def test_delete_answers_whether_there_was_a_key(tablet: Tablet) -> None:
    tablet.put(b"a", b"1")
    assert tablet.run(commands.delete(b"a", prev=True)) == [[0, 2, 1, item(b"1", 1, 1, 1)]]
    assert tablet.value(b"a") is ABSENT
    assert tablet.run(commands.delete(b"a")) == [[0, 2, 0, None]], "nothing changed, no revision taken"
    assert tablet.machine.key_count == 0


def test_delete_conditions(tablet: Tablet) -> None:
    tablet.put(b"a", b"1")
    assert tablet.run(commands.delete(b"a", if_revision=9)) == [[1, 1]]
    assert tablet.run(commands.delete(b"x", if_revision=9)) == [[1, 0]]
    assert tablet.run(commands.delete(b"x", if_present=True)) == [[1, 0]]
    assert tablet.run(commands.delete(b"a", if_revision=1)) == [[0, 2, 1, None]]


def test_a_key_put_again_after_deletion_starts_anew(tablet: Tablet) -> None:
    tablet.put(b"a", b"1")
    tablet.run(commands.delete(b"a"))
    assert tablet.put(b"a", b"2") == [0, 3, 1, True, None]
    assert tablet.get(b"a") == item(b"2", 3, 3, 1)


def test_ops_of_one_command_see_each_other(tablet: Tablet) -> None:
    results = tablet.run(
        commands.put(b"a", b"1"),
        commands.put(b"a", b"2", prev=True),
        commands.incr(b"a", 5),
        commands.delete(b"a", prev=True),
        commands.put(b"a", b"3", if_absent=True),
        commands.put(b"a", b"4"),
    )
    assert results == [
        [0, 1, 1, True, None],
        [0, 2, 2, False, item(b"1", 1, 1, 1)],
        [0, 3, 7],
        [0, 4, 1, item(b"7", 3, 1, 3)],
        [0, 5, 1, True, None],
        [0, 6, 2, False, None],
    ]
    assert [tablet.value(b"a", revision) for revision in range(7)] == [
        ABSENT,
        b"1",
        b"2",
        b"7",
        ABSENT,
        b"3",
        b"4",
    ]


def test_entries_of_one_apply_see_each_other(tablet: Tablet) -> None:
    first = tablet.entry([commands.encode(None, [commands.put(b"a", b"1")])])
    second = tablet.entry([commands.encode(None, [commands.incr(b"a"), commands.delete_range(b"", None)])])
    results = tablet.machine.apply([first, second])
    assert results[1][0].results == [[0, 2, 2], [0, 3, 1, False]]


def test_incr_counts_from_zero_and_keeps_the_content_type(tablet: Tablet) -> None:
    assert tablet.run(commands.incr(b"n", 5)) == [[0, 1, 5]]
    assert tablet.run(commands.incr(b"n", -7)) == [[0, 2, -2]]
    assert tablet.value(b"n") == b"-2"
    tablet.put(b"typed", b"10", content_type="text/plain")
    tablet.run(commands.incr(b"typed"))
    assert tablet.get(b"typed") == item(b"11", 4, 3, 2, "text/plain")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x",
        b"1.0",
        b" 1",
        b"1 ",
        b"+1",
        b"01",
        b"-0",
        b"--1",
        b"1_0",
        b"9" * 25,
        b"9223372036854775808",
        b"\xb2",
    ],
)
def test_incr_refuses_what_is_no_decimal_64_bit_integer(tablet: Tablet, value: bytes) -> None:
    tablet.put(b"n", value)
    assert tablet.run(commands.incr(b"n")) == [[2]]
    assert tablet.value(b"n") == value


def test_incr_stays_within_64_bits_and_its_bounds(tablet: Tablet) -> None:
    tablet.put(b"top", b"%d" % INT64_MAX)
    assert tablet.run(commands.incr(b"top", 1)) == [[3, INT64_MAX]]
    assert tablet.run(commands.incr(b"top", -1)) == [[0, 2, INT64_MAX - 1]]
    tablet.put(b"low", b"%d" % INT64_MIN)
    assert tablet.run(commands.incr(b"low", -1)) == [[3, INT64_MIN]]
    assert tablet.run(commands.incr(b"n", 5, 0, 4)) == [[3, 0]]
    assert tablet.run(commands.incr(b"n", 4, 0, 4)) == [[0, 4, 4]]
    assert tablet.run(commands.incr(b"n", -5, 0, 4)) == [[3, 4]]


def test_delete_range_takes_one_revision_for_all_its_keys(tablet: Tablet) -> None:
    for key in (b"a", b"b", b"ba", b"c"):
        tablet.put(key, key)
    assert tablet.run(commands.delete_range(b"b", b"c")) == [[0, 5, 2, False]]
    assert [found[0] for found in tablet.scan()[0]] == [b"a", b"c"]
    assert [found[0] for found in tablet.scan(revision=4)[0]] == [b"a", b"b", b"ba", b"c"]
    assert tablet.run(commands.delete_range(b"x", None)) == [[0, 5, 0, False]]
    assert tablet.run(commands.delete_range(b"", None)) == [[0, 6, 2, False]]
    assert tablet.machine.key_count == 0


def test_delete_range_sees_puts_and_deletes_of_its_own_entry(tablet: Tablet) -> None:
    tablet.put(b"b", b"old")
    tablet.put(b"d", b"old")
    results = tablet.run(
        commands.put(b"a", b"1"),
        commands.delete(b"b"),
        commands.put(b"c", b"1"),
        commands.delete_range(b"", None),
    )
    assert results[-1] == [0, 6, 3, False]
    assert tablet.scan()[0] == []


def test_delete_range_with_a_limit_says_that_there_is_more(tablet: Tablet) -> None:
    tablet.run(*(commands.put(b"%03d" % number, b"") for number in range(5)))
    assert tablet.run(commands.delete_range(b"", None, limit=3)) == [[0, 6, 3, True]]
    assert tablet.run(commands.delete_range(b"", None, limit=3)) == [[0, 7, 2, False]]


def test_delete_range_is_bounded_without_a_limit(tablet: Tablet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mvcc, "RANGE_KEYS_MAX", 10)
    tablet.run(*(commands.put(b"%03d" % number, b"") for number in range(15)))
    assert tablet.run(commands.delete_range(b"", None)) == [[0, 16, 10, True]]
    monkeypatch.setattr(mvcc, "RANGE_KEYS_MAX", 10_000)
    monkeypatch.setattr(mvcc, "RANGE_BYTES_MAX", 1_000)
    tablet.run(*(commands.put(b"%03d" % number, b"x" * 400) for number in range(6)))
    assert tablet.run(commands.delete_range(b"", None))[0][3] is True


def test_plain_puts_do_what_puts_with_options_do(make_tablet: MakeTablet) -> None:
    """The hot loop is a second form of the same rule."""
    plain, spelled = make_tablet(), make_tablet()
    for number in range(200):
        key = b"k%d" % (number % 7)
        value = b"v" * (number * 20 % 1700)
        fast = plain.run(
            [commands.PUT, key, value],
            [
                commands.PUT,
                key,
                b"",
            ],
        )
        slow = spelled.run([commands.PUT, key, value, None], [commands.PUT, key, b"", {}])
        assert fast == slow
    assert plain.pairs() == spelled.pairs()
    assert plain.machine.state_hash == spelled.machine.state_hash


def test_large_old_versions_are_kept_apart_and_found(tablet: Tablet) -> None:
    values = [bytes([65 + number]) * 3000 for number in range(20)]
    for value in values:
        tablet.put(b"a", value)
    assert [tablet.value(b"a", revision) for revision in range(1, 21)] == values


def test_an_unknown_op_stops_the_replica(tablet: Tablet) -> None:
    with pytest.raises(Fatal, match="op 99"):
        tablet.run([99, b"a"])
