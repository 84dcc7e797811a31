"""Forms of output: `table` for people, `json` and `jsonl` for programs, `raw` for bytes as they are.

A form never depends on whether a terminal reads it; only the newline after a raw value does.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import click

FORMS = ("table", "json", "jsonl", "raw")
CELL_WIDTH_MAX = 60
WIDTH_SAMPLE_ROWS = 500
"""A table's columns are as wide as these many first rows need; longer cells later just stick out."""


def is_terminal() -> bool:
    return sys.stdout.isatty()


def hint(text: str, *, is_quiet: bool) -> None:
    """Say something that is not data: on stderr, and only to a person."""
    if not is_quiet and sys.stderr.isatty():
        click.echo(text, err=True)


def raw(value: bytes) -> None:
    """Write bytes exactly; on a terminal a newline follows, so that the prompt starts a line of its own."""
    click.echo(value, nl=is_terminal())


def document(content: Any) -> None:
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def line(content: Any) -> None:
    click.echo(json.dumps(content, ensure_ascii=False))


def named_bytes(name: str, value: bytes) -> dict[str, str]:
    """Return a JSON member: text where the bytes are UTF-8, else base64 under `name_b64`."""
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_b64": b64encode(value).decode()}


def printable(value: bytes, width_max: int = CELL_WIDTH_MAX) -> str:
    """Return bytes as one table cell: text, control characters escaped, cut with an ellipsis."""
    text = value[: 4 * width_max].decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return text if len(text) <= width_max else text[: width_max - 1] + "…"


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(cell(each) for each in value) or "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={cell(each)}" for name, each in value.items()) or "-"
    return str(value)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write aligned columns, streaming: a million rows need no memory."""
    lines = iter(rows)
    sample = list(islice(lines, WIDTH_SAMPLE_ROWS))
    widths = [max(len(each[at]) for each in [headers, *sample]) for at in range(len(headers))]
    for row in chain([[name.upper() for name in headers]], sample, lines):
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def facts(content: Mapping[str, Any]) -> None:
    """Write one thing as lines of name and value."""
    width = max((len(name) for name in content), default=0)
    for name, value in content.items():
        click.echo(f"{name.replace('_', ' '):<{width}}  {cell(value)}")


def show(form: str, content: Mapping[str, Any]) -> None:
    """Write one document in the form asked for."""
    if form == "table":
        facts(content)
    elif form == "json":
        document(content)
    else:
        line(content)


def show_rows(form: str, name: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write many like things: a table of `columns` (those that any row has), or JSON."""
    if form == "json":
        document({name: list(rows)})
    elif form in ("jsonl", "raw"):
        for row in rows:
            line(row)
    else:
        found = list(rows)
        present = [column for column in columns if any(column in row for row in found)] or list(columns)
        table(
            [column.replace("_", " ") for column in present],
            ([cell(row.get(column)) for column in present] for row in found),
        )
