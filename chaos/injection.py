"""Makes system calls of a running process fail or hang, from outside, with strace.

strace attaches to the process and its threads, answers the chosen calls in the kernel's place, and writes
each into a file with the word INJECTED: the proof that the fault bit.
"""

import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

ATTACH_S = 5.0


class Injection:
    """While inside, `calls` of process `pid` are answered by `what` ("error=EIO", "delay_enter=300ms")."""

    def __init__(self, pid: int, calls: str, what: str, record: Path, paths: tuple[Path, ...] = ()) -> None:
        self._command = ["strace", "-f", "-p", str(pid), "-o", str(record), "-e", f"trace={calls}"]
        self._command += ["-e", f"inject={calls}:{what}"]
        for path in paths:
            self._command += ["-P", str(path)]
        self._record = record
        self._pid = pid
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self) -> None:
        """Attach; returns when the process is being traced. Raises OSError if it cannot be."""
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + ATTACH_S
        while not _is_traced(self._pid):
            is_over = self._process.poll() is not None
            if is_over and self.bites:
                return  # It died of the fault before anybody looked.
            if is_over or time.monotonic() > deadline:
                raise OSError(f"strace could not attach to process {self._pid}")
            time.sleep(0.01)

    def end(self) -> None:
        """Detach; the process goes on by itself."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    @property
    def bites(self) -> int:
        """How many calls were tampered with so far."""
        if not self._record.exists():
            return 0
        return sum(
            "(INJECTED)" in line or "(DELAYED)" in line for line in self._record.open(errors="replace")
        )


def can_inject() -> str | None:
    """None if it works here, else what is missing."""
    return None if shutil.which("strace") else "needs strace"


def _is_traced(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "TracerPid:\t0\n" not in status
