"""lock, elect."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli import exit_codes, output
from kvstore.cli.command import Command, pass_settings
from kvstore.cli.failures import Failure, Quiet
from kvstore.cli.kv import key_of, value_of
from kvstore.cli.settings import DURATION, DURATION_OR_ZERO, Settings

if TYPE_CHECKING:
    from kvstore.client.sync_claims import Held

_TTL = click.option(
    "--ttl",
    type=DURATION,
    default=10.0,
    metavar="DURATION",
    help="After so long others get it if kvctl dies.  [default 10s]",
)
_WAIT = click.option(
    "--wait",
    type=DURATION_OR_ZERO,
    metavar="DURATION",
    help="How long to queue; 0: now or never.  [default: until it is granted]",
)
_GRACE = click.option(
    "--grace",
    type=DURATION_OR_ZERO,
    default=5.0,
    metavar="DURATION",
    help="Time for CMD to end after a loss, before it is killed.  [default 5s]",
)


@click.command(cls=Command, short_help="Run a command while holding a lock.")
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@_TTL
@_WAIT
@_GRACE
@pass_settings
def lock(
    settings: Settings, name: str, command: tuple[str, ...], ttl: float, wait: float | None, grace: float
) -> None:
    """Queue for the lock NAME, run CMD while it is held, and give it back. Waiters get it in the order of
    their coming.

    CMD finds the lock's fence in KVCTL_FENCE and its name in KVCTL_LOCK. The fence is greater than that of
    every earlier holder: whatever the lock protects should refuse a lower one, because a program that was
    stopped can not know that its lock is gone.

    The lock is renewed every third of --ttl. When that has failed for the whole TTL, or the lock is lost,
    CMD gets SIGTERM, and SIGKILL after --grace. Signals that kvctl gets are handed on to CMD.

    Without CMD it prints the fence and holds the lock until it is interrupted.

    \b
    Exit codes: CMD's own; 4 if the lock was not taken; 1 if it was lost.

    \b
    Examples:
      kvctl lock backup -- sh -c 'echo "my fence is $KVCTL_FENCE"'
      kvctl lock nightly --wait 0 -- echo "nobody else does it"
      kvctl lock deploy --ttl 30s --wait 1m -- true
    """
    with settings.client(is_long=True) as client:
        patience = math.inf if wait is None else wait
        with client.lock(_text(name), ttl=ttl, wait=patience) as held:
            output.hint(f"lock {name} is held, fence {held.fence}", is_quiet=settings.is_quiet)
            code = _hold(settings, held, command, grace, f"lock {name}", {"KVCTL_LOCK": name})
    raise Quiet(code)


@click.command(cls=Command, short_help="Lead while a command runs, or see who leads.")
@click.argument("name")
@click.argument("value", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@click.option("--observe", is_flag=True, help="Print who leads NAME, now and after every change.")
@_TTL
@_WAIT
@_GRACE
@pass_settings
def elect(
    settings: Settings,
    name: str,
    value: str | None,
    command: tuple[str, ...],
    observe: bool,
    ttl: float,
    wait: float | None,
    grace: float,
) -> None:
    """Stand for election of NAME with VALUE, and lead while CMD runs; others see VALUE. Without CMD it
    prints the fence and leads until it is interrupted.

    Without VALUE it prints who leads now, and exits 3 if nobody does. With --observe it goes on: one line
    for every change, an empty one while nobody leads.

    What `kvctl lock --help` says of fences, renewal, loss and signals holds here too. CMD finds
    KVCTL_FENCE, KVCTL_ELECTION and KVCTL_VALUE.

    \b
    Exit codes: CMD's own; 4 if not elected within --wait; 1 if the office was lost; 3 if nobody leads.

    \b
    Examples:
      kvctl elect scheduler "$HOSTNAME" -- sh -c 'echo "leading with fence $KVCTL_FENCE"'
      kvctl elect scheduler me --wait 5s -- true
      kvctl elect scheduler || echo "nobody leads"
      kvctl elect scheduler --observe --timeout 2s -o jsonl
    """
    if observe or value is None:
        if value is not None:
            raise click.UsageError("--observe takes no VALUE and no CMD: it only looks")
        _look(settings, _text(name), observe)
        return
    with settings.client(is_long=True) as client:
        patience = math.inf if wait is None else wait
        with client.elect(_text(name), value_of(value), ttl=ttl, wait=patience) as held:
            output.hint(f"elected {name}, fence {held.fence}", is_quiet=settings.is_quiet)
            variables = {"KVCTL_ELECTION": name, "KVCTL_VALUE": value}
            code = _hold(settings, held, command, grace, f"office {name}", variables)
    raise Quiet(code)


def _hold(
    settings: Settings,
    held: Held,
    command: tuple[str, ...],
    grace_s: float,
    what: str,
    variables: dict[str, str],
) -> int:
    if command:
        from kvstore.cli.child import run_while_held

        found = variables | {"KVCTL_FENCE": str(held.fence)}
        return run_while_held(command, found, held.lost, grace_s, what)

    def announce() -> None:
        if settings.form("raw") == "raw":
            click.echo(held.fence)
        else:
            output.show(settings.form(), {"fence": held.fence, "token": held.token})

    _wait(held.lost, announce)
    if held.lost.is_set():
        raise Failure(f"{what} was lost", exit_codes.FAILURE)
    return exit_codes.INTERRUPTED


def _wait(lost: threading.Event, announce: Callable[[], None]) -> None:
    """Until it is lost, or somebody ends us: both are the end of holding. Whoever has read what is announced
    may end us in good order."""
    import signal

    lost_or_ended = threading.Event()

    def end(number: int, frame: object) -> None:
        lost_or_ended.set()

    def pass_on() -> None:
        lost.wait()
        lost_or_ended.set()

    threading.Thread(target=pass_on, daemon=True).start()
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        announce()
        lost_or_ended.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _look(settings: Settings, name: str, observe: bool) -> None:
    if not observe:
        with settings.client() as client:
            leader = client.leader(name)
        if leader is None:
            raise Failure(f"nobody is elected: {name}", exit_codes.NOT_FOUND)
        _show(settings, leader)
        return
    with settings.client(is_long=True) as client, client.observe(name, timeout=settings.timeout_s) as seen:
        for leader in seen:
            _show(settings, leader, "raw")


def _show(settings: Settings, leader: Any, default: str = "raw") -> None:
    form = settings.form(default)
    if form == "raw":
        click.echo(b"" if leader is None else leader.value)
    elif leader is None:
        output.show(form, {"value": None, "fence": None})
    else:
        output.show(form, output.named_bytes("value", leader.value) | {"fence": leader.fence})


def _text(name: str) -> str:
    return key_of(name).decode("utf-8", "surrogateescape")
