"""The files of a log's directory: making segments, letting old ones go, keeping space aside.

Every step is safe to be cut short by a crash: a segment gets its name last, and a name goes, durably,
before the next one can. Whether a file that is not a named segment exists never matters.
"""

from collections.abc import Sequence

import msgspec

from kvstore.errors import DiskFull
from kvstore.files import File, Files, is_full, join
from kvstore.wal.segment import (
    HEADER_BYTES,
    RESERVE_NAME,
    UNFINISHED,
    Header,
    Segment,
    encode_header,
    is_spare,
    name_of,
    spare_name_of,
)


class WalSettings(msgspec.Struct, frozen=True):
    segment_bytes: int = 64 << 20
    reserve_bytes: int = 8 << 20
    """Space kept aside so that recovery and reclaiming can write on a full disk."""
    zero_ahead_bytes: int = 1 << 20
    inventory_every_bytes: int = 1 << 20
    """Damage further back in the log can be pinned to shards even if these were quiet since."""


class SegmentFiles:
    def __init__(self, files: Files, directory: str, settings: WalSettings, identity: bytes) -> None:
        self._files = files
        self._directory = directory
        self._settings = settings
        self._identity = identity
        self._spare: str | None = None
        self.has_reserve = False
        self.segments: list[tuple[int, int]] = []
        """(number, capacity), oldest first; the last is the one being written."""

    def path(self, number: int) -> str:
        return join(self._directory, name_of(number))

    def adopt(self, numbers: Sequence[int], oldest: int) -> None:
        """Take over what is there, and remove what a crash left behind."""
        for name in self._files.list(self._directory):
            if name.endswith(UNFINISHED) or (is_spare(name) and self._spare is not None):
                self._files.remove(join(self._directory, name))
            elif is_spare(name):
                self._spare = name
        self.has_reserve = self._files.exists(join(self._directory, RESERVE_NAME))
        self.segments = [(number, self._files.byte_count(self.path(number))) for number in numbers]
        # A name may have been given or taken just before the crash.
        self._files.sync_dir(self._directory)
        while self.segments and self.segments[0][0] < oldest:
            self.retire()

    def make(self, number: int, first_sequence: int, needed: int, *, is_own: bool) -> Segment:
        """A new last segment with room for at least `needed` bytes. `is_own`: the log's own need, which may
        take the reserve.

        Raises: DiskFull, and everything is as before. OSError.
        """
        name, file, is_written_before = self._space(number, needed, is_own)
        path = join(self._directory, name)
        try:
            capacity = self._files.byte_count(path)
            nonce = int.from_bytes(self._files.entropy(8), "little")
            header = Header(number, nonce, first_sequence, capacity, self._identity, is_written_before)
            file.write_at(0, encode_header(header))
            file.datasync()
        except OSError as error:
            file.close()
            if not is_full(error):
                raise
            # Possible where the file system copies on write. The file has no name as a segment yet.
            self._files.remove(path)
            self._forget(name)
            raise DiskFull("no space for a new segment of the log") from error
        self._files.rename(path, self.path(number))
        self._files.sync_dir(self._directory)
        self._forget(name)
        self.segments.append((number, capacity))
        return Segment(file, header, HEADER_BYTES, self._settings.zero_ahead_bytes)

    def _space(self, number: int, needed: int, is_own: bool) -> tuple[str, File, bool]:
        """A file to become a segment: its name, and whether all of it was written before."""
        if self._spare is not None and self._is_big_enough(self._spare, needed):
            return self._spare, self._files.open(join(self._directory, self._spare)), True
        name = name_of(number) + UNFINISHED
        wanted = max(self._settings.segment_bytes, needed)
        try:
            return name, self._files.create(join(self._directory, name), wanted), False
        except OSError as error:
            if not is_full(error):
                raise
            if not (is_own and self.has_reserve and self._is_big_enough(RESERVE_NAME, needed)):
                raise DiskFull("no space for a new segment of the log", needed_bytes=wanted) from error
        return RESERVE_NAME, self._files.open(join(self._directory, RESERVE_NAME)), False

    def _is_big_enough(self, name: str, needed: int) -> bool:
        return self._files.byte_count(join(self._directory, name)) >= needed

    def _forget(self, name: str) -> None:
        if name == self._spare:
            self._spare = None
        elif name == RESERVE_NAME:
            self.has_reserve = False

    def retire(self) -> None:
        """Let the oldest segment go; its space becomes the reserve or a spare if one is missing. The name
        is gone durably on return, so that the names left never have a gap."""
        number, _ = self.segments.pop(0)
        if not self.has_reserve:
            self._files.rename(self.path(number), join(self._directory, RESERVE_NAME))
            self.has_reserve = True
        elif self._spare is None:
            self._spare = spare_name_of(number)
            self._files.rename(self.path(number), join(self._directory, self._spare))
        else:
            self._files.remove(self.path(number))
        self._files.sync_dir(self._directory)

    def fill_reserve(self) -> None:
        """Keep space aside again, unless the disk is full."""
        if self.has_reserve:
            return
        path = join(self._directory, RESERVE_NAME)
        try:
            self._files.create(path + UNFINISHED, self._settings.reserve_bytes).close()
        except OSError as error:
            if not is_full(error):
                raise
            return
        self._files.rename(path + UNFINISHED, path)
        self._files.sync_dir(self._directory)
        self.has_reserve = True
