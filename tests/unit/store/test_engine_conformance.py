"""What `Engine` promises, on every implementation."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.store import Engine, Engines


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "tablet")


@pytest.fixture
def engine(engines: Engines, directory: str) -> Iterator[Engine]:
    opened = engines.open(directory)
    yield opened
    opened.close()


def fill(engine: Engine, keys: str) -> None:
    engine.write({key.encode(): key.encode() * 2 for key in keys})


def joined(pairs: Iterator[tuple[bytes, bytes]]) -> str:
    return b"".join(key for key, _ in pairs).decode()


def test_a_new_tablet_holds_nothing(engine: Engine) -> None:
    assert engine.get(b"a") is None
    assert list(engine.scan(b"", b"\xff")) == []


def test_a_written_pair_is_read_back_at_once(engine: Engine) -> None:
    engine.write({b"a": b"1", b"empty": b"", b"\x00\xff": b"\x00"})
    assert engine.get(b"a") == b"1"
    assert engine.get(b"empty") == b""
    assert engine.get(b"\x00\xff") == b"\x00"


def test_none_removes_a_key_and_an_absent_one_is_fine(engine: Engine) -> None:
    fill(engine, "ab")
    engine.write({b"a": None, b"zz": None})
    assert engine.get(b"a") is None
    assert joined(engine.scan(b"", b"\xff")) == "b"


def test_get_many_answers_in_order_with_gaps_and_repeats(engine: Engine) -> None:
    fill(engine, "abc")
    assert list(engine.get_many([b"c", b"x", b"a", b"c"])) == [b"cc", None, b"aa", b"cc"]
    assert list(engine.get_many([])) == []


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (b"", b"\xff", "abcdef"),
        (b"b", b"e", "bcd"),
        (b"bb", b"e", "cd"),
        (b"c", b"c", ""),
        (b"d", b"b", ""),
        (b"x", b"z", ""),
        (b"", b"b", "a"),
    ],
)
def test_scan_gives_the_half_open_range_both_ways(
    engine: Engine, start: bytes, end: bytes, expected: str, flushed: bool
) -> None:
    fill(engine, "fbdace")
    if flushed:
        engine.flush()
    assert joined(engine.scan(start, end)) == expected
    assert joined(engine.scan(start, end, reverse=True)) == expected[::-1]


def test_scan_orders_keys_as_unsigned_bytes(engine: Engine) -> None:
    keys = [b"\x00", b"\x00\x00", b"\x00\xff", b"\x7f", b"\x80", b"\xfe", b"a", b"a\x00"]
    engine.write(dict.fromkeys(keys, b""))
    assert [key for key, _ in engine.scan(b"", b"\xff")] == sorted(keys)


def test_a_scan_may_be_left_early_and_another_begun(engine: Engine) -> None:
    fill(engine, "abc")
    first = engine.scan(b"", b"\xff")
    assert next(first) == (b"a", b"aa")
    assert joined(engine.scan(b"b", b"\xff")) == "bc"
    assert next(first) == (b"b", b"bb")


def test_what_was_flushed_is_there_after_reopening(engines: Engines, directory: str) -> None:
    engine = engines.open(directory)
    fill(engine, "ab")
    engine.flush()
    engine.close()
    again = engines.open(directory)
    assert joined(again.scan(b"", b"\xff")) == "ab"
    again.close()


def test_what_was_not_flushed_is_gone_after_a_crash(
    engines: Engines, engine: Engine, directory: str, tmp_path: Path
) -> None:
    """The engine must have no log of its own: the Raft log is the only one that is paid for."""
    fill(engine, "a")
    engine.flush()
    fill(engine, "b")
    crashed = str(tmp_path / "crashed")
    shutil.copytree(directory, crashed)
    again = engines.open(crashed)
    assert joined(again.scan(b"", b"\xff")) == "a"
    again.close()


def test_a_checkpoint_holds_what_was_written_but_not_flushed(
    engines: Engines, engine: Engine, tmp_path: Path
) -> None:
    fill(engine, "ab")
    copy = str(tmp_path / "copy")
    engine.checkpoint(copy)
    assert engines.read(copy, [b"a", b"b", b"c"]) == [b"aa", b"bb", None]


def test_a_checkpoint_and_its_source_go_their_own_ways(
    engines: Engines, engine: Engine, tmp_path: Path
) -> None:
    fill(engine, "a")
    engine.checkpoint(str(tmp_path / "copy"))
    fill(engine, "b")
    copy = engines.open(str(tmp_path / "copy"))
    copy.write({b"c": b"cc"})
    assert joined(copy.scan(b"", b"\xff")) == "ac"
    assert joined(engine.scan(b"", b"\xff")) == "ab"
    copy.close()


def test_reading_a_checkpoint_does_not_change_its_files(
    engines: Engines, engine: Engine, tmp_path: Path
) -> None:
    """A snapshot's manifest of sizes and checksums is made from these files."""
    fill(engine, "ab")
    copy = tmp_path / "copy"
    engine.checkpoint(str(copy))
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    engines.read(str(copy), [b"a"])
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_flush_and_checkpoint_run_beside_writes(engines: Engines, engine: Engine, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for count in range(5):
                engine.flush()
                engine.checkpoint(str(tmp_path / f"copy-{count}"))
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    written = 0
    while thread.is_alive() and written < 20_000:
        engine.write({b"first": b"%d" % written, b"second": b"%d" % written})
        written += 1
    thread.join()
    assert failures == []
    for count in range(5):
        first, second = engines.read(str(tmp_path / f"copy-{count}"), [b"first", b"second"])
        assert first == second, "a checkpoint lies between two writes"


def test_destroy_removes_the_directory_and_absent_is_fine(
    engines: Engines, directory: str, tmp_path: Path
) -> None:
    engine = engines.open(directory)
    fill(engine, "a")
    engine.flush()
    engine.close()
    engines.destroy(directory)
    assert not Path(directory).exists()
    engines.destroy(directory)


def test_byte_count_grows_with_what_is_kept(engine: Engine) -> None:
    engine.write({b"%d" % number: b"x" * 1000 for number in range(300)})
    engine.flush()
    assert engine.byte_count() > 5_000


def test_many_tablets_share_one_budget(engines: Engines, tmp_path: Path) -> None:
    opened = [engines.open(str(tmp_path / f"t{number}")) for number in range(4)]
    for number, engine in enumerate(opened):
        engine.write({b"who": b"%d" % number})
    assert [engine.get(b"who") for engine in opened] == [b"0", b"1", b"2", b"3"]
    for engine in opened:
        engine.close()
