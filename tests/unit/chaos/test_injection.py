"""Faults by strace: what counts is that the call was tampered with, not that we saw the tracer."""

import subprocess
import sys
from pathlib import Path

import pytest

from chaos import injection

pytestmark = pytest.mark.skipif(injection.can_inject() is not None, reason=str(injection.can_inject()))

WRITER = """
import os, sys
print(flush=True)
with open(sys.argv[1], "wb") as file:
    while True:
        os.pwrite(file.fileno(), b"x", 0)
"""


def test_process_that_dies_of_the_fault_before_anybody_looked_was_hit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injection, "_is_traced", lambda pid: False)
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with injection.Injection(writer.pid, "pwrite64", "error=EIO", tmp_path / "record") as fault:
            assert writer.wait(60) != 0
        assert fault.bites > 0


def test_process_that_is_gone_cannot_be_hit(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with pytest.raises(OSError, match="could not attach"):
        injection.Injection(gone.pid, "pwrite64", "error=EIO", tmp_path / "record").begin()
