"""Runs a command for as long as something is held: hands signals on, ends it when the hold is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType

from kvstore.cli import exit_codes
from kvstore.cli.failures import Failure

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def run_while_held(
    command: Sequence[str], variables: Mapping[str, str], lost: threading.Event, grace_s: float, what: str
) -> int:
    """Run the command and return the exit code that a shell would show for it.

    When `lost` is set, the command is asked to end (SIGTERM), and killed `grace_s` later.
    Raises Failure if it could not be started, or was ended because of that.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        elif not (number == signal.SIGINT and sys.stdin.isatty()):
            # A terminal sends Ctrl-C to the command as well; it decides what that means, and we wait.
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        process = _start(command, variables)
        for number in early:
            process.send_signal(number)
        ending = threading.Thread(target=_end_when_lost, args=(process, lost, grace_s), daemon=True)
        ending.start()
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if lost.is_set():
        raise Failure(f"{what} was lost: the command was told to end", exit_codes.FAILURE)
    return 128 - code if code < 0 else code


def _start(command: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    def prepare() -> None:
        for number in _PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        if sys.platform == "linux":
            die_with_parent()

    try:
        return subprocess.Popen(list(command), env={**os.environ, **variables}, preexec_fn=prepare)
    except OSError as error:
        raise Failure(f"{command[0]}: {error.strerror}", exit_codes.FAILURE) from error


def _end_when_lost(process: subprocess.Popen[bytes], lost: threading.Event, grace_s: float) -> None:
    lost.wait()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()


def die_with_parent() -> None:
    """Linux: have the kernel end this process when kvctl is killed without a chance to clean up."""
    import ctypes

    set_parent_death_signal = 1
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(set_parent_death_signal, signal.SIGTERM)
