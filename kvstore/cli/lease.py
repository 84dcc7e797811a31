"""lease grant, keepalive, revoke, get, ls."""

from __future__ import annotations

from typing import Any

import click

from kvstore.cli import exit_codes, output
from kvstore.cli.command import Command, LazyGroup, pass_settings
from kvstore.cli.failures import Failure
from kvstore.cli.settings import DURATION, Settings
from kvstore.client.results import LeaseInfo

_HELP = """Leases: keys that are attached to one go when it ends.

\b
Examples:
  id=$(kvctl lease grant 30s)           make one
  kvctl put worker/7 here --lease $id   attach a key
  kvctl lease keepalive $id --once      renew it
  kvctl lease get $id                   what is left, and which keys
  kvctl lease revoke $id                end it, with its keys
"""

lease = LazyGroup("lease", help=_HELP, short_help="Make, renew, end and list leases.", no_args_is_help=True)


@lease.command("grant", cls=Command, short_help="Make a lease and print its id.")
@click.argument("ttl", type=DURATION)
@click.option("--id", "lease_id", metavar="ID", help="An id of your own.")
@pass_settings
def grant(settings: Settings, ttl: float, lease_id: str | None) -> None:
    """Make a lease that lasts TTL unless it is renewed, and print its id.

    \b
    Examples:
      kvctl lease grant 30s
      kvctl lease grant 1m --id worker-7 -o json
    """
    with settings.client() as client:
        made = client.grant(ttl, lease_id)
    if settings.form("raw") == "raw":
        click.echo(made.id)
    else:
        output.show(settings.form(), {"lease": made.id, "ttl_ms": round(made.ttl * 1000)})


@lease.command("keepalive", cls=Command, short_help="Renew a lease, again and again.")
@click.argument("lease_id", metavar="ID")
@click.option("--once", is_flag=True, help="Renew once and end.")
@pass_settings
def keepalive(settings: Settings, lease_id: str, once: bool) -> None:
    """Renew the lease ID every third of its TTL until interrupted. Exits 3 when the lease has ended.

    \b
    Examples:
      id=$(kvctl lease grant 30s) && kvctl lease keepalive $id --once
      kvctl lease keepalive worker-7 &
    """
    import time

    from kvstore.client.claims import RENEWALS_PER_TTL

    with settings.client(is_long=not once) as client:
        ttl_s = client.lease_info(lease_id).ttl_s
        until = time.monotonic() + ttl_s
        while True:
            begun = time.monotonic()
            limit_s = settings.timeout() if once else max(settings.timeout(), until - begun)
            left_s = client.keep_alive(lease_id, timeout=limit_s)
            until = begun + left_s
            if settings.output is not None:
                output.show(settings.form(), {"lease": lease_id, "remaining_ms": round(left_s * 1000)})
            output.hint(f"lasts for {left_s:.1f} s", is_quiet=settings.is_quiet)
            if once:
                return
            time.sleep(max(0.05, ttl_s / RENEWALS_PER_TTL - (time.monotonic() - begun)))


@lease.command("revoke", cls=Command, short_help="End a lease and delete its keys.")
@click.argument("lease_id", metavar="ID")
@pass_settings
def revoke(settings: Settings, lease_id: str) -> None:
    """End the lease ID at once, and delete the keys that are attached to it. Exits 3 if there is none.

    \b
    Examples:
      id=$(kvctl lease grant 30s) && kvctl lease revoke $id
    """
    with settings.client() as client:
        if not client.revoke(lease_id):
            raise Failure(f"lease not found: {lease_id}", exit_codes.NOT_FOUND)
    output.hint("revoked", is_quiet=settings.is_quiet)


@lease.command("get", cls=Command, short_help="Show a lease's remaining time and keys.")
@click.argument("lease_id", metavar="ID")
@pass_settings
def get(settings: Settings, lease_id: str) -> None:
    """Show how long the lease ID lasts, and its keys. Exits 3 if there is none.

    \b
    Examples:
      id=$(kvctl lease grant 30s) && kvctl lease get $id
      kvctl lease get worker-7 -o json || true
    """
    with settings.client() as client:
        found = client.lease_info(lease_id)
    form = settings.form()
    if form == "raw":
        for key in found.keys:
            click.echo(key)
        return
    fields = _fields(found)
    if form == "table":
        fields["keys"] = [output.printable(key) for key in found.keys]
    else:
        fields["keys"] = [output.named_bytes("key", key) for key in found.keys]
    output.show(form, fields)


@lease.command("ls", cls=Command, short_help="List all leases.")
@pass_settings
def ls(settings: Settings) -> None:
    """List the leases of the cluster.

    \b
    Examples:
      kvctl lease ls
      kvctl lease ls -o jsonl
    """
    with settings.client() as client:
        found = client.leases()
    if settings.form() == "raw":
        for each in found:
            click.echo(each.id)
        return
    rows = [_fields(each) for each in found]
    output.show_rows(settings.form(), "leases", rows, ("lease", "ttl_ms", "remaining_ms"))


def _fields(found: LeaseInfo) -> dict[str, Any]:
    return {
        "lease": found.id,
        "ttl_ms": round(found.ttl_s * 1000),
        "remaining_ms": round(found.remaining_s * 1000),
    }
