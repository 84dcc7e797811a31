"""The `kvctl` program: global options and the table of commands."""

from __future__ import annotations

import click

from kvstore import __version__
from kvstore.cli.command import Root, global_options

_COMMANDS = {
    "put": ("kvstore.cli.kv:put", "Write a value."),
    "get": ("kvstore.cli.kv:get", "Print a key's value."),
    "del": ("kvstore.cli.kv:delete", "Delete a key, or all keys with a prefix."),
    "ls": ("kvstore.cli.kv:ls", "List keys in order."),
    "incr": ("kvstore.cli.kv:incr", "Add to a counter and print it."),
    "txn": ("kvstore.cli.txn:txn", "Compare, then do one of two lists of operations."),
    "watch": ("kvstore.cli.watch:watch", "Follow changes."),
    "lease": ("kvstore.cli.lease:lease", "Make, renew, end and list leases."),
    "lock": ("kvstore.cli.lock:lock", "Run a command while holding a lock."),
    "elect": ("kvstore.cli.lock:elect", "Lead while a command runs, or see who leads."),
    "demo": ("kvstore.cli.demo:demo", "Run a real cluster of processes in a temporary directory."),
    "init": ("kvstore.cli.init:init", "Write a commented cluster.yaml."),
    "cluster": ("kvstore.cli.cluster:cluster", "The cluster as a whole."),
    "node": ("kvstore.cli.cluster:node", "The nodes."),
    "shard": ("kvstore.cli.cluster:shard", "The shards and their leaders."),
    "explain": ("kvstore.cli.cluster:explain", "Where a key lives."),
    "bench": ("kvstore.cli.bench:bench", "Measure throughput and latency."),
    "wal": ("kvstore.cli.wal:wal", "Look into a node's write-ahead log, offline."),
    "completion": ("kvstore.cli.completion:completion", "Print the shell completion script."),
}

_HELP = """Read, write and look after a kvstore cluster.

\b
Examples:
  kvctl demo                         a cluster to try things on
  kvctl put user/1 ann               write a value
  kvctl get user/1                   print it
  echo hello | kvctl put greeting -  write what stdin holds
  kvctl ls user/ -o jsonl            list a prefix for a program
  kvctl watch --prefix user/         follow what changes
  kvctl lock backup -- make-backup   run a command while holding a lock
  kvctl cluster status               is everything well?

Options are read from the command line, then from KVCTL_* variables, then from the context. stdout carries
data only. \
"""

_EPILOG = """\b
Exit codes:
  0  ok                         4  precondition failed, lock not taken
  1  failure                    5  denied
  2  wrong usage                6  unavailable, or outcome unknown
  3  key or lease not found     7  a check failed
"""

cli = Root(
    "kvctl",
    table=_COMMANDS,
    params=[*global_options(), click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False,
            callback=lambda context, _, value: _print_version(context, value), help="Print the version.")],
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    no_args_is_help=True,
)  # fmt: skip


def _print_version(context: click.Context, value: bool) -> None:
    if value:
        click.echo(f"kvctl {__version__}")
        context.exit()


def main() -> None:
    """Entry point of the `kvctl` script."""
    cli(prog_name="kvctl")
