"""kvctl's own kind of command and group: global options in any place, lazy loading, errors to exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from kvstore.cli import exit_codes, failures
from kvstore.cli.output import FORMS
from kvstore.cli.settings import DURATION, Settings
from kvstore.errors import KvError

_GLOBAL_NAMES = ("endpoints", "timeout_s", "output", "context", "is_quiet", "is_plain")


def global_options(*, is_hidden: bool = False) -> list[click.Parameter]:
    """The options that every command takes, before or after its name."""
    return [
        click.Option(
            ["--endpoints"],
            metavar="HOST:PORT,…",
            envvar=None if is_hidden else "KVCTL_ENDPOINTS",
            help="Nodes to ask; any will do.  [env KVCTL_ENDPOINTS; default 127.0.0.1:7401]",
            hidden=is_hidden,
        ),
        click.Option(
            ["--timeout", "timeout_s"],
            type=DURATION,
            metavar="DURATION",
            envvar=None if is_hidden else "KVCTL_TIMEOUT",
            help="Deadline of the command, retries included.  [env KVCTL_TIMEOUT; default 5s]",
            hidden=is_hidden,
        ),
        click.Option(
            ["-o", "--output"],
            type=click.Choice(FORMS),
            envvar=None if is_hidden else "KVCTL_OUTPUT",
            help="Form of the data on stdout; the default depends on the command.",
            hidden=is_hidden,
        ),
        click.Option(
            ["--context"],
            metavar="NAME",
            envvar=None if is_hidden else "KVCTL_CONTEXT",
            help="Take endpoints and timeout from [NAME] of ~/.config/kvctl/contexts.toml.",
            hidden=is_hidden,
        ),
        click.Option(
            ["-q", "--quiet", "is_quiet"], is_flag=True, help="No hints on stderr.", hidden=is_hidden
        ),
        click.Option(["--no-color", "is_plain"], is_flag=True, help="No colours.", hidden=is_hidden),
    ]


def take_globals(context: click.Context) -> Settings:
    """Move the global options out of a command's parameters into the settings of the run."""
    settings = context.ensure_object(Settings)
    given = {name: context.params.pop(name, None) for name in _GLOBAL_NAMES}
    for name in ("endpoints", "timeout_s", "output", "context"):
        if given[name] is not None:
            setattr(settings, name, given[name])
    settings.is_quiet = settings.is_quiet or bool(given["is_quiet"])
    settings.has_color = settings.has_color and not given["is_plain"] and "NO_COLOR" not in os.environ
    if not settings.has_color:
        context.color = False
    return settings


class Command(click.Command):
    """Takes the global options too, as users write them on either side of a command's name."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        taken = {name for parameter in self.params for name in parameter.opts}
        self.params += [each for each in global_options(is_hidden=True) if not taken & set(each.opts)]

    def invoke(self, context: click.Context) -> Any:
        take_globals(context)
        return super().invoke(context)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(context, formatter)
        formatter.write_paragraph()
        formatter.write_text("Global options (--endpoints, --timeout, -o, …): kvctl --help")


class LazyGroup(click.Group):
    """A group whose commands are named in a table and imported when they are called.

    `table` maps a name to ("module:attribute", one line of help).
    """

    command_class = Command

    def __init__(
        self, *arguments: Any, table: dict[str, tuple[str, str]] | None = None, **keywords: Any
    ) -> None:
        super().__init__(*arguments, **keywords)
        self._table = table or {}

    def list_commands(self, context: click.Context) -> list[str]:
        return [*self._table, *super().list_commands(context)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self._table:
            return super().get_command(context, name)
        module, _, attribute = self._table[name][0].partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(context, arguments)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(arguments[0], self.list_commands(context), 1)
            text = f"{error.message} Did you mean {near[0]!r}?" if near else error.message
            raise click.UsageError(text, context) from None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the table without importing anything."""
        rows = [(name, line) for name, (_, line) in self._table.items()]
        for name, command in sorted(self.commands.items()):
            if not command.hidden:
                rows.append((name, command.get_short_help_str(80)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Root(LazyGroup):
    """The program: turns our errors into messages and exit codes."""

    def invoke(self, context: click.Context) -> Any:
        take_globals(context)
        try:
            return super().invoke(context)
        except KvError as error:
            raise failures.of_error(error) from error
        except KeyboardInterrupt:
            raise failures.Quiet(exit_codes.INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has seen enough; keep Python from complaining at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise failures.Quiet(exit_codes.OK) from None


def pass_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the run's `Settings` to a command as its first argument."""
    return click.make_pass_decorator(Settings, ensure=True)(function)
