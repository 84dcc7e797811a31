"""Engine on RocksDB. The only import of the binding, and the border where its errors become ours.

One database per tablet, so that a snapshot is a directory of hard links and dropping a replica is removing
a directory. Its own log is off: the Raft log brings back what a crash took. Everything lives in the one
default column family, because without its log RocksDB flushes column families apart, and a crash would
then leave data and applied index of different ages (`docs/data_on_disk.md`, Tablets).

The binding holds the GIL in reads and writes and releases it in `flush`, `checkpoint` and background work,
so reads and writes belong on the loop, in small batches, and the others in a thread. It raises bare
`Exception`, so that is what is caught here.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import starmap
from typing import Any, Final

import rocksdict
from rocksdict import AccessType, BlockBasedOptions, Cache, Options, Rdict, WriteBatch, WriteBufferManager

from kvstore.errors import Corrupt, DiskFailed, DiskFull, Fatal
from kvstore.files import Files

KIB: Final = 1 << 10
MIB: Final = 1 << 20
_FEW: Final = 16
"""Writes of so many records are not worth preparing."""
_FULL_SIGNS: Final = ("No space left", "Disk quota exceeded", "NoSpace")
_FAILED_WRITE: Final = re.compile(
    r"while (f?datasync|fsync|sync|msync|append|p?write|writing|renam|mkdir|creat|link|unlink|lock|reopen"
    r"|clos|ftruncat|fallocat|open a file for (append|lock))|too many open files|cannot allocate memory",
    re.IGNORECASE,
)
"""What fails so has not been found damaged: the disk refused, or this process lacked means."""


class RocksEngine:
    def __init__(self, engines: RocksEngines, directory: str, options: Options) -> None:
        self.engines = engines
        self.directory = directory
        # Any: the binding's types allow for keys that are not bytes, which raw mode refuses.
        self._database: Any
        try:
            self._database = Rdict(directory, options)
        except Exception as error:
            raise _translated(error, f"cannot open tablet {directory}") from error
        self._database.set_write_options(engines.log_off)
        self._get = self._database.get

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._get(key)
        except Exception as error:
            raise _translated(error, f"cannot read tablet {self.directory}") from error
        return value

    def get_many(self, keys: list[bytes]) -> Sequence[bytes | None]:
        try:
            values: Sequence[bytes | None] = self._get(keys)
        except Exception as error:
            raise _translated(error, f"cannot read tablet {self.directory}") from error
        return values

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        if start >= end:
            return
        bounds = rocksdict.ReadOptions()
        bounds.set_iterate_upper_bound(end)
        try:
            # Not the binding's `items()`: that ends at a damaged block as if the tablet ended there.
            cursor = self._database.iter(bounds)
            if not reverse:
                cursor.seek(start)
                while cursor.valid():
                    yield cursor.key(), cursor.value()
                    cursor.next()
            else:
                # The binding's lower bound sets the upper one (0.3.29): the lower end is found by hand.
                cursor.seek_to_last()
                while cursor.valid() and (key := cursor.key()) >= start:
                    yield key, cursor.value()
                    cursor.prev()
            cursor.status()
        except Exception as error:
            raise _translated(error, f"cannot read tablet {self.directory}") from error

    def write(self, writes: Mapping[bytes, bytes | None]) -> None:
        batch = WriteBatch(raw_mode=True)
        put = batch.put
        if len(writes) <= _FEW:
            for key, value in writes.items():
                if value is not None:
                    put(key, value)
                else:
                    batch.delete(key)
        else:
            kept = dict(writes)
            for key in [key for key, value in writes.items() if value is None]:
                batch.delete(key)
                del kept[key]
            # No line of Python per record: 0.2 us each instead of 0.45.
            deque(starmap(put, kept.items()), maxlen=0)
        try:
            self._database.write(batch)
        except Exception as error:
            raise _translated(error, f"cannot write tablet {self.directory}") from error

    def flush(self) -> None:
        try:
            self._database.flush()
        except Exception as error:
            raise _translated(error, f"cannot flush tablet {self.directory}") from error

    def checkpoint(self, directory: str) -> None:
        try:
            rocksdict.Checkpoint(self._database).create_checkpoint(directory)
        except Exception as error:
            raise _translated(error, f"cannot checkpoint tablet {self.directory}") from error

    def byte_count(self) -> int:
        names = ("rocksdb.total-sst-files-size", "rocksdb.cur-size-all-mem-tables")
        return sum(self._database.property_int_value(name) or 0 for name in names)

    def close(self) -> None:
        self._database.close()


class RocksEngines:
    """Opens tablets that share one block cache and one budget of write buffers."""

    def __init__(
        self, files: Files, block_cache_bytes: int = 64 * MIB, write_buffer_bytes: int = 64 * MIB
    ) -> None:
        self._files = files
        self._cache = Cache(block_cache_bytes)
        # A stall would hold the loop; past the budget the fullest tablet is flushed instead.
        self._buffers = WriteBufferManager(write_buffer_bytes, False)
        self._tablet_buffer_bytes = max(64 * KIB, min(8 * MIB, write_buffer_bytes // 4))
        log_off: Any = rocksdict.WriteOptions()
        log_off.disable_wal = True
        self.log_off: rocksdict.WriteOptions = log_off

    def open(self, directory: str) -> RocksEngine:
        self._files.mkdirs(directory)
        return RocksEngine(self, directory, self._options())

    def read(self, directory: str, keys: Sequence[bytes]) -> list[bytes | None]:
        try:
            database = Rdict(directory, self._options(), access_type=AccessType.read_only(False))
            try:
                return [database.get(key) for key in keys]
            finally:
                database.close()
        except Exception as error:
            raise _translated(error, f"cannot read tablet {directory}") from error

    def destroy(self, directory: str) -> None:
        self._files.remove_tree(directory)

    def _options(self) -> Options:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_manager(self._buffers)
        options.set_write_buffer_size(self._tablet_buffer_bytes)
        options.set_max_write_buffer_number(4)
        # Two buffers make one file, without what the second replaces or forgets; and more files wait for one
        # compaction. Together 0.5 us of background work less per put. Look-ups pay with filters in memory.
        options.set_min_write_buffer_number_to_merge(2)
        # Small steps, so that 64 tablets with a few writes each do not claim a MiB each.
        options.set_arena_block_size(64 * KIB)
        # Most puts of new keys ask for a head that is not there: 0.28 us with this filter, 1.1 without.
        options.set_memtable_prefix_bloom_ratio(0.05)
        options.set_memtable_whole_key_filtering(True)
        options.set_block_based_table_factory(self._table_options())
        options.set_compression_per_level(
            [rocksdict.DBCompressionType.none()] * 2 + [rocksdict.DBCompressionType.lz4()] * 5
        )
        options.set_level_compaction_dynamic_level_bytes(True)
        options.set_max_bytes_for_level_base(64 * MIB)
        options.set_target_file_size_base(16 * MIB)
        options.set_max_background_jobs(2)
        # Background work shares two cores with the loop; artificial delays would be spent with the GIL held.
        options.set_level_zero_file_num_compaction_trigger(8)
        options.set_level_zero_slowdown_writes_trigger(40)
        options.set_level_zero_stop_writes_trigger(80)
        # Quick to open, few descriptors, silent when idle.
        options.set_max_open_files(64)
        options.set_max_file_opening_threads(1)
        options.set_skip_stats_update_on_db_open(True)
        options.set_stats_dump_period_sec(0)
        options.set_stats_persist_period_sec(0)
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(MIB)
        options.set_manifest_preallocation_size(64 * KIB)
        options.set_table_cache_num_shard_bits(0)
        options.set_is_fd_close_on_exec(True)
        return options

    def _table_options(self) -> BlockBasedOptions:
        table = BlockBasedOptions()
        table.set_block_cache(self._cache)
        table.set_block_size(4 * KIB)
        table.set_bloom_filter(10, False)
        table.set_cache_index_and_filter_blocks(True)
        table.set_pin_l0_filter_and_index_blocks_in_cache(True)
        table.set_format_version(5)
        table.set_checksum_type(rocksdict.ChecksumType.xxh3())
        return table


def _translated(error: Exception, what: str) -> Exception:
    message = f"{what}: {error}"
    if any(sign in str(error) for sign in _FULL_SIGNS):
        return DiskFull(message)
    if "Corruption" in str(error):
        return Corrupt(message)
    if _FAILED_WRITE.search(str(error)):
        return DiskFailed(message)
    return Fatal(message)
