"""Who is found for a key, and what the log's reader is asked for."""

from __future__ import annotations

from random import Random
from typing import Any, cast

from kvstore.node.watch.interests import FILTERED_MAX, Interest, Interests
from kvstore.node.watch.watcher import Part


class FakeWatcher:
    def __init__(self, interest: Interest, wants_prev: bool) -> None:
        self.interest = interest
        self.wants_prev = wants_prev


class FakePart:
    def __init__(self, interest: Interest, wants_prev: bool = False) -> None:
        self.watcher = FakeWatcher(interest, wants_prev)


def part(key: bytes | None = None, prefix: bytes = b"", wants_prev: bool = False) -> Part:
    return cast(Part, FakePart(Interest(key, prefix), wants_prev))


def test_everybody_who_wants_a_key_is_found_once() -> None:
    interests = Interests()
    parts = {
        name: part(**options)
        for name, options in cast(
            dict[str, dict[str, Any]],
            {
                "all": {},
                "key": {"key": b"ab"},
                "same key": {"key": b"ab"},
                "prefix": {"prefix": b"a"},
                "longer": {"prefix": b"abc"},
                "other": {"prefix": b"b"},
            },
        ).items()
    }
    for each in parts.values():
        interests.add(each)
    names = {id(each): name for name, each in parts.items()}
    assert sorted(names[id(each)] for each in interests.of(b"ab")) == ["all", "key", "prefix", "same key"]
    assert sorted(names[id(each)] for each in interests.of(b"abcd")) == ["all", "longer", "prefix"]
    assert sorted(names[id(each)] for each in interests.of(b"")) == ["all"]


def test_any_set_of_interests_finds_what_comparing_finds() -> None:
    dice = Random(7)
    interests = Interests()
    held: list[Part] = []
    for _ in range(300):
        if held and dice.random() < 0.4:
            interests.remove(held.pop(dice.randrange(len(held))))
        else:
            name = bytes(dice.choices(b"ab", k=dice.randint(0, 3)))
            new = part(key=name) if name and dice.random() < 0.5 else part(prefix=name)
            held.append(new)
            interests.add(new)
        key = bytes(dice.choices(b"ab", k=dice.randint(1, 4)))
        wanted = [
            each
            for each in held
            if (each.watcher.interest.key == key if each.watcher.interest.key else False)
            or (each.watcher.interest.key is None and key.startswith(each.watcher.interest.prefix))
        ]
        assert sorted(map(id, interests.of(key))) == sorted(map(id, wanted))
    for each in held:
        interests.remove(each)
    assert interests.of(b"a") == []
    assert not interests._exact
    assert not interests._prefixes


def test_few_interests_are_named_to_the_reader_and_many_are_not() -> None:
    interests = Interests()
    interests.add(part(key=b"b"))
    interests.add(part(key=b"a"))
    interests.add(part(prefix=b"x"))
    assert interests.options() == {"keys": [b"a", b"b"], "prefixes": [b"x"]}
    for number in range(FILTERED_MAX):
        interests.add(part(key=b"%d" % number))
    assert interests.options() == {}


def test_a_watch_of_everything_leaves_nothing_out() -> None:
    interests = Interests()
    whole = part()
    interests.add(part(key=b"a"))
    interests.add(whole)
    assert interests.options() == {}
    interests.remove(whole)
    assert interests.options() == {"keys": [b"a"], "prefixes": []}


def test_prev_is_asked_for_while_somebody_wants_it() -> None:
    interests = Interests()
    wanting = part(prefix=b"", wants_prev=True)
    interests.add(part(prefix=b""))
    interests.add(wanting)
    assert interests.options() == {"prev": True}
    interests.remove(wanting)
    assert interests.options() == {}
