"""How kvctl says that something went wrong: what, what was tried where, and one next step."""

from __future__ import annotations

from typing import IO, Any

import click

from kvstore.cli import exit_codes
from kvstore.errors import (
    Conflict,
    KvError,
    NoLeader,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    Unsupported,
)


class Failure(click.ClickException):
    """Ends a command with a message on stderr and an exit code."""

    def __init__(
        self, message: str, exit_code: int = exit_codes.FAILURE, next_step: str | None = None
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc] # click reads it from the instance
        self.next_step = next_step
        self.tried: list[tuple[str, str]] = []

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"kvctl: {self.message}", file=file, err=True)
        width = max((len(address) for address, _ in self.tried), default=0)
        for address, what in self.tried:
            click.echo(f"  {address:<{width}}  {what}", file=file, err=True)
        if self.next_step:
            click.echo(f"next: {self.next_step}", file=file, err=True)


class Quiet(click.ClickException):
    """Ends a command with an exit code and no message: it was said already, or nobody listens."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code  # type: ignore[misc] # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        pass


def of_error(error: KvError) -> Failure:
    tried = error.fields.get("tried")
    message = error.detail
    if tried:
        message = message.partition(" (")[0]
    if error.request_id:
        message = f"{message} [request {error.request_id}]"
    failure = Failure(message, exit_codes.of_error(error), _next_step(error))
    if isinstance(tried, list):
        failure.tried = tried
    return failure


def _next_step(error: KvError) -> str | None:
    if isinstance(error, OutcomeUnknown):
        return "read the key back: kvctl get KEY"
    if isinstance(error, NoLeader):
        return "see which nodes are up: kvctl cluster status; kvctl shard ls"
    if isinstance(error, Overloaded):
        return "try again with a longer --timeout"
    if isinstance(error, Unavailable):
        return "check --endpoints (or KVCTL_ENDPOINTS) and that the nodes run: kvctl cluster status"
    if isinstance(error, Conflict):
        return "read the key again and repeat with its present revision"
    if isinstance(error, Unsupported):
        return "see what this version serves: kvctl --help"
    return None
