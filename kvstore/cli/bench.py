"""bench: load from many connections, and how long each request took."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

from kvstore.cli import exit_codes, output
from kvstore.cli.command import Command, pass_settings
from kvstore.cli.failures import Failure
from kvstore.cli.settings import DURATION, Settings
from kvstore.cli.workload import Load, Measured

_CHECK = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(<=|>=|<|>)\s*([0-9.]+)\s*(us|µs|ms|s)?\s*")
_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
_LATENCIES = (*_PERCENTILES, "mean", "max")
_RATES = ("throughput", "errors")
_UNIT_MS = {"us": 0.001, "µs": 0.001, "ms": 1.0, "s": 1000.0}
_BAR_WIDTH = 50


class Check(NamedTuple):
    text: str
    metric: str
    relation: str
    bound: float

    def fails(self, figures: Mapping[str, Any]) -> bool:
        latency = self.metric in _LATENCIES
        found = figures["latency_ms"][self.metric] if latency else figures[_FIGURE_OF[self.metric]]
        holds = {
            "<": found < self.bound,
            "<=": found <= self.bound,
            ">": found > self.bound,
            ">=": found >= self.bound,
        }
        return not holds[self.relation]


_FIGURE_OF = {"throughput": "throughput_per_s", "errors": "errors"}


class CheckType(click.ParamType[Check]):
    name = "check"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Check:
        if isinstance(value, Check):
            return value
        match = _CHECK.fullmatch(str(value))
        if match is None or match[1] not in (*_LATENCIES, *_RATES):
            known = ", ".join((*_LATENCIES, *_RATES))
            self.fail(f'{value!r}: expected METRIC<BOUND like "p99<20ms"; metrics: {known}', param, ctx)
        metric, relation, number, unit = match.groups()
        if (metric in _LATENCIES) != (unit is not None):
            self.fail(
                f"{value!r}: latencies take a unit (us, ms, s), {' and '.join(_RATES)} none", param, ctx
            )
        try:
            bound = float(number) * (_UNIT_MS[unit] if unit else 1.0)
        except ValueError:
            self.fail(f"{value!r}: {number!r} is no number", param, ctx)
        return Check(str(value), metric, relation, bound)


@click.command(cls=Command, short_help="Measure throughput and latency.")
@click.argument("operation", type=click.Choice(["put", "get", "mixed", "batch"]), default="mixed")
@click.option("-c", "--connections", type=click.IntRange(1, 10_000), default=32, show_default=True)
@click.option("-d", "--duration", type=DURATION, metavar="DURATION", help="How long.  [default: 10s]")
@click.option(
    "-n", "--count", type=click.IntRange(1), metavar="N", help="How many requests, instead of --duration."
)
@click.option("--value-bytes", type=click.IntRange(0, 1 << 20), default=64, show_default=True)
@click.option(
    "--keys", "key_count", type=click.IntRange(1), default=10_000, show_default=True, help="Different keys."
)
@click.option("--batch", "batch_count", type=click.IntRange(1, 10_000), default=100, show_default=True,
              help="Operations per request of `batch`.")  # fmt: skip
@click.option("--direct", is_flag=True, help="Send each request to the shard's leader; else to any endpoint.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random keys and values.")
@click.option("--check", "checks", type=CheckType(), multiple=True, metavar="METRIC<BOUND",
              help="Exit 7 unless it holds; may be repeated.")  # fmt: skip
@pass_settings
def bench(
    settings: Settings,
    operation: str,
    connections: int,
    duration: float | None,
    count: int | None,
    value_bytes: int,
    key_count: int,
    batch_count: int,
    direct: bool,
    seed: int,
    checks: tuple[Check, ...],
) -> None:
    """Put load on the cluster and print throughput and latencies. Each connection sends its next request
    when it has its answer. Keys are bench/000000000 to --keys; get and mixed write them all first.

    \b
    OPERATION: put, get, mixed (half and half; the default), batch (--batch puts in one request).
    Metrics of --check: p50 p90 p95 p99 p999 mean max (us, ms, s), throughput (operations/s), errors.

    \b
    Examples:
      kvctl bench
      kvctl bench put -c 64 -d 30s --value-bytes 1000
      kvctl bench get -n 100000 -o json
      kvctl bench mixed --check "p99<20ms" --check "errors<1"
    """
    if duration is not None and count is not None:
        raise click.UsageError("give either --duration or --count")
    load = Load(
        operation,
        connections,
        value_bytes,
        key_count,
        batch_count,
        None if count is not None else (10.0 if duration is None else duration),
        count,
        direct,
        seed,
        settings.timeout(),
    )
    from kvstore.cli.load import run

    measured = run(settings.endpoint_list(), load)
    figures = _figures(load, measured)
    _print(settings, figures, measured)
    if measured.latencies.count == 0:
        raise Failure("no request was answered with success", exit_codes.UNAVAILABLE, "kvctl cluster status")
    failed = [check.text for check in checks if check.fails(figures)]
    if failed:
        raise Failure(f"check failed: {', '.join(failed)}", exit_codes.CHECK_FAILED)


def _figures(load: Load, measured: Measured) -> dict[str, Any]:
    latencies = measured.latencies
    milliseconds = {name: latencies.percentile(percent) / 1000 for name, percent in _PERCENTILES.items()}
    milliseconds |= {"mean": round(latencies.mean / 1000, 3), "max": latencies.largest / 1000}
    return {
        "operation": load.operation,
        "connections": load.connections,
        "value_bytes": load.value_bytes,
        "keys": load.key_count,
        "seconds": round(measured.seconds, 3),
        "requests": latencies.count,
        "operations": measured.operations,
        "errors": sum(measured.errors.values()),
        "errors_by_kind": dict(sorted(measured.errors.items())),
        "throughput_per_s": round(measured.operations / measured.seconds, 1) if measured.seconds else 0.0,
        "latency_ms": milliseconds,
        "histogram_us": [
            {"from": low, "to": high, "count": count} for low, high, count in latencies.doublings()
        ],
    }


def _print(settings: Settings, figures: dict[str, Any], measured: Measured) -> None:
    if settings.form() != "table":
        output.show(settings.form(), figures)
        return
    latencies, errors = figures["latency_ms"], figures["errors_by_kind"]
    shown_apart = ("latency_ms", "histogram_us", "errors_by_kind")
    output.facts({name: value for name, value in figures.items() if name not in shown_apart})
    click.echo("latency     " + "  ".join(f"{name} {value:.3g} ms" for name, value in latencies.items()))
    if errors:
        click.echo("errors      " + output.cell(errors))
    most = max((count for _, _, count in measured.latencies.doublings()), default=0)
    for _, high, count in measured.latencies.doublings():
        bar = "#" * -(-count * _BAR_WIDTH // most)
        click.echo(f"  <= {(high + 1) / 1000:>9.3f} ms  {count:>9}  {bar}".rstrip())
