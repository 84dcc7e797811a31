"""watch: changes as they happen, printed or handed to a command."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import click

from kvstore.cli import exit_codes, output
from kvstore.cli.command import Command, pass_settings
from kvstore.cli.failures import Failure, Quiet
from kvstore.cli.kv import item_fields, key_of
from kvstore.cli.settings import DURATION, Settings
from kvstore.client.changes import Change, Delete, Expire, Progress, Put, Resynced


@click.command(cls=Command, short_help="Follow changes.")
@click.argument("key", required=False)
@click.option("--prefix", metavar="PREFIX", help='All keys that begin with PREFIX ("" is every key).')
@click.option("--from", "from_", metavar="POS", help="Go on after this position.")
@click.option("--snapshot", is_flag=True, help="Begin with what is there.")
@click.option("--prev", is_flag=True, help="Tell what each key held before.")
@click.option("-n", "--limit", type=click.IntRange(1), metavar="N", help="End after N changes.")
@click.option("--idle", type=DURATION, metavar="DURATION", help="End after so long without a change.")
@click.option("--exec", "command", metavar="CMD", help="Run the shell command CMD for each change.")
@pass_settings
def watch(
    settings: Settings,
    key: str | None,
    prefix: str | None,
    from_: str | None,
    snapshot: bool,
    prev: bool,
    limit: int | None,
    idle: float | None,
    command: str | None,
) -> None:
    """Print the changes of KEY, or of all keys with a prefix, until interrupted. It goes on over failures
    of nodes, without loss or repetition. Where that can't be, because history was compacted, it prints
    one line of type "resynced" and then, like --snapshot, everything that is there.

    \b
    Output: table is for people; jsonl has type (put, delete, expire, resynced), key, value, revision,
    pos and, with --prev, prev; raw has the values of puts, one on a line. "pos" is what --from takes.

    With --exec nothing is printed. CMD runs once for each change, in their order, with KVCTL_EVENT,
    KVCTL_KEY, KVCTL_REVISION and KVCTL_POS set and the value on stdin; for "resynced" stdin has the items
    as JSON lines. If CMD fails, the watch ends with its exit code and says where to go on.

    \b
    Examples:
      kvctl watch config --idle 1s
      kvctl watch --prefix user/ -o jsonl --idle 1s
      kvctl watch --prefix cfg/ --snapshot --limit 1 -o jsonl --idle 1s
      kvctl watch config --idle 1s --exec 'cat > config.new && mv config.new config.now'
    """
    if (key is None) == (prefix is None):
        raise click.UsageError('give either a KEY or --prefix (--prefix "" is every key)')
    if from_ is not None and snapshot:
        raise click.UsageError("give either --from or --snapshot")
    if settings.output == "json":
        raise click.UsageError("changes have no end: use -o jsonl")
    with settings.client(is_long=True) as client, client.watch(
        key=None if key is None else key_of(key),
        prefix=None if prefix is None else key_of(prefix),
        from_=from_,
        snapshot=snapshot,
        prev=prev,
        timeout=idle,
    ) as changes:  # fmt: skip
        output.hint("watching; Ctrl-C ends it", is_quiet=settings.is_quiet)
        for count, change in enumerate(changes, 1):
            if command is None:
                _show(settings.form(), change, prev)
            else:
                _run(command, change)
            if count == limit:
                return


def _show(form: str, change: Change, prev: bool) -> None:
    if form == "jsonl":
        output.line(_fields(change, prev))
        if isinstance(change, Resynced):
            for item in change.items:
                output.line({"type": "item", **item_fields(item)})
    elif form == "raw":
        if isinstance(change, Put):
            click.echo(change.value)
        elif isinstance(change, Resynced):
            for item in change.items:
                click.echo(item.value)
    else:
        _show_row(change)


def _show_row(change: Change) -> None:
    match change:
        case Put(key, value, revision):
            click.echo(f"put      {revision:>8}  {output.printable(key, 200)}  {output.printable(value)}")
        case Delete(key, revision):
            click.echo(f"delete   {revision:>8}  {output.printable(key, 200)}")
        case Expire(key, revision):
            click.echo(f"expire   {revision:>8}  {output.printable(key, 200)}")
        case Resynced(items):
            click.echo(f"resynced {len(items):>8}  keys")
            for item in items:
                shown = f"{output.printable(item.key, 200)}  {output.printable(item.value)}"
                click.echo(f"item     {item.revision:>8}  {shown}")
        case Progress():
            pass


def _name(change: Change) -> str:
    return type(change).__name__.lower()


def _fields(change: Change, prev: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {"type": _name(change)}
    if isinstance(change, Resynced):
        return fields | {"count": len(change.items), "pos": change.pos}
    if isinstance(change, Progress):
        return fields | {"pos": change.pos}
    fields |= output.named_bytes("key", change.key)
    if isinstance(change, Put):
        fields |= output.named_bytes("value", change.value)
    fields |= {"revision": change.revision, "pos": change.pos}
    if prev:
        fields["prev"] = None if change.prev is None else output.named_bytes("value", change.prev.value)
    return fields


def _run(command: str, change: Change) -> None:
    variables = {"KVCTL_EVENT": _name(change), "KVCTL_POS": change.pos}
    content = b""
    if isinstance(change, Resynced):
        content = b"".join(json.dumps(item_fields(item)).encode() + b"\n" for item in change.items)
    elif not isinstance(change, Progress):
        variables["KVCTL_KEY"] = os.fsdecode(change.key)
        variables["KVCTL_REVISION"] = str(change.revision)
        if isinstance(change, Put):
            content = change.value
    try:
        done = subprocess.run(
            command, shell=True, input=content, env={**os.environ, **variables}, check=False
        )
    except ValueError as error:
        # The environment takes no NUL.
        raise Failure(f"key {change!r:.80}: {error}", exit_codes.FAILURE) from error
    if done.returncode:
        click.echo(f"kvctl: CMD failed; go on after this change with --from {change.pos}", err=True)
        raise Quiet(128 - done.returncode if done.returncode < 0 else done.returncode)
