"""Where a command gets its global settings: flag, else environment, else context file, else default."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvstore.cli import exit_codes
from kvstore.cli.failures import Failure
from kvstore.errors import InvalidArgument

if TYPE_CHECKING:
    from kvstore.client.sync import Client

DEFAULT_ENDPOINTS = "127.0.0.1:7401"
DEFAULT_TIMEOUT_S = 5.0
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """Seconds, from "750ms", "5s", "1m" or a plain number of seconds."""

    name = "duration"

    def __init__(self, *, may_be_zero: bool = False) -> None:
        self._may_be_zero = may_be_zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip()
        unit = next((unit for unit in ("ms", "s", "m", "h") if text.endswith(unit)), "")
        try:
            seconds = float(text.removesuffix(unit)) * _UNITS_S.get(unit, 1.0)
        except ValueError:
            self.fail(f'{value!r}: expected a duration like "750ms", "5s" or "1m"', param, ctx)
        if self._may_be_zero and seconds == 0:
            return 0.0
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r}: expected a duration above zero", param, ctx)
        return seconds


DURATION = Duration()
DURATION_OR_ZERO = Duration(may_be_zero=True)


@dataclass
class Settings:
    """The global options of one run. None means: not given."""

    endpoints: str | None = None
    timeout_s: float | None = None
    output: str | None = None
    context: str | None = None
    is_quiet: bool = False
    has_color: bool = True
    _context: dict[str, Any] | None = field(default=None, repr=False)

    def form(self, default: str = "table") -> str:
        return self.output or default

    def endpoint_list(self) -> list[str]:
        found = self.endpoints
        if found is None:
            in_context = self._from_context().get("endpoints", DEFAULT_ENDPOINTS)
            found = ",".join(in_context) if isinstance(in_context, list) else str(in_context)
        return [each.strip() for each in found.split(",") if each.strip()]

    def timeout(self, default_s: float = DEFAULT_TIMEOUT_S) -> float:
        if self.timeout_s is not None:
            return self.timeout_s
        in_context = self._from_context().get("timeout")
        return default_s if in_context is None else DURATION.convert(in_context, None, None)

    def client(self, *, is_long: bool = False) -> Client:
        """Return a client for a call or two: it asks any node and does not fetch routes. `is_long`: for a
        command that stays; it learns all nodes, and goes on while they fail."""
        from kvstore.client.sync import Client

        try:
            return Client(*self.endpoint_list(), timeout=self.timeout(), direct=is_long, patient=is_long)
        except InvalidArgument as error:
            raise click.UsageError(f"--endpoints: {error}") from error

    def _from_context(self) -> dict[str, Any]:
        if self._context is None:
            self._context = {} if self.context is None else read_context(self.context)
        return self._context


def contexts_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "kvctl" / "contexts.toml"


def read_context(name: str) -> dict[str, Any]:
    """Read `[NAME]` of the contexts file. Raises Failure that says what was expected where."""
    import tomllib

    path = contexts_file()
    step = f'write {path} with a section [{name}] and endpoints = ["host:port", …]'
    try:
        contexts = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise Failure(f"context {name!r}: there is no {path}", exit_codes.USAGE, step) from None
    except (OSError, ValueError) as error:
        raise Failure(f"{path}: {error}", exit_codes.USAGE, step) from error
    context = contexts.get(name)
    if not isinstance(context, dict):
        known = ", ".join(sorted(contexts)) or "none"
        raise Failure(f"context {name!r} is not in {path}; known: {known}", exit_codes.USAGE, step)
    unknown = set(context) - {"endpoints", "timeout"}
    if unknown:
        raise Failure(
            f"{path}: [{name}] has unknown settings: {', '.join(sorted(unknown))}", exit_codes.USAGE
        )
    return context
