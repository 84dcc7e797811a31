"""Disks that can lose power, fill up, or be read after a crash as a real one would be.

A `LoopDisk` is an ext4 file system in a file. Cutting its power is one ioctl on the mounted file system
(`EXT4_IOC_SHUTDOWN` without flushing the journal): whatever was not synced is gone, every later write fails,
and the next mount replays the journal like after a power failure. Needs root and loop devices; nothing else.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

_SHUTDOWN = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125
"""_IOR('X', 125, __u32), the same for ext4 and xfs."""

_WITHOUT_LOG_FLUSH = 2

RELEASE_S = 3.0
"""How long an unmounted image may stay in use before it is given up."""

COMMIT_S = 3600
"""The journal commits on its own only so rarely, so that nothing survives but what was asked to."""


class LoopDisk:
    """An ext4 file system of `size_bytes` in `place`, mounted at `place`/disk."""

    def __init__(self, place: Path, size_bytes: int) -> None:
        self.path = place / "disk"
        self._image = place / "disk.img"
        self.path.mkdir(parents=True, exist_ok=True)
        with self._image.open("wb") as image:
            image.truncate(size_bytes)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        self.is_mounted = False
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", f"loop,commit={COMMIT_S}", str(self._image), str(self.path))
        self.is_mounted = True

    def unmount(self) -> None:
        """Wait for processes that are ending, but not for ever: what is held open stays with its holder."""
        deadline = time.monotonic() + RELEASE_S
        while self.is_mounted:
            try:
                _run("umount", str(self.path))
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                _run("umount", "--lazy", str(self.path))
            self.is_mounted = False

    def sync(self) -> None:
        _run("sync", "-f", str(self.path))

    def cut_power(self) -> None:
        """Lose all that is not synced, from this moment on. Processes that write get errors."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG_FLUSH))
        finally:
            os.close(handle)

    def restore_power(self) -> None:
        """Mount again what a power failure left. No process may still have files open there."""
        self.unmount()
        if not self._is_released():
            # A container that started meanwhile holds a copy of the mount, or somebody a file of it, and
            # with it the dead file system: mounting the same image would give that one again.
            replacement = self._image.with_suffix(f".{time.monotonic_ns()}")
            _run("cp", "--sparse=always", str(self._image), str(replacement))
            self._image.unlink()
            self._image = replacement
        self.mount()

    def _is_released(self) -> bool:
        """Wait until no loop device shows the image any more."""
        deadline = time.monotonic() + RELEASE_S
        while self._is_attached():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _is_attached(self) -> bool:
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if backing.read_text().strip() == str(self._image):
                    return True
        return False

    def close(self) -> None:
        self.unmount()
        self._image.unlink(missing_ok=True)


def can_mount() -> str | None:
    """None if loop disks work here, else what is missing."""
    if os.geteuid():
        return "needs root for loop devices"
    missing = [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    return None if Path("/dev/loop-control").exists() else "needs loop devices"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
