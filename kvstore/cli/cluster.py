"""cluster status, node ls, shard ls, shard transfer, shard rebuild, explain."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from kvstore.cli import exit_codes, output
from kvstore.cli.command import Command, LazyGroup, pass_settings
from kvstore.cli.failures import Failure
from kvstore.cli.settings import Settings

TRANSFER_POLL_S = 0.05
REBUILD_POLL_S = 0.25
LOOK_S_MIN = 1.0

_NODE_COLUMNS = ("id", "client", "peer", "host", "zone", "weight", "is_up")
_SHARD_COLUMNS = ("id", "start", "end", "leader", "term", "replicas", "applied", "keys")


@click.group(cls=LazyGroup, short_help="The cluster as a whole.")
def cluster() -> None:
    """Look at the cluster as a whole."""


@cluster.command("status")
@pass_settings
def status(settings: Settings) -> None:
    """Print name, id, health and shards without a leader, as one node sees them.

    \b
    Examples:
      kvctl cluster status
      kvctl cluster status -o json | jq .health
    """
    with settings.client() as client:
        found = _object(client.fetch("GET", "/v1/cluster"), "/v1/cluster")
    if settings.form() != "table":
        output.show(settings.form(), found)
        return
    shown = dict(found)
    if settings.has_color and output.is_terminal() and isinstance(shown.get("health"), str):
        color = "green" if shown["health"] in ("ok", "healthy") else "red"
        shown["health"] = click.style(shown["health"], fg=color)
    output.facts(shown)


@click.group(cls=LazyGroup, short_help="The nodes.")
def node() -> None:
    """Look at the nodes."""


@node.command("ls")
@pass_settings
def node_ls(settings: Settings) -> None:
    """List the nodes with their addresses, hosts and zones.

    \b
    Example:
      kvctl node ls
    """
    with settings.client() as client:
        found = _rows(client.fetch("GET", "/v1/nodes"), "nodes", "/v1/nodes")
    output.show_rows(settings.form(), "nodes", found, _NODE_COLUMNS)


@click.group(cls=LazyGroup, short_help="The shards and their leaders.")
def shard() -> None:
    """Look at the shards; move their leaders; rebuild lost replicas."""


@shard.command("ls")
@click.option("--leader", metavar="NODE", help="Only shards that NODE leads.")
@pass_settings
def shard_ls(settings: Settings, leader: str | None) -> None:
    """List the shards: token range, leader, term, replicas (the leader's with a star), applied index,
    number of keys.

    \b
    Examples:
      kvctl shard ls
      kvctl shard ls --leader n1 -o jsonl
    """
    with settings.client() as client:
        found = _rows(client.fetch("GET", "/v1/shards"), "shards", "/v1/shards")
    if leader is not None:
        found = [each for each in found if each.get("leader") == leader]
    if settings.form() == "table":
        found = [{**each, "replicas": _replicas(each)} for each in found]
    output.show_rows(settings.form(), "shards", found, _SHARD_COLUMNS)


def _replicas(fields: Mapping[str, Any]) -> str:
    marked = []
    for replica in fields.get("replicas") or []:
        name = str(replica.get("node", "?")) if isinstance(replica, Mapping) else str(replica)
        role = replica.get("role") if isinstance(replica, Mapping) else None
        mark = (
            "*"
            if name == fields.get("leader")
            else f"({role})"
            if role not in (None, "voter", "follower")
            else ""
        )
        marked.append(name + mark)
    return ",".join(marked)


@shard.command("transfer")
@click.argument("shard_id", metavar="SHARD", type=click.IntRange(0))
@click.option("--to", required=True, metavar="NODE", help="The node that shall lead.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it leads.")
@pass_settings
def transfer(settings: Settings, shard_id: int, to: str, no_wait: bool) -> None:
    """Hand the leadership of SHARD to another of its replicas, without losing a write.

    \b
    Example:
      kvctl shard transfer 3 --to n2
    """
    deadline = time.monotonic() + settings.timeout()
    path = f"/v1/shards/{shard_id}"
    with settings.client() as client:
        client.fetch("POST", f"{path}/transfer", {"to": to})
        leader = None
        while not no_wait and leader != to:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Failure(
                    f"shard {shard_id} is still led by {leader or 'nobody'} after {settings.timeout():g} s",
                    exit_codes.UNAVAILABLE,
                    "see whether the target keeps up: kvctl shard ls",
                )
            # The last look must not fail for want of time: its answer is what the deadline is told by.
            look_s = max(left_s, LOOK_S_MIN)
            leader = _object(client.fetch("GET", path, timeout=look_s), path).get("leader")
            if leader != to:
                time.sleep(TRANSFER_POLL_S)
    if settings.output is not None:
        output.show(settings.form(), {"shard": shard_id, "leader": leader, "requested": to})
    output.hint(f"shard {shard_id}: {to} leads" if leader else "requested", is_quiet=settings.is_quiet)


@shard.command("rebuild")
@click.argument("shard_id", metavar="SHARD")
@click.argument("node_id", metavar="NODE")
@click.option("--no-wait", is_flag=True, help="Do not wait until the new replica votes.")
@pass_settings
def rebuild(settings: Settings, shard_id: str, node_id: str, no_wait: bool) -> None:
    """Give NODE a new replica of SHARD (a number, or meta) in place of its quarantined or lost one: a copy
    of the leader's, which joins the votes once it has caught up. The damaged one is removed after that.

    Refused if NODE's replica is healthy, and while too few of the others live. Once accepted it goes on by
    itself, whatever crashes; asking again does no harm.

    \b
    Examples:
      kvctl shard ls
      kvctl shard rebuild 3 n1
    """
    deadline = time.monotonic() + settings.timeout()
    path = f"/v1/shards/{quote(shard_id, safe='')}"
    with settings.client() as client:
        started = _object(client.fetch("POST", f"{path}/rebuild", {"node": node_id}), "rebuild")
        role = started.get("role")
        while not no_wait and role != "follower":
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Failure(
                    f"the new replica on {node_id} is still {role} after {settings.timeout():g} s",
                    exit_codes.UNAVAILABLE,
                    "it goes on by itself: kvctl shard ls",
                )
            look_s = max(left_s, LOOK_S_MIN)
            role = _rebuilt_role(_object(client.fetch("GET", path, timeout=look_s), path), node_id)
            if role != "follower":
                time.sleep(min(REBUILD_POLL_S, left_s))
    if settings.output is not None:
        output.show(settings.form(), {**started, "role": role})
    done = f"shard {shard_id}: {started.get('replica')} "
    output.hint(done + ("votes" if role == "follower" else "is being copied to"), is_quiet=settings.is_quiet)


def _rebuilt_role(fields: Mapping[str, Any], node_id: str) -> str:
    """What the node's replica is; two rows mean that the old one has not left yet."""
    rows = [each for each in fields.get("replicas") or [] if each.get("node") == node_id]
    roles = [str(each.get("role")) for each in rows]
    if roles in (["follower"], ["leader"]):
        return "follower"
    return "learner" if "learner" in roles or not roles else roles[0]


@click.command(cls=Command, short_help="Where a key lives.")
@click.argument("key")
@pass_settings
def explain(settings: Settings, key: str) -> None:
    """Say where KEY lives: its token, shard, leader and replicas. The key need not exist. Keys with the
    same {tag} in braces live together.

    \b
    Examples:
      kvctl explain user/1
      kvctl explain 'cart/{user1}/items'
    """
    with settings.client() as client:
        found = _object(client.explain(key.encode("utf-8", "surrogateescape")), "explain")
    if settings.form() == "table" and "replicas" in found:
        found = {**found, "replicas": _replicas(found)}
    output.show(settings.form(), found)


def _object(found: Any, what: str) -> dict[str, Any]:
    if isinstance(found, dict):
        return found
    raise Failure(f"{what}: expected an object, got {type(found).__name__}")


def _rows(found: Any, name: str, what: str) -> list[dict[str, Any]]:
    rows = _object(found, what).get(name)
    if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        return rows
    raise Failure(f"{what}: expected a list {name!r}")
