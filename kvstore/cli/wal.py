"""wal dump: what a node's write-ahead log holds, read offline."""

from __future__ import annotations

from pathlib import Path

import click

from kvstore.cli import exit_codes, output
from kvstore.cli.command import Command, LazyGroup, pass_settings
from kvstore.cli.failures import Failure
from kvstore.cli.settings import Settings
from kvstore.errors import Fatal


@click.group(cls=LazyGroup, short_help="Look into a node's write-ahead log, offline.")
def wal() -> None:
    """Look into a node's write-ahead log, offline."""


@wal.command("dump", cls=Command)
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("--shard", type=click.IntRange(0), metavar="N", help="Only records of shard N.")
@pass_settings
def dump(settings: Settings, directory: str, shard: int | None) -> None:
    """Print the records of the log in DIRECTORY, a node's data directory or the log's own: segment, batch,
    type, shard, indexes, and whether their checksums hold. Changes nothing; the node may be running or
    not. Exits 7 if something in it is damaged.

    \b
    Examples:
      kvctl wal dump /var/lib/kvstore/n1
      kvctl wal dump /var/lib/kvstore/n1 --shard 3 -o jsonl
    """
    from kvstore.wal.dump import dump as read

    inside = Path(directory) / "wal"
    damaged_count = 0
    try:
        for record in read(str(inside if inside.is_dir() else directory)):
            damaged_count += record.get("state", "ok") not in ("ok", "torn")
            if shard is not None and record.get("shard") != shard:
                continue
            if settings.form() == "table":
                click.echo("  ".join(f"{name}={output.cell(value)}" for name, value in record.items()))
            else:
                output.line(record)
    except (Fatal, OSError) as error:
        raise Failure(str(error)) from error
    if damaged_count:
        raise Failure(f"{damaged_count} damaged", exit_codes.CHECK_FAILED)
