"""put, get, del, ls, incr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click

from kvstore.cli import exit_codes, output
from kvstore.cli.command import Command, pass_settings
from kvstore.cli.failures import Failure, Quiet
from kvstore.cli.settings import DURATION, Settings
from kvstore.client.results import Item

_CONSISTENCY = click.Choice(["linearizable", "lease", "stale"])


def value_of(argument: str) -> bytes:
    """The value an argument stands for: itself, "-" for stdin, "@file" for a file's bytes."""
    if argument == "-":
        return sys.stdin.buffer.read()
    if argument.startswith("@@"):
        return argument[1:].encode("utf-8", "surrogateescape")
    if argument.startswith("@"):
        try:
            return Path(argument[1:]).read_bytes()
        except OSError as error:
            raise click.UsageError(f"VALUE {argument}: {error.strerror}") from error
    return argument.encode("utf-8", "surrogateescape")


def key_of(argument: str) -> bytes:
    """Arguments are bytes that Python decoded: give them back as they were typed."""
    return argument.encode("utf-8", "surrogateescape")


@click.command(cls=Command, short_help="Write a value.")
@click.argument("key")
@click.argument("value")
@click.option(
    "--if-revision", type=click.IntRange(0), metavar="N", help="Only if N is the key's revision (0: absent)."
)
@click.option("--if-absent", is_flag=True, help="Only if the key does not exist.")
@click.option("--ttl", type=DURATION, metavar="DURATION", help="Delete the key after so long.")
@click.option("--lease", metavar="ID", help="Delete the key when this lease ends.")
@click.option("--content-type", metavar="TYPE", help="Media type to keep with the value.")
@click.option("--prev", is_flag=True, help="Print what the key held before.")
@pass_settings
def put(
    settings: Settings,
    key: str,
    value: str,
    ttl: float | None,
    lease: str | None,
    if_revision: int | None,
    if_absent: bool,
    content_type: str | None,
    prev: bool,
) -> None:
    """Write VALUE under KEY. VALUE is the text itself, "-" for stdin, or @FILE for a file's bytes
    ("@@x" is the text "@x").

    Prints nothing but, with --prev, the value before; -o json prints the new revision and version. With a
    condition that does not hold it changes nothing and exits 4.

    \b
    Examples:
      kvctl put user/1 ann
      kvctl put config @app.yaml --content-type application/yaml
      kvctl put lock me --if-absent || echo taken
      kvctl put user/1 bob --if-revision 7
      kvctl put session/42 ann --ttl 30m
      kvctl put worker/7 here --lease "$(kvctl lease grant 30s)"
    """
    if if_revision is not None and if_absent:
        raise click.UsageError("give either --if-revision or --if-absent")
    content = value_of(value)
    with settings.client() as client:
        result = client.put(
            key_of(key),
            content,
            ttl=ttl,
            lease=lease,
            if_revision=if_revision,
            if_absent=if_absent,
            prev=prev,
            content_type=content_type,
        )
    fields: dict[str, Any] = {
        "revision": result.revision,
        "version": result.version,
        "created": result.created,
    }
    if prev:
        fields["prev"] = None if result.prev is None else item_fields(result.prev)
    _report(settings, fields, result.prev)
    verb = "created" if result.created else "written"
    output.hint(f"{verb}, revision {result.revision}", is_quiet=settings.is_quiet)


@click.command(cls=Command, short_help="Print a key's value.")
@click.argument("key")
@click.option("--revision", type=click.IntRange(0), metavar="N", help="As of shard revision N.")
@click.option("--consistency", type=_CONSISTENCY, default="linearizable", show_default=True)
@click.option("--max-staleness", type=DURATION, metavar="DURATION", help="Bound for --consistency stale.")
@pass_settings
def get(
    settings: Settings, key: str, revision: int | None, consistency: str, max_staleness: float | None
) -> None:
    """Print the value of KEY, byte for byte (a newline follows on a terminal only). Exits 3 if the key
    does not exist.

    \b
    Examples:
      kvctl get user/1
      kvctl get image > image.png
      kvctl get user/1 -o json            with revision, version and media type
      kvctl get user/1 --revision 7       what it held then
    """
    with settings.client() as client:
        item = client.get(
            key_of(key), revision=revision, consistency=consistency, max_staleness=max_staleness
        )
    if item is None:
        raise Failure(f"key not found: {key}", exit_codes.NOT_FOUND)
    form = settings.form("raw")
    if form == "raw":
        output.raw(item.value)
    else:
        output.show(form, item_fields(item))


@click.command("del", cls=Command, short_help="Delete a key, or all keys with a prefix.")
@click.argument("key", required=False)
@click.option("--if-revision", type=click.IntRange(1), metavar="N", help="Only if N is the key's revision.")
@click.option("--prev", is_flag=True, help="Print what the key held before.")
@click.option("--prefix", metavar="PREFIX", help='All keys that begin with PREFIX ("" is every key).')
@click.option("-y", "--yes", is_flag=True, help="Do not ask before a --prefix delete.")
@pass_settings
def delete(
    settings: Settings, key: str | None, if_revision: int | None, prev: bool, prefix: str | None, yes: bool
) -> None:
    """Delete KEY. Deleting what does not exist is no error: -o json says how many keys went.

    \b
    Examples:
      kvctl del user/1
      kvctl del user/1 --if-revision 7
      kvctl del --prefix session/ --yes
    """
    if (key is None) == (prefix is None):
        raise click.UsageError("give either a KEY or --prefix")
    if prefix is not None:
        if prev or if_revision is not None:
            raise click.UsageError("--prev and --if-revision are for a single KEY")
        _delete_range(settings, key_of(prefix), yes)
        return
    assert key is not None
    with settings.client() as client:
        result = client.delete(key_of(key), if_revision=if_revision, prev=prev)
    fields: dict[str, Any] = {"deleted": result.deleted, "revision": result.revision}
    if prev:
        fields["prev"] = None if result.prev is None else item_fields(result.prev)
    _report(settings, fields, result.prev)
    output.hint("deleted" if result.deleted else "there was no such key", is_quiet=settings.is_quiet)


def _delete_range(settings: Settings, prefix: bytes, yes: bool) -> None:
    with settings.client() as client:
        if not yes:
            count = client.count(prefix=prefix)
            what = (
                f"{count} key(s) that begin with {output.printable(prefix)!r}"
                if prefix
                else f"ALL {count} key(s)"
            )
            if not sys.stdin.isatty():
                raise Failure(f"this would delete {what}", exit_codes.USAGE, "repeat with --yes")
            if not click.confirm(f"Delete {what}?", err=True):
                raise Quiet(exit_codes.FAILURE)
        deleted = client.delete_range(prefix)
    _report(settings, {"deleted": deleted}, None)
    output.hint(f"deleted {deleted} key(s)", is_quiet=settings.is_quiet)


def _report(settings: Settings, fields: dict[str, Any], prev: Item | None) -> None:
    """A write's result: by default only the value before, if it was asked for."""
    if settings.output in (None, "raw"):
        if prev is not None:
            output.raw(prev.value)
    else:
        output.show(settings.form(), fields)


@click.command(cls=Command, short_help="List keys in order.")
@click.argument("prefix", default="")
@click.option("--start", metavar="KEY", help="First key, instead of a prefix.")
@click.option("--end", metavar="KEY", help="Stop before this key.")
@click.option("-n", "--limit", type=click.IntRange(1), metavar="N", help="At most N keys.")
@click.option("-k", "--keys-only", is_flag=True, help="Leave the values out.")
@click.option("-r", "--reverse", is_flag=True, help="From the last key to the first.")
@click.option("-c", "--count", "is_count", is_flag=True, help="Print only how many keys there are.")
@click.option("--consistency", type=_CONSISTENCY, default="linearizable", show_default=True)
@pass_settings
def ls(
    settings: Settings,
    prefix: str,
    start: str | None,
    end: str | None,
    limit: int | None,
    keys_only: bool,
    reverse: bool,
    is_count: bool,
    consistency: str,
) -> None:
    """List the keys that begin with PREFIX (all by default), in the order of their bytes. Each shard is
    read at one moment; the shards' moments differ.

    \b
    Output: table with shortened values; json and jsonl with whole ones; raw prints the keys only, one on
    a line.

    \b
    Examples:
      kvctl ls user/
      kvctl ls --start a --end b --limit 10
      kvctl ls session/ --count
      kvctl ls -o jsonl > all.jsonl
    """
    if prefix and (start is not None or end is not None):
        raise click.UsageError("give either PREFIX, or --start and --end")
    bounds: dict[str, Any] = {
        "prefix": key_of(prefix) if prefix else None,
        "start": None if start is None else key_of(start),
        "end": None if end is None else key_of(end),
        "consistency": consistency,
    }
    with settings.client() as client:
        if is_count:
            count = client.count(**bounds)
            if settings.form("raw") in ("table", "raw"):
                click.echo(count)
            else:
                output.show(settings.form(), {"count": count})
            return
        form = settings.form()
        is_bare = keys_only or form == "raw"
        _list(form, client.scan(**bounds, limit=limit, keys_only=is_bare, reverse=reverse), keys_only)


def _list(form: str, items: Iterator[Item], keys_only: bool) -> None:
    # The first answer comes before the first output: a failure leaves no half of a document behind.
    first = next(items, None)
    found = chain([] if first is None else [first], items)
    if form == "raw":
        for item in found:
            click.echo(item.key)
    elif form == "jsonl":
        for item in found:
            output.line(item_fields(item, keys_only))
    elif form == "json":
        listed = [item_fields(item, keys_only) for item in found]
        output.document({"items": listed, "count": len(listed)})
    else:
        headers = ["key", "revision", "version"] + ([] if keys_only else ["value"])
        output.table(headers, (_row(item, keys_only) for item in found))


def _row(item: Item, keys_only: bool) -> list[str]:
    row = [output.printable(item.key, 200), str(item.revision), str(item.version)]
    return row if keys_only else [*row, output.printable(item.value)]


def item_fields(item: Item, keys_only: bool = False) -> dict[str, Any]:
    fields: dict[str, Any] = dict(output.named_bytes("key", item.key))
    if not keys_only:
        fields |= output.named_bytes("value", item.value)
    fields |= {
        "revision": item.revision,
        "create_revision": item.create_revision,
        "version": item.version,
        "lease": item.lease,
    }
    if item.content_type is not None:
        fields["content_type"] = item.content_type
    if item.ttl_s is not None:
        fields["ttl_ms"] = round(item.ttl_s * 1000)
    if item.staleness_s is not None:
        fields["staleness_ms"] = round(item.staleness_s * 1000)
    return fields


@click.command(cls=Command, short_help="Add to a counter and print it.")
@click.argument("key")
@click.option("--by", type=int, default=1, show_default=True, help="What to add; may be negative.")
@click.option("--min", "low", type=int, metavar="N", help="Refuse to go below N.")
@click.option("--max", "high", type=int, metavar="N", help="Refuse to go above N.")
@pass_settings
def incr(settings: Settings, key: str, by: int, low: int | None, high: int | None) -> None:
    """Add to the decimal number under KEY and print the sum; an absent key counts as 0. Exact even when
    the answer is lost on the way and the request repeated.

    \b
    Examples:
      kvctl incr visits
      kvctl incr stock/42 --by -1 --min 0
    """
    with settings.client() as client:
        result = client.incr(key_of(key), by, min=low, max=high)
    if settings.form("raw") == "raw":
        click.echo(result.value)
    else:
        output.show(settings.form(), {"value": result.value, "revision": result.revision})
