"""What is particular to RocksDB: no log of its own, quiet, errors translated at the border."""

from pathlib import Path

import pytest

from kvstore.errors import Corrupt, DiskFailed, DiskFull, Fatal
from kvstore.files import OsFiles
from kvstore.store import RocksEngines
from kvstore.store.rocks import _translated


@pytest.fixture
def engines() -> RocksEngines:
    return RocksEngines(OsFiles(), 1 << 20, 1 << 20)


def test_writes_leave_no_byte_in_a_log(engines: RocksEngines, tmp_path: Path) -> None:
    engine = engines.open(str(tmp_path / "t"))
    engine.write({b"a": b"x" * 1000})
    assert sum(path.stat().st_size for path in (tmp_path / "t").glob("*.log")) == 0
    engine.close()


def test_a_tablet_opened_twice_is_refused(engines: RocksEngines, tmp_path: Path) -> None:
    engine = engines.open(str(tmp_path / "t"))
    with pytest.raises(Fatal, match="cannot open tablet"):
        engines.open(str(tmp_path / "t"))
    engine.close()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_damaged_block_ends_no_scan_silently(engines: RocksEngines, tmp_path: Path, reverse: bool) -> None:
    """The binding's own iteration stops there as if nothing followed."""
    engine = engines.open(str(tmp_path / "t"))
    engine.write({b"%04d" % number: b"x" * 100 for number in range(500)})
    engine.flush()
    engine.close()
    table = next((tmp_path / "t").glob("*.sst"))
    content = bytearray(table.read_bytes())
    content[10_500] ^= 0xFF
    table.write_bytes(content)
    damaged = engines.open(str(tmp_path / "t"))
    with pytest.raises(Corrupt):
        list(damaged.scan(b"", b"\xff", reverse=reverse))
    with pytest.raises(Corrupt):
        damaged.get_many([b"%04d" % number for number in range(500)])
    damaged.close()


def test_a_missing_table_is_not_opened_as_if_it_were_empty(engines: RocksEngines, tmp_path: Path) -> None:
    engine = engines.open(str(tmp_path / "t"))
    engine.write({b"a": b"1"})
    engine.flush()
    engine.close()
    next((tmp_path / "t").glob("*.sst")).unlink()
    with pytest.raises(Fatal):
        engines.open(str(tmp_path / "t"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("IO error: No space left on device: While appending to file", DiskFull),
        ("IO error: Disk quota exceeded", DiskFull),
        ("Corruption: block checksum mismatch", Corrupt),
        ("IO error: Input/output error", Fatal),
        ("IO error: While pread offset 4096 len 16: /t/000008.sst: Input/output error", Fatal),
        ("IO error: While fdatasync: /t/000009.sst: Input/output error", DiskFailed),
        ("IO error: While open a file for appending: /t/MANIFEST: Input/output error", DiskFailed),
        ("IO error: While lock file: /t/LOCK: Resource temporarily unavailable", DiskFailed),
        ("IO error: While open a file for random read: /t/8.sst: Too many open files", DiskFailed),
    ],
)
def test_errors_are_translated(message: str, expected: type[Exception]) -> None:
    assert type(_translated(Exception(message), "cannot write")) is expected
