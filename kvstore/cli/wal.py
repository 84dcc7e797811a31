"""wal dump: what a node's write-ahead log holds, read offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    """Print the log in DIRECTORY, a node's data directory or the log's own: segments, batches, and records
    with shard, type and indexes, and whether their checksums hold. Changes nothing; stop the node first or
    dump a copy. Exits 7 if something is damaged; a torn last batch is not, a restart cuts it off.

    \b
    Examples:
      kvctl wal dump /var/lib/kvstore/n1
      kvctl wal dump /var/lib/kvstore/n1 --shard 3 -o jsonl
    """
    from kvstore.wal.dump import dump as read

    inside = Path(directory) / "wal"
    segment_count = damaged_count = 0
    try:
        for row in read(str(inside if inside.is_dir() else directory)):
            segment_count += row["is"] == "segment"
            is_damaged = row.get("state", "ok") not in ("ok", "torn")
            damaged_count += is_damaged
            if shard is None or row.get("shard") == shard or is_damaged:
                _print(settings.form(), row)
    except (Fatal, OSError) as error:
        raise Failure(str(error)) from error
    if not segment_count:
        raise Failure(f"{directory} holds no log", next_step="name a node's data directory")
    if damaged_count:
        raise Failure(f"the log is damaged in {damaged_count} place(s)", exit_codes.CHECK_FAILED)


_INDENT = {"segment": "", "batch": "  ", "damage": "  ", "record": "    "}
"""Rows of a table show by their indent what they are part of, so they leave those members out."""


def _print(form: str, row: dict[str, Any]) -> None:
    if form != "table":
        output.line(row)
        return
    kind = row["is"]
    hidden = {"is", "type"} | ({"segment", "sequence"} if kind == "record" else set())
    members = "  ".join(f"{name}={output.cell(value)}" for name, value in row.items() if name not in hidden)
    click.echo(f"{_INDENT.get(kind, '')}{row.get('type', kind)}  {members}")
