"""What both ends of a snapshot transfer share: settings, pacing, and what a manifest may say.

A snapshot is a checkpoint directory of a tablet. The follower pulls: it asks for the manifest (names,
sizes, a CRC32C per chunk), then for chunks, a few at a time. The sender keeps no state per receiver, so
a lost frame, a reconnect or a repeated request costs nothing but time. See `snapshot_sender.py`,
`snapshot_receiver.py`; the messages are in `wire/snapshot_messages.py`.
"""

from __future__ import annotations

import msgspec

from kvstore.wire.snapshot_messages import SnapshotFile, SnapshotManifest


class SnapshotSettings(msgspec.Struct, frozen=True):
    chunk_bytes: int = 256 << 10
    bytes_per_s: int = 64 << 20
    """What one node sends, and what it fetches, at most."""
    window_chunks: int = 8
    """Chunks one fetch has on the way or being written."""
    retry_s: float = 1.0
    """An unanswered request is repeated after this; longer each time nothing has come in between."""
    stall_s: float = 30.0
    """A fetch without progress for so long is given up."""
    keep_s: float = 120.0
    """A checkpoint that nobody has asked about for so long is dropped."""
    kept_max: int = 8
    """Checkpoints that may exist for sending at once: each pins disk space and a part of the log."""
    damaged_max: int = 8
    """Chunks with a wrong checksum after which a fetch is given up."""


class Pace:
    """Spreads bytes over time: at most `burst_s` of the rate at once, then evenly."""

    def __init__(self, bytes_per_s: int, burst_s: float = 0.05) -> None:
        self._seconds_per_byte = 1.0 / max(1, bytes_per_s)
        self._burst_s = burst_s
        self._free_at = 0.0

    def delay(self, now: float) -> float:
        """Seconds until something may be taken; 0: now."""
        return max(0.0, self._free_at - self._burst_s - now)

    def take(self, now: float, count: int) -> None:
        self._free_at = max(self._free_at, now) + count * self._seconds_per_byte


def chunk_count(file_bytes: int, chunk_bytes: int) -> int:
    return -(-file_bytes // chunk_bytes)


def chunk_length(manifest: SnapshotManifest, file: SnapshotFile, chunk: int) -> int:
    return min(manifest.chunk_bytes, file.bytes - chunk * manifest.chunk_bytes)


def total_bytes(manifest: SnapshotManifest) -> int:
    return sum(file.bytes for file in manifest.files)


def manifest_fault(manifest: SnapshotManifest) -> str | None:
    """Why this manifest must not be followed. Names come from another machine and become paths here."""
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names):
        return "a name appears twice"
    for file in manifest.files:
        if file.name in (".", "..") or any(bad in file.name for bad in ("/", "\\", "\0")):
            return f"{file.name!r} is not the name of a file"
        if len(file.chunk_crcs) != chunk_count(file.bytes, manifest.chunk_bytes):
            return f"{file.name} has {len(file.chunk_crcs)} checksums for {file.bytes} bytes"
    return None
