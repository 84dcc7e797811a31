"""completion: the script that lets a shell complete kvctl's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from kvstore.cli.command import Command


@click.command(cls=Command, short_help="Print the shell completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Examples:
      eval "$(kvctl completion bash)"                       in ~/.bashrc
      eval "$(kvctl completion zsh)"                        in ~/.zshrc
      kvctl completion fish > ~/.config/fish/completions/kvctl.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "the choices are the shells that click knows"
    click.echo(kind(context.find_root().command, {}, "kvctl", "_KVCTL_COMPLETE").source())
