"""Charts of runs as one HTML page: SVG curves, values under the cursor, and a table.

Invariant: the page loads nothing over the network, and the names of runs are escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from importlib.resources import files as resources
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from slm_fn.pipeline.reports.charts import Chart, Curve, downsample, y_bounds

Number = TypeVar("Number", float, np.ndarray)
NUM_COLOURS = 8
"""Colours that static/curves.css defines; later runs take the same ones again, dashed."""
MAX_CURVE_POINTS = 600
"""Points of a curve: about the width of a chart in pixels."""
SVG_SIZE = 1000.0
"""Width and height of the SVG's view box; it is stretched to its frame, line widths are not."""
X_MARGIN = 1.02
"""The x axis ends 2 % beyond the last step, or else the edge would cut the last point in half."""
DRAWING_ORDER = ("raw", "smooth", "points")
TABLE_COLUMNS = (
    "status",
    "steps",
    "tokens",
    "loss",
    "best val",
    "tok/s",
    "device",
)
SI_PREFIXES = (
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
)


class Tick(NamedTuple):
    """A tick of an axis: its value (on a logarithmic axis the exponent of ten) and its label."""

    value: float
    label: str


class _Axis(NamedTuple):
    """The range of an axis."""

    low: float
    high: float

    def fraction(self, value: Number) -> Number:
        """Returns how far along the axis a value, or an array of values, is: 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def render_page(
    names: Sequence[str],
    charts: Sequence[Chart],
    summaries: Sequence[dict[str, Any]],
) -> str:
    """Returns the HTML document.

    Args:
        names: the names of the runs.
        charts: their charts.
        summaries: their rows of `runs.summarize`.
    """
    static = resources("slm_fn.pipeline.reports") / "static"
    style = (static / "curves.css").read_text(encoding="utf-8")
    script = (static / "curves.js").read_text(encoding="utf-8")
    rendered = [_render_chart(chart) for chart in charts]
    figures = "".join(figure for figure, _ in rendered)
    page_data = {
        "runs": list(names),
        "colours": NUM_COLOURS,
        "charts": [chart_data for _, chart_data in rendered],
    }
    # The characters `</` would end the script element, even inside a JSON string.
    page_json = msgspec.json.encode(page_data).decode().replace("</", "<\\/")
    title = html.escape(names[0] if len(names) == 1 else f"{len(names)} runs")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title}</h1>
{_render_legend(names)}
<div class="charts">
{figures}</div>
<p class="note">Thin: means over the steps between two log lines. Thick: their average. \
Dots: validation.</p>
{_render_table(names, summaries)}
<script type="application/json" id="data">{page_json}</script>
<script>
{script}</script>
</body>
</html>
"""


def _colour_style(run: int) -> str:
    return f'style="--own: var(--c{run % NUM_COLOURS})"'


def _render_legend(names: Sequence[str]) -> str:
    items = []
    for i, name in enumerate(names):
        button = f'<button type="button" data-run="{i}" aria-pressed="true" disabled>'
        items.append(f"<li {_colour_style(i)}>{button}<i></i>{html.escape(name)}</button></li>")
    label = "Runs: press to hide or show"
    return f'<ul class="runs" aria-label="{label}">{"".join(items)}</ul>'


def _render_chart(chart: Chart) -> tuple[str, dict[str, Any]]:
    """Returns a chart as HTML, and the data from which the script shows values under the cursor."""
    curves = [downsample(curve, MAX_CURVE_POINTS) for curve in chart.curves]
    last_x = max((float(curve.x.max()) for curve in curves), default=0.0)
    x_axis = _Axis(0.0, X_MARGIN * last_x or 1.0)
    y_axis = _Axis(*_scale(np.array(y_bounds(chart)), chart.log_y).tolist())
    figure = _render_figure(chart, curves, x_axis, y_axis)
    data = {
        "label": chart.x_label,
        "low": x_axis.low,
        "high": x_axis.high,
        "curves": [_curve_data(curve) for curve in curves if curve.kind != "raw"],
    }
    return figure, data


def _render_figure(
    chart: Chart,
    curves: Sequence[Curve],
    x_axis: _Axis,
    y_axis: _Axis,
) -> str:
    title = html.escape(chart.title)
    x_label = html.escape(chart.x_label)
    unit = f"<small>{html.escape(chart.y_label)}</small>" if chart.y_label else ""
    y_ticks = log_ticks(*y_axis) if chart.log_y else linear_ticks(*y_axis)
    grid = "".join(_grid_line(tick, y_axis) for tick in y_ticks)
    labels = "".join(_tick_label(tick, x_axis, "x", "left") for tick in linear_ticks(*x_axis))
    labels += "".join(_tick_label(tick, y_axis, "y", "bottom") for tick in y_ticks)
    paths = ""
    for curve in sorted(curves, key=lambda curve: DRAWING_ORDER.index(curve.kind)):
        if len(curve.x):
            paths += _render_curve(curve, x_axis, y_axis, chart.log_y)
    return f"""<figure>
<figcaption>{title}{unit}</figcaption>
<div class="frame"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" \
aria-label="{title} by {x_label}">\
<path class="grid" d="{grid}"/>{paths}</svg>
{labels}<span class="axis">{x_label}</span></div>
</figure>
"""


def _grid_line(tick: Tick, axis: _Axis) -> str:
    y = SVG_SIZE - axis.fraction(tick.value) * SVG_SIZE
    return f"M0 {y:.1f}h{SVG_SIZE:.0f}"


def _tick_label(
    tick: Tick,
    axis: _Axis,
    name: str,
    side: str,
) -> str:
    offset = f"{axis.fraction(tick.value):.2%}"
    return f'<span class="tick {name}" style="{side}:{offset}">{tick.label}</span>'


def _render_curve(
    curve: Curve,
    x_axis: _Axis,
    y_axis: _Axis,
    log_y: bool,
) -> str:
    xs = x_axis.fraction(curve.x) * SVG_SIZE
    ys = SVG_SIZE - y_axis.fraction(_scale(curve.y, log_y)) * SVG_SIZE
    points = [f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    run = f'data-run="{curve.run}"'
    colour = _colour_style(curve.run)
    if curve.kind == "points":
        # A line of length zero with round ends is a dot that stays round when the SVG is stretched.
        dots = "".join(f"M{point}h0" for point in points)
        ring = f'<path class="ring" {run} d="{dots}"/>'
        return f'{ring}<path class="points" {run} {colour} d="{dots}"/>'
    is_dashed = curve.run >= NUM_COLOURS and curve.kind == "smooth"
    classes = f"{curve.kind} dashed" if is_dashed else curve.kind
    return f'<path class="{classes}" {run} {colour} d="M{"L".join(points)}"/>'


def _curve_data(curve: Curve) -> dict[str, Any]:
    return {
        "run": curve.run,
        "kind": curve.kind,
        "x": curve.x.tolist(),
        "y": [float(f"{y:.6g}") for y in curve.y],
    }


def _scale(values: np.ndarray, log: bool) -> np.ndarray:
    """Returns the values, or their logarithms of base ten; NaN where there is none."""
    return np.log10(np.where(values > 0, values, np.nan)) if log else values


def linear_ticks(
    low: float,
    high: float,
    max_ticks: int = 6,
) -> list[Tick]:
    """Returns ticks at multiples of a round number: 1, 2 or 5 times a power of ten.

    Example:
        >>> [tick.label for tick in linear_ticks(0, 23_000)]
        ['0', '5k', '10k', '15k', '20k']
    """
    min_step = (high - low) / max_ticks
    power = 10.0 ** math.floor(math.log10(min_step))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= min_step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    numbers = [i * step for i in range(first, last + 1)]
    return [Tick(number, format_tick(number, step)) for number in numbers]


def log_ticks(low: float, high: float) -> list[Tick]:
    """Returns ticks at round numbers of a logarithmic axis.

    Args:
        low: the exponent of ten at which the axis begins.
        high: the exponent of ten at which it ends.

    Returns:
        Ticks whose values are exponents of ten. A range with fewer than two round numbers gets four
        evenly spaced ticks.

    Example:
        >>> [tick.label for tick in log_ticks(0.1, 1.0)]
        ['1.5', '2', '3', '4', '5', '7', '10']
    """
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = _log_tick_factors(high - low)
    ticks = []
    for power in powers:
        for factor in factors:
            number = factor * 10.0**power
            exponent = math.log10(number)
            if low <= exponent <= high:
                ticks.append(Tick(exponent, _format_log_tick(number)))
    if len(ticks) > 1:
        return ticks
    return [Tick(exponent, f"{10**exponent:.3g}") for exponent in np.linspace(low, high, 4)]


def _log_tick_factors(num_decades: float) -> tuple[float, ...]:
    """Returns the multiples of a power of ten that get a tick: more of them on a shorter axis."""
    if num_decades >= 2.5:
        return (1,)
    if num_decades >= 1.2:
        return (1, 2, 5)
    if num_decades > 0.5:
        return (1, 1.5, 2, 3, 4, 5, 7)
    return (1, 1.2, 1.4, 1.7, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)


def _format_log_tick(number: float) -> str:
    return format_tick(number, number) if number >= 1000 else f"{number:.3g}"


def format_tick(number: float, step: float) -> str:
    """Returns the label of a tick, with as many digits as the step between two ticks needs.

    Example:
        >>> format_tick(1_500_000, 500_000), format_tick(4e18, 1e18)
        ('1.5M', '4E')
        >>> format_tick(0.02, 0.005), format_tick(3e-5, 1e-5)
        ('0.020', '3e-05')
    """
    size = abs(number)
    if number == 0:
        return "0"
    if size >= 1e21 or size < 1e-3:
        return f"{number:.2g}"
    for factor, prefix in SI_PREFIXES:
        if size >= factor:
            return f"{number / factor:.4g}{prefix}"
    num_digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{number:.{num_digits}f}"


def _render_table(names: Sequence[str], summaries: Sequence[dict[str, Any]]) -> str:
    header = "".join(f'<th scope="col">{name}</th>' for name in ("run", *TABLE_COLUMNS))
    rows = ""
    for i, (name, summary) in enumerate(zip(names, summaries, strict=True)):
        head = f'<th scope="row" {_colour_style(i)}><i></i>{html.escape(name)}</th>'
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _table_cells(summary))
        rows += f"<tr>{head}{cells}</tr>"
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of runs">'
        "<table><caption>Status of the runs</caption>"
        f"<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _table_cells(summary: dict[str, Any]) -> list[str]:
    """Returns the texts of a row, in the order of `TABLE_COLUMNS`."""
    steps = f"{summary['step']:,}"
    if summary["total_steps"]:
        steps += f" / {summary['total_steps']:,}"
    return [
        summary["status"],
        steps,
        f"{summary['tokens']:,}",
        _format_optional(summary["train_loss"], ".4f"),
        _format_optional(summary["best_val_loss"], ".4f"),
        _format_optional(summary["tok_per_s"], ",.0f"),
        summary["device"] or "",
    ]


def _format_optional(number: float | None, format_spec: str) -> str:
    return "" if number is None else format(number, format_spec)
