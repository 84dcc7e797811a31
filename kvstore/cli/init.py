"""init: a cluster.yaml that explains itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from kvstore.cli import exit_codes
from kvstore.cli.command import Command, pass_settings
from kvstore.cli.failures import Failure
from kvstore.cli.output import hint
from kvstore.cli.settings import Settings

CLIENT_PORT = 7401
PEER_PORT = 7501
_COMMENT_COLUMN = 38


@click.command(cls=Command, short_help="Write a commented cluster.yaml.")
@click.argument("file", default="cluster.yaml")
@click.option("--name", default="demo", show_default=True, help="The cluster's name.")
@click.option("--nodes", "node_count", type=click.IntRange(1, 99), default=3, show_default=True)
@click.option("--shards", type=click.IntRange(1, 4096), default=16, show_default=True, help="A power of two.")
@click.option("--replication", type=click.IntRange(1, 9), help="Odd.  [default: 3, or 1 for fewer nodes]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of all nodes, to be edited.")
@click.option("-f", "--force", is_flag=True, help="Replace FILE if it exists.")
@pass_settings
def init(
    settings: Settings,
    file: str,
    name: str,
    node_count: int,
    shards: int,
    replication: int | None,
    host: str,
    force: bool,
) -> None:
    """Write FILE, a cluster.yaml with every setting, its default and its reason. "-" writes to stdout.

    \b
    Examples:
      kvctl init
      kvctl init --nodes 5 --shards 64 --name orders orders.yaml
      kvctl init - | less
    """
    copies = replication if replication is not None else (3 if node_count >= 3 else 1)
    text = render(name=name, host=host, node_count=node_count, shards=shards, replication=copies)
    _check(text, file)
    if file == "-":
        click.echo(text, nl=False)
        return
    try:
        with Path(file).open("w" if force else "x") as target:
            target.write(text)
    except FileExistsError:
        raise Failure(
            f"{file} exists already", exit_codes.USAGE, "repeat with --force to replace it"
        ) from None
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from error
    hint(f"wrote {file}; start a node: kvstored --config {file} --node n1", is_quiet=settings.is_quiet)


def render(*, name: str, host: str, node_count: int, shards: int, replication: int) -> str:
    """Return the text of a cluster.yaml whose nodes are n1, n2, … on ports counted from 7401 and 7501."""
    nodes = [
        {"id": f"n{number + 1}", "client": f"{host}:{CLIENT_PORT + number}",
         "peer": f"{host}:{PEER_PORT + number}", "host": f"h{number + 1}", "zone": "abc"[number % 3]}
        for number in range(node_count)
    ]  # fmt: skip
    return cluster_yaml(name, nodes, shards, replication) + "\n" + "\n".join(_optional()) + "\n"


def cluster_yaml(name: str, nodes: list[dict[str, str]], shards: int, replication: int) -> str:
    """Return the part of a cluster.yaml that has no defaults."""
    lines = [
        _line(f"cluster: {_scalar(name)}", "name; part of the cluster's identity"),
        _line(f"replication: {replication}", "replicas per shard, odd; survives the loss of fewer than half"),
        _line(f"shards: {shards}", "power of two, fixed at the first boot"),
        _line("virtual_nodes: 64", "points on the ring per unit of weight"),
        "",
        "# Seeds of the first boot; after it the cluster's own state is the truth. `client` and `peer` are",
        "# the addresses by which others reach the node. No two replicas of a shard are put on one `host`,",
        "# and zones are kept apart where possible. `weight: 2` gives a node twice the share.",
        "nodes:",
    ]
    for node in nodes:
        members = ", ".join(f"{field}: {_scalar(value)}" for field, value in node.items())
        lines.append(f"  - {{{members}}}")
    return "\n".join(lines) + "\n"


def _line(setting: str, comment: str) -> str:
    return f"{setting:<{_COMMENT_COLUMN - 1}} # {comment}"


def _optional() -> Iterator[str]:
    from kvstore.config import describe_settings

    yield "# What follows are the defaults: to change one, remove the # before it."
    section = None
    for path, default, description in describe_settings():
        head, _, field = path.partition(".")
        if head != section:
            section = head
            yield ""
            yield f"{head}:"
        yield _line(f"  # {field}: {_scalar(default)}", description)


def _scalar(value: Any) -> str:
    """Return YAML for a number or text; quoted unless it is plainly a word."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if not isinstance(value, str) or re.fullmatch(r"[a-z][a-z0-9_-]*", text) and text not in _YAML_WORDS:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def _check(text: str, file: str) -> None:
    """What we write must be what a node accepts: mistakes in the options are found here."""
    from kvstore.config import ConfigError, parse_config

    try:
        parse_config(text, file=file)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
