from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.errors import InvalidArgument
from kvstore.store import StoreLimits, commands
from kvstore.store.commands import Identity
from tests.support.tablets import Tablet


def test_a_payload_is_one_array_of_clock_and_commands() -> None:
    for count in (0, 1, 14, 15, 16, 300, 70_000):
        packed = [commands.encode(None, [commands.put(b"k", b"v")])] * count
        assert msgpack.unpackb(commands.payload(123_456_789, packed)) == (
            [123_456_789] + [[None, [1, b"k", b"v"]]] * count
        )


def test_a_command_is_read_back() -> None:
    identity = Identity(b"s", 1, 2, 3, 4, b"h", b"p")
    ops = [commands.put(b"a", b"b", content_type="t", if_absent=True), commands.incr(b"n", 2, 0, 9)]
    assert commands.decode(commands.encode(identity, ops)) == (identity, ops)
    assert commands.decode(commands.encode([b"s", 1, 0, 0, None, None], [])) == (Identity(b"s", 1), [])
    assert commands.decode(commands.encode(None, ops)) == (None, ops)


def test_ops_without_options_are_short() -> None:
    assert commands.put(b"a", b"b") == [1, b"a", b"b"]
    assert commands.delete(b"a") == [2, b"a"]
    assert commands.delete_range(b"a", None) == [4, b"a", None]


def test_only_deletions_do_not_grow_a_tablet() -> None:
    assert not commands.grows(
        commands.encode(None, [commands.delete(b"a"), commands.delete_range(b"a", None)])
    )
    assert commands.grows(commands.encode(None, [commands.delete(b"a"), commands.put(b"a", b"")]))
    assert commands.grows(commands.encode(None, [commands.incr(b"a")]))


GOOD: list[list[Any]] = [
    commands.put(b"a", b""),
    commands.put(b"a", b"", if_revision=0, if_present=True, prev=True, content_type="x"),
    [1, b"a", b"", None],
    commands.delete(b"a"),
    commands.delete(b"a", if_revision=3, prev=True),
    commands.incr(b"a", -(1 << 63), None, (1 << 63) - 1),
    commands.delete_range(b"", b"\xff", limit=5),
    commands.set_limits(StoreLimits()),
]
BAD: list[Any] = [
    None,
    [],
    [99],
    ["1", b"a", b""],
    [1],
    [1, b"a"],
    [1, b"", b"v"],
    [1, "a", b"v"],
    [1, b"a", "v"],
    [1, b"a", b"v", {}, 1],
    [1, b"a", b"v", []],
    [1, b"a", b"v", {"ttl_ms": "x"}],
    [1, b"a", b"v", {"if_revision": -1}],
    [1, b"a", b"v", {"if_revision": True}],
    [1, b"a", b"v", {"prev": 1}],
    [1, b"a", b"v", {"content_type": "x" * 1025}],
    [1, b"a", b"v", {"limit": 1}],
    [2, b""],
    [2, b"a", {"if_absent": True}],
    [3, b"a", 1],
    [3, b"a", 1.5, None, None],
    [3, b"a", True, None, None],
    [3, b"a", 1 << 63, None, None],
    [3, b"a", 1, "0", None],
    [4, b"a"],
    [4, None, b"a"],
    [4, b"a", None, {"limit": -1}],
    [5],
    [5, [0] * 7],
    [5, [-1]],
    [5, "x"],
]


@pytest.mark.parametrize("op", GOOD)
def test_what_apply_can_carry_out_passes(tablet: Tablet, op: Any) -> None:
    commands.check(commands.encode(None, [op]))
    tablet.run(op)


@pytest.mark.parametrize("op", BAD)
def test_what_apply_could_not_carry_out_is_refused(op: Any) -> None:
    with pytest.raises(InvalidArgument):
        commands.check(commands.encode(None, [op]))


@pytest.mark.parametrize(
    "identity",
    [
        5,
        [],
        [b"s"],
        [b"", 1, 0, 0],
        [b"s" * 81, 1, 0, 0],
        ["s", 1, 0, 0],
        [b"s", -1, 0, 0],
        [b"s", 1, 0, 1 << 63],
        [b"s", 1, 0, 0, -5],
        [b"s", 1, 0, 0, None, "h"],
        [b"s", 1, 0, 0, None, None, b"p" * 65],
    ],
)
def test_a_bad_identity_is_refused(identity: Any) -> None:
    with pytest.raises(InvalidArgument):
        commands.check(msgpack.packb([identity, [1, b"a", b""]]))


@pytest.mark.parametrize(
    "command", [b"", b"\xc1", msgpack.packb(5), msgpack.packb([]), msgpack.packb([None])]
)
def test_what_is_no_command_is_refused(command: bytes) -> None:
    with pytest.raises(InvalidArgument):
        commands.check(command)


@given(st.binary(max_size=30))
def test_no_bytes_make_the_check_fail_in_another_way(command: bytes) -> None:
    try:
        commands.check(command)
    except InvalidArgument:
        return
    commands.decode(command)
