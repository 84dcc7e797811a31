"""A run on one HTML page without anything from outside: verdict, throughput and latency over time with the
faults as bands, what happened in each phase, and a timeline of the operations of every violation."""

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from chaos.explain import describe, explanation
from chaos.history import Operation
from chaos.nemeses import Fault
from chaos.run import Outcome

WIDTH, HEIGHT, LEFT = 1100, 180, 60
AROUND_S = 0.25
"""How much of the history around a violation's core its timeline shows."""
LINES_MAX = 120

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 24px auto; max-width: 1180px; color: #1c2430; }
h1 span { padding: 2px 10px; border-radius: 4px; color: white; }
.ok { background: #2c7a4b } .violation { background: #b3261e } .inconclusive { background: #9a6700 }
table { border-collapse: collapse }
td, th { padding: 2px 10px; text-align: left; border-bottom: 1px solid #dde }
pre { background: #f4f5f7; padding: 10px; overflow-x: auto } svg { display: block; margin: 8px 0 }
text { font: 11px system-ui, sans-serif; fill: #556 }
"""

_COLOURS = {"ok": "#3b7dd8", "conflict": "#8e6bbf", "refused": "#b9bec7", "unknown": "#d98c2b"}
_BANDS = ("#e8554a", "#e8a04a", "#8a6fd1", "#3fa7a0", "#c25fa3", "#6f8a3f", "#5f7fc2")


def write_report(path: Path, outcome: Outcome) -> None:
    """Write the page. The history itself lies beside it as JSON lines."""
    path.write_text(page(outcome), encoding="utf-8")


def page(outcome: Outcome) -> str:
    plan = outcome.plan
    title = f"{plan.workload} under {', '.join(plan.nemeses) or 'no faults'}"
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1><span class={outcome.word}>{outcome.word}</span> {html.escape(title)}</h1>",
        f"<p>seed {plan.seed}, {plan.clients} clients, {len(outcome.history)} operations on"
        f" {outcome.verdict.partitions} groups of keys, {len(outcome.faults)} faults; every shard served"
        f" {outcome.heal_s:.1f} s after the last.</p>",
        *(f"<pre>{html.escape(text)}</pre>" for text in (*outcome.wrong, *outcome.reasons)),
        _plots(outcome),
        _lanes(outcome),
        _phases(outcome),
        _faults(outcome.faults, _start_of(outcome)),
    ]
    for violation, core in outcome.explained:
        parts.append(f"<h2>{html.escape(', '.join(violation.keys))}</h2>")
        parts.append(f"<pre>{html.escape(explanation(core))}</pre>")
        parts.append(timeline(violation.operations, core))
    return "\n".join(parts)


def timeline(operations: Sequence[Operation], core: Sequence[Operation]) -> str:
    """One bar for each operation near the core, the core itself outlined; unknown ones have no end."""
    times = [time for item in core for time in (item.invoked, item.returned) if time is not None]
    if not times:
        return ""
    begin, end = min(times) - AROUND_S, max(times) + AROUND_S
    members = {id(item) for item in core}
    near = [
        item
        for item in operations
        if id(item) in members or (item.invoked <= end and (item.returned or math.inf) >= begin)
    ]
    near.sort(key=lambda item: (id(item) not in members, item.invoked))
    near = sorted(near[:LINES_MAX], key=lambda item: item.invoked)
    scale = (WIDTH - LEFT) / (end - begin)
    rows = []
    for row, item in enumerate(near):
        left = LEFT + max(0.0, item.invoked - begin) * scale
        right = LEFT + (min(end, item.returned) - begin) * scale if item.returned else WIDTH
        edge = ' stroke="#b3261e" stroke-width="2"' if id(item) in members else ""
        label = html.escape(f"{item.process}: {describe(item)}")
        rows.append(
            f'<rect x="{left:.1f}" y="{row * 18 + 2}" width="{max(2.0, right - left):.1f}" height="14"'
            f' fill="{_COLOURS[item.outcome]}" fill-opacity="0.45"{edge}><title>{label}</title></rect>'
            f'<text x="{left + 3:.1f}" y="{row * 18 + 13}">{label[:150]}</text>'
        )
    return f'<svg width="{WIDTH}" height="{len(near) * 18 + 6}">{"".join(rows)}</svg>'


def _plots(outcome: Outcome) -> str:
    done = [item for item in outcome.history if item.returned is not None]
    if not done:
        return ""
    begin = _start_of(outcome)
    end = max(item.returned or 0.0 for item in done)
    count = max(1, min(400, math.ceil((end - begin) / 0.5)))
    step = (end - begin) / count
    rates = {kind: [0.0] * count for kind in ("ok", "refused", "unknown")}
    waits: list[list[float]] = [[] for _ in range(count)]
    for item in outcome.history:
        moment = item.returned if item.returned is not None else item.invoked
        place = min(count - 1, max(0, int((moment - begin) / step)))
        kind = "ok" if item.outcome in ("ok", "conflict") else item.outcome
        rates[kind][place] += 1 / step
        if item.returned is not None and kind == "ok":
            waits[place].append((item.returned - item.invoked) * 1000)
    bands = _fault_bands(outcome.faults, begin, end)
    middle = [_percentile(wait, 0.5) for wait in waits]
    slow = [_percentile(wait, 0.99) for wait in waits]
    length_s = end - begin
    coloured = [(rates["ok"], _COLOURS["ok"]), (rates["refused"], "#6b7280"), (rates["unknown"], "#d98c2b")]
    throughput = _plot("operations/s: ok blue, refused grey, unknown orange", bands, coloured, length_s)
    both = [(middle, "#3b7dd8"), (slow, "#b3261e")]
    return throughput + _plot("latency in ms: p50 blue, p99 red", bands, both, length_s)


def _plot(title: str, bands: str, lines: Iterable[tuple[list[float], str]], length_s: float) -> str:
    drawn = list(lines)
    top = max((value for values, _ in drawn for value in values), default=0.0) or 1.0
    paths = []
    for values, colour in drawn:
        points = " ".join(
            f"{LEFT + (WIDTH - LEFT) * (place + 0.5) / len(values):.1f},{HEIGHT - HEIGHT * value / top:.1f}"
            for place, value in enumerate(values)
        )
        paths.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
    labels = f'<text x="2" y="12">{top:,.0f}</text><text x="2" y="{HEIGHT - 2}">0</text>'
    labels += f'<text x="{WIDTH - 60}" y="{HEIGHT + 14}">{length_s:.0f} s</text>'
    inside = f"{bands}{''.join(paths)}{labels}"
    return f'<p>{html.escape(title)}</p><svg width="{WIDTH}" height="{HEIGHT + 18}">{inside}</svg>'


def _fault_bands(faults: Sequence[Fault], begin: float, end: float) -> str:
    kinds = sorted({fault.kind for fault in faults})
    scale = (WIDTH - LEFT) / (end - begin)
    drawn = []
    for fault in faults:
        left = LEFT + (fault.begun - begin) * scale
        width = max(1.0, ((fault.ended or end) - fault.begun) * scale)
        colour = _BANDS[kinds.index(fault.kind) % len(_BANDS)]
        label = html.escape(f"{fault.kind} {', '.join(fault.nodes)}: {fault.proof}")
        drawn.append(
            f'<rect x="{left:.1f}" y="0" width="{width:.1f}" height="{HEIGHT}" fill="{colour}"'
            f' fill-opacity="0.22"><title>{label}</title></rect>'
        )
    return "".join(drawn)


def _lanes(outcome: Outcome) -> str:
    """Which node had which fault when, on the time axis of the plots above."""
    nodes = sorted({node for fault in outcome.faults for node in fault.nodes})
    done = [item.returned for item in outcome.history if item.returned is not None]
    if not nodes or not done:
        return ""
    kinds = sorted({fault.kind for fault in outcome.faults})
    begin, end = _start_of(outcome), max(done)
    scale = (WIDTH - LEFT) / (end - begin)
    drawn = [f'<text x="2" y="{22 * row + 14}">{html.escape(node)}</text>' for row, node in enumerate(nodes)]
    for fault in outcome.faults:
        left = LEFT + (fault.begun - begin) * scale
        width = max(2.0, ((fault.ended or end) - fault.begun) * scale)
        colour = _BANDS[kinds.index(fault.kind) % len(_BANDS)]
        label = html.escape(f"{fault.kind}: {fault.proof}")
        name = f'<text x="{left + 2:.1f}" y="{{y}}">{html.escape(fault.kind)}</text>' if width > 45 else ""
        for node in fault.nodes:
            top = 22 * nodes.index(node)
            drawn.append(
                f'<rect x="{left:.1f}" y="{top + 2}" width="{width:.1f}" height="18" fill="{colour}"'
                f' fill-opacity="0.5"><title>{label}</title></rect>{name.format(y=top + 15)}'
            )
    keys = ", ".join(
        f'<span style="color:{_BANDS[number % len(_BANDS)]}">{html.escape(kind)}</span>'
        for number, kind in enumerate(kinds)
    )
    return (
        f'<p>faults by node: {keys}</p><svg width="{WIDTH}" height="{22 * len(nodes)}">{"".join(drawn)}</svg>'
    )


def _phases(outcome: Outcome) -> str:
    rows = []
    for name, begun, ended in outcome.phases:
        inside = [item for item in outcome.history if begun <= item.invoked < ended]
        counts = {kind: sum(item.outcome == kind for item in inside) for kind in _COLOURS}
        cells = "".join(f"<td>{counts[kind]}</td>" for kind in _COLOURS)
        rows.append(f"<tr><td>{html.escape(name)}<td>{ended - begun:.1f} s{cells}</tr>")
    head = "".join(f"<th>{kind}" for kind in ("phase", "length", *_COLOURS))
    return f"<h2>Phases</h2><table><tr>{head}</tr>{''.join(rows)}</table>"


def _faults(faults: Sequence[Fault], begin: float) -> str:
    rows = []
    for fault in faults:
        length_s = max(0.0, fault.ended - fault.begun)
        cells = (
            f"{fault.begun - begin:.1f} s",
            fault.kind,
            ", ".join(fault.nodes),
            f"{length_s:.1f} s",
            fault.proof,
        )
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells) + "</tr>")
    return f"<h2>Faults</h2><table><tr><th>at<th>kind<th>nodes<th>for<th>proof</tr>{''.join(rows)}</table>"


def _start_of(outcome: Outcome) -> float:
    return min((item.invoked for item in outcome.history), default=0.0)


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0
